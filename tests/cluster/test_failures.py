"""Each row of docs/failures.md: what fails, what becomes of it, and that the dataset is the same in the end."""

import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import sabotage
from conftest import NODE
from sabotage import FaultyWorker, PoisonedWorker, Saboteur, SlowWorker, send

from cluster.ledger import Ledger
from worldkv.dataset import DatasetReader
from worldkv.errors import OutputError

pytestmark = [pytest.mark.cluster]
ray.cloudpickle.register_pickle_by_value(sabotage)


def test_a_worker_killed_in_the_middle_of_a_batch_is_replaced_and_its_batch_goes_on(
    nodes, carry_out, undisturbed, tree, tmp_path
):
    saboteur = Saboteur(send(signal.SIGKILL))
    outcome = carry_out(worker_class=SlowWorker, watch=saboteur, settings={"workers": 1})
    assert tree(tmp_path / "run") == undisturbed()
    assert outcome.set_aside == {}
    assert saboteur.struck is not None
    assert saboteur.resumed is not None
    assert saboteur.ready_seconds is not None
    assert saboteur.resumed - saboteur.struck < 10 + saboteur.ready_seconds, "10 s, and the loading of the model"
    assert max(one.restores for one in saboteur.seen) == 1, "not from its first chunk"


def test_a_worker_that_hangs_is_ended_and_replaced(nodes, carry_out, undisturbed, tree, tmp_path):
    saboteur = Saboteur(send(signal.SIGSTOP))
    carry_out(worker_class=SlowWorker, watch=saboteur, settings={"hang_seconds": 3.0})
    assert saboteur.victim is not None
    until = time.monotonic() + 30
    while Path(f"/proc/{saboteur.victim.process}").exists():
        assert time.monotonic() < until, "the stopped process was not ended"
        time.sleep(0.1)
    assert tree(tmp_path / "run") == undisturbed()


def test_the_workers_of_a_killed_node_go_on_elsewhere_and_no_batch_is_blamed(
    nodes, carry_out, undisturbed, tree, tmp_path
):
    # Nobody else has room for a worker of four cores.
    roomy = {**NODE, "num_cpus": 4}
    there = [nodes.add_node(wait=True, **roomy)]

    def kill_node(_: object) -> None:
        nodes.remove_node(there.pop(), allow_graceful=False)
        there.append(nodes.add_node(wait=False, **roomy))

    saboteur = Saboteur(kill_node)
    try:
        settings = {"workers": 1, "cpus_per_worker": 4, "tries": 1}
        outcome = carry_out(worker_class=SlowWorker, watch=saboteur, settings=settings)
    finally:
        nodes.remove_node(there.pop(), allow_graceful=True)
    assert saboteur.resumed is not None
    assert outcome.set_aside == {}, "one try is all that a batch has here"
    assert tree(tmp_path / "run") == undisturbed()


def test_a_poisoned_world_is_set_aside_and_the_job_goes_on(nodes, carry_out, undisturbed, tree, tmp_path):
    one_policy = ("policies=worldkv", "worlds.count=5")
    told: list[str] = []
    outcome = carry_out(*one_policy, worker_class=PoisonedWorker, warn=told.append, settings={"tries": 2})
    assert list(outcome.set_aside) == [1]
    assert outcome.set_aside[1].failed == 2
    assert sum("world 2 to 3, worldkv: set aside after 2 tries" in line for line in told) == 1
    reader = DatasetReader.open(tmp_path / "run" / "dataset")
    assert reader.keys == ["rooms-0/worldkv", "rooms-1/worldkv", "rooms-4/worldkv"]
    assert reader.verify() == []
    # Whoever mends the cause gets the rest: behind what is there, and each episode as it would have been.
    ledger = Ledger(str(tmp_path / "jobs"), next((tmp_path / "jobs").iterdir()).name)
    ledger.clear(1)
    assert carry_out(*one_policy, resume=True).generated.made == 2
    whole = DatasetReader.open(tmp_path / "run" / "dataset")
    assert whole.keys[3:] == ["rooms-2/worldkv", "rooms-3/worldkv"]


