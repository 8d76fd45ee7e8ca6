"""Memory policies: what the window keeps, what is retrieved into it, and how what is kept is stored. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from worldkv.errors import ConfigError
from worldkv.memory.codec import CODECS
from worldkv.memory.compression import Pruning
from worldkv.window.positions import PositionMode


@dataclass(frozen=True)
class MemoryPolicy:
    """One way of remembering, applied at inference to a model that knows nothing of it."""

    name: str
    sink_chunks: int = 1
    """First chunks, always attended to."""
    recent_chunks: int | None = 2
    """Last chunks before the current one; None keeps all: full KV."""
    retrieved_chunks: int = 0
    """Past chunks brought back per chunk; 0 forgets what leaves the window."""
    ranking: Literal["pose", "random"] = "pose"
    """How past chunks are ranked; `random` is the baseline of the benchmark."""
    positions: PositionMode = "rebased"
    """Temporal positions of the window; `original` is the published behaviour."""
    codec: str = "int4"
    """How evicted chunks are stored."""
    pruning: Pruning | None = None
    """Tokens left out of evicted chunks."""
    parity: bool = False
    """Repeat the published retrieval to the letter, its off-by-one included."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ConfigError(f"codec={self.codec!r}: must be one of {', '.join(CODECS)}")
        if self.sink_chunks < 0 or self.retrieved_chunks < 0 or (self.recent_chunks or 0) < 0:
            raise ConfigError(
                f"sink_chunks={self.sink_chunks}, recent_chunks={self.recent_chunks}, "
                f"retrieved_chunks={self.retrieved_chunks}: none may be negative"
            )
        if self.pruning is not None and not self.pruning.joint:
            raise ConfigError("pruning of stored chunks must be joint: one list of tokens for all layers")

    @property
    def remembers(self) -> bool:
        """Whether chunks that leave the window are admitted to memory."""
        return self.retrieved_chunks > 0

    def window_latent_frames(self, chunk_latent_frames: int) -> int | None:
        """Latent frames of a filled window with the current chunk; None when it grows without end."""
        if self.recent_chunks is None:
            return None
        chunks = self.sink_chunks + self.retrieved_chunks + self.recent_chunks + 1
        return chunks * chunk_latent_frames


PRESETS: dict[str, MemoryPolicy] = {
    "full": MemoryPolicy("full", recent_chunks=None, positions="original"),
    "sliding": MemoryPolicy("sliding"),
    "worldkv": MemoryPolicy("worldkv", retrieved_chunks=4),
}
"""The three policies everyone compares, by name."""
