"""A kill at any step leaves whole episodes; a resumed run ends in the bytes of an uninterrupted one."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from worldkv.dataset import ENCODER_PRESETS, DatasetReader, DatasetSchema, DatasetWriter, Episode, layout
from worldkv.dataset import commit as commit_module
from worldkv.dataset.layout import INFO
from worldkv.errors import DatasetError, OutputError

KEYS = ("a", "b")
STEPS = ("replace", "fsync", "mkdir", "unlink", "rmdir")


class Killed(BaseException):
    """What no handler of ours catches, as none runs when a process is killed."""


class Disk:
    """Counts the steps by which the file system changes and, at the chosen one, stops the world before it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.fault_at: int | None = None
        self.fault: BaseException = Killed()
        self.real = {name: getattr(os, name) for name in STEPS}
        for name in STEPS:
            monkeypatch.setattr(os, name, self._counted(name))

    def restart(self, fault_at: int | None = None, fault: BaseException | None = None) -> None:
        self.steps, self.fault_at, self.fault = [], fault_at, fault or Killed()

    def _counted(self, name: str) -> Callable[..., object]:
        def step(*args: object, **options: object) -> object:
            self.steps.append(name)
            if len(self.steps) - 1 == self.fault_at:
                if name == "fsync":
                    _tear(args[0])
                raise self.fault
            return None if name == "fsync" else self.real[name](*args, **options)

        return step


def _tear(descriptor: object) -> None:
    """Lose the last bytes of a file being written; what is open for reading only was on the disk before."""
    assert isinstance(descriptor, int)
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        os.ftruncate(descriptor, max(0, os.fstat(descriptor).st_size - 5))


def _copy(base: Path, root: Path) -> Path:
    if base.exists():
        shutil.copytree(base, root)
    return root


@pytest.fixture
def disk(monkeypatch) -> Disk:
    # Encoding is slow and the same each time.
    videos: dict[bytes, bytes] = {}
    real = commit_module.encode

    def cached(frames_FHWC, fps, options):
        name = frames_FHWC.tobytes()
        if name not in videos:
            videos[name] = real(frames_FHWC, fps, options)
        return videos[name]

    monkeypatch.setattr(commit_module, "encode", cached)
    return Disk(monkeypatch)


@pytest.fixture(scope="module")
def small(make_episode) -> Callable[[int], Episode]:
    """Episodes of one video, because the tests below write hundreds."""
    return lambda seed: replace(make_episode(seed, length=2, size=(4, 4)), videos={}, scalars={}, metadata={})


@pytest.fixture
def run(small) -> Callable[..., None]:
    """The whole job as a worker does it, resuming what is there; reports each key once it is committed."""

    def job(root: Path, reported: list[str], keys: tuple[str, ...] = KEYS) -> None:
        schema = DatasetSchema.of(small(0), retrieved_width=2, encoder=ENCODER_PRESETS["lossless"])
        writer = DatasetWriter.open(root, schema, provenance={"model": "rooms"}, resume=True)
        try:
            for seed, key in enumerate(keys):
                if key not in writer.committed_keys:
                    writer.commit(small(seed), key)
                reported.append(key)
            writer.close()
        finally:
            writer._lock.release()  # as the operating system does when a process ends

    return job


@pytest.mark.parametrize("before", [0, 1])
def test_a_kill_at_any_step_leaves_whole_episodes_and_resumes_to_the_same_bytes(
    tmp_path, disk, run, tree, same, small, before
):
    base, keys = tmp_path / "base", KEYS[: before + 1]
    if before:
        run(base, [], KEYS[:before])
    _copy(base, tmp_path / "whole")
    disk.restart()
    run(tmp_path / "whole", [], keys)
    whole, steps = tree(tmp_path / "whole"), list(disk.steps)
    assert set(steps) == set(STEPS)
    for step in range(len(steps)):
        root, reported = _copy(base, tmp_path / f"{step:03d}"), []
        disk.restart(fault_at=step)
        with pytest.raises(Killed):
            run(root, reported, keys)
        disk.restart()
        committed = DatasetReader.open(root).keys if (root / INFO).exists() else []
        assert committed[: len(reported)] == reported
        assert before <= len(committed) <= len(keys)
        if committed:
            assert same(DatasetReader.open(root).episode(-1), small(len(committed) - 1))
        run(root, resumed := [], keys)
        assert resumed == list(keys)
        assert tree(root) == whole, f"killed before step {step}, {steps[step]}"


