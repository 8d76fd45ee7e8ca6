"""What NVML says about the GPUs of this node. Absent or broken NVML is one warning and no figures, never a crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pynvml

from monitoring.snapshot import GpuStats

Warn = Callable[[str], None]
# NVML counts traffic in KiB, and power in mW.
KIB, MILLI = 1024, 1e-3
PCIE_SENT, PCIE_RECEIVED = "NVML_FI_DEV_PCIE_COUNT_TX_BYTES", "NVML_FI_DEV_PCIE_COUNT_RX_BYTES"
NVLINK_SENT, NVLINK_RECEIVED = "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX", "NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX"
# The scope of a field that is asked for over all links at once.
ALL_LINKS = 0xFFFFFFFF
REASONS = {
    "power_cap": ("SwPowerCap",),
    "thermal": ("SwThermalSlowdown", "HwThermalSlowdown"),
    "power_brake": ("HwPowerBrakeSlowdown",),
    "hardware": ("HwSlowdown",),
    "other": ("SyncBoost", "DisplayClockSetting"),
}
"""Name in our figures -> those of NVML. Idle GPUs and clocks that someone has set are not held down."""


class GpuReader:
    """Reads all GPUs of the node; `open` first."""

    def __init__(self, warn: Warn, nvml: Any = pynvml) -> None:
        """`nvml`: the module pynvml, or what behaves like it."""
        self._nvml, self._warn = nvml, warn
        self._devices: list[Any] = []

    def open(self) -> GpuReader:
        """Find the GPUs. Blocks for as long as the driver takes, which can be seconds."""
        try:
            self._nvml.nvmlInit()
            count = self._nvml.nvmlDeviceGetCount()
            self._devices = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        except self._nvml.NVMLError as fault:
            self._give_up(fault)
        return self

    def read(self, only: Sequence[int] | None = None) -> tuple[GpuStats, ...]:
        """Figures of the GPUs with these indices, or of all; nothing once NVML has failed."""
        try:
            return tuple(
                self._one(index, device) for index, device in enumerate(self._devices) if only is None or index in only
            )
        except self._nvml.NVMLError as fault:
            self._give_up(fault)
            return ()

    def close(self) -> None:
        """Let go of the driver."""
        if self._devices:
            self._devices = []
            self._nvml.nvmlShutdown()

    def _give_up(self, fault: Exception) -> None:
        self._devices = []
        self._warn(f"no figures of GPUs: NVML says {fault}")

    def _one(self, index: int, device: Any) -> GpuStats:
        nvml = self._nvml
        name = nvml.nvmlDeviceGetName(device)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo, device)
        use = self._ask(nvml.nvmlDeviceGetUtilizationRates, device)
        power = self._ask(nvml.nvmlDeviceGetPowerUsage, device)
        return GpuStats(
            index=index,
            name=name if isinstance(name, str) else name.decode(),
            utilisation_ratio=None if use is None else use.gpu / 100,
            memory_used_bytes=None if memory is None else memory.used,
            memory_total_bytes=None if memory is None else memory.total,
            power_watts=None if power is None else power * MILLI,
            temperature_celsius=self._ask(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU),
            pcie_sent_bytes=self._field(device, PCIE_SENT, 1),
            pcie_received_bytes=self._field(device, PCIE_RECEIVED, 1),
            nvlink_sent_bytes=self._field(device, NVLINK_SENT, KIB, ALL_LINKS),
            nvlink_received_bytes=self._field(device, NVLINK_RECEIVED, KIB, ALL_LINKS),
            ecc_corrected=self._errors(device, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ecc_uncorrected=self._errors(device, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
            throttled=self._throttled(device),
        )

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        """The answer, or None where this device has none. Raises NVMLError for what is broken."""
        try:
            return question(*about)
        except (self._nvml.NVMLError_NotSupported, self._nvml.NVMLError_NoPermission):
            return None
        except self._nvml.NVMLError_FunctionNotFound:  # a driver older than the question
            return None

    def _field(self, device: Any, name: str, unit: int, scope: int = 0) -> int | None:
        number = getattr(self._nvml, name, None)
        if number is None:
            return None
        answers = self._ask(self._nvml.nvmlDeviceGetFieldValues, device, [(number, scope)])
        if answers is None or answers[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        # Which member of the union holds the number, the answer says itself.
        kind, value = answers[0].valueType, answers[0].value
        members = {
            self._nvml.NVML_VALUE_TYPE_UNSIGNED_INT: value.uiVal,
            self._nvml.NVML_VALUE_TYPE_UNSIGNED_LONG: value.ulVal,
            self._nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: value.ullVal,
        }
        return None if kind not in members else int(members[kind]) * unit

    def _errors(self, device: Any, severity: int) -> int | None:
        found = self._ask(self._nvml.nvmlDeviceGetTotalEccErrors, device, severity, self._nvml.NVML_VOLATILE_ECC)
        return None if found is None else int(found)

    def _throttled(self, device: Any) -> tuple[str, ...] | None:
        mask = self._ask(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons, device)
        if mask is None:
            return None
        return tuple(reason for reason, names in REASONS.items() if mask & self._bits(names))

    def _bits(self, names: Sequence[str]) -> int:
        return sum(int(getattr(self._nvml, "nvmlClocksThrottleReason" + name)) for name in names)
