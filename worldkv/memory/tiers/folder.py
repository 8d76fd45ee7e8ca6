"""A folder that belongs to one tier, and says so: a marker names the tier and its user, a lock its process.

    tier.json      what this folder is, and whose
    lock           held with flock while a process uses the tier; it names that process
    00 .. ff       chunks, by the first two digits of their ids, and an empty file for each further id of one
    quarantine     chunks that were found damaged

Nothing is written into a folder that holds anything else. All sub-folders are made when the folder is claimed and
never later: where a disk was unmounted under a running tier, writes fail rather than fill what lies beneath.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path

from worldkv.errors import ConfigError, OutputError
from worldkv.memory.tiers.filesystem import Disk
from worldkv.writable import check_writable

MARKER, LOCK, QUARANTINE = "tier.json", "lock", "quarantine"
MARKER_PART = MARKER + ".part"
WHAT, VERSION = "worldkv chunk tier", 1
SUBFOLDERS = tuple(f"{subfolder:02x}" for subfolder in range(256))


def claim(folder: Path, tier: str, disk: Disk) -> int:
    """Make the folder this tier's, or find that it is; returns the descriptor whose closing gives the lock back.

    Raises ConfigError where it is someone else's or in use, OutputError where it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Before the first write: a folder of somebody else's stays as it is.
        _check_owner(folder, tier)
        lock = _lock(folder, tier)
    except OSError as fault:
        raise _unusable(folder, tier, fault) from fault
    claimed = False
    try:
        # And again: another tier may have come in between.
        _check_owner(folder, tier)
        _settle(folder, tier, disk)
        claimed = True
    except OSError as fault:
        raise _unusable(folder, tier, fault) from fault
    finally:
        if not claimed:
            os.close(lock)
    return lock


def check(folder: Path, tier: str) -> None:
    """Raise what `claim` would, as far as that can be known without writing."""
    try:
        check_writable(folder)
        if folder.exists():
            _check_owner(folder, tier)
        if (folder / LOCK).exists():
            os.close(_lock(folder, tier))
    except OSError as fault:
        raise _unusable(folder, tier, fault) from fault


def _unusable(folder: Path, tier: str, fault: OSError) -> OutputError:
    reason = fault.strerror or fault
    return OutputError(f"tier {tier}: folder {folder} cannot be used: {reason}; name another folder")


def _check_owner(folder: Path, tier: str) -> None:
    names = set(os.listdir(folder))
    if MARKER not in names:
        if foreign := sorted(names - {LOCK, MARKER_PART}):
            raise ConfigError(
                f"tier {tier}: folder {folder} holds {foreign[0]!r}, which no tier wrote, and {len(foreign) - 1} more; "
                f"name a folder of its own, such as {folder / 'worldkv'}"
            )
        return
    try:
        marker = json.loads((folder / MARKER).read_text())
        found = (marker["what"], marker["version"], marker["uid"], marker["tier"])
    except (ValueError, LookupError, TypeError) as fault:
        raise ConfigError(f"tier {tier}: {folder / MARKER} is damaged ({fault!r}); name another folder") from fault
    expected = (WHAT, VERSION, os.geteuid(), tier)
    if found != expected:
        kinds = ("kind", "version", "user id", "name")
        faults = [f"{n} {a!r}, not {b!r}" for n, a, b in zip(kinds, found, expected, strict=True) if a != b]
        raise ConfigError(
            f"tier {tier}: folder {folder} belongs to another tier: {'; '.join(faults)}; name another folder"
        )


def _lock(folder: Path, tier: str) -> int:
    # Of the open file, not of the process: a second tier of this very process is kept out as well.
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as fault:
        holder = os.pread(lock, 20, 0).decode(errors="replace") or "unknown"
        os.close(lock)
        raise ConfigError(
            f"tier {tier}: folder {folder} is in use by process {holder}; end that, or name another folder"
        ) from fault
    return lock


def _settle(folder: Path, tier: str, disk: Disk) -> None:
    lock = folder / LOCK
    lock.write_text(str(os.getpid()))
    if not (folder / MARKER).exists():
        marker = {"what": WHAT, "version": VERSION, "uid": os.geteuid(), "tier": tier}
        disk.write_new(folder / MARKER_PART, [json.dumps(marker).encode()])
        disk.publish(folder / MARKER_PART, folder / MARKER)
        disk.sync_folder(folder.parent)
    present = set(os.listdir(folder))
    for name in (*SUBFOLDERS, QUARANTINE):
        if name not in present:
            (folder / name).mkdir()
    disk.sync_folder(folder)
