"""Write everything that is made from the table, the dashboards and the alerts: `python -m monitoring.generate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from monitoring.alerts import ALERTS
from monitoring.dashboards import DASHBOARDS
from monitoring.grafana import dashboard_json
from monitoring.metrics import LABELS, TABLE, Metric
from monitoring.prometheus import alert_rules
from worldkv.stats import SECONDS_BOUNDS

ROOT = Path(__file__).resolve().parents[1]
MADE = "made by `python -m monitoring.generate`; change"


def to_yaml(content: Any, header: str = "") -> str:
    """YAML in the order in which it was built."""
    return header + yaml.safe_dump(content, sort_keys=False, width=120, allow_unicode=True)


def dashboard_files() -> dict[str, str]:
    """File name -> a dashboard of Grafana."""
    return {f"{board.name}.json": json.dumps(dashboard_json(board), indent=1) + "\n" for board in DASHBOARDS}


def rules_file() -> str:
    """The alert rules of Prometheus."""
    return to_yaml(alert_rules(), f"# {MADE} monitoring/alerts.py.\n")


def files() -> dict[str, str]:
    """Path from the root of the repository -> text of every file that is made."""
    made = {f"monitoring/grafana/{name}": text for name, text in dashboard_files().items()}
    made["monitoring/prometheus/alerts.yml"] = rules_file()
    made["docs/metrics.md"] = metrics_page()
    made["docs/runbook.md"] = runbook_page()
    return made


def metrics_page() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        f"<!-- {MADE} monitoring/metrics.py -->",
        "",
        "Every metric that `/metrics` can show. Counters are added up over the workers that one exporter speaks for,",
        "and do not go down when one of them restarts, but for those that carry its name. Buckets of histograms end",
        f"at {', '.join(f'{bound:g}' for bound in SECONDS_BOUNDS)} seconds.",
        "",
        "`lookups = hits + misses` holds exactly: for each tier and tenant, and for the memory as a whole.",
        "",
        "| metric | kind | labels | what |",
        "|---|---|---|---|",
        *map(_metric_row, TABLE),
        "",
        "## Labels",
        "",
        "Each has an end. Sessions, rollouts, chunks and jobs have none: they stand in logs and traces.",
        "",
        "| label | values |",
        "|---|---|",
        *(f"| `{label}` | {what} |" for label, what in LABELS.items()),
        "",
    ]
    return "\n".join(lines)


def runbook_page() -> str:
    """docs/runbook.md."""
    lines = [
        "# Runbook",
        "",
        f"<!-- {MADE} monitoring/alerts.py -->",
        "",
        "What each alert means and what to do. `page`: worlds are wrong or lost now; `ticket`: they will be.",
        "",
        "| alert | | fires after | means | do |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| `{alert.name}` | {alert.severity} | {alert.lasts} | {alert.means} | {alert.do} |" for alert in ALERTS]
    return "\n".join([*lines, ""])


def _metric_row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |"


def main() -> None:
    """Write them, and remove dashboards that are no more."""
    made = files()
    for path in (ROOT / "monitoring/grafana").glob("*.json"):
        if f"monitoring/grafana/{path.name}" not in made:
            path.unlink()
    for name, text in made.items():
        path = ROOT / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(name)


if __name__ == "__main__":
    main()