def test_a_kill_while_recovering_is_recovered_from(tmp_path, disk, run, tree):
    run(tmp_path / "whole", [])
    whole = tree(tmp_path / "whole")
    last_publish = max(i for i, name in enumerate(disk.steps) if name == "replace")
    root = tmp_path / "killed"
    # Just before the second episode is counted: everything else of it is in place.
    disk.restart(fault_at=last_publish)
    with pytest.raises(Killed):
        run(root, [])
    assert len(DatasetReader.open(root).keys) == 1
    assert {str(fault.path.relative_to(root)) for fault in DatasetReader.open(root).verify()} == {
        "data/chunk-000/file-001.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/stats.json",
        "meta/tasks.parquet",
        "videos/observation.images.main/chunk-000/file-001.mp4",
    }
    _copy(root, tmp_path / "trial")
    disk.restart()
    run(tmp_path / "trial", [], KEYS[:1])
    for step in range(len(disk.steps)):
        again = _copy(root, tmp_path / f"again-{step}")
        disk.restart(fault_at=step)
        with pytest.raises(Killed):
            run(again, [], KEYS[:1])
        disk.restart()
        run(again, [])
        assert tree(again) == whole, f"killed before step {step} of recovering"


def test_recovering_leaves_the_dataset_of_the_committed_episodes(tmp_path, disk, run, tree):
    run(tmp_path / "one", [], KEYS[:1])
    disk.restart()
    run(tmp_path / "two", [])
    last_publish = max(i for i, name in enumerate(disk.steps) if name == "replace")
    disk.restart(fault_at=last_publish)
    with pytest.raises(Killed):
        run(tmp_path / "killed", [])
    disk.restart()
    run(tmp_path / "killed", [], KEYS[:1])
    assert tree(tmp_path / "killed") == tree(tmp_path / "one")
    assert DatasetReader.open(tmp_path / "killed").verify() == []


def test_full_files_and_folders_are_followed_by_new_ones(tmp_path, disk, run, tree, small, monkeypatch, same):
    monkeypatch.setattr(layout, "ROWS_PER_FILE", 2)
    monkeypatch.setattr(layout, "FILES_PER_FOLDER", 2)
    keys = tuple("abcde")
    run(tmp_path / "whole", [], keys)
    root, whole = tmp_path / "killed", tree(tmp_path / "whole")
    assert {name for name in whole if "episodes/" in name} == {
        "meta/episodes/chunk-000/file-000.parquet",
        "meta/episodes/chunk-000/file-001.parquet",
        "meta/episodes/chunk-001/file-000.parquet",
    }
    assert "data/chunk-002/file-000.parquet" in whole
    for count in range(1, 6):
        # Killed just before each episode is counted: its row is in place, in an old file or in a new one.
        trial = _copy(root, tmp_path / f"trial-{count}")
        disk.restart()
        run(trial, [], keys[:count])
        disk.restart(fault_at=max(i for i, name in enumerate(disk.steps) if name == "replace"))
        with pytest.raises(Killed):
            run(root, [], keys[:count])
        disk.restart()
        assert (len(DatasetReader.open(root)) if count > 1 else 0) == count - 1
        run(root, [], keys[:count])
        assert DatasetReader.open(root).verify() == []
    assert tree(root) == whole
    assert all(same(found, small(seed)) for seed, found in enumerate(DatasetReader.open(root)))


def test_a_dataset_can_be_read_while_it_grows(tmp_path, make_episode, schema, same):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(make_episode(0), "a")
        reader = DatasetReader.open(tmp_path / "d")
        writer.commit(make_episode(1), "b")
        assert len(reader) == 1
        assert same(reader.episode(0), make_episode(0))
        assert same(DatasetReader.open(tmp_path / "d").episode(1), make_episode(1))


@pytest.mark.parametrize(("code", "first"), [(errno.ENOSPC, 0), (errno.EACCES, 1), (errno.EROFS, 2)])
def test_a_refusal_of_the_disk_at_any_step_is_one_clear_error_and_undone(
    tmp_path, disk, run, tree, make_episode, schema, code, first
):
    root = tmp_path / "d"
    with DatasetWriter.open(root, schema) as writer:
        writer.commit(make_episode(0), "a")
        before = tree(root)
        disk.restart()
        writer.commit(make_episode(1), "b")
        steps = list(disk.steps)
    # Deleting is a step too, but a full disk does not refuse that.
    for step in [i for i, name in enumerate(steps) if name in {"fsync", "replace"}][first::3]:
        root = tmp_path / f"{step}"
        with DatasetWriter.open(root, schema) as writer:
            writer.commit(make_episode(0), "a")
            fault = OSError(code, os.strerror(code), f"{root}/somewhere")
            disk.restart(fault_at=step, fault=fault)
            with pytest.raises(OutputError) as caught:
                writer.commit(make_episode(1), "b")
            assert str(caught.value) == f"{root}/somewhere: {os.strerror(code)}"
            disk.restart()
            if (committed := len(DatasetReader.open(root).keys)) == 1:
                assert tree(root) == before
            assert list(writer.committed_keys) == list(KEYS[:committed])
            if committed == 1:
                writer.commit(make_episode(1), "b")
        assert tree(root) == tree(tmp_path / "d")


def test_a_video_that_does_not_decode_is_not_committed(tmp_path, monkeypatch, make_episode, schema, tree):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(make_episode(0), "a")
        before = tree(tmp_path / "d")
        real = commit_module.encode
        monkeypatch.setattr(commit_module, "encode", lambda *args: real(*args)[:-200])
        with pytest.raises(DatasetError, match=r"file-001.mp4: "):
            writer.commit(make_episode(1), "b")
        assert tree(tmp_path / "d") == before


