"""One world over several processes: the ranks of a sharded session, told apart by `Seat`, joined by torch.distributed.

    seat -> open_rank -> open_session, rollout as ever -> leave

Every rank drives the same sessions through the same chunks with a memory of its own, which holds its heads' part of
each chunk; all of them make the same pictures. Which chunks are retrieved follows from poses, which all know, and from
what all have (`worldkv.session`); which tokens are kept, from sums over all heads that all add up alike. NCCL between
GPUs, one process each, gloo between CPUs. Nothing here knows Ray: whoever starts the processes hands out the seats.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]  # exported without saying so

from worldkv.errors import ConfigError, ModelError
from worldkv.memory.detail import parse_detail
from worldkv.models.ranks import Ranks
from worldkv.models.wan.model import WanModel

SIOCGIFADDR = 0x8915
"""Linux's request for the address of a network device."""
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


class Load(Protocol):
    """How one rank loads its part of a model."""

    def __call__(self, *, ranks: Ranks) -> WanModel:
        """May take as long as `Seat.timeout_seconds` longer or shorter than on another rank."""
        ...


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

    @contextmanager
    def _heard(self, doing: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as fault:
            raise ModelError(
                f"rank {self.rank} of {self.size}: another rank is gone, or was silent for "
                f"{self.seat.timeout_seconds:g} s, while {doing}: {_first_line(fault)}"
            ) from fault


def listen(host: str, size: int, seconds: float) -> TCPStore:
    """A place for `size` ranks to meet: at `host` alone, on a port that the system picks (`Store.port`).

    For rank 0, which gives it to `join`; the others `reach` it. Raises ModelError.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listening:
            listening.bind((host, 0))
            listening.listen()
            port, patience = listening.getsockname()[1], timedelta(seconds=seconds)
            # The store takes the open socket over: between picking a port and listening there nobody else can get it.
            return TCPStore(
                host,
                port,
                size,
                is_master=True,
                timeout=patience,
                wait_for_workers=False,
                master_listen_fd=listening.detach(),
            )
    except (OSError, RuntimeError) as fault:
        raise ModelError(f"{size} ranks cannot meet at {host}: {_first_line(fault)}") from fault


def reach(seat: Seat) -> TCPStore:
    """The store at which rank 0 of `seat.address` listens. Blocks; raises ModelError where nobody does in time."""
    host, _, port = seat.address.removeprefix("tcp://").rpartition(":")
    try:
        return TCPStore(host, int(port), seat.size, is_master=False, timeout=_patience(seat))
    except (RuntimeError, ValueError) as fault:
        raise _unmet(seat, fault) from fault


def keep_to(host: str) -> None:
    """Let the ranks of this process exchange over the network device of this address, unless the user named another."""
    names = [name for _, name in socket.if_nameindex() if _address_of(name) == host]
    for name in names[:1]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)


def join(seat: Seat, device: torch.device, meeting: Store | None = None) -> TorchRanks:
    """Meet the other ranks. Blocks until all are there; a process can be in one group at a time.

    `device` is the one this rank computes on; `meeting` is used in place of the seat's address. Raises ModelError where
    they do not meet in time.
    """
    on_gpu = device.type == "cuda"
    if on_gpu:
        os.environ.update(NO_MULTICAST)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            init_method=seat.address if meeting is None else None,
            store=meeting,
            rank=seat.rank,
            world_size=seat.size,
            timeout=_patience(seat),
            device_id=device if on_gpu else None,
        )
    except (RuntimeError, ValueError) as fault:
        raise _unmet(seat, fault) from fault
    return TorchRanks(seat)


def leave() -> None:
    """End this process's group; does not wait for the others. The process can join another one afterwards."""
    if dist.is_initialized():
        dist.destroy_process_group()


def open_rank(seat: Seat, device: torch.device, load: Load, meeting: Store | None = None) -> WanModel:
    """Join the other ranks and load this one's part of a model; `leave` once it is not needed any more.

    `load` is `open_model` or `random_model` of `worldkv.models.published` with all arguments but `ranks`, the same on
    each rank: `partial(open_model, folder, named(name), device=device, dtype=dtype)`. Its `epoch` names the weights of
    all ranks and this rank, so that none takes another one's chunks or snapshots for its own. Blocks until all are
    there. Raises what `join` and `load` raise; then this process is in no group.
    """
    ranks = join(seat, device, meeting)
    try:
        return load(ranks=ranks)
    except BaseException:
        leave()
        raise


def check_details(details: Iterable[str]) -> None:
    """Raise ConfigError where a memory tier's ladder prunes: it would look at this rank's heads alone.

    Ranks would keep other tokens, each at its own time. A ladder of codecs is allowed.
    """
    for detail in details:
        if parse_detail(detail).keep_ratio is not None:
            raise ConfigError(
                f"detail {detail!r}: a memory tier of a sharded session cannot prune, for it holds some heads only; "
                "prune by the policy (keep=0.5), or give a codec alone"
            )


def _patience(seat: Seat) -> timedelta:
    return timedelta(seconds=seat.timeout_seconds)


def _unmet(seat: Seat, fault: Exception) -> ModelError:
    return ModelError(
        f"rank {seat.rank} of {seat.size}: no group of ranks at {seat.address} within {seat.timeout_seconds:g} s: "
        f"{_first_line(fault)}"
    )


def _first_line(fault: Exception) -> str:
    return str(fault).partition("\n")[0]


def _address_of(device: str) -> str:
    """IPv4 address of a network device; '' where it has none."""
    request = struct.pack("256s", device.encode())
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            return socket.inet_ntoa(fcntl.ioctl(any_socket, SIOCGIFADDR, request)[20:24])
        except OSError:
            return ""
