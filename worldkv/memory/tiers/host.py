"""Chunks in the host's memory: one slab, pinned piece by piece in the background where there is a GPU.

Chunks are served at once: a copy from or to a piece that is not pinned yet is merely slower. The low end is pinned
first, and taken first.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from contextlib import suppress
from threading import Event, Thread
from typing import Any, Protocol, Self

import torch

from worldkv.errors import ConfigError
from worldkv.memory.fragments import PIN_PIECE_BYTES
from worldkv.memory.tiers.headroom import Headroom, host_headroom
from worldkv.memory.tiers.slab import GRAIN_BYTES, HostSlab, SlabTier

# cudaHostRegisterPortable: pinned for every device of the process, whichever thread pinned it.
PORTABLE = 1
# Not reserved: `open` has asked whether the memory is there, and on some machines it comes as it is touched.
# MAP_NORESERVE as Linux numbers it on x86 and Arm: the mmap of Python 3.11 has no name for it.
MAP_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x4000


class Registrar(Protocol):
    """Makes host memory known to a device's driver, which keeps its pages in place."""

    def pin(self, address: int, nbytes: int) -> None:
        """Blocks for 0.7 s per GiB. Raises RuntimeError."""
        ...

    def unpin(self, address: int) -> None:
        """Take back a `pin`. Raises RuntimeError."""
        ...


class HostTier(SlabTier):
    """See `SlabTier`; `open` allocates and starts to pin, `close` takes the pins back."""

    def __init__(self, name: str, buffer: memoryview, registrar: Registrar | None = None) -> None:
        super().__init__(name, HostSlab(buffer))
        self._address = address_of(buffer)
        self._registrar = registrar
        self._pinned: list[int] = []
        self._pin_fault: str | None = None
        self._closing = Event()
        self._thread: Thread | None = None

    @classmethod
    def open(
        cls,
        name: str,
        capacity_bytes: int,
        *,
        headroom: Callable[[], Headroom | None] = host_headroom,
        registrar: Registrar | None = None,
    ) -> Self:
        """A tier over fresh memory; returns at once and pins in a thread. `registrar`: CUDA's driver where it is there.

        Before it allocates it asks for the `headroom`; a machine whose memory grows on demand may pass another.
        Raises ConfigError.
        """
        _refuse_unless_it_fits(name, capacity_bytes, headroom())
        if registrar is None and torch.cuda.is_available():
            registrar = CudaRegistrar()
        tier = cls(name, _allocate(name, capacity_bytes), registrar)
        if registrar is not None:
            tier._thread = Thread(target=tier.pin, name=f"worldkv-pin-{name}", daemon=True)
            tier._thread.start()
        return tier

    @property
    def pinned_bytes(self) -> int:
        """Bytes at the slab's low end that are pinned by now."""
        return min(len(self._pinned) * PIN_PIECE_BYTES, self._slab.nbytes)

    @property
    def pin_fault(self) -> str | None:
        """Why not all is pinned, or not all could be unpinned; what is not pinned serves as plain memory."""
        return self._pin_fault

    def pin(self) -> None:
        """Pin piece after piece until all are, one fails, or the tier closes. For the thread that `open` starts."""
        assert self._registrar is not None
        for start in range(0, self._slab.nbytes, PIN_PIECE_BYTES):
            if self._closing.is_set():
                return
            nbytes = min(PIN_PIECE_BYTES, self._slab.nbytes - start)
            try:
                self._registrar.pin(self._address + start, nbytes)
            except RuntimeError as fault:
                self._pin_fault = f"tier {self.name}: {start} of {self._slab.nbytes} bytes pinned, then: {fault}"
                return
            self._pinned.append(self._address + start)

    def wait_pinned(self) -> None:
        """Block until pinning has ended."""
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        """Forget all chunks and unpin; the memory goes with its last reader. No transfer may be under way."""
        self._closing.set()
        self.wait_pinned()
        while self._pinned and self._registrar is not None:
            address = self._pinned.pop()
            try:
                self._registrar.unpin(address)
            except RuntimeError as fault:  # the others are to be unpinned all the same
                self._pin_fault = f"tier {self.name}: the piece at byte {address - self._address} stays pinned: {fault}"
        super().close()


class CudaRegistrar:
    """The CUDA driver of this process."""

    def pin(self, address: int, nbytes: int) -> None:
        """See `Registrar.pin`."""
        _check(_driver().cudaHostRegister(address, nbytes, PORTABLE))

    def unpin(self, address: int) -> None:
        """See `Registrar.unpin`."""
        _check(_driver().cudaHostUnregister(address))


def address_of(buffer: memoryview) -> int:
    """Where the buffer's first byte lies."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def _driver() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]  # torch's


def _check(code: object) -> None:
    number = int(code)  # type: ignore[call-overload]  # an enumeration of C++
    if number:
        raise RuntimeError(f"CUDA error {number} of cudaHostRegister or cudaHostUnregister")


def _refuse_unless_it_fits(name: str, capacity_bytes: int, headroom: Headroom | None) -> None:
    key = f"tier {name}: capacity_bytes = {capacity_bytes}"
    if capacity_bytes < GRAIN_BYTES:
        raise ConfigError(f"{key}: at least {GRAIN_BYTES} are needed")
    if headroom is not None and capacity_bytes > headroom.nbytes:
        raise ConfigError(
            f"{key}: only {headroom.nbytes} bytes can be had ({headroom.limit}); lower capacity_bytes to at most "
            f"that, or raise the limit"
        )


def _allocate(name: str, capacity_bytes: int) -> memoryview:
    """Zeroed memory that starts at a multiple of PIN_PIECE_BYTES; none of it is backed before it is touched."""
    try:
        mapped = mmap.mmap(-1, capacity_bytes + PIN_PIECE_BYTES, flags=MAP_FLAGS)
    except (OSError, ValueError, OverflowError) as fault:
        raise ConfigError(
            f"tier {name}: capacity_bytes = {capacity_bytes}: the system refuses to map it: {fault}; lower "
            f"capacity_bytes, or raise the limit on address space (ulimit -v)"
        ) from fault
    # Fewer, larger pages: quicker to touch for the first time, and to pin. Not every kernel has them.
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            mapped.madvise(mmap.MADV_HUGEPAGE)
    whole = memoryview(mapped)
    start = -address_of(whole) % PIN_PIECE_BYTES
    return whole[start : start + capacity_bytes]
