"""A tier of files, one per chunk, that survives restarts.

- A chunk is here once its file is whole, on the medium and named, and not before: temporary name, fsync, rename, fsync
  of the folder; no fsync where nobody shall find it once the process has ended. A crash leaves the chunk absent or
  complete, and at most a temporary file that the next start removes.
- Bytes on disk never pass the capacity: they are reserved before they are written, the quarantine lies in what is
  left over, and what a start finds beyond the capacity (it was lowered) goes, oldest first.
- Every read is verified, and must give the chunk that was asked for.
- Beside a chunk an empty file stands for each further id under which it is asked for (`names`).
- Files that no tier wrote are left alone.

Threads may put and get at the same time; the same chunk is put, removed or quarantined by one of them. Other processes
are kept out. All sizes are those of files rounded up to pages; folders themselves are not counted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from worldkv.errors import CapacityError, ChunkCorrupt, ChunkNotFound, ConfigError, TransferError, WorldKVError
from worldkv.memory.chunk import KVChunk
from worldkv.memory.format import Source
from worldkv.memory.tiers.filesystem import Disk, FileFound, ScratchDisk
from worldkv.memory.tiers.folder import QUARANTINE, SUBFOLDERS, claim
from worldkv.memory.tiers.ledger import Ledger
from worldkv.memory.tiers.names import CHUNK_NAME, NAME_FILE, PART_NAME, PART_SUFFIX, SUFFIX, Names, name_file
from worldkv.memory.tiers.quarantine import Quarantine

PAGE_BYTES = 4096
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Reading:
    """An open chunk file, see `Source`."""

    label: str
    size_bytes: int
    descriptor: int
    path: Path
    disk: Disk

    def read_into(self, offset: int, out: memoryview) -> int:
        return self.disk.read_into(self.descriptor, self.path, offset, out)


class DiskTier:
    """Chunks in a folder within `capacity_bytes`. See `Tier`; made by `open`."""

    verifies = True
    reads_aside = True

    def __init__(self, name: str, folder: Path, capacity_bytes: int, disk: Disk, lock: int) -> None:
        self.name, self.folder, self.capacity_bytes = name, folder, capacity_bytes
        self._disk, self._lock = disk, lock
        self._books = Ledger(name, capacity_bytes)
        self._names = Names()
        self._aside = Quarantine(self._delete_aside)

    @classmethod
    def open(
        cls, name: str, folder: Path, capacity_bytes: int, disk: Disk | None = None, *, keeps: bool = True
    ) -> DiskTier:
        """Claim the folder, clear what crashes left, and find the chunks that are there; reads no chunk.

        `keeps`: whether a later process shall find the chunks; else nothing but the claim waits for the medium.
        Raises ConfigError where the folder is someone else's or in use, OutputError where it cannot be written, and
        TransferError where it cannot be read.
        """
        if capacity_bytes < PAGE_BYTES:
            raise ConfigError(f"tier {name}: a capacity of {capacity_bytes} bytes; at least {PAGE_BYTES} are needed")
        disk = disk or Disk()
        tier = cls(name, folder, capacity_bytes, disk if keeps else ScratchDisk(), claim(folder, name, disk))
        scanned = False
        try:
            tier._scan()
            scanned = True
        except OSError as fault:
            raise TransferError(f"tier {name}: folder {folder} cannot be scanned: {_reason(fault)}") from fault
        finally:
            if not scanned:
                tier.close()
        return tier

    @property
    def used_bytes(self) -> int:
        """Of chunks that are here or on their way in; the quarantine, which yields to any chunk, not counted."""
        return self._books.used_bytes

    def __len__(self) -> int:
        return len(self._books)

    def __contains__(self, chunk_id: str) -> bool:
        return chunk_id in self._books

    def ids(self) -> Iterator[str]:
        """Ids of the chunks that are here, in order of their last write."""
        return iter(self._books.ids())

    def cost_bytes(self, chunk: KVChunk) -> int:
        """Bytes of the chunk's file, in whole pages."""
        return _pages(chunk.header.total_bytes)

    def put(self, chunk: KVChunk) -> None:
        """Write the chunk; durable when this returns. See `Tier`; TransferError also where it is damaged already."""
        chunk = verified(chunk, self.name)
        self._books.clear_stuck(self._clear)
        if not self._books.reserve(chunk.id, self.cost_bytes(chunk), self._aside.trim):
            return
        final = self._path(chunk.id)
        part = final.with_suffix(PART_SUFFIX)
        written = False
        try:
            self._disk.write_new(part, chunk.pieces())
            self._disk.publish(part, final)
            written = True
        except OSError as fault:
            raise self._write_error(chunk, final, fault) from fault
        finally:
            if written:
                self._books.arrived(chunk.id)
            else:
                self._books.abandoned(chunk.id, cleared=self._clear(chunk.id))

    def get(self, chunk_id: str) -> KVChunk:
        """Read and verify the chunk, into memory of its own. See `Tier`."""
        return self._read(chunk_id, KVChunk.read)

    def outline(self, chunk_id: str) -> KVChunk:
        """Read and verify the chunk's header. See `Survives`."""
        return self._read(chunk_id, KVChunk.outline)

    def expect(self, chunk_ids: Iterable[str]) -> None:
        """See `Survives`: a disk reads many headers at once faster than one after the other."""
        for chunk_id in chunk_ids:
            self._disk.read_ahead(self._path(chunk_id), PAGE_BYTES)

    def _read(self, chunk_id: str, read: Callable[[Source], KVChunk]) -> KVChunk:
        self._books.require(chunk_id)
        path = self._path(chunk_id)
        try:
            with self._reading(path, whole=read == KVChunk.read) as source:
                chunk = read(source)
        except OSError as fault:
            # Where the folder is gone as well the disk is away, and may come back with all that is on it.
            if isinstance(fault, FileNotFoundError) and path.parent.is_dir():
                raise ChunkNotFound(f"tier {self.name}: chunk {chunk_id} is gone: no file {path}") from fault
            raise TransferError(
                f"tier {self.name}: chunk {chunk_id} cannot be read from {path}: {_reason(fault)}"
            ) from fault
        return asked_for(chunk_id, chunk, f"tier {self.name}, {path}")

    def remove(self, chunk_id: str) -> None:
        """Delete the chunk's file; raises TransferError where that fails, and the chunk is then still here."""
        if chunk_id not in self._books:
            return
        path = self._path(chunk_id)
        try:
            self._disk.unlink(path)
        except OSError as fault:
            raise TransferError(f"tier {self.name}: {path} cannot be removed: {_reason(fault)}") from fault
        self._forget(chunk_id)

    def quarantine(self, chunk_id: str) -> None:
        """Set the chunk's file aside for whoever looks for the cause; it is not here any more.

        The newest few are kept, and only where no chunk needs their bytes. Raises TransferError as `remove` does.
        """
        if chunk_id not in self._books:
            return
        name = chunk_id + SUFFIX
        try:
            self._disk.move(self._path(chunk_id), self.folder / QUARANTINE / name)
        except OSError:
            self.remove(chunk_id)
            return
        self._aside.add(name, self._forget(chunk_id))

    def names(self, chunk_id: str) -> tuple[str, ...]:
        """See `Survives`."""
        return self._names.of(chunk_id)

    def also_name(self, chunk_id: str, names: Iterable[str]) -> None:
        """See `Survives`."""
        fresh, folder = self._names.fresh(chunk_id, names), self._path(chunk_id).parent
        if not fresh or chunk_id not in self._books:
            return
        try:
            for name in fresh:
                self._disk.touch(folder / name_file(chunk_id, name))
            self._disk.sync_folder(folder)
        except OSError as fault:
            raise TransferError(
                f"tier {self.name}: names {fresh} of chunk {chunk_id} cannot be kept in {folder}: {_reason(fault)}"
            ) from fault
        self._names.add(chunk_id, fresh)

    def check(self) -> list[str]:
        """Faults in the books, and where they differ from the names on disk. Not while a put or a removal runs."""
        faults, held = self._books.faults(), set(self.ids())
        try:
            lying = {path.stem for path in self._chunk_paths()} - self._books.stuck()
        except OSError as fault:
            return [*faults, f"tier {self.name}: folder {self.folder} cannot be listed: {_reason(fault)}"]
        faults += [f"tier {self.name}: chunk {i} is booked and has no file" for i in sorted(held - lying)]
        faults += [f"tier {self.name}: {self._path(i)} is in no book" for i in sorted(lying - held)]
        return faults + self._aside.faults(self._books)

    def close(self) -> None:
        """Let other processes have the folder; the chunks stay."""
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)

    def _path(self, chunk_id: str) -> Path:
        return self.folder / chunk_id[:2] / (chunk_id + SUFFIX)

    def _chunk_paths(self) -> Iterator[Path]:
        for subfolder in SUBFOLDERS:
            folder = self.folder / subfolder
            yield from (folder / name for name in self._disk.names(folder) if CHUNK_NAME.fullmatch(name))

    @contextmanager
    def _reading(self, path: Path, *, whole: bool) -> Iterator[Source]:
        descriptor = self._disk.open(path, whole=whole)
        try:
            size = self._disk.size_bytes(descriptor)
            yield _Reading(f"tier {self.name}, {path}", size, descriptor, path, self._disk)
        finally:
            os.close(descriptor)

    def _scan(self) -> None:
        """Book the chunks that are here, oldest first, after clearing what no crash may leave."""
        found: list[tuple[int, str, int]] = []
        names: list[tuple[str, str]] = []
        for subfolder in SUBFOLDERS:
            for file in self._disk.scan(self.folder / subfolder):
                if PART_NAME.fullmatch(file.name):
                    self._disk.unlink(self.folder / subfolder / file.name)
                elif (name := CHUNK_NAME.fullmatch(file.name)) and file.name.startswith(subfolder):
                    found.append((file.written_ns, name[1], _pages(file.size_bytes)))
                elif name := NAME_FILE.fullmatch(file.name):
                    names.append((name[1], name[2]))
        found.sort()
        surplus = sum(size for _, _, size in found) - self.capacity_bytes
        dropped = 0
        while surplus > 0:
            _, chunk_id, size = found[dropped]
            self._disk.unlink(self._path(chunk_id))
            surplus -= size
            dropped += 1
        self._books.adopt((chunk_id, size) for _, chunk_id, size in found[dropped:])
        self._scan_names(names)
        self._scan_quarantine()

    def _scan_names(self, found: Iterable[tuple[str, str]]) -> None:
        for chunk_id, name in found:
            if chunk_id in self._books:
                self._names.add(chunk_id, [name])
            else:
                self._disk.unlink(self._path(chunk_id).parent / name_file(chunk_id, name))

    def _scan_quarantine(self) -> None:
        def age(file: FileFound) -> tuple[int, str]:
            return file.written_ns, file.name

        folder = self.folder / QUARANTINE
        files = [file for file in self._disk.scan(folder) if CHUNK_NAME.fullmatch(file.name)]
        found = [(file.name, _pages(file.size_bytes)) for file in sorted(files, key=age)]
        self._aside.adopt(found, self.capacity_bytes - self.used_bytes)

    def _forget(self, chunk_id: str) -> int:
        """The chunk's file is gone, and its names mean nothing any more; returns the bytes that are free."""
        for name in self._names.forget(chunk_id):
            with suppress(OSError):
                self._disk.unlink(self._path(chunk_id).parent / name)
        return self._books.forget(chunk_id)

    def _delete_aside(self, name: str) -> None:
        path = self.folder / QUARANTINE / name
        try:
            self._disk.unlink(path)
        except OSError as fault:
            raise TransferError(f"tier {self.name}: {path} cannot be removed: {_reason(fault)}") from fault

    def _clear(self, chunk_id: str) -> bool:
        """Remove what a failed write may have left; False where something may remain."""
        final = self._path(chunk_id)
        for path in (final.with_suffix(PART_SUFFIX), final):
            try:
                self._disk.unlink(path)
            except OSError:
                return False
        # Should this not reach the medium, a restart finds a whole chunk or a leftover: both are in order.
        with suppress(OSError):
            self._disk.sync_folder(final.parent)
        return True

    def _write_error(self, chunk: KVChunk, path: Path, fault: OSError) -> WorldKVError:
        what = f"tier {self.name}: {self.cost_bytes(chunk)} bytes of chunk {chunk.id} cannot be written to {path}"
        kind = CapacityError if fault.errno in NO_ROOM else TransferError
        return kind(f"{what}: {_reason(fault)}")


def verified(chunk: KVChunk, tier: str) -> KVChunk:
    """The chunk on the CPU, if it is sound: what is damaged already must not become durable. Raises TransferError."""
    chunk = chunk.to(torch.device("cpu"))
    try:
        chunk.verify()
    except ChunkCorrupt as fault:
        raise TransferError(f"tier {tier}: chunk {chunk.id} was damaged before it came here: {fault}") from fault
    return chunk


def asked_for(chunk_id: str, found: KVChunk, label: str) -> KVChunk:
    """What was found, if it is the chunk of this id. Raises ChunkCorrupt."""
    if found.id != chunk_id:
        raise ChunkCorrupt(f"{label}: chunk {chunk_id} expected, {found.id} found")
    return found


def _pages(size_bytes: int) -> int:
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES


def _reason(fault: OSError) -> str:
    return fault.strerror or str(fault)
