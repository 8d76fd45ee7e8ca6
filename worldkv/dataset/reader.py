"""Opens a dataset, decodes its episodes one at a time, describes and verifies it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from worldkv.dataset.episode import MAIN_VIDEO, Episode, MetadataValue
from worldkv.dataset.frames import read_frames, retrieved_lists
from worldkv.dataset.layout import IDENTITY, INFO, data_path, video_path
from worldkv.dataset.ledger import Entry, Identity, checksum, read_ledger, row_file_sums, task_texts
from worldkv.dataset.schema import ACTION, INTRINSICS, POSE, RETRIEVED, DatasetSchema
from worldkv.dataset.verify import Fault, find_faults
from worldkv.dataset.video import decode
from worldkv.errors import DatasetError


@dataclass(frozen=True)
class DatasetSummary:
    """What `describe` tells."""

    root: Path
    episodes: int
    frames: int
    seconds: float
    fps: int
    tasks: tuple[str, ...]
    videos: Mapping[str, tuple[int, int]]
    """(height, width) by feature name."""
    codec: str
    features: tuple[str, ...]
    metadata: tuple[str, ...]
    provenance: Mapping[str, MetadataValue]
    digest: str
    """Of format version, schema and provenance."""
    size_bytes: int


class DatasetReader:
    """The committed episodes of a dataset; make it with `open`."""

    def __init__(self, root: Path, identity: Identity, entries: Sequence[Entry]) -> None:
        self.root = root
        self.identity = identity
        self._entries = entries

    @classmethod
    def open(cls, root: Path | str) -> "DatasetReader":
        """Read the books of a dataset; raises DatasetError if they are missing, damaged or empty."""
        root = Path(root)
        if not (root / IDENTITY).exists():
            raise DatasetError(f"{root}: no WorldKV dataset ({IDENTITY} is missing)")
        identity = Identity.load(root)
        entries, _ = read_ledger(root)
        if not entries:
            raise DatasetError(f"{root}: holds no committed episode ({INFO} is missing)")
        return cls(root, identity, entries)

    @property
    def schema(self) -> DatasetSchema:
        """What all its episodes have in common."""
        return self.identity.schema

    @property
    def keys(self) -> list[str]:
        """The key of each episode, in their order."""
        return [entry.key for entry in self._entries]

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Episode]:
        return (self.episode(index) for index in range(len(self)))

    def episode(self, index: int) -> Episode:
        """Decode one episode; raises DatasetError naming a file that is not as written and both checksums."""
        entry, schema = self._entries[index], self.schema
        index = entry.episode_index
        columns = read_frames(self._checked(entry, data_path(index)), schema)
        videos = {key: decode(self._checked(entry, video_path(key, index)), schema.fps) for key in schema.videos}
        return Episode(
            frames_FHWC=videos.pop(MAIN_VIDEO),
            c2w_F44=columns[POSE],
            intrinsics_F4=columns[INTRINSICS],
            action_FA=columns[ACTION],
            action_names=schema.action_names,
            task=entry.task,
            fps=schema.fps,
            retrieved=retrieved_lists(columns[RETRIEVED]) if schema.retrieved_width else (),
            videos=videos,
            scalars={name: columns[name].reshape(-1) for name in schema.scalars},
            metadata=entry.metadata,
        )

    def verify(self) -> list[Fault]:
        """Return all departures from what was committed, [] if none; reads and decodes everything."""
        return find_faults(self.root, self.identity, self._entries)

    def describe(self) -> DatasetSummary:
        """Return a summary; reads no episode."""
        schema, frames = self.schema, self._entries[-1].to_index
        paths = [self.root / path for entry in self._entries for path in entry.files]
        paths += [self.root / path for path in row_file_sums(self._entries)]
        return DatasetSummary(
            root=self.root,
            episodes=len(self),
            frames=frames,
            seconds=frames / schema.fps,
            fps=schema.fps,
            tasks=tuple(task_texts(self._entries)),
            videos=schema.videos,
            codec=schema.encoder.codec,
            features=tuple(schema.features()),
            metadata=tuple(schema.metadata),
            provenance=self.identity.provenance,
            digest=self.identity.digest,
            size_bytes=sum(path.stat().st_size for path in paths if path.exists()),
        )

    def _checked(self, entry: Entry, path: Path) -> Path:
        expected, target = entry.files[path.as_posix()], self.root / path
        try:
            found = checksum(target.read_bytes())
        except OSError as error:
            raise DatasetError(f"{target}: {error.strerror}") from error
        if found != expected:
            raise DatasetError(f"{target}: damaged: expected xxh3 {expected}, found {found}")
        return target
