"""What servers, directories and tiers tell each other; plain values that cross processes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

Key = tuple[str, str]
"""Tenant and chunk id: no question names a chunk without its tenant."""
# The name under which the server that writes chunks through stands in the directory: no node of Ray's is called so.
DURABLE = "durable"
# What object stores and files give out; all servers count in it.
PAGE_BYTES = 4096


@dataclass(frozen=True)
class Label:
    """A chunk without its bytes."""

    tenant: str
    epoch: str
    """Digest of the weights that made it."""
    chunk_id: str
    nbytes: int
    """In its format, in whole pages."""
    names: tuple[str, ...] = ()
    """Further ids under which it is asked for."""

    @property
    def key(self) -> Key:
        """Whose it is, and which."""
        return self.tenant, self.chunk_id


@dataclass(frozen=True, order=True)
class Life:
    """One life of a chunk server; a restarted one is another, and holds nothing of what the earlier one held."""

    node: str
    born: int
    """Nanoseconds since 1970, by the clock of its node."""


@dataclass(frozen=True)
class Process:
    """Who reads or writes chunks."""

    node: str
    pid: int
    born: int
    """As its node's kernel counts: tells it from a later process of the same pid."""


@dataclass(frozen=True)
class Found:
    """A chunk that a server has."""

    label: Label
    head: bytes
    """All of it but its payload, see `docs/chunk_format.md`."""
    size_bytes: int
    """Payload included."""


class Gone(Enum):
    """Why nobody has a chunk any more."""

    EVICTED = "evicted"
    """It made way for others."""
    LOST = "lost"
    """All who had it died, or it was damaged."""


@dataclass(frozen=True)
class Order:
    """Copy a chunk to another server."""

    key: Key
    target: str
    """Its node."""


@dataclass(frozen=True)
class Report:
    """What a server tells a directory: all that it has, or what changed since the last report that was heard."""

    life: Life
    base: int | None
    """The number of that report; None: this is all."""
    number: int
    free_bytes: int
    added: tuple[Label, ...] = ()
    removed: tuple[tuple[Key, Gone], ...] = ()
    declined: tuple[Order, ...] = ()
    """Orders that cannot be carried out; they are not to be given again."""


@dataclass(frozen=True)
class Reply:
    """What a directory answers."""

    heard: int | None
    """The number of the last report that counts; None: tell everything."""
    orders: tuple[Order, ...] = ()


@dataclass(frozen=True)
class Whereabouts:
    """What a directory knows of the ids asked for."""

    settled: bool
    """Whether every server has had the time to report: until then what is unknown here may lie somewhere."""
    places: dict[str, tuple[Label, tuple[str, ...]]]
    """Id asked for -> the chunk's label, and the nodes that have it."""
    gone: dict[str, Gone]
    """Ids asked for of chunks that were somewhere once."""


def pages(size_bytes: int) -> int:
    """Rounded up to whole pages."""
    return -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
