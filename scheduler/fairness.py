"""Whose session is served next: weighted dominant-resource fairness over tenants, with reservations and priorities.

A tenant's dominant share is the largest part it uses of anything the cluster has, divided by its weight. The tenant
with the smallest one is served, again and again: so a tenant's queue, long as it may be, moves its own share alone. The
order of all that wait is found at once by sorting, as the share before each session of a queue is known beforehand.

Shapes: P pending sessions, T tenants, R = 3 resources (slots, bytes of device and host memory).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from scheduler.snapshot import (
    Bools,
    ClusterView,
    Floats,
    Ints,
    PendingTable,
    Resources,
    RunningTable,
    TenantView,
)

STARVING_SECONDS = 120.0
"""A session that waited so long goes to the head of its tenant's queue, and a sharded one has a node kept free: a
rollout of a minute of video takes about so long."""


class Service(NamedTuple):
    """Whom to serve."""

    order_P: Ints
    """Rows of pending sessions, the next one first."""
    reserved: int
    """How many of the first are within their tenants' reservations."""


def service_order(view: ClusterView, total: Resources, starving_seconds: float = STARVING_SECONDS) -> Service:
    """Numbers of pending sessions in the order in which they should be placed; those beyond a limit are left out.

    First those within their tenant's reservation, then by dominant share, of equal ones who waits for longest.
    O(P log P).
    """
    pending, tenants = view.pending, view.pending.tenants
    if not len(pending):
        return Service(np.empty(0, np.int64), 0)
    entitled = [view.tenants.get(tenant, TenantView()) for tenant in tenants]
    queue_P = _queues(pending, view.now_seconds - starving_seconds)
    tenant_P = pending.tenant_P[queue_P]
    # Resource by resource: sums along contiguous columns are several times faster than along rows of three.
    needs_3P = np.ascontiguousarray((pending.needs_P3 * pending.gang_P[:, None]).T, np.float64)[:, queue_P]
    before_3P = used_by_tenant(view.running, tenants).T[:, tenant_P] + _earlier_in_queue(needs_3P, tenant_P)
    total_31 = np.array([[total.slots], [total.device_bytes], [total.host_bytes]], np.float64)
    part_3P = before_3P / np.where(total_31 > 0, total_31, np.inf)
    share_P = functools.reduce(np.maximum, part_3P) / np.array([one.weight for one in entitled])[tenant_P]
    reserved_P = before_3P[0] < np.array([one.reserved_slots for one in entitled])[tenant_P]
    limit_T = np.array([np.inf if one.limit_slots is None else one.limit_slots for one in entitled])
    within_P = before_3P[0] + needs_3P[0] <= limit_T[tenant_P]
    # Stable, and queues are sorted: equal sessions are served in the same order on every machine.
    order_P = np.lexsort((pending.waits_since_P[queue_P], share_P, ~reserved_P))
    served_P = order_P[within_P[order_P]]
    return Service(queue_P[served_P], int(reserved_P[served_P].sum()))


def used_by_tenant(running: RunningTable, tenants: Sequence[str]) -> Floats:
    """What the sessions of each tenant hold, [T, R]; those that are leaving count no more."""
    needs_3R = (running.needs_R3 * (running.gang_R * ~running.leaving_R)[:, None]).T
    used_3t = [np.bincount(running.tenant_R, one_R, len(running.tenants)) for one_R in needs_3R]
    used = dict(zip(running.tenants, np.stack(used_3t, axis=1), strict=True))
    return np.array([used.get(tenant, np.zeros(3)) for tenant in tenants]).reshape(-1, 3)


def held_slots(running: RunningTable) -> Counter[str]:
    """Tenant -> slots that its sessions hold; those that are leaving count no more."""
    slots_R = running.gang_R * running.needs_R3[:, 0] * ~running.leaving_R
    return _by_tenant(running.tenants, running.tenant_R, slots_R)


def asked_slots(pending: PendingTable, which_P: Bools) -> Counter[str]:
    """Tenant -> slots that these of its waiting sessions ask for."""
    return _by_tenant(pending.tenants, pending.tenant_P, pending.gang_P * pending.needs_P3[:, 0] * which_P)


def rows_of(pending: PendingTable, rows: Collection[int]) -> Bools:
    """A mask of these rows, [P]."""
    mask_P = np.zeros(len(pending), bool)
    mask_P[list(rows)] = True
    return mask_P


def unused_reservations(view: ClusterView, placed: Collection[int]) -> int:
    """Slots that stay free for tenants that do not want them now, once these rows are placed."""
    held = held_slots(view.running) + asked_slots(view.pending, rows_of(view.pending, placed))
    return sum(max(0, entitled.reserved_slots - held[tenant]) for tenant, entitled in view.tenants.items())


def fair_slots(demand: Mapping[str, int], tenants: Mapping[str, TenantView], slots: int) -> dict[str, float]:
    """How many of `slots` each tenant is entitled to of what it could use: weighted max-min, reservations first.

    What one does not want goes to the others by weight. Sums to `slots`, or to all that is wanted if that is less.
    """
    entitled = {name: tenants.get(name, TenantView()) for name in sorted(demand)}
    most = {
        name: float(demand[name] if one.limit_slots is None else min(demand[name], one.limit_slots))
        for name, one in entitled.items()
    }
    got = {name: float(min(most[name], one.reserved_slots)) for name, one in entitled.items()}
    reserved = sum(got.values())
    if reserved > slots:  # more is reserved than there is, as after losing nodes: all give up the same part
        return {name: part * slots / reserved for name, part in got.items()}
    return _filled(got, most, {name: one.weight for name, one in entitled.items()}, float(slots))


def _filled(got: dict[str, float], most: dict[str, float], weight: dict[str, float], slots: float) -> dict[str, float]:
    """Raise the level of slots per weight until all are given; whoever is above the level keeps what is reserved."""
    edges = sorted({value / weight[name] for name in got for value in (got[name], most[name])})

    def at(level: float) -> dict[str, float]:
        return {name: min(most[name], max(got[name], level * weight[name])) for name in got}

    low = 0.0
    for edge in edges:
        if sum(at(edge).values()) > slots:
            break
        low = edge
    else:
        return at(low)
    base = at(low)
    rising = sum(weight[name] for name in got if got[name] <= low * weight[name] < most[name])
    level = low + (slots - sum(base.values())) / rising if rising else low
    return at(level)


def _queues(pending: PendingTable, starved_before: float) -> Ints:
    """Pending sessions tenant by tenant, each tenant's in the order of its queue; equal ones in that of the table."""
    starved_P = pending.waits_since_P < starved_before
    return np.lexsort((pending.waits_since_P, -pending.priority_P, ~starved_P, pending.tenant_P))


def _earlier_in_queue(needs_3P: Floats, tenant_P: Ints) -> Floats:
    """What those before each session in its tenant's queue need together; columns are sorted by tenant."""
    running_3P = np.cumsum(needs_3P, axis=1) - needs_3P
    first_T = np.searchsorted(tenant_P, np.arange(tenant_P[-1] + 1), side="left").clip(0, len(tenant_P) - 1)
    earlier_3P: Floats = running_3P - running_3P[:, first_T][:, tenant_P]
    return earlier_3P


def _by_tenant(tenants: Sequence[str], tenant_N: Ints, slots_N: Ints) -> Counter[str]:
    total_T = np.bincount(tenant_N, slots_N, len(tenants)).astype(np.int64)
    return Counter({tenant: count for tenant, count in zip(tenants, total_T.tolist(), strict=True) if count})
