"""Each codec keeps to the error it declares, on keys and values that the shipped rooms model makes of a true video."""

import pytest
from torch import Tensor

from worldkv.memory.codec import CODECS
from worldkv.memory.compression import Pruning, gather, kept_tokens
from worldkv.memory.policy import PRESETS
from worldkv.memory.scaled import ScaledCodec
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.rollout import rollout
from worldkv.session import open_session

CHUNKS = 6
# Quantising multiplies by the inverse of a step, up to 32,000 steps from zero, in float32.
FLOAT32_SLACK = 1.01
KeysValues = tuple[Tensor, Tensor]


@pytest.fixture(scope="session")
def rooms_chunks() -> list[KeysValues]:
    """Un-rotated keys and values [L, T, H, D] of a walk through a world that training never saw."""
    model = RoomsModel.load()
    scene = Scene(0, model.latent_shape[1])
    trajectory = scene.trajectory("wander", CHUNKS * model.geometry.chunk_latent_frames, Pace())
    truth_FHWC, _ = scene.truth(trajectory)
    memory = ChunkMemory([ResidentTier("device", model.device, 2**30)], model.epoch)
    session = open_session(model, memory, PRESETS["full"], trajectory)
    for _ in rollout(model, [session], levels=[1.0], given=[truth_FHWC]):
        pass
    return [(live.k_LTHD, live.v_LTHD) for live in session.live]


def rms_relative(x: Tensor, decoded: Tensor) -> float:
    return float((x - decoded).norm() / x.norm())


@pytest.mark.parametrize("name", CODECS)
def test_no_number_is_further_off_than_declared(rooms_chunks: list[KeysValues], name: str):
    codec = CODECS[name]
    for k, v in rooms_chunks:
        decoded = codec.decode(codec.encode(k, v))
        for x, found, axis in zip((k, v), decoded, (1, 3), strict=True):
            peak = x.abs().amax(axis, keepdim=True) if isinstance(codec, ScaledCodec) else x.abs()
            assert ((x - found).abs() <= FLOAT32_SLACK * codec.max_relative_error * peak).all()


@pytest.mark.parametrize("name", CODECS)
def test_the_root_mean_square_error_is_as_declared(rooms_chunks: list[KeysValues], name: str):
    """Not above it; nor far below, for then the declaration says nothing."""
    codec = CODECS[name]
    worst = max(
        rms_relative(x, found)
        for kv in rooms_chunks
        for x, found in zip(kv, codec.decode(codec.encode(*kv)), strict=True)
    )
    assert 0.8 * codec.rms_relative_error <= worst <= codec.rms_relative_error


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
@pytest.mark.parametrize("name", CODECS)
def test_pruned_chunks_are_stored_as_well_as_whole_ones(rooms_chunks: list[KeysValues], name: str, rule: str):
    k, v = rooms_chunks[2]
    kept = kept_tokens(k, 3, Pruning(0.4, rule=rule, joint=True))  # type: ignore[arg-type]  # one of two literals
    pruned = gather(k, kept), gather(v, kept)
    codec = CODECS[name]
    for x, found in zip(pruned, codec.decode(codec.encode(*pruned)), strict=True):
        assert rms_relative(x, found) <= 1.05 * codec.rms_relative_error


def test_fp8_is_several_times_as_wrong_as_int8_of_its_size(rooms_chunks: list[KeysValues]):
    """Why the module says so, and why int8 is offered at all."""
    k, v = rooms_chunks[2]
    fp8, int8 = (CODECS[name].decode(CODECS[name].encode(k, v)) for name in ("fp8", "int8"))
    for x, of_fp8, of_int8 in zip((k, v), fp8, int8, strict=True):
        assert rms_relative(x, of_fp8) > 4 * rms_relative(x, of_int8)
