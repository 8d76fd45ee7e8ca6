"""What the chunk memory asks of a tier: a bounded container of chunks that knows nothing of order, tenants or forks.

Which chunk goes where, what leaves and when is decided by the store; recency, references and pins are its books.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, runtime_checkable

from worldkv.memory.chunk import KVChunk


class Tier(Protocol):
    """One place for chunks: a device's memory, the host's, a disk, a durable store."""

    @property
    def name(self) -> str:
        """As the configuration calls it; a label of metrics."""
        ...

    @property
    def verifies(self) -> bool:
        """Whether `get` checks a chunk's digests."""
        ...

    @property
    def capacity_bytes(self) -> int:
        """Never passed, not even while a chunk is being written."""
        ...

    @property
    def used_bytes(self) -> int:
        """Bytes held, as `cost_bytes` counts them, those of chunks on their way in included."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, chunk_id: str) -> bool:
        """Whether the chunk is here, complete."""
        ...

    def ids(self) -> Iterator[str]:
        """Ids of the chunks that are here; what is found at start-up in order of their last write."""
        ...

    def cost_bytes(self, chunk: KVChunk) -> int:
        """Bytes of capacity that the chunk would take here: slots and files are larger than payloads."""
        ...

    def put(self, chunk: KVChunk) -> None:
        """Copy the chunk here; when this returns it is complete, and durable where the tier is.

        A chunk that is here already stays. Blocks. Raises CapacityError where it does not fit, TransferError where it
        could not be written; then nothing of it remains.
        """
        ...

    def get(self, chunk_id: str) -> KVChunk:
        """The chunk, verified if it was ever out of this process' memory; where it lies is the tier's business.

        A chunk that is given out stays as it is for as long as it is referred to, whatever becomes of the tier.

        Blocks. Raises ChunkNotFound, ChunkCorrupt (either way it stays in the books until `remove` or `quarantine`), or
        TransferError where it could not be read.
        """
        ...

    def remove(self, chunk_id: str) -> None:
        """Forget the chunk and free its bytes; nothing happens where it is not here.

        Raises TransferError where that fails; the chunk is then still here.
        """
        ...

    def check(self) -> list[str]:
        """Faults in the tier's own books, which name it; empty when all is well. Reads no payloads."""
        ...

    def close(self) -> None:
        """Give back what is held outside the process' heap; what is durable stays."""
        ...


@runtime_checkable
class Lends(Protocol):
    """A tier whose chunks are read where they lie: their bytes are free only once nobody refers to them."""

    def lent(self, chunk_id: str) -> bool:
        """Whether somebody refers to the chunk: to remove it would free nothing now."""
        ...


@runtime_checkable
class ReadsAside(Tier, Protocol):
    """A tier that takes long to read, into memory that is the chunk's for as long as it is referred to, by any thread.

    Meanwhile its owner may do anything else here but remove the chunk that is being read.
    """

    reads_aside: bool


@runtime_checkable
class Survives(Tier, Protocol):
    """A tier that outlives its process, and tells the next one what it holds without reading payloads."""

    def outline(self, chunk_id: str) -> KVChunk:
        """See `KVChunk.outline`. Blocks. Raises as `Tier.get` does."""
        ...

    def expect(self, chunk_ids: Iterable[str]) -> None:
        """A hint: the outlines of these chunks will be asked for next, in this order. Raises nothing."""
        ...

    def names(self, chunk_id: str) -> tuple[str, ...]:
        """Further ids under which the chunk is asked for, as `also_name` was told."""
        ...

    def also_name(self, chunk_id: str, names: Iterable[str]) -> None:
        """Keep further ids of a chunk that is here for as long as it is; durable when this returns.

        Blocks, though not for names that are kept already. Raises TransferError.
        """
        ...


@runtime_checkable
class Quarantines(Protocol):
    """A tier that keeps damaged pieces, where nothing reads them, for whoever looks for the cause."""

    def quarantine(self, chunk_id: str) -> None:
        """The chunk is not here any more. Raises TransferError as `Tier.remove` does."""
        ...


@runtime_checkable
class Shared(Tier, Protocol):
    """A tier that others write to and evict from as well.

    What `ids` lists, and `used_bytes` counts, is what this process has put or taken up there. Others may have evicted
    it since: then `get` raises ChunkEvicted.
    """

    def find(self, tenant: str, chunk_ids: Sequence[str]) -> Mapping[str, KVChunk]:
        """Outlines of the tenant's chunks that lie here by now, by the ids asked for; whoever put them.

        To `put` such an outline takes the chunk up; no payload moves. Blocks. Raises TransferError where nobody can
        tell.
        """
        ...

    def prefetch(self, chunk_ids: Iterable[str]) -> None:
        """A hint: begin to bring these nearer, for a `get` to come. Does not block for payloads. Raises nothing."""
        ...
