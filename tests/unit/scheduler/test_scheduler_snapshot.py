import dataclasses

import numpy as np
import pytest

from scheduler.contradictions import check_cluster, check_memory
from scheduler.snapshot import (
    ClusterView,
    LinkView,
    PendingView,
    Recall,
    Resources,
    RunningView,
    TenantView,
    TierView,
    WorkerView,
    pending_table,
    running_table,
)
from worldkv.errors import SnapshotError

WALK = "W*12 R*12"


@pytest.fixture
def one(make_session, walk):
    return make_session(walk(WALK), 5)


def changed(view, **columns):
    return dataclasses.replace(view, table=dataclasses.replace(view.table, **columns))


def test_a_sound_memory_is_accepted(make_view, one):
    check_memory(make_view(one))


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"tier_N": np.full(5, 3)}, "chunk 0 lies in tier 3, there are 3 tiers"),
        ({"chunk_N": np.array([0, 1, 2, 3, 5])}, "chunk 5 is stored, but chunk 5 is made next"),
        ({"chunk_N": np.array([0, 1, 1, 3, 4])}, r"not in ascending order: \[0, 1, 1, 3, 4\]"),
        ({"nbytes_N": np.array([1, 1, -1, 1, 1])}, "chunk 2 has negative bytes"),
        ({"arrives_N": np.zeros(4)}, "have 5 and"),
    ],
)
def test_a_table_that_contradicts_its_session_is_refused(make_view, one, columns, fault):
    with pytest.raises(SnapshotError, match=f"session s: .*{fault}"):
        check_memory(make_view(changed(one, **columns)))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"recent_F44": np.zeros((0, 4, 4))}, "no recent pose"),
        ({"recent_F44": np.full((1, 4, 4), np.nan)}, "not finite"),
        ({"chunk_seconds": 0.0}, "chunk_seconds=0.0"),
        ({"frames_per_chunk": 0}, "frames_per_chunk=0"),
        ({"recall": Recall(ranking="overlap")}, "retrieves by overlap, but no frustum"),
    ],
)
def test_a_session_without_a_camera_or_pace_is_refused(make_view, one, changes, fault):
    with pytest.raises(SnapshotError, match=fault):
        check_memory(make_view(dataclasses.replace(one, **changes)))


@pytest.mark.parametrize(
    ("tier", "fault"),
    [
        (TierView("device", 100, 200), "uses 200 bytes of a capacity of 100"),
        (TierView("device", 100, 50, used_by={"t": 60}), r"tenants use \{'t': 60\} bytes, all together 50"),
        (TierView("device", 100, 50, used_by={"t": -1}), "tenants use"),
    ],
)
def test_a_tier_that_uses_more_than_there_is_is_refused(make_view, tier, fault):
    with pytest.raises(SnapshotError, match=f"tier device: {fault}"):
        check_memory(make_view(tiers=(tier,)))


def test_links_must_join_the_tiers_and_have_rates(make_view):
    with pytest.raises(SnapshotError, match="3 tiers need 2 links, got 1"):
        check_memory(make_view(links=(LinkView(1.0),)))
    with pytest.raises(SnapshotError, match=r"link 1: .*not negative"):
        check_memory(make_view(links=(LinkView(1.0), LinkView(-1.0))))
    with pytest.raises(SnapshotError, match="staging_bytes=-1"):
        check_memory(make_view(staging_bytes=-1))


def test_a_session_twice_on_one_worker_is_refused(make_view, one):
    with pytest.raises(SnapshotError, match="session s is listed twice"):
        check_memory(make_view(one, one))


WORKERS = (
    WorkerView("w0", "n0", Resources(1, 100, 100)),
    WorkerView("w1", "n0", Resources(1, 100, 100)),
    WorkerView("w2", "n1", Resources(1, 100, 100)),
    WorkerView("dead", "n1", Resources(1, 100, 100), alive=False),
)


def running(session="a", workers=("w0",), needs=None):
    return RunningView(session, "t", workers, needs or Resources(1, 10, 10))


def cluster(running=(), pending=(), tenants=None, workers=WORKERS):
    return ClusterView(0.0, workers, running_table(running), pending_table(pending), tenants or {})


def test_a_sound_cluster_is_accepted():
    check_cluster(cluster([running(), running("b", ("w1",))], [PendingView("c", "t", Resources())]))
    check_cluster(ClusterView(0.0, ()))


@pytest.mark.parametrize(
    ("sessions", "fault"),
    [
        ([running(), running(workers=("w2",))], "session a runs on w0 and on w2: a session has one place"),
        ([running(workers=("nowhere",))], "session a runs on worker nowhere, which is not in the cluster"),
        ([running(workers=("w2", "dead"))], "session a runs on worker dead, which is dead"),
        ([running(workers=("w0", "w2"))], "of 2 nodes"),
        ([running(workers=("w0", "w0"))], "distinct workers of one node"),
        ([running(workers=())], "of 0 nodes"),
        ([running(), running("b")], "worker w0: its sessions take 2 slots, it has 1"),
        ([running(needs=Resources(1, 101, 0))], "worker w0: its sessions take 101 device bytes, it has 100"),
        ([running(needs=Resources(1, 0, 101))], "take 101 host bytes"),
    ],
)
def test_running_sessions_that_contradict_the_workers_are_refused(sessions, fault):
    with pytest.raises(SnapshotError, match=fault):
        check_cluster(cluster(sessions))


@pytest.mark.parametrize(
    ("pending", "fault"),
    [
        ([PendingView("a", "t", Resources())], "session a waits and runs on w0"),
        ([PendingView("b", "t", Resources())] * 2, "session b waits twice"),
        ([PendingView("b", "t", Resources(), gang=0)], "gang=0"),
        ([PendingView("b", "t", Resources(0))], "slots=0"),
    ],
)
def test_pending_sessions_that_make_no_sense_are_refused(pending, fault):
    with pytest.raises(SnapshotError, match=fault):
        check_cluster(cluster([running()], pending))


def test_other_contradictions_of_a_cluster_are_refused():
    with pytest.raises(SnapshotError, match="worker w0 is listed twice"):
        check_cluster(cluster(workers=(WORKERS[0], WORKERS[0])))
    with pytest.raises(SnapshotError, match=r"tenant t: .*finite weight above 0"):
        check_cluster(cluster(tenants={"t": TenantView(0.0)}))
    table = dataclasses.replace(pending_table([PendingView("b", "t", Resources())]), gang_P=np.ones(2, np.int64))
    with pytest.raises(SnapshotError, match="1 sessions wait, their columns have"):
        check_cluster(ClusterView(0.0, WORKERS, pending=table))


def test_errors_survive_pickling():
    import pickle

    assert str(pickle.loads(pickle.dumps(SnapshotError("a and b")))) == "a and b"
