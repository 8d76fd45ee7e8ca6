"""Into a cluster and out of it: an embedded Ray of one process, or one that runs already.

`cluster.environment` must have spoken before this module is imported, for Ray reads the environment once.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from cluster.environment import check_address, listens
from worldkv.errors import ClusterError

NAMESPACE = "worldkv"
TEMP_PREFIX = "wkv-"
# Batches do not pass through the object store; this is room for what others put there.
STORE_BYTES = 256 << 20


@contextmanager
def embedded(*, cpus: int, gpus: int | None) -> Iterator[None]:
    """A Ray for the time of the context; `gpus` None: as many as Ray finds. Raises ClusterError."""
    _clear_stale()
    # Short, for paths of sockets may have 107 bytes; nobody else's, for whoever opens a socket in it is served.
    temp = tempfile.mkdtemp(prefix=f"{TEMP_PREFIX}{os.getpid()}-", dir="/tmp")
    try:
        try:
            ray.init(
                address="local",
                namespace=NAMESPACE,
                num_cpus=cpus,
                num_gpus=gpus,
                object_store_memory=STORE_BYTES,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                _temp_dir=temp,
                _memory=1 << 30,
            )
        except (RuntimeError, OSError, ValueError) as fault:
            raise ClusterError(f"an embedded Ray cannot be started: {fault}; --in-process goes without it") from fault
        try:
            yield
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def joined(address: str) -> Iterator[None]:
    """The cluster at `host:port` for the time of the context. Raises ClusterError."""
    check_address(address)
    try:
        ray.init(address=address, namespace=NAMESPACE, logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as fault:
        mode = os.environ.get("RAY_AUTH_MODE")
        raise ClusterError(
            f"address {address}: no Ray cluster answers there, or not to RAY_AUTH_MODE={mode} with this token"
        ) from fault
    except (RuntimeError, OSError, ValueError) as fault:
        raise ClusterError(f"address {address}: {_versions(str(fault))}") from fault
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Resources:
    """What the living nodes of a cluster have, used or not."""

    nodes: int
    cpus: int
    gpus: int
    most_cpus: int
    """Of one node."""
    most_gpus: int
    """Likewise."""


def check_head() -> None:
    """Raise ClusterError where the head is gone: whoever asks it then waits for a minute, and is ended by Ray."""
    address = ray.get_runtime_context().gcs_address
    if not listens(address):
        raise ClusterError(f"address {address}: the head of the cluster is gone, and the cluster with it")


def every_node() -> list[dict[str, Any]]:
    """As Ray describes them, the dead too. Raises ClusterError where the head is gone."""
    check_head()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return nodes


def living_nodes() -> list[dict[str, Any]]:
    """As Ray describes them."""
    return [node for node in every_node() if node["Alive"]]


def resources() -> Resources:
    """Of the cluster that this process is in."""
    found = [node["Resources"] for node in living_nodes()]
    cpus, gpus = ([int(one.get(name, 0)) for one in found] for name in ("CPU", "GPU"))
    return Resources(len(found), sum(cpus), sum(gpus), max(cpus), max(gpus))


def _versions(fault: str) -> str:
    """Ray's report on two versions, shortened to one line; anything else as it is."""
    found = re.findall(r"(Ray|Python): (\S+)", fault)
    if "Version mismatch" not in fault or len(found) < 4:
        return fault
    there, here = ("Ray {Ray} and Python {Python}".format(**dict(pair)) for pair in (found[:2], found[2:4]))
    return f"the cluster runs {there}, this is {here}; they must be the same"


def _clear_stale() -> None:
    """Remove the folders of processes that were killed before they could."""
    for folder in Path("/tmp").glob(f"{TEMP_PREFIX}*-*"):
        owner = folder.name.removeprefix(TEMP_PREFIX).partition("-")[0]
        with suppress(OSError):
            if owner.isdecimal() and folder.stat().st_uid == os.getuid() and not Path(f"/proc/{owner}").exists():
                shutil.rmtree(folder, ignore_errors=True)
