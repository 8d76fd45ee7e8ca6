"""Configuration and alert rules as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monitoring.alerts import ALERTS, Alert

SCRAPE_INTERVAL = "5s"
JOB = "worldkv"


def alert_rules() -> dict[str, Any]:
    """The rules file."""
    return {"groups": [{"name": "worldkv", "rules": [_rule(alert) for alert in ALERTS]}]}


def configuration(
    targets: Sequence[str], *, discovery: str | None = None, token_file: str | None = None, rules: str = "alerts.yml"
) -> dict[str, Any]:
    """What to scrape: `targets` (`host:port`), and whatever the `discovery` URL lists, with the token in the file."""
    authorization = {} if token_file is None else {"authorization": {"credentials_file": token_file}}
    found: dict[str, Any] = {}
    if targets:
        found["static_configs"] = [{"targets": list(targets)}]
    if discovery is not None:
        found["http_sd_configs"] = [{"url": discovery, "refresh_interval": "15s", **authorization}]
    return {
        "global": {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL},
        "rule_files": [rules],
        "scrape_configs": [{"job_name": JOB, **authorization, **found}],
    }


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expr,
        "for": alert.lasts,
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "description": alert.means, "action": alert.do},
    }
