"""What goes wrong: media that refuse, lie, slow down or vanish, files and memory that are damaged, and power cuts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from campaign.medium import Faults
from campaign.world import DISK, DURABLE, Broken, World
from worldkv.memory.tiers.filesystem import PUT_POINTS
from worldkv.memory.tiers.resident import ResidentTier

STORE_PUT_POINTS = ("create", "write_rest", "info", "rename", "renamed")
HEADER_BYTES = 300
"""Of a chunk file's start: all of it is checked. What follows up to the payload may be padding."""


def medium(world: World) -> Faults:
    """One of the two."""
    return world.media[world.rng.choice((DISK, DURABLE))]


def fill_up(world: World) -> None:
    """ENOSPC or EDQUOT at one point of every write."""
    level = world.rng.choice((DISK, DURABLE))
    point = world.rng.choice(PUT_POINTS[:-1] if level == DISK else STORE_PUT_POINTS)
    world.media[level].errnos[point] = world.rng.choice((errno.ENOSPC, errno.EDQUOT))


def fail_writes(world: World) -> None:
    """EIO at one point of every write."""
    level = world.rng.choice((DISK, DURABLE))
    point = world.rng.choice(PUT_POINTS if level == DISK else STORE_PUT_POINTS)
    world.media[level].errnos[point] = errno.EIO


def fail_reads(world: World) -> None:
    """EIO as files are opened or read."""
    medium(world).errnos[world.rng.choice(("open", "read"))] = errno.EIO


def fail_removals(world: World) -> None:
    """EIO as files are removed."""
    medium(world).errnos["unlink"] = errno.EIO


def flip_what_is_read(world: World) -> None:
    """The next read gives a wrong bit; what lies there is sound."""
    medium(world).flips += 1


def write_half(world: World) -> None:
    """The store takes half an object and says that all is well."""
    world.media[DURABLE].short += 1


def slow_down(world: World) -> None:
    """Every call of a medium takes long."""
    medium(world).delay_seconds = world.rng.choice((1e-4, 1e-3))


def vanish(world: World) -> None:
    """A medium answers nothing any more."""
    medium(world).away = True


def unmount(world: World) -> None:
    """The disk's folder is not there."""
    folder, away = world.folder / "disk", world.folder / "disk-away"
    if not away.exists():
        folder.rename(away)
        # Not a fault of calls, but chunks may miss until it is back.
        world.media[DISK].errnos["unmounted"] = errno.ENOENT


def heal(world: World) -> None:
    """Whatever failed works again."""
    world.heal()


def cut_power(world: World) -> None:
    """At one of the next calls of one medium."""
    medium(world).cut_after = world.rng.randrange(24)


def restart(world: World) -> None:
    """In order."""
    world.restart()


def shuffle_times(world: World) -> None:
    """A wrong clock wrote the files: the times of three of them lie anywhere."""
    for level, file in (some_file(world) for _ in range(3)):
        if file is not None:
            os.utime(file, ns=(world.rng.randrange(2**62),) * 2)
            del level


def damage_file(world: World, how: Callable[[World, Path], bool]) -> None:
    """Do it to one chunk's file."""
    level, file = some_file(world)
    if file is not None and how(world, file):
        world.harmed.add((level, file.stem))


def flip_header(world: World) -> None:
    """A bit among the first bytes of a file."""
    damage_file(world, lambda world, file: flip(file, world.rng.randrange(HEADER_BYTES), world.rng.randrange(8)))


def flip_payload(world: World) -> None:
    """A bit among the last bytes of a file."""
    damage_file(world, lambda world, file: flip(file, -1 - world.rng.randrange(1500), world.rng.randrange(8)))


def truncate(world: World) -> None:
    """A file ends early."""

    def cut(world: World, file: Path) -> bool:
        os.truncate(file, world.rng.randrange(file.stat().st_size))
        return True

    damage_file(world, cut)


