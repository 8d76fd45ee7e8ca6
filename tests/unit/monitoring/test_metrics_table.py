"""The table of metrics keeps its own rules."""

from dataclasses import replace

import pytest
from simulated_cluster import snapshot

from monitoring.metrics import LABELS, TABLE, UNITS, by_name

UNBOUNDED = {"session", "rollout", "chunk", "job", "episode", "trajectory", "id", "path", "seed"}


def faults(table) -> list[str]:
    """Metrics with a label whose values have no end, or that nobody has described."""
    return [
        f"{metric.name}: label {label}"
        for metric in table
        for label in metric.labels
        if label not in LABELS or label in UNBOUNDED
    ]


def test_labels_come_from_bounded_sets_only():
    assert not faults(TABLE)


@pytest.mark.parametrize("label", ["session", "chunk", "job", "something_new"])
def test_an_unbounded_label_would_be_found(label):
    assert faults([replace(TABLE[0], labels=(label,))]) == [f"{TABLE[0].name}: label {label}"]


def test_every_label_that_is_described_is_used():
    assert {label for metric in TABLE for label in metric.labels} == set(LABELS)


def test_names_follow_the_rules_of_open_metrics():
    assert len(by_name()) == len(TABLE)
    for metric in TABLE:
        assert metric.name.startswith("worldkv_")
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        # A unit that is spelled otherwise would be taken for none.
        assert not metric.family.endswith(("_ms", "_mib", "_percent", "_kb")), metric.name
        assert metric.unit in ("", *UNITS)
        assert metric.kind != "histogram" or metric.unit == "seconds"
        assert metric.help.endswith("."), metric.name


def test_every_metric_reads_something_off_a_full_snapshot(exported):
    shown = {name for name, _ in exported(snapshot(10))}
    expected = {metric.name if metric.kind != "histogram" else f"{metric.name}_sum" for metric in TABLE}
    assert expected <= shown


def test_label_values_are_as_many_as_the_metric_has_labels():
    whole = snapshot(10)
    parts = {"worker": whole.workers[0], "tenant": whole.tenants[0], "job": whole.jobs[0], "snapshot": whole}
    for metric in TABLE:
        for labels, _ in metric.read(parts[metric.per]):
            assert len(labels) == len(metric.labels), metric.name
