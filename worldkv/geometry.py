"""The shape of a model's KV: what window, memory and models all have to agree on."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class KVGeometry:
    """Shape of a model's KV, and the clip length it was trained on."""

    layers: int
    heads: int
    head_dim: int
    rows: int
    columns: int
    chunk_latent_frames: int
    trained_latent_frames: int

    @property
    def tokens_per_latent_frame(self) -> int:
        """One latent frame's tokens, rows x columns."""
        return self.rows * self.columns

    @property
    def tokens_per_chunk(self) -> int:
        """Tokens generated together."""
        return self.chunk_latent_frames * self.tokens_per_latent_frame

    def kv_bytes(self, tokens: int, dtype: torch.dtype = torch.bfloat16) -> int:
        """Bytes of keys and values of `tokens` tokens in all layers."""
        return 2 * self.layers * tokens * self.heads * self.head_dim * dtype.itemsize
