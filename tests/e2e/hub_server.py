"""A hub of this machine: the few requests that huggingface_hub makes for a download, answered from a folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
WAITS_SECONDS = 120
SMALL_BYTES = 1000
"""Smaller files are kept by git itself, the others as large files."""


@dataclass
class HubServer:
    """What it serves, how it misbehaves, and what it was asked."""

    folder: Path
    """REPOSITORY/FILE."""
    url: str = ""
    refused: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Repository -> status and code of the error."""
    cut_after: dict[str, int] = field(default_factory=dict)
    """File name -> bytes after which its first transfer breaks off."""
    held_after: dict[str, int] = field(default_factory=dict)
    """File name -> bytes after which its first transfer stands still until `let_go`; `holding` is set meanwhile."""
    holding: Event = field(default_factory=Event)
    let_go: Event = field(default_factory=Event)
    spoilt: set[str] = field(default_factory=set)
    """Files of which other bytes are sent than were promised."""
    promised: dict[str, int] = field(default_factory=dict)
    """File name -> size that is told of it instead of its own."""
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    """Method, path, range."""

    def sent_ranges(self, name: str) -> list[str]:
        return [ranged for method, path, ranged in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def serving(folder: Path) -> Iterator[HubServer]:
    hub = HubServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        holds = False

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Range", "")))
            if path.startswith("/api/models/"):
                self.tell(path.removeprefix("/api/models/").partition("/revision/")[0])
            else:
                repository, _, rest = path.lstrip("/").partition("/resolve/")
                self.send(repository, rest.partition("/")[2])

        def tell(self, repository: str) -> None:
            root = hub.folder / repository
            if repository in hub.refused or not root.is_dir():
                status, code = hub.refused.get(repository, (404, "RepoNotFound"))
                self.reply(status, b"{}", {"X-Error-Code": code})
                return
            files = [listed(path, root) for path in sorted(root.rglob("*")) if path.is_file()]
            for file in files:
                file["size"] = hub.promised.get(str(file["rfilename"]), file["size"])
            body = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": files, "tags": []}
            self.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

        def send(self, repository: str, name: str) -> None:
            path = hub.folder / repository / name
            if not path.is_file():
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            data, about = path.read_bytes(), listed(path, hub.folder / repository)
            etag = about["lfs"]["sha256"] if "lfs" in about else about["blobId"]
            data = data[::-1] if name in hub.spoilt else data
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            facts = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if "Range" in self.headers:
                facts["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            cut = None
            if self.command == "GET":
                held = hub.held_after.pop(name, None)
                cut = hub.cut_after.pop(name, held)
                self.holds = held is not None
            self.reply(206 if "Range" in self.headers else 200, data[start:], facts, cut)

        def reply(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body if cut is None else body[:cut])
            if cut is not None:
                self.wfile.flush()
                if self.holds:
                    hub.holding.set()
                    hub.let_go.wait(WAITS_SECONDS)
                self.close_connection = True
                self.connection.shutdown(2)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.let_go.set()
        server.shutdown()
        server.server_close()
        thread.join()


def listed(path: Path, root: Path) -> dict[str, object]:
    data = path.read_bytes()
    about: dict[str, object] = {
        "rfilename": path.relative_to(root).as_posix(),
        "size": len(data),
        "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
    }
    if len(data) >= SMALL_BYTES:
        about["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return about
