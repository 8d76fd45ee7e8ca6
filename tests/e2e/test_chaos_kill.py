"""A process that writes chunks is killed, with SIGKILL, at every call of a medium that it makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
WITHIN_SECONDS = 240


def test_whatever_call_a_process_dies_at_what_it_stored_is_found_exact_and_nothing_else(tmp_path):
    words = ["--operations", "0", "--seeds", "1", "--kill-seeds", "1", "--folder", str(tmp_path)]
    process = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), *words],
        capture_output=True,
        text=True,
        timeout=WITHIN_SECONDS,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "wrong bytes: 0" in process.stdout
    (deaths,) = [line for line in process.stdout.splitlines() if line.startswith("deaths: ")]
    for point in (
        "create",
        "write_head",
        "write_payload",
        "sync_file",
        "rename",
        "sync_folder",
        "written",
        "write_rest",
    ):
        assert f"'{point}': " in deaths
    assert list(tmp_path.iterdir()) == []
