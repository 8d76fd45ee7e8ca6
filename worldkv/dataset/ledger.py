"""The dataset's own books, beside LeRobot's: `worldkv.json` says what this is, the ledger what was committed.

- The identity is written once, before anything else; its digest covers schema and provenance.
- The ledger has one line per episode: key, task, length, facts, and checksums of its files and of the shared
  files as they are after it. A line costs the same for the first episode and the hundred-thousandth.
- `info.json` is the commit: a ledger line beyond its `total_episodes` does not count.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from worldkv.dataset.episode import MetadataValue
from worldkv.dataset.layout import (
    CODEBASE_VERSION,
    DATA_PATH,
    FILES_PER_FOLDER,
    IDENTITY,
    INFO,
    LEDGER,
    VIDEO_PATH,
    row_path,
)
from worldkv.dataset.schema import DatasetSchema
from worldkv.errors import DatasetError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Identity:
    """What a dataset is: writers continue it, and readers trust it, only by this."""

    schema: DatasetSchema
    provenance: Mapping[str, MetadataValue]

    @property
    def digest(self) -> str:
        """Checksum of format version, schema and provenance."""
        return checksum(_canonical(self._document()))

    def to_bytes(self) -> bytes:
        """Return the contents of worldkv.json."""
        return json_bytes({**self._document(), "digest": self.digest})

    @classmethod
    def load(cls, root: Path) -> "Identity":
        """Read worldkv.json; raises DatasetError if it is missing, damaged or of another format version."""
        path = root / IDENTITY
        document = load_json(path)
        if document.get("format_version") != FORMAT_VERSION:
            found = document.get("format_version")
            raise DatasetError(f"{path}: format version {found}, this program reads {FORMAT_VERSION}")
        try:
            identity = cls(DatasetSchema.from_json(document["schema"]), document["provenance"])
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetError(f"{path}: not a description of a dataset ({error})") from error
        if identity.to_bytes() != path.read_bytes():
            raise DatasetError(f"{path}: damaged: expected digest {document.get('digest')}, found {identity.digest}")
        return identity

    def _document(self) -> dict[str, Any]:
        provenance = dict(sorted(self.provenance.items()))
        return {"format_version": FORMAT_VERSION, "schema": self.schema.to_json(), "provenance": provenance}


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    episode_index: int
    key: str
    task: str
    from_index: int
    """Index of its first frame in the whole dataset."""
    length: int
    metadata: Mapping[str, MetadataValue]
    files: Mapping[str, str]
    """xxh3-128 by path below the root, of the files that are this episode's alone."""
    shared: Mapping[str, str]
    """The same for the files that commits replace, as this one left them: rows, tasks, statistics, info."""

    @property
    def to_index(self) -> int:
        """Index of the first frame after it."""
        return self.from_index + self.length

    def to_line(self) -> bytes:
        """Return its line, newline included."""
        return json.dumps(asdict(self), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def read_ledger(root: Path) -> tuple[list[Entry], int]:
    """Return the committed entries and the byte offset behind the last; raises DatasetError on any damage."""
    count = committed_count(root)
    if count == 0:
        return [], 0
    path, offset = root / LEDGER, 0
    entries: list[Entry] = []
    with _opened(path) as file:
        for index in range(count):
            line = file.readline()
            entry = _parse(path, index, line)
            if entry.episode_index != index or entry.from_index != (entries[-1].to_index if entries else 0):
                raise DatasetError(f"{path}: line {index + 1} does not follow the line before it")
            entries.append(entry)
            offset += len(line)
    return entries, offset


def committed_count(root: Path) -> int:
    """Return how many episodes info.json counts, 0 if it is not there yet."""
    path = root / INFO
    if not path.exists():
        return 0
    count = load_json(path).get("total_episodes")
    if not isinstance(count, int) or count < 1:
        raise DatasetError(f"{path}: total_episodes is {count!r}, expected a number of 1 or more")
    return count


def row_file_sums(entries: Sequence[Entry]) -> dict[Path, str]:
    """Return the checksum of each file of rows: the one that the last commit to it left."""
    return {path: entry.shared[path.as_posix()] for entry in entries for path in [row_path(entry.episode_index)]}


def task_texts(entries: Sequence[Entry]) -> list[str]:
    """Return the tasks in the order of their indices, which is that of their first use."""
    return list(dict.fromkeys(entry.task for entry in entries))


def info_bytes(schema: DatasetSchema, *, episodes: int, frames: int, tasks: int) -> bytes:
    """Return the contents of LeRobot's info.json."""
    return json_bytes(
        {
            "codebase_version": CODEBASE_VERSION,
            "robot_type": "worldkv",
            "total_episodes": episodes,
            "total_frames": frames,
            "total_tasks": tasks,
            "chunks_size": FILES_PER_FOLDER,
            "data_files_size_in_mb": 100,
            "video_files_size_in_mb": 200,
            "fps": schema.fps,
            "splits": {"train": f"0:{episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": schema.features(),
        }
    )


def checksum(contents: bytes) -> str:
    """Return the xxh3-128 of some bytes, in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(contents)


def json_bytes(document: Any) -> bytes:
    """Return a JSON file; the same document always gives the same bytes."""
    return json.dumps(document, indent=4, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises DatasetError naming the file."""
    with _opened(path) as file:
        contents = file.read()
    try:
        document = json.loads(contents)
    except ValueError as error:
        raise DatasetError(f"{path}: not JSON ({error})") from error
    if not isinstance(document, dict):
        raise DatasetError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise DatasetError(f"{path}: {error.strerror}") from error


def _canonical(document: Any) -> bytes:
    return json.dumps(document, sort_keys=True, ensure_ascii=False, allow_nan=False).encode()


def _parse(path: Path, index: int, line: bytes) -> Entry:
    try:
        entry = Entry(**json.loads(line))
        if line == entry.to_line():
            return entry
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{path}: line {index + 1} is missing or damaged ({error})") from error
    raise DatasetError(f"{path}: line {index + 1} is damaged")
