"""Every alert fires in its scenario and in no other, by Prometheus' own rules engine.

The series are what the exporter would have shown of a simulated cluster, minute by minute.
"""

import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from simulated_cluster import HEALTHY, START, Trouble, snapshot

from monitoring.alerts import ALERTS
from monitoring.collector import SampleCollector
from monitoring.prometheus import alert_rules
from monitoring.totals import Totals

MINUTES = 45
SCENARIOS = {
    "WorldKVHitRateCollapse": Trouble(hit_ratio=0.6),
    "WorldKVStall": Trouble(stall_ratio=0.5),
    "WorldKVTierNearCap": Trouble(fill_ratio=0.99, dropped=10.0),
    "WorldKVPinned": Trouble(pinned_ratio=0.97),
    "WorldKVCorruptChunk": Trouble(quarantined=0.2),
    "WorldKVIntegrityFault": Trouble(faults=0.2),
    "WorldKVStaleEpochStorm": Trouble(hit_ratio=0.88, miss_reason="stale_epoch"),
    "WorldKVQuotaStarvation": Trouble(quota_ratio=0.3),
    "WorldKVTierFailing": Trouble(failures=3.0),
    "WorldKVFetchSlow": Trouble(fetch_seconds={"device": 1e-4, "host": 5e-3, "disk": 2.0, "durable": 0.3}),
    "WorldKVPrefetchUseless": Trouble(prefetch_useful_ratio=0.3),
    "WorldKVFidelityLow": Trouble(fidelity_db=18.0),
    "WorldKVWorkerFlapping": Trouble(restarts=0.5),
    "WorldKVWorkerLost": Trouble(state="lost"),
    "WorldKVReplicationBehind": Trouble(replication_lag_seconds=900.0),
    "WorldKVJobStuck": Trouble(job_idle_seconds=3600.0),
    "WorldKVQueueStarved": Trouble(oldest_wait_seconds=2000.0),
    "WorldKVGpuThrottled": Trouble(throttled=("thermal",)),
    "WorldKVGpuMemoryErrors": Trouble(ecc_uncorrected=0.1),
    "WorldKVFiguresStale": Trouble(stopped_at=MINUTES - 10),
    "WorldKVExporterGone": HEALTHY,
}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (apt: prometheus)")


def series(trouble: Trouble, *, up: bool = True) -> list[dict[str, str]]:
    """Input series of promtool: the exporter's samples of every minute."""
    totals, values = Totals(), defaultdict(list)
    for minute in range(MINUTES + 1):
        collector = SampleCollector()
        collector.samples = totals.take(snapshot(minute, trouble))
        for family in collector.collect():
            for sample in family.samples:
                labels = ", ".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                values[f"{sample.name}{{{labels}}}"].append(sample.value)
    # promtool's clock starts at 0.
    values["worldkv_snapshot_timestamp_seconds{}"] = [v - START for v in values["worldkv_snapshot_timestamp_seconds{}"]]
    values['up{job="worldkv", instance="localhost:9464"}'] = [float(up)] * (MINUTES + 1)
    return [{"series": name, "values": " ".join(f"{value:g}" for value in row)} for name, row in values.items()]


def firing(tmp_path: Path, trouble: Trouble, *, up: bool = True) -> Mapping[str, bool]:
    """Alert -> whether it fires at the end: each is asked whether it is silent, and promtool says which are not."""
    rules, checks = tmp_path / "alerts.yml", tmp_path / "checks.yml"
    rules.write_text(yaml.safe_dump(alert_rules()))
    test = {
        "interval": "1m",
        "input_series": series(trouble, up=up),
        "alert_rule_test": [
            {"eval_time": f"{MINUTES}m", "alertname": alert.name, "exp_alerts": []} for alert in ALERTS
        ],
    }
    checks.write_text(yaml.safe_dump({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [test]}))
    run = subprocess.run(["promtool", "test", "rules", str(checks)], capture_output=True, text=True, check=False)
    said = run.stdout + run.stderr
    found = {alert.name: f"alertname: {alert.name}, time: {MINUTES}m" in said for alert in ALERTS}
    assert any(found.values()) == (run.returncode != 0), said[:2000]
    return found


def test_every_alert_has_a_scenario():
    assert set(SCENARIOS) == {alert.name for alert in ALERTS}


@promtool
def test_nothing_fires_in_a_healthy_cluster(tmp_path):
    assert not any(firing(tmp_path, HEALTHY).values())


@promtool
@pytest.mark.parametrize("alert", SCENARIOS)
def test_an_alert_fires_in_its_scenario_and_no_other_does(alert, tmp_path):
    found = firing(tmp_path, SCENARIOS[alert], up=alert != "WorldKVExporterGone")
    assert {name for name, fires in found.items() if fires} == {alert}


@promtool
def test_promtool_accepts_the_rules(tmp_path):
    rules = tmp_path / "alerts.yml"
    rules.write_text(yaml.safe_dump(alert_rules()))
    run = subprocess.run(["promtool", "check", "rules", str(rules)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert f"{len(ALERTS)} rules found" in run.stdout
