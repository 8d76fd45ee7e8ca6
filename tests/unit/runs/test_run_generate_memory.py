"""What a run does with the memory that its configuration asks for, from its start to any end."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from worldkv.config import RunConfig
from worldkv.dataset import DatasetReader
from worldkv.errors import ConfigError, OutputError
from worldkv.memory.chunk import KVChunk
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.host import HostTier
from worldkv.runs import generate as runs
from worldkv.runs import memory as run_memory


@pytest.fixture
def with_tier(config, tmp_path) -> Callable[..., RunConfig]:
    """The small run over one tier, disk or durable, in `tmp_path / chunks`."""

    def make(name: str, *overrides: str, run: str = "run", keep: str = "null") -> RunConfig:
        place = {"disk": "folder", "durable": "url"}[name]
        tier = f"{{name: {name}, capacity_mib: 1, {place}: {tmp_path / 'chunks'}, keep: {keep}}}"
        words = (f"memory.tiers=[{tier}]", "policies=worldkv", "worlds.count=2", "trajectory.video_frames=18")
        return config(run, *words, *overrides)

    return make


def chunks_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("??/*.wkv"))


@pytest.mark.parametrize(
    ("name", "keep", "stays"),
    [("disk", "null", False), ("disk", "true", True), ("durable", "null", True), ("durable", "false", False)],
)
def test_a_clean_end_leaves_chunks_where_the_tier_keeps_them(with_tier, tmp_path, name, keep, stays):
    done = runs.generate(with_tier(name, keep=keep))
    assert done.memory.tiers[0].chunks > 0
    assert len(chunks_in(tmp_path / "chunks")) == done.left.tiers[0].chunks
    assert bool(done.left.tiers[0].chunks) == stays


def test_a_second_run_finds_what_the_first_one_kept(with_tier, tmp_path, tree):
    first = runs.generate(with_tier("durable"))
    before = tree(tmp_path / "chunks")
    second = runs.generate(with_tier("durable", run="again"))
    assert second.memory.hits == first.memory.hits > 0
    assert {path: before[path] for path in before if path.endswith(".wkv")} == {
        path: content for path, content in tree(tmp_path / "chunks").items() if path.endswith(".wkv")
    }


def test_chunks_of_a_run_belong_to_its_tenant(with_tier, tmp_path):
    done = runs.generate(with_tier("durable", "memory.tenant=studio-7"))
    found = {KVChunk.from_bytes(path.read_bytes()).tenant for path in chunks_in(tmp_path / "chunks")}
    assert found == {row.tenant for row in done.memory.tenants} == {"studio-7"}
    other = runs.generate(with_tier("durable", run="again"))
    assert other.left.tiers[0].chunks == 2 * done.left.tiers[0].chunks


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OutputError("full"), RuntimeError("ours")])
@pytest.mark.parametrize("name", ["disk", "durable"])
def test_a_run_that_stops_in_the_middle_gives_its_tiers_back(with_tier, tmp_path, name, fault):
    seen = []

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            seen.extend(chunks_in(tmp_path / "chunks"))
            raise fault

    with pytest.raises(type(fault)):
        runs.generate(with_tier(name), progress=stop)
    assert seen
    tier = DiskTier.open(name, tmp_path / "chunks", 2**20)
    assert (len(tier) > 0) == (name == "durable")
    tier.close()


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["output.folder=THERE/file/run"], OutputError),
        (["output.folder=THERE/theirs"], OutputError),
        (["output.folder=THERE/chunks/run"], ConfigError),
        (["worlds.count=1", "memory.tiers=[{name: durable, capacity_mib: 1, url: 'nope://x'}]"], ConfigError),
        (["memory.tiers=[{name: disk, capacity_mib: 1, folder: THERE/theirs}]"], ConfigError),
        (["memory.tiers=[{name: disk, capacity_mib: 1, folder: THERE/file/x}]"], OutputError),
    ],
)
def test_what_is_refused_leaves_every_folder_as_it_was(with_tier, tmp_path, overrides, fault):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("a note")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(fault):
        runs.generate(with_tier("disk", *(text.replace("THERE", str(tmp_path)) for text in overrides)))
    assert sorted(tmp_path.rglob("*")) == before


def test_host_memory_that_was_not_pinned_is_told_once(with_tier, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(runs, "pin_faults", lambda memory: ["tier host: 0 of 9 bytes pinned"])
    runs.generate(with_tier("disk", "batch_sessions=1"), warn=told.append)
    assert told == ["tier host: 0 of 9 bytes pinned"]


def frames_of(config: RunConfig) -> list[np.ndarray]:
    runs.generate(config)
    return [episode.frames_FHWC for episode in DatasetReader.open(config.output.folder / "dataset")]


@pytest.fixture(params=["plain", "slabs"])
def tight(request, monkeypatch) -> None:
    """A MiB is room for five chunks; device and host as they are on the CPU, or as CUDA has them, over plain memory."""

    def slab(name: str, device: torch.device, capacity_bytes: int, *, verifies: bool) -> DeviceTier | HostTier:
        if name == "device":
            return DeviceTier.open(name, device, capacity_bytes)
        return HostTier.open(name, capacity_bytes, headroom=lambda: None)

    monkeypatch.setattr(run_memory, "MIB", 5 * (4096 if request.param == "slabs" else 2240))
    if request.param == "slabs":
        monkeypatch.setattr(run_memory, "ResidentTier", slab)


def test_a_run_shows_the_same_however_small_its_tiers_are(config, tmp_path, tight):
    near = "{name: device, capacity_mib: 1}, {name: host, capacity_mib: 1}"
    far = (
        f"{{name: disk, capacity_mib: 1, folder: {tmp_path / 'disk'}}}, "
        f"{{name: durable, capacity_mib: 9, url: {tmp_path / 'durable'}}}"
    )
    words = ("policies=worldkv", "worlds.count=2", "trajectory.video_frames=36", "output.lossless=true")
    small = config("small", *words, f"memory.tiers=[{near}, {far}]")
    done = runs.generate(small)
    assert all(tier.chunks for tier in done.memory.tiers)
    assert all(tier.hits for tier in done.memory.tiers[:2])
    assert done.memory.hits == done.memory.lookups > 0
    assert [tier.used_bytes for tier in done.left.tiers[:3]] == [0, 0, 0]
    episodes = DatasetReader.open(small.output.folder / "dataset")
    np.testing.assert_array_equal([e.frames_FHWC for e in episodes], frames_of(config("roomy", *words)))
