"""The gate of a shared cluster: one small actor that all drivers ask before a batch starts.

It outlives drivers and is restarted when its process dies; the drivers then tell it again what they hold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.admission import Admission, Applicant, TenantsConfig
from cluster.connection import NAMESPACE
from worldkv.errors import WorldKVError

GATE = "gate"
ASK_SECONDS, ANSWER_SECONDS = 1.0, 10.0
SILENT = "the gate of the cluster does not answer"


class Gatekeeper:
    """The actor."""

    def __init__(self, config: TenantsConfig) -> None:
        self.admission = Admission(config)
        self.leaving: set[str] = set()

    def check(self, applicant: Applicant, sessions: int) -> None:
        """See `Admission.check`."""
        self.admission.check(applicant, sessions)

    def ask(self, applicant: Applicant, ticket: int, sessions: int) -> str:
        """See `Admission.ask`."""
        return self.admission.ask(applicant, ticket, sessions, time.monotonic())

    def release(self, job: str, ticket: int) -> None:
        """See `Admission.release`."""
        self.admission.release(job, ticket)

    def hear(self, applicant: Applicant, held: Mapping[int, int]) -> set[str]:
        """The job lives and holds this; see `Admission.hold`. Returns the ids of nodes to be left."""
        self.admission.hold(applicant, held, time.monotonic())
        return self.leaving

    def drain(self, node_id: str) -> None:
        """The node is to be left."""
        self.leaving.add(node_id)

    def draining(self) -> set[str]:
        """Ids of the nodes that are to be left."""
        return self.leaving

    def figures(self) -> list[tuple[str, int, int | None, int]]:
        """See `Admission.figures`."""
        return self.admission.figures()


def open_gate(config: TenantsConfig) -> None:
    """Make the gate of this cluster, with these tenants; one that is there already goes."""
    if (old := find_gate()) is not None:
        ray.kill(old)
    options = {"num_cpus": 0, "max_restarts": -1, "lifetime": "detached", "name": GATE, "namespace": NAMESPACE}
    keeper: Any = ray.remote(Gatekeeper).options(**options).remote(config)
    answer(keeper.figures.remote())


def find_gate() -> Any | None:
    """The gate of this cluster; None where it has none."""
    try:
        return ray.get_actor(GATE, namespace=NAMESPACE)
    except ValueError:
        return None


def answer(call: Any) -> Any:
    """Of the gate, its own errors raised as they are. Raises RayActorError and GetTimeoutError where none comes."""
    try:
        return ray.get(call, timeout=ANSWER_SECONDS)
    except RayTaskError as fault:
        if isinstance(fault.cause, WorldKVError):
            raise fault.cause from None
        raise


class ClusterGate:
    """What a driver holds of the gate; fulfils `cluster.jobs.Gate`."""

    def __init__(self, keeper: Any, applicant: Applicant) -> None:
        self._keeper, self._applicant = keeper, applicant
        self._tickets: dict[int, tuple[int, int]] = {}
        """Batch -> (ticket, sessions)."""
        self._next_ticket = 0
        self._asked, self._why = -ASK_SECONDS, ""
        self._heard, self._leaving = -ASK_SECONDS, set[str]()

    def check(self, sessions: int) -> None:
        """Raise JobError where batches of so many sessions can never start."""
        answer(self._keeper.check.remote(self._applicant, sessions))

    def ask(self, batch: int, sessions: int) -> str:
        """See `Gate`; the keeper is asked once a second while it says no."""
        if self._why and time.monotonic() - self._asked < ASK_SECONDS:
            return self._why
        self._asked = time.monotonic()
        try:
            self._why = answer(self._keeper.ask.remote(self._applicant, self._next_ticket, sessions))
        except (RayActorError, GetTimeoutError):
            self._why = SILENT
        if not self._why:
            self._tickets[batch] = (self._next_ticket, sessions)
            self._next_ticket += 1
        return self._why

    def release(self, batch: int) -> None:
        """See `Gate`."""
        if batch in self._tickets:
            ticket, _ = self._tickets.pop(batch)
            self._keeper.release.remote(self._applicant.job, ticket)

    def draining(self) -> set[str]:
        """See `Gate`; this is also how the keeper knows that the driver lives."""
        if time.monotonic() - self._heard < ASK_SECONDS:
            return self._leaving
        self._heard = time.monotonic()
        held = dict(self._tickets.values())
        with suppress(RayActorError, GetTimeoutError):
            self._leaving = answer(self._keeper.hear.remote(self._applicant, held))
        return self._leaving
