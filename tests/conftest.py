"""What every test relies on.

- Unit tests never sleep, never open sockets: both are refused under tests/unit, tests/golden, tests/architecture.
- Property tests have no deadline, for on a busy machine a slow example says nothing about the code, and they try
  the same examples in every run.
"""

import importlib.util
import os
import socket
import time
from pathlib import Path

import pytest

# Two cores are the reference machine; oversubscribing them only makes tests slower and less repeatable.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# As the command line has it: bytes that do not depend on the number of threads.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

# The venv of the conformance tests, which loads this file too, has no hypothesis and no property tests.
if importlib.util.find_spec("hypothesis") is not None:
    from hypothesis import settings

    settings.register_profile("worldkv", deadline=None, derandomize=True)
    settings.load_profile("worldkv")

REFERENCE = Path(os.environ.get("WORLDKV_REFERENCE", Path(__file__).resolve().parents[2] / "shared" / "reference"))


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
