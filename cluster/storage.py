"""Durable storage of small and large objects behind any fsspec URL: each is there whole or not at all.

Nothing here is ever unpickled. A fault of the store is an OutputError that names the object; `patiently` outlasts one
that passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

from worldkv.dataset.durable import make_folder, publish, sync, write_file
from worldkv.errors import ConfigError, OutputError

Result = TypeVar("Result")
PART = ".part"
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.2, 5.0


class Storage:
    """Objects by name below a URL; a name may have folders in it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._opened: tuple[Any, str] | None = None

    def check(self) -> None:
        """Raise ConfigError where the URL means nothing."""
        self._store()

    def put(self, name: str, data: bytes) -> None:
        """Write or replace an object; durable when this returns. Raises OutputError, and the object is as before."""
        store, root = self._store()
        path = f"{root}/{name}"
        try:
            if isinstance(store, LocalFileSystem):
                _put_local(Path(path), data)
            else:
                store.makedirs(path.rpartition("/")[0], exist_ok=True)
                store.pipe_file(path + PART, data)
                store.mv(path + PART, path)
        except (OSError, NotImplementedError) as fault:
            raise self._refused(name, "cannot be written", fault) from fault

    def get(self, name: str) -> bytes | None:
        """The object; None where there is none. Raises OutputError."""
        store, root = self._store()
        try:
            return bytes(store.cat_file(f"{root}/{name}"))
        except FileNotFoundError:
            return None
        except OSError as fault:
            raise self._refused(name, "cannot be read", fault) from fault

    def remove(self, name: str) -> None:
        """Forget an object, or a folder with all in it; nothing happens where there is none. Raises OutputError."""
        store, root = self._store()
        try:
            with suppress(FileNotFoundError):
                store.rm(f"{root}/{name}", recursive=True)
        except OSError as fault:
            raise self._refused(name, "cannot be removed", fault) from fault

    def names(self, folder: str = "") -> list[str]:
        """Of objects and folders directly below a folder, sorted; those half written are left out."""
        store, root = self._store()
        try:
            store.invalidate_cache()
            found = store.ls(f"{root}/{folder}".rstrip("/"), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as fault:
            raise self._refused(folder, "cannot be listed", fault) from fault
        names = (str(path).rstrip("/").rpartition("/")[2] for path in found)
        return sorted(name for name in names if not name.endswith(PART))

    def _store(self) -> tuple[Any, str]:
        if self._opened is None:
            try:
                store, root = fsspec.core.url_to_fs(self.url)
            except (ValueError, ImportError, OSError, TypeError, AttributeError) as fault:
                raise ConfigError(f"{self.url!r} cannot be opened: {fault}; name another place") from fault
            self._opened = store, str(root).rstrip("/")
        return self._opened

    def _refused(self, name: str, what: str, fault: Exception) -> OutputError:
        reason = getattr(fault, "strerror", None) or str(fault) or type(fault).__name__
        return OutputError(f"{self.url}/{name}: {what}: {reason}")


def patiently(
    work: Callable[[], Result], seconds: float, *, failed: Callable[[OutputError], None] = lambda fault: None
) -> Result:
    """Do it, again and again while storage refuses it and the time is not over; each refusal is told to `failed`."""
    until, wait = time.monotonic() + seconds, FIRST_WAIT_SECONDS
    while True:
        try:
            return work()
        except OutputError as fault:
            failed(fault)
            left = until - time.monotonic()
            if left <= 0:
                raise
        time.sleep(min(wait, left))
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def _put_local(path: Path, data: bytes) -> None:
    make_folder(path.parent)
    part = path.with_name(path.name + PART)
    write_file(part, data)
    publish(part, path)
    sync(path.parent)
