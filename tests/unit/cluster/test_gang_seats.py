"""What a gang asks of a cluster, what is said where it cannot have it, and what of a gang outlives it."""

from pathlib import Path

import numpy as np
import pytest

from cluster.connection import Resources
from cluster.gangs.gang import Seats
from cluster.gangs.keeping import Keeping
from cluster.ledger import Ledger, new_play_record
from cluster.places import absolute_play, of_slot
from worldkv.config import load_as
from worldkv.errors import ConfigError
from worldkv.rollout import ChunkRecord
from worldkv.runs.play_config import PlayConfig

WORLD = (
    "model.name=lingbot-world-fast",
    "model.random_weights=1",
    "model.size=tiny",
    "inputs.image=first.png",
    "inputs.embeddings=five.safetensors",
    "inputs.trajectory=R_L20_96",
    "video=runs/made.mp4",
)


def world(*overrides: str) -> PlayConfig:
    return load_as(PlayConfig, None, [*WORLD, *overrides])


def cluster(nodes: int, cpus: int, gpus: int) -> Resources:
    """Nodes that are all alike."""
    return Resources(nodes, nodes * cpus, nodes * gpus, cpus, gpus)


def test_each_rank_takes_a_gpu_and_its_share_of_the_cores_beside_it():
    seats = Seats.of(world("model.ranks=2").model, cluster(2, 64, 8), wait=False)
    assert (seats.gpus, seats.cpus, seats.threads) == (1, 6.0, 8)


def test_without_gpus_ranks_share_the_cores_of_a_node():
    seats = Seats.of(world("model.ranks=4").model, cluster(1, 2, 0), wait=False)
    assert (seats.gpus, seats.cpus, seats.threads) == (0, 0.375, 1)


def test_more_gpus_than_a_node_has_are_refused_with_their_number_or_waited_for():
    model = world("model.ranks=4").model
    with pytest.raises(ConfigError) as fault:
        Seats.of(model, cluster(3, 8, 2), wait=False)
    assert str(fault.value) == (
        "model.ranks = 4: each takes a GPU, and no node has more than 2; ask for fewer, --wait for more, or set "
        "model.across_nodes"
    )
    with pytest.raises(ConfigError, match=r"no node has more than 2; ask for fewer, --wait for more$"):
        Seats.of(model, cluster(1, 8, 2), wait=False)
    assert Seats.of(model, cluster(1, 8, 2), wait=True).ranks == 4


def test_ranks_across_nodes_are_counted_over_all_of_them():
    model = world("model.ranks=4", "model.across_nodes=true").model
    assert Seats.of(model, cluster(2, 8, 2), wait=False).across_nodes
    with pytest.raises(ConfigError, match=r"each takes a GPU, and 1 nodes have 2; ask for fewer, --wait for more$"):
        Seats.of(model, cluster(1, 8, 2), wait=False)


@pytest.mark.parametrize(
    ("name", "allowed"), [("lingbot-world-fast", "1, 2, 4"), ("matrix-game-2-universal", "1, 2, 4")]
)
def test_ranks_that_do_not_divide_the_heads_are_refused_with_those_that_do(name: str, allowed: str):
    with pytest.raises(ConfigError, match=f"ranks = 3: must divide the 4 heads of {name}, so be one of {allowed}$"):
        world(f"model.name={name}", "model.ranks=3")


def test_paths_are_made_absolute_and_a_notation_stays_what_it_is(tmp_path: Path):
    (tmp_path / "way").mkdir()
    disk = "memory.tiers=[{name: disk, capacity_mib: 64, folder: disk}]"
    found = absolute_play(world(disk), tmp_path)
    assert found.inputs.image == tmp_path / "first.png"
    assert found.inputs.trajectory == "R_L20_96"
    assert found.video == tmp_path / "runs/made.mp4"
    assert found.memory.tiers[0].folder == tmp_path / "disk"
    assert absolute_play(world("inputs.trajectory=way"), tmp_path).inputs.trajectory == str(tmp_path / "way")
    assert of_slot(found.memory, 1, "rank").tiers[0].folder == tmp_path / "disk-rank1"


def test_a_world_is_a_job_among_others(tmp_path: Path):
    record = new_play_record(world("model.ranks=2"), base=tmp_path, command="worldkv rollout", priority=1)
    ledger = Ledger(str(tmp_path / "jobs"), record.id)
    ledger.enter(record, resume=False)
    found = ledger.record()
    assert found == record
    assert found.play_config() == world("model.ranks=2")
    assert found.output == tmp_path / "runs/made.mp4"


def record_of(chunk: int) -> ChunkRecord:
    frames = np.full((12, 4, 6, 3), chunk, np.uint8)
    return ChunkRecord(chunk, frames, True, (0, 1), 0, 10, 10, 10)


def test_pictures_come_back_as_they_were_and_damaged_ones_not_at_all(tmp_path: Path):
    keeping = Keeping(str(tmp_path), "job")
    keeping.put_shown(record_of(3))
    shown = keeping.shown(3)
    assert shown is not None
    assert (shown.retrieved, int(shown.frames_FHWC.max())) == (2, 3)
    assert keeping.shown(2) is None
    path = tmp_path / "job/pictures/000003"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert keeping.shown(3) is None
    keeping.clear()
    assert not path.exists()


def test_a_checkpoint_counts_once_it_is_settled_and_takes_the_place_of_the_one_before(tmp_path: Path):
    keeping = Keeping(str(tmp_path), "job")
    for chunk in (2, 4):
        for rank in (0, 1):
            keeping.put_session(chunk, rank, bytes([chunk, rank]))
        assert keeping.settled() == (None if chunk == 2 else 2)
        keeping.settle(chunk)
        assert keeping.settled() == chunk
    assert keeping.session(4, 1) == bytes([4, 1])
    assert keeping.session(2, 1) is None
    (tmp_path / "job/checkpoint.json").write_text("{")
    assert keeping.settled() is None
    keeping.unsettle()
    assert keeping.session(4, 1) is None
