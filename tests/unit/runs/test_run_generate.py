"""A run from configuration to dataset: whole, stopped anywhere, resumed, refused."""

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from worldkv.camera import Motion, Pace, Trajectory, planar_poses, save_trajectory, trajectory_from_notation
from worldkv.config import RunConfig
from worldkv.dataset import DatasetReader, DatasetWriter
from worldkv.dataset import commit as commit_module
from worldkv.errors import ConfigError, OutputError, TrajectoryError
from worldkv.memory.store import ChunkMemory
from worldkv.runs import generate as runs
from worldkv.runs import worlds as run_worlds

KEYS = [
    "rooms-0/sliding",
    "rooms-1/sliding",
    "rooms-0/worldkv",
    "rooms-1/worldkv",
    "rooms-2/sliding",
    "rooms-2/worldkv",
]


class Killed(BaseException):
    """What no handler of ours catches, as none runs when a process is killed."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """Datasets of undisturbed runs by name; made once."""
    return {}


@pytest.fixture
def undisturbed(config, tree, whole) -> dict[str, bytes]:
    if not whole:
        runs.generate(config("undisturbed"))
        whole["dataset"] = tree(config("undisturbed").output.folder / "dataset")
    return whole["dataset"]


@contextmanager
def killed_after(commits: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process dies right after so many commits: no handler runs, the operating system drops the lock."""
    real, done = DatasetWriter.commit, []

    def commit(self: DatasetWriter, *of: object) -> int:
        index = real(self, *of)
        done.append(index)
        if len(done) == commits:
            raise Killed
        return index

    with monkeypatch.context() as patch:
        patch.setattr(DatasetWriter, "commit", commit)
        patch.setattr(DatasetWriter, "close", lambda self: self._lock.release())
        with pytest.raises(Killed):
            yield


def keys(config: RunConfig) -> list[str]:
    return DatasetReader.open(config.output.folder / "dataset").keys


def test_a_run_commits_every_world_under_every_policy_in_a_fixed_order(config):
    done = runs.generate(config())
    assert (done.folder, done.made, done.kept) == (config().output.folder, 6, 0)
    assert keys(config()) == KEYS
    assert DatasetReader.open(done.folder / "dataset").verify() == []


def test_two_runs_of_one_configuration_leave_the_same_bytes(config, tree, undisturbed):
    runs.generate(config("again"))
    assert tree(config("again").output.folder / "dataset") == undisturbed


@pytest.mark.parametrize("commits", range(1, 7))
def test_a_run_killed_after_any_commit_resumes_to_the_bytes_of_an_undisturbed_one(
    config, tree, undisturbed, monkeypatch, commits
):
    wanted = config()
    with killed_after(commits, monkeypatch):
        runs.generate(wanted)
    assert keys(wanted) == KEYS[:commits]
    done = runs.generate(wanted, resume=True)
    assert (done.made, done.kept) == (6 - commits, commits)
    assert tree(wanted.output.folder / "dataset") == undisturbed


def test_a_finished_run_is_resumed_without_drawing_a_world(config, tree, monkeypatch):
    runs.generate(config())
    before = tree(config().output.folder)

    def draw(*_: object) -> None:
        raise AssertionError("nothing is left to be made")

    monkeypatch.setattr(run_worlds, "draw", draw)
    done = runs.generate(config(), resume=True)
    assert (done.made, done.kept) == (0, 6)
    assert tree(config().output.folder) == before


@pytest.mark.parametrize("chunk", [1, 5, 7])
def test_ctrl_c_in_the_middle_of_a_batch_leaves_whole_episodes_and_resume_finishes(config, tree, undisturbed, chunk):
    def stop(name: str, done: int, total: int) -> None:
        if done == chunk and "drawing" not in name:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        runs.generate(config(), progress=stop)
    # Four chunks make a batch of two episodes.
    whole = 2 * (chunk // 4)
    if whole:
        assert keys(config()) == KEYS[:whole]
        assert DatasetReader.open(config().output.folder / "dataset").verify() == []
    else:
        assert not (config().output.folder / "dataset/meta/info.json").exists()
    runs.generate(config(), resume=True)
    assert tree(config().output.folder / "dataset") == undisturbed


def test_a_full_disk_is_one_output_error_and_resume_finishes(config, tree, undisturbed, monkeypatch):
    real, calls = commit_module.encode, []

    def full(*of: object) -> bytes:
        calls.append(of)
        if len(calls) == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*of)

    with monkeypatch.context() as patch:
        patch.setattr(commit_module, "encode", full)
        with pytest.raises(OutputError, match="dataset: No space left on device"):
            runs.generate(config())
    assert keys(config()) == KEYS[:1]
    runs.generate(config(), resume=True)
    assert tree(config().output.folder / "dataset") == undisturbed


