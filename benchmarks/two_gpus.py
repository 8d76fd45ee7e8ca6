"""One session over two GPUs: that it is right, and how fast it is against one GPU. One command, under two minutes.

    PYTHONPATH=.:benchmarks:tests/cluster python benchmarks/two_gpus.py --result benchmarks/sharded_h100_202611

First a tiny model in float32, over two NCCL ranks against one process, as tests/cluster/test_sharding.py does it. Then
the full size with random weights by benchmarks/sharded.py: rank 0 alone, then both. Needs torch, numpy, scipy and
msgpack, no Ray: the ranks are the same processes that a gang's actors are. NVLink multicast is off.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from sharded_rank import MODELS, POLICIES, alone

from cluster.sharding import NO_MULTICAST

ROOT = Path(__file__).resolve().parents[1]
SIZE = 2
CHECK_SECONDS, SPEED_SECONDS = 120, 300
TOLERANCE = {"int4": 1e-2}
OTHER_TOLERANCE = 1e-4
"""As in the test: of latents, over the largest magnitude among them."""


def environment() -> dict[str, str]:
    path = os.pathsep.join(str(ROOT / part) for part in ("", "benchmarks", "tests/cluster"))
    return os.environ | NO_MULTICAST | {"PYTHONPATH": path}


def over_ranks(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What both ranks have made, tiny."""
    script = ROOT / "tests" / "cluster" / "sharded_rank.py"
    ranks = [
        subprocess.Popen([sys.executable, str(script), str(rank), str(SIZE), str(folder), kind], env=environment())
        for rank in range(SIZE)
    ]
    until = time.monotonic() + CHECK_SECONDS
    try:
        for rank in ranks:
            if rank.wait(timeout=max(0.0, until - time.monotonic())):
                raise SystemExit(f"a rank ended with {rank.returncode}; see above")
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(SIZE)]


def check(kind: str) -> None:
    """Print, per model and policy, how far two ranks are from one process."""
    with tempfile.TemporaryDirectory() as folder:
        found = over_ranks(Path(folder), kind)
    expected = alone(kind)
    for name in MODELS:
        for policy in POLICIES:
            whole, parts = expected[name][policy], [one[name][policy] for one in found]
            scale = float(whole["latents"].abs().max())
            apart = max(float((one["latents"] - whole["latents"]).abs().max()) / scale for one in parts)
            same = torch.equal(parts[0]["latents"], parts[1]["latents"])
            chosen = all(one["retrieved"] == whole["retrieved"] for one in parts)
            right = same and chosen and apart <= TOLERANCE.get(policy, OTHER_TOLERANCE)
            print(f"{name:28s} {policy:9s} off by {apart:.1e}, ranks alike: {same}, same chunks: {chosen}"
                  f" -> {'right' if right else 'WRONG'}", flush=True)  # fmt: skip


def speed(options: argparse.Namespace) -> None:
    """benchmarks/sharded.py under torchrun, whose table is printed as it comes."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE)]
    words = [str(ROOT / "benchmarks" / "sharded.py"), options.model, "--size", options.size]
    words += ["--chunks", str(options.chunks)]
    words += [] if options.result is None else ["--result", str(options.result)]
    subprocess.run([*launcher, *words], env=environment(), check=True, timeout=SPEED_SECONDS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="lingbot-world-fast")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--chunks", type=int, default=10)
    parser.add_argument("--no-check", action="store_true", help="Only the speed.")
    parser.add_argument("--result", type=Path, help="Stem of the .md and .json to write.")
    options = parser.parse_args()
    started = time.monotonic()
    if not options.no_check:
        check("cuda" if torch.cuda.is_available() else "cpu")
        print(f"checked after {time.monotonic() - started:.0f} s", flush=True)
    speed(options)
    print(f"ended after {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
