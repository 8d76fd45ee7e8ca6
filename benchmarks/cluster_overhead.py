"""What the runtime costs: one process against an embedded Ray, and frames per second against the number of workers.

    python benchmarks/cluster_overhead.py --save benchmarks/cluster_overhead_cpu_202611

Every figure is that of a fresh process, as a user starts it. Rounds alternate, so that a machine that slows down slows
all alike; the best of each counts. "running" is the time between the first chunk and the last commit, without start-up
and report.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import recording
import torch

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, time
from worldkv.cli import progress
started = float(sys.argv.pop(1))
told = {}
def step(self, name, done, of):
    at = self._done + done / max(1, of)
    if at > 0:
        told.setdefault("first", time.time() - started)
    if not name.startswith("writing"):
        told["last"] = time.time() - started
    elif "report" not in told:
        told["report"] = time.time() - started
        print("SECONDS", told["first"], told["last"], file=sys.stderr, flush=True)
progress.Bar.step = step
from cluster.cli import main
main()
"""


def seconds(words: list[str]) -> tuple[float, float]:
    """Until the first chunk was made, and from there to the last commit."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(time.time()), *words]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    found = re.search(r"SECONDS (\S+) (\S+)", process.stderr)
    if process.returncode or found is None:
        raise SystemExit(process.stderr)
    first, last = map(float, found.groups())
    return first, last - first


def main() -> None:
    options = _options()
    work = Path(tempfile.mkdtemp(prefix="wkv-overhead-", dir=options.folder))
    cases = {"in process": ["--in-process"]} | {
        f"{workers} workers": ["--workers", str(workers)] for workers in map(int, options.workers.split(","))
    }
    changes = [word for change in options.set or [] for word in ("--set", change)]
    found: dict[str, list[tuple[float, float]]] = {case: [] for case in cases}
    try:
        for turn in range(options.rounds):
            for case, words in cases.items():
                run = work / f"{turn}-{case.replace(' ', '-')}"
                output = ["--set", f"output.folder={run}"]
                found[case].append(seconds(["rollout", options.config, *changes, *output, *words]))
                print(case, found[case][-1], flush=True)
                shutil.rmtree(run)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    best = {case: tuple(min(values) for values in zip(*rounds, strict=True)) for case, rounds in found.items()}
    base = best["in process"][1]
    rows = [[case, f"{start:.1f}", f"{run:.1f}", f"{run / base - 1:+.1%}"] for case, (start, run) in best.items()]
    table = recording.markdown_table(["", "first chunk after s", "running s", "against in process"], rows)
    print(table)
    if options.save is not None:
        content = {"circumstances": recording.circumstances(torch.device("cpu")), "seconds": found}
        recording.save(options.save, "What the runtime costs", table, content)
    else:
        print(json.dumps(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(ROOT / "configs" / "demo.yaml"))
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--save", type=Path, default=None, help="result files, without suffix")
    return parser.parse_args()


if __name__ == "__main__":
    main()
