"""The published models on a real device, at tiny size with random weights."""

import numpy as np
import pytest
import torch
from torch import Tensor

from worldkv.camera import trajectory_from_notation
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.published import named, random_model
from worldkv.models.wan.model import WanModel
from worldkv.models.wan.shape import TextShape
from worldkv.rollout import rollout
from worldkv.session import Session, open_session
from worldkv.snapshot import restore, snapshot

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]

NAMES = ("lingbot-world-fast", "matrix-game-2-universal")
POLICY = MemoryPolicy("memory", sink_chunks=1, recent_chunks=1, retrieved_chunks=1)
TRAJECTORY = trajectory_from_notation("R_L40_96")


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def model_on(device: torch.device, name: str, dtype: torch.dtype) -> WanModel:
    """The same weights on every device: they are drawn on the CPU."""
    model = random_model(named(name), 0, size="tiny", device=torch.device("cpu"), dtype=dtype)
    model.network.to(device)
    model.pictures.vae.to(device)
    return model


def memory_of(model: WanModel) -> ChunkMemory:
    return ChunkMemory([ResidentTier("device", model.device, 2**28, verifies=False)], model.epoch)


def session_of(model: WanModel) -> Session:
    draw = torch.Generator().manual_seed(0)
    shape = model.network.shape.context
    name = "prompt" if isinstance(shape, TextShape) else "image_tokens"
    image = torch.randint(0, 256, (*model.settings.picture, 3), dtype=torch.uint8, generator=draw)
    context: dict[str, Tensor] = {name: torch.randn(8, shape.width, generator=draw), "image": image}
    return open_session(model, memory_of(model), POLICY, TRAJECTORY, context=context)


def frames_of(session: Session, chunks: int | None = None) -> list[np.ndarray]:
    frames = []
    for (record,) in rollout(session.model, [session], levels=session.model.schedule):
        frames.append(record.frames_FHWC)
        if len(frames) == chunks:
            break
    return frames


@pytest.mark.parametrize("name", NAMES)
def test_float32_kv_is_that_of_the_cpu(device, name: str):
    kv = []
    for place in (torch.device("cpu"), device):
        session = session_of(model_on(place, name, torch.float32))
        frames_of(session, chunks=1)
        kv.append((session.live[0].k_LTHD.cpu(), session.live[0].v_LTHD.cpu()))
    for expected, found in zip(*kv, strict=True):
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_session_in_half_precision_remembers_and_resumes_bit_for_bit(device, name: str):
    model = model_on(device, name, torch.bfloat16)
    session = session_of(model)
    frames_of(session, chunks=4)
    assert session.live[0].k_LTHD.dtype == torch.bfloat16
    assert all(tensor.isfinite().all() for live in session.live for tensor in (live.k_LTHD, live.v_LTHD))
    again = restore(snapshot(session), model, memory_of(model))
    expected, found = frames_of(session), frames_of(again)
    assert len(session.stored) > 0
    assert len(found) == len(expected) == 4
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
