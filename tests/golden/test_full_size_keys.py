"""Names and shapes of all tensors of the published checkpoints, which the networks must have at full size, no others.

`full_size_keys.json` is the recorded list with the layers of a transformer folded: `blocks.*.x` of so many layers.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from worldkv.models.checkpoint import expected_shapes
from worldkv.models.published import named
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import shape_of
from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import VAEShape, WanVAE

Shapes = dict[str, tuple[int, ...]]
FOLDED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "full_size_keys.json").read_text())
TRANSFORMERS = {
    "lingbot_world_fast_cam": ("lingbot-world-fast", {}),
    "lingbot_world_fast_act": ("lingbot-world-fast", {"control_type": "act"}),
    "lingbot_world_v2_fast": ("lingbot-world-2", {}),
    "lingbot_world_v2_causal_pretrain": ("lingbot-world-2", {}),
    "matrix_game2_universal": ("matrix-game-2-universal", {}),
    "matrix_game2_gta_drive": ("matrix-game-2-gta-drive", {}),
    "matrix_game2_templerun": ("matrix-game-2-templerun", {}),
}


def unfolded(name: str) -> Shapes:
    content = FOLDED[name]
    if "same_as" in content:
        changed = {key: tuple(shape) for key, shape in content.get("except", {}).items()}
        return unfolded(content["same_as"]) | changed
    shapes: Shapes = {}
    for key, entry in content.items():
        layers = range(entry["layers"]) if "layers" in entry else [None]
        shapes |= {key.replace("*", str(layer)): tuple(entry["shape"]) for layer in layers}
    return shapes


def on_meta(build: type[nn.Module], shape: object) -> nn.Module:
    with torch.device("meta"):
        return build(shape)


@pytest.mark.parametrize("key_list", TRANSFORMERS)
def test_transformers_have_exactly_the_published_tensors(key_list: str):
    name, change = TRANSFORMERS[key_list]
    network = on_meta(WanNetwork, named(name).shape(config=change))
    assert {named(name).prefix + key: shape for key, shape in expected_shapes(network).items()} == unfolded(key_list)


def test_a_config_with_actions_in_all_layers_gives_the_published_tensors():
    about = named("matrix-game-2-universal").about["config"]
    config = about | {"action_config": about["action_config"] | {"blocks": list(range(30))}}
    network = on_meta(WanNetwork, shape_of(config, "foundation"))
    assert {f"model.{key}": shape for key, shape in expected_shapes(network).items()} == unfolded(
        "matrix_game2_foundation"
    )


def test_autoencoders_have_exactly_the_published_tensors():
    assert expected_shapes(on_meta(WanVAE, VAEShape())) == unfolded("wan2.1_vae")
    assert expected_shapes(on_meta(TinyVAE, TinyVAEShape())) == unfolded("taehv_taew2_1")


def test_the_folded_list_is_the_recorded_one(reference: Path):
    recorded = json.loads((reference / "full_size" / "full_size_keys.json").read_text())
    assert recorded.keys() == FOLDED.keys()
    for name, content in recorded.items():
        if "same_as" not in content:
            assert unfolded(name) == {key: tuple(shape) for key, shape in content.items()}
