"""Pruning: which tokens of a chunk to keep, and taking them out. Any device; keys rotated or not.

L layers, F latent frames, S tokens per latent frame, T = F*S tokens, H heads, D head dim, K kept tokens.

One latent frame, the anchor, is kept whole. Of the others those tokens stay that the anchor says least about:

- `centroid`: lowest cosine similarity to the mean anchor key (published: arXiv 2605.22718,
  `_compress_retrieval_kv` in wan/modules/model_fast.py);
- `nearest`: lowest maximum cosine similarity to any anchor token. 1.1 dB better at the same size in the
  small world.

Both take a key over all heads as one vector. The published code decides per layer; `joint` lets the mean
similarity over the layers decide, so that a chunk stores one list of token ids, its layers stay aligned and
one table of angles rotates them all. Prefer `joint` for storage, per layer for parity.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from worldkv.errors import ConfigError

# Added to the product of norms by the published code; a zero key then has similarity 0 instead of NaN.
NORM_EPSILON = 1e-8


Rule = Literal["centroid", "nearest"]


@dataclass(frozen=True)
class Pruning:
    """How much of a chunk to keep, and by which rule."""

    keep_ratio: float
    """Kept share of each latent frame but the anchor, in (0, 1]: ceil(keep_ratio * S) tokens."""
    rule: Rule = "centroid"
    """What a token is compared with: the mean anchor key, or the most similar anchor token."""
    pooled: bool = False
    """True shares one budget among the latent frames; False gives each the same. The total is the same."""
    joint: bool = False
    """True decides once for all layers; False for each layer alone."""
    anchor_frame: int = 0
    """Latent frame that is kept whole. (Published `anchor_rotate`: place in retrieval order modulo F.)"""

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"keep_ratio={self.keep_ratio}: must be above 0 and at most 1")
        if self.rule not in _SIMILARITY:
            raise ConfigError(f"rule={self.rule!r}: must be one of {', '.join(_SIMILARITY)}")
        if self.anchor_frame < 0:
            raise ConfigError(f"anchor_frame={self.anchor_frame}: must be 0 or more")

    def kept_per_frame(self, tokens_per_frame: int) -> int:
        """Tokens kept of each latent frame but the anchor."""
        return min(tokens_per_frame, max(1, math.ceil(self.keep_ratio * tokens_per_frame)))


Total = Callable[[Tensor], Tensor]
"""Sum over the parts of a key's heads that are held apart: what is added up here and elsewhere."""


def kept_tokens(k_LTHD: Tensor, latent_frames: int, pruning: Pruning, total: Total = lambda part: part) -> Tensor:
    """Token indices to keep: int64 [L, K], or [K] where `pruning.joint`; on the device of the keys.

    Where each of several processes has some heads of the same keys, all decide alike if `total` adds up alike.
    Ascending, but `pooled` lists the anchor first, as published. Of equally similar tokens the first is kept.
    Raises ConfigError where the tokens do not divide into latent frames, or the anchor is not among them.
    """
    layers, tokens = k_LTHD.shape[:2]
    if latent_frames < 1 or tokens % latent_frames or pruning.anchor_frame >= latent_frames:
        raise ConfigError(
            f"{tokens} tokens, latent_frames={latent_frames}, anchor_frame={pruning.anchor_frame}: "
            "tokens must divide by latent_frames, and the anchor be one of them"
        )
    size, anchor = tokens // latent_frames, pruning.anchor_frame
    index_FS = torch.arange(tokens, device=k_LTHD.device).view(latent_frames, size)
    kept = pruning.kept_per_frame(size)
    rows = 1 if pruning.joint else layers
    if kept == size or latent_frames == 1:
        kept_LK = index_FS.flatten().expand(rows, -1)
    else:
        similarity_LFS = _SIMILARITY[pruning.rule](
            torch.unflatten(k_LTHD, 1, (latent_frames, size)).float(), anchor, total
        )
        if pruning.joint:
            similarity_LFS = similarity_LFS.mean(0, keepdim=True)
        others = [frame for frame in range(latent_frames) if frame != anchor]
        chosen_LRK = _least_similar(similarity_LFS[:, others], index_FS[others], kept, pruning.pooled)
        anchor_L1S = index_FS[anchor].expand(rows, 1, size)
        kept_LK = torch.cat([anchor_L1S.flatten(1), chosen_LRK.flatten(1)], dim=1)
        if not pruning.pooled:
            kept_LK = kept_LK.sort(dim=1).values
    return kept_LK[0] if pruning.joint else kept_LK


def gather(x_LTHD: Tensor, kept: Tensor) -> Tensor:
    """The kept tokens, [L, K, H, D], copied bit-exact; `kept` is [K] for all layers or [L, K]."""
    if kept.dim() == 1:
        return x_LTHD.index_select(1, kept)
    index_LKHD = kept[:, :, None, None].expand(-1, -1, *x_LTHD.shape[2:])
    return x_LTHD.gather(1, index_LKHD)


def _least_similar(similarity_LRS: Tensor, index_RS: Tensor, kept: int, pooled: bool) -> Tensor:
    budget = kept
    if pooled:
        budget = kept * index_RS.shape[0]
        similarity_LRS, index_RS = similarity_LRS.flatten(1)[:, None], index_RS.reshape(1, -1)
    # A stable sort, not topk: which of two equal tokens topk takes is left to the device.
    place_LRK = similarity_LRS.sort(dim=-1, stable=True).indices[..., :budget].sort(dim=-1).values
    return index_RS.expand(len(place_LRK), -1, -1).gather(2, place_LRK)


def _to_centroid(k_LFSHD: Tensor, anchor: int, total: Total) -> Tensor:
    centroid_LHD = k_LFSHD[:, anchor].mean(dim=1)
    dot_LFS = total((k_LFSHD * centroid_LHD[:, None, None]).sum(dim=(-2, -1)))
    norm_LFS = total(k_LFSHD.square().sum(dim=(-2, -1))).sqrt()
    norm_L = total(centroid_LHD.square().sum(dim=(-2, -1))).sqrt()
    return dot_LFS / (norm_LFS * norm_L[:, None, None] + NORM_EPSILON)


def _to_nearest(k_LFSHD: Tensor, anchor: int, total: Total) -> Tensor:
    key_LFSC = k_LFSHD.flatten(3)
    norm_LFS1 = total(key_LFSC.norm(dim=-1, keepdim=True).square()).sqrt()
    unit_LFSC: Tensor = key_LFSC / (norm_LFS1 + NORM_EPSILON)
    anchor_L1CS = unit_LFSC[:, anchor, None].transpose(-1, -2)
    return total(unit_LFSC @ anchor_L1CS).amax(dim=-1)


_SIMILARITY: dict[str, Callable[[Tensor, int, Total], Tensor]] = {"centroid": _to_centroid, "nearest": _to_nearest}
