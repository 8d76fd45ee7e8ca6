"""The gate of a shared cluster: one small actor that all drivers ask before a batch starts.

It outlives drivers and is restarted when its process dies; the drivers then tell it again what they hold.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from cluster.admission import Admission, Applicant, Asked, TenantFigures, TenantsConfig
from cluster.connection import NAMESPACE
from worldkv.errors import WorldKVError

GATE = "gate"
ASK_SECONDS, ANSWER_SECONDS = 1.0, 10.0
SILENT = "the gate of the cluster does not answer"


class Wishes(NamedTuple):
    """What a cluster wants of a job."""

    nodes: frozenset[str] = frozenset()
    """Ids of those that are to be left."""
    give_way: frozenset[int] = frozenset()
    """What is to end at its next chunk, written down, and to wait again: tickets, or numbers of batches."""


class Gatekeeper:
    """The actor."""

    def __init__(self, config: TenantsConfig) -> None:
        self.admission = Admission(config)
        self.leaving: set[str] = set()

    def check(self, applicant: Applicant, sessions: int) -> None:
        """See `Admission.check`."""
        self.admission.check(applicant, sessions)

    def ask(self, applicant: Applicant, wanted: Mapping[int, Asked]) -> dict[int, str]:
        """See `Admission.ask`."""
        return self.admission.ask(applicant, wanted, time.monotonic())

    def release(self, job: str, ticket: int) -> None:
        """See `Admission.release`."""
        self.admission.release(job, ticket)

    def hear(self, applicant: Applicant, held: Mapping[int, Asked]) -> Wishes:
        """The job lives and holds this; see `Admission.hold`."""
        return Wishes(frozenset(self.leaving), frozenset(self.admission.hold(applicant, held, time.monotonic())))

    def drain(self, node_id: str) -> None:
        """The node is to be left."""
        self.leaving.add(node_id)

    def draining(self) -> set[str]:
        """Ids of the nodes that are to be left."""
        return self.leaving

    def figures(self) -> list[TenantFigures]:
        """See `Admission.figures`."""
        return self.admission.figures(time.monotonic())


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
        self._tickets: dict[int, tuple[int, Asked]] = {}
        """Batch -> its ticket, and what it holds."""
        self._waiting: list[int] = []
        """Tickets with a place in the queue; they are for whatever batch comes first."""
        self._next_ticket = 0
        self._asked, self._why = -ASK_SECONDS, ""
        self._heard, self._wishes = -ASK_SECONDS, Wishes()

    def check(self, sessions: int) -> None:
        """Raise JobError where batches of so many sessions can never start."""
        answer(self._keeper.check.remote(self._applicant, sessions))

    def ask(self, wanted: Mapping[int, Asked]) -> dict[int, str]:
        """See `Gate`; the keeper is asked once a second while it says no."""
        new = [batch for batch in wanted if batch not in self._tickets]
        if self._why and time.monotonic() - self._asked < ASK_SECONDS:
            return dict.fromkeys(wanted, "") | dict.fromkeys(new, self._why)
        answers = dict.fromkeys(wanted, "") | self._ask(new, wanted)
        self._asked, self._why = time.monotonic(), next((answers[batch] for batch in new if answers[batch]), "")
        return answers

    def _ask(self, new: Sequence[int], wanted: Mapping[int, Asked]) -> dict[int, str]:
        while len(self._waiting) < len(new):
            self._waiting.append(self._next_ticket)
            self._next_ticket += 1
        tickets = dict(zip(new, self._waiting, strict=False))
        if not new:
            return {}
        try:
            asked = {ticket: wanted[batch] for batch, ticket in tickets.items()}
            found = answer(self._keeper.ask.remote(self._applicant, asked))
        except (RayActorError, GetTimeoutError):
            return dict.fromkeys(new, SILENT)
        for batch, ticket in tickets.items():
            if not found[ticket]:
                self._tickets[batch] = (ticket, wanted[batch])
                self._waiting.remove(ticket)
        return {batch: found[ticket] for batch, ticket in tickets.items()}

    def release(self, batch: int) -> None:
        """See `Gate`."""
        if batch in self._tickets:
            ticket, _ = self._tickets.pop(batch)
            self._keeper.release.remote(self._applicant.job, ticket)

    def wishes(self) -> Wishes:
        """See `Gate`; this is also how the keeper knows that the driver lives."""
        if time.monotonic() - self._heard >= ASK_SECONDS:
            self._heard = time.monotonic()
            with suppress(RayActorError, GetTimeoutError):
                self._wishes = answer(self._keeper.hear.remote(self._applicant, dict(self._tickets.values())))
        # By ticket, for a batch that gave way may have come in again since.
        asked = self._wishes.give_way
        return Wishes(self._wishes.nodes, frozenset(b for b, (ticket, _) in self._tickets.items() if ticket in asked))
