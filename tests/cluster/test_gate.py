"""A shared cluster: tenants wait for their turn, and nodes are left when they are asked to."""

import os
import time
from collections.abc import Callable, Iterator

import pytest
import ray
import sabotage
from sabotage import Saboteur, SlowWorker, parent

from cluster.admission import Applicant, Asked
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
    assert answer(keeper.figures.remote())[1][:4] == ("small", 0, 2, 0), "all given back"


def test_a_gate_that_dies_comes_back_and_is_told_what_is_held(keeper):
    mine, other = gate(keeper, "mine", "small"), gate(keeper, "other", "small")
    assert mine.ask({0: Asked(2)}) == {0: ""}
    before = _process(keeper)
    ray.kill(keeper, no_restart=False)
    # A kill is no more than sent when this returns: for a moment the old one still answers.
    _eventually(lambda: _process(keeper) not in (before, None))
    _eventually(lambda: not mine.wishes().nodes and answer(keeper.figures.remote())[1][:4] == ("small", 2, 2, 0))
    _eventually(lambda: "tenant small has 2 of 2 sessions" in other.ask({0: Asked(2)})[0])


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


def test_a_job_gives_way_to_a_tenant_below_its_share_and_goes_on_later(
    nodes, carry_out, undisturbed, tree, tmp_path, tenants
):
    open_gate(tenants.model_copy(update={"sessions": 4}))
    keeper = find_gate()
    other = gate(keeper, "other", "small")
    waited: list[str] = []

    def want(stats: WorkerStats) -> None:
        waited.append(other.ask({0: Asked(2)})[0])

    def watch(stats: list[WorkerStats], state: object) -> None:
        saboteur(stats, state)
        if waited and waited[-1]:
            want(stats[0])
        if waited and not waited[-1]:
            other.release(0)

    long = ("trajectory.video_frames=240", "policies=worldkv")
    saboteur = Saboteur(want)
    try:
        outcome = carry_out(*long, gate=gate(keeper, "mine"), worker_class=SlowWorker, watch=watch)
    finally:
        ray.kill(keeper)
    assert waited[0] != ""
    assert waited[-1] == "", "it got what is its own while the job was under way"
    assert outcome.gave_way == 1
    assert max(one.restores for one in saboteur.seen) == 1
    assert max(one.restarts for one in saboteur.seen) == 0
    assert tree(tmp_path / "run") == undisturbed(*long)


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
