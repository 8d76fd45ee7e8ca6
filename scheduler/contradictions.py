"""Snapshots that contradict themselves are refused, with what contradicts what.

Shapes: W workers, R running sessions, n of (session, worker).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from scheduler.snapshot import (
    ClusterView,
    MemoryView,
    RunningTable,
    RunningView,
    SessionView,
    TierView,
    WorkerView,
)
from worldkv.errors import SnapshotError


def check_memory(view: MemoryView) -> None:
    """Raise SnapshotError where the memory's snapshot contradicts itself."""
    if len(view.links) != max(0, len(view.tiers) - 1):
        raise SnapshotError(f"{len(view.tiers)} tiers need {max(0, len(view.tiers) - 1)} links, got {len(view.links)}")
    if min(view.staging_bytes, view.staged_bytes) < 0:
        raise SnapshotError(f"staging_bytes={view.staging_bytes}, staged_bytes={view.staged_bytes}: neither may be < 0")
    for tier in view.tiers:
        _check_tier(tier)
    for number, link in enumerate(view.links):
        if not (0 <= link.bytes_per_second < np.inf and 0 <= link.latency_seconds < np.inf):
            raise SnapshotError(f"link {number}: {link} needs a rate and a latency that are finite and not negative")
    seen: set[str] = set()
    for session in view.sessions:
        if session.session in seen:
            raise SnapshotError(f"session {session.session} is listed twice on one worker")
        seen.add(session.session)
        _check_session(session, len(view.tiers))


def check_cluster(view: ClusterView) -> None:
    """Raise SnapshotError where the cluster's snapshot contradicts itself."""
    numbers = {worker.worker: number for number, worker in enumerate(view.workers)}
    if len(numbers) != len(view.workers):
        raise SnapshotError(f"worker {_first_double(w.worker for w in view.workers)} is listed twice")
    for worker in view.workers:
        if not 0 < worker.speed < np.inf:
            raise SnapshotError(f"worker {worker.worker}: speed={worker.speed}: must be above 0 and finite")
    views = view.running.views
    where = {running.session: running for running in views}
    if len(where) != len(views):
        _refuse_two_places(views)
    alive = {worker.worker: number for number, worker in enumerate(view.workers) if worker.alive}
    number_n = [alive.get(name, -1) for name in view.running.worker_n]
    if -1 in number_n:
        _refuse_place(views[view.running.row_n[number_n.index(-1)]], numbers, view.workers)
    for row in np.flatnonzero(view.running.gang_R != 1).tolist():
        _check_gang(views[row], [view.workers[numbers[name]].node for name in views[row].workers])
    _check_room(view.workers, number_n, view.running)
    _check_pending(view, where)


def _check_room(workers: tuple[WorkerView, ...], number_n: list[int], running: RunningTable) -> None:
    taken_W3 = np.zeros((len(workers), 3), np.int64)
    np.add.at(taken_W3, number_n, running.needs_R3[running.row_n])
    has_W3 = np.array([(w.total.slots, w.total.device_bytes, w.total.host_bytes) for w in workers], np.int64)
    over = np.argwhere(taken_W3 > has_W3.reshape(-1, 3))
    if len(over):
        number, what = over[0].tolist()
        raise SnapshotError(
            f"worker {workers[number].worker}: its sessions take {taken_W3[number, what]} "
            f"{('slots', 'device bytes', 'host bytes')[what]}, it has {has_W3[number, what]}"
        )


def _check_tier(tier: TierView) -> None:
    if not 0 <= tier.used_bytes <= tier.capacity_bytes:
        raise SnapshotError(f"tier {tier.name}: uses {tier.used_bytes} bytes of a capacity of {tier.capacity_bytes}")
    if sum(tier.used_by.values()) > tier.used_bytes or min(tier.used_by.values(), default=0) < 0:
        raise SnapshotError(f"tier {tier.name}: tenants use {dict(tier.used_by)} bytes, all together {tier.used_bytes}")


