"""The assembled window: contiguous rotated K and V of all layers, built once per chunk, read by all its forwards.

- A row of the buffer belongs to one session of the batch; all rows have the same length.
- What is already in place stays: only slots whose chunk, place or position changed are written again.
- Keys come un-rotated and are rotated on the way in, to the position that the policy chose.
- The current chunk's tokens live behind the past; each forward overwrites them.

Shapes: B sessions, L layers, T tokens, H heads, D head dim, P = D / 2 pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.geometry import KVGeometry
from worldkv.window import rotary

# Rebased windows use a handful of positions over and over; a full history adds one per chunk.
ANGLE_CACHE = 256


@dataclass(frozen=True)
class Slot:
    """One chunk's place in one session's window."""

    key: Hashable
    """Names session and chunk: equal keys hold equal KV."""
    first_frame: int
    """Latent frame at which the rotary embedding sees the chunk's first frame."""
    tokens: int
    load: Callable[[Tensor, Tensor], None]
    """Writes un-rotated K and V into the [L, tokens, H, D] views it is given."""
    token_ids_T3: Tensor | None = None
    """(frame, row, column), frames counted from the chunk's first; None: every token of the chunk, in order."""


class WindowBuffer:
    """Holds the window of a batch; grows as needed and is reused from chunk to chunk."""

    def __init__(
        self, geometry: KVGeometry, device: torch.device, dtype: torch.dtype, *, latent_frames: int | None = None
    ) -> None:
        """`latent_frames` is the longest window to come, where that is known: exactly so much is then allocated."""
        self.geometry, self.device, self.dtype = geometry, device, dtype
        self._start_frames = latent_frames or geometry.trained_latent_frames
        self._held: list[list[tuple[Hashable, int, int]]] = []
        self._k = self._v = torch.empty(0)
        self._angle_cache: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer as allocated."""
        return self._k.nbytes + self._v.nbytes

    def assemble(self, rows: Sequence[Sequence[Slot]], current_frames: Sequence[int]) -> AssembledWindow:
        """The window of each session, and where its current chunk stands.

        All rows must hold the same number of tokens. The returned window is valid until the next call.
        """
        past = [sum(slot.tokens for slot in row) for row in rows]
        if len(set(past)) != 1:
            raise ValueError(f"windows of one batch must be equally long, got {past} tokens")
        self._reserve(len(rows), past[0] + self.geometry.tokens_per_chunk)
        for b, row in enumerate(rows):
            self._fill(b, row)
        angles = [self._angles(first) for first in current_frames]
        cos_BTP, sin_BTP = (torch.stack(part) for part in zip(*angles, strict=True))
        stop = past[0] + self.geometry.tokens_per_chunk
        k, v = self._k[:, : len(rows), :stop], self._v[:, : len(rows), :stop]
        return AssembledWindow(k, v, past[0], cos_BTP, sin_BTP)

    def _angles(self, first_frame: int, token_ids_T3: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Cosine and sine [T, P] of a chunk at `first_frame`; whole chunks' are remembered, being few."""
        g = self.geometry
        if token_ids_T3 is not None:
            origin = torch.tensor([first_frame, 0, 0], device=self.device)
            return rotary.angles(token_ids_T3.to(self.device) + origin, g.head_dim)
        if first_frame not in self._angle_cache:
            if len(self._angle_cache) >= ANGLE_CACHE:
                self._angle_cache.clear()
            ids = rotary.grid_token_ids(
                g.chunk_latent_frames, g.rows, g.columns, first_frame=first_frame, device=self.device
            )
            self._angle_cache[first_frame] = rotary.angles(ids, g.head_dim)
        return self._angle_cache[first_frame]

    def _reserve(self, rows: int, tokens: int) -> None:
        """Room for `rows` x `tokens`; doubles in length so that a growing window is copied seldom."""
        g = self.geometry
        have_rows, have_tokens = self._k.shape[1:3] if self._k.ndim == 5 else (0, 0)
        if rows <= have_rows and tokens <= have_tokens:
            return
        # A first window of fixed size (sliding, WorldKV) should not be doubled.
        start = self._start_frames * g.tokens_per_latent_frame
        length = have_tokens if tokens <= have_tokens else max(tokens, min(2 * have_tokens, 2 * tokens), start)
        shape = (g.layers, max(rows, have_rows), length, g.heads, g.head_dim)
        k, v = (torch.empty(shape, device=self.device, dtype=self.dtype) for _ in range(2))
        if have_rows:
            k[:, :have_rows, :have_tokens] = self._k
            v[:, :have_rows, :have_tokens] = self._v
        self._k, self._v = k, v
        self._held += [[] for _ in range(shape[1] - len(self._held))]

    def _fill(self, b: int, row: Sequence[Slot]) -> None:
        held, start = self._held[b], 0
        self._held[b] = []  # should a load fail half-way, nothing is in place
        wanted = []
        stale = False
        for place, slot in enumerate(row):
            entry = (slot.key, slot.first_frame, slot.tokens)
            # A slot before this one changed its length: everything behind it moved.
            stale |= place < len(held) and held[place][2] != slot.tokens
            if stale or place >= len(held) or held[place] != entry:
                self._write(b, start, slot)
            wanted.append(entry)
            start += slot.tokens
        self._held[b] = wanted

    def _write(self, b: int, start: int, slot: Slot) -> None:
        k, v = (x[:, b, start : start + slot.tokens] for x in (self._k, self._v))
        slot.load(k, v)
        rotary.rotate(k, *self._angles(slot.first_frame, slot.token_ids_T3), out=k)


class AssembledWindow:
    """A `models.base.Window`: views of the buffer, and the current chunk's rotation."""

    def __init__(self, k_LBTHD: Tensor, v_LBTHD: Tensor, past: int, cos_BTP: Tensor, sin_BTP: Tensor) -> None:
        self._k, self._v, self._past = k_LBTHD, v_LBTHD, past
        self._cos, self._sin = cos_BTP, sin_BTP

    @property
    def past_tokens(self) -> int:
        """Tokens before the current chunk's."""
        return self._past

    def attend(self, layer: int, q_BTHD: Tensor, k_BTHD: Tensor, v_BTHD: Tensor) -> Tensor:
        """See `models.base.Window.attend`."""
        k_all, v_all = self._k[layer], self._v[layer]
        rotary.rotate(k_BTHD, self._cos, self._sin, out=k_all[:, self._past :])
        v_all[:, self._past :] = v_BTHD
        q = rotary.rotate(q_BTHD, self._cos, self._sin).to(k_all.dtype)
        q, k, v = (x.transpose(1, 2) for x in (q, k_all, v_all))
        return fn.scaled_dot_product_attention(q, k, v).transpose(1, 2)
