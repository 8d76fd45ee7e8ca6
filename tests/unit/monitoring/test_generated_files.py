"""What is checked in is what the generator makes, and speaks only of metrics that exist."""

import json
import re
import shutil
import subprocess

import pytest
import yaml

from monitoring.alerts import ALERTS
from monitoring.dashboards import DASHBOARDS
from monitoring.generate import ROOT, files
from monitoring.grafana import UNITS, dashboard_json, provisioning
from monitoring.metrics import TABLE, by_name
from monitoring.panels import Unit
from monitoring.prometheus import configuration

QUERIES = [query.expr for board in DASHBOARDS for panel in board.panels for query in panel.queries]
RULES = [alert.expr for alert in ALERTS]
LABEL = re.compile(r"([a-z_]+)\s*(?:=~|!~|!=|=)\s*\"")
GROUPING = re.compile(r"by \(([^)]*)\)")


def metrics_in(expr: str) -> set[str]:
    """Names of the table's rows that the query asks for; raises KeyError for one that has no row."""
    names = {re.sub(r"(_bucket|_sum|_count)$", "", name) for name in re.findall(r"worldkv_\w+", expr)}
    return {by_name()[name].name for name in names}


@pytest.mark.parametrize("path", files())
def test_checked_in_files_are_what_the_generator_makes(path):
    assert (ROOT / path).read_text() == files()[path], "run: python -m monitoring.generate"


def test_no_dashboard_is_left_over():
    checked_in = {f"monitoring/grafana/{path.name}" for path in (ROOT / "monitoring/grafana").glob("*.json")}
    assert checked_in == {path for path in files() if path.startswith("monitoring/grafana/")}


@pytest.mark.parametrize("expr", sorted({*QUERIES, *RULES}))
def test_queries_ask_for_metrics_and_labels_of_the_table(expr):
    if "up{" in expr:
        return
    names = metrics_in(expr)
    assert names
    known = {label for name in names for label in by_name()[name].labels} | {"le"}
    asked = set(LABEL.findall(expr)) | {label.strip() for group in GROUPING.findall(expr) for label in group.split(",")}
    assert asked - {""} <= known


def test_every_metric_is_in_a_picture():
    drawn = set().union(*map(metrics_in, QUERIES))
    assert drawn == {metric.name for metric in TABLE}


def test_counters_are_asked_for_their_growth_and_histograms_for_their_buckets():
    for expr in [*QUERIES, *RULES]:
        for name in re.findall(r"worldkv_\w+", expr):
            row = by_name().get(name)
            assert row is None or row.kind != "histogram", f"{expr}: {name} alone has no samples"
            if row is not None and row.kind == "counter" and 'outcome="committed"})' not in expr:
                assert re.search(rf"(rate|increase)\({name}", expr), expr


def test_legends_name_labels_that_the_query_keeps():
    for board in DASHBOARDS:
        for panel in board.panels:
            for query in panel.queries:
                labels = set(re.findall(r"{{(\w+)}}", query.legend))
                kept = {label.strip() for group in GROUPING.findall(query.expr) for label in group.split(",")}
                if kept:
                    assert labels <= kept, (panel.title, query.legend)
                elif labels:
                    assert labels <= {label for name in metrics_in(query.expr) for label in by_name()[name].labels}


def test_dashboards_have_panels_that_lie_side_by_side_and_know_their_source():
    assert len(DASHBOARDS) == 6
    for board in DASHBOARDS:
        made = dashboard_json(board)
        cells = [
            (x, y)
            for panel in made["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells)), f"{board.name}: panels overlap"
        assert max(x for x, _ in cells) < 24
        assert len({panel["id"] for panel in made["panels"]}) == len(board.panels)
        assert all(target["refId"] for panel in made["panels"] for target in panel["targets"])
        assert '"uid": "${source}"' in json.dumps(made)


def test_every_unit_has_one_of_grafana():
    assert set(UNITS) == set(Unit.__args__)


def test_every_alert_says_what_it_means_and_what_to_do():
    assert len(ALERTS) >= 10
    assert len({alert.name for alert in ALERTS}) == len(ALERTS)
    runbook = files()["docs/runbook.md"]
    for alert in ALERTS:
        assert f"| `{alert.name}` | {alert.severity} |" in runbook
        assert "|" not in alert.means + alert.do
        assert alert.means.endswith(".")
        assert alert.do.endswith(".")


def test_grafana_is_told_where_the_dashboards_lie():
    made = provisioning("/there", "http://127.0.0.1:9090")
    assert made["datasources/worldkv.yaml"]["datasources"][0]["url"] == "http://127.0.0.1:9090"
    assert made["dashboards/worldkv.yaml"]["providers"][0]["options"]["path"] == "/there"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)")
@pytest.mark.parametrize("discovery", [None, "http://127.0.0.1:9464/targets"])
@pytest.mark.parametrize("token", [False, True])
def test_promtool_accepts_the_configuration(tmp_path, discovery, token):
    (tmp_path / "alerts.yml").write_text(files()["monitoring/prometheus/alerts.yml"])
    (tmp_path / "token").write_text("secret")
    token_file = str(tmp_path / "token") if token else None
    config = configuration([] if discovery else ["127.0.0.1:9464"], discovery=discovery, token_file=token_file)
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)")
def test_promtool_accepts_every_query(tmp_path):
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "1m")}
        for number, expr in enumerate(QUERIES)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    run = subprocess.run(["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
