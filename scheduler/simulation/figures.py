"""What a simulation counts, and what is made of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Figures:
    """Of one run; counters grow while it lasts."""

    lookups: int = 0
    """Chunks that retrieval asked for."""
    hits: Counter[str] = field(default_factory=Counter)
    """Tier -> asked for while it lay there, when the window was due."""
    coming: int = 0
    """Asked for while on its way to the device: too late, but less so."""
    without: int = 0
    """Asked for and gone on without."""
    stall_ratios: list[float] = field(default_factory=list)
    """Per window: seconds waited for its chunks / seconds to make a chunk."""
    stall_seconds: float = 0.0
    compute_seconds: float = 0.0
    prefetched: Counter[str] = field(default_factory=Counter)
    """Chunks and bytes that prefetch brought to the device, those of them that were used, those cancelled; and the
    same of what it brought nearer, not to the device (`staged`)."""
    demanded_bytes: int = 0
    """Moved because a window waited."""
    plans: int = 0
    late: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)
    queue_seconds: dict[str, list[float]] = field(default_factory=dict)
    """Tenant -> seconds that each session waited for a worker."""
    slot_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Tenant -> slots x seconds that its sessions held."""
    chunks: Counter[str] = field(default_factory=Counter)
    """Tenant -> chunks made."""
    suspended: int = 0
    moved: int = 0
    rounds: int = 0
    end_seconds: float = 0.0
    events: int = 0

    def summary(self) -> dict[str, Any]:
        """Ratios and percentiles, by name; those of nothing are None."""
        stalls = np.asarray(self.stall_ratios) if self.stall_ratios else np.zeros(1)
        moved = self.prefetched["bytes"]
        whole = moved + self.prefetched["staged_bytes"]
        used = self.prefetched["used_bytes"] + self.prefetched["staged_used_bytes"]
        return {
            "chunks": self.chunks.total(),
            "on_time_ratio": _ratio(self.hits["device"], self.lookups),
            "hit_ratios": {tier: _ratio(count, self.lookups) for tier, count in sorted(self.hits.items())},
            "stall_ratio_mean": _ratio(self.stall_seconds, self.compute_seconds),
            "stall_ratio_p50": float(np.percentile(stalls, 50)),
            "stall_ratio_p99": float(np.percentile(stalls, 99)),
            "windows_stalled_ratio": float((stalls > 1e-9).mean()),
            "prefetch_precision_ratio": _ratio(self.prefetched["used"], self.prefetched["chunks"]),
            "prefetch_waste_ratio": _ratio(moved - self.prefetched["used_bytes"], moved),
            "prefetched_bytes": moved,
            "staged_used_ratio": _ratio(self.prefetched["staged_used"], self.prefetched["staged"]),
            "prefetch_waste_staged_too_ratio": _ratio(whole - used, whole),
            "staged_bytes": self.prefetched["staged_bytes"],
            "demanded_bytes": self.demanded_bytes,
            "without": self.without,
            "late_told": self.late,
            "cancelled": self.prefetched["cancelled"],
            "suspended": self.suspended,
            "moved": self.moved,
            "simulated_seconds": self.end_seconds,
            "ignored": dict(self.ignored),
            "tenants": {tenant: self._tenant(tenant) for tenant in sorted(self.queue_seconds)},
        }

    def _tenant(self, tenant: str) -> dict[str, float]:
        waits = np.asarray(self.queue_seconds[tenant])
        return {
            "placed": len(waits),
            "wait_p50_seconds": float(np.percentile(waits, 50)),
            "wait_p99_seconds": float(np.percentile(waits, 99)),
            "slot_seconds": self.slot_seconds[tenant],
            "chunks": self.chunks[tenant],
        }


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
