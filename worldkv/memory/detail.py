"""Losing detail instead of the chunk: bf16 -> int4 -> pruned and int4. A tier's ladder says which steps it takes.

Shapes: T tokens, L layers, H heads, D head dim.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from worldkv.errors import ConfigError
from worldkv.memory.catalogue import Form
from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.compression import Pruning, Rule, gather, kept_tokens
from worldkv.window import rotary


@dataclass(frozen=True)
class Detail:
    """One rung: how a chunk is stored from there on."""

    codec: str
    keep_ratio: float | None = None
    """Share of tokens kept of each latent frame but the anchor; None: all."""
    rule: Rule = "nearest"
    """By what tokens are chosen, where not all are kept."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise ConfigError(f"detail {self.codec!r}: must be one of {', '.join(CODECS)}, alone or with /keep=0.5")
        self.pruning()  # raises where it is not allowed

    def pruning(self) -> Pruning | None:
        """How tokens are left out; None where all are kept."""
        return None if self.keep_ratio is None else Pruning(self.keep_ratio, self.rule, joint=True)


@dataclass(frozen=True)
class Ladder:
    """Rungs from fine to coarse. Empty: chunks here keep all detail."""

    rungs: tuple[Detail, ...] = ()
    rows: int = 0
    """Of a latent frame's grid of tokens, which pruning has to name; needed where a rung prunes."""
    columns: int = 0

    def __post_init__(self) -> None:
        if self.rows * self.columns < 1 and any(rung.keep_ratio is not None for rung in self.rungs):
            raise ConfigError(f"rows={self.rows}, columns={self.columns}: pruning needs the model's grid of tokens")

    def next_rung(self, form: Form | None) -> Detail | None:
        """The first rung that would make a chunk of this form smaller; None when it has lost all it can lose."""
        if form is None:
            return None
        now = CODECS[form.codec].nbytes(form.shape)
        return next((rung for rung in self.rungs if self._bytes_on(rung, form) < now), None)

    def reduce(self, chunk: KVChunk, rung: Detail) -> KVChunk:
        """The same chunk with the detail of the rung; another id, for its bytes are others. Decodes and encodes."""
        k, v = CODECS[chunk.encoded.codec].decode(chunk.encoded)
        ids = chunk.token_ids_T3
        pruning = rung.pruning()
        if pruning is not None and ids is None:
            frames = len(chunk.c2w_F44)
            kept = kept_tokens(k, frames, pruning)
            k, v = gather(k, kept), gather(v, kept)
            ids = rotary.grid_token_ids(frames, self.rows, self.columns)[kept.cpu()].numpy().astype(np.int16)
        return make_chunk(
            tenant=chunk.tenant,
            epoch=chunk.epoch,
            index=chunk.index,
            c2w_F44=chunk.c2w_F44,
            encoded=CODECS[rung.codec].encode(k, v),
            token_ids_T3=ids,
        )

    def _bytes_on(self, rung: Detail, form: Form) -> int:
        layers, tokens, heads, channels = form.shape
        pruning = rung.pruning()
        if pruning is not None and not form.pruned:
            size = self.rows * self.columns
            if tokens % size:
                return sys.maxsize  # another model's chunk: which tokens make a latent frame is not known
            tokens = size + (tokens // size - 1) * pruning.kept_per_frame(size)
        return CODECS[rung.codec].nbytes((layers, tokens, heads, channels))


def parse_detail(text: str) -> Detail:
    """`int4`, `int4/keep=0.5`, or `int4/keep=0.5/rule=centroid`, by default `nearest`. Raises ConfigError."""
    codec, *changes = text.split("/")
    values = dict(change.split("=", 1) for change in changes if "=" in change)
    if len(values) < len(changes) or not values.keys() <= {"keep", "rule"}:
        raise ConfigError(
            f"detail {text!r}: expected a codec alone, or with /keep=0.5, or with /keep=0.5/rule=centroid"
        )
    if "keep" not in values and "rule" in values:
        raise ConfigError(f"detail {text!r}: rule says how to prune, but not how much: add keep=0.5")
    try:
        keep_ratio = float(values["keep"]) if values else None
    except ValueError:
        raise ConfigError(f"detail {text!r}: keep must be a number above 0 and at most 1") from None
    try:
        return Detail(codec, keep_ratio, values.get("rule", Detail.rule))  # type: ignore[arg-type]  # checked there
    except ConfigError as fault:
        raise ConfigError(f"detail {text!r}: {fault}" if changes else str(fault)) from None
