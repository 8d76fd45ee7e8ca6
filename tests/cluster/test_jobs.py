"""Jobs on two nodes that nobody disturbs, and those that are stopped on purpose."""

import pytest
import ray
import sabotage
from sabotage import LameWorker, Saboteur

from scheduler.trace import read_trace

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes")]
ray.cloudpickle.register_pickle_by_value(sabotage)


def test_two_workers_make_the_bytes_of_one_process_and_a_trace(carry_out, undisturbed, tree, tmp_path):
    outcome = carry_out(settings={"trace": tmp_path / "run.trace"})
    assert (outcome.generated.made, outcome.generated.kept, outcome.set_aside) == (8, 0, {})
    assert tree(tmp_path / "run") == undisturbed()
    assert outcome.generated.memory.lookups == outcome.generated.memory.hits > 0
    sessions = read_trace(tmp_path / "run.trace")
    assert len({one.session for one in sessions}) == len(sessions) == 8
    hits = sum(sum(seen.hits.values()) for one in sessions for seen in one.observed)
    assert hits == outcome.generated.memory.hits


def test_a_batch_leaves_a_slow_worker_for_one_that_has_nothing_to_do(carry_out, undisturbed, tree, tmp_path):
    """Both roll out for as long; the fast one is done early, and goes on where the slow one stood."""
    long = ("trajectory.video_frames=150", "policies=worldkv")
    watch = Saboteur(strike=lambda stats: None)
    outcome = carry_out(*long, worker_class=LameWorker, watch=watch)
    assert tree(tmp_path / "run") == undisturbed(*long)
    assert outcome.moved == 1
    taken_over = [one for one in watch.seen if one.worker == "1" and one.restores == 1]
    assert taken_over, "from its checkpoint"
    assert max(one.restarts for one in watch.seen) == 0, "no worker had to go for it"
