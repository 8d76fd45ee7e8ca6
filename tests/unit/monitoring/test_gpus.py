"""GPU figures from an NVML that is not there: what it tells, what it does not tell, and how it breaks."""

from types import SimpleNamespace

import pynvml
import pytest

from monitoring.gpus import ALL_LINKS, GpuReader
from monitoring.snapshot import GpuStats

GIB = 2**30


class FakeNvml:
    """A driver with these GPUs. Constants and errors are pynvml's own; whatever it does not imitate is missing."""

    def __init__(self, devices: list[dict], *, init_fault: int | None = None) -> None:
        self.devices, self.init_fault, self.open = devices, init_fault, False

    def __getattr__(self, name: str) -> object:
        if name.startswith(("NVML", "nvmlClocks")) and name != "NVMLError_":
            return getattr(pynvml, name)
        raise AttributeError(f"the fake NVML does not imitate {name}")

    def nvmlInit(self) -> None:
        if self.init_fault is not None:
            raise pynvml.NVMLError(self.init_fault)
        self.open = True

    def nvmlShutdown(self) -> None:
        assert self.open
        self.open = False

    def nvmlDeviceGetCount(self) -> int:
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict:
        return self.devices[index]

    def nvmlDeviceGetName(self, device: dict) -> str:
        return device["name"]

    def nvmlDeviceGetMemoryInfo(self, device: dict) -> object:
        return self._tell(device, "memory")

    def nvmlDeviceGetUtilizationRates(self, device: dict) -> object:
        return self._tell(device, "use")

    def nvmlDeviceGetPowerUsage(self, device: dict) -> int:
        return self._tell(device, "power")

    def nvmlDeviceGetTemperature(self, device: dict, sensor: int) -> int:
        assert sensor == pynvml.NVML_TEMPERATURE_GPU
        return self._tell(device, "temperature")

    def nvmlDeviceGetTotalEccErrors(self, device: dict, severity: int, counter: int) -> int:
        assert counter == pynvml.NVML_VOLATILE_ECC
        return self._tell(device, ("ecc", severity))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: dict) -> int:
        return self._tell(device, "throttled")

    def nvmlDeviceGetFieldValues(self, device: dict, wanted: list[tuple[int, int]]) -> list[object]:
        ((number, scope),) = wanted
        nvlink = number in (pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX)
        assert scope == (ALL_LINKS if nvlink else 0)
        if ("field", number) not in device:
            return [SimpleNamespace(nvmlReturn=pynvml.NVML_ERROR_NOT_SUPPORTED, valueType=0, value=None)]
        value = SimpleNamespace(uiVal=-1, ulVal=-1, ullVal=device["field", number])
        kind = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
        return [SimpleNamespace(nvmlReturn=pynvml.NVML_SUCCESS, valueType=kind, value=value)]

    def _tell(self, device: dict, what: object):
        if device.get("lost"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        if what not in device:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return device[what]


def full() -> dict:
    """A GPU that tells all."""
    return {
        "name": "NVIDIA H200",
        "memory": SimpleNamespace(used=100 * GIB, total=139 * GIB),
        "use": SimpleNamespace(gpu=87, memory=40),
        "power": 655_500,
        "temperature": 63,
        ("ecc", pynvml.NVML_MEMORY_ERROR_TYPE_CORRECTED): 2,
        ("ecc", pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED): 0,
        "throttled": pynvml.nvmlClocksThrottleReasonSwPowerCap
        | pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
        | pynvml.nvmlClocksThrottleReasonGpuIdle,
        ("field", pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES): 5,
        ("field", pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES): 6,
        ("field", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX): 7,
        ("field", pynvml.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX): 8,
    }


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
