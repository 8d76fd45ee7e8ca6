"""A simulated session: its trace, what its windows ask for, where its chunks lie.

Shapes: C chunks of the whole session, N of them past ones, F video frames.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from scheduler.habits import Counts, Habits
from scheduler.simulation.links import Move
from scheduler.snapshot import Bools, ChunkTable, Floats, Ints, SessionView
from scheduler.trace import SessionTrace
from worldkv.camera.nearness import mean_pose, mean_pose_distances
from worldkv.camera.overlaps import overlapping

LEARNS_FRAMES = 1
# The last frame before those learned from is needed to tell the first motion.


@dataclass(eq=False)
class Live:
    """Mutable; the engine's."""

    number: int
    trace: SessionTrace
    habits: Habits
    pose_C44: Floats
    wanted: list[list[int]]
    """Per chunk: the past chunks that its window retrieves."""
    nbytes_C: Ints
    tier_C: Ints
    committed_C: Bools
    arrives_C: Floats
    chunk: int = 0
    """To be made next, or under way."""
    worker: int = -1
    gang: tuple[int, ...] = ()
    due_seconds: float = 0.0
    """When its next window is assembled, or was to be."""
    waits_for: set[int] = field(default_factory=set)
    moves: dict[int, Move] = field(default_factory=dict)
    """On their way to the device."""
    prefetched: set[int] = field(default_factory=set)
    """Brought to the device by prefetch and not used yet."""
    staged: set[int] = field(default_factory=set)
    """Brought nearer by prefetch, not to the device, and not used yet."""
    uses: dict[int, list[int]] = field(default_factory=dict)
    """Past chunk -> chunks whose windows retrieve it, ascending."""
    suspend: bool = False
    """To give up its workers at the next chunk boundary."""
    placed_seconds: float = 0.0
    ready_seconds: float = 0.0
    """Since when it waits for a worker."""

    @property
    def scripted(self) -> bool:
        """Whether its whole trajectory is known."""
        return self.trace.scripted

    def view(self) -> SessionView:
        """What the scheduler may know while the present chunk is made: all poses up to its end, none beyond."""
        trace, past = self.trace, self.chunk + 1
        frames = past * trace.frames_per_chunk
        return SessionView(
            session=trace.session,
            tenant=trace.tenant,
            chunk=past,
            assembles_seconds=self.due_seconds,
            chunk_seconds=trace.chunk_seconds,
            table=ChunkTable(
                np.arange(past),
                self.pose_C44[:past],
                self.nbytes_C[:past],
                self.tier_C[:past].copy(),
                self.committed_C[:past].copy(),
                self.arrives_C[:past].copy(),
            ),
            recent_F44=trace.c2w_F44[frames - trace.frames_per_chunk : frames],
            frames_per_chunk=trace.frames_per_chunk,
            latent_stride=trace.latent_stride,
            script_F44=trace.c2w_F44[frames:] if trace.scripted else None,
            recall=trace.recall,
        )

    def learn(self) -> None:
        """Take in the poses of the chunk under way."""
        frames = self.chunk * self.trace.frames_per_chunk
        start = max(0, frames - LEARNS_FRAMES)
        self.habits.learn(self.trace.c2w_F44[start : frames + self.trace.frames_per_chunk])

    def next_use(self, chunk: int) -> int:
        """The next window after the present one that retrieves the chunk; beyond the last where none does."""
        uses = self.uses.get(chunk, [])
        place = bisect_right(uses, self.chunk)
        return uses[place] if place < len(uses) else self.trace.chunks


def make_live(number: int, trace: SessionTrace, tenant: Counts) -> Live:
    """A session before its first chunk; `tenant` is what was learned of its tenant's others."""
    chunks = trace.chunks
    latent = trace.c2w_F44[: chunks * trace.frames_per_chunk].reshape(chunks, -1, 4, 4)[:, :: trace.latent_stride]
    pose_C44 = mean_pose(latent)
    wanted = _retrieved(pose_C44, trace)
    uses: dict[int, list[int]] = {}
    for chunk, past in enumerate(wanted):
        for one in past:
            uses.setdefault(one, []).append(chunk)
    return Live(
        number=number,
        trace=trace,
        habits=Habits(tenant),
        pose_C44=pose_C44,
        wanted=wanted,
        nbytes_C=np.full(chunks, trace.chunk_bytes),
        tier_C=np.full(chunks, -1),
        committed_C=np.zeros(chunks, bool),
        arrives_C=np.full(chunks, np.inf),
        uses=uses,
    )


def _retrieved(pose_C44: Floats, trace: SessionTrace) -> list[list[int]]:
    """What each window of the session retrieves, by the very ranking of retrieval."""
    recall, index_C = trace.recall, np.arange(trace.chunks)
    if not recall.retrieved_chunks:
        return [[] for _ in index_C]
    if recall.frustum is not None and recall.ranking == "overlap":
        stop_C = np.maximum(index_C - recall.recent_chunks, recall.sink_chunks).tolist()
        past = [pose_C44[recall.sink_chunks : stop] for stop in stop_C]
        chosen = [
            overlapping(one_n44, query_44, recall.frustum, recall.retrieved_chunks)[0]
            for one_n44, query_44 in zip(past, pose_C44, strict=True)
        ]
        return [(row_n + recall.sink_chunks).tolist() for row_n in chosen]
    allowed_CC = (index_C >= recall.sink_chunks) & (index_C < (index_C - recall.recent_chunks)[:, None])
    distance_CC = mean_pose_distances(pose_C44, pose_C44, allowed_CC, by_yaw=recall.ranking == "yaw")
    order_CC = trace.chunks - 1 - np.argsort(distance_CC[:, ::-1], axis=1, kind="stable")[:, : recall.retrieved_chunks]
    found = np.isfinite(np.take_along_axis(distance_CC, order_CC, axis=1))
    return [row[known].tolist() for row, known in zip(order_CC, found, strict=True)]