def test_a_video_with_other_pixels_is_not_committed(tmp_path, monkeypatch, make_episode, schema):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        real = commit_module.encode
        monkeypatch.setattr(commit_module, "encode", lambda frames, *rest: real(255 - frames, *rest))
        with pytest.raises(DatasetError, match="other pixels"):
            writer.commit(make_episode(0), "a")
    assert not (tmp_path / "d" / INFO).exists()


def test_an_interrupt_in_a_living_process_is_undone_by_the_next_commit(tmp_path, disk, make_episode, schema, tree):
    for name in ("whole", "interrupted"):
        with DatasetWriter.open(tmp_path / name, schema) as writer:
            writer.commit(make_episode(0), "a")
            if name == "interrupted":
                disk.restart(fault_at=15, fault=KeyboardInterrupt())
                with pytest.raises(KeyboardInterrupt):
                    writer.commit(make_episode(1), "b")
                disk.restart()
            writer.commit(make_episode(1), "b")
    assert tree(tmp_path / "interrupted") == tree(tmp_path / "whole")


def test_a_process_killed_by_the_system_resumes(tmp_path, make_episode, schema, tree):
    script = """
import os, signal, sys
from conftest import build_episode
from worldkv.dataset import DatasetSchema, DatasetWriter, EncoderOptions
count, real = int(sys.argv[2]), os.replace
def replace(*names):
    global count
    count -= 1
    if count < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*names)
os.replace = replace
schema = DatasetSchema.of(build_episode(0), retrieved_width=3, encoder=EncoderOptions(codec="ffv1", gop=1))
writer = DatasetWriter.open(sys.argv[1], schema, resume=True)
for seed in range(len(writer.committed_keys), 2):
    writer.commit(build_episode(seed), f"rollout-{seed}")
"""
    with DatasetWriter.open(tmp_path / "whole", schema) as writer:
        for seed in range(2):
            writer.commit(make_episode(seed), f"rollout-{seed}")
    root = tmp_path / "killed"
    command = [sys.executable, "-c", script, str(root), "12"]
    # With a timeout, waiting for the child may sleep, which a unit test must not.
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert DatasetReader.open(root).keys == ["rollout-0"]
    with DatasetWriter.open(root, schema, resume=True) as writer:
        assert list(writer.committed_keys) == ["rollout-0"]
        writer.commit(make_episode(1), "rollout-1")
    assert tree(root) == tree(tmp_path / "whole")


def test_a_folder_that_is_not_ours_is_refused_and_left_alone(tmp_path, schema, tree):
    (tmp_path / "notes.txt").write_text("mine")
    for resume, message in ((False, "not empty"), (True, "no WorldKV dataset")):
        with pytest.raises(OutputError, match=message):
            DatasetWriter.open(tmp_path, schema, resume=resume)
    assert tree(tmp_path) == {"notes.txt": b"mine"}
    assert not (tmp_path / ".staging").exists()


def test_a_finished_dataset_is_not_overwritten_unless_resumed(tmp_path, make_episode, schema, tree):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(make_episode(0), "a")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="resume it or choose another folder"):
        DatasetWriter.open(tmp_path / "d", schema)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("provenance", "width", "message"),
    [
        ({"model": "other"}, 3, r"another model \(there 'rooms', given 'other'\)"),
        ({"model": "rooms"}, 4, r"another retrieved_width \(there 3, given 4\)"),
    ],
)
def test_a_dataset_of_another_kind_is_not_resumed(tmp_path, make_episode, schema, tree, provenance, width, message):
    with DatasetWriter.open(tmp_path / "d", schema, provenance={"model": "rooms"}) as writer:
        writer.commit(make_episode(0), "a")
    before = tree(tmp_path)
    other = replace(schema, retrieved_width=width)
    with pytest.raises(OutputError, match=message):
        DatasetWriter.open(tmp_path / "d", other, provenance=provenance, resume=True)
    assert tree(tmp_path) == before


def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path, make_episode, schema):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        with pytest.raises(OutputError, match="another writer"):
            DatasetWriter.open(tmp_path / "d", schema, resume=True)
        writer.commit(make_episode(0), "a")
    DatasetWriter.open(tmp_path / "d", schema, resume=True).close()


def test_a_root_that_cannot_be_a_folder_is_one_clear_error(tmp_path, schema):
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"/file(/below)?: (Not a directory|File exists)"):
            DatasetWriter.open(root, schema)


def test_a_damaged_dataset_is_not_resumed(tmp_path, make_episode, schema):
    with DatasetWriter.open(tmp_path / "d", schema) as writer:
        writer.commit(make_episode(0), "a")
    ledger = tmp_path / "d/meta/worldkv_episodes.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-10])
    with pytest.raises(DatasetError, match="line 1 is missing or damaged"):
        DatasetWriter.open(tmp_path / "d", schema, resume=True)
    ledger.unlink()
    with pytest.raises(DatasetError, match="No such file"):
        DatasetWriter.open(tmp_path / "d", schema, resume=True)
