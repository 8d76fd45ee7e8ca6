"""A shared cluster: tenants wait for their turn, and nodes are left when they are asked to."""

import os
import time
from collections.abc import Callable, Iterator

import pytest
import ray
import sabotage
from sabotage import Saboteur, SlowWorker, parent

from cluster.admission import Applicant
from cluster.gate import ClusterGate, answer, find_gate, open_gate
from worldkv.errors import JobError
from worldkv.stats import WorkerStats

pytestmark = [pytest.mark.cluster]
ray.cloudpickle.register_pickle_by_value(sabotage)


@pytest.fixture
def keeper(nodes, tenants) -> Iterator[object]:
    open_gate(tenants)
    found = find_gate()
    yield found
    ray.kill(found)


def gate(keeper: object, job: str, tenant: str = "default") -> ClusterGate:
    return ClusterGate(keeper, Applicant(job, tenant))


def test_a_tenant_waits_at_its_quota_and_goes_on_when_there_is_room(keeper, carry_out, undisturbed, tree, tmp_path):
    """Two sessions are all it may have, so that two workers never are at work at once."""
    most = 0

    def count(stats: list[object], state: object) -> None:
        nonlocal most
        most = max(most, sum(one.sessions for one in stats))

    mine = gate(keeper, "mine", "small")
    carry_out(gate=mine, worker_class=SlowWorker, watch=count)
    assert most == 2
    assert tree(tmp_path / "run") == undisturbed()
    assert answer(keeper.figures.remote())[1] == ("small", 0, 2, 0), "all given back"


def test_a_gate_that_dies_comes_back_and_is_told_what_is_held(keeper):
    mine, other = gate(keeper, "mine", "small"), gate(keeper, "other", "small")
    assert mine.ask(0, 2) == ""
    before = _process(keeper)
    ray.kill(keeper, no_restart=False)
    # A kill is no more than sent when this returns: for a moment the old one still answers.
    _eventually(lambda: _process(keeper) not in (before, None))
    _eventually(lambda: not mine.draining() and answer(keeper.figures.remote())[1] == ("small", 2, 2, 0))
    _eventually(lambda: "tenant small has 2 of 2 sessions" in other.ask(0, 2))


def _process(keeper: object) -> int | None:
    """Its number; None while it does not answer."""
    try:
        return answer(keeper.__ray_call__.remote(lambda gatekeeper: os.getpid()))
    except ray.exceptions.RayActorError:
        return None


def _eventually(happened: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < until
        time.sleep(0.2)


def test_errors_of_the_gate_arrive_as_they_are(keeper):
    with pytest.raises(JobError, match="the cluster knows default, small") as caught:
        gate(keeper, "mine", "nobody").check(1)
    assert "Traceback" not in str(caught.value)


def test_a_drained_node_is_left_and_nothing_is_lost(nodes, keeper, carry_out, undisturbed, tree, tmp_path):
    by_raylet = {node.all_processes["raylet"][0].process.pid: node.node_id for node in nodes.list_all_nodes()}
    drained: list[str] = []

    def drain(stats: WorkerStats) -> None:
        drained.append(by_raylet[parent(stats.process)])
        answer(keeper.drain.remote(drained[0]))

    # Long enough that a driver, which asks every second, hears of it while the batch is under way.
    long = ("trajectory.video_frames=240", "policies=worldkv")
    saboteur = Saboteur(drain)
    outcome = carry_out(
        *long,
        gate=gate(keeper, "mine"),
        worker_class=SlowWorker,
        watch=saboteur,
        settings={"cpus_per_worker": 2, "tries": 1},
    )
    assert saboteur.victim is not None
    assert outcome.set_aside == {}
    assert max(one.restores for one in saboteur.seen) == 1, "the batch was taken up where it was left"
    assert tree(tmp_path / "run") == undisturbed(*long)
