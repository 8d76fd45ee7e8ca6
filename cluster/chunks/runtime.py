"""Servers, directories and bytes by way of Ray: what `client` asks of a network.

- Bytes travel as one uint8 array per chunk, never as tensors or pickled objects; a handle is a boxed ObjectRef, which
  Ray does not resolve on its way.
- A party that does not answer in time, or is dead, is a TransferError; for a moment it is then not asked again.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.chunks.labels import DURABLE, Process
from cluster.chunks.server import Bytes, Handle
from worldkv.errors import TransferError

NAMESPACE = "worldkv"
# A question takes about two milliseconds, on a machine that is not busy.
ANSWER_SECONDS = 5.0
# Of 64 MiB over a slow link; whatever a durable store does may take as long.
BYTES_SECONDS = 30.0
SLOW = frozenset({"store", "take", "distrust"})
# For so long a party that failed is not asked again: it may be just starting. One that hangs makes everybody wait: it
# is asked again after twice as long each time, and first whether it answers at all.
SUSPECT_SECONDS, MOST_SUSPECT_SECONDS = 1.0, 30.0
PROBE_SECONDS = 1.0


class RayObjects:
    """See `server.Objects`."""

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[list[Handle]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def share(self, data: Bytes) -> Handle:
        """See `Objects`. Blocks: about 3 GB/s."""
        try:
            return [ray.put(data)]
        except RayError as fault:
            raise TransferError(f"{data.nbytes} bytes cannot be put into the object store: {fault}") from fault

    def open(self, handle: Handle) -> Bytes:
        """See `Objects`. Zero-copy where the bytes lie on this node."""
        return self.open_all([handle])[0]

    def open_all(self, handles: Sequence[Handle]) -> list[Bytes]:
        """See `Objects`."""
        try:
            found: list[Bytes] = ray.get([ref for (ref,) in handles], timeout=BYTES_SECONDS)
        except RayError as fault:
            raise TransferError(f"an object cannot be read: {_first_line(fault)}") from fault
        for data in found:
            if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
                raise TransferError(f"bytes of a chunk expected, {type(data).__name__} found")
        return found

    def fetch_ahead(self, handles: Iterable[Handle]) -> None:
        """See `Objects`. One thread waits for all, for a wait that ends would end the transfer."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._fetch, name="worldkv-prefetch", daemon=True)
            self._thread.start()
        self._wanted.put(list(handles))

    def _fetch(self) -> None:
        while True:
            refs = [ref for (ref,) in self._wanted.get()]
            with suppress(RayError):  # whoever reads them will be told
                ray.wait(refs, num_returns=len(refs), timeout=BYTES_SECONDS, fetch_local=True)
            del refs


class Remote:
    """An actor that looks like the object it wraps: each method call waits for the answer."""

    def __init__(self, name: str, network: RayNetwork) -> None:
        self._name, self._network = name, network

    def __getattr__(self, method: str) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            return self._network.call(self._name, method, args, options)

        return call


class RayNetwork:
    """See `client.Network`; of one process."""

    def __init__(self, node: str, directories: int) -> None:
        self.objects = RayObjects()
        self._node, self._replicas = node, directories
        self._handles: dict[str, Any] = {}
        self._suspects: dict[str, float] = {}
        self._hung: dict[str, int] = {}
        """How often in a row a party gave no answer in time."""

    def server(self, node: str) -> Any:
        """See `Network`."""
        return Remote(server_name(node), self)

    def directories(self) -> Sequence[Any]:
        """See `Network`."""
        return [Remote(directory_name(number), self) for number in range(self._replicas)]

    def now(self) -> float:
        """See `Network`."""
        return time.monotonic()

    def pause(self, seconds: float) -> None:
        """See `Network`."""
        time.sleep(seconds)

    def tell(self, node: str, numbers: Sequence[int]) -> None:
        """See `Network`."""
        try:
            self._handle(server_name(node)).give_back.remote(list(numbers))
        except (RayError, TransferError):
            self._handles.pop(server_name(node), None)  # a dead server has no loans

    def call(self, name: str, method: str, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """What the actor's method returns or raises. Raises TransferError where there is no answer."""
        if self._suspects.get(name, 0.0) > self.now():
            raise TransferError(f"{name} did not answer a moment ago")
        seconds = BYTES_SECONDS if method in SLOW or name == server_name(DURABLE) else ANSWER_SECONDS
        try:
            if self._hung.get(name):
                ray.get(self._handle(name).__ray_ready__.remote(), timeout=PROBE_SECONDS)
            answer = ray.get(getattr(self._handle(name), method).remote(*args, **options), timeout=seconds)
        except RayTaskError as fault:
            raise fault.cause from None
        except RayError as fault:
            self._handles.pop(name, None)
            self._suspect(name, hangs=isinstance(fault, GetTimeoutError))
            raise TransferError(f"{name} does not answer: {_first_line(fault)}") from fault
        self._hung.pop(name, None)
        return answer

    def _suspect(self, name: str, *, hangs: bool) -> None:
        self._hung[name] = self._hung.get(name, 0) + 1 if hangs else 0
        self._suspects[name] = self.now() + min(SUSPECT_SECONDS * 2 ** self._hung[name], MOST_SUSPECT_SECONDS)

    def _handle(self, name: str) -> Any:
        if name not in self._handles:
            try:
                self._handles[name] = ray.get_actor(name, namespace=NAMESPACE)
            except (ValueError, RayError) as fault:
                self._suspect(name, hangs=False)
                raise TransferError(f"there is no {name}") from fault
        return self._handles[name]


def server_name(node: str) -> str:
    """What the chunk server of a node is called in Ray."""
    return f"chunk-server-{node}"


def directory_name(number: int) -> str:
    """What a replica of the directory is called in Ray."""
    return f"chunk-directory-{number}"


def this_process(node: str) -> Process:
    """The calling one."""
    return Process(node, os.getpid(), _born(os.getpid()) or 0)


def is_alive(process: Process) -> bool:
    """Whether a process of this machine still runs."""
    return _born(process.pid) == process.born


def _born(pid: int) -> int | None:
    """When the process began, in ticks since the machine did; None where there is none, or it is dead already."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = text.rpartition(")")[2].split()  # its name may hold anything
    return None if state in "ZX" else int(fields[18])


def _first_line(fault: Exception) -> str:
    return next(iter(str(fault).splitlines()), type(fault).__name__)
