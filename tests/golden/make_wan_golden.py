"""Record what tiny published models of random weights make with their memory at work.

    python tests/golden/make_wan_golden.py

Each runs by `worldkv.rollout`, with chunks retrieved that were pruned and stored in int4; weights, context and noise
come from seeds, so that only outputs are kept: `wan_NAME.safetensors`. Write them again only where what the models
make is meant to change, which the comparison with the published code (`test_*_reference.py`) has to allow first.
"""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from worldkv.camera import Trajectory, parse_action, trajectory_from_notation
from worldkv.denoise import gaussian
from worldkv.memory.policy import parse_policy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.matrix_game.vocabulary import trajectory_of
from worldkv.models.published import named, random_model
from worldkv.models.wan.model import WanModel
from worldkv.rollout import rollout
from worldkv.session import open_session

CPU = torch.device("cpu")
SEED = 6
"""Of weights, context and noise. One where no stored code and no pruned token lies so near an edge that rounding moves
it: with each matrix product off by a random millionth of itself, latents moved by 1e-5 at most (other seeds: 2e-3).
"""
PICTURE = (32, 48)
POLICIES = {
    "lingbot-world-fast": "worldkv/recent_chunks=1/retrieved_chunks=2/keep=0.5",
    "matrix-game-2-universal": "worldkv/recent_chunks=1/retrieved_chunks=2/keep=0.5/ranking=yaw",
}
"""By model. Chunks are stored in int4."""


def target(name: str) -> Path:
    return Path(__file__).with_name(f"wan_{name}.safetensors")


def tiny(name: str) -> WanModel:
    model = named(name)
    smaller = replace(model, about={**model.about, "tiny_picture": PICTURE})
    return random_model(smaller, SEED, size="tiny", device=CPU, dtype=torch.float32)


def trajectory(name: str) -> Trajectory:
    """Out and back, so that what is retrieved is chosen."""
    if name.startswith("lingbot"):
        return trajectory_from_notation("WSL30_73")
    return trajectory_of([parse_action(keys) for keys in ("W", "R", "L", "WL", "S", "R") for _ in range(12)])


def drawn(*shape: int, number: int) -> Tensor:
    return gaussian(shape, seed=SEED, rollout=0, chunk=0, step=1000 + number)


def context(model: WanModel) -> dict[str, Tensor]:
    """What the model starts from; each takes its own of it."""
    channels, rows, columns = model.latent_shape
    width = model.network.shape.context.width
    return {
        "prompt": drawn(5, width, number=0),
        "image_tokens": drawn(5, width, number=1),
        "image_latents": drawn(channels, 4, rows, columns, number=2),
    }


def generate(name: str) -> tuple[dict[str, Tensor], list[tuple[int, ...]]]:
    """Latents [F, C, H, W] of all chunks and the last video frame [H, W, 3]; and what each chunk retrieved."""
    model, latents, retrieved = tiny(name), [], []
    clean_pass = model.clean_pass

    def keep(latents_BFCHW: Tensor, *rest, **options):
        latents.append(latents_BFCHW[0])
        return clean_pass(latents_BFCHW, *rest, **options)

    model.clean_pass = keep
    memory = ChunkMemory([ResidentTier("device", CPU, 2**26, verifies=False)], model.epoch)
    policy = parse_policy(POLICIES[name])
    session = open_session(model, memory, policy, trajectory(name), seed=SEED, context=context(model))
    for (record,) in rollout(model, [session], levels=model.schedule):
        retrieved.append(record.retrieved)
    return {"latents": torch.cat(latents), "last_frame": torch.from_numpy(record.frames_FHWC[-1].copy())}, retrieved


if __name__ == "__main__":
    for model_name in POLICIES:
        save_file(generate(model_name)[0], target(model_name))
