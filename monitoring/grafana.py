"""Dashboards as Grafana reads them: its JSON model, and the provisioning files that make it find them.

Written out by hand, not by an SDK: what is fixed here is what Grafana's schema of a dashboard fixes, no more.
"""

from __future__ import annotations

from typing import Any

from monitoring.panels import Dashboard, Panel, Query

# Of the oldest Grafana that shows them as they are meant: 10.4.
SCHEMA_VERSION = 39
SOURCE = {"type": "prometheus", "uid": "${source}"}
COLUMNS, WIDTH, HEIGHT, NUMBER_WIDTH, NUMBER_HEIGHT = 24, 8, 8, 6, 4
UNITS = {
    "share": "percentunit",
    "bytes": "bytes",
    "bytes per second": "binBps",
    "seconds": "s",
    "per second": "cps",
    "count": "short",
    "watts": "watt",
    "celsius": "celsius",
    "decibels": "dB",
}


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    """One dashboard; its address is /d/NAME."""
    return {
        "description": dashboard.about,
        "editable": True,
        "graphTooltip": 1,
        "id": None,
        "links": [
            {
                "asDropdown": False,
                "icon": "external link",
                "includeVars": True,
                "keepTime": True,
                "tags": ["worldkv"],
                "targetBlank": False,
                "title": "",
                "tooltip": "",
                "type": "dashboards",
                "url": "",
            }
        ],
        "panels": _placed(dashboard.panels),
        "refresh": "10s",
        "schemaVersion": SCHEMA_VERSION,
        "tags": ["worldkv"],
        "templating": {"list": [_source_variable()]},
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "",
        "title": dashboard.title,
        "uid": dashboard.name,
        "version": 1,
    }


def provisioning(dashboards_folder: str, prometheus_url: str) -> dict[str, dict[str, Any]]:
    """File below Grafana's provisioning folder -> its content."""
    source = {"name": "WorldKV", "type": "prometheus", "uid": "worldkv", "access": "proxy", "url": prometheus_url}
    provider = {"name": "WorldKV", "type": "file", "folder": "WorldKV", "options": {"path": dashboards_folder}}
    return {
        "datasources/worldkv.yaml": {"apiVersion": 1, "datasources": [{**source, "isDefault": True}]},
        "dashboards/worldkv.yaml": {"apiVersion": 1, "providers": [provider]},
    }


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """Row by row, numbers smaller than lines."""
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, 1):
        width, height = (NUMBER_WIDTH, NUMBER_HEIGHT) if panel.kind == "number" else (WIDTH, HEIGHT)
        if x + width > COLUMNS or (row_height and height != row_height):
            x, y = 0, y + row_height
        row_height = height
        placed.append(_panel(panel, number, {"h": height, "w": width, "x": x, "y": y}))
        x += width
    return placed


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    return {
        "datasource": SOURCE,
        "description": panel.about,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "gridPos": place,
        "id": number,
        "options": _number_options() if panel.kind == "number" else _line_options(),
        "targets": [_target(query, chr(ord("A") + i)) for i, query in enumerate(panel.queries)],
        "title": panel.title,
        "type": "stat" if panel.kind == "number" else "timeseries",
    }


def _field(panel: Panel) -> dict[str, Any]:
    field: dict[str, Any] = {"unit": UNITS[panel.unit], "min": 0}
    if panel.unit == "decibels":
        del field["min"]
    if panel.unit == "share":
        field["max"] = 1
    if panel.kind != "number":
        stacked = panel.kind == "areas"
        field["custom"] = {
            "drawStyle": "line",
            "fillOpacity": 30 if stacked else 0,
            "lineWidth": 1,
            "showPoints": "never",
            "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        }
        if stacked:
            field.pop("max", None)
    return field


def _line_options() -> dict[str, Any]:
    return {
        "legend": {"calcs": ["lastNotNull"], "displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _number_options() -> dict[str, Any]:
    return {
        "colorMode": "none",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "textMode": "auto",
    }


def _target(query: Query, letter: str) -> dict[str, Any]:
    return {
        "datasource": SOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": True,
        "refId": letter,
    }


def _source_variable() -> dict[str, Any]:
    return {
        "current": {"text": "WorldKV", "value": "worldkv"},
        "hide": 0,
        "includeAll": False,
        "label": "Prometheus",
        "multi": False,
        "name": "source",
        "options": [],
        "query": "prometheus",
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
        "type": "datasource",
    }