def test_a_world_does_not_depend_on_the_policies_beside_it(config):
    runs.generate(config("both"))
    runs.generate(config("one", "policies=worldkv"))
    both, one = (DatasetReader.open(config(name).output.folder / "dataset") for name in ("both", "one"))
    for key in one.keys:
        frames = [reader.episode(reader.keys.index(key)).frames_FHWC for reader in (both, one)]
        np.testing.assert_array_equal(*frames)


def test_faults_in_the_books_of_a_memory_are_told_once_and_stop_nothing(config, monkeypatch, audits):
    def broken(*of: object, **options: object) -> ChunkMemory:
        memory = open_memory(*of, **options)
        audits.excuse(memory)
        memory.tiers[0].used_bytes += 1
        return memory

    open_memory = runs.open_memory
    monkeypatch.setattr(runs, "open_memory", broken)
    told: list[str] = []
    assert runs.generate(config("run", "worlds.count=1", "policies=[worldkv]"), warn=told.append).made == 1
    assert len(told) == len(set(told)) > 0
    assert all(fault.startswith("tier device: ") for fault in told)


@pytest.mark.parametrize(("history", "given"), [("truth", 6), ("own", 3)])
def test_the_given_frames_are_the_truth_and_the_rest_is_made(config, history, given):
    wanted = config("run", f"history={history}", "output.lossless=true", "worlds.count=1")
    runs.generate(wanted)
    episode = DatasetReader.open(wanted.output.folder / "dataset").episode(0)
    assert episode.metadata["given_frames"] == given
    assert (episode.scalars["generated"] > 0).tolist() == [False] * given + [True] * (12 - given)
    truth = episode.videos["observation.images.truth"]
    np.testing.assert_array_equal(episode.frames_FHWC[:given], truth[:given])
    assert all((episode.frames_FHWC[frame] != truth[frame]).any() for frame in range(given, 12))


def test_progress_starts_before_the_model_is_loaded_and_never_goes_back(config):
    told: list[tuple[str, float]] = []
    runs.generate(config(), progress=lambda name, done, total: told.append((name, done / total)))
    assert told[0] == ("loading the model", 0)
    assert [share for _, share in told] == sorted(share for _, share in told)
    assert told[-1][1] == 1
    names = [name for name, _ in told]
    assert names.index("drawing world 0") < names.index("world 0 to 1, sliding") < names.index("world 2, worldkv")


def test_a_collected_run_has_every_world_its_policies_and_speeds(config):
    wanted = config()
    folder = runs.generate(wanted).folder
    result = runs.collect(folder, wanted, "worldkv rollout x.yaml")
    assert [world.name for world in result.worlds] == ["rooms-0", "rooms-1", "rooms-2"]
    assert all([r.policy for r in world.rollouts] == ["sliding", "worldkv"] for world in result.worlds)
    assert set(result.frames_per_second) == {"sliding", "worldkv"}
    assert min(result.frames_per_second.values()) > 0
    content = json.loads(runs.summary(result))
    assert content["command"] == "worldkv rollout x.yaml"
    assert [row["policy"] for row in content["policies"]] == ["sliding", "worldkv"]


@pytest.fixture
def trajectory_folder(tmp_path, tiny) -> Callable[..., Path]:
    """A trajectory that turns on the spot for so many frames, with the tiny model's camera, changed as a test says."""

    def make(frames: int = 12, intrinsics: tuple[float, ...] | None = None) -> Path:
        zeros = np.zeros(frames)
        poses = planar_poses(zeros, zeros, np.arange(frames) * 6.0)
        rows = np.tile(intrinsics or tiny.model.intrinsics, (frames, 1))
        save_trajectory(Trajectory(poses, rows), tmp_path / "way")
        return tmp_path / "way"

    return make


def from_files(config: Callable[..., RunConfig], folder: Path) -> RunConfig:
    return config("run", "trajectory.kind=files", f"trajectory.folder={folder}")


