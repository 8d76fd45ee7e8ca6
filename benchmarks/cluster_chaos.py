"""A job of many short episodes, its workers and nodes killed at random, compared byte for byte with an undisturbed one.

    python benchmarks/cluster_chaos.py --episodes 200 --seed 0 --save benchmarks/cluster_chaos_cpu_202611

Whom it strikes and when follows from the seed and the clock of the machine; what it struck is in the result.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from cluster import environment

os.environ.update(environment.ALWAYS | environment.LOOPBACK | {"RAY_AUTH_MODE": "disabled"})
ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

import ray  # noqa: E402  it reads the environment when it is imported
import recording  # noqa: E402
import torch  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from cluster.connection import NAMESPACE  # noqa: E402
from cluster.jobs import Job, Outcome, Settings  # noqa: E402
from cluster.ledger import new_record  # noqa: E402
from cluster.nodes import HEALTH  # noqa: E402
from worldkv.config import RunConfig, load  # noqa: E402
from worldkv.numerics import make_repeatable  # noqa: E402
from worldkv.runs import generate  # noqa: E402
from worldkv.stats import WorkerStats  # noqa: E402

NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}
BATCH = 2


class Chaos:
    """Strikes every few seconds: mostly a worker, now and then a node, for which a new one comes."""

    def __init__(self, cluster: Cluster, seed: int, every_seconds: float) -> None:
        self.cluster, self.random, self.every = cluster, random.Random(seed), every_seconds
        self.next = time.monotonic() + every_seconds
        self.struck: list[dict[str, object]] = []

    def __call__(self, stats: list[WorkerStats], state: object) -> None:
        """Told by the driver how the workers stand."""
        busy = [one for one in stats if one.batch is not None]
        if time.monotonic() < self.next or not busy:
            return
        self.next = time.monotonic() + self.every * self.random.uniform(0.5, 1.5)
        victim = self.random.choice(busy)
        kind = self.random.choices(["kill", "stop", "node"], weights=[6, 1, 1])[0]
        if kind == "node":
            self.cluster.remove_node(self.cluster.list_all_nodes()[-1], allow_graceful=False)
            self.cluster.add_node(wait=False, **NODE)
        else:
            try:
                os.kill(victim.process, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
            except ProcessLookupError:
                return
        self.struck.append({"kind": kind, "batch": victim.batch, "chunk": victim.chunk})


def main() -> None:
    options = _options()
    make_repeatable()
    work = Path(tempfile.mkdtemp(prefix="wkv-chaos-", dir=options.folder))
    config = _config(options, work / "disturbed")
    try:
        started = time.perf_counter()
        generate.generate(_config(options, work / "undisturbed"))
        undisturbed = time.perf_counter() - started
        outcome, chaos, seconds = _disturbed(options, config, work)
        same = _tree(work / "disturbed") == _tree(work / "undisturbed")
        row = {
            "episodes": options.episodes,
            "seed": options.seed,
            "identical": same,
            "set_aside": len(outcome.set_aside),
            "strikes": dict(Counter(str(one["kind"]) for one in chaos.struck)),
            "undisturbed_seconds": round(undisturbed, 1),
            "disturbed_seconds": round(seconds, 1),
            "struck": chaos.struck,
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    figures = {name: value for name, value in row.items() if name != "struck"}
    print(json.dumps(figures))
    if options.save is not None:
        table = recording.markdown_table(["figure", "value"], [[name, str(value)] for name, value in figures.items()])
        content = {"circumstances": recording.circumstances(torch.device("cpu")), **row}
        recording.save(options.save, "A job under fire", table, content)
    sys.exit(0 if same else 1)


def _disturbed(options: argparse.Namespace, config: RunConfig, work: Path) -> tuple[Outcome, Chaos, float]:
    temp = tempfile.mkdtemp(prefix="wkv-chaos-ray-", dir="/tmp")
    head = {**NODE, "include_dashboard": False, "no_monitor": True, "temp_dir": temp, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(options.nodes - 1):
            cluster.add_node(wait=True, **NODE)
        ray.init(address=cluster.address, namespace=NAMESPACE, logging_level="error", log_to_driver=False)
        chaos, started = Chaos(cluster, options.seed, options.every), time.perf_counter()
        outcome = _job(options, config, work, chaos).carry_out(resume=False)
        return outcome, chaos, time.perf_counter() - started
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


def _job(options: argparse.Namespace, config: RunConfig, work: Path, chaos: Chaos) -> Job:
    return Job(
        record=new_record(config, base=ROOT, command="benchmarks/cluster_chaos.py", priority=0),
        settings=Settings(
            jobs_url=str(work / "jobs"),
            workers=options.nodes,
            cpus_per_worker=2,
            checkpoint_chunks=2,
            # Strikes are no fault of the batch that they hit.
            tries=100,
            hang_seconds=5.0,
            tell_seconds=0.2,
        ),
        progress=lambda name, done, total: None,
        warn=lambda text: print(text, file=sys.stderr),
        watch=chaos,
    )


def _config(options: argparse.Namespace, folder: Path) -> RunConfig:
    settings = [
        f"worlds.count={options.episodes // 2}",
        f"batch_sessions={BATCH}",
        "trajectory.video_frames=12",
        "policies=[sliding, worldkv]",
        "sampling.denoise_steps=1",
        f"output.folder={folder}",
    ]
    return load(None, settings)


def _tree(run: Path) -> dict[str, bytes]:
    root = run / "dataset"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--every", type=float, default=8.0, help="seconds between strikes, on average")
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--save", type=Path, default=None, help="result files, without suffix")
    return parser.parse_args()


if __name__ == "__main__":
    main()
