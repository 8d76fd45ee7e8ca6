"""A folder from which Prometheus and Grafana start, knowing where to ask and what to show."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monitoring.generate import dashboard_files, rules_file, to_yaml
from monitoring.grafana import provisioning
from monitoring.prometheus import configuration
from worldkv.errors import ConfigError, OutputError


@dataclass(frozen=True)
class Wanted:
    """What to set up."""

    folder: Path
    exporters: tuple[str, ...] = ()
    """`host:port` of each."""
    discovery: str | None = None
    """URL that lists them instead, `http://HEAD:PORT/targets`."""
    token_file: Path | None = None
    """Holds the token that the exporters ask for."""
    prometheus: str = "127.0.0.1:9090"
    grafana: str = "127.0.0.1:3000"

    def __post_init__(self) -> None:
        if not self.exporters and self.discovery is None:
            raise ConfigError("nothing to scrape: give exporters as HOST:PORT, or a discovery URL")
        for address in (*self.exporters, self.prometheus, self.grafana):
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 2**16:
                raise ConfigError(f"address {address!r}: not HOST:PORT")
        if self.token_file is not None and not self.token_file.is_file():
            raise ConfigError(f"token file {self.token_file}: there is none")


@dataclass(frozen=True)
class Commands:
    """What starts them, each for a shell of its own."""

    prometheus: str
    grafana: str


def write(wanted: Wanted) -> Commands:
    """Write all files, over those of an earlier time. Raises OutputError where that cannot be done."""
    root = wanted.folder.resolve()
    token_file = None if wanted.token_file is None else str(wanted.token_file.resolve())
    config = configuration(wanted.exporters, discovery=wanted.discovery, token_file=token_file)
    files = {root / "prometheus.yml": to_yaml(config), root / "alerts.yml": rules_file()}
    files |= {root / "dashboards" / name: text for name, text in dashboard_files().items()}
    for name, content in provisioning(str(root / "dashboards"), f"http://{wanted.prometheus}").items():
        files[root / "grafana" / name] = to_yaml(content)
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as fault:
            raise OutputError(f"monitoring folder {path}: cannot be written: {fault.strerror}") from fault
    return Commands(_prometheus(root, wanted.prometheus), _grafana(root, wanted.grafana))


def _prometheus(root: Path, address: str) -> str:
    options = (f"--config.file={root}/prometheus.yml", f"--storage.tsdb.path={root}/data")
    return _line(["prometheus", *options, f"--web.listen-address={address}"])


def _grafana(root: Path, address: str) -> str:
    host, _, port = address.rpartition(":")
    settings = (f"GF_PATHS_PROVISIONING={root}/grafana", f"GF_SERVER_HTTP_ADDR={host}", f"GF_SERVER_HTTP_PORT={port}")
    return _line(["env", *settings, "grafana", "server", "--homepath", "/usr/share/grafana"])


def _line(words: Sequence[str]) -> str:
    return shlex.join(words)
