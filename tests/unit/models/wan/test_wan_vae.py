import pytest
import torch

from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import History, VAEShape, WanVAE


@pytest.fixture(scope="module")
def vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(VAEShape(width=4)).requires_grad_(False)


def test_a_clip_in_pieces_is_the_clip_whole(vae: WanVAE):
    clip = torch.randn(2, 3, 13, 16, 24)
    whole, history = vae.encode(clip, {}), History()
    pieces = [vae.encode(piece, history) for piece in clip.split((1, 4, 8), dim=2)]
    torch.testing.assert_close(torch.cat(pieces, dim=2), whole)
    shown, history = vae.decode(whole, {}), History()
    pieces = [vae.decode(piece, history) for piece in whole.split((1, 3), dim=2)]
    assert shown.shape == clip.shape
    torch.testing.assert_close(torch.cat(pieces, dim=2), shown)


def test_clips_of_a_batch_do_not_mix(vae: WanVAE):
    latents = torch.randn(2, 16, 3, 2, 3)
    both = vae.decode(latents, {})
    torch.testing.assert_close(both[1:], vae.decode(latents[1:], {}))


def test_a_history_kept_by_another_is_not_touched(vae: WanVAE):
    history: History = {}
    latents = torch.randn(1, 16, 1, 2, 3)
    vae.decode(latents, history)
    kept = {name: tensor.clone() for name, tensor in history.items()}
    shared = dict(history)
    vae.decode(latents, shared)
    assert all(torch.equal(history[name], kept[name]) for name in kept)


def test_the_tiny_vae_shows_four_frames_per_latent():
    vae = TinyVAE(TinyVAEShape(decoder_widths=(8, 8, 8, 8), encoder_width=8)).requires_grad_(False)
    latents = torch.randn(2, 3, 16, 2, 3)
    whole, history = vae.decode(latents, {}), History()
    pieces = [vae.decode(piece, history) for piece in latents.split(1, dim=1)]
    assert whole.shape == (2, 12, 3, 16, 24)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)


def test_black_pictures_in_half_precision_are_numbers():
    vae = WanVAE(VAEShape(width=4)).requires_grad_(False)
    for parameter in vae.parameters():
        if parameter.ndim == 1:
            parameter.zero_()
    vae.half()
    assert vae.encode(torch.zeros(1, 3, 5, 16, 24), {}).isfinite().all()
