"""The table of contents: what happens to a chunk, step by step. Each line is one module.

    actions -> poses -> retrieve -> assemble window -> look ahead -> denoise -> decode -> dataset
    evict from window -> compress -> admit to a tier -> ... -> promote -> back into the window

Shapes: B sessions, F latent frames, C H W of a latent frame.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from worldkv.denoise import denoise, gaussian, renoise
from worldkv.durations import Listener, Span, nobody
from worldkv.models.base import Schedule, Window, WorldModel
from worldkv.session import Retrieved, Session
from worldkv.window.buffer import AssembledWindow, WindowBuffer

COMPUTE_TRACK = "rollout"


@dataclass(frozen=True)
class ChunkRecord:
    """What one session's chunk came out as."""

    chunk: int
    frames_FHWC: NDArray[np.uint8]
    generated: bool
    """False where the frames were given to the session, not made by it."""
    retrieved: tuple[int, ...]
    """Indices of the chunks brought back."""
    missed: int
    """Chunks that retrieval wanted and no tier could give."""
    window_tokens: int
    """Tokens attended to, the chunk's own included."""
    live_bytes: int
    """KV inside the window."""
    stored_bytes: int
    """KV in memory."""


@dataclass
class StageSeconds:
    """Wall-clock seconds spent in each stage, summed over chunks; the listener is told of each stage by itself."""

    seconds: dict[str, float] = field(default_factory=dict)
    listener: Listener = nobody

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        ended = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + ended - started
        self.listener(Span(COMPUTE_TRACK, stage, started, ended))


def rollout(
    model: WorldModel,
    sessions: Sequence[Session],
    *,
    levels: Sequence[float] | Schedule,
    given: Sequence[NDArray[np.uint8]] | None = None,
    clock: StageSeconds | None = None,
) -> Iterator[list[ChunkRecord]]:
    """Advance all sessions chunk by chunk as one batch, to the end of their trajectories.

    Yields the records of one chunk, in the order of `sessions`, which must be at the same chunk and end together.
    `given` holds per session the first video frames [F', H, W, 3] it is shown instead of making them (whole
    chunks). `levels` are the noise levels of the denoise steps; a Schedule where a model has its own.
    """
    if len({(session.chunk, session.chunks) for session in sessions}) > 1:
        places = ", ".join(f"{session.chunk} of {session.chunks}" for session in sessions)
        raise ValueError(f"sessions of one batch must be at the same chunk and end together, got {places}")
    buffer = WindowBuffer(model.geometry, model.device, model.kv_dtype, latent_frames=_longest_window(model, sessions))
    clock = clock or StageSeconds()
    while not all(session.finished for session in sessions):
        shown = _next_given(sessions, given)
        with clock("retrieve"):
            retrieved = [session.retrieve() for session in sessions]
        records: dict[int, ChunkRecord] = {}
        try:
            for batch in _equally_long(retrieved):
                part = [sessions[b] for b in batch], [retrieved[b] for b in batch]
                frames = None if shown is None else shown[batch]
                records |= zip(batch, _advance(model, *part, buffer, levels, frames, clock), strict=True)
        finally:
            for found in retrieved:
                found.let_go()
        yield [records[b] for b in range(len(sessions))]


def _longest_window(model: WorldModel, sessions: Sequence[Session]) -> int | None:
    """Latent frames of the longest window to come; None where one grows without end."""
    size = model.geometry.chunk_latent_frames
    windows = [session.policy.window_latent_frames(size) for session in sessions]
    known = [min(window, session.chunks * size) for window, session in zip(windows, sessions, strict=True) if window]
    return max(known, default=None) if len(known) == len(windows) else None


def _equally_long(retrieved: Sequence[Retrieved]) -> list[list[int]]:
    """Which sessions can share a batch: all of them, unless a miss left some with a shorter window."""
    batches: dict[int, list[int]] = {}
    for b, found in enumerate(retrieved):
        batches.setdefault(sum(chunk.tokens for chunk in found.chunks), []).append(b)
    return list(batches.values())


def _advance(
    model: WorldModel,
    sessions: Sequence[Session],
    retrieved: Sequence[Retrieved],
    buffer: WindowBuffer,
    levels: Sequence[float] | Schedule,
    given: NDArray[np.uint8] | None,
    clock: StageSeconds,
) -> list[ChunkRecord]:
    states, views = [s.state for s in sessions], [s.view() for s in sessions]
    with clock("assemble"):
        window = _assemble(buffer, sessions, retrieved)
    with clock("look ahead"):
        for session in sessions:
            session.look_ahead()
    with clock("denoise"):
        condition = model.condition(states, views)
        if given is None:
            latents = _make(model, sessions, condition, window, levels)
        else:
            latents = model.encode(torch.from_numpy(given), states)
    with clock("clean pass"):
        kv = model.clean_pass(latents, condition, window, states, generated=given is None)
    with clock("compress and admit"):
        for b, session in enumerate(sessions):
            evicted = session.push(kv.k_LBTHD[:, b].contiguous(), kv.v_LBTHD[:, b].contiguous())
            if evicted is not None and session.policy.remembers:
                session.remember(evicted)
    with clock("decode"):
        frames = model.decode(latents, states).numpy() if given is None else given
    tokens = window.past_tokens + model.geometry.tokens_per_chunk
    return [_record(*one, tokens, given is None) for one in zip(sessions, frames, retrieved, strict=True)]


def _assemble(buffer: WindowBuffer, sessions: Sequence[Session], retrieved: Sequence[Retrieved]) -> AssembledWindow:
    """The window holds all of it afterwards: nothing refers to the memory's own bytes any more."""
    rows, firsts = zip(*(s.slots(r) for s, r in zip(sessions, retrieved, strict=True)), strict=True)
    window = buffer.assemble(rows, firsts)
    for found in retrieved:
        found.let_go()
    return window


def _make(
    model: WorldModel,
    sessions: Sequence[Session],
    condition: object,
    window: Window,
    levels: Sequence[float] | Schedule,
) -> torch.Tensor:
    """Latents from noise."""
    if isinstance(levels, Schedule):
        return renoise(model, partial(_noise, model, sessions), condition, window, levels)
    return denoise(model, _noise(model, sessions, 0), condition, window, levels)


def _noise(model: WorldModel, sessions: Sequence[Session], step: int) -> torch.Tensor:
    shape = (model.geometry.chunk_latent_frames, *model.latent_shape)
    draws = [gaussian(shape, seed=s.seed, rollout=s.rollout, chunk=s.chunk, step=step) for s in sessions]
    return torch.stack(draws).to(model.device)


def _next_given(sessions: Sequence[Session], given: Sequence[NDArray[np.uint8]] | None) -> NDArray[np.uint8] | None:
    """The frames of the next chunk where they are given to all sessions, else None."""
    if given is None:
        return None
    size = sessions[0].video_frames_per_chunk
    part = slice(sessions[0].chunk * size, (sessions[0].chunk + 1) * size)
    return np.stack([frames[part] for frames in given]) if len(given[0]) >= part.stop else None


def _record(
    session: Session, frames: NDArray[np.uint8], retrieved: Retrieved, window_tokens: int, generated: bool
) -> ChunkRecord:
    return ChunkRecord(
        chunk=session.chunk - 1,
        frames_FHWC=frames,
        generated=generated,
        retrieved=retrieved.indices,
        missed=retrieved.missed,
        window_tokens=window_tokens,
        live_bytes=session.live_bytes,
        stored_bytes=session.stored_bytes,
    )
