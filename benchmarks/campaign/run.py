"""One campaign: so many operations from one seed, the same each time."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

from campaign.harm import HARMS, heal, restart
from campaign.medium import PowerCut
from campaign.pool import Pool, WrongBytes
from campaign.tally import Tally
from campaign.use import USES, change_weights
from campaign.world import Broken, World
from worldkv.errors import WorldKVError

SHARES = {"harm": 0.03, "heal": 0.03, "restart": 0.002, "change_weights": 0.002}
"""Of all operations; the rest is use."""
SINGLE = {"heal": heal, "restart": restart, "change_weights": change_weights}
OPERATIONS_PER_AUDIT = 200
MOST_CALLS = 250
"""Of media in one operation, so of their delays too: it depends on the sizes of the tiers, not on their history."""


class CampaignFailed(AssertionError):
    """Names the seed and the operation, so that it can be had again."""


@cache
def shared_pool() -> Pool:
    """All campaigns admit the same chunks."""
    return Pool()


def run(seed: int, operations: int, folder: Path, wait: Callable[[float], None] = lambda seconds: None) -> Tally:
    """Run the campaign of this seed in an empty folder; `wait` is what a slow medium does for so many seconds.

    Raises CampaignFailed where the memory gave wrong bytes, raised, or lost count.
    """
    tally = Tally()
    world: World | None = None
    try:
        world = World(folder, shared_pool(), tally, random.Random(seed), wait)
        for _ in range(operations):
            step(world)
        world.end()
    except (WrongBytes, Broken, AssertionError, OSError, WorldKVError, LookupError, ValueError) as fault:
        raise CampaignFailed(f"seed {seed}, operation {tally.operations}: {type(fault).__name__}: {fault}") from fault
    finally:
        if world is not None:
            for tier in world.tiers:
                tier.close()
    return tally


def step(world: World) -> None:
    """One operation, and from time to time an audit."""
    tally = world.tally
    action = choose(world.rng)
    tally.operations += 1
    tally.calls[action.__name__] += 1
    if action in HARMS:
        tally.faults[action.__name__] += 1
    before = calls(world)
    started = time.perf_counter()
    try:
        action(world)
        tally.event(action.__name__)
    except PowerCut as cut:
        tally.event("power cut", action.__name__, str(cut))
        tally.faults["power cuts that came"] += 1
        world.restart(cut=True)
    else:
        if action is not restart:
            count(world, calls(world) - before, time.perf_counter() - started)
    if tally.operations % OPERATIONS_PER_AUDIT == 0:
        world.heal()
        world.audit()


def count(world: World, made: int, seconds: float) -> None:
    """Enter one operation's calls of media and its time. Raises Broken for too many calls."""
    world.tally.medium_calls[made] += 1
    world.tally.seconds["operation"].append(seconds)
    if made > MOST_CALLS:
        raise Broken(f"one operation made {made} calls of media; {MOST_CALLS} are allowed")


def choose(rng: random.Random) -> Callable[[World], None]:
    """What happens next."""
    (kind,) = rng.choices([*SHARES, "use"], [*SHARES.values(), 1 - sum(SHARES.values())])
    if kind in SINGLE:
        return SINGLE[kind]
    table = HARMS if kind == "harm" else USES
    return rng.choices(list(table), list(table.values()))[0]


def calls(world: World) -> int:
    """Of all media of this process so far; restarts begin anew."""
    return sum(faults.calls for faults in world.media.values())
