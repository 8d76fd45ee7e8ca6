"""The umT5 encoder of LingBot's prompts: `transformers`' network with the published file's tensors.

- The published code pads a prompt to its full length, masks what it padded, and cuts it off again; here a prompt is
  never padded. The model pads with zero rows.
- Prompts are cleaned as published: mended by ftfy, HTML unescaped, white space to single blanks.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldkv.errors import CheckpointError, ConfigError
from worldkv.models.checkpoint import load_renamed
from worldkv.models.encoders.library import library

PURPOSE = "encoding a prompt"
LAYER_NAMES = {
    "norm1": "layer.0.layer_norm",
    "attn.q": "layer.0.SelfAttention.q",
    "attn.k": "layer.0.SelfAttention.k",
    "attn.v": "layer.0.SelfAttention.v",
    "attn.o": "layer.0.SelfAttention.o",
    "pos_embedding.embedding": "layer.0.SelfAttention.relative_attention_bias",
    "norm2": "layer.1.layer_norm",
    "ffn.gate.0": "layer.1.DenseReluDense.wi_0",
    "ffn.fc1": "layer.1.DenseReluDense.wi_1",
    "ffn.fc2": "layer.1.DenseReluDense.wo",
}
"""Published name inside a layer -> the library's."""


@dataclass(frozen=True)
class PromptShape:
    """Everything that fixes the tensors of a checkpoint; the defaults are umT5-xxl's."""

    vocabulary: int = 256384
    width: int = 4096
    mlp_width: int = 10240
    heads: int = 64
    head_dim: int = 64
    layers: int = 24
    buckets: int = 32
    """Of distances between tokens; each layer has a bias for each."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Published name and shape of each."""
        inside = self.heads * self.head_dim
        layer = {
            "norm1": (self.width,),
            **{f"attn.{part}": (inside, self.width) for part in "qkv"},
            "attn.o": (self.width, inside),
            "norm2": (self.width,),
            "ffn.gate.0": (self.mlp_width, self.width),
            "ffn.fc1": (self.mlp_width, self.width),
            "ffn.fc2": (self.width, self.mlp_width),
            "pos_embedding.embedding": (self.buckets, self.heads),
        }
        ends: dict[str, tuple[int, ...]] = {
            "token_embedding.weight": (self.vocabulary, self.width),
            "norm.weight": (self.width,),
        }
        layers = range(self.layers)
        return ends | {f"blocks.{n}.{name}.weight": shape for n in layers for name, shape in layer.items()}


def encode_prompt(
    weights: Path,
    tokenizer: Path,
    prompt: str,
    shape: PromptShape,
    *,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """Embeddings [tokens found, width] float32 on the CPU, of at most `tokens` tokens; the network is gone afterwards.

    Raises ConfigError where a library or the prompt is missing, CheckpointError for weights or a tokenizer that cannot
    be used.
    """
    ids_1T = token_ids(tokenizer, prompt, tokens, shape.vocabulary)
    network = load_prompt_encoder(weights, shape, device=device, dtype=dtype)
    with torch.inference_mode():
        seen: Tensor = network(input_ids=ids_1T.to(device)).last_hidden_state
        return seen[0].float().cpu()


def load_prompt_encoder(weights: Path, shape: PromptShape, *, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The library's network with the tensors of the published file. Raises CheckpointError before one is read."""
    network = empty_prompt_encoder(shape)
    load_renamed(network, weights, shape.tensors(), _renamed, device=device, dtype=dtype)
    return network


def empty_prompt_encoder(shape: PromptShape) -> nn.Module:
    """The library's network, on the meta device."""
    transformers = library("transformers", PURPOSE)
    config = transformers.UMT5Config(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        d_kv=shape.head_dim,
        d_ff=shape.mlp_width,
        num_layers=shape.layers,
        num_heads=shape.heads,
        relative_attention_num_buckets=shape.buckets,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        network: nn.Module = transformers.UMT5EncoderModel(config)
    return network


def token_ids(folder: Path, prompt: str, tokens: int, vocabulary: int) -> Tensor:
    """Numbers of the prompt's tokens [1, T], the end included; what is over `tokens` is cut off.

    Raises ConfigError for a prompt of nothing, CheckpointError for a tokenizer that cannot be used.
    """
    text = cleaned(prompt)
    if not text:
        raise ConfigError(f"prompt {prompt!r}: has no words")
    ids_1T: Tensor = _tokenizer(folder)(text, truncation=True, max_length=tokens, return_tensors="pt").input_ids
    if (highest := int(ids_1T.max())) >= vocabulary:
        raise CheckpointError(f"{folder}: has a token {highest}, and the encoder knows {vocabulary} tokens")
    return ids_1T


def cleaned(prompt: str) -> str:
    """The prompt as the published code cleans it."""
    mended = library("ftfy", PURPOSE).fix_text(prompt)
    return " ".join(html.unescape(html.unescape(mended)).split())


def _tokenizer(folder: Path) -> Any:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; the tokenizer belongs there")
    auto = library("transformers", PURPOSE).AutoTokenizer
    try:
        return auto.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as fault:
        reason = " ".join(str(fault).split())
        raise CheckpointError(f"{folder}: not a tokenizer that can be read: {reason}") from fault


def _renamed(name: str, tensor: Tensor) -> dict[str, Tensor]:
    stem = name.removesuffix(".weight")
    if stem == "token_embedding":
        return {"shared.weight": tensor, "encoder.embed_tokens.weight": tensor}
    if stem == "norm":
        return {"encoder.final_layer_norm.weight": tensor}
    _, layer, inside = stem.split(".", 2)
    return {f"encoder.block.{layer}.{LAYER_NAMES[inside]}.weight": tensor}
