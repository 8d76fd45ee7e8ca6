"""What users of a memory do, at random, and what they find."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from campaign.pool import CHUNKS, EPOCHS, TENANTS
from campaign.world import Broken, Pinned, View, World
from worldkv.errors import ChunkForeign, ChunkPinned, LeaseExpired
from worldkv.memory.chunk_list import ChunkList

VIEWS, PINS, LEASES, LISTS = 3, 3, 4, 48
"""At most so many at a time."""


def some_tenant(world: World) -> str:
    """Most work is of today's weights and any tenant."""
    return world.rng.choice(TENANTS)


def stored_ids(world: World, who: str) -> list[str]:
    """Of all sessions of the tenant, each once."""
    mine = (stored for tenant, stored in world.lists if tenant == who)
    return list(dict.fromkeys(chunk_id for stored in mine for chunk_id in stored.values()))


def some_id(world: World, who: str, known: Sequence[str] = ()) -> str:
    """One of the tenant's chunks: mostly of those it stored, and one in ten of the others is of other weights."""
    if known and world.rng.random() < 0.7:
        return world.rng.choice(known)
    epoch = world.epoch if world.rng.random() < 0.9 else world.rng.choice(EPOCHS)
    return world.pool.chunks[who, epoch][world.rng.randrange(CHUNKS)].id


def admit(world: World) -> None:
    """A session stores its first chunk."""
    who, i = some_tenant(world), world.rng.randrange(CHUNKS)
    if len(world.lists) >= LISTS:
        let_go(world)
    chunk_id = world.memory.admit(world.pool.fresh(who, world.epoch, i), group=world.rng.choice((None, 1, 2)))
    world.lists.append((who, ChunkList([(i, chunk_id)])))
    world.tally.event(chunk_id)
    if chunk_id in world.tiers[0] and not world.memory.holds(chunk_id, tenant=who):
        raise Broken(f"chunk {chunk_id} of {who} was admitted and lies in a tier, but cannot be had")


def admit_foreign(world: World) -> None:
    """A session brings a chunk of other weights: taken and dropped where they were valid, else refused."""
    who, i, other = some_tenant(world), world.rng.randrange(CHUNKS), EPOCHS[1 - EPOCHS.index(world.epoch)]
    try:
        chunk_id = world.memory.admit(world.pool.fresh(who, other, i))
    except ChunkForeign:
        if other in world.past:
            raise
        return
    if other not in world.past:
        raise Broken(f"chunk {chunk_id} of weights that never were valid was admitted")
    world.lists.append((who, ChunkList([(i, chunk_id)])))


def append(world: World) -> None:
    """A session stores one more."""
    if world.lists:
        who, stored = world.rng.choice(world.lists)
        i = world.rng.randrange(CHUNKS)
        if i > max(stored):
            stored.append(i, world.memory.admit(world.pool.fresh(who, world.epoch, i)))


def admit_reduced(world: World) -> None:
    """A session comes from elsewhere with a chunk that lost detail there."""
    who = some_tenant(world)
    name = some_id(world, who)
    form = world.rng.choice(sorted(world.pool.forms(name)))
    chunk = world.pool.copy(form)
    if chunk.epoch == world.epoch and len(world.lists) < LISTS:
        world.lists.append((who, ChunkList([(0, world.memory.admit(chunk, known_as=name))])))


def admit_dropped(world: World) -> None:
    """A session comes from elsewhere, where its chunk was dropped."""
    who = some_tenant(world)
    name = some_id(world, who)
    if len(world.lists) < LISTS:
        world.memory.admit_dropped([name], tenant=who)
        world.lists.append((who, ChunkList([(0, name)])))


def fork(world: World) -> None:
    """A session forks."""
    if world.lists and len(world.lists) < LISTS:
        who, stored = world.rng.choice(world.lists)
        world.lists.append((who, stored.fork()))


def let_go(world: World) -> None:
    """A session ends."""
    if world.lists:
        who, stored = world.lists.pop(world.rng.randrange(len(world.lists)))
        world.memory.release(stored.let_go(), tenant=who)


def fetch(world: World) -> None:
    """A session asks for chunks, and may go on reading one."""
    who = some_tenant(world)
    known = stored_ids(world, who)
    wanted = [some_id(world, who, known) for _ in range(world.rng.randrange(1, 4))]
    late = world.rng.random() < 0.05
    must_hit = world.memory.holds(wanted[0], tenant=who) and not late and not world.may_miss(wanted[0])
    at_hand = all(is_at_hand(world, chunk_id, who) for chunk_id in wanted)
    slow = any(faults.delay_seconds for faults in world.media.values())
    before = sum(faults.calls for faults in world.media.values())
    started = time.perf_counter()
    found = world.memory.fetch(wanted, tenant=who, deadline=world.now - 1 if late else math.inf)
    world.tally.seconds["slow media" if slow else "fast media"].append(time.perf_counter() - started)
    called = sum(faults.calls for faults in world.media.values()) - before
    world.lookups += len(wanted)
    for asked, chunk in zip(wanted, found, strict=True):
        if chunk is None:
            world.misses_due["known" if asked in known else "unknown"] += 1
        else:
            world.got(asked, who, chunk)
    world.tally.event(wanted, [chunk and chunk.id for chunk in found])
    if must_hit and found[0] is None:
        raise Broken(f"chunk {wanted[0]} of {who} was held and sound, and its fetch missed")
    if at_hand and called:
        raise Broken(f"chunks that all lie in tier 0 were fetched with {called} calls of slower media")
    if found[-1] is not None and len(world.views) < VIEWS:
        world.views.append(View(wanted[-1], who, found[-1]))


