"""One world over several processes: the ranks of a sharded session, told apart by `Seat`, joined by torch.distributed.

    seat -> join -> open_rank -> open_session, rollout as ever -> leave

Every rank drives the same sessions through the same chunks with a memory of its own, which holds its heads' part of
each chunk; all of them make the same pictures. Which chunks are retrieved follows from poses, which all know, and from
what all have (`worldkv.session`); which tokens are kept, from sums over all heads that all add up alike. NCCL between
GPUs, one process each, gloo between CPUs. Nothing here knows Ray: whoever starts the processes hands out the seats.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from worldkv.config import MemoryConfig
from worldkv.errors import ConfigError, ModelError
from worldkv.memory.detail import parse_detail
from worldkv.models.published import named, open_model, random_model
from worldkv.models.ranks import Ranks
from worldkv.models.wan.model import WanModel
from worldkv.runs.play_config import PlayedModel

NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""NVLink multicast gains nothing at these sizes, and where hosts are shared it has put GPUs out of service."""


@dataclass(frozen=True)
class Seat:
    """One rank's place among the processes of a sharded session."""

    rank: int
    size: int
    address: str
    """Where the ranks find each other: `tcp://host:port`, a port free on rank 0's host, or `env://` under torchrun."""
    timeout_seconds: float = 300.0
    """The longest that ranks wait for each other: at the start, over the loading of weights, and inside a chunk."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.size or not self.timeout_seconds > 0:
            raise ConfigError(
                f"rank={self.rank}, size={self.size}, timeout_seconds={self.timeout_seconds}: the rank must be 0 or "
                "more and below the size, the timeout above 0"
            )


class TorchRanks:
    """`worldkv.models.ranks.Ranks` over the process group that `join` has made.

    Raises ModelError where another rank is gone or does not answer in time. Over NCCL a rank that waited in vain is
    ended by NCCL's watchdog instead.
    """

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    @property
    def rank(self) -> int:
        """See `Ranks`."""
        return self.seat.rank

    @property
    def size(self) -> int:
        """See `Ranks`."""
        return self.seat.size

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """See `Ranks`."""
        parts = x.new_empty((self.size, *x.shape))
        with self._heard("gathering"):
            dist.all_gather(list(parts), x.contiguous())
        return parts.movedim(0, dim).flatten(dim, dim + 1)

    def scatter_sum(self, x: Tensor, dim: int) -> Tensor:
        """See `Ranks`; added up in the dtype of `x`."""
        parts = torch.unflatten(x, dim, (self.size, -1)).movedim(dim, 0).contiguous()
        own = torch.empty_like(parts[0])
        with self._heard("summing"):
            dist.reduce_scatter(own, list(parts))
        return own

    def leave(self) -> None:
        """End the process group; does not wait for other ranks. The process can join another one afterwards."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _heard(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as fault:
            reason = str(fault).partition("\n")[0]
            raise ModelError(
                f"rank {self.rank} of {self.size}: another rank is gone, or was silent for "
                f"{self.seat.timeout_seconds:g} s, while {doing}: {reason}"
            ) from fault


def join(seat: Seat, device: torch.device) -> TorchRanks:
    """Meet the other ranks. Blocks until all are there; a process can be in one group at a time.

    `device` is the one this rank computes on. Raises ModelError where they do not meet in time.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        os.environ.update(NO_MULTICAST)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=seat.address,
            rank=seat.rank,
            world_size=seat.size,
            timeout=timedelta(seconds=seat.timeout_seconds),
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as fault:
        reason = str(fault).partition("\n")[0]
        raise ModelError(
            f"rank {seat.rank} of {seat.size}: no group of ranks at {seat.address} within {seat.timeout_seconds:g} s: "
            f"{reason}"
        ) from fault
    return TorchRanks(seat)


def open_rank(ranks: Ranks, wanted: PlayedModel, device: torch.device) -> WanModel:
    """This rank's part of a model; bfloat16 on GPUs, float32 on CPUs. All ranks must open the same one.

    Raises as `open_model` does. Its `epoch` names the weights of all ranks and this rank, so that no rank takes another
    one's chunks or snapshots for its own.
    """
    published = named(wanted.name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    if wanted.folder is None:
        assert wanted.random_weights is not None, "the configuration was checked"
        return random_model(published, wanted.random_weights, size=wanted.size, device=device, dtype=dtype, ranks=ranks)
    return open_model(
        wanted.folder, published, device=device, dtype=dtype, quick_decoder=wanted.quick_decoder, ranks=ranks
    )


def check_memory(config: MemoryConfig) -> None:
    """Raise ConfigError for a tier that prunes: it would look at this rank's heads alone, and keep other tokens."""
    for place, tier in enumerate(config.tiers):
        for detail in tier.detail:
            if parse_detail(detail).keep_ratio is not None:
                raise ConfigError(
                    f"memory.tiers.{place}.detail {detail!r}: a tier of a sharded session cannot prune, for it holds "
                    "some heads only; prune by the policy (keep=0.5), or give a codec alone"
                )
