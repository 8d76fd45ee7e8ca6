"""Which chunks move nearer before their windows are assembled, in what order, and who makes way for them.

    snapshot -> forecast -> revisits -> demands, by value -> transfers that fit the budgets

- Value = probability x urgency x seconds of stall avoided. What cannot arrive in time has no value as a prefetch: it is
  named as late, and the session's policy decides.
- Links carry one transfer after another, staging holds so many bytes at once, tiers and tenants have their capacities.
- What is committed is never displaced, nor is what is worth as much as what would take its place.
- Nothing begun is forgotten: it goes on, or is cancelled because the camera turned away.

Shapes: N past chunks of a session, H chunks ahead.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from scheduler.contradictions import check_memory
from scheduler.forecast import Forecast, Predictor, forecast
from scheduler.revisits import Revisits, predict_revisits
from scheduler.snapshot import Floats, MemoryView, SessionView

CHUNKS_AHEAD_SCRIPTED = 4
"""A script is exact however far: four windows ahead hide a path four times slower than one window's worth of time."""
CHUNKS_AHEAD_LIVE = 2
"""Keys are held for about a chunk: farther ahead few ways are right (benchmarks/forecast_cpu_202611.md)."""
LEAST_PROBABILITY = 0.65
"""Below it too much of what is brought to the device is never used (benchmarks/prefetch_policies_cpu_202611.md)."""
STAGED_PROBABILITY = 0.5
"""From here on a chunk farther away is brought to tier 1: there it takes none of the device's room, a window that asks
for it after all waits a thirtieth as long, and it stays long enough to be asked for later."""
SURE = 0.95
"""From here on a chunk is fetched as early as there is room: waiting would teach nothing."""
CANCEL_BELOW = 0.05
"""A transfer under way is half paid for: it is cut off only where hardly any way still leads to it."""
LATER_DISCOUNT = 0.9
"""Per chunk ahead: of two chunks as likely the one asked for first is worth more."""
NEARNESS_WORTH = 0.25
"""Worth of a resident chunk that no forecast asks for but that was seen from right here: a turn brings it back."""
LATE_MATTERS = 0.5
"""Likelier than not: from here on a chunk that cannot arrive in time is told to the session."""


class Transfer(NamedTuple):
    """One chunk's way from tier to tier."""

    session: str
    tenant: str
    chunk: int
    from_tier: int
    to_tier: int
    nbytes: int
    probability: float
    value: float
    """Seconds of stall that it is expected to avoid, weighed by urgency."""
    deadline_seconds: float
    arrives_seconds: float
    """If links keep their rates."""
    reduced: bool = False
    """The copy with less detail."""


class Displaced(NamedTuple):
    """A chunk that goes one tier down, or out of the last, to make room."""

    session: str
    chunk: int
    tier: int
    nbytes: int


class Late(NamedTuple):
    """A chunk that cannot be there when its window is assembled."""

    session: str
    chunk: int
    probability: float
    deadline_seconds: float
    arrives_seconds: float
    """Infinite where nothing can bring it."""
    decision: str
    """wait, reduced or without: what the session's policy says."""


class Cancelled(NamedTuple):
    """A transfer under way that nobody needs any more."""

    session: str
    chunk: int


