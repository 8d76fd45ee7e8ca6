"""Tensors and parameters of each published model at full size, counted without allocating them.

The counts are those of the published checkpoints; `tests/golden/test_full_size_keys.py` compares every name and shape.
"""

import pytest
import torch
from torch import nn

from worldkv.models.published import named, published
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import WanVAE

TRANSFORMERS = {
    "lingbot-world-fast": (1421, 18_544_332_864),
    "lingbot-world-2": (1421, 18_544_332_864),
    "matrix-game-2-universal": (1114, 1_619_242_304),
    "matrix-game-2-gta-drive": (1114, 1_619_238_464),
    "matrix-game-2-templerun": (964, 1_508_715_584),
}
"""Tensors and parameters, by model."""
LINGBOT_ACT = (1421, 18_545_643_584)
VAE = (194, 126_892_531)
QUICK_DECODER = (128, 11_315_539)


def counted(build: type[nn.Module], shape: object) -> tuple[int, int]:
    with torch.device("meta"):
        parameters = list(build(shape).parameters())
    return len(parameters), sum(parameter.numel() for parameter in parameters)


def test_every_published_model_is_counted():
    assert TRANSFORMERS.keys() == published().keys()


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_has_the_published_size(name: str):
    assert counted(WanNetwork, named(name).shape()) == TRANSFORMERS[name]


def test_lingbot_of_the_act_kind_has_the_published_size():
    shape = named("lingbot-world-fast").shape(config={"control_type": "act"})
    assert counted(WanNetwork, shape) == LINGBOT_ACT


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_autoencoder_of_a_model_has_the_published_size(name: str):
    assert counted(WanVAE, named(name).vae_shape()) == VAE


def test_the_quick_decoder_has_the_published_size():
    assert counted(TinyVAE, TinyVAEShape()) == QUICK_DECODER
