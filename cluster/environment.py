"""What Ray reads from the environment, and only when it is first imported: set here, before anyone imports it."""

from __future__ import annotations

import os
import secrets
import socket

from worldkv.errors import ClusterError

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers set their own threads and are measured against one process, which runs at its own niceness.
    "RAY_worker_niceness": "0",
    # Ray sizes itself from a total that grows on some machines, and would then kill workers that have room.
    "RAY_memory_monitor_refresh_ms": "0",
    # An actor without a GPU must not open a context on GPU 0.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    # `worldkv cluster drain` lets jobs leave a node; Ray would also wait for half a minute before it ends one.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Ray's reports on workers that die go to the driver's stdout, whatever log_to_driver says; ours go to the user.
    "RAY_DEDUP_LOGS": "1",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
}
ANSWER_SECONDS = 5.0
# Node address 127.0.0.1, every listener on it alone; the name is Ray's.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def for_embedded() -> None:
    """A Ray of this process' own: on the loopback device, behind a token that only its children know."""
    os.environ.update(ALWAYS | LOOPBACK)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)


def for_joining(address: str) -> None:
    """A cluster that runs already: with a token where the environment names one, else without."""
    os.environ.update(ALWAYS | (LOOPBACK if is_loopback(address.partition(":")[0]) else {}))
    has_token = bool({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ))
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    return host in ("127.0.0.1", "localhost")


def check_address(address: str) -> None:
    """Raise ClusterError where nothing listens; Ray itself would wait for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal():
        raise ClusterError(f"address {address}: expected host:port, such as 10.0.0.7:6379")
    try:
        socket.create_connection((host, int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as fault:
        reason = getattr(fault, "strerror", None) or fault
        raise ClusterError(f"address {address}: no cluster there: {reason}") from fault


def listens(address: str) -> bool:
    """Whether something does there."""
    try:
        check_address(address)
    except ClusterError:
        return False
    return True
