"""What arithmetic on a CPU is told before it first runs: to repeat bit for bit, and to leave others their cores."""

from __future__ import annotations

import os

SETTINGS = {
    # Products of matrices come out the same however many threads share them, so that a dataset does not depend on the
    # size of the machine or the number of workers on it.
    "MKL_CBWR": "AVX2,STRICT",
    # Waiting threads that spin make torch twice as slow once another process wants a core (benchmarks/).
    "OMP_WAIT_POLICY": "PASSIVE",
}


def make_repeatable() -> None:
    """For this process and its children, unless the user's environment says otherwise; before torch computes."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
