"""GPU figures from an NVML that is not there: what it tells, what it does not tell, and how it breaks."""

import pynvml
import pytest
from simulated_nvml import GIB, FakeNvml, full

from monitoring.gpus import GpuReader
from monitoring.snapshot import GpuStats


def reader(nvml: FakeNvml) -> tuple[GpuReader, list[str]]:
    warnings: list[str] = []
    return GpuReader(warnings.append, nvml).open(), warnings


def test_all_figures_in_base_units():
    gpus, warnings = reader(FakeNvml([full()]))
    assert gpus.read() == (
        GpuStats(
            index=0,
            name="NVIDIA H200",
            utilisation_ratio=0.87,
            memory_used_bytes=100 * GIB,
            memory_total_bytes=139 * GIB,
            power_watts=pytest.approx(655.5),
            temperature_celsius=63,
            pcie_sent_bytes=5,
            pcie_received_bytes=6,
            nvlink_sent_bytes=7 * 1024,
            nvlink_received_bytes=8 * 1024,
            ecc_corrected=2,
            ecc_uncorrected=0,
            throttled=("power_cap", "thermal"),
        ),
    )
    assert not warnings


def test_what_a_gpu_does_not_tell_is_left_out_and_is_no_fault():
    gpus, warnings = reader(FakeNvml([{"name": b"old GPU".decode()}]))
    assert gpus.read() == (GpuStats(index=0, name="old GPU"),)
    assert not warnings


def test_an_idle_gpu_is_not_held_down():
    device = {**full(), "throttled": pynvml.nvmlClocksThrottleReasonGpuIdle}
    gpus, _ = reader(FakeNvml([device]))
    assert gpus.read()[0].throttled == ()


def test_a_worker_asks_for_its_own_gpus_only():
    gpus, _ = reader(FakeNvml([full(), full(), full()]))
    assert [gpu.index for gpu in gpus.read([0, 2])] == [0, 2]


@pytest.mark.parametrize("fault", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_without_nvml_there_is_one_warning_and_no_figures(fault):
    gpus, warnings = reader(FakeNvml([full()], init_fault=fault))
    assert gpus.read() == gpus.read() == ()
    gpus.close()
    assert len(warnings) == 1
    assert warnings[0].startswith("no figures of GPUs: NVML says ")


def test_a_gpu_that_falls_off_the_bus_is_one_warning_and_no_figures_from_then_on():
    nvml = FakeNvml([full()])
    gpus, warnings = reader(nvml)
    assert len(gpus.read()) == 1
    nvml.devices[0]["lost"] = True
    assert gpus.read() == gpus.read() == ()
    assert len(warnings) == 1


def test_the_driver_is_let_go():
    nvml = FakeNvml([full()])
    gpus, _ = reader(nvml)
    gpus.close()
    assert not nvml.open
    gpus.close()


def test_pynvml_knows_every_name_that_is_asked_of_it():
    gpus = GpuReader(lambda text: None)
    for names in ("SwPowerCap",), ("SwThermalSlowdown", "HwThermalSlowdown"), ("HwPowerBrakeSlowdown", "HwSlowdown"):
        assert gpus._bits(names) > 0
    for name in (
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetFieldValues",
        "nvmlDeviceGetTotalEccErrors",
    ):
        assert callable(getattr(pynvml, name))
