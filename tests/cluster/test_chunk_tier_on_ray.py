"""The shared chunk tier on a real Ray of three nodes on the loopback device: what dies, and what is still read then.

Workers are processes of their own, each with a chunk memory over a small device tier and its node's tier. Every chunk
is made from a number, so that whoever reads it can be asked whether these are the bytes.
"""

import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Read by Ray when it is imported: loopback only, no token, no telling of usage.
for name, value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",
}.items():
    os.environ.setdefault(name, value)
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(ROOT), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
).rstrip(os.pathsep)

import ray  # noqa: E402
from chunk_worker import Worker  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from cluster.chunks import runtime  # noqa: E402
from cluster.chunks.connect import overview, start_servers  # noqa: E402
from cluster.chunks.labels import DURABLE  # noqa: E402
from cluster.chunks.outbox import PATIENCE_SECONDS  # noqa: E402
from cluster.chunks.runtime import NAMESPACE, directory_name, server_name  # noqa: E402
from cluster.chunks.settings import MIB, ChunkSettings  # noqa: E402
from worldkv.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("default")  # Ray, and what it loads, warn of things that are theirs

HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 6,
}
STORE_BYTES = 150 * MIB
ANSWER_SECONDS = 60


class Town:
    """The cluster, and how tests use it."""

    def __init__(self, temp: Path) -> None:
        self.settings = ChunkSettings(64 * MIB, copies=2, url=str(temp / "durable"), url_capacity_bytes=256 * MIB)
        self.temp = temp
        head = {"include_dashboard": False, "no_monitor": True, "temp_dir": str(temp), "_system_config": HEALTH}
        node = {"num_cpus": 4, "object_store_memory": STORE_BYTES}
        self.cluster = Cluster(initialize_head=True, head_node_args={**node, **head})
        self.nodes = [self.cluster.add_node(wait=False, **node) for _ in range(2)]
        self.cluster.wait_for_nodes()
        ray.init(address=self.cluster.address, namespace="test", logging_level="error", log_to_driver=False)

    def worker(self, node: str) -> "ray.actor.ActorHandle":
        return ray.remote(Worker).options(num_cpus=0.1, label_selector={"ray.io/node-id": node}).remote(self.settings)

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def ask(call) -> object:
    return ray.get(call, timeout=ANSWER_SECONDS)


def server(node: str):
    return ray.get_actor(server_name(node), namespace=NAMESPACE)


def directory(number: int):
    return ray.get_actor(directory_name(number), namespace=NAMESPACE)


