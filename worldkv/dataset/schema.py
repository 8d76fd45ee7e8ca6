"""What every episode of one dataset has in common, and the LeRobot features that follow from it."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from worldkv.dataset.episode import MAIN_VIDEO, Episode, MetadataValue
from worldkv.dataset.video import EncoderOptions
from worldkv.errors import DatasetError

MetadataType = Literal["int", "float", "str"]

STATE, POSE, INTRINSICS = "observation.state", "observation.pose", "observation.intrinsics"
ACTION, RETRIEVED = "action", "memory.retrieved_chunks"
STATE_NAMES = tuple(f"c2w_{row}{column}" for row in range(3) for column in range(4))
"""The pose without its constant last row: what a policy takes as its state vector."""

COUNTERS = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The five columns that LeRobot demands."""

RESERVED = {STATE, POSE, INTRINSICS, ACTION, RETRIEVED, *COUNTERS, "task"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class DatasetSchema:
    """Rates, names and sizes; two datasets can be continued or merged only if theirs are equal."""

    fps: int
    videos: Mapping[str, tuple[int, int]]
    """(height, width) by feature name; `observation.images.main` must be among them."""
    action_names: tuple[str, ...]
    retrieved_width: int = 0
    """Most chunks that one frame's window may retrieve; 0 leaves the column out."""
    scalars: tuple[str, ...] = ()
    metadata: Mapping[str, MetadataType] = field(default_factory=dict)
    """Type of each per-episode fact."""
    encoder: EncoderOptions = field(default_factory=EncoderOptions)

    def __post_init__(self) -> None:
        # Sorted, so that the order in which a caller names things changes neither files nor digest.
        sizes = {key: (int(height), int(width)) for key, (height, width) in sorted(self.videos.items())}
        object.__setattr__(self, "videos", sizes)
        object.__setattr__(self, "scalars", tuple(sorted(self.scalars)))
        object.__setattr__(self, "metadata", dict(sorted(self.metadata.items())))
        object.__setattr__(self, "action_names", tuple(self.action_names))
        self._check_names()
        if self.fps < 1 or self.retrieved_width < 0 or not self.action_names:
            raise DatasetError(
                f"schema: fps {self.fps} must be 1 or more, retrieved_width {self.retrieved_width} 0 or "
                f"more, action_names {self.action_names} not empty"
            )
        for key, (height, width) in sizes.items():
            self.encoder.check_size(key, height, width)

    @classmethod
    def of(cls, episode: Episode, *, retrieved_width: int, encoder: EncoderOptions | None = None) -> "DatasetSchema":
        """Return the schema that this episode, and all others like it, fit."""
        sizes = {key: (frames.shape[1], frames.shape[2]) for key, frames in episode.all_videos().items()}
        return cls(
            fps=episode.fps,
            videos=sizes,
            action_names=episode.action_names,
            retrieved_width=retrieved_width,
            scalars=tuple(episode.scalars),
            metadata={name: metadata_type(name, value) for name, value in episode.metadata.items()},
            encoder=encoder or EncoderOptions(),
        )

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "DatasetSchema":
        """Return the schema that `to_json` described."""
        rest = {**document, "encoder": EncoderOptions(**document["encoder"])}
        return cls(**rest)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON document that holds everything."""
        return asdict(self)

    def columns(self) -> dict[str, tuple[str, tuple[int, ...], tuple[str, ...] | None]]:
        """Return (dtype, shape, names) of each column of the frame tables, in stored order."""
        columns: dict[str, tuple[str, tuple[int, ...], tuple[str, ...] | None]] = {
            STATE: ("float32", (12,), STATE_NAMES),
            POSE: ("float32", (4, 4), None),
            INTRINSICS: ("float32", (4,), ("fx", "fy", "cx", "cy")),
            ACTION: ("float32", (len(self.action_names),), self.action_names),
        }
        if self.retrieved_width:
            columns[RETRIEVED] = ("int64", (self.retrieved_width,), None)
        columns |= dict.fromkeys(self.scalars, ("float32", (1,), None))
        return columns | {name: (dtype, (1,), None) for name, dtype in COUNTERS.items()}

    def features(self) -> dict[str, Any]:
        """Return the `features` of LeRobot's info.json."""
        videos = {key: self._video_feature(*size) for key, size in self.videos.items()}
        columns = {
            key: {"dtype": dtype, "shape": list(shape), "names": None if names is None else list(names)}
            for key, (dtype, shape, names) in self.columns().items()
        }
        return videos | columns

    def check(self, episode: Episode) -> None:
        """Raise DatasetError naming the first thing in which the episode departs from this schema."""
        found = DatasetSchema.of(episode, retrieved_width=self.retrieved_width, encoder=self.encoder)
        for name in ("fps", "videos", "action_names", "scalars", "metadata"):
            expected, given = getattr(self, name), getattr(found, name)
            if expected != given:
                raise DatasetError(f"episode does not fit the dataset: {name} is {given}, expected {expected}")
        check_text("task", episode.task)
        most = max((len(chunks) for chunks in episode.retrieved), default=0)
        if most > self.retrieved_width:
            raise DatasetError(f"a frame retrieved {most} chunks, the dataset has room for {self.retrieved_width}")

    def _check_names(self) -> None:
        if MAIN_VIDEO not in self.videos:
            raise DatasetError(f"schema: videos {sorted(self.videos)} lack {MAIN_VIDEO}")
        for key in self.videos:
            if not key.startswith("observation.images.") or not NAME.fullmatch(key):
                raise DatasetError(f"video name {key!r}: expected observation.images.<name>, {NAME.pattern}")
        for name in [*self.scalars, *self.metadata]:
            if not NAME.fullmatch(name):
                raise DatasetError(f"feature name {name!r}: expected {NAME.pattern}")
        taken = (RESERVED | set(self.videos)) & set(self.scalars) | {"key"} & set(self.metadata)
        if taken:
            raise DatasetError(f"feature names {sorted(taken)} are the dataset's own")

    def _video_feature(self, height: int, width: int) -> dict[str, Any]:
        facts = {
            "video.height": height,
            "video.width": width,
            "video.codec": self.encoder.codec,
            "video.pix_fmt": self.encoder.pixel_format,
            "video.is_depth_map": False,
            "video.fps": self.fps,
            "video.channels": 3,
            "has_audio": False,
        }
        return {
            "dtype": "video",
            "shape": [height, width, 3],
            "names": ["height", "width", "channels"],
            "info": facts,
        }


def metadata_type(name: str, value: MetadataValue) -> MetadataType:
    """Return the stored type of a fact; raises DatasetError if no column can hold it."""
    if isinstance(value, str):
        check_text(name, value)
        return "str"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DatasetError(f"metadata {name}={value!r}: expected an int, a float or a text")
    if isinstance(value, float) and not math.isfinite(value):
        raise DatasetError(f"metadata {name}={value!r}: expected a finite number")
    if isinstance(value, int) and not -INT64_MAX <= value <= INT64_MAX:
        raise DatasetError(f"metadata {name}={value}: an int must fit in 64 bits; store it as text")
    return "int" if isinstance(value, int) else "float"


def check_text(name: str, text: str) -> None:
    """Raise DatasetError if no file can hold a text (one with half a surrogate pair has no UTF-8 form)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DatasetError(f"{name} {text!r}: {error.reason}") from error
