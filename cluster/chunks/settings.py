"""How the shared chunk tier of a cluster is kept; the same for all its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field

from worldkv.config import MemoryConfig
from worldkv.errors import ConfigError
from worldkv.memory.tenants import Share, Shares

MIB = 2**20
# Of a node's object store: beyond it Ray would spill to its own disk, in the way of everybody.
STORE_RATIO = 0.8
# Two survive the death of any node between them; each costs a message per server twice a second.
DIRECTORIES = 2


@dataclass(frozen=True)
class ChunkSettings:
    """See `config.TierConfig`."""

    capacity_bytes: int
    """Of one node."""
    copies: int = 1
    url: str | None = None
    url_capacity_bytes: int = 0
    shares: Shares = field(default_factory=Shares)
    directories: int = DIRECTORIES

    @classmethod
    def of(cls, config: MemoryConfig) -> ChunkSettings | None:
        """Those of the tier `node`; None where the memory has none."""
        tier = next((tier for tier in config.tiers if tier.name == "node"), None)
        if tier is None:
            return None
        shares = {
            share.tenant: Share(share.reserved_mib * MIB, None if share.limit_mib is None else share.limit_mib * MIB)
            for share in config.shares
            if share.tier == "node"
        }
        return cls(
            capacity_bytes=tier.capacity_mib * MIB,
            copies=tier.copies or 1,
            url=tier.url,
            url_capacity_bytes=(tier.url_capacity_mib or 0) * MIB,
            shares=Shares(shares),
        )

    def check_fits(self, node: str, store_bytes: int) -> None:
        """Raise ConfigError where the node's object store is too small."""
        usable = int(STORE_RATIO * store_bytes)
        if self.capacity_bytes > usable:
            raise ConfigError(
                f"tier node: capacity_mib = {self.capacity_bytes // MIB}: of the {store_bytes // MIB} MiB object store "
                f"of node {node} at most {usable // MIB} can be used; lower it to that, or start Ray with a larger one"
            )