@dataclass(frozen=True)
class PrefetchPlan:
    """What to do until the next plan, which takes its place: what has not begun by then is dropped."""

    transfers: tuple[Transfer, ...] = ()
    """In the order in which they should begin."""
    displaced: tuple[Displaced, ...] = ()
    """To be gone before the transfers that they make room for; in that order."""
    late: tuple[Late, ...] = ()
    cancelled: tuple[Cancelled, ...] = ()
    leaving: tuple[tuple[str, int], ...] = ()
    """Sessions' chunks in tier 0 in the order in which they should go if room is needed before the next plan."""
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason -> demands that were not planned: room, share, staging, link, late."""
    ignored: tuple[str, ...] = ()
    """Predictors that were passed over, one log line each."""


@dataclass(frozen=True)
class Settings:
    """What experiments vary; the defaults are what was found best on the tuning traces."""

    chunks_ahead_scripted: int = CHUNKS_AHEAD_SCRIPTED
    chunks_ahead_live: int = CHUNKS_AHEAD_LIVE
    least_probability: float = LEAST_PROBABILITY
    staged_probability: float = STAGED_PROBABILITY
    nearness_worth: float = NEARNESS_WORTH


class _Demand(NamedTuple):
    session: SessionView
    row: int
    nearest: int
    """Tier beyond which it is not brought: 0, or 1 where it is not likely enough."""
    probability: float
    deadline: float
    worth: float
    value: float


def plan_prefetch(
    view: MemoryView, predictors: Mapping[str, Sequence[Predictor]] | None = None, settings: Settings | None = None
) -> PrefetchPlan:
    """What one worker should move now. Pure: the same view and predictors give the same plan.

    `predictors`: session -> sources of forecasts, surest first. Raises SnapshotError where the view contradicts itself.
    """
    check_memory(view)
    settings = settings or Settings()
    if not view.tiers or _nothing_to_decide(view):
        return PrefetchPlan()
    told = [_foresee(session, (predictors or {}).get(session.session, ()), settings) for session in view.sessions]
    planning = _Planning(view, [_worth(revisits, settings) for _, revisits in told])
    demands: list[_Demand] = []
    for (_, revisits), session, worth_N in zip(told, view.sessions, planning.worth, strict=True):
        demands += planning.demands(session, revisits, worth_N, settings)
        planning.cancel(session, revisits)
    # Room goes to what is asked for first, links to what would stall most: what is far and slow must begin early, but
    # not take the place of what is needed before it. Both sorts are stable: the same plan on every machine.
    places = [planning.find_place(demand) for demand in sorted(demands, key=lambda demand: -demand.worth)]
    for place in sorted(filter(None, places), key=lambda place: -place.demand.value):
        planning.move(place)
    return planning.finish(tuple(itertools.chain.from_iterable(known.ignored for known, _ in told)))


def _nothing_to_decide(view: MemoryView) -> bool:
    """Whether all chunks lie where they should, none is under way, and there is room for those to come."""
    near = view.tiers[0]
    return near.used_bytes + near.kept_free_bytes <= near.capacity_bytes and not any(
        (session.table.tier_N > 0).any() for session in view.sessions
    )


def _foresee(session: SessionView, predictors: Sequence[Predictor], settings: Settings) -> tuple[Forecast, Revisits]:
    scripted = session.script_F44 is not None and len(session.script_F44) >= session.frames_per_chunk
    known = forecast(session, settings.chunks_ahead_scripted if scripted else settings.chunks_ahead_live, predictors)
    return known, predict_revisits(session, known)


def _worth(revisits: Revisits, settings: Settings) -> Floats:
    """What each chunk is worth on the device: how likely and soon it is asked for, and how near it was seen from."""
    discount_H = LATER_DISCOUNT ** np.arange(len(revisits.chance_HN))
    soon_N = (revisits.chance_HN * discount_H[:, None]).max(axis=0, initial=0.0)
    return np.asarray(soon_N + settings.nearness_worth * revisits.nearness_N * (1 - soon_N))


class _Place(NamedTuple):
    """Where a demanded chunk would go, and what leaves for it."""

    demand: _Demand
    target: int
    victims: list[tuple[float, int, int]]


class _Planning:
    """Budgets that shrink while one plan is made."""

    def __init__(self, view: MemoryView, worth: Sequence[Floats]) -> None:
        self.view, self.worth = view, worth
        self.free_at = [max(view.now_seconds, link.free_seconds) for link in view.links]
        self.free_bytes = [tier.capacity_bytes - tier.used_bytes - tier.kept_free_bytes for tier in view.tiers]
        self.used_by = [Counter(tier.used_by) for tier in view.tiers]
        self.staging = view.staging_bytes - view.staged_bytes
        self.transfers: list[Transfer] = []
        self.displaced: list[Displaced] = []
        self.late: list[Late] = []
        self.cancelled: list[Cancelled] = []
        self.skipped: Counter[str] = Counter()
        self._victims: dict[int, list[tuple[float, int, int]]] = {}

    def demands(
        self, session: SessionView, revisits: Revisits, worth_N: Floats, settings: Settings
    ) -> Iterator[_Demand]:
        """Chunks likely to be asked for that lie in a colder tier and are not under way."""
        table, chance_HN, now = session.table, revisits.chance_HN, self.view.now_seconds
        chance_N = chance_HN.max(axis=0, initial=0.0)
        # What lies in tier 1 already need be likely enough for the device.
        least_N = np.where(table.tier_N > 1, min(settings.staged_probability, settings.least_probability), np.inf)
        least_N[(table.tier_N == 1) | (chance_N >= settings.least_probability)] = settings.least_probability
        wanted_N = (chance_N >= least_N) & (table.tier_N > 0) & ~table.committed_N
        rows = np.flatnonzero(wanted_N & np.isinf(table.arrives_N))
        if not len(rows):
            return
        # The first window for which it is likely enough sets the deadline.
        step_n = (chance_HN[:, rows] >= least_N[rows]).argmax(axis=0)
        nearest_n = (chance_N[rows] < settings.least_probability).astype(np.int64)
        columns = (rows, step_n, nearest_n, revisits.deadline_H[step_n], chance_N[rows], worth_N[rows])
        tiers, sizes = table.tier_N[rows].tolist(), table.nbytes_N[rows].tolist()
        found = zip(*(column.tolist() for column in columns), tiers, sizes, strict=True)
        for row, step, nearest, deadline, probability, worth, tier, nbytes in found:
            seconds = self.fetch_seconds(tier, nbytes)
            slack = max(deadline - now, 1e-9)
            # With time to spare it can wait; with none it must begin now.
            urgency = min(1.0, seconds / slack)
            spare = slack - session.chunk_seconds - seconds * session.recall.retrieved_chunks
            if step and probability < SURE and spare >= 0:
                continue  # by the next plan more is known, and a whole window's worth can still arrive
            value = probability * urgency * seconds if math.isfinite(seconds) else 0.0
            yield _Demand(session, row, nearest, probability, deadline, worth, value)

    def fetch_seconds(self, tier: int, nbytes: int) -> float:
        """To bring so many bytes to tier 0 over idle links; infinite where a link carries nothing."""
        rates = [(link.latency_seconds, link.bytes_per_second) for link in self.view.links[:tier]]
        return sum(latency + nbytes / rate if rate else math.inf for latency, rate in rates)

    def cancel(self, session: SessionView, revisits: Revisits) -> None:
        """Name what is under way although hardly any way leads to it."""
        table = session.table
        under_way_N = np.isfinite(table.arrives_N) & (table.tier_N > 0) & ~table.committed_N
        under_way_N &= table.arrives_N > self.view.now_seconds
        under_way_N &= revisits.chance_HN.max(axis=0, initial=0.0) < CANCEL_BELOW
        if len(revisits.chance_HN):
            self.cancelled += [Cancelled(session.session, chunk) for chunk in table.chunk_N[under_way_N].tolist()]

    def find_place(self, demand: _Demand) -> _Place | None:
        """The nearest tier that has room for the chunk, or makes it out of what is worth less; None where none does."""
        row = demand.row
        # What finds no room near the model may wait for its turn one tier farther.
        for target in range(demand.nearest, int(demand.session.table.tier_N[row])):
            found = self._make_room(demand, target, int(demand.session.table.nbytes_N[row]))
            if not isinstance(found, str):
                return _Place(demand, target, found)
            if target == demand.nearest:
                self.skipped[found] += 1
        return None

    def move(self, place: _Place) -> None:
        """Have the chunk carried to its place, or say why not."""
        demand, table, row = place.demand, place.demand.session.table, place.demand.row
        tier, nbytes, reduced = int(table.tier_N[row]), int(table.nbytes_N[row]), False
        arrives = self._arrival(tier, 0, nbytes)
        if arrives > demand.deadline:
            decision = self._decide(demand)
            if demand.probability >= LATE_MATTERS:
                name, chunk = demand.session.session, int(table.chunk_N[row])
                self.late.append(Late(name, chunk, demand.probability, demand.deadline, arrives, decision))
            if decision == "without" or math.isinf(arrives):
                self.skipped["link" if math.isinf(arrives) else "late"] += 1
                return
            if decision == "reduced":
                assert table.reduced_tier_N is not None
                assert table.reduced_nbytes_N is not None
                tier, nbytes, reduced = int(table.reduced_tier_N[row]), int(table.reduced_nbytes_N[row]), True
                if tier <= place.target:
                    return
        if nbytes > self.staging:
            self.skipped["staging"] += 1
            return
        for victim in place.victims:
            self._displace(place.target, victim)
        self._carry(demand, (tier, place.target), nbytes, reduced)

    def finish(self, ignored: tuple[str, ...]) -> PrefetchPlan:
        """The plan as far as it was made."""
        return PrefetchPlan(
            tuple(self.transfers),
            tuple(self.displaced),
            tuple(self.late),
            tuple(self.cancelled),
            tuple(
                (self.view.sessions[number].session, int(self.view.sessions[number].table.chunk_N[row]))
                for _, number, row in self._residents(0)
            ),
            dict(self.skipped),
            ignored,
        )

    def _decide(self, demand: _Demand) -> str:
        """What the session does about a chunk that comes too late."""
        table, row, policy = demand.session.table, demand.row, demand.session.late_policy
        if policy != "reduced":
            return policy
        if table.reduced_tier_N is None or table.reduced_nbytes_N is None or table.reduced_tier_N[row] < 0:
            return "wait"
        reduced_arrives = self._arrival(int(table.reduced_tier_N[row]), 0, int(table.reduced_nbytes_N[row]))
        return "reduced" if reduced_arrives <= demand.deadline else "wait"

    def _arrival(self, tier: int, target: int, nbytes: int) -> float:
        at = self.view.now_seconds
        for number in range(tier - 1, target - 1, -1):
            link = self.view.links[number]
            seconds = nbytes / link.bytes_per_second if link.bytes_per_second else math.inf
            at = max(at, self.free_at[number]) + link.latency_seconds + seconds
        return at

    def _carry(self, demand: _Demand, way: tuple[int, int], nbytes: int, reduced: bool) -> None:
        """Book the links and the staging."""
        tier, target = way
        session, table = demand.session, demand.session.table
        at = self.view.now_seconds
        for number in range(tier - 1, target - 1, -1):
            link = self.view.links[number]
            at = max(at, self.free_at[number]) + link.latency_seconds + nbytes / link.bytes_per_second
            self.free_at[number] = at
        self.staging -= nbytes
        chunk = int(table.chunk_N[demand.row])
        about = (chunk, tier, target, nbytes, demand.probability, demand.value, demand.deadline, at, reduced)
        self.transfers.append(Transfer(session.session, session.tenant, *about))

    def _make_room(self, demand: _Demand, target: int, nbytes: int) -> list[tuple[float, int, int]] | str:
        """What to displace, all of it worth less, for the chunk to fit; the reason where it cannot."""
        tier, tenant = self.view.tiers[target], demand.session.tenant
        over = self.used_by[target][tenant] + nbytes - tier.limits.get(tenant, tier.capacity_bytes)
        short = nbytes - self.free_bytes[target]
        if over <= 0 and short <= 0:
            self._book(target, tenant, nbytes)
            return []
        if nbytes > min(tier.capacity_bytes - tier.kept_free_bytes, tier.limits.get(tenant, tier.capacity_bytes)):
            return "share" if nbytes <= tier.capacity_bytes else "room"
        chosen: list[tuple[float, int, int]] = []
        lost: Counter[str] = Counter()
        for victim in self._residents(target):
            if over <= 0 and short <= 0:
                break
            worth, number, row = victim
            if worth >= demand.worth:
                break
            owner = self.view.sessions[number]
            taken = int(owner.table.nbytes_N[row])
            own = owner.tenant == tenant
            left = self.used_by[target][owner.tenant] - lost[owner.tenant] - taken
            if not own and (over > 0 >= short or left < tier.reserved.get(owner.tenant, 0)):
                continue
            chosen.append(victim)
            lost[owner.tenant] += taken
            short -= taken
            over -= taken if own else 0
        if over > 0 or short > 0:
            return "share" if over > 0 else "room"
        for victim in chosen:
            self._victims[target].remove(victim)
            owner = self.view.sessions[victim[1]]
            self._book(target, owner.tenant, -int(owner.table.nbytes_N[victim[2]]))
        self._book(target, tenant, nbytes)
        return chosen

    def _book(self, tier: int, tenant: str, nbytes: int) -> None:
        self.free_bytes[tier] -= nbytes
        self.used_by[tier][tenant] += nbytes

    def _displace(self, tier: int, victim: tuple[float, int, int]) -> None:
        _, number, row = victim
        owner = self.view.sessions[number]
        table = owner.table
        self.displaced.append(Displaced(owner.session, int(table.chunk_N[row]), tier, int(table.nbytes_N[row])))

    def _residents(self, tier: int) -> list[tuple[float, int, int]]:
        """What may leave a tier, least worth first: (worth, number of the session, row)."""
        if tier not in self._victims:
            found: list[tuple[float, int, int]] = []
            for number, session in enumerate(self.view.sessions):
                here_N = (session.table.tier_N == tier) & ~session.table.committed_N
                rows = np.flatnonzero(here_N)
                found += zip(self.worth[number][rows].tolist(), itertools.repeat(number), rows.tolist())
            self._victims[tier] = sorted(found)
        return self._victims[tier]
