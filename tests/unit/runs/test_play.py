import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from worldkv.camera import Action, Trajectory, save_trajectory
from worldkv.config import load_as
from worldkv.dataset.video import decode
from worldkv.errors import CheckpointError, ConfigError, ModelError, OutputError, TrajectoryError, WorldKVError
from worldkv.memory.tiers.headroom import Headroom
from worldkv.memory.tiers.survey import survey
from worldkv.models.matrix_game.vocabulary import trajectory_of
from worldkv.runs.memory_check import Probe
from worldkv.runs.play import play
from worldkv.runs.play_config import PlayConfig

ROOT = Path(__file__).resolve().parents[3]
CHECKED_IN = sorted((ROOT / "configs" / "play").glob("*.yaml"))


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., PlayConfig]:
    """A configuration of tiny random weights, with inputs that fit, changed by `key=value` words."""
    picture = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "first.png")
    save_file({"embeddings": torch.randn(5, 32)}, tmp_path / "five.safetensors")

    def build(*changes: str, model: str = "lingbot-world-fast", frames: int = 60) -> PlayConfig:
        words = [
            f"model.name={model}",
            "model.random_weights=1",
            "model.size=tiny",
            f"inputs.image={tmp_path / 'first.png'}",
            f"inputs.embeddings={tmp_path / 'five.safetensors'}",
            f"inputs.trajectory=R_L20_{frames}",
            f"video={tmp_path / 'made.mp4'}",
        ]
        return load_as(PlayConfig, None, [*words, *changes])

    return build


def silent(name: str, done: int, of: int) -> None:
    assert 0 <= done <= of, name


@pytest.mark.parametrize("model", ["lingbot-world-fast", "lingbot-world-2", "matrix-game-2-gta-drive"])
def test_a_world_is_played_with_its_tenants_memory_into_a_video(make, model: str, tmp_path: Path):
    tier = f"{{name: disk, capacity_mib: 64, folder: {tmp_path / 'disk'}, keep: true}}"
    config = make("memory.tenant=studio", f"memory.tiers=[{tier}]", model=model, frames=96)
    made = play(config, progress=silent)
    per_chunk = 16 if model == "lingbot-world-2" else 12
    assert made.chunks == 96 // per_chunk
    assert made.retrieved > 0
    assert survey(tmp_path / "disk").tenants.keys() == {"studio"}
    assert decode(config.video, 25 if "matrix" in model else 16).shape == (96 - 3, 64, 96, 3)


def test_the_same_seed_makes_the_same_video(make, tmp_path: Path):
    films = []
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        config = make(f"video={tmp_path / name}.mp4", f"seed={seed}", frames=24)
        play(config, progress=silent)
        films.append(config.video.read_bytes())
    assert films[0] == films[1] != films[2]


def test_a_full_disk_is_one_output_error_and_leaves_no_half_of_a_video(make, monkeypatch: pytest.MonkeyPatch):
    record = SimpleNamespace(frames_FHWC=np.zeros((4, 64, 96, 3), np.uint8), retrieved=())
    monkeypatch.setattr("worldkv.runs.play.random_model", lambda *_, **__: None)
    monkeypatch.setattr("worldkv.runs.play._records", lambda *_: [record])

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("worldkv.dataset.durable.os.fsync", full)
    config = make()
    with pytest.raises(OutputError, match=r"made\.mp4: cannot be written: No space left on device"):
        play(config, progress=silent)
    assert not [path for path in config.video.parent.iterdir() if "mp4" in path.name]


@pytest.mark.parametrize("path", CHECKED_IN, ids=lambda path: path.name)
def test_every_checked_in_configuration_is_accepted(path: Path):
    assert load_as(PlayConfig, path).model.folder is not None


