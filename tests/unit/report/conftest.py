import pytest
import torch
from made_up_runs import rooms_world, run_of

from worldkv.results import RunResult


@pytest.fixture(scope="session")
def result() -> RunResult:
    """Two rooms under three policies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the pictures are small: threads would only wait for one another
    try:
        return run_of([rooms_world(seed) for seed in range(2)], fps=8)
    finally:
        torch.set_num_threads(threads)
