"""Published weights from the hub where their makers put them: which files, and whether they came whole.

- Only what a model needs comes; each repository is asked once for its commit, and all its files are of that commit.
- What has come of a file lies aside until it is whole; a fetch that was cut off goes on behind it.
- Each file is compared with the digest that the hub tells before it takes its place; one that differs is removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, Protocol

from worldkv.errors import FetchError, OutputError
from worldkv.models.published import Published

PARTS_FOLDER = ".fetching"
"""In a repository's folder: files that have not come whole yet."""
READ_BYTES = 2**22
ROOM_TO_SPARE_BYTES = 2**28
"""Left free on the disk: other programs write too."""
Progress = Callable[[str, int, int], None]
"""(what is in work, bytes done, bytes in all)."""


@dataclass(frozen=True)
class HubFile:
    """One file of a repository, as the hub tells."""

    name: str
    nbytes: int
    sha256: str | None
    """Of large files."""
    git_blob: str | None
    """SHA-1 as git has it, of small ones."""


class Hub(Protocol):
    """What is asked of whoever talks to a hub. Its methods raise FetchError, and block."""

    def files(self, repository: str) -> tuple[str, list[HubFile]]:
        """The newest commit of a repository, and its files."""
        ...

    def send(
        self, repository: str, commit: str, file: HubFile, start: int, into: BinaryIO, told: Callable[[int], None]
    ) -> None:
        """Append a file from byte `start` to what it is written into; `told` hears how many bytes come.

        Raises OSError where the disk refuses.
        """
        ...


@dataclass(frozen=True)
class Wanted:
    """One file to fetch."""

    repository: str
    commit: str
    file: HubFile
    folder: Path
    """Where the repository's files go."""

    @property
    def path(self) -> Path:
        """Where it will lie."""
        return self.folder / self.file.name

    @property
    def part(self) -> Path:
        """Where it lies until it is whole."""
        return self.folder / PARTS_FOLDER / self.commit / self.file.name


def wanted_files(model: Published, root: Path, hub: Hub, *, encoder: bool = True) -> list[Wanted]:
    """The files that make `root` a folder of this model. Raises FetchError where a repository lacks one."""
    listed: dict[str, tuple[str, list[HubFile]]] = {}
    wanted: dict[Path, Wanted] = {}
    for source in model.about["downloads"]:
        if source.get("of_encoder", False) and not encoder:
            continue
        repository = source["repository"]
        if repository not in listed:
            listed[repository] = hub.files(repository)
        commit, held = listed[repository]
        for pattern in (*source["files"], *source.get("if_there", ())):
            found = [file for file in held if _matches(file.name, pattern)]
            if not found and pattern in source["files"]:
                raise FetchError(f"{repository} at {commit}: has no file {pattern}, which {model.name} needs")
            for file in found:
                one = Wanted(repository, commit, file, root / source.get("into", ""))
                wanted[one.path] = one
    return list(wanted.values())


def fetch(wanted: Sequence[Wanted], hub: Hub, *, progress: Progress) -> int:
    """Bring the files that are not there yet, and compare all with their digests; returns how many bytes they have.

    Raises OutputError where the disk has no room, before anything comes, or refuses; FetchError.
    """
    refuse_without_room(wanted)
    total, done = sum(one.file.nbytes for one in wanted), 0
    for one in wanted:
        came = done

        def told(nbytes: int, name: str = one.file.name) -> None:
            nonlocal came
            came += nbytes
            progress(name, min(came, total), total)

        told(0)
        try:
            _bring(one, hub, told)
        except FetchError:
            raise
        except OSError as fault:
            raise OutputError(f"{one.path}: cannot be written: {fault.strerror or fault}") from fault
        done += one.file.nbytes
        progress(one.file.name, done, total)
    for folder in {one.folder for one in wanted}:
        shutil.rmtree(folder / PARTS_FOLDER, ignore_errors=True)
    return total


def _matches(name: str, pattern: str) -> bool:
    """Part by part, so that * stands for nothing in another folder, and no name leads out of its own."""
    parts, patterns = name.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and ".." not in parts and all(map(fnmatchcase, parts, patterns))


def _bring(one: Wanted, hub: Hub, told: Callable[[int], None]) -> None:
    """One file to its place, behind what came of it before."""
    if _is_there(one):
        return verify(one, one.path)
    for path in (one.part, one.path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with one.part.open("ab") as part:
        _claim(part, one)
        start = part.tell()
        told(start)
        if start < one.file.nbytes:
            hub.send(one.repository, one.commit, one.file, start, part, told)
        part.flush()
        os.fsync(part.fileno())
    if (found := one.part.stat().st_size) != one.file.nbytes:
        one.part.unlink()
        raise FetchError(f"{one.repository}, {one.file.name}: {found} bytes came, expected {one.file.nbytes}")
    verify(one, one.part)
    one.part.replace(one.path)


def _claim(part: BinaryIO, one: Wanted) -> None:
    """Two that write one file would spoil it."""
    try:
        fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FetchError(f"{one.path}: another process is fetching it") from None


def refuse_without_room(wanted: Sequence[Wanted], free: Callable[[Path], int] | None = None) -> None:
    """Raise OutputError where the disk has no room for what is yet to come, or the folder cannot be made."""
    missing = sum(one.file.nbytes - _came(one) for one in wanted if not _is_there(one))
    root = min((one.folder for one in wanted), key=lambda folder: len(folder.parts), default=Path())
    try:
        for folder in {one.folder for one in wanted}:
            folder.mkdir(parents=True, exist_ok=True)
        room = (free or (lambda path: shutil.disk_usage(path).free))(root)
    except OSError as fault:
        raise OutputError(f"{root}: cannot be written: {fault.strerror or fault}") from fault
    if missing and missing + ROOM_TO_SPARE_BYTES > room:
        raise OutputError(
            f"{root}: {missing / 2**30:.1f} GiB are yet to come, the disk has {room / 2**30:.1f} GiB free"
        )


def verify(one: Wanted, path: Path) -> None:
    """Compare what lies at `path` with what the hub told. Raises FetchError and removes it where it is another file."""
    expected = one.file.sha256 or one.file.git_blob
    if expected is None:
        return
    size = path.stat().st_size
    digest = hashlib.sha256() if one.file.sha256 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    for part in _parts(path):
        digest.update(part)
    if digest.hexdigest() != expected:
        path.unlink()
        raise FetchError(
            f"{one.repository}, {one.file.name}: expected digest {expected}, found {digest.hexdigest()}; "
            "the file was removed, fetch again"
        )


def _is_there(one: Wanted) -> bool:
    return one.path.is_file() and one.path.stat().st_size == one.file.nbytes


def _came(one: Wanted) -> int:
    return min(one.part.stat().st_size, one.file.nbytes) if one.part.is_file() else 0


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            yield part
