"""How a job's workers look to monitoring."""

import pytest

from cluster.ledger import JobState
from cluster.watching import exported, snapshot_of
from worldkv.errors import ConfigError
from worldkv.stats import MemoryStats, WorkerStats, WorkStats

STATE = JobState("running", told=5.0, driver="here:1", episodes=3, wanted=8)


@pytest.fixture
def record(tmp_path):
    from cluster.ledger import new_record
    from worldkv.config import RunConfig

    return new_record(RunConfig(), base=tmp_path, command="worldkv rollout", priority=0)


def worker(slot: str, **given) -> WorkerStats:
    work = WorkStats(MemoryStats(lookups=2, hits=2), chunks_generated=7)
    return WorkerStats(slot, "node-a", "lab", model="rooms", **{"work": work, **given})


def test_a_worker_is_told_with_its_figures_and_sessions(record):
    snapshot = snapshot_of(record, [worker("0", batch=4, sessions=2, restarts=1), worker("1")], STATE)
    first, second = snapshot.workers
    assert (first.worker, first.node, first.restarts, first.work.chunks_generated) == ("0", "node-a", 1, 7)
    assert [(s.tenant, s.state, s.sessions) for s in first.sessions] == [("lab", "running", 2)]
    assert [s.state for s in second.sessions] == ["idle"]
    assert snapshot.taken_at == 5.0


def test_a_worker_without_a_model_has_no_figures_yet(record):
    assert snapshot_of(record, [worker("0", work=None)], STATE).workers == ()


@pytest.mark.parametrize(
    ("standing", "state"), [("running", "running"), ("finished", "done"), ("stopped", "failed"), ("failed", "failed")]
)
def test_the_job_is_told_in_the_words_of_monitoring(record, standing, state):
    job = JobState(standing, told=5.0, driver="here:1", episodes=3, wanted=8)
    (told,) = snapshot_of(record, [worker("0", restarts=2)], job).jobs
    assert (told.state, told.committed, told.episodes_wanted, told.retried) == (state, 3, 8, 2)


def test_nothing_is_served_unless_somebody_asks(record):
    with exported(None, record, warn=pytest.fail) as publish:
        publish([worker("0")], STATE)


@pytest.mark.parametrize("listen", ["9000", "host:", ":9000", "host:http"])
def test_an_address_that_is_none_is_named(record, listen):
    with pytest.raises(ConfigError, match=r"--exporter .*HOST:PORT"), exported(listen, record, warn=print):
        pass
