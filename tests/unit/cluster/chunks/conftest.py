"""Servers, directories and workers of a cluster in one process: the real ones, over plain memory instead of Ray's."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from cluster.chunks.books import ServerBooks
from cluster.chunks.client import Client
from cluster.chunks.directory import Directory
from cluster.chunks.labels import Life, Process
from cluster.chunks.outbox import Outbox
from cluster.chunks.server import ChunkServer, ObjectShelf
from cluster.chunks.tier import NodeTier
from worldkv.errors import TransferError


def sibling(folder: str, name: str) -> ModuleType:
    """A module of other unit tests."""
    path = Path(__file__).parents[2] / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{folder}_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class PlainObjects:
    """Copies in this process' memory, read-only as those of an object store."""

    def share(self, data):
        copy = data.copy()
        copy.flags.writeable = False
        return copy

    def open(self, handle):
        return handle

    def open_all(self, handles):
        return list(handles)

    def fetch_ahead(self, handles):
        self.ahead = len(list(handles))


class Absent:
    """A party that does not answer."""

    def __getattr__(self, name):
        def fail(*_, **__):
            raise TransferError(f"{name}: nobody answers")

        return fail


class Village:
    """A cluster: nodes by name, each with a server; `directories` replicas; one clock."""

    def __init__(self, capacity_bytes: int, nodes=("a",), copies: int = 1, directories: int = 2, shares=None) -> None:
        self.time, self.capacity_bytes, self.copies, self.shares = 0.0, capacity_bytes, copies, shares
        self.objects = PlainObjects()
        self.servers: dict[str, ChunkServer] = {}
        self.heard: dict[tuple[str, int], int | None] = {}
        self.replicas: list[Directory] = []
        self.orders = []
        self.births = 0
        for _ in range(directories):
            self.replicas.append(Directory(copies, self.time))
        for node in nodes:
            self.start(node)
        self.pass_time(6.0)

    def now(self) -> float:
        return self.time

    def pause(self, seconds: float) -> None:
        self.pass_time(max(seconds, 0.1))

    def server(self, node: str):
        return self.servers.get(node, Absent())

    def directories(self):
        return self.replicas

    def tell(self, node, numbers):
        if node in self.servers:
            self.servers[node].give_back(numbers)

    def start(self, node: str, shelf=None) -> ChunkServer:
        """A new life of the node's server."""
        self.births += 1
        books = ServerBooks(self.capacity_bytes, self.shares)
        server = ChunkServer(Life(node, self.births), books, shelf or ObjectShelf(self.objects), self.objects, self.now)
        server.start()
        self.servers[node] = server
        return server

    def kill(self, node: str) -> None:
        del self.servers[node]

    def kill_directory(self, number: int) -> None:
        """It comes back empty."""
        self.replicas[number] = Directory(self.copies, self.time)

    def beat(self) -> None:
        """Every server reports and carries out its orders."""
        for node, server in list(self.servers.items()):
            for number, directory in enumerate(self.replicas):
                place = (f"{node} {server.life.born}", number)
                for _ in range(2):
                    try:
                        reply = directory.report(server.report(self.heard.get(place)), self.time)
                    except TransferError:
                        break
                    self.heard[place] = reply.heard
                    for order in reply.orders if number == 0 else ():
                        with suppress(TransferError):  # it will be ordered again
                            server.copy(order, self.server, Process(node, 1, server.life.born))
                    if reply.heard is not None:
                        break

    def pass_time(self, seconds: float) -> None:
        until = self.time + seconds
        while self.time < until:
            self.time += 0.5
            self.beat()

    def worker(self, node: str = "a", pid: int = 1000, capacity_bytes: int | None = None) -> NodeTier:
        """Of a worker on the node, whose puts are written at once."""
        client = Client(Process(node, pid, 0), self)
        outbox = Outbox(client.store, lambda: None, 1 << 30, self)
        return NodeTier("node", capacity_bytes or self.capacity_bytes, client, outbox)

    def check(self) -> None:
        for server in self.servers.values():
            assert server.faults() == []
        for directory in self.replicas:
            assert directory.faults() == []


@pytest.fixture(scope="session")
def village():
    return Village


@pytest.fixture(scope="session")
def absent():
    return Absent


@pytest.fixture(scope="session")
def new_chunk():
    return sibling("memory", "conftest").chunk_of


@pytest.fixture(scope="session")
def store_machine():
    return sibling("memory", "test_store_machine")


def as_bytes(chunk) -> np.ndarray:
    return np.frombuffer(chunk.to_bytes(), np.uint8)
