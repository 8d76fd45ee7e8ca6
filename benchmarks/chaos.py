"""The fault campaign of the chunk memory in its long form: random calls and faults, then real deaths of a process.

Every fetch must give exactly the admitted bytes, or their exact reduction, or a miss with a reason; books must balance,
bytes stay within caps, and what was durable be found again. A seed replays its campaign: the same events, the same
digest. Ends with status 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from campaign.crash import Deaths, Sweep
from campaign.run import CampaignFailed, run, shared_pool
from campaign.tally import Tally
from campaign.world import Broken
from recording import circumstances, markdown_table, save

CPU = torch.device("cpu")
KILL_STEPS = 30


def campaigns(folder: Path, seeds: range, operations: int) -> tuple[Tally, list[dict[str, object]], list[str]]:
    """All campaigns: their figures together, one row for each, and what went wrong."""
    total, rows, wrong = Tally(), [], []
    for seed in seeds:
        place = folder / f"seed-{seed}"
        place.mkdir()
        started = time.perf_counter()
        try:
            tally = run(seed, operations, place, time.sleep)
        except CampaignFailed as fault:
            wrong.append(str(fault))
            print(f"FAILED  {fault}", flush=True)
            continue
        seconds = time.perf_counter() - started
        total.add(tally)
        row = {"seed": seed, "operations": tally.operations, "faults": tally.faults.total(), "digest": tally.digest}
        rows.append(row | {"seconds": round(seconds, 1)})
        print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return total, rows, wrong


def deaths(folder: Path, seeds: range) -> tuple[Deaths, list[str]]:
    """Kill a process at each of its calls of media, on roomy media and on full ones."""
    total, wrong = Deaths(), []
    for seed in seeds:
        for roomy in (True, False):
            try:
                seen = Sweep(shared_pool(), seed, KILL_STEPS, roomy).run(folder / f"kill-{seed}-{roomy}")
            except Broken as fault:
                wrong.append(str(fault))
                print(f"FAILED  {fault}", flush=True)
                continue
            total.points.update(seen.points)
            total.found += seen.found
            print(f"kill seed {seed}  roomy {roomy}  deaths {seen.points.total()}  found {seen.found}", flush=True)
    return total, wrong


def figures(total: Tally, seen: Deaths, wrong: list[str]) -> dict[str, object]:
    """All that was counted."""
    return {
        "operations": total.operations,
        "faults": dict(total.faults),
        "chunks_compared": total.checked_chunks,
        "wrong_bytes": sum("WrongBytes" in fault for fault in wrong),
        "failures": wrong,
        "audits": total.checks,
        "names_found_after_restart": total.names_checked,
        "hits": dict(total.hits),
        "misses": dict(total.misses),
        "moves": dict(total.moves),
        "most_medium_calls": total.largest_calls(),
        "milliseconds": total.milliseconds(),
        "deaths": dict(seen.points),
        "found_after_death": seen.found,
    }


def page(content: Mapping[str, object]) -> str:
    """The figures as tables."""
    heads = ["operations", "chunks_compared", "wrong_bytes", "audits", "most_medium_calls"]
    heads += ["names_found_after_restart", "found_after_death"]
    lines = [[name.replace("_", " "), f"{content[name]:,}"] for name in heads]
    parts = [markdown_table(["", "count"], lines)]
    for name in ("faults", "hits", "misses", "moves", "deaths"):
        counts = content[name]
        assert isinstance(counts, dict)
        lines = [[kind.replace("_", " "), f"{count:,}"] for kind, count in counts.items()]
        parts.append(f"## {name.capitalize()}\n\n" + markdown_table(["", "count"], lines))
    times = content["milliseconds"]
    assert isinstance(times, dict)
    lines = [[kind, *(f"{value:.3f}" for value in row.values())] for kind, row in times.items()]
    parts.append(
        "## Milliseconds of a fetch, and of any operation\n\n" + markdown_table(["", "p50", "p99", "max"], lines)
    )
    failures = content["failures"]
    assert isinstance(failures, list)
    parts.append("## Failures\n\n" + ("\n".join(f"- {fault}" for fault in failures) or "None."))
    return "\n\n".join(parts)


def main() -> int:
    """Run all campaigns and sweeps, print a line for each, and write the figures."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--operations", type=int, default=1_000_000, help="of all campaigns together")
    words.add_argument("--seeds", type=int, default=20, help="campaigns")
    words.add_argument("--first-seed", type=int, default=1)
    words.add_argument("--kill-seeds", type=int, default=4, help="sequences of steps swept with SIGKILL")
    words.add_argument("--folder", type=Path, help="where to write; by default memory, where there is such a folder")
    words.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = words.parse_args()
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    with tempfile.TemporaryDirectory(dir=given.folder or (memory if os.access(memory, os.W_OK) else None)) as name:
        seen, wrong = deaths(Path(name), seeds[: given.kill_seeds])
        total, rows, failed = campaigns(Path(name), seeds, given.operations // given.seeds)
    content = {"circumstances": circumstances(CPU), **figures(total, seen, wrong + failed), "campaigns": rows}
    for kind in ("operations", "faults", "misses", "wrong_bytes", "deaths", "failures"):
        print(f"{kind.replace('_', ' ')}: {content[kind]}")
    if given.out:
        save(given.out, "Fault campaign of the chunk memory", page(content), content)
    return int(bool(content["failures"]))


if __name__ == "__main__":
    raise SystemExit(main())
