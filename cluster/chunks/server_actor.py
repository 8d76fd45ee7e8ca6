"""A chunk server as an actor: a thin wrap, with the threads that report to directories and carry out their orders.

Ray restarts an actor by its constructor alone, so that starts what has to run.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable
from typing import Any

from cluster.chunks.books import ServerBooks
from cluster.chunks.kept import KeptShelf
from cluster.chunks.labels import DURABLE, Found, Key, Label, Life, Order, Process, Reply
from cluster.chunks.runtime import RayNetwork, is_alive, this_process
from cluster.chunks.server import ChunkServer, Handle, Lent, ObjectShelf, Shelf
from cluster.chunks.settings import ChunkSettings
from worldkv.errors import TransferError
from worldkv.memory.tier import Survives
from worldkv.memory.tiers.durable import open_durable_tier

LOG = logging.getLogger(__name__)
BEAT_SECONDS = 0.5
# A look at every chunk.
SWEEP_SECONDS = 5.0
KEPT_MISHAPS = 4


class ServerActor:
    """See `ChunkServer`; of a node, or of the durable tier."""

    def __init__(self, node: str, settings: ChunkSettings) -> None:
        self._network = RayNetwork(node, settings.directories)
        self._me = this_process(node)
        books = ServerBooks(
            settings.url_capacity_bytes if node == DURABLE else settings.capacity_bytes, settings.shares
        )
        life, objects = Life(node, time.time_ns()), self._network.objects
        self._server = ChunkServer(life, books, self._shelf(node, settings), objects, time.monotonic)
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._waiting: set[Order] = set()
        self._mishaps, self._newest_mishaps = 0, deque[str](maxlen=KEPT_MISHAPS)
        self._news = [threading.Event() for _ in range(settings.directories)]
        self._server.start()
        for number in range(settings.directories):
            threading.Thread(target=self._report_to, args=(number,), daemon=True).start()
        for work in (self._copy, self._sweep):
            threading.Thread(target=work, daemon=True).start()

    def _shelf(self, node: str, settings: ChunkSettings) -> Shelf:
        if node != DURABLE:
            return ObjectShelf(self._network.objects)
        assert settings.url is not None
        tier = open_durable_tier(DURABLE, settings.url, settings.url_capacity_bytes)
        assert isinstance(tier, Survives)
        return KeptShelf(tier, self._network.objects)

    def offer(self, label: Label, writer: Process) -> bool:
        """See `ChunkServer.offer`."""
        return self._server.offer(label, writer)

    def store(self, label: Label, handle: Handle, writer: Process) -> None:
        """See `ChunkServer.store`."""
        self._server.store(label, handle, writer)
        self._tell()

    def abandon(self, key: Key) -> None:
        """See `ChunkServer.abandon`."""
        self._server.abandon(key)

    def take(self, label: Label, handle: Handle, source: Process) -> None:
        """See `ChunkServer.take`."""
        self._server.take(label, handle, source)
        self._tell()

    def unclaim(self, key: Key, process: Process) -> None:
        """See `ChunkServer.unclaim`."""
        self._server.unclaim(key, process)

    def also_name(self, key: Key, names: Iterable[str]) -> None:
        """See `ChunkServer.also_name`."""
        self._server.also_name(key, names)
        self._tell()

    def find(self, tenant: str, names: Iterable[str], reader: Process) -> dict[str, Found]:
        """See `ChunkServer.find`."""
        return self._server.find(tenant, names, reader)

    def lend(self, key: Key, reader: Process) -> Lent:
        """See `ChunkServer.lend`."""
        return self._server.lend(key, reader)

    def lend_all(self, keys: Iterable[Key], reader: Process) -> list[Lent]:
        """See `ChunkServer.lend_all`."""
        return self._server.lend_all(keys, reader)

    def give_back(self, numbers: Iterable[int]) -> None:
        """See `ChunkServer.give_back`."""
        self._server.give_back(numbers)

    def distrust(self, key: Key) -> None:
        """See `ChunkServer.distrust`."""
        self._server.distrust(key)

    def figures(self) -> dict[str, int]:
        """See `ChunkServer.figures`; and how often something went wrong that nobody had thought of."""
        return self._server.figures() | {"mishaps": self._mishaps}

    def faults(self) -> list[str]:
        """See `ChunkServer.faults`; and the newest of what nobody had thought of."""
        return [*self._server.faults(), *self._newest_mishaps]

    def process(self) -> Process:
        """The actor's own; for whoever watches."""
        return self._me

    def _mishap(self, what: str, fault: Exception) -> None:
        """Count what a thread has to survive, for an audit to find it."""
        text = f"chunk server of node {self._me.node}: {what}: {fault!r}"
        LOG.error(text, exc_info=fault)
        self._mishaps += 1
        self._newest_mishaps.append(text)

    def _tell(self) -> None:
        for news in self._news:
            news.set()

    def _report_to(self, number: int) -> None:
        """Keep one directory informed, for as long as the actor lives."""
        heard: int | None = None
        while True:
            before, heard = heard, self._report(number, heard)
            # One that knows nothing of what we speak of is told everything at once.
            self._news[number].wait(0.0 if heard is None and before is not None else BEAT_SECONDS)
            self._news[number].clear()

    def _report(self, number: int, heard: int | None) -> int | None:
        """Once; the number of the last report that the directory heard."""
        directory: Any = self._network.directories()[number]
        try:
            reply: Reply = directory.report(self._server.report(heard), 0.0)
        except TransferError:
            return None  # it may be another one when it answers again
        except Exception as fault:  # a server that falls silent counts as dead
            self._mishap(f"a report to directory {number} failed", fault)
            return None
        for order in reply.orders:
            if order not in self._waiting:
                self._waiting.add(order)
                self._orders.put(order)
        return reply.heard

    def _copy(self) -> None:
        """Carry out what the directories order."""
        while True:
            order = self._orders.get()
            try:
                self._server.copy(order, self._network.server, self._me)
            except TransferError:
                pass  # it will be ordered again
            except Exception as fault:  # and the next order can still be carried out
                self._mishap(f"{order} could not be carried out", fault)
            finally:
                self._waiting.discard(order)
                self._tell()

    def _sweep(self) -> None:
        """Notice processes of this node that died."""
        while True:
            time.sleep(SWEEP_SECONDS)
            self._server.sweep(is_alive)
