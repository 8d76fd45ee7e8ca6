"""A world of a published model over two ranks of a real Ray: what it makes, and what becomes of it when ranks end.

Every test that disturbs a gang compares its video, byte for byte, with one that an undisturbed gang made.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import sabotaged_ranks
import torch
from conftest import NODE, ROOT, WITHIN_SECONDS
from PIL import Image
from sabotage import Saboteur, send
from sabotaged_ranks import FaultyRank, SlowRank
from safetensors.torch import save_file

from cluster.connection import resources
from cluster.gangs.gang import Seats
from cluster.gangs.job import PlayJob, PlayOutcome, PlaySettings
from cluster.ledger import Ledger, new_play_record
from worldkv.config import load_as
from worldkv.dataset.video import decode
from worldkv.errors import JobError, OutputError
from worldkv.eval.fidelity import psnr
from worldkv.runs import play
from worldkv.runs.play_config import PlayConfig

pytestmark = [pytest.mark.cluster]
ray.cloudpickle.register_pickle_by_value(sabotaged_ranks)
CHUNKS = 8


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(picture).save(folder / "first.png")
    save_file(
        {"embeddings": torch.randn(5, 32, generator=torch.Generator().manual_seed(0))}, folder / "five.safetensors"
    )
    return folder


@pytest.fixture(scope="session")
def make_world(inputs: Path) -> Callable[..., PlayConfig]:
    """A world of tiny random weights over two ranks into a video, with further overrides."""

    def make(video: Path, *overrides: str, model: str = "lingbot-world-fast") -> PlayConfig:
        words = [
            f"model.name={model}",
            "model.random_weights=1",
            "model.size=tiny",
            "model.ranks=2",
            f"inputs.image={inputs / 'first.png'}",
            f"inputs.embeddings={inputs / 'five.safetensors'}",
            f"inputs.trajectory=R_L20_{12 * CHUNKS}",
            "policy=worldkv/recent_chunks=1/retrieved_chunks=2",
            f"video={video}",
        ]
        return load_as(PlayConfig, None, [*words, *overrides])

    return make


@pytest.fixture
def play_world(make_world, tmp_path) -> Callable[..., PlayOutcome]:
    """Play the small world into `tmp_path / made.mp4` by a gang of two."""

    def run(*overrides: str, resume: bool = False, settings: dict[str, object] | None = None, **more) -> PlayOutcome:
        config = make_world(tmp_path / "made.mp4", *overrides)
        how = replace(PlaySettings(str(tmp_path / "jobs"), checkpoint_chunks=2, tell_seconds=0.1), **(settings or {}))
        seats = replace(Seats.of(config.model, resources(), wait=False), **more.pop("seats", {}))
        job = PlayJob(
            new_play_record(config, base=ROOT, command="worldkv rollout", priority=0),
            seats,
            how,
            progress=lambda name, done, total: None,
            warn=more.pop("warn", lambda text: print(text, file=sys.stderr)),
            **more,
        )
        return job.carry_out(resume=resume)

    return run


@pytest.fixture(scope="module")
def undisturbed(nodes, make_world, tmp_path_factory) -> bytes:
    """The video of a gang that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    config = make_world(folder / "made.mp4")
    record = new_play_record(config, base=ROOT, command="worldkv rollout", priority=0)
    seats = Seats.of(config.model, resources(), wait=False)
    job = PlayJob(record, seats, PlaySettings(str(folder / "jobs")), lambda *_: None, print)
    assert job.carry_out(resume=False).chunks == CHUNKS
    return config.video.read_bytes()


def test_two_ranks_make_the_pictures_of_one_process(nodes, make_world, undisturbed, tmp_path):
    alone = make_world(tmp_path / "alone.mp4", "model.ranks=1")
    played = play.play(alone, progress=lambda *_: None)
    assert played.retrieved > 0
    (tmp_path / "both.mp4").write_bytes(undisturbed)
    found, expected = (decode(tmp_path / name, 16) for name in ("both.mp4", "alone.mp4"))
    assert found.shape == expected.shape
    # To the last bit but rounding they are compared in test_sharding.py; here the encoder has been at them.
    assert float(psnr(found, expected).min()) > 40


@pytest.mark.long
def test_a_rank_that_is_killed_ends_the_gang_and_another_goes_on_from_the_checkpoint(
    nodes, play_world, undisturbed, tmp_path
):
    saboteur = Saboteur(send(signal.SIGKILL), among=lambda stats: stats.worker == "1")
    outcome = play_world(rank_class=SlowRank, watch=saboteur)
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed
    assert outcome.lives == 2
    assert max(one.restores for one in saboteur.seen) == 1, "not from its first chunk"


@pytest.mark.long
def test_a_rank_that_hangs_ends_the_gang_and_another_goes_on(nodes, play_world, undisturbed, tmp_path):
    """The one where the others meet, and which keeps the pictures."""
    saboteur = Saboteur(send(signal.SIGSTOP), among=lambda stats: stats.worker == "0")
    outcome = play_world(rank_class=SlowRank, watch=saboteur, seats={"hang_seconds": 3.0})
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed
    assert outcome.lives == 2
    assert saboteur.victim is not None
    until = time.monotonic() + 30
    while Path(f"/proc/{saboteur.victim.process}").exists():
        assert time.monotonic() < until, "the stopped process was not ended"
        time.sleep(0.1)


