import numpy as np
import pytest
import torch
from PIL import Image

from worldkv.camera import PictureSize
from worldkv.models.base import ModelState
from worldkv.models.wan.pictures import IMAGE_REACH, Pictures, scaled
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import VAEShape, WanVAE

SIZE = PictureSize(16, 24)


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    vae = WanVAE(VAEShape(width=2)).requires_grad_(False)
    randomise(vae, 0)
    return vae


def test_an_image_is_forgotten_after_its_reach_and_not_before(vae: WanVAE):
    image = torch.randint(0, 256, (*SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    latents = Pictures(vae, SIZE).image_latents(image)
    signed = image.permute(2, 0, 1).float() / 127.5 - 1
    longer = torch.cat([signed[:, None], torch.zeros(3, 4 * (IMAGE_REACH + 3), *SIZE)], dim=1)
    expected = vae.encode(longer[None], {})[0]
    assert latents.shape[1] == IMAGE_REACH
    torch.testing.assert_close(latents, expected[:, :IMAGE_REACH], atol=1e-5, rtol=0)
    still = expected[:, IMAGE_REACH - 1 :]
    assert torch.equal(still, still[:, :1].expand_as(still))
    assert not torch.equal(expected[:, IMAGE_REACH - 2], expected[:, IMAGE_REACH - 1])


@pytest.mark.parametrize("found", [(40, 60), (16, 24), (9, 13)])
def test_a_picture_is_scaled_as_pillow_scales_it(found: tuple[int, int]):
    image = torch.randint(0, 256, (*found, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pillow = Image.fromarray(image.numpy()).resize((SIZE.width, SIZE.height), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(pillow)).permute(2, 0, 1).float()
    assert (scaled(image, SIZE, "bilinear") - expected).abs().max() <= 1
    assert found == tuple(SIZE) or not torch.equal(scaled(image, SIZE, "bicubic").round(), expected)


def test_shown_frames_come_back_as_they_were_cut_into_chunks(vae: WanVAE):
    frames = torch.randint(0, 256, (24, *SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, pieces = ModelState(), ModelState()
    pictures = Pictures(vae, SIZE)
    expected = pictures.encode(frames, whole)
    found = torch.cat([pictures.encode(part, pieces) for part in frames.split(12)])
    assert len(found) == 6
    torch.testing.assert_close(found, expected)
    assert len(pieces.tensors["pending_frames"]) == 3


def test_the_quick_decoder_shows_as_many_frames(vae: WanVAE):
    quick = TinyVAE(TinyVAEShape(decoder_widths=(8, 8, 8, 8), encoder_width=8)).requires_grad_(False)
    latents, state = torch.randn(2, 3, 16, 2, 3, generator=torch.Generator().manual_seed(0)), ModelState()
    pictures = Pictures(vae, SIZE, quick)
    assert [len(pictures.decode(part, state)) for part in latents] == [9, 12]
