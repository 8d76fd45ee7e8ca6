"""How much more memory this process may take, and which limit says so. Linux; elsewhere it does not know of the host.

Asked before a slab is allocated: past a container's limit the kernel kills the process, long after the mistake. The
limit on locked memory is not asked: it does not bind what a CUDA driver pins.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

# Files of control groups, version 1 and 2: folder below /sys/fs/cgroup, limit, usage, what of that can be reclaimed.
CGROUP_FILES = {
    "memory": ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    "": ("", "memory.max", "memory.current", "inactive_file"),
}


class Headroom(NamedTuple):
    """Bytes that can still be taken, and the limit that ends them."""

    nbytes: int
    limit: str


def host_headroom(root: Path = Path("/")) -> Headroom | None:
    """The tightest of the machine's available memory and the limits of this process' control groups.

    Reads /proc and /sys/fs/cgroup below `root`; None where neither can be read.
    """
    return min([*_machine(root), *_groups(root)], default=None)


def device_headroom(device: torch.device) -> Headroom:
    """What is free on a CUDA device."""
    free, total = torch.cuda.mem_get_info(device)
    return Headroom(free, f"free of the {total // 2**20} MiB of {device}")


def _machine(root: Path) -> Iterator[Headroom]:
    path = root / "proc/meminfo"
    for line in _lines(path):
        if line.startswith("MemAvailable:"):
            yield Headroom(int(line.split()[1]) * 1024, "MemAvailable in /proc/meminfo")


def _groups(root: Path) -> Iterator[Headroom]:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(CGROUP_FILES):
            folder, *names = CGROUP_FILES[controller]
            base = root / "sys/fs/cgroup" / folder
            # The limits of all ancestors bind; in a container the group's own path may not be visible, only its root.
            group_path = Path(group.lstrip("/"))
            for path in (base / part for part in (group_path, *group_path.parents)):
                yield from _group(path, root, *names)


def _group(path: Path, root: Path, limit_name: str, usage_name: str, reclaimable_name: str) -> Iterator[Headroom]:
    limit, usage = (next(iter(_lines(path / name)), "") for name in (limit_name, usage_name))
    if limit.isdigit() and usage.isdigit():
        stat = dict(line.split(None, 1) for line in _lines(path / "memory.stat") if " " in line)
        free = int(limit) - int(usage) + int(stat.get(reclaimable_name, 0))
        yield Headroom(max(0, free), f"{limit_name} = {limit} in /{path.relative_to(root)}")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
