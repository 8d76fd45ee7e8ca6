"""Every error WorldKV raises on purpose. Each is also a stdlib error and survives pickling.

WorldKVError
├ ConfigError (ValueError)        names the key, the value and what is allowed
├ CapacityError (RuntimeError)    tier, bytes asked, bytes free, bytes pinned
├ ChunkError
│ ├ ChunkNotFound (KeyError)
│ │ └ ChunkEvicted                made way for others in a tier that is shared
│ ├ ChunkCorrupt (ValueError)     expected and found checksum, tier, path
│ ├ ChunkForeign (ValueError)     expected and found epoch or tenant
│ └ ChunkPinned (RuntimeError)    by whom
├ LeaseExpired (RuntimeError)
├ TransferError (OSError)         from tier, to tier, bytes done
│ └ TransferLate                  not worth starting any more
├ TrajectoryError (ValueError)    the file or notation, and its fault
├ CheckpointError (ValueError)    file, tensor, expected and found shape
├ FetchError (OSError)            repository, file, and why it did not come
├ DatasetError (ValueError)       path and fault
├ SnapshotError (ValueError)      what contradicts what in a scheduler's snapshot
├ TraceError (ValueError)         file, line and fault of a recorded trace
├ OutputError (OSError)           an output folder that cannot be used
├ ClusterError (RuntimeError)     address or node, and its fault
├ JobError (RuntimeError)         id of the job, and its fault
└ ModelError (RuntimeError)

A message is built by whoever raises and restates the inputs; the classes hold no other state, so they
pickle like any exception (they cross Ray).
"""


class WorldKVError(Exception):
    """Root of the tree; the command line ends with its message and exit code 2."""

    def __str__(self) -> str:
        # KeyError would print the repr of its argument; every error here prints its message.
        return str(self.args[0]) if len(self.args) == 1 else super().__str__()


class ConfigError(WorldKVError, ValueError):
    """A configuration key or value that is not allowed."""


class CapacityError(WorldKVError, RuntimeError):
    """A tier cannot take what was asked of it."""


class ChunkError(WorldKVError):
    """Anything wrong with one chunk."""


class ChunkNotFound(ChunkError, KeyError):
    """No tier holds this chunk."""


class ChunkEvicted(ChunkNotFound):
    """A shared tier held this chunk, until others needed its room."""


class ChunkCorrupt(ChunkError, ValueError):
    """The bytes of a chunk do not match its checksum or header."""


class ChunkForeign(ChunkError, ValueError):
    """A chunk of another model, epoch or tenant than is asked for."""


class ChunkPinned(ChunkError, RuntimeError):
    """The chunk is held and may not be moved or dropped."""


class LeaseExpired(WorldKVError, RuntimeError):
    """A remote hold ran out."""


class TransferError(WorldKVError, OSError):
    """A copy between tiers did not finish."""


class TransferLate(TransferError):
    """A copy between tiers whose deadline passed before it began; nothing moved."""


class TrajectoryError(WorldKVError, ValueError):
    """A trajectory file or notation that cannot be used."""


class CheckpointError(WorldKVError, ValueError):
    """Weights that are missing, truncated or of another model."""


class FetchError(WorldKVError, OSError):
    """A file of a public repository that could not be had, or came as another one."""


class DatasetError(WorldKVError, ValueError):
    """A dataset that is malformed or fails verification."""


class SnapshotError(WorldKVError, ValueError):
    """A snapshot handed to the scheduler that contradicts itself."""


class TraceError(WorldKVError, ValueError):
    """A recorded trace that cannot be replayed."""


class OutputError(WorldKVError, OSError):
    """An output folder that cannot be written or already holds something else."""


class ClusterError(WorldKVError, RuntimeError):
    """A cluster that cannot be started, joined or used."""


class JobError(WorldKVError, RuntimeError):
    """A job that is unknown, not allowed or cannot go on."""


class ModelError(WorldKVError, RuntimeError):
    """A model that cannot do what was asked."""
