"""Free room of the cluster's workers while one round of placement is planned.

Shapes: W usable workers, K nodes; 3 resources (slots, bytes of device and host memory).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from scheduler.snapshot import Bools, ClusterView, Ints, Resources

SLOT_LIMIT = 64
"""Sessions given to one worker in one go at most."""


class NearSettings(Protocol):
    """What a near worker is weighed by."""

    @property
    def near_bytes_per_second(self) -> float:
        """Rate at which chunks would follow a session elsewhere."""
        ...

    @property
    def load_seconds(self) -> float:
        """What one more session on a worker costs."""
        ...


class Floor:
    """Mutable; what is taken is gone for the rest of the round."""

    def __init__(self, view: ClusterView) -> None:
        usable = [worker for worker in view.workers if worker.alive and not worker.draining]
        self._name = [worker.worker for worker in usable]
        self._number = dict(zip(self._name, itertools.count()))
        at = [worker.node for worker in usable]
        self._node_names = list(dict.fromkeys(at))
        self._node_number = dict(zip(self._node_names, itertools.count()))
        self._nodes = [self._node_number[node] for node in at]
        self._node_W = np.array(self._nodes, np.int64)
        domains = [worker.domain or worker.node for worker in usable]
        domain_number = dict(zip(dict.fromkeys(domains), itertools.count()))
        self._domain_W = np.array([domain_number[domain] for domain in domains], np.int64)
        room = [worker.total for worker in usable]
        # Lists: single numbers are read and written a hundred times as often as whole columns.
        self._slots = [one.slots for one in room]
        self._device, self._host = [one.device_bytes for one in room], [one.host_bytes for one in room]
        self.total = Resources(sum(self._slots), sum(self._device), sum(self._host))
        self._load = [0] * len(usable)
        self._occupy(view)
        self._whole_nodes_last = bool((view.pending.gang_P > 1).any())
        self._kept_K = [False] * len(self._node_names)
        """Kept free for a starving gang."""
        self.kept_free: dict[str, str] = {}
        """Node -> for which session."""
        self.free_slots = sum(self._slots)
        self._on_node: list[list[int]] = [[] for _ in self._node_names]
        for number, node in enumerate(self._nodes):
            self._on_node[node].append(number)
        open_loads = (load for load, slots in zip(self._load, self._slots, strict=True) if slots > 0)
        self._least_load = min(open_loads, default=0)
        """Of the workers with a free slot when the round began: nobody's load falls meanwhile."""

    def keep_free(self, needs: Sequence[int], gang: int, session: str) -> None:
        """Keep the node that is nearest to having room for a gang, where none has it."""
        count_K = self._count(self._fits(needs))
        able_K = np.array([len(workers) >= gang for workers in self._on_node], bool) & ~np.array(self._kept_K, bool)
        if able_K.any() and not (count_K >= gang).any():
            node = int(np.where(able_K, count_K, -1).argmax())
            self._kept_K[node] = True
            self.kept_free[self._node_names[node]] = session

    def take_gangs(self, needs: Sequence[int], gangs: Sequence[tuple[int, str]]) -> list[tuple[str, ...] | None]:
        """Workers of one node for each gang (its size, its session); all need the same on each worker.

        Of the nodes with room a gang gets the one that is left with least. None where no node has room.
        """
        fits_W = self._fits(needs)
        count_K = self._count(fits_W)
        taken: list[tuple[str, ...] | None] = []
        open_K = ~np.array(self._kept_K, bool)
        for gang, session in gangs:
            enough_K = (count_K >= gang) & open_K
            for name, kept_for in self.kept_free.items():
                number = self._node_number[name]
                enough_K[number] |= kept_for == session and count_K[number] >= gang
            if not enough_K.any():
                taken.append(None)
                continue
            node = int(np.where(enough_K, count_K, np.iinfo(np.int64).max).argmin())
            numbers = [number for number in self._on_node[node] if fits_W[number]][:gang]
            for number in numbers:
                self._take(number, needs)
                fits_W[number] = self._has_room(number, needs)
            count_K[node] = sum(bool(fits_W[number]) for number in self._on_node[node])
            taken.append(tuple(self._name[number] for number in numbers))
        return taken

    def take_near(self, needs: Sequence[int], near: Mapping[str, int], settings: NearSettings) -> str | None:
        """The worker with most of a session's bytes, weighed against its load; None where the emptiest is better."""
        slots, device, host = needs
        has_slots, has_device, has_host, load_of = self._slots, self._device, self._host, self._load
        best, cheapest = -1, math.inf
        for place, nbytes in near.items():
            saved = nbytes / settings.near_bytes_per_second
            for number in self._at(place):
                if has_slots[number] < slots or has_device[number] < device or has_host[number] < host:
                    continue
                load = load_of[number]
                cost = load * settings.load_seconds - saved
                if cost < cheapest or (cost == cheapest and number < best):
                    best, cheapest = number, cost
                if not load:
                    break  # none of this place is emptier
        if best < 0 or cheapest > self._least_load * settings.load_seconds:
            return None
        self._take(best, needs)
        return self._name[best]

    def _at(self, place: str) -> Sequence[int]:
        """The worker, or the node's workers, on which new sessions may start."""
        number = self._number.get(place)
        if number is not None:
            return () if self._kept_K[self._nodes[number]] else (number,)
        node = self._node_number.get(place)
        return () if node is None or self._kept_K[node] else self._on_node[node]

    def take_emptiest(self, needs: Sequence[int], count: int) -> list[str]:
        """Workers for up to `count` sessions with equal needs: always the emptiest, domain by domain in turn."""
        needs_3 = np.array(needs, np.int64)
        free_W3 = self._free()
        load_W, kept_W = np.array(self._load, np.int64), np.array(self._kept_K, bool)[self._node_W]
        times_W3 = np.where(needs_3 > 0, free_W3 // np.maximum(needs_3, 1), np.iinfo(np.int64).max)
        times_W = np.where(kept_W, 0, times_W3.min(axis=1).clip(0, min(SLOT_LIMIT, count)))
        worker_n = np.repeat(np.arange(len(times_W)), times_W)
        turn_n = np.arange(len(worker_n)) - np.repeat(np.cumsum(times_W) - times_W, times_W)
        load_n = load_W[worker_n] + turn_n
        order_n = np.lexsort((self._rank(load_W)[worker_n], load_n))[:count]
        numbers_n = worker_n[order_n]
        taken_W = np.bincount(numbers_n, minlength=len(load_W))
        self._slots, self._device, self._host = (free_W3 - taken_W[:, None] * needs_3).T.tolist()
        self._load = (load_W + taken_W).tolist()
        self.free_slots -= needs[0] * len(numbers_n)
        return [self._name[number] for number in numbers_n.tolist()]

    def _rank(self, load_W: Ints) -> Ints:
        """Order of equally loaded workers: all domains before one comes again, or whole nodes last for gangs' sake."""
        everyone = np.arange(len(self._name))
        if self._whole_nodes_last:
            used_K = np.bincount(self._node_W, load_W, len(self._node_names))
            order_W = np.lexsort((everyone, self._node_W, -used_K[self._node_W]))
        else:
            by_domain_W = np.lexsort((everyone, load_W, self._domain_W))
            sorted_W = self._domain_W[by_domain_W]
            turn_W = np.empty_like(everyone)
            turn_W[by_domain_W] = everyone - np.searchsorted(sorted_W, sorted_W, side="left")
            order_W = np.lexsort((self._domain_W, turn_W))
        rank_W = np.empty_like(everyone)
        rank_W[order_W] = everyone
        return rank_W

    def _free(self) -> Ints:
        """What every worker has left, [W, 3]."""
        return np.stack([np.array(part, np.int64) for part in (self._slots, self._device, self._host)], axis=1)

    def _has_room(self, number: int, needs: Sequence[int]) -> bool:
        slots, device, host = needs
        return self._slots[number] >= slots and self._device[number] >= device and self._host[number] >= host

    def _fits(self, needs: Sequence[int]) -> Bools:
        """Workers that have room for one session, [W]."""
        return np.asarray((self._free() >= np.array(needs)).all(axis=1))

    def _count(self, fits_W: Bools) -> Ints:
        """Workers with room, per node."""
        return np.bincount(self._node_W, fits_W, len(self._node_names)).astype(np.int64)

    def _take(self, number: int, needs: Sequence[int]) -> None:
        slots, device, host = needs
        self._slots[number] -= slots
        self._device[number] -= device
        self._host[number] -= host
        self._load[number] += 1
        self.free_slots -= slots

    def _occupy(self, view: ClusterView) -> None:
        """Take what running sessions hold."""
        running = view.running
        needs = running.needs_R3[running.row_n].tolist()
        for name, (slots, device, host) in zip(running.worker_n, needs, strict=True):
            number = self._number.get(name)
            if number is not None:
                self._slots[number] -= slots
                self._device[number] -= device
                self._host[number] -= host
                self._load[number] += 1