def test_a_world_that_is_an_error_is_set_aside_with_its_message(nodes, carry_out):
    outcome = carry_out(worker_class=FaultyWorker, settings={"tries": 2})
    assert sorted(outcome.set_aside) == [2, 3]
    assert "ArithmeticError: this world cannot be drawn" in outcome.set_aside[2].reasons[-1]


def test_storage_that_fails_for_a_while_is_waited_for(nodes, carry_out, undisturbed, tree, tmp_path):
    jobs, away = tmp_path / "jobs", tmp_path / "away"

    def fail(_: object) -> None:
        jobs.rename(away)
        jobs.write_text("not a folder")
        threading.Timer(4.0, mend).start()

    def mend() -> None:
        jobs.unlink()
        away.rename(jobs)

    told: list[str] = []
    carry_out(worker_class=SlowWorker, watch=Saboteur(fail), warn=told.append)
    assert any(str(jobs) in line for line in told), "it is told"
    assert tree(tmp_path / "run") == undisturbed()


def test_storage_that_stays_away_ends_the_job_which_can_be_resumed(nodes, carry_out, undisturbed, tree, tmp_path):
    jobs, away = tmp_path / "jobs", tmp_path / "away"

    def fail(_: object) -> None:
        jobs.rename(away)
        jobs.write_text("not a folder")

    with pytest.raises(OutputError, match=str(jobs)):
        carry_out(worker_class=SlowWorker, watch=Saboteur(fail), settings={"patience_seconds": 1.0})
    jobs.unlink()
    away.rename(jobs)
    carry_out(resume=True)
    assert tree(tmp_path / "run") == undisturbed()


def test_a_full_object_store_is_in_nobodys_way(nodes, carry_out, undisturbed, tree, tmp_path):
    held = [ray.put(np.ones(20 << 20, np.uint8)) for _ in range(8)]
    carry_out()
    assert len(held) == 8
    assert tree(tmp_path / "run") == undisturbed()


def test_what_waits_on_storage_damaged_or_lost_is_made_again(nodes, carry_out, undisturbed, tree, tmp_path):
    """A driver is stopped while later batches are finished and the first is not."""

    def stop(stats: list[object], state: object) -> None:
        found = list((tmp_path / "jobs").glob("*/batches/*/finished"))
        if found:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carry_out(worker_class=SlowWorker, watch=stop)
    waiting = list((tmp_path / "jobs").glob("*/batches/*/*"))
    assert waiting
    for path in waiting:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    carry_out(resume=True)
    assert tree(tmp_path / "run") == undisturbed()


def test_a_cancelled_job_ends_within_seconds_and_can_be_resumed(nodes, carry_out, undisturbed, tree, tmp_path):
    def cancel(_: object) -> None:
        (folder,) = (tmp_path / "jobs").iterdir()
        Ledger(str(tmp_path / "jobs"), folder.name).cancel()

    saboteur = Saboteur(cancel)
    outcome = carry_out(worker_class=SlowWorker, watch=saboteur)
    assert outcome.cancelled
    assert saboteur.struck is not None
    assert time.monotonic() - saboteur.struck < 10
    assert carry_out(resume=True).generated.kept == outcome.generated.made
    assert tree(tmp_path / "run") == undisturbed()


def test_memory_that_runs_out_of_room_gives_the_same_bytes_after_a_death(nodes, carry_out, undisturbed, tree, tmp_path):
    """Where chunks are dropped a checkpoint would not be exact: the batch starts at its first chunk."""
    tight = (
        "memory.tiers=[{name: device, capacity_mib: 1}]",
        "trajectory.video_frames=240",
        "batch_sessions=4",
        "policies=worldkv/codec=fp32",
    )
    saboteur = Saboteur(send(signal.SIGKILL), chunk=40)
    carry_out(*tight, watch=saboteur)
    assert saboteur.struck is not None
    assert max(one.restores for one in saboteur.seen) == 0
    assert max(one.work.memory.dropped for one in saboteur.seen if one.work is not None) > 0
    assert tree(tmp_path / "run") == undisturbed(*tight)
