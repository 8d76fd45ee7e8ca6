"""Into which pieces a payload is cut for a copy. Pure.

A piece is long enough for a copy engine to reach its rate, and short enough that a transfer can be stopped or overtaken
within a fraction of a millisecond. Several layers go together where layers are short; a long layer goes in parts.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

# Large beside the cost of enqueueing it, small beside a chunk: four of them reach nine tenths of the link of an H100
# (benchmarks/transfer_h100_202611.md).
FRAGMENT_BYTES = 8 * 2**20
# Host memory is pinned in pieces that start at multiples of this; one copy must not cross from piece to piece. Other
# calls of the driver may have to wait while one is pinned, so it is small.
PIN_PIECE_BYTES = 64 * 2**20


class Fragment(NamedTuple):
    """Bytes start..stop-1 of a payload."""

    start: int
    stop: int


def layer_runs(layers: int, layer_bytes: int) -> list[range]:
    """Runs of layers of about FRAGMENT_BYTES, at least a quarter of that where the payload is; a long layer alone."""
    runs = min(layers, max(1, -(-layers * layer_bytes // FRAGMENT_BYTES)))
    return [range(i * layers // runs, (i + 1) * layers // runs) for i in range(runs)]


def fragments_of(layers: int, layer_bytes: int, host_address: int) -> list[Fragment]:
    """The fragments of a payload, in order; `host_address` is where its host end lies.

    Only a cut between two pinned pieces makes one shorter than a quarter of FRAGMENT_BYTES.
    """
    nbytes = layers * layer_bytes
    if nbytes <= FRAGMENT_BYTES and host_address % PIN_PIECE_BYTES + nbytes <= PIN_PIECE_BYTES:
        return [Fragment(0, nbytes)]
    fragments: list[Fragment] = []
    for run in layer_runs(layers, layer_bytes):
        start, nbytes = run.start * layer_bytes, len(run) * layer_bytes
        # Twice the length is let pass: a run is uneven by up to one layer.
        parts = 1 if nbytes < 2 * FRAGMENT_BYTES else -(-nbytes // FRAGMENT_BYTES)
        ends = [start + nbytes * i // parts for i in range(parts + 1)]
        for first, last in pairwise(ends):
            fragments += _between_pieces(first, last, host_address)
    return fragments


def _between_pieces(start: int, stop: int, host_address: int) -> list[Fragment]:
    first = (host_address + start) // PIN_PIECE_BYTES + 1
    last = (host_address + stop - 1) // PIN_PIECE_BYTES
    cuts = [piece * PIN_PIECE_BYTES - host_address for piece in range(first, last + 1)]
    return [Fragment(a, b) for a, b in zip([start, *cuts], [*cuts, stop], strict=True)]
