"""CLIP by way of the library, against its formulas written out over the tensors of the published file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as fn

pytest.importorskip("transformers", reason="the models extra is not installed")

from worldkv.camera import PictureSize
from worldkv.errors import CheckpointError
from worldkv.models.encoders.picture import PictureShape, encode_picture, squeezed

CPU = torch.device("cpu")
SHAPE = PictureShape(width=24, mlp_width=40, heads=3, layers=3, side=28, piece=14)
SIZE = PictureSize(32, 48)
EPSILON = 1e-5
PUBLISHED = 257, 1280


@pytest.fixture
def stored() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    last = {
        name.replace("transformer.0.", "transformer.2."): shape
        for name, shape in SHAPE.tensors().items()
        if "transformer.0." in name
    }
    other = {"visual.head": (24, 8), "textual.token_embedding.weight": (5, 6), "log_scale": ()}
    return {name: torch.randn(shape, generator=draw) / 3 for name, shape in (SHAPE.tensors() | last | other).items()}


@pytest.fixture
def weights(tmp_path: Path, stored: dict[str, Tensor]) -> Path:
    file = tmp_path / "models_clip.pth"
    torch.save(stored, file)
    return file


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (40, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


def written_out(stored: dict[str, Tensor], pixels_1CHW: Tensor) -> Tensor:
    """[T, E]: all layers but the last, no norm behind them."""
    w = {name.removeprefix("visual."): tensor for name, tensor in stored.items()}
    pieces = fn.conv2d(pixels_1CHW, w["patch_embedding.weight"], stride=SHAPE.piece)[0].flatten(1).T
    x = torch.cat([w["cls_embedding"][0], pieces]) + w["pos_embedding"][0]
    x = norm(x, w, "pre_norm")
    for layer in range(SHAPE.layers - 1):
        place = f"transformer.{layer}"
        normal = norm(x, w, f"{place}.norm1")
        qkv = linear(normal, w, f"{place}.attn.to_qkv").view(len(x), 3, SHAPE.heads, -1).permute(1, 2, 0, 3)
        scores = qkv[0] @ qkv[1].transpose(1, 2) * (SHAPE.width / SHAPE.heads) ** -0.5
        seen = (scores.softmax(-1) @ qkv[2]).transpose(0, 1).reshape(len(x), -1)
        x = x + linear(seen, w, f"{place}.attn.proj")
        inside = fn.gelu(linear(norm(x, w, f"{place}.norm2"), w, f"{place}.mlp.0"))
        x = x + linear(inside, w, f"{place}.mlp.2")
    return x


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return fn.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], EPSILON)


def linear(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def test_the_library_computes_what_the_published_file_means(weights: Path, stored: dict[str, Tensor], image: Tensor):
    found = encode_picture(weights, image, SIZE, SHAPE, device=CPU)
    assert found.shape == (SHAPE.tokens, SHAPE.width)
    torch.testing.assert_close(found, written_out(stored, squeezed(image, SIZE, SHAPE.side)), atol=2e-5, rtol=1e-5)


def test_the_default_shape_gives_what_matrix_game_takes():
    shape = PictureShape()
    assert (shape.tokens, shape.width) == PUBLISHED
    assert shape.tensors()["visual.pos_embedding"] == (1, *PUBLISHED)


def test_a_picture_of_one_colour_is_that_colour_to_clip():
    grey = torch.full((10, 15, 3), 51, dtype=torch.uint8)
    found = squeezed(grey, SIZE, 28)
    for channel, (mean, deviation) in enumerate(zip((0.48145466, 0.4578275), (0.26862954, 0.26130258), strict=True)):
        torch.testing.assert_close(found[0, channel], torch.full((28, 28), (0.2 - mean) / deviation))


def test_a_file_that_lacks_a_layer_is_refused(weights: Path, stored: dict[str, Tensor], image: Tensor):
    torch.save({name: tensor for name, tensor in stored.items() if "transformer.1." not in name}, weights)
    with pytest.raises(CheckpointError, match=r"tensor visual.transformer.1.norm1.weight \[24\] is missing"):
        encode_picture(weights, image, SIZE, SHAPE, device=CPU)


def test_a_half_precision_file_is_taken(weights: Path, stored: dict[str, Tensor], image: Tensor):
    torch.save({name: tensor.half() for name, tensor in stored.items()}, weights)
    found = encode_picture(weights, image, SIZE, SHAPE, device=CPU)
    rounded = {name: tensor.half().float() for name, tensor in stored.items()}
    torch.testing.assert_close(found, written_out(rounded, squeezed(image, SIZE, SHAPE.side)), atol=2e-5, rtol=1e-5)
