"""Who may roll out how much at once on a shared cluster: the books of a queue of batches in front of it.

- A tenant never has more sessions than its limit, all tenants together never more than the cluster's.
- Whose turn it is, and who gives way to whom, `scheduler.admission` says: reservations, weights, priorities, age.
- What waits is bounded: whoever finds the queue full asks again later. Nothing is refused that could ever run.
- Whoever is silent for a while is gone, and with it what it held and waited for.

Time is passed in; nothing here blocks.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import Field, field_validator, model_validator

from scheduler.admission import AdmissionPlan, plan_admission
from scheduler.snapshot import (
    ClusterView,
    PendingView,
    Resources,
    RunningView,
    TenantView,
    WorkerView,
    pending_table,
    running_table,
)
from worldkv.config import Section, Tenant
from worldkv.durations import DurationBook
from worldkv.errors import JobError
from worldkv.stats import Durations

# A driver asks every second. What it does not ask for any more it no longer waits for; when it is silent, it is gone.
STALE_SECONDS, LEASE_SECONDS = 5.0, 30.0


class TenantConfig(Section):
    """One tenant of a cluster."""

    name: Tenant
    """As jobs name it in memory.tenant."""
    weight: float = Field(1.0, gt=0)
    """Of two tenants that wait, the one with twice the weight gets twice the sessions."""
    sessions: int | None = Field(None, ge=0, strict=True)
    """Most at once; none: no limit of its own."""
    reserved: int = Field(0, ge=0, strict=True)
    """Sessions that are its own: nobody else starts there even while it does not want them."""
    token_sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    """Of the token that jobs of this tenant have to show; none: anyone may submit for it."""


class TenantsConfig(Section):
    """All tenants of a cluster."""

    sessions: int | None = Field(None, ge=1, strict=True)
    """Most at once on the whole cluster; none: as its workers allow."""
    queue: int = Field(256, ge=1, strict=True)
    """Batches that may wait."""
    tenants: tuple[TenantConfig, ...] = (TenantConfig(name="default"),)

    @field_validator("tenants")
    @classmethod
    def _some(cls, tenants: tuple[TenantConfig, ...]) -> tuple[TenantConfig, ...]:
        if not tenants:
            raise ValueError("at least one is needed")
        return tenants

    @model_validator(mode="after")
    def _once(self) -> TenantsConfig:
        names = [tenant.name for tenant in self.tenants]
        if len(set(names)) < len(names):
            raise ValueError("tenants: each name once; leave out one of two equal ones")
        reserved = sum(tenant.reserved for tenant in self.tenants)
        if reserved and (self.sessions is None or reserved > self.sessions):
            raise ValueError(f"tenants: {reserved} sessions are reserved, but sessions is {self.sessions}; raise it")
        return self


@dataclass(frozen=True)
class Applicant:
    """On whose behalf a batch is to start."""

    job: str
    tenant: str
    priority: int = 0
    """Higher goes first, within a tenant."""
    token: str = ""


class Asked(NamedTuple):
    """What a batch is to have."""

    sessions: int
    may_leave: bool = False
    """Whether it can go on elsewhere from any chunk: only such a batch is asked to give way to others."""


class TenantFigures(NamedTuple):
    """How a tenant stands."""

    tenant: str
    sessions: int
    """Held."""
    limit: int | None
    waiting: int
    """Batches."""
    oldest_wait_seconds: float
    waits: Durations
    """Of all batches that were let in."""


@dataclass(eq=False)
class _Waiting:
    applicant: Applicant
    asked: Asked
    since: float
    heard: float


@dataclass(eq=False)
class _Held:
    tenant: str
    asked: Asked
    since: float
    leaving: bool = False
    """It was asked to give way."""


@dataclass
class Admission:
    """The books of the queue."""

    config: TenantsConfig
    _held: dict[str, dict[int, _Held]] = field(default_factory=dict)
    """Job -> ticket -> what it holds."""
    _waiting: dict[tuple[str, int], _Waiting] = field(default_factory=dict)
    """By job and ticket, in the order of arrival."""
    _heard: dict[str, float] = field(default_factory=dict)
    _waits: defaultdict[str, DurationBook] = field(default_factory=lambda: defaultdict(DurationBook))

    def check(self, applicant: Applicant, sessions: int) -> None:
        """Raise JobError where batches of so many sessions can never start for it."""
        tenant = self._tenant(applicant)
        others = sum(one.reserved for one in self.config.tenants if one is not tenant)
        most = None if self.config.sessions is None else self.config.sessions - others
        kept = f" beside {others} that are reserved" if others else ""
        for limit, whose in ((tenant.sessions, f"tenant {tenant.name}"), (most, "the cluster")):
            if limit is not None and sessions > limit:
                raise JobError(
                    f"job {applicant.job}: its batches have {sessions} sessions, {whose} may have {limit} at once"
                    f"{kept if whose == 'the cluster' else ''}; lower batch_sessions, or raise the quota"
                )

    def ask(self, applicant: Applicant, wanted: Mapping[int, Asked], now: float) -> dict[int, str]:
        """Per ticket '' when its batch may start; the job then holds it. Else why it waits.

        Asking again with the same ticket keeps the place. Raises JobError as `check` does.
        """
        for asked in wanted.values():
            self.check(applicant, asked.sessions)
        self.hear(applicant.job, now)
        held = self._held.setdefault(applicant.job, {})
        answers = {ticket: "" for ticket in wanted if ticket in held}
        for ticket in wanted.keys() - held.keys():
            if not self._enter(applicant, ticket, wanted[ticket], now):
                answers[ticket] = f"the queue is full: {self.config.queue} batches wait"
        plan = self._plan(now)
        for ticket in sorted(wanted.keys() - answers.keys()):
            answers[ticket] = self._start_or_say_why(plan, applicant.job, ticket, now)
        return answers

    def hold(self, applicant: Applicant, held: Mapping[int, Asked], now: float) -> set[int]:
        """What a job says that it holds is so: the books may have been lost. Returns those that are to give way."""
        self._tenant(applicant)
        self.hear(applicant.job, now)
        before = self._held.get(applicant.job, {})
        self._held[applicant.job] = {
            ticket: before.get(ticket) or _Held(applicant.tenant, asked, now) for ticket, asked in held.items()
        }
        self._plan(now)
        return {ticket for ticket, one in self._held[applicant.job].items() if one.leaving}

    def release(self, job: str, ticket: int) -> None:
        """The batch is over, or gave way."""
        self._held.get(job, {}).pop(ticket, None)

    def hear(self, job: str, now: float) -> None:
        """The job is alive; whoever has been silent for too long is forgotten."""
        self._heard[job] = now
        for other in [name for name, heard in self._heard.items() if now - heard > LEASE_SECONDS]:
            del self._heard[other]
            self._held.pop(other, None)
        for key in [key for key, one in self._waiting.items() if now - one.heard > STALE_SECONDS]:
            del self._waiting[key]

    def figures(self, now: float) -> list[TenantFigures]:
        """Of every tenant."""
        found = []
        for tenant in self.config.tenants:
            since = [one.since for one in self._waiting.values() if one.applicant.tenant == tenant.name]
            oldest = now - min(since, default=now)
            told = self._waits[tenant.name].frozen()
            held = self._sessions(tenant.name)
            found.append(TenantFigures(tenant.name, held, tenant.sessions, len(since), oldest, told))
        return found

    def _tenant(self, applicant: Applicant) -> TenantConfig:
        found = {tenant.name: tenant for tenant in self.config.tenants}.get(applicant.tenant)
        if found is None:
            names = ", ".join(tenant.name for tenant in self.config.tenants)
            raise JobError(f"job {applicant.job}: memory.tenant = {applicant.tenant!r}: the cluster knows {names}")
        shown = hashlib.sha256(applicant.token.encode()).hexdigest()
        if found.token_sha256 is not None and not hmac.compare_digest(found.token_sha256, shown):
            raise JobError(
                f"job {applicant.job}: the token is not that of tenant {applicant.tenant}; set WORLDKV_TENANT_TOKEN"
            )
        return found

    def _enter(self, applicant: Applicant, ticket: int, asked: Asked, now: float) -> bool:
        """Put it in the queue, or note that it still waits; False where the queue is full."""
        key = (applicant.job, ticket)
        if key not in self._waiting and len(self._waiting) >= self.config.queue:
            return False
        mine = self._waiting.setdefault(key, _Waiting(applicant, asked, now, now))
        mine.asked, mine.heard = asked, now
        return True

    def _plan(self, now: float) -> AdmissionPlan:
        """Whose turn it is; those that are to give way are marked."""
        plan = plan_admission(self._view(now))
        named = {_name(job, ticket): one for job, ticket, one in self._all_held()}
        for name in plan.suspended:
            named[name].leaving = True
        return plan

    def _view(self, now: float) -> ClusterView:
        """The cluster as one worker: only numbers count here, drivers see to places."""
        running = [
            RunningView(
                *(_name(job, ticket), one.tenant, (_ALL,), Resources(one.asked.sessions)),
                started_seconds=one.since,
                leaving=one.leaving,
                may_leave=one.asked.may_leave,
            )
            for job, ticket, one in self._all_held()
        ]
        pending = [
            PendingView(
                *(_name(*key), one.applicant.tenant, Resources(one.asked.sessions)),
                priority=one.applicant.priority,
                waits_since_seconds=one.since,
            )
            for key, one in self._waiting.items()
        ]
        held = sum(one.needs.slots for one in running)
        wanted = held + sum(one.needs.slots for one in pending)
        # Books that were lost and told again may hold more than there is.
        slots = wanted if self.config.sessions is None else max(held, self.config.sessions)
        tenants = {one.name: TenantView(one.weight, one.reserved, one.sessions) for one in self.config.tenants}
        floor = (WorkerView(_ALL, _ALL, Resources(slots)),)
        return ClusterView(now, floor, running_table(running), pending_table(pending), tenants)

    def _start_or_say_why(self, plan: AdmissionPlan, job: str, ticket: int, now: float) -> str:
        mine = self._waiting[job, ticket]
        tenant = self._tenant(mine.applicant)
        if _name(job, ticket) in plan.started:
            del self._waiting[job, ticket]
            self._held[job][ticket] = _Held(tenant.name, mine.asked, now)
            self._waits[tenant.name].add(now - mine.since)
            return ""
        quota = "" if tenant.sessions is None else f" of {tenant.sessions}"
        has = f"tenant {tenant.name} has {self._sessions(tenant.name)}{quota} sessions"
        waiting = plan.order[len(plan.started) :]
        if _name(job, ticket) not in waiting:
            return f"in the queue; {has}"
        return f"in the queue at place {waiting.index(_name(job, ticket)) + 1} of {len(waiting)}; {has}"

    def _all_held(self) -> Iterator[tuple[str, int, _Held]]:
        for job, tickets in self._held.items():
            for ticket, one in tickets.items():
                yield job, ticket, one

    def _sessions(self, tenant: str) -> int:
        return sum(one.asked.sessions for _, _, one in self._all_held() if one.tenant == tenant)


_ALL = "all"


def _name(job: str, ticket: int) -> str:
    return f"{job}#{ticket}"
