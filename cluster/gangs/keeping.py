"""What a world that a gang plays keeps on durable storage, in its job's folder.

    ROOT/<job>/pictures/000012             pictures of a chunk, and which chunks were brought back for it
    ROOT/<job>/checkpoints/000016/rank-1   that rank's session after 16 chunks
    ROOT/<job>/checkpoint.json             the newest that every rank has written

All of it can be lost, and is made again to the same bytes.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.parcel import pack, unpack
from cluster.storage import Storage
from worldkv.errors import JobError
from worldkv.rollout import ChunkRecord

PICTURES, CHECKPOINTS, NEWEST = "pictures", "checkpoints", "checkpoint.json"


@dataclass(frozen=True)
class Shown:
    """What one chunk came out as."""

    frames_FHWC: NDArray[np.uint8]
    retrieved: int
    """Chunks brought back for it."""


@dataclass
class Keeping:
    """One job's part of the storage. Every method blocks, and raises OutputError where storage refuses."""

    url: str
    """Of the folder of all jobs."""
    job: str
    _storage: Storage = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._storage = Storage(f"{self.url}/{self.job}")

    def put_shown(self, record: ChunkRecord) -> None:
        """Keep a chunk's pictures; those of an earlier try are the same."""
        data = pack({"retrieved": len(record.retrieved)}, {"frames_FHWC": record.frames_FHWC})
        self._storage.put(f"{PICTURES}/{record.chunk:06d}", data)

    def shown(self, chunk: int) -> Shown | None:
        """None where the chunk was not made, or what is there is damaged."""
        data = self._storage.get(f"{PICTURES}/{chunk:06d}")
        if data is None:
            return None
        try:
            facts, arrays = unpack(data)
        except JobError:
            return None
        return Shown(arrays["frames_FHWC"], facts["retrieved"])

    def put_session(self, chunk: int, rank: int, data: bytes) -> None:
        """Keep a rank's session; it counts once `settle` says that all ranks have done so."""
        self._storage.put(f"{CHECKPOINTS}/{chunk:06d}/rank-{rank}", data)

    def session(self, chunk: int, rank: int) -> bytes | None:
        """None where there is none."""
        return self._storage.get(f"{CHECKPOINTS}/{chunk:06d}/rank-{rank}")

    def settle(self, chunk: int) -> None:
        """The sessions after so many chunks are there, of all ranks; earlier ones go."""
        self._storage.put(NEWEST, json.dumps({"chunk": chunk}).encode() + b"\n")
        for name in self._storage.names(CHECKPOINTS):
            if name != f"{chunk:06d}":
                self._storage.remove(f"{CHECKPOINTS}/{name}")

    def settled(self) -> int | None:
        """The chunk that the newest checkpoint goes on with; None where there is none, or it is damaged."""
        data = self._storage.get(NEWEST)
        with suppress(ValueError, LookupError, TypeError):
            return None if data is None else int(json.loads(data)["chunk"])
        return None

    def unsettle(self) -> None:
        """Go on from no checkpoint any more."""
        self._storage.remove(NEWEST)
        self._storage.remove(CHECKPOINTS)

    def clear(self) -> None:
        """Forget all of it: the video is there."""
        self.unsettle()
        self._storage.remove(PICTURES)
