"""Memory policies: what the window keeps, what is retrieved into it, and how what is kept is stored. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from worldkv.errors import ConfigError
from worldkv.memory.codec import CODECS
from worldkv.memory.compression import Pruning
from worldkv.memory.ranking import Ranking
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
    live_latent_frames: int | None = None
    """Latent frames of sink, recent and current chunks that are attended to at most; none: all of them."""
    sink_latent_frames: int = 0
    """Of those, how many first ones stay when the oldest go."""
    ranking: Ranking = "pose"
    """How past chunks are ranked; `random` is the baseline of the benchmark."""
    sight: float = 8.0
    """How far the camera is taken to see, in world units, where chunks are ranked by `overlap`."""
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
        if self.live_latent_frames is not None and not 0 <= self.sink_latent_frames < self.live_latent_frames:
            raise ConfigError(
                f"live_latent_frames={self.live_latent_frames}, sink_latent_frames={self.sink_latent_frames}: "
                "the sink may be 0 or more and must leave room for the current chunk"
            )
        if self.live_latent_frames is None and self.sink_latent_frames:
            raise ConfigError(
                f"sink_latent_frames={self.sink_latent_frames} changes nothing without live_latent_frames"
            )
        if self.ranking not in get_args(Ranking):
            raise ConfigError(f"ranking={self.ranking!r}: must be one of {', '.join(get_args(Ranking))}")
        if not 0 < self.sight < math.inf:
            raise ConfigError(f"sight={self.sight}: must be a finite length above 0, in world units")
        if self.parity and self.ranking in ("overlap", "yaw"):
            raise ConfigError(f"ranking={self.ranking} with parity: the published retrieval ranks by pose")
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


def parse_policy(text: str) -> MemoryPolicy:
    """A preset by name, changed by `key=value` parts: `worldkv`, `worldkv/positions=original/codec=int8`.

    `keep=0.5` prunes by the published rule, `keep=0.5/rule=nearest` by ours. The policy is named by the text.
    Raises ConfigError, also for a change that would change nothing.
    """
    preset, *changes = text.split("/")
    if preset not in PRESETS:
        raise ConfigError(f"policy {text!r}: {preset!r} is not one of {', '.join(PRESETS)}")
    try:
        policy = replace(PRESETS[preset], name=text, **_values(changes))  # type: ignore[arg-type]  # by name
        _check_effect(policy, changes)
    except ConfigError as fault:
        raise ConfigError(f"policy {text!r}: {fault}") from None
    return policy


def _values(changes: Sequence[str]) -> dict[str, object]:
    """Fields of a MemoryPolicy that the changes set."""
    values: dict[str, object] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or key not in _PARSERS:
            raise ConfigError(f"{change!r} is not key=value with key one of {', '.join(_PARSERS)}")
        if key in values:
            raise ConfigError(f"{key} is given twice")
        try:
            values[key] = _PARSERS[key](value)
        except ValueError as fault:
            raise ConfigError(f"{change}: {fault}") from None
    keep, rule = values.pop("keep", None), values.pop("rule", None)
    if keep is not None:
        values["pruning"] = Pruning(keep_ratio=keep, rule=rule or "centroid", joint=True)  # type: ignore[arg-type]  # parsed
    elif rule is not None:
        raise ConfigError(f"rule={rule} says how to prune, but not how much: add keep=0.5")
    return values


def _check_effect(policy: MemoryPolicy, changes: Sequence[str]) -> None:
    """A comparison with a policy that is secretly another one's twin misleads: refuse it."""
    if policy.recent_chunks is None and policy.retrieved_chunks:
        raise ConfigError("full KV evicts nothing, so nothing can be retrieved: give recent_chunks too")
    if any(change.startswith("sight=") for change in changes) and policy.ranking != "overlap":
        raise ConfigError("sight changes nothing unless chunks are ranked by what they saw: give ranking=overlap too")
    idle = [change for change in changes if change.partition("=")[0] in _OF_STORED_CHUNKS]
    if idle and not policy.remembers:
        raise ConfigError(f"{idle[0]} changes nothing where nothing is retrieved: give retrieved_chunks too")


def _whole_number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ConfigError("must be a whole number, 0 or more")
    return int(text)


def _number(allowed: str) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            return float(text)
        except ValueError:
            raise ConfigError(f"must be {allowed}") from None

    return parse


def _one_of(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ConfigError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


_PARSERS: dict[str, Callable[[str], object]] = {
    "sink_chunks": _whole_number,
    "recent_chunks": _whole_number,
    "retrieved_chunks": _whole_number,
    "live_latent_frames": _whole_number,
    "sink_latent_frames": _whole_number,
    "ranking": _one_of(*get_args(Ranking)),
    "sight": _number("a length in world units, above 0"),
    "positions": _one_of("original", "rebased"),
    "codec": _one_of(*CODECS),
    "keep": _number("a number above 0 and at most 1"),
    "rule": _one_of("centroid", "nearest"),
}
_OF_STORED_CHUNKS = ("ranking", "sight", "codec", "keep", "rule")