class TestRefusals:
    """Before any weight is made or read: none of these gets as far as the model."""

    @pytest.fixture(autouse=True)
    def no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("the weights were asked for")

        monkeypatch.setattr("worldkv.runs.play.random_model", refuse)

    def fault(self, config: PlayConfig, kind: type[WorldKVError]) -> str:
        with pytest.raises(kind) as caught:
            play(config, progress=silent)
        return str(caught.value)

    def test_embeddings_of_another_width_or_length(self, make, tmp_path: Path):
        for shape in ((5, 31), (17, 32), (32,)):
            file = tmp_path / "wrong.safetensors"
            save_file({"prompt": torch.zeros(shape)}, file)
            said = self.fault(make(f"inputs.embeddings={file}"), CheckpointError)
            assert said == f"{file}: its tensor has shape {list(shape)}, lingbot-world-fast takes [1 to 16, 32]"

    def test_files_that_are_not_what_they_should_be(self, make, tmp_path: Path):
        two = tmp_path / "two.safetensors"
        save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, two)
        assert "holds 2 tensors, expected one" in self.fault(make(f"inputs.embeddings={two}"), CheckpointError)
        text = tmp_path / "text.png"
        text.write_text("no picture")
        assert "not a readable picture" in self.fault(make(f"inputs.image={text}"), CheckpointError)
        assert "no such file" in self.fault(make("inputs.embeddings=/nowhere.safetensors"), CheckpointError)

    def test_a_picture_of_another_aspect_ratio(self, make, tmp_path: Path):
        square = tmp_path / "square.png"
        Image.new("RGB", (64, 64)).save(square)
        said = self.fault(make(f"inputs.image={square}"), ModelError)
        assert said.startswith(f"{square} has 64x64 pixels, the model makes 64x96")

    def test_a_trajectory_that_is_too_short_or_has_no_intrinsics(self, make, tmp_path: Path):
        save_trajectory(trajectory_of([Action.W] * 11), tmp_path / "short")
        said = self.fault(make(f"inputs.trajectory={tmp_path / 'short'}"), TrajectoryError)
        assert said == "short: 11 poses, but one chunk of lingbot-world-fast takes 12"
        np.save(tmp_path / "poses.npy", np.tile(np.eye(4), (24, 1, 1)))
        assert "intrinsics.npy" in self.fault(make(f"inputs.trajectory={tmp_path}"), TrajectoryError)

    def test_actions_that_the_weights_do_not_know_or_that_are_missing(self, make, tmp_path: Path):
        save_trajectory(trajectory_of([Action.A] * 24), tmp_path / "sideways")
        game = {"model": "matrix-game-2-gta-drive"}
        said = self.fault(make(f"inputs.trajectory={tmp_path / 'sideways'}", **game), TrajectoryError)
        assert "action A is held, these weights know W S R L" in said
        save_trajectory(Trajectory(np.tile(np.eye(4), (24, 1, 1)), np.ones((24, 4))), tmp_path / "poses")
        assert "only poses" in self.fault(make(f"inputs.trajectory={tmp_path / 'poses'}", **game), TrajectoryError)

    def test_a_window_or_memory_that_cannot_hold_what_is_retrieved(self, make):
        said = self.fault(make("policy=worldkv/retrieved_chunks=7"), ConfigError)
        assert "its window is 33 latent frames, lingbot-world-fast knows 27" in said
        small = make("memory.tiers=[{name: host, capacity_mib: 1}]", "model.size=full")
        assert "memory.tiers.0.capacity_mib = 1" in self.fault(small, ConfigError)

    def test_a_tier_that_lies_where_others_do(self, make, tmp_path: Path):
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").touch()
        tier = "memory.tiers=[{{name: disk, capacity_mib: 4096, folder: {}}}]"
        said = self.fault(make(tier.format(tmp_path / "photos")), ConfigError)
        assert said.startswith(f"memory.tiers.0.folder = {tmp_path / 'photos'}: ")
        assert "'cat.jpg', which no tier wrote" in said
        said = self.fault(make(tier.format(tmp_path / "tier"), f"video={tmp_path / 'tier' / 'a.mp4'}"), ConfigError)
        assert said.startswith(f"video = {tmp_path / 'tier' / 'a.mp4'}: lies in memory.tiers.0.folder")

    def test_a_memory_larger_than_the_machines(self, make):
        full = Probe(lambda: Headroom(0, "a full machine"), lambda device: Headroom(0, "a full device"))
        with pytest.raises(ConfigError, match=r"memory.tiers.0.capacity_mib = 1024: .* only 0 MiB can be had"):
            play(make(), progress=silent, probe=full)

    def test_a_video_that_is_there_already(self, make):
        config = make()
        config.video.touch()
        assert "already exists" in self.fault(config, OutputError)

    def test_a_video_in_a_place_that_cannot_be_written(self, make, tmp_path: Path):
        (tmp_path / "notes").touch()
        said = self.fault(make(f"video={tmp_path / 'notes' / 'made.mp4'}"), OutputError)
        assert said == f"{tmp_path / 'notes' / 'made.mp4'}: cannot be written: {tmp_path / 'notes'} is a file"

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("model.folder=weights", "give either folder or random_weights"),
            ("model.random_weights=null", "give either folder or random_weights"),
            ("model.quick_decoder=true", "quick_decoder goes with folder"),
            ("model.name=lingbot", "must be one of lingbot-world-fast"),
            ("policy=worldkv/nothing=1", "'nothing=1' is not key=value"),
            ("inputs.picture=a.png", "unknown key; allowed here are image, prompt, embeddings, trajectory"),
        ],
    )
    def test_a_configuration_that_cannot_be_meant(self, make, change: str, message: str):
        with pytest.raises(ConfigError, match=message):
            make(change)
