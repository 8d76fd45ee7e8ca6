"""Metrics from frozen stats: one table of metrics, exporter, NVML, dashboards and alert rules."""