def delete(world: World) -> None:
    """A file is gone."""

    def unlink(world: World, file: Path) -> bool:
        file.unlink()
        return True

    damage_file(world, unlink)


def mix_up(world: World) -> None:
    """A file holds another chunk, sound in itself."""

    def overwrite(world: World, file: Path) -> bool:
        _, other = some_file(world)
        if other is None or other.name == file.name or other.stat().st_size > file.stat().st_size:
            return False
        file.write_bytes(other.read_bytes())
        return True

    damage_file(world, overwrite)


def flip_host_memory(world: World) -> None:
    """A bit of the host tier, where nobody is reading."""
    flip_memory(world, 1)


def flip_device_memory(world: World) -> None:
    """A bit of the device tier, seen by nobody before the chunk is on its way down.

    What a reader sees there is not verified: that would cost what keeping chunks there saves.
    """
    chunk_id = flip_memory(world, 0)
    if chunk_id is None:
        return
    tenant = world.pool.truths[chunk_id].chunk.tenant
    if any(chunk_id in pinned for pinned in held_ids(world)):
        flip_bit(world, 0, chunk_id)
        return
    world.memory.demote([chunk_id], tenant=tenant)
    if chunk_id in world.tiers[0]:
        raise Broken(f"chunk {chunk_id} was demoted, and lies in tier 0 still")


def flip_memory(world: World, level: int) -> str | None:
    """Flip a bit of one of the tier's chunks; which."""
    world.drop_views()
    ids = sorted(world.tiers[level].ids())
    if not ids:
        return None
    chunk_id = world.rng.choice(ids)
    flip_bit(world, level, chunk_id)
    world.harmed.add((level, chunk_id))
    return chunk_id


def flip_bit(world: World, level: int, chunk_id: str) -> None:
    """In the middle of a chunk in memory; once more undoes it."""
    tier = world.tiers[level]
    if isinstance(tier, ResidentTier):
        # Its chunks may share their bytes with other tiers.
        chunk = tier._chunks[chunk_id]
        payload_LN = chunk.encoded.payload_LN.clone()
        tier._chunks[chunk_id] = replace(chunk, encoded=chunk.encoded.over(payload_LN))
    else:
        payload_LN = tier.get(chunk_id).encoded.payload_LN
    payload_LN.view(-1)[payload_LN.numel() // 2] ^= 16


def held_ids(world: World) -> list[set[str]]:
    """Forms of what pins and leases name: these may not be moved."""
    names = [name for pinned in world.pins for name in pinned.names]
    names += [name for given, _ in world.leases for name in given.ids]
    return [world.pool.forms(name) for name in names]


def some_file(world: World) -> tuple[int, Path | None]:
    """A chunk's file, and its tier."""
    level = world.rng.choice((DISK, DURABLE))
    ids = sorted(world.tiers[level].ids())
    if not ids:
        return level, None
    chunk_id = world.rng.choice(ids)
    name = f"{chunk_id}.wkv"
    file = world.folder / "durable" / name if level == DURABLE else world.folder / "disk" / chunk_id[:2] / name
    return level, file if file.exists() else None


def flip(file: Path, place: int, bit: int) -> bool:
    """Flip one bit of the file; False where it ends before."""
    content = bytearray(file.read_bytes())
    if not -len(content) <= place < len(content):
        return False
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return True


HARMS = {
    fill_up: 2,
    fail_writes: 2,
    fail_reads: 2,
    fail_removals: 2,
    flip_what_is_read: 2,
    write_half: 1,
    slow_down: 2,
    vanish: 1,
    unmount: 1,
    cut_power: 2,
    shuffle_times: 1,
    flip_header: 2,
    flip_payload: 2,
    truncate: 2,
    delete: 1,
    mix_up: 1,
    flip_host_memory: 2,
    flip_device_memory: 2,
}
"""How often each happens, of all harm."""
