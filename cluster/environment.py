"""What Ray reads from the environment, and only when it is first imported: set here, before anyone imports it."""

from __future__ import annotations

import os
import secrets

ALWAYS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers set their own threads and are measured against one process, which runs at its own niceness.
    "RAY_worker_niceness": "0",
    # Ray sizes itself from a total that grows on some machines, and would then kill workers that have room.
    "RAY_memory_monitor_refresh_ms": "0",
    # An actor without a GPU must not open a context on GPU 0.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_DEDUP_LOGS": "0",
}
# Node address 127.0.0.1, every listener on it alone; the name is Ray's.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


def for_embedded() -> None:
    """A Ray of this process' own: on the loopback device, behind a token that only its children know."""
    os.environ.update(ALWAYS | LOOPBACK)
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ.pop("RAY_AUTH_TOKEN_PATH", None)


def for_joining(host: str) -> None:
    """A cluster that runs already: with a token where the environment names one, else without."""
    os.environ.update(ALWAYS | (LOOPBACK if host.startswith("127.") or host == "localhost" else {}))
    has_token = bool({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ))
    os.environ.setdefault("RAY_AUTH_MODE", "token" if has_token else "disabled")
