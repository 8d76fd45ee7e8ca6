"""What lies in a tier's folder, as anyone may look at it: takes no lock, changes nothing, whoever uses it meanwhile.

A chunk that goes while the folder is read is no fault. Reads the layout of disk tiers, and that of a durable tier's
objects copied into a folder.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from worldkv.errors import ChunkCorrupt, TransferError
from worldkv.memory.format import ChunkReader, Header, source_of
from worldkv.memory.tiers.folder import LOCK, MARKER, QUARANTINE, SUBFOLDERS, VERSION, WHAT
from worldkv.memory.tiers.names import CHUNK_NAME, PART_NAME


@dataclass
class Survey:
    """What was found."""

    tier: str = "unknown"
    owner: str = "unknown"
    """User id."""
    claimed_by: str = "nobody"
    """Process id of whoever used the tier last, and may still."""
    chunks: int = 0
    chunk_bytes: int = 0
    """Of chunk files, as long as they are."""
    tenants: Counter[str] = field(default_factory=Counter)
    """Chunks of each, as in `epochs` and `codecs`."""
    epochs: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    unfinished: int = 0
    """Files of writes that are under way, or that a crash left; the next start removes those."""
    quarantined: list[str] = field(default_factory=list)
    """Ids of chunks that were found damaged and set aside."""
    quarantined_bytes: int = 0
    faults: list[str] = field(default_factory=list)


def survey(folder: Path, *, verify: bool = False) -> Survey:
    """Read the headers of all chunks in the folder; with `verify` also their payloads, against their digests.

    Blocks. Raises OSError where the folder itself cannot be listed.
    """
    found = Survey()
    _read_marker(folder, found)
    for path in _files(folder):
        if PART_NAME.fullmatch(path.name):
            found.unfinished += 1
        elif CHUNK_NAME.fullmatch(path.name):
            _look_at(path, folder, found, verify)
    for path in sorted(_names(folder / QUARANTINE)):
        if CHUNK_NAME.fullmatch(path.name) and (size := _size(path)) is not None:
            found.quarantined.append(path.stem)
            found.quarantined_bytes += size
    return found


def _read_marker(folder: Path, found: Survey) -> None:
    try:
        marker = json.loads((folder / MARKER).read_text())
        found.tier, found.owner = str(marker["tier"]), str(marker.get("uid", "unknown"))
        if (marker["what"], marker["version"]) != (WHAT, VERSION):
            found.faults.append(f"{folder / MARKER}: {marker['what']!r} version {marker['version']}, not {VERSION}")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as fault:
        found.faults.append(f"{folder / MARKER}: damaged: {fault!r}")
    try:
        found.claimed_by = (folder / LOCK).read_text(errors="replace").strip()[:20] or "nobody"
    except OSError:
        return


def _files(folder: Path) -> Iterator[Path]:
    """All that lies where chunks lie."""
    yield from _names(folder)
    for subfolder in SUBFOLDERS:
        yield from _names(folder / subfolder)


def _names(folder: Path) -> list[Path]:
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except FileNotFoundError:
        return []


def _look_at(path: Path, folder: Path, found: Survey, verify: bool) -> None:
    size = _size(path)
    if size is None:
        return
    try:
        header = _header(path, verify)
    except (ChunkCorrupt, TransferError) as fault:
        if path.exists():
            found.chunks, found.chunk_bytes = found.chunks + 1, found.chunk_bytes + size
            found.faults.append(str(fault))
        return
    found.chunks, found.chunk_bytes = found.chunks + 1, found.chunk_bytes + size
    for counter, value in (
        (found.tenants, header.tenant),
        (found.epochs, header.epoch),
        (found.codecs, header.codec),
    ):
        counter[value] += 1
    if header.checksum != path.stem:
        found.faults.append(f"{path}: holds chunk {header.checksum}")
    if path.parent != folder and not path.name.startswith(path.parent.name):
        found.faults.append(f"{path}: lies in the wrong folder, where no tier looks for it")


def _header(path: Path, verify: bool) -> Header:
    with source_of(path) as source:
        reader = ChunkReader.open(source)
        if verify:
            reader.verify()
        return reader.header


def _size(path: Path) -> int | None:
    """Bytes of the file; None where it is gone."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
