"""Who may write where: one writer at a time, in an empty folder or one of the same schema and provenance."""

from contextlib import ExitStack
from pathlib import Path

from worldkv.dataset.durable import FolderLock, make_folder, publish, sync, write_file
from worldkv.dataset.layout import IDENTITY, STAGING
from worldkv.dataset.ledger import Identity
from worldkv.errors import OutputError

LOCK = STAGING / "lock"


def claim(root: Path, identity: Identity, *, resume: bool) -> FolderLock:
    """Lock the folder for this dataset; raises OutputError, having changed nothing, if it is not ours."""
    _check_usable(root, identity, resume=resume)
    make_folder(root / STAGING)
    with ExitStack() as undo:
        lock = FolderLock.take(root / LOCK)
        undo.callback(lock.release)
        _establish(root, identity)
        undo.pop_all()
    return lock


def _check_usable(root: Path, identity: Identity, *, resume: bool) -> None:
    if not root.exists():
        return
    # A writer killed at its very start leaves no more than these two.
    found = sorted(path.name for path in root.iterdir() if path.name not in {STAGING.name, "meta"})
    found += sorted(f"meta/{path.name}" for path in (root / "meta").glob("*"))
    if not found:
        return
    if not resume:
        raise OutputError(f"{root}: not empty (holds {found[0]}); resume it or choose another folder")
    if not (root / IDENTITY).exists():
        raise OutputError(f"{root}: holds {found[0]} and is no WorldKV dataset; choose another folder")
    there = Identity.load(root)
    if there.digest != identity.digest:
        raise OutputError(f"{root}: cannot resume, the dataset there has another {_difference(there, identity)}")


def _establish(root: Path, identity: Identity) -> None:
    if (root / IDENTITY).exists():
        return
    make_folder(root / "meta")
    staged = root / STAGING / IDENTITY.name
    write_file(staged, identity.to_bytes())
    publish(staged, root / IDENTITY)
    sync(root / "meta")


def _difference(one: Identity, other: Identity) -> str:
    there, here = one.schema.to_json(), other.schema.to_json()
    there, here = there | dict(one.provenance), here | dict(other.provenance)
    names = [name for name in sorted(there | here) if there.get(name) != here.get(name)]
    return ", ".join(f"{name} (there {there.get(name)!r}, given {here.get(name)!r})" for name in names)
