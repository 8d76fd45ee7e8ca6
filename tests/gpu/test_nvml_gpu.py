"""Figures of a real GPU by the real NVML."""

import pytest
import torch

from monitoring.gpus import GpuReader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, and this machine has none"),
]


def test_a_real_gpu_tells_what_the_fake_one_does():
    warnings: list[str] = []
    gpus = GpuReader(warnings.append).open()
    try:
        before = gpus.read()
        held = torch.empty(2**28, device="cuda")
        for _ in range(50):
            held = held * 1.0001
        held.cpu()
        after = gpus.read()
    finally:
        gpus.close()
    assert not warnings
    assert len(after) == len(before) >= torch.cuda.device_count()
    gpu, was = after[0], before[0]
    assert "NVIDIA" in gpu.name
    assert 0 < gpu.memory_used_bytes <= gpu.memory_total_bytes
    assert 0 <= gpu.utilisation_ratio <= 1
    assert 10 < gpu.power_watts < 1500
    assert 10 < gpu.temperature_celsius < 110
    assert gpu.throttled is not None
    # One GiB went to the host meanwhile: the counter grows, in bytes.
    if gpu.pcie_sent_bytes is not None:
        assert 2**30 <= gpu.pcie_sent_bytes - was.pcie_sent_bytes < 2**34
