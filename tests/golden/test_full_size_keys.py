"""Names and shapes of all tensors of the published checkpoints: the networks must have these at full size, no more."""

import json
from pathlib import Path

import pytest
import torch
from recorded import manifest
from torch import nn

from worldkv.models.checkpoint import expected_shapes
from worldkv.models.encoders.prompt import PromptShape
from worldkv.models.published import named
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import shape_of
from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import VAEShape, WanVAE

Shapes = dict[str, tuple[int, ...]]
TRANSFORMERS = {
    "lingbot_world_fast_cam": ("lingbot-world-fast", {}),
    "lingbot_world_fast_act": ("lingbot-world-fast", {"control_type": "act"}),
    "lingbot_world_v2_fast": ("lingbot-world-2", {}),
    "lingbot_world_v2_causal_pretrain": ("lingbot-world-2", {}),
    "matrix_game2_universal": ("matrix-game-2-universal", {}),
    "matrix_game2_gta_drive": ("matrix-game-2-gta-drive", {}),
    "matrix_game2_templerun": ("matrix-game-2-templerun", {}),
}


@pytest.fixture(scope="module")
def recorded(reference: Path) -> dict[str, Shapes]:
    """By checkpoint."""
    file = reference / "full_size" / "full_size_keys.json"
    if not file.is_file():
        pytest.skip(f"{file} is not in this set")
    lists = json.loads(file.read_text())

    def shapes(name: str) -> Shapes:
        content = lists[name]
        own = content.get("except", {}) if "same_as" in content else content
        base = shapes(content["same_as"]) if "same_as" in content else {}
        return base | {key: tuple(shape) for key, shape in own.items()}

    return {name: shapes(name) for name in lists}


def on_meta(build: type[nn.Module], shape: object) -> nn.Module:
    with torch.device("meta"):
        return build(shape)


@pytest.mark.parametrize("key_list", TRANSFORMERS)
def test_transformers_have_exactly_the_published_tensors(recorded: dict[str, Shapes], key_list: str):
    name, change = TRANSFORMERS[key_list]
    network = on_meta(WanNetwork, named(name).shape(config=change))
    assert {named(name).prefix + key: shape for key, shape in expected_shapes(network).items()} == recorded[key_list]


def test_a_config_with_actions_in_all_layers_gives_the_published_tensors(recorded: dict[str, Shapes]):
    about = named("matrix-game-2-universal").about["config"]
    config = about | {"action_config": about["action_config"] | {"blocks": list(range(30))}}
    network = on_meta(WanNetwork, shape_of(config, "foundation"))
    found = {f"model.{key}": shape for key, shape in expected_shapes(network).items()}
    assert found == recorded["matrix_game2_foundation"]


def test_the_decoder_that_matrix_game_loads_alone_is_ours(recorded: dict[str, Shapes]):
    ours = expected_shapes(on_meta(WanVAE, VAEShape()))
    alone = {name: shape for name, shape in ours.items() if "decoder." in name or "conv2" in name}
    assert alone == recorded["mg2_vae_decoder_wrapper"]


def test_the_prompt_encoder_has_exactly_the_published_tensors(reference: Path):
    told = manifest("text_encoder")["keys"]
    assert {name: list(shape) for name, shape in PromptShape().tensors().items()} == told


def test_autoencoders_have_exactly_the_published_tensors(recorded: dict[str, Shapes]):
    assert expected_shapes(on_meta(WanVAE, VAEShape())) == recorded["wan2.1_vae"]
    assert expected_shapes(on_meta(TinyVAE, TinyVAEShape())) == recorded["taehv_taew2_1"]
