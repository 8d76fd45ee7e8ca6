from dataclasses import replace

import pytest

from worldkv.errors import ConfigError
from worldkv.memory.codec import CODECS
from worldkv.memory.compression import Pruning
from worldkv.memory.policy import PRESETS, parse_policy


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_goes_by_its_name(name):
    assert parse_policy(name) == PRESETS[name]


@pytest.mark.parametrize(
    ("text", "preset", "changes"),
    [
        ("worldkv/codec=int8", "worldkv", {"codec": "int8"}),
        ("worldkv/positions=original/codec=bf16", "worldkv", {"positions": "original", "codec": "bf16"}),
        ("worldkv/retrieved_chunks=6/recent_chunks=3", "worldkv", {"retrieved_chunks": 6, "recent_chunks": 3}),
        ("worldkv/sink_chunks=0", "worldkv", {"sink_chunks": 0}),
        ("worldkv/ranking=random", "worldkv", {"ranking": "random"}),
        ("worldkv/ranking=yaw", "worldkv", {"ranking": "yaw"}),
        ("worldkv/sight=3.5/ranking=overlap", "worldkv", {"ranking": "overlap", "sight": 3.5}),
        ("worldkv/keep=0.5", "worldkv", {"pruning": Pruning(0.5, "centroid", joint=True)}),
        ("worldkv/rule=nearest/keep=0.25", "worldkv", {"pruning": Pruning(0.25, "nearest", joint=True)}),
        ("sliding/recent_chunks=5/positions=original", "sliding", {"recent_chunks": 5, "positions": "original"}),
        ("sliding/retrieved_chunks=2/codec=int8", "sliding", {"retrieved_chunks": 2, "codec": "int8"}),
        ("full/positions=rebased", "full", {"positions": "rebased"}),
        (
            "sliding/live_latent_frames=12/sink_latent_frames=6",
            "sliding",
            {"live_latent_frames": 12, "sink_latent_frames": 6},
        ),
    ],
)
def test_changes_are_those_written_and_the_policy_is_named_by_the_text(text, preset, changes):
    assert parse_policy(text) == replace(PRESETS[preset], name=text, **changes)


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_can_be_chosen(codec):
    assert parse_policy(f"worldkv/codec={codec}").codec == codec


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not one of full, sliding, worldkv"),
        ("best", "'best' is not one of full, sliding, worldkv"),
        ("WorldKV", "'WorldKV' is not one of"),
        ("worldkv/", "'' is not key=value with key one of sink_chunks, .*rule"),
        ("worldkv/codec", "'codec' is not key=value"),
        ("worldkv/speed=2", "'speed=2' is not key=value with key one of"),
        ("worldkv/codec=int2", "codec=int2: must be one of fp32, bf16, int8, fp8, int4, int3"),
        ("worldkv/positions=new", "positions=new: must be one of original, rebased"),
        ("worldkv/ranking=best", "ranking=best: must be one of pose, overlap, yaw, random"),
        ("worldkv/keep=0.5/rule=mean", "rule=mean: must be one of centroid, nearest"),
        ("sliding/sink_latent_frames=3", "sink_latent_frames=3 changes nothing without live_latent_frames"),
        ("sliding/live_latent_frames=3/sink_latent_frames=3", "must leave room for the current chunk"),
        ("worldkv/sink_chunks=two", "sink_chunks=two: must be a whole number"),
        ("worldkv/recent_chunks=-1", "recent_chunks=-1: must be a whole number, 0 or more"),
        ("worldkv/retrieved_chunks=1.5", "retrieved_chunks=1.5: must be a whole number"),
        ("worldkv/retrieved_chunks=", "retrieved_chunks=: must be a whole number"),
        ("worldkv/ranking=overlap/sight=far", "sight=far: must be a length in world units"),
        ("worldkv/ranking=overlap/sight=0", "sight=0.0: must be a finite length above 0"),
        ("worldkv/keep=half", "keep=half: must be a number above 0 and at most 1"),
        ("worldkv/keep=0", "keep_ratio=0.0: must be above 0 and at most 1"),
        ("worldkv/keep=nan", "keep_ratio=nan: must be above 0"),
        ("worldkv/keep=1.5", "keep_ratio=1.5"),
        ("worldkv/codec=int8/codec=int4", "codec is given twice"),
    ],
)
def test_what_cannot_be_is_refused_naming_the_policy_and_what_is_allowed(text, words):
    with pytest.raises(ConfigError, match=words) as fault:
        parse_policy(text)
    assert str(fault.value).startswith(f"policy {text!r}: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worldkv/rule=nearest", "add keep=0.5"),
        ("full/retrieved_chunks=4", "full KV evicts nothing"),
        ("full/codec=int8", "codec=int8 changes nothing where nothing is retrieved"),
        ("sliding/keep=0.5", "keep=0.5 changes nothing"),
        ("worldkv/sight=3", "sight changes nothing .* give ranking=overlap too"),
        ("worldkv/ranking=yaw/sight=3", "give ranking=overlap too"),
        ("sliding/ranking=random", "ranking=random changes nothing"),
        ("worldkv/retrieved_chunks=0/codec=int8", "codec=int8 changes nothing"),
    ],
)
def test_a_change_that_would_change_nothing_is_refused(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_policy(text)
