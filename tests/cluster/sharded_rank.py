"""What each rank of a sharded session does in the tests, and what one process does alone.

    python sharded_rank.py RANK SIZE FOLDER cpu

Results are dictionaries of tensors, written as one file per rank. Shapes: L layers, T tokens, H heads, D head dim.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cluster.sharding import Load, Seat, join, leave, open_rank
from worldkv.camera import LINGBOT_INTRINSICS, Action, Trajectory, integrate
from worldkv.camera.actions import WORLD_MODEL_MOTION
from worldkv.errors import CheckpointError, ModelError
from worldkv.memory.policy import MemoryPolicy, parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.published import named, random_model
from worldkv.models.ranks import ALONE, Ranks
from worldkv.models.wan.model import WanModel
from worldkv.models.wan.shape import TextShape
from worldkv.rollout import ChunkRecord, rollout
from worldkv.session import Session, open_session
from worldkv.snapshot import restore, snapshot

MODELS = ("lingbot-world-fast", "matrix-game-2-universal")
SMALL = "recent_chunks=1/retrieved_chunks=2"
POLICIES = {
    "full": "full",
    "sliding": "sliding/recent_chunks=1",
    "worldkv": f"worldkv/{SMALL}/codec=fp32",
    "int4": f"worldkv/{SMALL}",
    "centroid": f"worldkv/{SMALL}/codec=fp32/keep=0.5",
    "nearest": f"worldkv/{SMALL}/codec=fp32/keep=0.5/rule=nearest",
}
SHOWN = "worldkv"
"""The policy under which pictures are made."""
CHUNKS = 8
VIDEO_FRAMES = 12
"""Per chunk, of both models."""
ROOM = 2**28
TIMEOUT_SECONDS = 60
SILENT_SECONDS = 4


@dataclass(frozen=True)
class Step:
    """One chunk of one session."""

    latents: Tensor
    record: ChunkRecord


def there_and_back() -> Trajectory:
    """Half of the chunks to the right, half to the left: old chunks are seen again."""
    way = CHUNKS // 2 * VIDEO_FRAMES
    actions = (Action.R,) * way + (Action.L,) * way
    intrinsics = np.tile(LINGBOT_INTRINSICS, (len(actions), 1))
    return Trajectory(integrate(actions, WORLD_MODEL_MOTION), intrinsics, actions, "there and back")


def loader(name: str, device: torch.device) -> Load:
    return partial(random_model, named(name), 0, size="tiny", device=device, dtype=torch.float32)


def context_of(model: WanModel) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = model.network.shape.context
    name = "prompt" if isinstance(shape, TextShape) else "image_tokens"
    image = torch.randn(model.latent_shape[0], 3, *model.latent_shape[1:], generator=draw)
    return {name: torch.randn(8, shape.width, generator=draw), "image_latents": image}


def memory_of(model: WanModel, room: int = ROOM) -> ChunkMemory:
    return ChunkMemory([ResidentTier("device", model.device, room, verifies=False)], model.epoch)


def session_of(model: WanModel, policy: MemoryPolicy, room: int = ROOM) -> Session:
    return open_session(model, memory_of(model, room), policy, there_and_back(), context=context_of(model), seed=5)


def steps(session: Session, *, pictures: bool = False) -> Iterator[Step]:
    """To the end, with what the decoder is given; decoding takes most of the time and is the same everywhere."""
    latents: list[Tensor] = []
    decode = WanModel.decode

    def decoded(latents_BFCHW: Tensor, states: object) -> Tensor:
        latents.append(latents_BFCHW[0].to("cpu", copy=True))
        if not pictures:
            return torch.empty(1, 0, *session.model.settings.picture, 3, dtype=torch.uint8)
        return decode(session.model, latents_BFCHW, states)  # type: ignore[arg-type]  # as it was called

    session.model.decode = decoded  # type: ignore[method-assign]  # of this one model
    for (record,) in rollout(session.model, [session], levels=session.model.schedule):
        yield Step(latents[-1], record)


def told(session: Session, made: list[Step]) -> dict[str, object]:
    """What must be the same alone and over ranks; keys and values are of one rank's heads."""
    stored = session.memory.held(session.stored.values(), tenant=session.tenant).values()
    return {
        "latents": torch.stack([step.latents for step in made]),
        "frames": torch.cat([torch.from_numpy(step.record.frames_FHWC) for step in made]),
        "k": torch.stack([live.k_LTHD.cpu() for live in session.live]),
        "v": torch.stack([live.v_LTHD.cpu() for live in session.live]),
        "retrieved": [list(step.record.retrieved) for step in made],
        "window_tokens": [step.record.window_tokens for step in made],
        "token_ids": [torch.from_numpy(chunk.token_ids_T3) for chunk in stored if chunk.token_ids_T3 is not None],
        "stored_bytes": session.stored_bytes,
    }


