"""Snapshots of a simulated cluster, and what an exporter makes of them."""

from collections.abc import Callable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from monitoring.exporter import Access, Exporter, Viewer
from monitoring.snapshot import Snapshot

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parse(text: bytes) -> Samples:
    """(name, labels) -> value, as the reference parser of OpenMetrics reads them."""
    families = text_string_to_metric_families(text.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


@pytest.fixture(scope="session")
def exported() -> Callable[..., Samples]:
    """What is shown after these snapshots, one after the other."""

    def show(*snapshots: Snapshot, tenant: str | None = None) -> Samples:
        access = Access() if tenant is None else Access("operator", {tenant: "token"})
        exporter = Exporter(access)
        for snapshot in snapshots:
            exporter.publish(snapshot)
        return parse(exporter.metrics(Viewer(tenant)).body)

    return show


@pytest.fixture(scope="session")
def labelled() -> Callable[..., frozenset[tuple[str, str]]]:
    """Labels as the samples' keys have them."""
    return lambda **labels: frozenset(labels.items())
