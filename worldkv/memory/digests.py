"""Digests of a payload's layers, xxh3-128: computed where the payload lies, so that nothing has to be copied for them.

On a GPU by kernels of our own (`xxh3.cu`), at the rate of its memory: they are compiled at first use, and used only
once they have agreed with xxhash. Where they can't be had, payloads are copied to the host and digested there: `fault`.

Shapes: L layers, N bytes of one layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
import xxhash
from torch import Tensor

DIGEST_BYTES = 16
# As `xxh3.cu` has them.
BLOCK_BYTES, WORD_BYTES, WORDS = 1024, 8, 8
THREADS = 128
# What kernels may use beside the payload, a sixteenth of the layers that they digest at a time.
SCRATCH_BYTES = 64 * 2**20
# Shorter inputs are digested in another way, and layers are never that short but in tests.
SHORTEST_BYTES = 241
LONGEST_BYTES = 2**31 - 1


def digests_of(payload_LN: Tensor) -> tuple[bytes, ...]:
    """xxh3-128 of each layer. Reads the whole payload; waits for its device, as far as the current stream goes."""
    nbytes = payload_LN.shape[1]
    fits = SHORTEST_BYTES <= nbytes <= LONGEST_BYTES and nbytes % WORD_BYTES == 0
    if payload_LN.is_cuda and fits and payload_LN.is_contiguous():
        kernels, _ = _kernels_of(payload_LN.device)
        if kernels is not None:
            return kernels.digests(payload_LN)
    return _on_host(payload_LN)


def computed_on(device: torch.device) -> bool:
    """Whether digests of payloads there are computed there. Compiles for a GPU, the first time."""
    return device.type != "cuda" or _kernels_of(device)[0] is not None


def fault(device: torch.device) -> str | None:
    """Why digests of the GPU's payloads are computed by the host; None where they are not."""
    return None if device.type != "cuda" else _kernels_of(device)[1]


def _on_host(payload_LN: Tensor) -> tuple[bytes, ...]:
    return tuple(xxhash.xxh3_128_digest(layer_N) for layer_N in payload_LN.cpu().numpy())


@dataclass(frozen=True)
class Kernels:
    """Compiled for one GPU: each is called with grid, block and args."""

    block_sums: Callable[..., None]
    chain: Callable[..., None]
    finish: Callable[..., None]

    @classmethod
    def compiled(cls, device: torch.device) -> Self:
        """Blocks for about a second. Raises RuntimeError, OSError, AttributeError where it is not to be had."""
        source = Path(__file__).with_name("xxh3.cu").read_text()
        build: Callable[[str, str], Any] = torch.cuda._compile_kernel
        with torch.cuda.device(device):
            return cls(*(build(source, name) for name in ("block_sums", "chain", "finish")))

    def digests(self, payload_LN: Tensor) -> tuple[bytes, ...]:
        """See `digests_of`; of rows that are contiguous, as xxhash digests more than 240 bytes."""
        layer_scratch_bytes = -(-payload_LN.shape[1] // BLOCK_BYTES) * WORDS * WORD_BYTES
        at_a_time = max(1, SCRATCH_BYTES // layer_scratch_bytes)
        starts = range(0, len(payload_LN), at_a_time)
        found_LN = torch.cat([self._digests(payload_LN[start : start + at_a_time]) for start in starts])
        return tuple(bytes(digest) for digest in found_LN.cpu().numpy())

    def _digests(self, payload_LN: Tensor) -> Tensor:
        layers, nbytes = payload_LN.shape
        blocks, words = (nbytes - 1) // BLOCK_BYTES + 1, nbytes // WORD_BYTES
        with torch.cuda.device_of(payload_LN):  # type: ignore[no-untyped-call]  # torch's
            sums = payload_LN.new_empty(layers * blocks * WORDS, dtype=torch.int64)
            ends = payload_LN.new_empty(layers * WORDS, dtype=torch.int64)
            found_LN = payload_LN.new_empty((layers, DIGEST_BYTES))
            _launch(self.block_sums, len(sums), [payload_LN, sums, layers, words, blocks])
            _launch(self.chain, len(ends), [payload_LN, sums, ends, layers, words, blocks])
            _launch(self.finish, layers, [ends, found_LN, layers, words])
        return found_LN


def _launch(kernel: Callable[..., None], threads: int, args: list[Tensor | int]) -> None:
    kernel(grid=(-(-threads // THREADS), 1, 1), block=(THREADS, 1, 1), args=args)


@functools.cache
def _kernels_of(device: torch.device) -> tuple[Kernels | None, str | None]:
    """Those of a GPU, or why there are none. Not only a driver may be missing: what they compute may be wrong."""
    try:
        kernels = Kernels.compiled(device)
        probe_LN = torch.arange(2 * 19 * 1000, device=device).mul_(0x9E3779B185EBCA8).view(torch.uint8).view(2, -1)
        if kernels.digests(probe_LN) != _on_host(probe_LN):
            return None, f"{device}: the kernels that compute digests do not agree with xxhash"
    except (RuntimeError, OSError, AttributeError) as raised:
        return None, f"{device}: the kernels that compute digests cannot be built: {raised}"
    return kernels, None
