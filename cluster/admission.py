"""Who may roll out how much at once on a shared cluster: a queue of batches in front of it. Pure; time is passed in.

- A tenant never has more sessions than its limit, all tenants together never more than the cluster's.
- Of those that wait, the tenant that has least for its weight goes first; within a tenant priority, then arrival.
- What waits is bounded: whoever finds the queue full asks again later. Nothing is refused that could ever run.
- Whoever is silent for a while is gone, and with it what it held and waited for.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import Field, field_validator, model_validator

from worldkv.config import Section, Tenant
from worldkv.errors import JobError

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
        return self


@dataclass(frozen=True)
class Applicant:
    """On whose behalf a batch is to start."""

    job: str
    tenant: str
    priority: int = 0
    """Higher goes first, within a tenant."""
    token: str = ""


@dataclass(eq=False)
class _Waiting:
    applicant: Applicant
    sessions: int
    arrival: int
    asked: float


@dataclass
class Admission:
    """The books of the queue."""

    config: TenantsConfig
    _held: dict[str, dict[int, tuple[str, int]]] = field(default_factory=dict)
    """Job -> ticket -> (tenant, sessions)."""
    _waiting: dict[tuple[str, int], _Waiting] = field(default_factory=dict)
    """By job and ticket."""
    _heard: dict[str, float] = field(default_factory=dict)
    _arrivals: int = 0

    def check(self, applicant: Applicant, sessions: int) -> None:
        """Raise JobError where batches of so many sessions can never start for it."""
        tenant = self._tenant(applicant)
        for limit, whose in ((tenant.sessions, f"tenant {tenant.name}"), (self.config.sessions, "the cluster")):
            if limit is not None and sessions > limit:
                raise JobError(
                    f"job {applicant.job}: its batches have {sessions} sessions, {whose} may have {limit} at once; "
                    f"lower batch_sessions, or raise the quota"
                )

    def ask(self, applicant: Applicant, ticket: int, sessions: int, now: float) -> str:
        """'' when a batch of so many sessions may start; the job then holds them under its ticket. Else why it waits.

        Asking again with the same ticket keeps the place. Raises JobError as `check` does.
        """
        self.check(applicant, sessions)
        self.hear(applicant.job, now)
        key = (applicant.job, ticket)
        if ticket in self._held.get(applicant.job, {}):
            return ""
        if key not in self._waiting:
            if len(self._waiting) >= self.config.queue:
                return f"the queue is full: {self.config.queue} batches wait"
            self._arrivals += 1
            self._waiting[key] = _Waiting(applicant, sessions, self._arrivals, now)
        mine = self._waiting[key]
        mine.sessions, mine.asked = sessions, now
        if self._is_first(mine):
            self._held.setdefault(applicant.job, {})[ticket] = (applicant.tenant, sessions)
            del self._waiting[key]
            return ""
        return self._why(mine)

    def hold(self, applicant: Applicant, held: Mapping[int, int], now: float) -> None:
        """What a job says that it holds, ticket -> sessions, is so: the books may have been lost in between."""
        self._tenant(applicant)
        self.hear(applicant.job, now)
        self._held[applicant.job] = {ticket: (applicant.tenant, sessions) for ticket, sessions in held.items()}

    def release(self, job: str, ticket: int) -> None:
        """The batch is over."""
        self._held.get(job, {}).pop(ticket, None)

    def hear(self, job: str, now: float) -> None:
        """The job is alive; whoever has been silent for too long is forgotten."""
        self._heard[job] = now
        for other in [name for name, heard in self._heard.items() if now - heard > LEASE_SECONDS]:
            del self._heard[other]
            self._held.pop(other, None)
        for key in [key for key, one in self._waiting.items() if now - one.asked > STALE_SECONDS]:
            del self._waiting[key]

    def figures(self) -> list[tuple[str, int, int | None, int]]:
        """Per tenant: its name, sessions held, its limit, batches that wait."""
        waiting = [one.applicant.tenant for one in self._waiting.values()]
        return [(t.name, self._sessions(t.name), t.sessions, waiting.count(t.name)) for t in self.config.tenants]

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

    def _is_first(self, mine: _Waiting) -> bool:
        """Whether it is this one's turn, and there is room."""
        able = [one for one in self._waiting.values() if self._within_quota(one)]
        if mine not in able or min(able, key=self._turn) is not mine:
            return False
        # A large batch is not passed by small ones for ever: who is first waits for room.
        total = sum(sessions for held in self._held.values() for _, sessions in held.values())
        return self.config.sessions is None or total + mine.sessions <= self.config.sessions

    def _why(self, mine: _Waiting) -> str:
        order = sorted(self._waiting.values(), key=self._turn)
        place = next(place for place, one in enumerate(order, start=1) if one is mine)
        tenant = self._tenant(mine.applicant)
        quota = "" if tenant.sessions is None else f" of {tenant.sessions}"
        held = self._sessions(tenant.name)
        return f"in the queue at place {place} of {len(order)}; tenant {tenant.name} has {held}{quota} sessions"

    def _within_quota(self, one: _Waiting) -> bool:
        limit = self._tenant(one.applicant).sessions
        return limit is None or self._sessions(one.applicant.tenant) + one.sessions <= limit

    def _turn(self, one: _Waiting) -> tuple[float, int, int]:
        weight = self._tenant(one.applicant).weight
        return self._sessions(one.applicant.tenant) / weight, -one.applicant.priority, one.arrival

    def _sessions(self, tenant: str) -> int:
        return sum(n for held in self._held.values() for owner, n in held.values() if owner == tenant)
