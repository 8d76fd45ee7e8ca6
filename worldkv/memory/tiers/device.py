"""Chunks in the memory of one device, preallocated, so that no allocation happens while worlds run.

- A chunk handed out is a view of the slab; kernels that read it may still be enqueued when its last view goes. Whoever
  writes there next on another stream waits for them: `Reservation.after`.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from worldkv.errors import ConfigError
from worldkv.memory import digests
from worldkv.memory.ticket import Mark
from worldkv.memory.tiers.extents import Extent
from worldkv.memory.tiers.slab import GRAIN_BYTES, HostSlab, SlabTier, slide
from worldkv.memory.transfer import fence


class DeviceTier(SlabTier):
    """See `SlabTier`; chunks are read on the device's current stream, or through a transfer engine."""

    @classmethod
    def open(cls, name: str, device: torch.device, capacity_bytes: int) -> Self:
        """A tier over fresh memory of the device, all of it allocated now. Raises ConfigError where it is not there."""
        if capacity_bytes < GRAIN_BYTES:
            raise ConfigError(f"tier {name}: capacity_bytes = {capacity_bytes}: at least {GRAIN_BYTES} are needed")
        if device.type != "cuda":
            return cls(name, HostSlab(torch.zeros(capacity_bytes, dtype=torch.uint8).numpy().data))
        free, total = torch.cuda.mem_get_info(device)
        if capacity_bytes > free:
            raise ConfigError(
                f"tier {name}: capacity_bytes = {capacity_bytes}: {free} of {total} bytes of {device} are free; lower "
                f"capacity_bytes to at most that, or end what else runs there"
            )
        return cls(name, CudaSlab(torch.empty(capacity_bytes, dtype=torch.uint8, device=device)))

    @property
    def digest_fault(self) -> str | None:
        """Why the GPU does not compute its chunks' digests; then the host does, at the cost of a copy."""
        return digests.fault(self._slab.device) if isinstance(self._slab, CudaSlab) else None


class CudaSlab:
    """Memory of one GPU."""

    def __init__(self, memory_N: Tensor) -> None:
        self._memory_N = memory_N

    @property
    def nbytes(self) -> int:
        """Its size."""
        return self._memory_N.nbytes

    @property
    def device(self) -> torch.device:
        """The GPU."""
        return self._memory_N.device

    def span(self, extent: Extent) -> object:
        """See `Slab.span`."""
        return _Span(self._memory_N[extent.start : extent.stop])

    def tensor(self, span: object) -> Tensor:
        """See `Slab.tensor`."""
        return torch.as_tensor(span, device=self._memory_N.device)

    def slide(self, old: Extent, new: Extent) -> None:
        """See `Slab.slide`; on the current stream."""
        slide(self._memory_N, old, new)

    def fence(self) -> Mark | None:
        """See `Slab.fence`."""
        return fence(self._memory_N.device)


class _Span:
    """Tensors made of it have a storage of their own, which holds the span: so its life tells theirs."""

    def __init__(self, memory_N: Tensor) -> None:
        self._memory_N = memory_N

    @property
    def __cuda_array_interface__(self) -> dict[str, object]:
        n = self._memory_N
        return {"shape": tuple(n.shape), "typestr": "|u1", "data": (n.data_ptr(), False), "version": 3}
