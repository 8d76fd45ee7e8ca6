"""Where further copies of a chunk go. Pure: the same nodes give the same answer to every directory."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

import xxhash

from cluster.chunks.labels import DURABLE, Label


class Host(NamedTuple):
    """A server that lives."""

    node: str
    free_bytes: int


def targets(label: Label, places: Collection[str], hosts: Iterable[Host], copies: int) -> list[str]:
    """Nodes to copy the chunk to, given where it lies: until `copies` nodes have it, and the durable server has.

    As many as there are, should there be too few; none for a chunk that no node has any more. A node with room for it
    comes before one that would have to evict; among equals a hash of both decides, so that the chunks of one node
    spread over all others when it dies.
    """
    if not set(places) - {DURABLE}:
        return []
    hosts = list(hosts)
    nodes = [host for host in hosts if host.node != DURABLE and host.node not in places]
    missing = copies - sum(node != DURABLE for node in places)

    def preference(host: Host) -> tuple[bool, int]:
        return host.free_bytes < 2 * label.nbytes, xxhash.xxh64_intdigest(f"{label.chunk_id} {host.node}".encode())

    chosen = [host.node for host in sorted(nodes, key=preference)[: max(0, missing)]]
    durable = [host.node for host in hosts if host.node == DURABLE and DURABLE not in places]
    return chosen + durable
