"""Snapshots refuse what has no place in a label, and survive becoming JSON."""

import json

import pytest
from simulated_cluster import snapshot

from monitoring.snapshot import GpuStats, JobSnapshot, SessionCount, Snapshot, WorkerSnapshot
from worldkv.errors import ConfigError
from worldkv.stats import MemoryStats, WorkStats


def test_a_snapshot_comes_back_from_json_as_it_was():
    whole = snapshot(12.5)
    assert Snapshot.from_json(json.dumps(whole.to_plain()), "here") == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "http://x: not a snapshot of WorldKV: the whole"),
        ('{"workers": []}', "taken_at"),
        ('{"taken_at": 1.0, "jobs": [{"job": "1"}]}', "jobs.0.tenant"),
    ],
)
def test_what_is_no_snapshot_is_refused_with_its_place(text, message):
    with pytest.raises(ConfigError, match=message):
        Snapshot.from_json(text, "http://x")


@pytest.mark.parametrize(
    "make",
    [
        lambda: SessionCount("lab", "dreaming", 1),
        lambda: JobSnapshot("1", "lab", "odd", 1),
        lambda: WorkerSnapshot("w", "n", "m", WorkStats(MemoryStats(0, 0)), state="odd"),
        lambda: GpuStats(0, "gpu", throttled=("mood",)),
    ],
)
def test_states_and_reasons_come_from_their_sets(make):
    with pytest.raises(ConfigError, match="not one of"):
        make()
