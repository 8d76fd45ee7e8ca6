"""The scrape target: figures as OpenMetrics, and the endpoints by which others find and read them.

    /metrics   for Prometheus; a tenant's token sees that tenant's lines only
    /targets   every exporter of the cluster, as Prometheus' HTTP service discovery wants it
    /snapshot  all of it as JSON, for `worldkv top`
    /healthz   whether figures are there

- What is served was put into words, and those packed, when it was published: a scrape costs one write, however many
  workers there are.
- Nothing listens before `start`; without a token for the operator only this machine is listened to.
"""

from __future__ import annotations

import gzip
import hmac
import ipaddress
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread

from prometheus_client.exposition import choose_encoder

from monitoring.collector import SampleCollector, registry_of
from monitoring.snapshot import Snapshot
from monitoring.totals import Totals
from worldkv.errors import ConfigError

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
# Whoever has nothing to say for so long is hung up on; scrapers that keep their connection come back within a minute.
IDLE_SECONDS = 75.0
FASTEST = 1


@dataclass(frozen=True)
class Access:
    """Who may see what. Without any token: everybody who can reach the exporter, everything."""

    operator_token: str | None = field(default=None, repr=False)
    """Sees all."""
    tenant_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Tenant -> token that sees what carries the tenant's name."""

    def __post_init__(self) -> None:
        tokens = [*self.tenant_tokens.values(), *([] if self.operator_token is None else [self.operator_token])]
        if not all(tokens) or len(set(tokens)) < len(tokens):
            raise ConfigError(f"{len(tokens)} tokens, {len(set(tokens))} of them different: each must be its own")
        if self.tenant_tokens and self.operator_token is None:
            raise ConfigError(f"tokens for {len(self.tenant_tokens)} tenants, none for the operator: give one")

    def may(self, header: str | None) -> Viewer | None:
        """Whoever sends this Authorization header; None: nobody whom we know."""
        if self.operator_token is None:
            return Viewer(None)
        given = (header or "").removeprefix("Bearer ").encode()
        found = None
        for token, viewer in self._tokens():  # all of them, so that the time taken tells nothing
            if hmac.compare_digest(token.encode(), given):
                found = viewer
        return found

    def _tokens(self) -> list[tuple[str, Viewer]]:
        tenants = [(token, Viewer(tenant)) for tenant, token in self.tenant_tokens.items()]
        return [(self.operator_token or "", Viewer(None)), *tenants]


@dataclass(frozen=True)
class Viewer:
    """Someone who asks; `tenant` None: the operator."""

    tenant: str | None


@dataclass(frozen=True)
class Text:
    """What a scrape gets."""

    body: bytes
    packed: bytes
    """The same, by gzip."""
    content_type: str


@dataclass(frozen=True)
class _Published:
    """What is there to be served, until the next snapshot."""

    snapshot: Snapshot
    collectors: Mapping[str | None, SampleCollector]
    texts: dict[tuple[str | None, str], Text] = field(default_factory=dict)
    """(tenant, type of the text) -> text."""
    lock: Lock = field(default_factory=Lock)


class Exporter:
    """Serves the latest snapshot. `publish` from one thread; requests are served by others."""

    def __init__(self, access: Access | None = None) -> None:
        self.access = access or Access()
        self._totals = Totals()
        self._published: _Published | None = None
        self._server: ThreadingHTTPServer | None = None
        self._thread: Thread | None = None

    def publish(self, snapshot: Snapshot) -> None:
        """Serve this from now on."""
        samples = self._totals.take(snapshot)
        viewers = [None, *self.access.tenant_tokens]
        collectors = {tenant: SampleCollector(tenant) for tenant in viewers}
        for collector in collectors.values():
            collector.samples = samples
        published = _Published(snapshot, collectors)
        # What Prometheus asks for; others are put into words when someone asks for them.
        self._text(published, None, OPEN_METRICS)
        self._published = published

    @property
    def snapshot(self) -> Snapshot | None:
        """The latest."""
        return None if self._published is None else self._published.snapshot

    def metrics(self, viewer: Viewer, accept: str = OPEN_METRICS) -> Text:
        """The text that the viewer may see."""
        published = self._published
        return NOTHING if published is None else self._text(published, viewer.tenant, accept)

    def targets(self) -> bytes:
        """For Prometheus' HTTP service discovery."""
        exporters = self.snapshot.exporters if self.snapshot is not None else ()
        return json.dumps([{"targets": [target], "labels": {}} for target in exporters]).encode()

    def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listen; returns `host:port`. Raises ConfigError where that cannot be, or others would see all unasked."""
        if self.access.operator_token is None and not _is_loopback(host):
            raise ConfigError(f"exporter address {host!r}: others can reach it; give a token, or listen on 127.0.0.1")
        try:
            self._server = _Server((host, port), self)
        except OSError as fault:
            raise ConfigError(f"exporter address {host}:{port}: {fault.strerror or fault}") from fault
        self._thread = Thread(target=self._server.serve_forever, name="worldkv-exporter", daemon=True)
        self._thread.start()
        return f"{host}:{self._server.server_address[1]}"

    def close(self) -> None:
        """Listen no more."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()

    def __enter__(self) -> Exporter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _text(self, published: _Published, tenant: str | None, accept: str) -> Text:
        encoder, content_type = choose_encoder(accept)
        key = tenant, content_type
        with published.lock:
            if key not in published.texts:
                published.texts[key] = _packed(encoder(registry_of(published.collectors[tenant])), content_type)
            return published.texts[key]


def _packed(body: bytes, content_type: str) -> Text:
    return Text(body, gzip.compress(body, FASTEST), content_type)


NOTHING = _packed(b"# EOF\n", OPEN_METRICS)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], exporter: Exporter) -> None:
        self.exporter = exporter
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "worldkv", ""
    timeout = IDLE_SECONDS
    # Headers and body in one write: while others compute, each write waits its turn.
    wbufsize = 2**20

    def do_GET(self) -> None:
        exporter, path = self.server.exporter, self.path.partition("?")[0]
        if path == "/healthz":
            there = exporter.snapshot is not None
            self._answer(200 if there else 503, b"ok\n" if there else b"no figures yet\n", "text/plain")
            return
        viewer = exporter.access.may(self.headers.get("Authorization"))
        if viewer is None:
            self._answer(401, b"a bearer token is needed\n", "text/plain", {"WWW-Authenticate": "Bearer"})
        elif path == "/metrics":
            self._metrics(exporter.metrics(viewer, self.headers.get("Accept", "")))
        elif path in ("/targets", "/snapshot") and viewer.tenant is not None:
            self._answer(403, b"for the operator only\n", "text/plain")
        elif path == "/targets":
            self._answer(200, exporter.targets(), "application/json")
        elif path == "/snapshot":
            now = exporter.snapshot
            if now is None:
                self._answer(503, b"no figures yet\n", "text/plain")
            else:
                self._answer(200, json.dumps(now.to_plain()).encode(), "application/json")
        else:
            self._answer(404, b"there are /metrics, /targets, /snapshot and /healthz\n", "text/plain")

    def _metrics(self, text: Text) -> None:
        if "gzip" in self.headers.get("Accept-Encoding", ""):
            self._answer(200, text.packed, text.content_type, {"Content-Encoding": "gzip"})
        else:
            self._answer(200, text.body, text.content_type)

    def _answer(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are not worth a line each."""
