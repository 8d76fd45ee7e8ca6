"""Who may use how much of a tier. Pure: bytes in, verdict out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from worldkv.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """One tenant's part of one tier."""

    reserved_bytes: int = 0
    """Up to here no other tenant's need takes the tenant's chunks away."""
    limit_bytes: int | None = None
    """Beyond it the tenant's own chunks make way for its new ones; None: the whole tier."""

    def __post_init__(self) -> None:
        if self.reserved_bytes < 0 or (self.limit_bytes is not None and self.limit_bytes < self.reserved_bytes):
            raise ConfigError(
                f"reserved_bytes={self.reserved_bytes}, limit_bytes={self.limit_bytes}: "
                "must be 0 <= reserved_bytes <= limit_bytes"
            )


@dataclass(frozen=True)
class Shares:
    """All tenants' parts of one tier; who is not named has nothing reserved and no limit."""

    of: Mapping[str, Share] = field(default_factory=dict)

    def share(self, tenant: str) -> Share:
        """The tenant's part."""
        return self.of.get(tenant, Share())

    def over_limit_bytes(self, tenant: str, used_bytes: int, asked_bytes: int) -> int:
        """What the tenant has to give up before it may take `asked_bytes` more; 0 or less: nothing."""
        limit = self.share(tenant).limit_bytes
        return 0 if limit is None else used_bytes + asked_bytes - limit

    def spare_bytes(self, tenants: Iterable[tuple[str, int]], asking: str) -> dict[str, int]:
        """What `asking` may take from each of the (tenant, used bytes): its own, and of others what is not reserved.

        Tenants that have nothing to spare are left out.
        """
        spare = {
            tenant: used if tenant == asking else used - self.share(tenant).reserved_bytes for tenant, used in tenants
        }
        return {tenant: nbytes for tenant, nbytes in spare.items() if nbytes > 0}

    def check(self, tier: str, capacity_bytes: int) -> None:
        """Raise ConfigError where more is reserved, or allowed, than there is."""
        reserved = sum(share.reserved_bytes for share in self.of.values())
        if reserved > capacity_bytes:
            raise ConfigError(
                f"tier {tier}: {reserved} bytes are reserved for tenants, its capacity is {capacity_bytes}"
            )
