import pytest

from worldkv.errors import ConfigError
from worldkv.memory.compression import Pruning
from worldkv.memory.policy import PRESETS, MemoryPolicy


def test_presets_are_full_sliding_and_worldkv():
    assert {name: policy.name for name, policy in PRESETS.items()} == {name: name for name in PRESETS}
    full, sliding, worldkv = PRESETS["full"], PRESETS["sliding"], PRESETS["worldkv"]
    assert (full.recent_chunks, full.remembers) == (None, False)
    assert (sliding.sink_chunks, sliding.recent_chunks, sliding.remembers) == (1, 2, False)
    assert (worldkv.retrieved_chunks, worldkv.codec, worldkv.positions) == (4, "int4", "rebased")
    assert worldkv.remembers


def test_a_filled_window_is_as_long_as_its_parts():
    assert PRESETS["full"].window_latent_frames(3) is None
    assert PRESETS["sliding"].window_latent_frames(3) == 3 * (1 + 2 + 1)
    assert PRESETS["worldkv"].window_latent_frames(3) == 3 * (1 + 4 + 2 + 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codec": "zip"}, "codec='zip'.*int4"),
        ({"ranking": "best"}, "ranking='best'.*pose, overlap, yaw, random"),
        ({"sight": float("nan")}, "sight=nan"),
        ({"ranking": "yaw", "parity": True}, "ranking=yaw with parity"),
        ({"sink_chunks": -1}, "sink_chunks=-1"),
        ({"recent_chunks": -1}, "recent_chunks=-1"),
        ({"retrieved_chunks": -2}, "retrieved_chunks=-2"),
        ({"pruning": Pruning(0.5)}, "joint"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_key(changes, words):
    with pytest.raises(ConfigError, match=words):
        MemoryPolicy("p", **changes)
