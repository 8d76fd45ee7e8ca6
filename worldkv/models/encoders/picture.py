"""The CLIP image encoder of Matrix-Game-2.0: `transformers`' network with the published file's tensors.

- The published code takes what all layers but the last give, unnormed: the tokens of the picture's pieces and one more
  of the whole. So the last layer is not loaded, nor is the file's text half. (The last norm is: it costs nothing.)
- The picture is scaled to the model's size first and squeezed into CLIP's square afterwards, as published.

Shapes: T tokens, E width, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from worldkv.camera import PictureSize
from worldkv.models.checkpoint import load_renamed
from worldkv.models.encoders.library import library
from worldkv.models.wan.pictures import scaled

PURPOSE = "encoding a picture"
MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours of pictures in [0, 1]."""
LARGEST = 255.0
UNUSED = ("textual.", "log_scale", "visual.head")
"""Tensors of the published file that its image tokens do not depend on; so is its last layer."""
LAYER_NAMES = {
    "norm1": "layer_norm1",
    "attn.proj": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp.0": "mlp.fc1",
    "mlp.2": "mlp.fc2",
}
"""Published name inside a layer -> the library's; the three projections into attention are one tensor there."""
END_NAMES = {
    "cls_embedding": "embeddings.class_embedding",
    "pos_embedding": "embeddings.position_embedding.weight",
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    **{f"pre_norm.{kind}": f"pre_layrnorm.{kind}" for kind in ("weight", "bias")},
    **{f"post_norm.{kind}": f"post_layernorm.{kind}" for kind in ("weight", "bias")},
}
"""Likewise, outside of layers."""
ROOT_MARK = END_NAMES["cls_embedding"]


@dataclass(frozen=True)
class PictureShape:
    """Everything that fixes the tensors of a checkpoint; the defaults are ViT-H/14's."""

    width: int = 1280
    mlp_width: int = 5120
    heads: int = 16
    layers: int = 32
    """In the file."""
    side: int = 224
    """Of the square picture, in pixels."""
    piece: int = 14
    """Of a token's piece of it."""

    @property
    def tokens(self) -> int:
        """Of a picture: its pieces, and one of the whole."""
        return (self.side // self.piece) ** 2 + 1

    @property
    def unused(self) -> tuple[str, ...]:
        """How names begin that are of no use here."""
        return (*UNUSED, f"visual.transformer.{self.layers - 1}.")

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Published name and shape of each that is used."""
        E = self.width
        layer: dict[str, tuple[int, ...]] = {}
        for name, shape in {
            "norm1": (E,),
            "attn.to_qkv": (3 * E, E),
            "attn.proj": (E, E),
            "norm2": (E,),
            "mlp.0": (self.mlp_width, E),
            "mlp.2": (E, self.mlp_width),
        }.items():
            layer |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
        ends: dict[str, tuple[int, ...]] = {
            "visual.cls_embedding": (1, 1, E),
            "visual.pos_embedding": (1, self.tokens, E),
            "visual.patch_embedding.weight": (E, 3, self.piece, self.piece),
            **{f"visual.{norm}.{kind}": (E,) for norm in ("pre_norm", "post_norm") for kind in ("weight", "bias")},
        }
        layers = range(self.layers - 1)
        return ends | {f"visual.transformer.{n}.{name}": shape for n in layers for name, shape in layer.items()}


def encode_picture(
    weights: Path, image_HWC: Tensor, size: PictureSize, shape: PictureShape, *, device: torch.device
) -> Tensor:
    """Tokens [T, E] float32 on the CPU of a uint8 picture that a model of `size` starts from; the network is gone then.

    Raises ConfigError where a library is missing, CheckpointError for weights that cannot be used.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    network = load_picture_encoder(weights, shape, device=device, dtype=dtype)
    with torch.inference_mode():
        pixels_1CHW = squeezed(image_HWC.to(device), size, shape.side)
        seen: Tensor = network(pixel_values=pixels_1CHW.to(dtype)).last_hidden_state
        return seen[0].float().cpu()


def squeezed(image_HWC: Tensor, size: PictureSize, side: int) -> Tensor:
    """The picture [1, C, side, side] float32 as CLIP takes it."""
    picture_CHW = scaled(image_HWC, size, "bilinear") / LARGEST
    square = fn.interpolate(picture_CHW[None], (side, side), mode="bicubic")
    mean, deviation = (torch.tensor(one, device=square.device)[:, None, None] for one in (MEAN, DEVIATION))
    return (square - mean) / deviation


def load_picture_encoder(weights: Path, shape: PictureShape, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The library's network with the tensors of the published file. Raises CheckpointError before one is read."""
    network = empty_picture_encoder(shape)
    # Releases of the library differ in what stands before all names.
    (root,) = (name.removesuffix(ROOT_MARK) for name in network.state_dict() if name.endswith(ROOT_MARK))
    load_renamed(
        network, weights, shape.tensors(), partial(_renamed, root), device=device, dtype=dtype, unused=shape.unused
    )
    embeddings = network.get_submodule(f"{root}embeddings")
    embeddings.position_ids = torch.arange(shape.tokens, device=device)[None]  # in no file
    return network


def empty_picture_encoder(shape: PictureShape) -> nn.Module:
    """The library's network without the last layer, on the meta device."""
    transformers = library("transformers", PURPOSE)
    config = transformers.CLIPVisionConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=shape.layers - 1,
        num_attention_heads=shape.heads,
        image_size=shape.side,
        patch_size=shape.piece,
        hidden_act="gelu",
    )
    with torch.device("meta"):
        network: nn.Module = transformers.CLIPVisionModel(config)
    return network


def _renamed(root: str, name: str, tensor: Tensor) -> dict[str, Tensor]:
    own = name.removeprefix("visual.")
    if own in END_NAMES:
        named = root + END_NAMES[own]
        return {named: tensor[0, 0] if own == "cls_embedding" else tensor[0] if own == "pos_embedding" else tensor}
    _, layer, inside = own.split(".", 2)
    part, _, kind = inside.rpartition(".")
    place = f"{root}encoder.layers.{layer}"
    if part == "attn.to_qkv":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"{place}.self_attn.{letter}_proj.{kind}": third for letter, third in thirds}
    return {f"{place}.{LAYER_NAMES[part]}.{kind}": tensor}
