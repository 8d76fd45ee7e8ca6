"""Nodes of a cluster on this machine: a Ray node each, started in the background, found and ended by its own folder.

Nothing here imports ray: a node is a process of `ray start`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from worldkv.errors import ClusterError

PREFIX, FACTS, LOG = "wkv-node-", "node.json", "ray.log"
DOMAIN_LABEL = "worldkv-domain"
UP_SECONDS, DOWN_SECONDS = 60.0, 20.0
# Ray finds a dead node within two seconds instead of fifteen, and one that hangs within five instead of sixty.
HEALTH = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 4,
}


@dataclass(frozen=True)
class NodeWanted:
    """A node to be started."""

    host: str
    """Its address, as the others reach it."""
    port: int | None
    """Of a head; None: it joins."""
    join: str | None
    """host:port of the head; None: it is one."""
    cpus: int | None
    gpus: int | None
    """None: as many as Ray finds."""
    store_mib: int
    domain: str | None = None
    """What fails together with it, such as a rack; None: it stands alone."""


@dataclass(frozen=True)
class Node:
    """One that was started on this machine."""

    address: str
    """Of its cluster."""
    host: str
    process: int
    head: bool
    folder: str


def start(wanted: NodeWanted, environment: Mapping[str, str]) -> Node:
    """Start a node and return once it is up. Raises ClusterError with the end of its log where it does not come up."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir="/tmp"))
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            _command(wanted, folder),
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    address = wanted.join or f"{wanted.host}:{wanted.port}"
    node = Node(address, wanted.host, process.pid, wanted.join is None, str(folder))
    (folder / FACTS).write_text(json.dumps(asdict(node)))
    until = time.monotonic() + UP_SECONDS
    while "will now block forever" not in (told := (folder / LOG).read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > until:
            stop(node)
            raise ClusterError(f"{address}: the node does not come up: {' '.join(told.split())[-300:]}")
        time.sleep(0.1)
    return node


def stop(node: Node) -> None:
    """End a node and what it started; its folder goes too."""
    with suppress(ProcessLookupError):
        os.kill(node.process, signal.SIGTERM)
    until = time.monotonic() + DOWN_SECONDS
    while _processes(node) and time.monotonic() < until:
        time.sleep(0.1)
    for process in _processes(node):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    shutil.rmtree(node.folder, ignore_errors=True)


def started() -> list[Node]:
    """All nodes of this user on this machine; folders of those that are dead go."""
    found = []
    for path in sorted(Path("/tmp").glob(f"{PREFIX}*/{FACTS}")):
        with suppress(OSError, ValueError, TypeError):
            if path.stat().st_uid == os.getuid():
                found.append(Node(**json.loads(path.read_text())))
    for node in found:
        if not _processes(node):
            shutil.rmtree(node.folder, ignore_errors=True)
    return [node for node in found if _processes(node)]


def make_token(path: Path) -> None:
    """A token that is nobody else's to read, unless there is one."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def _command(wanted: NodeWanted, folder: Path) -> list[str]:
    words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    words += ["--node-ip-address", wanted.host, "--object-store-memory", str(wanted.store_mib << 20)]
    words += [] if wanted.cpus is None else ["--num-cpus", str(wanted.cpus)]
    words += [] if wanted.gpus is None else ["--num-gpus", str(wanted.gpus)]
    words += [] if wanted.domain is None else ["--labels", f"{DOMAIN_LABEL}={wanted.domain}"]
    if wanted.join is not None:
        return [*words, "--address", wanted.join]
    words += ["--head", "--port", str(wanted.port), "--include-dashboard", "false", "--temp-dir", str(folder)]
    return [*words, "--system-config", json.dumps(HEALTH)]


def _processes(node: Node) -> list[int]:
    """Of the node: its first one, and of a head all that name its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace")
            first = int(entry.name) == node.process and "ray.scripts" in words
            if first or (node.head and f"{node.folder}/" in words):
                found.append(int(entry.name))
    return found