def played(model: WanModel, policy: str) -> dict[str, object]:
    session = session_of(model, parse_policy(POLICIES[policy]))
    with closing(session):
        return told(session, list(steps(session, pictures=policy == SHOWN)))


def all_played(model: WanModel) -> dict[str, object]:
    """Every policy; and the bytes of the weights."""
    results: dict[str, object] = {policy: played(model, policy) for policy in POLICIES}
    results["weight_bytes"] = sum(parameter.nbytes for parameter in model.network.parameters())
    results["epoch"] = model.epoch
    return results


def resumed(model: WanModel) -> dict[str, object]:
    """The same session undisturbed, and from a snapshot after its fourth chunk."""
    session = session_of(model, parse_policy(POLICIES["worldkv"]))
    undisturbed = steps(session)
    for _ in range(4):
        next(undisturbed)
    data = snapshot(session)
    again = restore(data, model, memory_of(model))
    other = told(session, list(undisturbed))
    return {"undisturbed": other, "resumed": told(again, list(steps(again)))}


def strange_snapshot(model: WanModel, ranks: Ranks) -> str:
    """What is said of another rank's snapshot; only what rank 0 made is exchanged."""
    session = session_of(model, parse_policy(POLICIES["sliding"]))
    next(steps(session))
    data = torch.frombuffer(bytearray(snapshot(session)), dtype=torch.uint8)
    first = ranks.gather(data[None].to(model.device), 0)[0].cpu().numpy().tobytes()
    try:
        restore(first, model, memory_of(model))
    except CheckpointError as fault:
        return str(fault)
    return "restored"


def short_of_room(model: WanModel, ranks: Ranks) -> dict[str, object]:
    """The last rank's memory has room for two chunks, so it drops what another rank still has."""
    policy = parse_policy(POLICIES["worldkv"])
    bytes_of_chunk = model.geometry.kv_bytes(model.geometry.tokens_per_chunk, torch.float32) + 4096
    last = ranks.rank == ranks.size - 1
    session = session_of(model, policy, room=2 * bytes_of_chunk if last else ROOM)
    made = list(steps(session))
    return told(session, made) | {"missed": [step.record.missed for step in made], "indexed": session.index.chunks()}


def left_alone(model: WanModel, ranks: Ranks) -> dict[str, object]:
    """All ranks but the first go away in the middle of a rollout."""
    session = session_of(model, parse_policy(POLICIES["sliding"]))
    made = steps(session)
    next(made)
    if ranks.rank > 0:
        return {}
    try:
        list(made)
    except ModelError as fault:
        return {"fault": str(fault)}
    return {}


def silent(rank: int, size: int, folder: Path) -> dict[str, object]:
    """In a second group of the same processes, what the first says of others that are there and do not answer."""
    ranks = join(Seat(rank, size, f"file://{folder}/second", SILENT_SECONDS), torch.device("cpu"))
    heard = folder / "heard"
    if rank > 0:
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not heard.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        return {}
    started = time.monotonic()
    try:
        ranks.gather(torch.zeros(1), 0)
    except ModelError as fault:
        return {"fault": str(fault), "seconds": time.monotonic() - started}
    finally:
        heard.touch()
    return {}


def main(rank: int, size: int, folder: Path, kind: str) -> None:
    """All that is asked of a rank, in the same order on each."""
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    seat = Seat(rank, size, f"file://{folder}/meeting", timeout_seconds=TIMEOUT_SECONDS)
    first = open_rank(seat, device, loader(MODELS[0], device))
    ranks = first.ranks
    models = {MODELS[0]: first, MODELS[1]: loader(MODELS[1], device)(ranks=ranks)}
    results: dict[str, object] = {name: all_played(model) for name, model in models.items()}
    for name, model in models.items():
        results[f"{name} resumed"] = resumed(model)
    results["strange snapshot"] = strange_snapshot(first, ranks)
    results["short of room"] = short_of_room(first, ranks)
    if kind == "cpu":  # NCCL's watchdog ends a rank that waits in vain
        results["left alone"] = left_alone(first, ranks)
        leave()
        results["silent"] = silent(rank, size, folder)
    torch.save(results, folder / f"rank{rank}.pt")
    leave()


def alone(kind: str) -> dict[str, object]:
    """The same in one process, on the first device of that kind."""
    return {name: all_played(loader(name, torch.device(kind))(ranks=ALONE)) for name in MODELS}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