def _check_session(session: SessionView, tiers: int) -> None:
    table, name = session.table, f"session {session.session}"
    lengths = {len(table.pose_N44), len(table.nbytes_N), len(table.tier_N), len(table.committed_N)}
    if lengths | {len(table.arrives_N)} != {len(table)}:
        raise SnapshotError(f"{name}: columns of its chunks have {len(table)} and {sorted(lengths)} rows")
    if len(table):
        if table.chunk_N[-1] >= session.chunk:
            raise SnapshotError(f"{name}: chunk {table.chunk_N[-1]} is stored, but chunk {session.chunk} is made next")
        if (table.chunk_N[1:] <= table.chunk_N[:-1]).any():
            raise SnapshotError(f"{name}: chunks are not in ascending order: {table.chunk_N.tolist()}")
        if table.tier_N.max() >= tiers:
            row = int(table.tier_N.argmax())
            raise SnapshotError(
                f"{name}: chunk {table.chunk_N[row]} lies in tier {table.tier_N[row]}, there are {tiers} tiers"
            )
        if table.nbytes_N.min() < 0:
            raise SnapshotError(f"{name}: chunk {table.chunk_N[table.nbytes_N.argmin()]} has negative bytes")
    if session.recall.ranking == "overlap" and session.recall.frustum is None:
        raise SnapshotError(f"{name}: retrieves by overlap, but no frustum says what its camera sees")
    if len(session.recent_F44) == 0:
        raise SnapshotError(f"{name}: no recent pose is given, so nothing says where its camera is")
    if not np.isfinite(session.recent_F44).all():
        raise SnapshotError(f"{name}: a recent pose has a value that is not finite")
    if not (session.chunk_seconds > 0 and session.frames_per_chunk > 0 and session.latent_stride > 0):
        raise SnapshotError(
            f"{name}: chunk_seconds={session.chunk_seconds}, frames_per_chunk={session.frames_per_chunk}, "
            f"latent_stride={session.latent_stride} must all be above 0"
        )


def _refuse_two_places(running: tuple[RunningView, ...]) -> None:
    name = _first_double(one.session for one in running)
    places = [", ".join(one.workers) for one in running if one.session == name]
    raise SnapshotError(f"session {name} runs on {' and on '.join(places)}: a session has one place")


def _refuse_place(running: RunningView, numbers: Mapping[str, int], workers: tuple[WorkerView, ...]) -> None:
    for name in running.workers:
        if name not in numbers:
            raise SnapshotError(f"session {running.session} runs on worker {name}, which is not in the cluster")
        if not workers[numbers[name]].alive:
            raise SnapshotError(
                f"session {running.session} runs on worker {name}, which is dead: report the session lost or pending"
            )


def _check_gang(running: RunningView, nodes: list[str]) -> None:
    if len(set(nodes)) != 1 or len(set(running.workers)) != len(running.workers):
        raise SnapshotError(
            f"session {running.session} runs on workers {', '.join(running.workers)} of {len(set(nodes))} nodes: "
            "a session needs distinct workers of one node"
        )


def _check_pending(view: ClusterView, where: Mapping[str, RunningView]) -> None:
    pending = view.pending
    names = set(pending.session_P)
    if len(names) != len(pending):
        raise SnapshotError(f"session {_first_double(pending.session_P)} waits twice")
    if both := names & where.keys():
        name = min(both)
        raise SnapshotError(f"session {name} waits and runs on {', '.join(where[name].workers)}")
    columns = (pending.tenant_P, pending.needs_P3, pending.gang_P, pending.priority_P, pending.waits_since_P)
    if {len(column) for column in columns} != {len(pending)}:
        raise SnapshotError(f"{len(pending)} sessions wait, their columns have {[len(one) for one in columns]} rows")
    few_P = np.minimum(pending.gang_P, pending.needs_P3[:, 0]) < 1
    if few_P.any():
        row = int(few_P.argmax())
        raise SnapshotError(
            f"session {pending.session_P[row]}: gang={pending.gang_P[row]}, slots={pending.needs_P3[row, 0]}: "
            "both must be 1 or more"
        )
    for tenant, entitled in view.tenants.items():
        if not 0 < entitled.weight < np.inf or entitled.reserved_slots < 0:
            raise SnapshotError(
                f"tenant {tenant}: {entitled} needs a finite weight above 0 and no negative reservation"
            )


def _first_double(names: Iterable[str]) -> str:
    return next(name for name, count in Counter(names).items() if count > 1)
