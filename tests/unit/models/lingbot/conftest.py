"""LingBot with random weights, small enough for unit tests: two layers, a picture of 32 x 48 pixels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from worldkv.camera import PictureSize
from worldkv.models.lingbot.camera import Control
from worldkv.models.lingbot.model import LingBotModel
from worldkv.models.lingbot.schedule import lingbot_schedule
from worldkv.models.wan.model import WanSettings
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import CAMERA_CHANNELS
from worldkv.models.wan.pictures import Pictures
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.shape import TextShape, WanShape
from worldkv.models.wan.vae import VAEShape, WanVAE

SIZE = PictureSize(32, 48)
PROMPT_WIDTH, PROMPT_TOKENS = 16, 8


def lingbot(control: Control = "cam", *, dtype: torch.dtype = torch.float32, vae: bool = True) -> LingBotModel:
    shape = WanShape(
        width=48,
        mlp_width=64,
        heads=2,
        layers=2,
        noise_features=16,
        in_channels=36,
        out_channels=16,
        context=TextShape(PROMPT_WIDTH, PROMPT_TOKENS),
        camera_channels=CAMERA_CHANNELS[control],
    )
    network = WanNetwork(shape).to(dtype).requires_grad_(False)
    epoch = randomise(network, 0)
    settings = WanSettings("lingbot-tiny", SIZE, 3, 24, lingbot_schedule((0, 679), 10.0))
    return LingBotModel(network, settings, epoch, pictures() if vae else None)


def pictures() -> Pictures:
    vae = WanVAE(VAEShape(width=2)).requires_grad_(False)
    randomise(vae, 0)
    return Pictures(vae, SIZE)


@pytest.fixture(scope="session")
def make_lingbot() -> Callable[..., LingBotModel]:
    return lingbot


@pytest.fixture(scope="session")
def context() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=draw)
    return {"prompt": torch.randn(5, PROMPT_WIDTH, generator=draw), "image": image}
