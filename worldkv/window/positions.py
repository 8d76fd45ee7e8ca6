"""Temporal positions: at which latent frame the rotary embedding sees each chunk of the window. Pure Python.

A window is sink + retrieved + recent + the chunk being generated; chunks are named by their index in the
rollout.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from worldkv.errors import ConfigError

PositionMode = Literal["original", "rebased"]


@dataclass(frozen=True)
class WindowChunks:
    """Chunk indices of a window, each part in the order in which the window holds it.

    A chunk is in one part only, and all but `current` are older than it; else ConfigError.
    """

    sink: tuple[int, ...]
    """First chunks of the rollout."""
    retrieved: tuple[int, ...]
    """Past chunks brought back, in any order (nearest first, say)."""
    recent: tuple[int, ...]
    """Last chunks before the current one."""
    current: int
    """The chunk being generated."""

    def __post_init__(self) -> None:
        past = self.past
        if len(set(past)) != len(past) or any(not 0 <= chunk < self.current for chunk in past):
            raise ConfigError(f"{self}: each chunk may be in one part only and must be in 0..{self.current - 1}")

    @property
    def past(self) -> tuple[int, ...]:
        """All chunks but the current one, in window order."""
        return self.sink + self.retrieved + self.recent


class Positions(NamedTuple):
    """Latent frame at which each chunk starts, in the order of the `WindowChunks` they were computed from."""

    sink: tuple[int, ...]
    retrieved: tuple[int, ...]
    recent: tuple[int, ...]
    current: int


def first_frames(
    chunks: WindowChunks,
    *,
    chunk_latent_frames: int,
    mode: PositionMode,
    trained_latent_frames: int,
) -> Positions:
    """Position of the first latent frame of each chunk of the window.

    `original`: where the chunk was generated, however far out; what the paper does. `rebased`: contiguous
    from 0, sink, then retrieved from old to new whatever order the window holds them in, then recent, then
    current, so that no position leaves the range the model was trained on. As long as nothing has been
    evicted the two agree.

    Raises ConfigError for an unknown mode, or where a rebased window is longer than `trained_latent_frames`.
    """
    if chunk_latent_frames < 1:
        raise ConfigError(f"chunk_latent_frames={chunk_latent_frames}: must be 1 or more")
    if mode == "original":
        slot = {chunk: chunk for chunk in (*chunks.past, chunks.current)}
    elif mode == "rebased":
        slot = _rebased(chunks, chunk_latent_frames, trained_latent_frames)
    else:
        raise ConfigError(f"mode={mode!r}: must be one of original, rebased")
    sink, retrieved, recent = (
        tuple(slot[chunk] * chunk_latent_frames for chunk in part)
        for part in (chunks.sink, chunks.retrieved, chunks.recent)
    )
    return Positions(sink, retrieved, recent, slot[chunks.current] * chunk_latent_frames)


def _rebased(chunks: WindowChunks, chunk_latent_frames: int, trained_latent_frames: int) -> dict[int, int]:
    order = (*chunks.sink, *sorted(chunks.retrieved), *chunks.recent, chunks.current)
    needed = len(order) * chunk_latent_frames
    if needed > trained_latent_frames:
        raise ConfigError(
            f"trained_latent_frames={trained_latent_frames} cannot hold a window of {needed} latent frames "
            f"({len(chunks.sink)} sink + {len(chunks.retrieved)} retrieved + {len(chunks.recent)} recent "
            f"+ 1 current chunks of {chunk_latent_frames}): retrieve fewer, or use original positions"
        )
    return {chunk: place for place, chunk in enumerate(order)}
