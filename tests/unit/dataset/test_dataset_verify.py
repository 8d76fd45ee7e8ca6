"""Every way in which a dataset can be damaged is found, and the file is named."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from worldkv.dataset import DatasetReader, DatasetWriter
from worldkv.dataset.ledger import Entry, checksum, read_ledger
from worldkv.dataset.video import encode
from worldkv.errors import DatasetError

DATA = "data/chunk-000/file-00{}.parquet"
ROW = "meta/episodes/chunk-000/file-00{}.parquet"
MAIN = "videos/observation.images.main/chunk-000/file-00{}.mp4"
LEDGER = "meta/worldkv_episodes.jsonl"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, make_episode, schema) -> Path:
    root = tmp_path_factory.mktemp("pristine") / "dataset"
    with DatasetWriter.open(root, schema) as writer:
        for seed in range(3):
            writer.commit(make_episode(seed, length=3), f"rollout-{seed}")
    return root


@pytest.fixture
def root(pristine, tmp_path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "dataset"))


def faults(root: Path) -> list[str]:
    return [str(fault) for fault in DatasetReader.open(root).verify()]


def flip(path: Path, position: float = 0.5) -> tuple[str, str]:
    contents = bytearray(path.read_bytes())
    before = checksum(bytes(contents))
    contents[int(len(contents) * position)] ^= 0x10
    path.write_bytes(contents)
    return before, checksum(bytes(contents))


def resign(root: Path) -> None:
    """Make the ledger agree with the files as they are, as a faulty writer would have."""
    entries, _ = read_ledger(root)
    lines = []
    for entry in entries:
        sums = {
            part: {path: checksum((root / path).read_bytes()) for path in getattr(entry, part)}
            for part in ("files", "shared")
        }
        lines.append(Entry(**{**vars(entry), **sums}).to_line())
    (root / LEDGER).write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    "name", [DATA.format(1), ROW.format(0), MAIN.format(1), "meta/tasks.parquet", "meta/stats.json"]
)
def test_one_flipped_bit_is_found_in_any_file(root, name):
    expected, found = flip(root / name)
    assert faults(root) == [f"{root / name}: damaged: expected xxh3 {expected}, found {found}"]


@pytest.mark.parametrize("name", [DATA, MAIN])
def test_reading_a_damaged_episode_raises_and_its_neighbours_are_still_read(root, name, same, make_episode):
    expected, found = flip(root / name.format(1))
    reader = DatasetReader.open(root)
    with pytest.raises(DatasetError, match=f"file-001.*expected xxh3 {expected}, found {found}"):
        reader.episode(1)
    assert same(reader.episode(2), make_episode(2, length=3))


def test_a_truncated_video_is_found(root):
    path = root / MAIN.format(2)
    path.write_bytes(path.read_bytes()[:-100])
    assert [fault.path for fault in DatasetReader.open(root).verify()] == [path]
    with pytest.raises(DatasetError, match=r"file-002\.mp4: damaged"):
        DatasetReader.open(root).episode(2)


@pytest.mark.parametrize("name", [DATA.format(0), ROW.format(0), MAIN.format(1), "meta/stats.json"])
def test_a_missing_file_is_found(root, name):
    (root / name).unlink()
    assert faults(root) == [f"{root / name}: missing"]


@pytest.mark.parametrize("name", [DATA.format(3), "data/chunk-000/copy.parquet", "videos/notes.txt", "meta/x"])
def test_a_file_that_no_episode_owns_is_found(root, name):
    shutil.copy(root / DATA.format(0), root / name)
    found = faults(root)
    assert len(found) == 1
    assert found[0].startswith(f"{root / name}: belongs to no committed episode")


def test_files_beside_the_dataset_are_nobodys_business(root):
    (root / "README.md").write_text("about")
    (root / ".staging").mkdir()
    assert faults(root) == []


@pytest.mark.parametrize("name", [DATA, MAIN])
def test_swapped_files_are_found(root, name):
    one, other = root / name.format(0), root / name.format(1)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    assert [fault.path for fault in DatasetReader.open(root).verify()] == [one, other]


def test_frame_tables_out_of_index_order_are_found_even_if_their_checksums_agree(root):
    one, other = root / DATA.format(0), root / DATA.format(1)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    resign(root)
    assert f"{one}: index runs 3..5 (3 frames), expected 0..2 (3 frames)" in faults(root)
    assert f"{other}: episode_index runs 0..0 (3 frames), expected 1..1 (3 frames)" in faults(root)


def test_wall_clock_timestamps_are_found(root):
    table = pq.read_table(root / DATA.format(1))
    column = table.column_names.index("timestamp")
    late = table.set_column(column, table.field(column), pa.array([5.0, 5.1, 5.2], pa.float32()))
    pq.write_table(late, root / DATA.format(1))
    resign(root)
    assert [fault.problem.split(" runs")[0] for fault in DatasetReader.open(root).verify()] == ["timestamp"]


def test_a_column_that_is_not_declared_is_found(root):
    table = pq.read_table(root / DATA.format(1))
    pq.write_table(table.append_column("surprise", [[1, 2, 3]]), root / DATA.format(1))
    resign(root)
    assert "surprise" in faults(root)[0]


def test_a_video_that_does_not_decode_or_has_another_length_is_found(root, make_episode, schema):
    one, other = root / MAIN.format(0), root / MAIN.format(1)
    one.write_bytes(b"no video at all")
    other.write_bytes(encode(make_episode(1, length=2).frames_FHWC, schema.fps, schema.encoder))
    resign(root)
    found = faults(root)
    assert len(found) == 2
    assert found[0].startswith(f"{one}: not a readable video")
    assert found[1] == f"{other}: holds frames (2, 16, 16, 3), expected (3, 16, 16, 3)"


def test_rows_about_other_episodes_are_found(root):
    path = root / ROW.format(0)
    rows = pq.read_table(path)
    pq.write_table(rows.take([1, 0]), path)
    resign(root)
    found = faults(root)
    assert f"{path}: episode_index is 1, expected 0" in found
    assert f"{path}: worldkv/key is 'rollout-0', expected 'rollout-1'" in found
    assert f"{path}: worldkv/seed is 0, expected 1" in found
    pq.write_table(rows.slice(0, 2), path)
    resign(root)
    assert faults(root) == [f"{path}: holds 2 episodes, expected 3"]
    pq.write_table(rows.drop_columns("length"), path)
    resign(root)
    assert faults(root) == [f"{path}: has not the declared columns: ['length']"]


def test_a_changed_ledger_is_found(root):
    ledger = (root / LEDGER).read_text()
    for old, new in (("rollout-1", "rollout-9"), ("turn round", "turn ruond")):
        (root / LEDGER).write_text(ledger.replace(old, new))
        assert any("rollout-9" in fault or "turn ruond" in fault for fault in faults(root))
    for damage in (
        ledger.replace('"length":3', '"length":4', 1),
        ledger[:-20],
        ledger.replace('","', '", "', 1),
        "",
    ):
        (root / LEDGER).write_text(damage)
        with pytest.raises(DatasetError, match=r"worldkv_episodes\.jsonl: line"):
            DatasetReader.open(root)
    (root / LEDGER).unlink()
    with pytest.raises(DatasetError, match=r"worldkv_episodes\.jsonl: No such file"):
        DatasetReader.open(root)


@pytest.mark.parametrize("total", [0, -1, 4, "3", None])
def test_a_false_count_in_info_is_found(root, total):
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "total_episodes": total}))
    with pytest.raises(DatasetError, match=r"info\.json: total_episodes|jsonl: line 4 is missing"):
        DatasetReader.open(root)


def test_an_info_that_says_something_else_is_found(root):
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps({**info, "fps": 30}))
    assert [fault.path for fault in DatasetReader.open(root).verify()] == [root / "meta/info.json"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"fps": 12', '"fps": 13', "damaged: expected digest"),
        ('"format_version": 1', '"format_version": 2', "format version 2, this program reads 1"),
        ('"fps": 12', '"fpz": 12', "not a description of a dataset"),
        ('"codec": "ffv1"', '"codec": "mpeg2"', "not a description of a dataset"),
        ("{", "[", "not JSON"),
    ],
)
def test_a_changed_identity_is_found(root, old, new, message):
    path = root / "meta/worldkv.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=message):
        DatasetReader.open(root)


def test_what_is_no_dataset_says_so(tmp_path, schema):
    with pytest.raises(DatasetError, match="no WorldKV dataset"):
        DatasetReader.open(tmp_path / "nowhere")
    DatasetWriter.open(tmp_path / "empty", schema).close()
    with pytest.raises(DatasetError, match="no committed episode"):
        DatasetReader.open(tmp_path / "empty")
