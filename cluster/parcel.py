"""Arrays and plain facts as bytes, and back: how batches lie on durable storage and cross from worker to driver.

    magic 8 | xxh3-128 of all that follows 16 | header length 8 | header (msgpack) | raw arrays

Nothing here is ever unpickled; what is damaged raises JobError, and whoever reads makes it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import msgpack
import numpy as np
import xxhash
from numpy.typing import NDArray

from worldkv.dataset import Episode
from worldkv.errors import JobError
from worldkv.rollout import ChunkRecord, StageSeconds
from worldkv.runs.batch import Took

MAGIC = b"WKVJOB1\n"
DIGEST_BYTES, LENGTH_BYTES = 16, 8

Arrays = Mapping[str, NDArray[Any]]
EPISODE_ARRAYS = ("frames_FHWC", "c2w_F44", "intrinsics_F4", "action_FA")
RECORD_FACTS = ("chunk", "generated", "missed", "window_tokens", "live_bytes", "stored_bytes")


def pack(facts: Mapping[str, Any], arrays: Arrays) -> bytes:
    """`facts` may hold what msgpack knows."""
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    fields = [(name, array.dtype.str, array.shape) for name, array in whole.items()]
    header = msgpack.packb({"facts": facts, "arrays": fields})
    pieces = [array.reshape(-1).view(np.uint8).data for array in whole.values()]
    body = b"".join([len(header).to_bytes(LENGTH_BYTES, "little"), header, *pieces])
    return MAGIC + xxhash.xxh3_128_digest(body) + body


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The facts, and the arrays as views of `data`. Raises JobError for bytes that are damaged or something else."""
    start = len(MAGIC) + DIGEST_BYTES
    body = memoryview(data)[start:]
    if data[: len(MAGIC)] != MAGIC or data[len(MAGIC) : start] != xxhash.xxh3_128_digest(body):
        raise JobError(f"{len(data)} bytes that start with {data[:8]!r} are damaged, or no part of a job")
    stop = LENGTH_BYTES + int.from_bytes(body[:LENGTH_BYTES], "little")
    header = msgpack.unpackb(body[LENGTH_BYTES:stop])
    fields = [(name, np.dtype(kind), tuple(shape)) for name, kind, shape in header["arrays"]]
    sizes = [kind.itemsize * int(np.prod(shape)) for _, kind, shape in fields]
    bounds = pairwise(accumulate(sizes, initial=stop))
    arrays = {
        name: np.frombuffer(body[begin:end], kind).reshape(shape)
        for (name, kind, shape), (begin, end) in zip(fields, bounds, strict=True)
    }
    return header["facts"], arrays


@dataclass(frozen=True)
class Finished:
    """A batch that was rolled out to its end."""

    epoch: str
    """Of the weights that made it."""
    episodes: tuple[Episode, ...]
    took: Took
    trace: str = ""
    """Lines of a scheduler's trace; '' where none is recorded."""


def pack_finished(finished: Finished) -> bytes:
    """As it waits on storage for its turn to be committed."""
    facts: list[dict[str, Any]] = []
    arrays: dict[str, NDArray[Any]] = {}
    for number, episode in enumerate(finished.episodes):
        plain = ("action_names", "task", "fps", "retrieved", "metadata")
        names = {"videos": list(episode.videos), "scalars": list(episode.scalars)}
        facts.append({name: getattr(episode, name) for name in plain} | names)
        arrays |= {f"{number}/{name}": getattr(episode, name) for name in EPISODE_ARRAYS}
        arrays |= {f"{number}/videos/{name}": frames for name, frames in episode.videos.items()}
        arrays |= {f"{number}/scalars/{name}": values for name, values in episode.scalars.items()}
    made = finished.took
    took = {"made": made.made, "seconds": made.seconds, "stages": made.clock.seconds}
    return pack({"epoch": finished.epoch, "episodes": facts, "took": took, "trace": finished.trace}, arrays)


def unpack_finished(data: bytes) -> Finished:
    """Raises JobError as `unpack`."""
    facts, arrays = unpack(data)
    took = facts["took"]
    return Finished(
        epoch=facts["epoch"],
        episodes=tuple(_episode(number, one, arrays) for number, one in enumerate(facts["episodes"])),
        took=Took(took["made"], took["seconds"], StageSeconds(took["stages"])),
        trace=facts.get("trace", ""),  # a job of an earlier version has none
    )


def _episode(number: int, facts: dict[str, Any], arrays: Arrays) -> Episode:
    main: dict[str, Any] = {name: arrays[f"{number}/{name}"] for name in EPISODE_ARRAYS}
    return Episode(
        **main,
        action_names=tuple(facts["action_names"]),
        task=facts["task"],
        fps=facts["fps"],
        retrieved=tuple(map(tuple, facts["retrieved"])),
        videos={name: arrays[f"{number}/videos/{name}"] for name in facts["videos"]},
        scalars={name: arrays[f"{number}/scalars/{name}"] for name in facts["scalars"]},
        metadata=facts["metadata"],
    )


@dataclass(frozen=True)
class Checkpoint:
    """A batch between two chunks."""

    epoch: str
    sessions: tuple[bytes, ...]
    """Snapshots, in the order of the worlds."""
    records: tuple[tuple[ChunkRecord, ...], ...]
    """Of each chunk so far, in the order of the worlds."""


def pack_checkpoint(epoch: str, sessions: Sequence[bytes], records: Sequence[Sequence[ChunkRecord]]) -> bytes:
    """The arguments are those of `Checkpoint`."""
    facts = [[_record_facts(record) for record in chunk] for chunk in records]
    arrays: dict[str, NDArray[Any]] = {f"session/{b}": np.frombuffer(data, np.uint8) for b, data in enumerate(sessions)}
    for i, chunk in enumerate(records):
        arrays |= {f"frames/{i}/{b}": record.frames_FHWC for b, record in enumerate(chunk)}
    return pack({"epoch": epoch, "records": facts, "sessions": len(sessions)}, arrays)


def unpack_checkpoint(data: bytes) -> Checkpoint:
    """Raises JobError as `unpack`."""
    facts, arrays = unpack(data)
    records = tuple(
        tuple(
            ChunkRecord(
                **{name: one[name] for name in RECORD_FACTS},
                retrieved=tuple(one["retrieved"]),
                frames_FHWC=arrays[f"frames/{i}/{b}"],
            )
            for b, one in enumerate(chunk)
        )
        for i, chunk in enumerate(facts["records"])
    )
    sessions = tuple(arrays[f"session/{b}"].tobytes() for b in range(facts["sessions"]))
    return Checkpoint(facts["epoch"], sessions, records)


def _record_facts(record: ChunkRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in (*RECORD_FACTS, "retrieved")}
