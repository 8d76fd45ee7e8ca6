"""A real Ray with two nodes on the loopback device, and jobs on it so small that a test can run several.

Each test that disturbs a job compares its dataset, byte for byte, with one that a single process made undisturbed.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster import environment
from cluster.admission import TenantsConfig

os.environ.update(environment.ALWAYS | environment.LOOPBACK | {"RAY_AUTH_MODE": "disabled"})
# Workers live on other nodes' processes, which find nothing of ours by themselves.
ROOT = Path(__file__).resolve().parents[2]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)

import ray  # noqa: E402  it reads the environment when it is imported
from ray.cluster_utils import Cluster  # noqa: E402

from cluster.connection import NAMESPACE  # noqa: E402
from cluster.jobs import Job, Outcome, Settings  # noqa: E402
from cluster.ledger import new_record  # noqa: E402
from worldkv.config import RunConfig, load  # noqa: E402
from worldkv.models.rooms import weights  # noqa: E402
from worldkv.models.rooms.network import RoomsNetwork, Shape  # noqa: E402
from worldkv.runs import generate  # noqa: E402

SHAPE = Shape(image=20, patch=10, layers=2, heads=2, head_dim=24, trained_frames=48)
SETTINGS = (
    "worlds.count=4",
    "batch_sessions=2",
    "trajectory.video_frames=36",
    "policies=[sliding, worldkv]",
    "sampling.denoise_steps=2",
)
# A loaded machine of two cores must not look like a dead node; yet tests cannot wait for half a minute.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 6,
}
NODE = {"num_cpus": 2, "object_store_memory": 100 << 20}
WITHIN_SECONDS = 90


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray and what it loads warn of things that are theirs."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def nodes() -> Iterator[Cluster]:
    """The cluster: a head and a second node."""
    temp = tempfile.mkdtemp(prefix="wkv-test-", dir="/tmp")
    head = {**NODE, "include_dashboard": False, "no_monitor": True, "temp_dir": temp, "_system_config": HEALTH}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(wait=True, **NODE)
        ray.init(address=cluster.address, namespace=NAMESPACE, logging_level="error", log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights that mean nothing and cost nothing; every pixel depends on all that is attended to."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = RoomsNetwork(SHAPE)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.5)
    weights.save(network.requires_grad_(False).eval(), folder, 1.0)
    return folder


@pytest.fixture(scope="session")
def make_config(tiny_weights: Path) -> Callable[..., RunConfig]:
    """The small run into a folder, with further overrides."""

    def make(folder: Path, *overrides: str) -> RunConfig:
        return load(None, [*SETTINGS, f"model.weights={tiny_weights}", f"output.folder={folder}", *overrides])

    return make


@pytest.fixture(scope="session")
def tree() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a run's dataset by its path."""

    def read(run: Path) -> dict[str, bytes]:
        root = run / "dataset"
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return read


@pytest.fixture(scope="session")
def undisturbed(make_config, tree, tmp_path_factory) -> Callable[..., dict[str, bytes]]:
    """The dataset that one process makes, by overrides; made once each."""
    made: dict[tuple[str, ...], dict[str, bytes]] = {}

    def dataset(*overrides: str) -> dict[str, bytes]:
        if overrides not in made:
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            generate.generate(make_config(folder, *overrides))
            made[overrides] = tree(folder)
        return made[overrides]

    return dataset


@pytest.fixture
def carry_out(make_config, tmp_path) -> Callable[..., Outcome]:
    """Run the small job into `tmp_path / run` on two workers."""

    def run(
        *overrides: str, resume: bool = False, settings: dict[str, object] | None = None, **more: object
    ) -> Outcome:
        config = make_config(tmp_path / "run", *overrides)
        how = replace(
            Settings(jobs_url=str(tmp_path / "jobs"), workers=2, checkpoint_chunks=3, tell_seconds=0.1),
            **(settings or {}),
        )
        job = Job(
            record=new_record(config, base=ROOT, command="worldkv rollout", priority=0),
            settings=how,
            progress=lambda name, done, total: None,
            warn=more.pop("warn", lambda text: print(text, file=sys.stderr)),
            **more,
        )
        return job.carry_out(resume=resume)

    return run


@pytest.fixture(scope="session")
def tenants() -> TenantsConfig:
    """Two tenants, one of whom may not do much."""
    return TenantsConfig.model_validate(
        {"sessions": 8, "queue": 4, "tenants": [{"name": "default"}, {"name": "small", "sessions": 2}]}
    )
