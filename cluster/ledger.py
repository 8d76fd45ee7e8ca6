"""What is written down of a job, on durable storage, so that whoever takes it up goes on where it stood.

    ROOT/<job>/job.json                 what was asked for; written once
    ROOT/<job>/state.json               what its driver last said of itself
    ROOT/<job>/cancel                   there: it shall end
    ROOT/<job>/batches/<n>/finished     all episodes of a batch, waiting for their turn to be committed
    ROOT/<job>/batches/<n>/checkpoint   the batch between two chunks
    ROOT/<job>/batches/<n>/tries.json   how often it took its worker with it, and why it is set aside

- The dataset itself is the book of what is committed: an episode is committed under its key, once, by the one writer
  that holds the folder's lock. All that is here can be lost, and is made again to the same bytes.
- A batch's folder goes once its episodes are committed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from cluster.parcel import Checkpoint, Finished, pack_finished, unpack_checkpoint, unpack_finished
from cluster.storage import Storage
from worldkv.config import MemoryConfig, RunConfig, load_text_as
from worldkv.errors import JobError, WorldKVError
from worldkv.runs.play_config import PlayConfig
from worldkv.stats import Durations

Part = TypeVar("Part")
RECORD, STATE, CANCEL, BATCHES = "job.json", "state.json", "cancel", "batches"
# Of a driver: it writes every few seconds, so that one that is silent for that long is gone.
SILENT_SECONDS = 60.0
KEPT_REASONS = 3
Standing = Literal["running", "finished", "cancelled", "stopped", "failed"]


@dataclass(frozen=True)
class JobRecord:
    """What was asked for."""

    id: str
    config: str
    """YAML of the run's configuration."""
    base: str
    """Folder that its relative paths start from."""
    tenant: str
    priority: int
    command: str
    """By which the report says it can be made again."""
    created: float
    """Seconds since the epoch."""
    kind: Literal["rollout", "play"] = "rollout"
    """Worlds into a dataset, or one world of a published model into a video."""

    def run_config(self) -> RunConfig:
        """The configuration, as it was given. Raises ConfigError."""
        return load_text_as(RunConfig, self.config, f"job {self.id}")

    @property
    def memory(self) -> MemoryConfig:
        """Of either kind."""
        return (self.play_config() if self.kind == "play" else self.run_config()).memory

    def play_config(self) -> PlayConfig:
        """The same where the kind is play."""
        return load_text_as(PlayConfig, self.config, f"job {self.id}")

    @property
    def output(self) -> Path:
        """What the job writes: a folder, or a video."""
        return Path(self.base) / (self.play_config().video if self.kind == "play" else self.run_config().output.folder)


@dataclass(frozen=True)
class JobState:
    """What the driver last said."""

    standing: Standing
    told: float
    """When, in seconds since the epoch."""
    driver: str
    """Its host and process."""
    episodes: int
    """Committed."""
    wanted: int
    """Episodes in all, those set aside included."""
    doing: str = ""
    """In words, for people."""
    workers: tuple[str, ...] = ()
    """How each stands, in words."""
    aside: int = 0
    """Episodes of batches that were set aside."""
    idle_seconds: float = 0.0
    """Since an episode was committed, or since the driver took the job up."""
    queued: int = 0
    """Sessions that wait for a worker."""
    oldest_wait_seconds: float = 0.0
    """Of these, the one that waits for longest."""
    wait_counts: tuple[int, ...] = Durations().counts
    """Sessions that were begun, by how long they had waited: as `Durations` counts."""
    wait_seconds: float = 0.0
    """All these waits together."""

    def now(self, seconds: float) -> JobState:
        """As it is to be read at that time: a driver that went without a word has stopped."""
        silent = self.standing == "running" and seconds - self.told > SILENT_SECONDS
        return replace(self, standing="stopped", doing="its driver is gone") if silent else self


@dataclass(frozen=True)
class Tries:
    """What became of attempts at one batch."""

    failed: int = 0
    reasons: tuple[str, ...] = ()
    """Of the newest few, oldest first."""
    set_aside: bool = False

    def and_failed(self, reason: str, *, most: int) -> Tries:
        """One more; the batch is set aside when that makes `most`."""
        failed = self.failed + 1
        return Tries(failed, (*self.reasons, reason)[-KEPT_REASONS:], failed >= most)


def job_id(folder: Path) -> str:
    """Of the job that writes into this folder: one folder, one job."""
    whole = str(folder.absolute())
    return f"{folder.absolute().name}-{hashlib.sha256(whole.encode()).hexdigest()[:6]}"


