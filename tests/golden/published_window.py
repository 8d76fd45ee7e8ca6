"""Windows as the published WorldKV and LingBot code assembles them, latent frame by latent frame, for parity tests.

Shapes: L layers, F latent frames, T tokens, H heads, D head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.memory.compression import Pruning, gather, kept_tokens
from worldkv.window import rotary
from worldkv.window.buffer import AssembledWindow


@dataclass(frozen=True)
class Grid:
    """Sizes of a chunk's KV."""

    chunk_frames: int
    layers: int
    heads: int
    rows: int
    columns: int
    head_dim: int

    def angles(self, first_frame: int, frames: int) -> tuple[Tensor, Tensor]:
        ids = rotary.grid_token_ids(frames, self.rows, self.columns, first_frame=first_frame)
        return rotary.angles(ids, self.head_dim)


@dataclass
class History:
    """Un-rotated KV of all finished chunks of one session."""

    grid: Grid
    k: list[Tensor] = field(default_factory=list)
    v: list[Tensor] = field(default_factory=list)

    def frames(self, start: int, stop: int, *, at: int | None = None) -> tuple[Tensor, Tensor]:
        """K rotated to `at` (none: where it was made) and V of latent frames start .. stop, [L, T, H, D]."""
        size = self.grid.rows * self.grid.columns
        k, v = (torch.cat(parts, dim=1)[:, start * size : stop * size] for parts in (self.k, self.v))
        if start < stop:  # a rotation of nothing has no shape
            k = rotary.rotate(k, *self.grid.angles(start if at is None else at, stop - start))
        return k, v

    def pruned(self, start: int, *, at: int, pruning: Pruning, stored: bool) -> tuple[Tensor, Tensor]:
        """A chunk pruned when it was stored, by the keys where it was made, or when it is used, where it is put."""
        stop = start + self.grid.chunk_frames
        k, v = self.frames(start, stop, at=at)
        kept = kept_tokens(self.frames(start, stop)[0] if stored else k, self.grid.chunk_frames, pruning)
        return gather(k, kept), gather(v, kept)


class Blind(AssembledWindow):
    """A window in which the current chunk is not: what is left of the published one where memory takes it all."""

    def attend(self, layer: int, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor) -> Tensor:
        """Attention over the past alone."""
        q, k, v = rotary.rotate(q_BTHD, self._cos, self._sin), self._k[layer], self._v[layer]
        q, k, v = (x.transpose(1, 2) for x in (q, k[:, : self._past], v[:, : self._past]))
        return fn.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def sees_itself(mode: dict[str, Any], chunk: int) -> bool:
    """Whether a mode's window has room for the current chunk; with retrieval, the recent part counts it."""
    return mode["retrieved_source_start_frame_per_chunk"][chunk] is None or mode.get("recent_frames", 0) > 0


def window(
    history: History, past: Sequence[tuple[Tensor, Tensor]], first_frame: int, *, sees_itself: bool = True
) -> AssembledWindow:
    """What the chunk at `first_frame` attends to, itself included; `past` holds rotated K and V of each part."""
    grid = history.grid
    cos, sin = grid.angles(first_frame, grid.chunk_frames)
    own = torch.empty(grid.layers, grid.chunk_frames * grid.rows * grid.columns, grid.heads, grid.head_dim)
    k, v = (torch.cat([*parts, own], dim=1)[:, None] for parts in ([k for k, _ in past], [v for _, v in past]))
    kind = AssembledWindow if sees_itself else Blind
    return kind(k, v, k.shape[2] - own.shape[1], cos[None], sin[None])


def past_of(history: History, mode: dict[str, Any], chunk: int) -> list[tuple[Tensor, Tensor]]:
    """Sink, retrieved and recent part of a mode's window, as its manifest describes it."""
    size = history.grid.chunk_frames
    first, stop = chunk * size, (chunk + 1) * size
    sources = mode["retrieved_source_start_frame_per_chunk"][chunk]
    if sources is not None:
        recent = mode.get("recent_frames", 0)
        retrieved = [retrieved_part(history, mode, chunk, place) for place in range(len(sources))]
        start = min(first, max(mode["sink_size"], stop - recent))
        return [history.frames(0, mode["sink_size"]), *retrieved, history.frames(start, first)]
    limit = mode["local_attn_size"]
    if limit == -1 or stop <= limit:
        return [history.frames(0, first)] if first else []
    return [history.frames(0, mode["sink_size"]), history.frames(stop - (limit - mode["sink_size"]), first)]


def retrieved_part(history: History, mode: dict[str, Any], chunk: int, place: int) -> tuple[Tensor, Tensor]:
    options, size = mode["generate_kwargs"], history.grid.chunk_frames
    sources = mode["retrieved_source_start_frame_per_chunk"][chunk]
    at = start = sources[place]
    if options.get("retrieval_rope_correction"):
        at = (chunk + 1) * size - mode["recent_frames"] - (len(sources) - place) * size
    if not options.get("kv_compression_enable"):
        return history.frames(start, start + size, at=at)
    pruning = Pruning(
        options["kv_compression_keep_ratio"],
        pooled=options.get("kv_compression_pooled", False),
        anchor_frame=place % size if options.get("kv_compression_anchor_rotate") else 0,
    )
    return history.pruned(start, at=at, pruning=pruning, stored=options.get("kv_compression_at_store", False))
