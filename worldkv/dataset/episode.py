"""One committed rollout as the dataset sees it.

Shapes: F video frames, H and W pixels, C = 3 colours (RGB), A action columns, 44 a camera-to-world matrix
(OpenCV axes), 4 the intrinsics fx, fy, cx, cy in pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from worldkv.errors import DatasetError

MetadataValue = int | float | str

MAIN_VIDEO = "observation.images.main"


@dataclass(frozen=True, eq=False)
class Episode:
    """A rollout, checked on construction: equal lengths, dtypes as declared, no NaN or infinity anywhere."""

    frames_FHWC: npt.NDArray[np.uint8]
    """The generated video, stored as `observation.images.main`."""
    c2w_F44: npt.NDArray[np.float32]
    intrinsics_F4: npt.NDArray[np.float32]
    action_FA: npt.NDArray[np.float32]
    action_names: tuple[str, ...]
    task: str
    fps: int
    retrieved: tuple[tuple[int, ...], ...] = ()
    """Per video frame, the indices of the chunks in its window's retrieved part; () means none anywhere."""
    videos: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    """Further streams by feature name, such as `observation.images.truth`."""
    scalars: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """One number per video frame by feature name, such as `psnr`; finite, so clamp an infinite PSNR first."""
    metadata: Mapping[str, MetadataValue] = field(default_factory=dict)
    """Facts about the whole episode, such as its seed; stored as `worldkv/<name>` in meta/episodes."""

    def __post_init__(self) -> None:
        if not self.task or self.fps < 1:
            raise DatasetError(f"an episode needs a task text and fps of 1 or more, not {self.task!r}, {self.fps}")
        if MAIN_VIDEO in self.videos:
            raise DatasetError(f"{MAIN_VIDEO} is frames_FHWC and may not be among the further videos")
        for name, frames in self.all_videos().items():
            _expect(name, frames, np.dtype(np.uint8), (self.length, *frames.shape[1:3], 3))
        _expect("c2w_F44", self.c2w_F44, np.dtype(np.float32), (self.length, 4, 4))
        _expect("intrinsics_F4", self.intrinsics_F4, np.dtype(np.float32), (self.length, 4))
        _expect("action_FA", self.action_FA, np.dtype(np.float32), (self.length, len(self.action_names)))
        for name, values in self.scalars.items():
            _expect(name, values, np.dtype(np.float32), (self.length,))
        if self.retrieved and len(self.retrieved) != self.length:
            raise DatasetError(f"retrieved has {len(self.retrieved)} entries for {self.length} frames")
        if any(chunk < 0 for chunks in self.retrieved for chunk in chunks):
            raise DatasetError("retrieved chunk indices must be 0 or more; -1 is the padding on disk")

    @property
    def length(self) -> int:
        """Number of video frames."""
        return int(self.frames_FHWC.shape[0])

    def all_videos(self) -> dict[str, npt.NDArray[np.uint8]]:
        """Return every video by feature name, in the order in which features are stored."""
        return dict(sorted({MAIN_VIDEO: self.frames_FHWC, **self.videos}.items()))


def _expect(name: str, array: npt.NDArray[np.generic], dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape or 0 in shape:
        raise DatasetError(f"{name}: expected {dtype} {shape}, none empty, found {array.dtype} {array.shape}")
    if dtype.kind == "f" and not np.isfinite(array).all():
        frame = int(np.argwhere(~np.isfinite(array))[0][0])
        raise DatasetError(f"{name}: frame {frame} holds NaN or infinity, which no trainer can normalise")