@pytest.mark.long
def test_a_gang_whose_node_is_killed_goes_on_elsewhere_and_nobody_is_blamed(nodes, play_world, undisturbed, tmp_path):
    # Nobody else has room for two ranks of two cores each.
    roomy = {**NODE, "num_cpus": 4}
    there = [nodes.add_node(wait=True, **roomy)]

    def kill_node(_: object) -> None:
        nodes.remove_node(there.pop(), allow_graceful=False)
        there.append(nodes.add_node(wait=False, **roomy))

    saboteur = Saboteur(kill_node)
    try:
        outcome = play_world(rank_class=SlowRank, watch=saboteur, seats={"cpus": 2.0}, settings={"tries": 1})
    finally:
        nodes.remove_node(there.pop(), allow_graceful=True)
    assert outcome.lives == 2, "one try is all that it has here"
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed


@pytest.mark.long
def test_a_cancelled_world_ends_within_seconds_and_can_be_resumed(nodes, play_world, undisturbed, tmp_path):
    def cancel(_: object) -> None:
        (folder,) = (tmp_path / "jobs").iterdir()
        Ledger(str(tmp_path / "jobs"), folder.name).cancel()

    saboteur = Saboteur(cancel, chunk=3)
    outcome = play_world(rank_class=SlowRank, watch=saboteur)
    assert outcome.cancelled
    assert saboteur.struck is not None
    assert time.monotonic() - saboteur.struck < 10
    assert not (tmp_path / "made.mp4").exists()
    again = Saboteur(lambda _: None, chunk=0)
    assert play_world(resume=True, watch=again).lives == 1
    assert max(one.restores for one in again.seen) == 1
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed


@pytest.mark.long
def test_pictures_that_are_damaged_on_storage_are_made_again(nodes, play_world, undisturbed, tmp_path):
    def damage(_: object) -> None:
        (path,) = (tmp_path / "jobs").glob("*/pictures/000001")
        path.write_bytes(path.read_bytes()[:-1] + b"x")

    told: list[str] = []
    play_world(watch=Saboteur(damage), rank_class=SlowRank, warn=told.append)
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed
    assert not list((tmp_path / "jobs").glob("*/pictures/*")), "nothing is kept once the video is there"


@pytest.mark.long
def test_a_world_that_always_fails_is_given_up_with_its_reason(nodes, play_world, tmp_path):
    with pytest.raises(JobError, match=r"given up after 1 tries; the last: ArithmeticError: no way on from here"):
        play_world(rank_class=FaultyRank, settings={"tries": 1})
    assert not (tmp_path / "made.mp4").exists()


def test_what_cannot_be_opened_is_said_at_once_by_its_own_name(nodes, play_world, tmp_path):
    (tmp_path / "file").write_text("in the way")
    disk = f"{{name: disk, capacity_mib: 64, folder: {tmp_path}/file/disk}}"
    with pytest.raises(OutputError, match=r"memory.tiers.1.folder = .*/file/disk: "):
        play_world(f"memory.tiers=[{{name: device, capacity_mib: 64}}, {disk}]")


@pytest.mark.long
def test_ranks_may_be_on_several_nodes_and_keep_their_own_disks(nodes, play_world, undisturbed, tmp_path):
    disk = f"{{name: disk, capacity_mib: 64, folder: {tmp_path}/disk}}"
    play_world(
        "model.across_nodes=true", f"memory.tiers=[{{name: device, capacity_mib: 1}}, {disk}]", seats={"cpus": 1.5}
    )
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed
    assert (tmp_path / "disk").is_dir()
    assert (tmp_path / "disk-rank1").is_dir()


@pytest.fixture
def worldkv(tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command in `tmp_path`, without what the other tests set for Ray."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}

    def start(*words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cluster", *map(str, words)]
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
            start_new_session=True,
        )

    return start


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=WITHIN_SECONDS)
    return process.returncode, out, err


@pytest.mark.long
def test_a_driver_that_is_stopped_and_one_that_is_killed_are_resumed_to_the_same_video(
    worldkv, make_world, undisturbed, tmp_path
):
    (tmp_path / "world.yaml").write_text(make_world(Path("made.mp4")).to_yaml())

    def disturbed(kind: signal.Signals, chunk: int, *words: object) -> tuple[int, str, str]:
        process = worldkv(*words, "--checkpoint", "2")
        until = time.monotonic() + WITHIN_SECONDS
        while not list(tmp_path.glob(f".jobs/*/pictures/{chunk:06d}")):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(kind)
        return ended(process)

    code, _, err = disturbed(signal.SIGINT, 1, "rollout", "world.yaml")
    assert code == 130, err
    assert "go on with: worldkv rollout world.yaml --resume" in err
    (job,) = (path.name for path in (tmp_path / ".jobs").iterdir())
    assert disturbed(signal.SIGKILL, 5, "rollout", "world.yaml", "--resume")[0] == -signal.SIGKILL
    code, out, err = ended(worldkv("jobs", "resume", job, "--jobs", ".jobs"))
    assert code == 0, err
    assert f"made     {CHUNKS} chunks" in out
    assert (tmp_path / "made.mp4").read_bytes() == undisturbed
    code, out, _ = ended(worldkv("jobs", "status", job, "--jobs", ".jobs"))
    assert "one world of lingbot-world-fast over 2 ranks" in out
    assert "finished 1 of 1" in out
