"""A directory as an actor, by its own clock; its process needs no torch, and is back the sooner for that."""

from __future__ import annotations

import time

from cluster.chunks.directory import Directory
from cluster.chunks.labels import Key, Reply, Report, Whereabouts


class DirectoryActor:
    """See `Directory`."""

    def __init__(self, copies: int) -> None:
        self._directory = Directory(copies, time.monotonic())

    def report(self, report: Report, _: float) -> Reply:
        """See `Directory.report`."""
        return self._directory.report(report, time.monotonic())

    def find(self, tenant: str, names: list[str], _: float) -> Whereabouts:
        """See `Directory.find`."""
        return self._directory.find(tenant, names, time.monotonic())

    def copied(self, keys: list[Key], _: float) -> dict[Key, bool]:
        """See `Directory.copied`."""
        return self._directory.copied(keys, time.monotonic())

    def arrears(self, _: float) -> tuple[int, float]:
        """See `Directory.arrears`."""
        return self._directory.arrears(time.monotonic())

    def nodes(self) -> dict[str, int]:
        """See `Directory.nodes`."""
        self._directory.expire(time.monotonic())
        return self._directory.nodes()

    def faults(self) -> list[str]:
        """See `Directory.faults`."""
        return self._directory.faults()
