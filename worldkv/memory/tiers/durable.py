"""A tier of objects, one per chunk, behind any fsspec URL; it outlives the machine.

- A chunk is here once its object is whole under its own name. Stores that show whole objects or none take it in one
  request; others take it under a temporary name, which is then moved.
- What the store says it holds is compared with what was sent, and every read is verified and must give the chunk that
  was asked for.
- Where a store moves by copying, the bytes of the one chunk that moves are there twice meanwhile.
- A folder of this machine is a disk tier under another name: only there can a write be brought to the medium.
- One process writes to a tier. On object stores nothing enforces that: give each its own URL.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import fsspec
from fsspec.implementations.local import LocalFileSystem

from worldkv.errors import ChunkNotFound, ConfigError, OutputError, TransferError, WorldKVError
from worldkv.memory.chunk import KVChunk
from worldkv.memory.format import PAYLOAD_ALIGNMENT, Buffer
from worldkv.memory.tier import Tier
from worldkv.memory.tiers import folder
from worldkv.memory.tiers.disk import DiskTier, asked_for, verified
from worldkv.memory.tiers.folder import MARKER, MARKER_PART, QUARANTINE, VERSION, WHAT
from worldkv.memory.tiers.ledger import Ledger
from worldkv.memory.tiers.names import CHUNK_NAME, NAME_FILE, PART_NAME, PART_SUFFIX, SUFFIX, Names, name_file
from worldkv.memory.tiers.quarantine import Quarantine

LOCAL_PROTOCOLS = ("file", "local")
# Of these an object is seen whole or not at all.
WHOLE_OBJECT_STORES = frozenset({"memory", "s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"})
# As stores call the time of the last write.
TIME_KEYS = ("LastModified", "last_modified", "updated", "mtime", "created")
# Raised by stores' clients, and no OSError; looked up where that client is loaded.
CLIENT_FAULTS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
)


def open_durable_tier(name: str, url: str, capacity_bytes: int) -> Tier:
    """The tier at this URL: a disk tier where that is a folder of this machine. Lists what is there; reads no chunk.

    Raises ConfigError for a URL that is none, or someone else's; OutputError or TransferError where the store refuses.
    """
    if capacity_bytes < 1:
        raise ConfigError(f"tier {name}: a capacity of {capacity_bytes} bytes; at least 1 is needed")
    store, root = _store_at(name, url)
    if isinstance(store, LocalFileSystem):
        return DiskTier.open(name, Path(root), capacity_bytes)
    tier = DurableTier(name, store, root.rstrip("/"), capacity_bytes)
    tier.claim()
    tier.scan()
    return tier


@dataclass(frozen=True)
class _Object:
    """An object of which parts are read, see `Source`."""

    label: str
    size_bytes: int
    store: Any
    path: str
    head: bytes
    """What was read ahead of it."""

    def read_into(self, offset: int, out: memoryview) -> int:
        stop = offset + len(out)
        data = self.head[offset:stop] if stop <= len(self.head) else self.store.cat_file(self.path, offset, stop)
        out[: len(data)] = data
        return len(data)


def check_durable_tier(name: str, url: str) -> None:
    """Raise what `open_durable_tier` would, as far as that can be known without writing."""
    store, root = _store_at(name, url)
    if isinstance(store, LocalFileSystem):
        folder.check(Path(root), name)
    else:
        DurableTier(name, store, root.rstrip("/"), capacity_bytes=0).is_claimed()


def folder_of(url: str) -> Path | None:
    """The folder of this machine that the URL names; None where it names something else."""
    local = fsspec.utils.get_protocol(url) in LOCAL_PROTOCOLS
    return Path(fsspec.core.strip_protocol(url)) if local else None


def _store_at(name: str, url: str) -> tuple[Any, str]:
    try:
        store, root = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError, OSError, TypeError, AttributeError, BadZipFile) as fault:
        # The last three are what fsspec raises for a protocol that needs more than a URL.
        raise ConfigError(f"tier {name}: url {url!r} cannot be opened: {fault}; name another place") from fault
    return store, str(root)


class DurableTier:
    """Chunks in an object store within `capacity_bytes`. See `Tier`; made by `open_durable_tier`."""

    verifies = True
    reads_aside = True

    def __init__(self, name: str, store: Any, root: str, capacity_bytes: int) -> None:
        self.name, self.root, self.capacity_bytes = name, root, capacity_bytes
        self._store = store
        self._books, self._names = Ledger(name, capacity_bytes), Names()
        self._heads: dict[str, bytes] = {}
        self._aside = Quarantine(lambda aside: self._delete(f"{root}/{QUARANTINE}/{aside}"))
        protocols = {store.protocol} if isinstance(store.protocol, str) else set(store.protocol)
        self._whole_objects = bool(protocols & WHOLE_OBJECT_STORES)

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
        """Bytes of the chunk's object."""
        return chunk.header.total_bytes

    def put(self, chunk: KVChunk) -> None:
        """Store the chunk; see `Tier`. Copies it once; TransferError also where it is damaged already."""
        chunk = verified(chunk, self.name)
        self._books.clear_stuck(self._clear)
        if not self._books.reserve(chunk.id, self.cost_bytes(chunk), self._aside.trim):
            return
        stored = False
        try:
            with self._reported(f"chunk {chunk.id} cannot be written to {self._path(chunk.id)}"):
                self._upload(chunk)
            stored = True
        finally:
            if stored:
                self._books.arrived(chunk.id)
            else:
                self._books.abandoned(chunk.id, cleared=self._clear(chunk.id))

    def get(self, chunk_id: str) -> KVChunk:
        """Read and verify the chunk, into memory of its own. See `Tier`."""
        self._books.require(chunk_id)
        path = self._path(chunk_id)
        with self._reported(f"chunk {chunk_id} cannot be read from {path}", absent=ChunkNotFound):
            data = self._store.cat_file(path)
        label = f"tier {self.name}, {path}"
        return asked_for(chunk_id, KVChunk.read(Buffer(data, label)), label)

    def outline(self, chunk_id: str) -> KVChunk:
        """Read and verify the chunk's header. See `Survives`."""
        self._books.require(chunk_id)
        path = self._path(chunk_id)
        label, head = f"tier {self.name}, {path}", self._heads.pop(chunk_id, b"")
        source = _Object(label, self._books.size_bytes(chunk_id), self._store, path, head)
        with self._reported(f"chunk {chunk_id} cannot be read from {path}", absent=ChunkNotFound):
            return asked_for(chunk_id, KVChunk.outline(source), label)

    def expect(self, chunk_ids: Iterable[str]) -> None:
        """See `Survives`. Blocks for one round of requests, which the store's client sends all at once if it can."""
        wanted = [chunk_id for chunk_id in chunk_ids if chunk_id in self._books]
        self._heads.clear()
        with suppress(TransferError), self._reported("headers cannot be read ahead"):
            heads = self._store.cat_ranges([*map(self._path, wanted)], 0, PAYLOAD_ALIGNMENT, on_error="return")
            self._heads = {i: head for i, head in zip(wanted, heads, strict=True) if isinstance(head, bytes)}

    def names(self, chunk_id: str) -> tuple[str, ...]:
        """See `Survives`."""
        return self._names.of(chunk_id)

    def also_name(self, chunk_id: str, names: Iterable[str]) -> None:
        """See `Survives`."""
        for name in self._names.fresh(chunk_id, names) if chunk_id in self._books else ():
            with self._reported(f"name {name} of chunk {chunk_id} cannot be kept"):
                self._store.pipe_file(f"{self.root}/{name_file(chunk_id, name)}", b"")
            self._names.add(chunk_id, [name])

    def remove(self, chunk_id: str) -> None:
        """Delete the chunk's object; raises TransferError where that fails, and the chunk is then still here."""
        if chunk_id in self._books:
            self._delete(self._path(chunk_id))
            self._forget(chunk_id)

    def quarantine(self, chunk_id: str) -> None:
        """Set the chunk's object aside for whoever looks for the cause; it is not here any more.

        The newest few are kept, and only where no chunk needs their bytes. Raises TransferError.
        """
        if chunk_id not in self._books:
            return
        name = chunk_id + SUFFIX
        try:
            with self._reported(f"chunk {chunk_id} cannot be set aside", absent=ChunkNotFound):
                self._store.mv(self._path(chunk_id), f"{self.root}/{QUARANTINE}/{name}")
        except ChunkNotFound:
            # The object, or on a store of folders that of the quarantine.
            self.remove(chunk_id)
            return
        self._aside.add(name, self._forget(chunk_id))

    def check(self) -> list[str]:
        """Faults in the tier's own books; asks the store nothing."""
        return self._books.faults() + self._aside.faults(self._books)

    def close(self) -> None:
        """Nothing is held here."""

    def claim(self) -> None:
        """Mark the root as this tier's, or find that it is. Raises as `is_claimed`."""
        if not self.is_claimed():
            with self._refused(), self._reported(f"{self.root} cannot be written"):
                self._send(json.dumps(self._mark).encode(), f"{self.root}/{MARKER}", f"{self.root}/{MARKER_PART}")
            self.is_claimed()

    def is_claimed(self) -> bool:
        """Whether the root is marked as this tier's; False where nothing is there yet. Writes nothing.

        Raises ConfigError where it is someone else's, OutputError where it cannot be read.
        """
        marker = f"{self.root}/{MARKER}"
        with self._refused(), self._reported(f"{self.root} cannot be listed"):
            self._store.invalidate_cache()
            if not self._store.exists(marker):
                part = f"{self.root}/{MARKER_PART}".lstrip("/")
                if foreign := [path for path in self._store.find(self.root) if path.lstrip("/") != part]:
                    raise ConfigError(
                        f"tier {self.name}: {self.root} holds {foreign[0]!r}, which no tier wrote; "
                        f"name a place of its own, such as {self.root}/worldkv"
                    )
                return False
            marked = self._store.cat_file(marker)
        try:
            found = json.loads(marked)
        except ValueError as fault:  # no JSON, or no text
            raise ConfigError(f"tier {self.name}: {marker} is damaged ({fault}); name another place") from fault
        if found != self._mark:
            raise ConfigError(
                f"tier {self.name}: {self.root} belongs to another tier: {found}, not {self._mark}; name another place"
            )
        return True

    def scan(self) -> None:
        """Book the objects that are here, oldest first; delete what crashes left and what is beyond the capacity."""
        with self._reported(f"{self.root} cannot be listed"):
            listed = self._store.find(self.root, detail=True)
        names: list[tuple[str, str]] = []
        prefix = f"{self.root}/".lstrip("/")
        found: dict[str, list[tuple[float, str, int]]] = {"": [], QUARANTINE: []}
        for path, about in listed.items():
            shelf, _, name = path.lstrip("/").removeprefix(prefix).rpartition("/")
            if not shelf and PART_NAME.fullmatch(name):
                self._delete(path)
            elif not shelf and (named := NAME_FILE.fullmatch(name)):
                names.append((named[1], named[2]))
            elif shelf in found and CHUNK_NAME.fullmatch(name):
                found[shelf].append((_written(about), name, int(about["size"])))
        chunks = sorted(found[""])
        surplus = sum(size for _, _, size in chunks) - self.capacity_bytes
        while surplus > 0:
            _, name, size = chunks.pop(0)
            self._delete(f"{self.root}/{name}")
            surplus -= size
        self._books.adopt((name.removesuffix(SUFFIX), size) for _, name, size in chunks)
        self._scan_names(names)
        aside = [(name, size) for _, name, size in sorted(found[QUARANTINE])]
        self._aside.adopt(aside, self.capacity_bytes - self.used_bytes)

    def _scan_names(self, found: Iterable[tuple[str, str]]) -> None:
        for chunk_id, name in found:
            if chunk_id in self._books:
                self._names.add(chunk_id, [name])
            else:
                self._delete(f"{self.root}/{name_file(chunk_id, name)}")

    def _forget(self, chunk_id: str) -> int:
        """The chunk's object is gone, and its names mean nothing any more; returns the bytes that are free."""
        for name in self._names.forget(chunk_id):
            with suppress(TransferError):
                self._delete(f"{self.root}/{name}")
        return self._books.forget(chunk_id)

    @property
    def _mark(self) -> dict[str, object]:
        return {"what": WHAT, "version": VERSION, "tier": self.name}

    @contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except TransferError as fault:
            raise OutputError(str(fault)) from fault

    def _path(self, chunk_id: str, suffix: str = SUFFIX) -> str:
        return f"{self.root}/{chunk_id}{suffix}"

    def _upload(self, chunk: KVChunk) -> None:
        self._send(chunk.to_bytes(), self._path(chunk.id), self._path(chunk.id, PART_SUFFIX))

    def _send(self, data: bytes, final: str, part: str) -> None:
        """Under its own name whole or not at all; by way of `part` where the store shows halves."""
        target = final if self._whole_objects else part
        self._store.pipe_file(target, data)
        if (size := self._store.info(target)["size"]) != len(data):
            raise TransferError(f"tier {self.name}: {len(data)} bytes sent to {target}, {size} arrived")
        if target != final:
            self._store.mv(target, final)

    def _clear(self, chunk_id: str) -> bool:
        """Remove what a failed write may have left; False where something may remain."""
        try:
            self._delete(self._path(chunk_id, PART_SUFFIX))
            self._delete(self._path(chunk_id))
        except TransferError:
            return False
        return True

    def _delete(self, path: str) -> None:
        """Nothing happens where there is no such object. Raises TransferError."""
        try:
            with self._reported(f"{path} cannot be removed", absent=ChunkNotFound):
                self._store.rm_file(path)
        except ChunkNotFound:
            return

    @contextmanager
    def _reported(self, what: str, absent: type[WorldKVError] = TransferError) -> Iterator[None]:
        """Faults of the store as TransferError, and as `absent` where an object is not there."""
        try:
            yield
        except TransferError:
            raise
        except FileNotFoundError as fault:
            raise absent(f"tier {self.name}: {what}: no such object") from fault
        except _store_faults() as fault:
            raise TransferError(f"tier {self.name}: {what}: {str(fault) or type(fault).__name__}") from fault


def _store_faults() -> tuple[type[Exception], ...]:
    loaded = [(sys.modules.get(module), name) for module, name in CLIENT_FAULTS]
    # Stores that can only be read have no way to write.
    return (OSError, NotImplementedError, *(getattr(module, name) for module, name in loaded if module is not None))


def _written(about: dict[str, Any]) -> float:
    """Seconds since the epoch, 0 where the store does not say."""
    when = next((about[key] for key in TIME_KEYS if about.get(key) is not None), 0.0)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return when.timestamp() if isinstance(when, datetime) else float(when)