def kill_process_of(actor) -> None:
    """By SIGKILL, as the kernel does when memory is short; Ray may start it again."""
    os.kill(ask(actor.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)


def until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Wait; a party that is just being started again does not answer."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except (ray.exceptions.RayError, ValueError):
            pass
        assert time.monotonic() < end, f"not true within {seconds} s"
        time.sleep(0.1)


def audit(nodes: list[str]) -> None:
    """Books of servers and directories balance, and no server is above its capacity."""
    for node in nodes:
        assert ask(server(node).faults.remote()) == []
        figures = ask(server(node).figures.remote())
        assert figures["used_bytes"] <= figures["capacity_bytes"]
    for number in range(2):
        assert ask(directory(number).faults.remote()) == []


@pytest.fixture(scope="module")
def town() -> Iterator[Town]:
    if sys.platform != "linux":
        pytest.skip("processes and shared memory are looked at as Linux shows them")
    Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes its address there, wherever else its files are
    temp = Path(tempfile.mkdtemp(prefix="wkv-", dir="/tmp"))  # short: paths of sockets end at 107 bytes
    town = None
    try:
        town = Town(temp)
        yield town
    finally:
        if town is not None:
            town.close()
        shutil.rmtree(temp, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(town) -> list[str]:
    """Of the workers; the head is the last."""
    ids = [node.node_id for node in town.nodes]
    return [*ids, *({one["NodeID"] for one in ray.nodes()} - set(ids))]


@pytest.fixture(scope="module")
def workers(town, nodes) -> list:
    """On the first node, the second, and the head."""
    workers = [town.worker(node) for node in nodes]
    ask([worker.pid.remote() for worker in workers])
    return workers


def test_a_chunk_outlives_the_worker_that_made_it_and_no_other_tenant_finds_it(town, nodes, workers):
    maker = town.worker(nodes[0])
    ids = ask(maker.admit.remote([1, 2, 3, 4]))
    assert ask(maker.flush.remote()) == set(ids)
    os.kill(ask(maker.pid.remote()), signal.SIGKILL)
    for worker in workers:
        ask(worker.take_over.remote(ids))
        assert ask(worker.fetch.remote([1, 2, 3, 4], tenant="other")) == [False] * 4
        assert ask(worker.fetch.remote([1, 2, 3, 4])) == [True] * 4
        assert ask(worker.misses.remote()) == {"cold": 4}
    audit(nodes)


def test_weights_that_changed_make_shared_chunks_stale(workers):
    worker = workers[0]
    ask(worker.change_weights.remote("weights-b"))
    assert ask(worker.fetch.remote([1])) == [False]
    ask(worker.change_weights.remote("weights-a"))
    assert ask(worker.misses.remote())["stale_epoch"] == 1


def test_looking_ahead_brings_chunks_of_another_node(nodes, workers):
    ids = ask(workers[0].admit.remote([30]))
    assert ask(workers[0].flush.remote()) >= set(ids)
    ask(workers[1].take_over.remote(ids))
    assert ask(workers[1].prefetch.remote([30])) == (1, 1)


def test_directories_that_are_killed_come_back_and_know_everything_again(nodes, workers):
    before = ask(directory(0).nodes.remote())
    assert sum(before.values()) >= 12  # four chunks, twice on nodes and once in the durable tier
    for number in range(2):
        kill_process_of(directory(number))
    ids = ask(workers[1].admit.remote([5]))
    ask(workers[2].take_over.remote(ids))
    assert ask(workers[1].flush.remote()) >= set(ids)
    assert ask(workers[2].fetch.remote([5])) == [True]
    for number in range(2):
        until(lambda number=number: sum(ask(directory(number).nodes.remote()).values()) == sum(before.values()) + 3)
    audit(nodes)


def test_a_chunk_server_that_is_killed_comes_back_empty_and_its_old_claims_are_refused(nodes, workers):
    ids = ask(workers[0].admit.remote([6, 7, 8, 9]))
    assert ask(workers[0].flush.remote()) >= set(ids)
    held = ask(directory(0).nodes.remote())[nodes[0]]
    assert held >= 4
    kill_process_of(server(nodes[0]))
    assert ask(workers[0].fetch.remote([6, 7, 8, 9])) == [True] * 4  # from where their second copies are
    assert ask(workers[0].fetch.remote([6, 7, 8, 9])) == [True] * 4
    until(lambda: ask(directory(0).nodes.remote())[nodes[0]] <= held)
    again = ask(workers[0].admit.remote([10]))
    assert ask(workers[0].flush.remote()) >= set(again)
    ask(workers[1].take_over.remote(again))
    assert ask(workers[1].fetch.remote([10])) == [True]
    audit(nodes)


def test_a_full_node_evicts_what_the_durable_tier_has_and_nothing_is_spilled(town, nodes, workers):
    numbers = list(range(100, 200))  # more than a node has room for
    for start in range(0, len(numbers), 20):
        ids = ask(workers[0].admit.remote(numbers[start : start + 20]))
        assert ask(server(nodes[0]).figures.remote())["used_bytes"] <= town.settings.capacity_bytes
        assert ask(workers[0].flush.remote()) >= set(ids)
    assert ask(server(nodes[0]).figures.remote())["evicted"] > 0
    assert all(ask(workers[0].fetch.remote(numbers)))
    audit(nodes)
    assert not list(town.temp.glob("session_*/ray_spilled_objects*/*"))


def test_what_comes_too_fast_to_be_kept_is_a_miss_as_evicted(nodes, workers):
    numbers = list(range(300, 400))
    before = ask(workers[0].misses.remote())
    ask(workers[0].admit.remote(numbers))
    missed = ask(workers[0].fetch.remote(numbers)).count(False)
    after = ask(workers[0].misses.remote())
    assert after.get("evicted", 0) - before.get("evicted", 0) == missed
    assert {reason: after[reason] for reason in before if reason != "evicted"} == {
        reason: before[reason] for reason in before if reason != "evicted"
    }
    audit(nodes)


@contextmanager
def stopped(pids: list[int]) -> Iterator[None]:
    """Processes that hang for the time of the context."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def test_a_chunk_server_that_hangs_costs_one_wait_and_is_asked_again_when_it_goes_on(nodes, workers):
    ids = ask(workers[0].admit.remote([400, 401, 402]))
    assert ask(workers[0].flush.remote()) >= set(ids)
    with stopped([ask(server(nodes[0]).process.remote()).pid]):
        started = time.monotonic()
        assert ask(workers[0].fetch.remote([400, 401, 402])) == [True] * 3  # from where their second copies are
        first = time.monotonic() - started
        started = time.monotonic()
        assert ask(workers[0].fetch.remote([400, 401, 402])) == [True] * 3
        second = time.monotonic() - started
        # More than the outbox takes: who brings chunks is held up, but not for each of them.
        started = time.monotonic()
        ask(workers[0].admit.remote(list(range(410, 460))))
        puts = time.monotonic() - started
    assert first < runtime.ANSWER_SECONDS + 5, "one answer is waited for"
    assert second < first
    assert puts < PATIENCE_SECONDS + runtime.BYTES_SECONDS + 5
    fresh = itertools.count(600)  # what was given up stays given up

    def written() -> bool:
        ids = ask(workers[0].admit.remote([next(fresh)]))
        return ask(workers[0].flush.remote()) >= set(ids)

    until(written, runtime.MOST_SUSPECT_SECONDS + 30)


def test_where_every_server_hangs_a_fetch_is_a_miss_with_a_reason_in_bounded_time(town, nodes, workers):
    """Looked for by a worker that has waited for them in vain before, as it will for the rest of its session."""
    worker = town.worker(nodes[1])
    ids = ask(worker.admit.remote([500, 501]))
    assert ask(worker.flush.remote()) >= set(ids)
    ask(worker.admit.remote([510, 511]))  # drives the others from the device
    ask(worker.flush.remote())
    ask(worker.hurry.remote())
    pids = [ask(server(node).process.remote()).pid for node in [*nodes, DURABLE]]
    before = ask(worker.misses.remote())
    with stopped(pids):
        started = time.monotonic()
        assert ask(worker.fetch.remote([500, 501])) == [False, False]
        assert time.monotonic() - started < 20
        after = ask(worker.misses.remote())
        assert after.get("corrupt", 0) - before.get("corrupt", 0) == 2
    until(lambda: ask(worker.fetch.remote([500, 501])) == [True] * 2)
    audit(nodes)


def test_an_overview_tells_how_full_every_node_is_and_what_is_behind(town, nodes):
    until(lambda: overview(town.settings).pending_bytes == 0)
    found = overview(town.settings)
    assert found.nodes.keys() == {*nodes, DURABLE}
    assert all(0 < one["used_bytes"] <= one["capacity_bytes"] for one in found.nodes.values()), found.nodes
    assert found.lag_seconds == 0.0


def test_settings_that_the_store_cannot_hold_are_refused_in_one_line(town):
    with pytest.raises(
        ConfigError, match=r"capacity_mib = 140: of the 150 MiB object store .* at most 120 can be used"
    ):
        start_servers(ChunkSettings(140 * MIB))


def test_a_node_that_dies_takes_no_chunk_with_it_and_its_directory_moves(town, nodes, workers):
    doomed = next(place for place in range(2) if nodes[place] in sorted(nodes)[:2])  # these have the directories
    survivors = [place for place in range(3) if place != doomed]
    ids = ask(workers[doomed].admit.remote([20, 21, 22]))
    assert ask(workers[doomed].flush.remote()) >= set(ids)
    raylet = town.nodes[doomed].all_processes["raylet"][0].process
    raylet.kill()
    raylet.wait()
    for place in survivors:
        ask(workers[place].take_over.remote(ids))
        assert ask(workers[place].fetch.remote([20, 21, 22])) == [True] * 3
        assert set(ask(workers[place].misses.remote())) <= {"cold", "stale_epoch", "evicted"}
    for number in range(2):
        until(lambda number=number: nodes[doomed] not in ask(directory(number).nodes.remote()))
        until(lambda number=number: len(ask(directory(number).nodes.remote())) == 3)
    audit([nodes[place] for place in survivors])
