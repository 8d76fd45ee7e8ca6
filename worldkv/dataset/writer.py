"""The single writer of a dataset: whole episodes only, resumable after any kill to the same bytes."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from worldkv.dataset.claim import claim
from worldkv.dataset.commit import Books, commit_episode
from worldkv.dataset.durable import FolderLock, output_faults, remove_folder
from worldkv.dataset.episode import Episode, MetadataValue
from worldkv.dataset.layout import MAX_EPISODES, STAGING
from worldkv.dataset.ledger import Identity
from worldkv.dataset.schema import DatasetSchema, check_text, metadata_type
from worldkv.errors import DatasetError, OutputError


class DatasetWriter:
    """Appends episodes to one dataset; make it with `open`, use it in a `with` block."""

    def __init__(self, root: Path, identity: Identity, lock: FolderLock, books: Books) -> None:
        self.root = root
        self.identity = identity
        self._lock = lock
        self._books = books
        self._unfinished = False

    @classmethod
    def open(
        cls,
        root: Path | str,
        schema: DatasetSchema,
        *,
        provenance: Mapping[str, MetadataValue] | None = None,
        resume: bool = False,
    ) -> "DatasetWriter":
        """Start a dataset in a new or empty folder, or with `resume` continue (or start) one there.

        Raises OutputError if the folder cannot be used, holds anything else, is being written, or, with
        `resume`, holds a dataset of another schema or provenance; DatasetError if that dataset is damaged.
        Resuming first removes what an interrupted commit left.
        """
        root, identity = Path(root), Identity(schema, dict(provenance or {}))
        for name, value in identity.provenance.items():
            metadata_type(name, value)
        with output_faults(root), ExitStack() as undo:
            lock = claim(root, identity, resume=resume)
            undo.callback(lock.release)
            books = Books.load(root, schema)
            undo.pop_all()
        return cls(root, identity, lock, books)

    @property
    def committed_keys(self) -> Collection[str]:
        """The keys of all committed episodes in their order; a live view, quick to ask for membership."""
        return self._books.keys.keys()

    def commit(self, episode: Episode, key: str) -> int:
        """Append an episode and return its index; on return it is durable and verified.

        Raises DatasetError if it does not fit or the key was used, OutputError if it cannot be written; the
        dataset is then as before and the writer can go on. (If the very last flush failed, the episode is
        counted all the same: ask `committed_keys`.)
        """
        self.identity.schema.check(episode)
        check_text("episode key", key)
        with output_faults(self.root):
            self._recover_if_unfinished()
            self._check_key(key)
            self._unfinished = True
            try:
                commit = commit_episode(self.root, self.identity.schema, self._books, episode, key)
            except (OSError, DatasetError) as error:
                self._undo(error)
                raise
        self._books.record(commit)
        self._unfinished = False
        return commit.entry.episode_index

    def close(self) -> None:
        """Remove the staging folder and let other writers in; closing twice is allowed."""
        try:
            with output_faults(self.root):
                self._recover_if_unfinished()
                remove_folder(self.root / STAGING)
        finally:
            self._lock.release()

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_key(self, key: str) -> None:
        if not key or key in self._books.keys:
            raise DatasetError(f"{self.root}: episode key {key!r} is empty or already committed")
        if len(self._books.keys) >= MAX_EPISODES:
            raise OutputError(f"{self.root}: a dataset holds at most {MAX_EPISODES} episodes")

    def _recover_if_unfinished(self) -> None:
        # An interrupt, which is no error, can leave a commit half done in a living process.
        if self._unfinished:
            self._books = Books.load(self.root, self.identity.schema)
            self._unfinished = False

    def _undo(self, error: Exception) -> None:
        try:
            self._recover_if_unfinished()
        except (OSError, DatasetError) as second:
            error.add_note(f"its leftovers stay until the dataset is resumed: {second}")