def test_a_trajectory_from_files_is_walked_in_every_world_and_cut_to_whole_chunks(config, trajectory_folder):
    wanted = from_files(config, trajectory_folder(11))
    runs.generate(wanted)
    reader = DatasetReader.open(wanted.output.folder / "dataset")
    assert [episode.length for episode in reader] == [9] * 6
    assert {episode.metadata["trajectory"] for episode in reader} == {"way"}
    turns = reader.episode(5).action_FA[:-1, reader.schema.action_names.index("turn_degrees")]
    np.testing.assert_allclose(turns, 6, atol=1e-3)


def spoil(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        np.save(folder / name, change(np.load(folder / name)))

    return apply


def with_value(index: tuple[int, ...], value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


def tilted(poses: np.ndarray) -> np.ndarray:
    angle = 0.3
    poses[7, 1:3, 1:3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    poses[7, :3, 0], poses[7, 0, :3] = (1, 0, 0), (1, 0, 0)
    return poses


BAD_FILES = {
    "no poses": (lambda folder: (folder / "poses.npy").unlink(), "way: holds no poses.npy"),
    "no folder": (lambda folder: folder.rename(folder.with_name("gone")), r"way: no such trajectory folder"),
    "wrong shape": (spoil("poses.npy", lambda a: a[:, :3]), r"poses\.npy: poses have shape \[12, 3, 4\]"),
    "NaN": (spoil("poses.npy", with_value((4, 0, 3), np.nan)), r"poses\.npy: frame 4 .*not finite"),
    "skewed": (spoil("poses.npy", with_value((5, 0, 0), 1.5)), r"poses\.npy: frame 5 .*not orthonormal"),
    "too few": (spoil("poses.npy", lambda a: a[:2]), r"poses\.npy: has 2 poses, at least 6 are needed"),
    "no array": (lambda folder: (folder / "poses.npy").write_bytes(b"PK"), r"poses\.npy: not a readable \.npy"),
    "tilted": (spoil("poses.npy", tilted), "way: frame 7: the camera tilts"),
    "rising": (spoil("poses.npy", with_value((3, 1, 3), -0.5)), "way: frame 3: the camera .*leaves the height"),
    "another camera": (
        spoil("intrinsics.npy", with_value((2, 0), 415.0)),
        r"way: frame 2 has intrinsics 415 10 10 10, the rooms model knows only 10 10 10 10",
    ),
    "leap": (spoil("poses.npy", with_value((6, 0, 3), 40.0)), "way: fits nowhere into rooms world 0"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_trajectory_files_that_cannot_be_walked_are_refused_before_the_folder_is_touched(
    config, trajectory_folder, name
):
    folder = trajectory_folder()
    break_it, words = BAD_FILES[name]
    break_it(folder)
    with pytest.raises(TrajectoryError, match=words):
        runs.generate(from_files(config, folder))
    assert not config().output.folder.exists()


def test_a_way_that_fits_into_the_first_world_but_not_into_a_later_one_is_refused_at_once(config, monkeypatch):
    notation = config("run", "trajectory.kind=notation", "trajectory.notation=R90_24")
    real = run_worlds.Scene.place

    def place(self: run_worlds.Scene, trajectory: Trajectory) -> Trajectory:
        if self.seed == 2:
            raise TrajectoryError(f"{trajectory.name}: fits nowhere into rooms world 2")
        return real(self, trajectory)

    monkeypatch.setattr(run_worlds.Scene, "place", place)
    with pytest.raises(TrajectoryError, match="rooms world 2"):
        runs.generate(notation)
    assert not notation.output.folder.exists()


def test_a_notation_shorter_than_two_chunks_is_refused(config):
    with pytest.raises(TrajectoryError, match="R24: has 4 poses, at least 6 are needed"):
        runs.generate(config("run", "trajectory.kind=notation", "trajectory.notation=R24"))


def test_a_notation_is_walked_at_the_configured_pace(config):
    wanted = config("run", "trajectory.kind=notation", "trajectory.notation=WR30_20", "worlds.count=1")
    runs.generate(wanted)
    pace = Pace(Motion(6.0, 0.1), move_frames=10)
    expected = trajectory_from_notation("WR30_20", pace=pace).c2w_F44[:18]
    found = DatasetReader.open(wanted.output.folder / "dataset").episode(0).c2w_F44.astype(float)
    relative = [np.linalg.inv(poses[0]) @ poses for poses in (expected, found)]
    np.testing.assert_allclose(*relative, atol=1e-4)


def test_a_device_that_is_not_there_is_refused(config, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"model\.device = 'cuda': torch finds no CUDA device"):
        runs.load_model(config("run", "model.device=cuda"))
