"""What a published model is told, made by the encoders in its folder. Each is gone from the device afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from worldkv.models.checkpoint import refuse
from worldkv.models.encoders.picture import empty_picture_encoder, encode_picture
from worldkv.models.encoders.prompt import empty_prompt_encoder, encode_prompt
from worldkv.models.published import (
    PICTURE_ENCODER_FILE,
    PROMPT_ENCODER_FILE,
    TOKENIZER_FOLDER,
    Published,
    check_encoder,
    refuse_faulty,
    refuse_too_large,
)
from worldkv.models.wan.pictures import refuse_other_aspect
from worldkv.models.wan.shape import TextShape
from worldkv.runs.play_config import PlayConfig, PlayedModel

Progress = Callable[[str, int, int], None]
"""(what is in work, steps done, steps in all)."""
PROMPT, IMAGE_TOKENS = "prompt", "image_tokens"
"""By these names a model takes what its encoder says."""
PUBLISHED_DTYPE = torch.bfloat16
"""Of the prompt encoder's file. In float32 it would fill 21 GiB."""


def told(
    published: Published, config: PlayConfig, image_HWC: Tensor, device: torch.device, progress: Progress
) -> dict[str, Tensor]:
    """What a rollout's model is told and no file says; nothing, where a file says it.

    All else in the folder is looked at before its encoder is read: see `encoded_prompt` for what it raises. Random
    weights have no folder, and are told noise.
    """
    root, prompt = config.model.folder, config.inputs.prompt
    if config.inputs.embeddings is not None:
        return {}
    if root is None:
        return _noise(published, config.model)
    refuse_faulty(root, published)
    progress("encoding the image" if prompt is None else "encoding the prompt", 0, 1)
    if prompt is None:
        return {IMAGE_TOKENS: encoded_image(root, published, image_HWC, device)}
    return {PROMPT: encoded_prompt(root, published, prompt, device)}


def _noise(published: Published, model: PlayedModel) -> dict[str, Tensor]:
    """As much as an encoder would say."""
    assert model.random_weights is not None, "the configuration was checked"
    context = published.shape(model.size).context
    draw = torch.Generator().manual_seed(model.random_weights)
    if isinstance(context, TextShape):
        return {PROMPT: torch.randn(context.tokens, context.width, generator=draw)}
    return {IMAGE_TOKENS: torch.randn(published.picture_shape().tokens, context.width, generator=draw)}


def encoded_prompt(root: Path, published: Published, prompt: str, device: torch.device) -> Tensor:
    """Embeddings [tokens, width] float32 on the CPU.

    Raises CheckpointError where the folder's encoder cannot be used, CapacityError where it does not fit on the device,
    ConfigError where a library or the prompt is missing.
    """
    refuse(check_encoder(root, published).faults)
    shape, context = published.prompt_shape(), published.shape().context
    assert isinstance(context, TextShape)
    refuse_too_large(empty_prompt_encoder(shape).to(PUBLISHED_DTYPE), "the prompt encoder", device)
    weights, tokenizer = root / PROMPT_ENCODER_FILE, root / TOKENIZER_FOLDER
    found = encode_prompt(
        weights, tokenizer, prompt, shape, tokens=context.tokens, device=device, dtype=PUBLISHED_DTYPE
    )
    _free(device)
    return found


def encoded_image(root: Path, published: Published, image_HWC: Tensor, device: torch.device) -> Tensor:
    """Tokens [tokens, width] float32 on the CPU of a uint8 picture. Raises as `encoded_prompt`, and ModelError."""
    size = published.settings().picture
    refuse_other_aspect(image_HWC.shape[:2], size, "the image")
    refuse(check_encoder(root, published).faults)
    shape = published.picture_shape()
    refuse_too_large(empty_picture_encoder(shape), "the picture encoder", device)
    found = encode_picture(root / PICTURE_ENCODER_FILE, image_HWC, size, shape, device=device)
    _free(device)
    return found


def _free(device: torch.device) -> None:
    """Give the encoder's memory back to the device: what comes next asks how much is free there."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
