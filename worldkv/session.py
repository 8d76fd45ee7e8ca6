"""One live rollout: where its camera goes, what its window holds, which chunks its memory keeps.

- A chunk that leaves the window is admitted to memory or forgotten, as the policy says; never both.
- The session's list holds one reference on each chunk it has stored, shared with its forks, until the last `close`.
- A snapshot (`worldkv.snapshot`) is complete: restored on the same device type it continues bit for bit.

Shapes: L layers, F frames, T tokens, H heads, D head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worldkv.camera import ACTION_COLUMNS, Trajectory, to_key_columns
from worldkv.errors import ModelError, TrajectoryError
from worldkv.memory import retrieval
from worldkv.memory.ahead import Expected
from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.codec import CODECS
from worldkv.memory.compression import gather, kept_tokens
from worldkv.memory.index import PoseIndex
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.ranking import Query, choose
from worldkv.memory.store import ChunkMemory
from worldkv.models.base import ModelState, View, WorldModel
from worldkv.models.ranks import agreed, total
from worldkv.window import rotary
from worldkv.window.buffer import Slot
from worldkv.window.cut import kept_frames
from worldkv.window.positions import WindowChunks, first_frames

_serial = itertools.count()


@dataclass(frozen=True, eq=False)
class LiveChunk:
    """A chunk inside the window, uncompressed."""

    index: int
    k_LTHD: Tensor
    """Before rotation."""
    v_LTHD: Tensor


@dataclass
class Retrieved:
    """What retrieval brought back for one chunk; pinned in memory until it is let go."""

    chunks: tuple[KVChunk, ...] = ()
    """Oldest first."""
    missed: int = 0
    """Wanted, but no tier could give them."""
    indices: tuple[int, ...] = ()
    """Of the chunks; they stay known."""
    pins: ExitStack = field(default_factory=ExitStack)

    def let_go(self) -> None:
        """Once the window is assembled: memory may move the chunks again, and use their bytes for others."""
        self.chunks = ()
        self.pins.close()


@dataclass
class Session:
    """Mutable; one thread. `open_session` makes a fresh one, `worldkv.snapshot.restore` one from a snapshot."""

    model: WorldModel
    memory: ChunkMemory
    policy: MemoryPolicy
    trajectory: Trajectory
    seed: int
    rollout: int
    tenant: str
    state: ModelState
    chunk: int = 0
    """Index of the chunk to be made next."""
    live: list[LiveChunk] = field(default_factory=list)
    """The window's own chunks, oldest first: sink, then recent."""
    stored: ChunkList = field(default_factory=ChunkList)
    """Chunk index -> id in memory; shared with forks."""
    index: PoseIndex = field(default_factory=lambda: PoseIndex(parity=False))
    """From where each stored chunk was seen."""
    stored_bytes: int = 0
    """Bytes of all chunks this session has stored."""
    expected: Expected | None = None
    """Chunks that `look_ahead` has memory bring near; not part of a snapshot or fork."""
    serial: int = field(default_factory=lambda: next(_serial))
    """Names this session's rows in window buffers; unique within the process."""

    @property
    def video_frames_per_chunk(self) -> int:
        """Pictures generated together."""
        return self.model.geometry.chunk_latent_frames * self.model.video_frames_per_latent

    @property
    def chunks(self) -> int:
        """Chunks in the whole trajectory."""
        return len(self.trajectory) // self.video_frames_per_chunk

    @property
    def finished(self) -> bool:
        """Whether the trajectory is used up."""
        return self.chunk >= self.chunks

    @property
    def live_bytes(self) -> int:
        """Bytes of the KV inside the window."""
        return sum(live.k_LTHD.nbytes + live.v_LTHD.nbytes for live in self.live)

    def view(self) -> View:
        """What the camera does over the next chunk."""
        return chunk_view(self.trajectory, self.chunk, self.video_frames_per_chunk)

    def retrieve(self) -> Retrieved:
        """Rank the stored chunks for the next view, fetch the best and pin them; empty when the policy does not.

        Over several ranks each fetches its part of the same chunks; a chunk that one of them lacks is a miss for all.
        """
        chosen = sorted(self._ranked(self.chunk))
        ids = [self.stored[chunk] for chunk in chosen]
        found = self.memory.fetch(ids, tenant=self.tenant)
        self._expect_nothing()
        held = [self.memory.holds(chunk_id, tenant=self.tenant) for chunk_id in ids]
        flags = agreed(self.model.ranks, [*(one is not None for one in found), *held], self.model.device)
        for chunk, everywhere in zip(chosen, flags[len(found) :], strict=True):
            # Gone for good: it may not take up a place in every retrieval to come.
            if not everywhere:
                self.index.forget(chunk)
        hits = tuple(chunk for chunk, everywhere in zip(found, flags, strict=False) if everywhere and chunk is not None)
        retrieved = Retrieved(hits, len(found) - len(hits), tuple(chunk.index for chunk in hits))
        retrieved.pins.enter_context(self.memory.pin([chunk.id for chunk in hits], tenant=self.tenant))
        return retrieved

    def look_ahead(self) -> None:
        """Have memory bring near what the chunk after the next will need: while the next one is made, copies are free.

        For a trajectory that is known. Nothing happens where there is one tier, or where the policy retrieves nothing.
        """
        if len(self.memory.tiers) > 1 and self.policy.remembers and self.chunk + 1 < self.chunks:
            wanted = [self.stored[chunk] for chunk in self._ranked(self.chunk + 1)]
            self.expect(wanted)

    def expect(self, chunk_ids: Sequence[str]) -> None:
        """Have memory bring these chunks near, in place of those that were expected before."""
        before, self.expected = self.expected, self.memory.prefetch(chunk_ids, tenant=self.tenant)
        if before is not None:
            before.let_go()

    def _expect_nothing(self) -> None:
        if self.expected is not None:
            self.expected.let_go()
            self.expected = None

    def _ranked(self, chunk: int) -> list[int]:
        """The stored chunks that the policy retrieves for `chunk`, best first."""
        policy = self.policy
        allowed = retrieval.candidates(chunk, policy.sink_chunks, policy.recent_chunks or 0, parity=policy.parity)
        intrinsics_4 = chunk_view(self.trajectory, chunk, self.video_frames_per_chunk).intrinsics_F4[0]
        query = Query(self.latent_poses(chunk), intrinsics_4, chunk, self.seed, self.rollout)
        return choose(policy.ranking, self.index, allowed, query, policy.retrieved_chunks, sight=policy.sight)

    def latent_poses(self, index: int) -> NDArray[np.float32]:
        """Poses of a chunk's latent frames [F, 4, 4]."""
        view = chunk_view(self.trajectory, index, self.video_frames_per_chunk)
        return view.c2w_F44[:: self.model.video_frames_per_latent]

    def slots(self, retrieved: Retrieved) -> tuple[list[Slot], int]:
        """The window for the next chunk in buffer order, and the latent frame at which that chunk stands."""
        geometry, policy = self.model.geometry, self.policy
        sink = [live for live in self.live if live.index < policy.sink_chunks]
        recent = self.live[len(sink) :]
        chunks = WindowChunks(
            sink=tuple(live.index for live in sink),
            retrieved=tuple(chunk.index for chunk in retrieved.chunks),
            recent=tuple(live.index for live in recent),
            current=self.chunk,
        )
        at = first_frames(
            chunks,
            chunk_latent_frames=geometry.chunk_latent_frames,
            mode=policy.positions,
            trained_latent_frames=geometry.trained_latent_frames,
        )
        frames = kept_frames(
            len(self.live), geometry.chunk_latent_frames, policy.live_latent_frames, policy.sink_latent_frames
        )
        row = [self._live_slot(*one) for one in zip(sink, at.sink, frames[: len(sink)], strict=True) if one[2]]
        row += [self._stored_slot(*pair) for pair in zip(retrieved.chunks, at.retrieved, strict=True)]
        row += [self._live_slot(*one) for one in zip(recent, at.recent, frames[len(sink) :], strict=True) if one[2]]
        return row, at.current

    def _live_slot(self, live: LiveChunk, first_frame: int, frames: tuple[int, ...]) -> Slot:
        if len(frames) < self.model.geometry.chunk_latent_frames:
            return self._cut_slot(live, first_frame, frames)

        def load(k_LTHD: Tensor, v_LTHD: Tensor) -> None:
            k_LTHD.copy_(live.k_LTHD)
            v_LTHD.copy_(live.v_LTHD)

        return Slot((self.serial, "live", live.index), first_frame, live.k_LTHD.shape[1], load)

    def _cut_slot(self, live: LiveChunk, first_frame: int, frames: tuple[int, ...]) -> Slot:
        """Some latent frames of a live chunk."""
        g = self.model.geometry
        ids = rotary.grid_token_ids(g.chunk_latent_frames, g.rows, g.columns)
        kept = torch.isin(ids[:, 0], torch.tensor(frames)).nonzero()[:, 0]
        place = kept.to(live.k_LTHD.device)

        def load(k_LTHD: Tensor, v_LTHD: Tensor) -> None:
            k_LTHD.copy_(live.k_LTHD[:, place])
            v_LTHD.copy_(live.v_LTHD[:, place])

        return Slot((self.serial, "live", live.index, frames), first_frame, len(kept), load, ids[kept])

    def _stored_slot(self, chunk: KVChunk, first_frame: int) -> Slot:
        ids = chunk.token_ids_T3
        return Slot(
            (self.serial, chunk.id),
            first_frame,
            chunk.tokens,
            chunk.load,
            None if ids is None else torch.from_numpy(ids),
        )

    def push(self, k_LTHD: Tensor, v_LTHD: Tensor) -> LiveChunk | None:
        """Take the finished chunk's KV into the window; returns the chunk that leaves the window for it, if any."""
        self.live.append(LiveChunk(self.chunk, k_LTHD, v_LTHD))
        self.chunk += 1
        recent = self.policy.recent_chunks
        in_sink = sum(live.index < self.policy.sink_chunks for live in self.live)
        if recent is None or len(self.live) - in_sink <= recent:
            return None
        return self.live.pop(in_sink)

    def remember(self, live: LiveChunk) -> None:
        """Compress an evicted chunk (prune, then encode) and admit it to memory."""
        pruning, geometry = self.policy.pruning, self.model.geometry
        k, v, ids = live.k_LTHD, live.v_LTHD, None
        if pruning is not None:
            kept = kept_tokens(k, geometry.chunk_latent_frames, pruning, partial(total, self.model.ranks))
            k, v = gather(k, kept), gather(v, kept)
            grid = rotary.grid_token_ids(geometry.chunk_latent_frames, geometry.rows, geometry.columns)
            ids = grid[kept.cpu()].numpy().astype(np.int16)
        poses_F44 = self.latent_poses(live.index)
        chunk = make_chunk(
            tenant=self.tenant,
            epoch=self.model.epoch,
            index=live.index,
            c2w_F44=poses_F44,
            encoded=CODECS[self.policy.codec].encode(k, v),
            token_ids_T3=ids,
        )
        self.stored.append(live.index, self.memory.admit(chunk, group=self.serial, tenant=self.tenant))
        self.index.add(live.index, poses_F44)
        self.stored_bytes += chunk.nbytes

    def fork(self, rollout: int) -> Session:
        """A second session that shares all chunks so far and goes on with noise of its own `rollout` number.

        Copies no chunk and no list of chunks. Raises ChunkNotFound once this session was closed.
        """
        state = ModelState({name: tensor.clone() for name, tensor in self.state.tensors.items()})
        return replace(
            self,
            rollout=rollout,
            state=state,
            live=list(self.live),
            stored=self.stored.fork(),
            index=self.index.copy(),
            expected=None,
            serial=next(_serial),
        )

    def close(self) -> None:
        """Let go of the stored chunks; the session cannot go on afterwards."""
        self._expect_nothing()
        self.memory.release(self.stored.let_go(), tenant=self.tenant)
        self.live.clear()


