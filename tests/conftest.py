"""Unit tests never sleep, never open sockets: both are refused for everything under tests/unit and tests/golden."""

import os
import socket
import time
from pathlib import Path

import pytest

# Two cores are the reference machine; oversubscribing them only makes tests slower and less repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "2")

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"


@pytest.fixture(autouse=True)
def _no_sleep_no_socket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(str(request.path)).parent
    if not {"unit", "golden", "architecture"} & set(folder.parts):
        return

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a unit test may neither sleep nor open a socket")

    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "bind", refuse)


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of golden tensors from the public reference implementations; skips where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip(f"reference tensors not present at {REFERENCE}")
    return REFERENCE
