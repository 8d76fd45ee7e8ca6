"""A live session as bytes, and back: it goes on as if it had never stopped.

    magic 8 | xxh3-128 of all that follows 16 | header length 8 | header (msgpack) | raw tensors | chunks

- Complete: policy, trajectory, counters, live KV, model state, and every stored chunk with its payload.
- Restored on the same device type, in a batch of the same size, it continues bit for bit, in any memory that
  has room. Chunks come coldest first, so that tiers of the same sizes later demote and drop the same ones.
- A chunk that the memory had dropped stays dropped: its next lookup is a miss, evicted. So is one of which the snapshot
  has the id alone, unless a shared tier has it.
- Whatever is damaged is refused before the memory is touched. Nothing here is ever unpickled.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

import msgpack
import numpy as np
import torch
import xxhash
from torch import Tensor

from worldkv.camera import Action, Trajectory
from worldkv.errors import CheckpointError, ChunkCorrupt
from worldkv.memory.chunk import KVChunk
from worldkv.memory.chunk_list import ChunkList
from worldkv.memory.compression import Pruning
from worldkv.memory.index import PoseIndex
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.models.base import ModelState, WorldModel
from worldkv.session import LiveChunk, Session

MAGIC = b"WKVSESS\n"
VERSION = 2
DIGEST_BYTES = 16
LENGTH_BYTES = 8
PLAIN_FIELDS = ("seed", "rollout", "tenant", "chunk", "stored_bytes")


def snapshot(session: Session, named_only: Collection[str] = ()) -> bytes:
    """The whole session; it may go on, and nothing in it or its memory changes. Waits for the device.

    Of the chunks `named_only` it holds the ids and no bytes: whoever restores it finds them in a tier that is shared.
    """
    tensors = {f"state/{name}": tensor for name, tensor in session.state.tensors.items()}
    for live in session.live:
        tensors |= {f"k/{live.index}": live.k_LTHD, f"v/{live.index}": live.v_LTHD}
    carried = [chunk_id for chunk_id in session.stored.values() if chunk_id not in named_only]
    held = session.memory.held(carried, tenant=session.tenant)
    pieces = [*map(_tensor_bytes, tensors.values()), *(chunk.to_bytes() for chunk in held.values())]
    header = {
        "version": VERSION,
        "made_by": _identity(session.model),
        "session": _session_fields(session),
        "trajectory": _trajectory_fields(session.trajectory),
        "policy": asdict(session.policy),
        "tensors": [_tensor_fields(name, tensor) for name, tensor in tensors.items()],
        "chunk_ids": list(held),
        "piece_bytes": [len(piece) for piece in pieces],
    }
    packed = msgpack.packb(header)
    body = b"".join([len(packed).to_bytes(LENGTH_BYTES, "little"), packed, *pieces])
    return MAGIC + xxhash.xxh3_128_digest(body) + body


def restore(data: bytes, model: WorldModel, memory: ChunkMemory) -> Session:
    """The session of a snapshot, its chunks admitted to `memory` with one reference each.

    Raises ChunkCorrupt for bytes that are damaged or no snapshot, and CheckpointError for another format
    version, model, weights or device type; `memory` is then as it was.
    """
    header, body = _checked(data)
    _check_identity(header["made_by"], model, memory)
    try:
        pieces = _split(body, header["piece_bytes"])
        fields = header["tensors"]
        tensors = {one["name"]: _tensor(one, piece, model.device) for one, piece in zip(fields, pieces, strict=False)}
        chunks = [KVChunk.from_bytes(piece) for piece in pieces[len(fields) :]]
        by_id = dict(zip(header["chunk_ids"], chunks, strict=True))
        session = _session(header, tensors, model, memory)
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as fault:
        raise ChunkCorrupt(f"a session snapshot of {len(data)} bytes cannot be read: {fault!r}") from fault
    _check_chunks(chunks, session)
    for chunk_id, chunk in by_id.items():
        memory.admit(chunk, group=session.serial, known_as=chunk_id, tenant=session.tenant)
    memory.admit_dropped(set(session.stored.values()) - by_id.keys(), tenant=session.tenant)
    return session


def _checked(data: bytes) -> tuple[dict[str, Any], memoryview]:
    """Header and the bytes behind it, once magic, checksum and version are right."""
    if data[: len(MAGIC)] != MAGIC:
        raise ChunkCorrupt(f"{len(data)} bytes that start with {data[:8]!r} are no session snapshot")
    start = len(MAGIC) + DIGEST_BYTES
    expected, body = data[len(MAGIC) : start], memoryview(data)[start:]
    found = xxhash.xxh3_128_digest(body)
    if found != expected:
        raise ChunkCorrupt(
            f"a session snapshot of {len(data)} bytes is truncated or damaged: "
            f"checksum {expected.hex()} expected, {found.hex()} found"
        )
    stop = LENGTH_BYTES + int.from_bytes(body[:LENGTH_BYTES], "little")
    header = msgpack.unpackb(body[LENGTH_BYTES:stop])
    if header["version"] != VERSION:
        raise CheckpointError(
            f"a session snapshot of format version {header['version']}: only version {VERSION} can be read"
        )
    return header, body[stop:]


def _identity(model: WorldModel) -> dict[str, Any]:
    """What must be the same for a session to go on."""
    return {
        "model": model.name,
        "epoch": model.epoch,
        "device": model.device.type,
        "geometry": asdict(model.geometry),
    }


def _check_identity(made_by: dict[str, Any], model: WorldModel, memory: ChunkMemory) -> None:
    here = _identity(model)
    faults = [f"{key} {made_by.get(key)} is here {here[key]}" for key in here if made_by.get(key) != here[key]]
    if memory.epoch != model.epoch:
        faults.append(f"epoch {model.epoch} is in the memory {memory.epoch}")
    if faults:
        raise CheckpointError(f"a session snapshot cannot continue: {'; '.join(faults)}")


def _check_chunks(chunks: Sequence[KVChunk], session: Session) -> None:
    expected = (session.tenant, session.model.epoch)
    for chunk in chunks:
        if (found := (chunk.tenant, chunk.epoch)) != expected:
            raise CheckpointError(
                f"a session snapshot cannot continue: tenant and epoch {expected} expected of its chunk {chunk.index}, "
                f"{found} found"
            )


def _session_fields(session: Session) -> dict[str, Any]:
    plain = {name: getattr(session, name) for name in PLAIN_FIELDS}
    live = [live.index for live in session.live]
    stored = list(session.stored.items())
    return {"plain": plain, "live": live, "stored": stored, "indexed": session.index.chunks()}


def _session(header: dict[str, Any], tensors: dict[str, Tensor], model: WorldModel, memory: ChunkMemory) -> Session:
    fields, pruning = header["session"], header["policy"]["pruning"]
    pruning = None if pruning is None else Pruning(**pruning)
    policy = MemoryPolicy(**{**header["policy"], "pruning": pruning})
    state = {name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")}
    session = Session(
        model=model,
        memory=memory,
        policy=policy,
        trajectory=_trajectory(header["trajectory"]),
        state=ModelState(state),
        live=[LiveChunk(index, tensors[f"k/{index}"], tensors[f"v/{index}"]) for index in fields["live"]],
        stored=ChunkList(fields["stored"]),
        index=PoseIndex(parity=policy.parity),
        **fields["plain"],
    )
    for index in fields["indexed"]:
        session.index.add(index, session.latent_poses(index))
    return session


def _trajectory_fields(trajectory: Trajectory) -> dict[str, Any]:
    actions = trajectory.actions
    return {
        "name": trajectory.name,
        "c2w": trajectory.c2w_F44.tobytes(),
        "intrinsics": trajectory.intrinsics_F4.tobytes(),
        "actions": None if actions is None else [action.value for action in actions],
    }


def _trajectory(fields: dict[str, Any]) -> Trajectory:
    actions = fields["actions"]
    return Trajectory(
        c2w_F44=np.frombuffer(fields["c2w"]).reshape(-1, 4, 4),
        intrinsics_F4=np.frombuffer(fields["intrinsics"]).reshape(-1, 4),
        actions=None if actions is None else tuple(map(Action, actions)),
        name=fields["name"],
    )


def _tensor_fields(name: str, tensor: Tensor) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"name": name, "dtype": dtype, "shape": list(tensor.shape), "on_cpu": tensor.device.type == "cpu"}


def _tensor_bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(fields: dict[str, Any], data: memoryview, device: torch.device) -> Tensor:
    flat = torch.empty(len(data), dtype=torch.uint8)
    flat.numpy()[:] = np.frombuffer(data, np.uint8)
    tensor = flat.view(getattr(torch, fields["dtype"])).reshape(fields["shape"])
    return tensor if fields["on_cpu"] else tensor.to(device)


def _split(body: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    stops = np.cumsum([0, *sizes]).tolist()
    if stops[-1] != len(body):
        raise ValueError(f"{stops[-1]} bytes of tensors and chunks announced, {len(body)} found")
    return [body[start:stop] for start, stop in itertools.pairwise(stops)]
