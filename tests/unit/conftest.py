"""A world model small enough for unit tests, and the few ways in which they use it.

The network's weights are random: it dreams noise, but every pixel of that noise depends on all it attends to.

Every chunk memory that a test makes is audited: when it is closed, or else when the test is over.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch

from worldkv.camera import Trajectory
from worldkv.denoise import noise_levels
from worldkv.memory.policy import PRESETS, MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.network import RoomsNetwork, Shape
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.rollout import ChunkRecord, rollout
from worldkv.session import Session, open_session

SHAPE = Shape(image=20, patch=10, layers=2, heads=2, head_dim=24, trained_frames=48)
FRAMES_PER_CHUNK = SHAPE.frames_per_chunk
EPOCH = "weights-a"
LEVELS = noise_levels(2, 3.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tensors here are tiny: a second thread, on a busy machine, makes each operation a hundred times slower."""
    torch.set_num_threads(1)


class Audits:
    """The chunk memories made during one test."""

    def __init__(self) -> None:
        self.open: list[ChunkMemory] = []
        self.faults: list[str] = []

    def excuse(self, memory: ChunkMemory) -> None:
        """Its books were broken on purpose."""
        self.open.remove(memory)

    def audit(self, memory: ChunkMemory) -> None:
        if memory in self.open:
            self.open.remove(memory)
            # After a power cut there is no process any more whose books could be wrong.
            if not any(getattr(getattr(tier, "_disk", None), "cut", False) for tier in memory.tiers):
                self.faults += memory.check_integrity()


@contextmanager
def audited() -> Iterator[Audits]:
    """Meanwhile every chunk memory is audited; raises AssertionError at the end where the books of one are broken."""
    audits = Audits()
    make, close = ChunkMemory.__init__, ChunkMemory.close

    def made(memory: ChunkMemory, *args: object, **options: object) -> None:
        make(memory, *args, **options)
        # Tests that need rules of their own take over the tiers of a memory that they made for that alone.
        audits.open = [other for other in audits.open if not set(map(id, other.tiers)) & set(map(id, memory.tiers))]
        audits.open.append(memory)

    def closed(memory: ChunkMemory) -> None:
        audits.audit(memory)
        close(memory)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ChunkMemory, "__init__", made)
        patch.setattr(ChunkMemory, "close", closed)
        yield audits
    for memory in tuple(audits.open):
        audits.audit(memory)
    assert not audits.faults, "\n".join(["a chunk memory's books are broken:", *audits.faults])


@pytest.fixture(autouse=True)
def audits() -> Iterator[Audits]:
    with audited() as audits:
        yield audits


def random_network(shape: Shape = SHAPE, seed: int = 0) -> RoomsNetwork:
    """Random weights everywhere: as initialised, the output layers are zero and the input has no say."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RoomsNetwork(shape)
        for parameter in network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3 / parameter.shape[-1] ** 0.5)
    return network.requires_grad_(False).eval()


def unbounded() -> ChunkMemory:
    return bounded(2**30)


def bounded(*capacity_bytes: int) -> ChunkMemory:
    """Tiers `tier0`, `tier1`, ... of these capacities."""
    tiers = [ResidentTier(f"tier{i}", CPU, capacity, verifies=i > 0) for i, capacity in enumerate(capacity_bytes)]
    return ChunkMemory(tiers, EPOCH)


def walk(chunks: int, *, seed: int = 0, kind: str = "wander") -> Trajectory:
    """A trajectory of so many chunks through a rooms world."""
    return Scene(seed, SHAPE.image).trajectory(kind, chunks * FRAMES_PER_CHUNK, Pace(17.0, 0.1))


@dataclass(frozen=True)
class Tiny:
    """The tiny model and how tests roll it out."""

    model: RoomsModel

    def open(
        self,
        policy: MemoryPolicy | str,
        chunks: int = 8,
        *,
        memory: ChunkMemory | None = None,
        world: int = 0,
        **options: object,
    ) -> Session:
        """A fresh session along a walk of `chunks` chunks, by default in an unbounded memory of its own."""
        policy = PRESETS[policy] if isinstance(policy, str) else policy
        return open_session(self.model, memory or unbounded(), policy, walk(chunks, seed=world), **options)

    def step(self, sessions: Sequence[Session], **options: object) -> list[ChunkRecord]:
        """The next chunk of each."""
        return next(rollout(self.model, sessions, levels=LEVELS, **options))

    def finish(self, *sessions: Session, **options: object) -> list[list[ChunkRecord]]:
        """All chunks to come, per session."""
        steps = list(rollout(self.model, sessions, levels=LEVELS, **options))
        return [[records[b] for records in steps] for b in range(len(sessions))]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny(RoomsModel(random_network(), 1.0, EPOCH, CPU))


@pytest.fixture(scope="session")
def make_network() -> Callable[..., RoomsNetwork]:
    return random_network


@pytest.fixture(scope="session")
def make_memory() -> Callable[..., ChunkMemory]:
    return bounded


@pytest.fixture(scope="session")
def make_walk() -> Callable[..., Trajectory]:
    return walk


@pytest.fixture(scope="session")
def auditing() -> Callable[[], object]:
    return audited