@dataclass
class Ledger:
    """One job's part of the storage. Every method blocks, and raises OutputError where storage refuses."""

    url: str
    """Of the folder of all jobs."""
    id: str
    _storage: Storage = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._storage = Storage(f"{self.url}/{self.id}")

    def check(self) -> None:
        """Raise ConfigError where the URL means nothing."""
        self._storage.check()

    def record(self) -> JobRecord | None:
        """None where there is no such job. Raises JobError on a damaged record."""
        content = self._json(RECORD)
        return None if content is None else _as(JobRecord, content, self._storage.url)

    def enter(self, record: JobRecord, *, resume: bool) -> None:
        """Write down a job; what an earlier one of this id left goes, unless it is resumed and asked for the same."""
        try:
            there = self.record() if resume else None
        except JobError:
            there = None
        if there is None or there.config != record.config or there.base != record.base:
            self._storage.remove("")
        self._storage.remove(CANCEL)
        self._put_json(RECORD, asdict(record))

    def state(self) -> JobState | None:
        """None before a driver took it up. Raises JobError on a damaged one."""
        content = self._json(STATE)
        return None if content is None else _as(JobState, content, self._storage.url)

    def tell(self, state: JobState) -> None:
        """Say how the job stands."""
        self._put_json(STATE, asdict(state))

    def cancel(self) -> None:
        """Ask the driver to end; a job without one is cancelled as it is."""
        self._storage.put(CANCEL, b"")

    @property
    def cancelled(self) -> bool:
        """Whether it was asked to end."""
        return self._storage.get(CANCEL) is not None

    def put_finished(self, number: int, finished: Finished) -> None:
        """Keep a batch until its turn comes; its checkpoint goes."""
        self._storage.put(_name(number, "finished"), pack_finished(finished))
        self._storage.remove(_name(number, "checkpoint"))

    def finished(self, number: int) -> Finished | None:
        """None where the batch is not finished, or what is there is damaged: it is then made again."""
        data = self._storage.get(_name(number, "finished"))
        return None if data is None else _or_none(unpack_finished, data)

    def finished_numbers(self) -> set[int]:
        """Of batches that wait for their turn."""
        found = self._storage.names(BATCHES)
        return {int(name) for name in found if "finished" in self._storage.names(f"{BATCHES}/{name}")}

    def put_checkpoint(self, number: int, data: bytes) -> None:
        """Replace the batch's checkpoint by one of `pack_checkpoint`."""
        self._storage.put(_name(number, "checkpoint"), data)

    def checkpoint(self, number: int) -> Checkpoint | None:
        """None where there is none, or it is damaged: the batch then starts at its first chunk."""
        data = self._storage.get(_name(number, "checkpoint"))
        return None if data is None else _or_none(unpack_checkpoint, data)

    def tries(self, number: int) -> Tries:
        """What became of earlier attempts."""
        content = self._json(_name(number, "tries.json"))
        return Tries() if content is None else _as(Tries, content, self._storage.url)

    def note_tries(self, number: int, tries: Tries) -> None:
        """Replace what is written of attempts at the batch."""
        self._put_json(_name(number, "tries.json"), asdict(tries))

    def set_aside(self) -> dict[int, Tries]:
        """The batches that were given up, by number."""
        found = {int(name): self.tries(int(name)) for name in self._storage.names(BATCHES)}
        return {number: tries for number, tries in found.items() if tries.set_aside}

    def clear(self, number: int) -> None:
        """Forget a batch that is committed."""
        self._storage.remove(f"{BATCHES}/{number:06d}")

    def _json(self, name: str) -> dict[str, Any] | None:
        data = self._storage.get(name)
        if data is None:
            return None
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError) as fault:
            raise JobError(f"{self._storage.url}/{name}: damaged: {fault}") from fault

    def _put_json(self, name: str, content: dict[str, Any]) -> None:
        self._storage.put(name, json.dumps(content, indent=1).encode() + b"\n")


def ledgers(url: str) -> list[Ledger]:
    """Of all jobs in a folder of jobs."""
    return [ledger for name in Storage(url).names() if (ledger := Ledger(url, name)).record() is not None]


def new_record(config: RunConfig, *, base: Path, command: str, priority: int) -> JobRecord:
    """Of a job that is submitted now."""
    folder = base / config.output.folder
    return JobRecord(job_id(folder), config.to_yaml(), str(base), config.memory.tenant, priority, command, time.time())


def new_play_record(config: PlayConfig, *, base: Path, command: str, priority: int) -> JobRecord:
    """Of a world of a published model."""
    made = job_id(base / config.video), config.to_yaml(), str(base), config.memory.tenant, priority, command
    return JobRecord(*made, time.time(), "play")


def _or_none(read: Callable[[bytes], Part], data: bytes) -> Part | None:
    try:
        return read(data)
    except (WorldKVError, LookupError, TypeError, ValueError):
        return None


def _name(number: int, kind: str) -> str:
    return f"{BATCHES}/{number:06d}/{kind}"


def _as(kind: type[Any], content: dict[str, Any], where: str) -> Any:
    lists = {name: tuple(value) for name, value in content.items() if isinstance(value, list)}
    try:
        return kind(**content | lists)
    except TypeError as fault:
        raise JobError(f"{where}: not a {kind.__name__} of this version: {fault}") from fault