def is_at_hand(world: World, chunk_id: str, who: str) -> bool:
    """Whether no slower medium has to be asked for the chunk."""
    held = world.memory.holds(chunk_id, tenant=who) and not world.may_miss(chunk_id)
    return held and chunk_id in world.tiers[0]


def fetch_as_another(world: World) -> None:
    """A tenant asks for what is another's, and for what nobody has."""
    other = world.pool.chunks["guarded", world.epoch][world.rng.randrange(CHUNKS)].id
    world.lookups += 2
    world.misses_due["unknown"] += 2
    if world.memory.fetch([other, "no chunk at all"], tenant="limited") != [None, None]:
        raise Broken(f"chunk {other} was given to another tenant")


def drop_a_view(world: World) -> None:
    """A reader is done."""
    if world.views:
        view = world.views.pop(world.rng.randrange(len(world.views)))
        world.got(view.asked, view.tenant, view.chunk)


def pin(world: World) -> None:
    """Someone holds chunks in place."""
    who = some_tenant(world)
    wanted = [some_id(world, who, stored_ids(world, who)) for _ in range(2)]
    if len(world.pins) < PINS:
        hold = world.memory.pin(wanted, tenant=who)
        hold.__enter__()
        places = {chunk_id: places_of(world, chunk_id) for chunk_id in wanted if not world.may_miss(chunk_id)}
        world.pins.append(Pinned(hold, wanted, places, world.struck))


def unpin(world: World) -> None:
    """And lets go; meanwhile they have not moved."""
    if world.pins:
        pinned = world.pins.pop(world.rng.randrange(len(world.pins)))
        check_places(world, pinned)
        pinned.hold.__exit__(None, None, None)


def lease(world: World) -> None:
    """Somebody far away holds chunks for a while."""
    who, seconds = some_tenant(world), world.rng.randrange(1, 20)
    if len(world.leases) < LEASES:
        given = world.memory.lease([some_id(world, who, stored_ids(world, who))], seconds, world.now, tenant=who)
        world.leases.append((given, world.now + seconds))


def pass_time(world: World) -> None:
    """Leases run out, are renewed or end early, exactly as the clock says."""
    world.now += world.rng.randrange(1, 10)
    expire(world)
    for given, _ in world.leases[:1]:
        world.memory.end_lease(given)
    world.leases = [(given, world.now + 15) for given, _ in world.leases[1:]]
    for given, _ in world.leases:
        world.memory.renew(given, 15, world.now)


def jump_clock(world: World) -> None:
    """The clock jumps, either way, as far as it likes."""
    world.now += world.rng.choice((-1e9, -3600.0, -5.0, 3600.0, 1e9))
    expire(world)


def expire(world: World) -> None:
    """What ran out by now cannot be renewed."""
    world.memory.expire(world.now)
    for given, until in world.leases:
        if until <= world.now:
            try:
                world.memory.renew(given, 1, world.now)
            except LeaseExpired:
                continue
            raise Broken(f"lease {given.number} ran out at {until}, it is {world.now}, and it was renewed")
    world.leases = [(given, until) for given, until in world.leases if until > world.now]


def demote(world: World) -> None:
    """A session falls idle."""
    who = some_tenant(world)
    try:
        world.memory.demote([some_id(world, who, stored_ids(world, who))], tenant=who)
    except ChunkPinned:
        if not world.pins and not world.leases:
            raise


def change_weights(world: World) -> None:
    """Other weights are loaded: what the old ones made misses from now on."""
    old, world.epoch = world.epoch, EPOCHS[1 - EPOCHS.index(world.epoch)]
    who = some_tenant(world)
    stale = world.pool.chunks[who, old][world.rng.randrange(CHUNKS)].id
    held = world.memory.holds(stale, tenant=who)
    world.memory.set_epoch(world.epoch)
    world.past.add(old)
    before = world.memory.stats().misses["stale_epoch"]
    world.lookups += 1
    world.misses_due["known" if held else "unknown"] += 1
    if world.memory.fetch([stale], tenant=who) != [None]:
        raise Broken(f"chunk {stale} of other weights was given out")
    if held and world.memory.stats().misses["stale_epoch"] == before:
        raise Broken(f"chunk {stale} of other weights did not miss as stale_epoch")


def look(world: World) -> None:
    """A snapshot is taken: nothing moves, and all of it is sound."""
    who = some_tenant(world)
    before = world.memory.lying(), world.memory.stats().lookups
    names = [chunk.id for chunk in world.pool.chunks[who, world.epoch]]
    for asked, chunk in world.memory.held(names, tenant=who).items():
        world.got(asked, who, chunk)
    if (world.memory.lying(), world.memory.stats().lookups) != before:
        raise Broken("a look at the chunks moved them, or was counted")


def places_of(world: World, chunk_id: str) -> set[int]:
    """Tiers in which the chunk lies under this id, by the memory's books."""
    return {level for level, ids in enumerate(world.memory.lying()) if chunk_id in ids}


def check_places(world: World, pinned: Pinned) -> None:
    """Raise Broken where a held chunk moved; one that is damaged or cannot be read is taken out whoever holds it."""
    if world.struck > pinned.struck:
        return
    for chunk_id, levels in pinned.places.items():
        if not world.may_miss(chunk_id) and not levels <= places_of(world, chunk_id):
            raise Broken(f"chunk {chunk_id} was pinned in tiers {levels} and lies in {places_of(world, chunk_id)}")


USES = {
    admit: 12,
    admit_foreign: 1,
    append: 4,
    admit_reduced: 2,
    admit_dropped: 1,
    fork: 3,
    let_go: 6,
    fetch: 24,
    fetch_as_another: 1,
    drop_a_view: 8,
    pin: 3,
    unpin: 4,
    lease: 2,
    pass_time: 2,
    jump_clock: 1,
    demote: 5,
    look: 1,
}
"""How often each is done."""
