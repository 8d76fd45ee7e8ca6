"""Both autoencoders against recordings of the published ones, whole and streaming."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import History, VAEShape, WanVAE

ABSOLUTE = 2e-5


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=ABSOLUTE, rtol=0)


@pytest.fixture(scope="module")
def data(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "wan_vae" / "data.safetensors")


@pytest.fixture(scope="module")
def vae(reference: Path) -> WanVAE:
    config = json.loads((reference / "wan_vae" / "manifest.json").read_text())["config"]
    shape = VAEShape(
        width=config["dim"],
        latent_channels=config["z_dim"],
        multiples=tuple(config["dim_mult"]),
        halve_time=tuple(config["temperal_downsample"]),
        residuals=config["num_res_blocks"],
    )
    vae = WanVAE(shape)
    vae.load_state_dict(load_file(reference / "wan_vae" / "weights.safetensors"))
    return vae.requires_grad_(False)


@pytest.fixture(scope="module")
def tiny_data(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "wan_vae" / "taehv.safetensors")


@pytest.fixture(scope="module")
def tiny(reference: Path) -> TinyVAE:
    weights = load_file(reference / "wan_vae" / "taehv_weights.safetensors")
    widths = [weights[f"decoder.{step}.weight"].shape[0] for step in (1, 8, 14, 20)]
    vae = TinyVAE(TinyVAEShape(decoder_widths=tuple(widths), encoder_width=len(weights["encoder.0.bias"])))
    vae.load_state_dict(weights)
    return vae.requires_grad_(False)


class TestWanVAE:
    def test_encoding_matches(self, vae: WanVAE, data: dict[str, Tensor]):
        assert_close(vae.encode(data["in/video"][None], {})[0], data["out/encode_video"])

    def test_encoding_an_image_before_nothing_matches(self, vae: WanVAE, data: dict[str, Tensor]):
        image = data["in/image"]
        nothing = image.new_zeros(3, data["in/video"].shape[1] - 1, *image.shape[2:])
        found = vae.encode(torch.cat([image, nothing], dim=1)[None], {})[0]
        assert_close(found, data["out/encode_image_zeros"])

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    def test_decoding_in_pieces_matches_the_whole(self, vae: WanVAE, data: dict[str, Tensor], size: int):
        history: History = {}
        pieces = [vae.decode(piece[None], history)[0] for piece in data["in/z"].split(size, dim=1)]
        assert_close(torch.cat(pieces, dim=1), data["out/decode_unclamped"])

    def test_decoder_history_matches(self, vae: WanVAE, data: dict[str, Tensor]):
        history: History = {}
        latents = data["in/z"][None]
        vae.decode(latents[:, :, :1], history)
        assert_close(history["decoder.conv1"][:, :, -1:], data["cache/first_conv1_after_frame0"])
        vae.decode(latents[:, :, 1:], history)
        slots = list(history)  # in the order in which the decoder uses them, as the published slots are
        recorded = [key for key in data if key.startswith("cache/slot")]
        assert recorded
        for key in recorded:
            slot = int(key.removeprefix("cache/slot").removesuffix("_after_last"))
            assert_close(history[slots[slot]], data[key])

    def test_a_latent_decoded_alone_matches(self, vae: WanVAE, data: dict[str, Tensor]):
        assert_close(vae.decode(data["in/z"][None, :, -1:], {})[0], data["out/decode_last_latent_alone"])


class TestTinyVAE:
    def test_encoding_matches(self, tiny: TinyVAE, tiny_data: dict[str, Tensor]):
        assert_close(tiny.encode(tiny_data["taehv/in_video"], {}), tiny_data["taehv/encode"])

    @pytest.mark.parametrize("size", [1, 2, 3, 100])
    def test_decoding_in_pieces_matches_the_whole(self, tiny: TinyVAE, tiny_data: dict[str, Tensor], size: int):
        history: History = {}
        pieces = [tiny.decode(piece, history) for piece in tiny_data["taehv/in_z"].split(size, dim=1)]
        assert_close(torch.cat(pieces, dim=1), tiny_data["taehv/decode"])

    def test_encoding_in_pieces_matches_the_whole(self, tiny: TinyVAE, tiny_data: dict[str, Tensor]):
        history: History = {}
        pieces = [tiny.encode(piece, history) for piece in tiny_data["taehv/in_video"].split(4, dim=1)]
        assert_close(torch.cat(pieces, dim=1), tiny_data["taehv/encode"])
