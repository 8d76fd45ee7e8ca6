"""An NVML that is not there: the driver of GPUs that tell what they are told to tell."""

from types import SimpleNamespace

import pynvml

from monitoring.gpus import ALL_LINKS

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


def at_its_power_cap() -> dict:
    """A healthy GPU under full load."""
    return {**full(), "throttled": pynvml.nvmlClocksThrottleReasonSwPowerCap}


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