def open_session(
    model: WorldModel,
    memory: ChunkMemory,
    policy: MemoryPolicy,
    trajectory: Trajectory,
    *,
    seed: int = 0,
    rollout: int = 0,
    tenant: str = "default",
    context: Mapping[str, Tensor] | None = None,
) -> Session:
    """A session at the start of its trajectory; `context` is what the model makes it from, prompt and image say.

    Raises TrajectoryError when the trajectory is shorter than one chunk, and ModelError for a memory of other weights.
    """
    if memory.epoch != model.epoch:
        raise ModelError(
            f"model {model.name} of epoch {model.epoch!r}: the memory is of epoch {memory.epoch!r}; give each model a "
            f"memory of its own, or call set_epoch when the weights change"
        )
    per_chunk = model.geometry.chunk_latent_frames * model.video_frames_per_latent
    if len(trajectory) < per_chunk:
        raise TrajectoryError(
            f"{trajectory.name}: {len(trajectory)} poses, but one chunk of {model.name} takes {per_chunk}"
        )
    state = model.open(chunk_view(trajectory, 0, per_chunk), context or {})
    index = PoseIndex(parity=policy.parity)
    return Session(model, memory, policy, trajectory, seed, rollout, tenant, state, index=index)


def chunk_view(trajectory: Trajectory, chunk: int, video_frames: int) -> View:
    """The camera over chunk `chunk` of a trajectory cut into `video_frames` each."""
    part = slice(chunk * video_frames, (chunk + 1) * video_frames)
    actions = trajectory.actions
    return View(
        c2w_F44=trajectory.c2w_F44[part].astype(np.float32),
        intrinsics_F4=trajectory.intrinsics_F4[part].astype(np.float32),
        actions_FA=None if actions is None else to_key_columns(actions[part], ACTION_COLUMNS),
    )
