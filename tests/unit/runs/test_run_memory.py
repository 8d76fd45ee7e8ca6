"""The memory that a configuration asks for: refused before anything is written, or opened whole."""

import fcntl
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from worldkv.config import RunConfig, load
from worldkv.errors import ConfigError, OutputError, TransferError, WorldKVError
from worldkv.geometry import KVGeometry
from worldkv.memory.chunk import KVChunk, make_chunk
from worldkv.memory.codec import CODECS
from worldkv.memory.crossing import Crossing
from worldkv.memory.policy import parse_policy
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.headroom import Headroom
from worldkv.memory.tiers.host import HostTier
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.memory.tiers.slab import HostSlab
from worldkv.runs import memory as run_memory
from worldkv.runs.memory import open_memory, pin_faults
from worldkv.runs.memory_check import MIB, Probe, check, chunk_bytes

GEOMETRY = KVGeometry(
    layers=8, heads=8, head_dim=64, rows=16, columns=16, chunk_latent_frames=3, trained_latent_frames=48
)
MODEL = SimpleNamespace(device=torch.device("cpu"), epoch="weights-a", geometry=GEOMETRY)
ON_CUDA = SimpleNamespace(device=torch.device("cuda:0"), epoch="weights-a", geometry=GEOMETRY)
ROOMY = Probe(lambda: None, lambda device: Headroom(2**40, "a large device"))
ALL = [
    "{name: device, capacity_mib: 64}",
    "{name: host, capacity_mib: 65}",
    "{name: disk, capacity_mib: 66, folder: DISK}",
    "{name: durable, capacity_mib: 67, url: DURABLE}",
]


@pytest.fixture
def make_config(tmp_path) -> Callable[..., RunConfig]:
    """A run with these tiers; DISK and DURABLE stand for folders below `tmp_path`."""

    def make(tiers: list[str] = ALL, *overrides: str, folder: Path = tmp_path / "disk") -> RunConfig:
        text = f"memory.tiers=[{', '.join(tiers)}]".replace("DISK", str(folder))
        text = text.replace("DURABLE", str(tmp_path / "durable"))
        return load(None, [text, f"output.folder={tmp_path / 'run'}", *overrides])

    return make


def refused(config: RunConfig, *, policies=("worldkv",), model=MODEL, chunks=32, probe=ROOMY) -> str:
    with pytest.raises((ConfigError, OutputError)) as fault:
        check(config, model, [parse_policy(text) for text in policies], chunks, probe)
    assert "\n" not in str(fault.value)
    return str(fault.value)


def accepted(config: RunConfig, *, policies=("worldkv",), model=MODEL, chunks=32, probe=ROOMY) -> None:
    check(config, model, [parse_policy(text) for text in policies], chunks, probe)


def new_chunk(index: int = 0, tenant: str = "default") -> KVChunk:
    k = torch.full((1, 4, 2, 8), float(index))
    poses = torch.eye(4).expand(3, 4, 4).numpy()
    encoded = CODECS["fp32"].encode(k, k)
    return make_chunk(tenant=tenant, epoch="weights-a", index=index, c2w_F44=poses, encoded=encoded)


def test_a_tier_smaller_than_one_window_is_refused_with_what_to_do(make_config):
    tiers = ["{name: device, capacity_mib: 64}", "{name: host, capacity_mib: 1}"]
    words = refused(make_config(tiers), policies=("sliding", "worldkv"))
    assert "memory.tiers.1.capacity_mib = 1: too little in tier host for the 4 chunks" in words
    assert "window of policy worldkv brings back; give it at least 13, or leave it out" in words
    accepted(make_config(["{name: host, capacity_mib: 13}"]))


def test_a_limit_smaller_than_one_window_is_refused_for_the_runs_own_tenant(make_config):
    shares = "memory.shares=[{tenant: default, tier: durable, limit_mib: 12}]"
    words = refused(make_config(ALL, shares))
    assert "memory.shares.0.limit_mib = 12: too little in tier durable for the 4 chunks" in words
    accepted(make_config(ALL, shares, "memory.tenant=b"))


def test_policies_that_bring_nothing_back_need_no_memory(make_config):
    accepted(make_config(["{name: host, capacity_mib: 1}"]), policies=("sliding", "full"))


@pytest.mark.parametrize("policy", ["worldkv", "worldkv/codec=fp32", "worldkv/keep=0.5"])
def test_a_chunk_is_counted_as_its_file_is_to_a_page(tmp_path, policy):
    wanted = parse_policy(policy)
    tokens, ids = GEOMETRY.tokens_per_chunk, None
    if wanted.pruning is not None:
        tokens = 256 + 2 * wanted.pruning.kept_per_frame(256)
        ids = torch.zeros(tokens, 3, dtype=torch.int16).numpy()
    k = torch.zeros(8, tokens, 8, 64)
    chunk = make_chunk(
        tenant="t" * 64,
        epoch="e" * 32,
        index=10**6,
        c2w_F44=torch.eye(4).expand(3, 4, 4).numpy(),
        encoded=CODECS[wanted.codec].encode(k, k),
        token_ids_T3=ids,
    )
    tier = DiskTier.open("disk", tmp_path / "disk", 2**30)
    assert 0 <= chunk_bytes(GEOMETRY, wanted) - tier.cost_bytes(chunk) <= 4096
    tier.close()


def spoil_owner(folder: Path) -> None:
    (folder / "thesis.tex").write_text("years of work")


def spoil_marker(folder: Path) -> None:
    marker = {"what": "worldkv chunk tier", "version": 1, "uid": os.geteuid() + 1, "tier": "disk"}
    (folder / "tier.json").write_text(json.dumps(marker))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_owner, "holds 'thesis.tex', which no tier wrote, and 0 more; name a folder of its own, such as"),
        (spoil_marker, "belongs to another tier: user id .*; name another folder"),
        (lambda folder: (folder / "tier.json").write_text("{"), "tier.json is damaged .*; name another folder"),
    ],
)
@pytest.mark.parametrize("name", ["disk", "durable"])
def test_a_place_of_somebody_else_is_refused_untouched(make_config, tmp_path, tree, spoil, words, name):
    (tmp_path / name).mkdir()
    spoil(tmp_path / name)
    before = tree(tmp_path)
    key = {"disk": r"2\.folder", "durable": r"3\.url"}[name]
    with pytest.raises(ConfigError, match=rf"^memory\.tiers\.{key} = {tmp_path / name}: tier {name}: .*{words}"):
        accepted(make_config())
    assert tree(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


def test_a_folder_in_use_is_refused(make_config, tmp_path):
    tier = DiskTier.open("disk", tmp_path / "disk", 2**20)
    assert f"in use by process {os.getpid()}; end that, or name another folder" in refused(make_config())
    tier.close()
    accepted(make_config())
    with (tmp_path / "disk/lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the check itself holds it no longer


def test_a_folder_that_cannot_be_made_is_refused(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    said = refused(make_config(folder=tmp_path / "file/disk"))
    assert said.startswith(
        f"memory.tiers.2.folder = {tmp_path}/file/disk: tier disk: folder {tmp_path}/file/disk cannot"
    )
    assert said.endswith(f"{tmp_path}/file is a file; name another folder")


def test_a_folder_that_cannot_be_written_is_refused(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    said = refused(make_config())
    assert said.endswith(f"disk cannot be used: {tmp_path} cannot be written; name another folder")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nope://b/w", "cannot be opened: Protocol not known: nope; name another place"),
        ("memory://theirs", "/theirs holds '/theirs/thesis.tex', which no tier wrote; name a place of its own"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_untouched(make_config, url, words):
    store = MemoryFileSystem()
    store.pipe_file("/theirs/thesis.tex", b"years of work")
    said = refused(make_config([f"{{name: durable, capacity_mib: 64, url: '{url}'}}"]))
    assert said.startswith(f"memory.tiers.0.url = {url}: tier durable: ")
    assert words in said
    assert store.find("/theirs") == ["/theirs/thesis.tex"]


def test_a_store_that_is_read_only_is_refused_in_one_line(make_config, monkeypatch):
    def read_only(*_: object, **__: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", read_only)
    with pytest.raises(
        OutputError, match=r"memory\.tiers\.0\.url = memory://new: tier durable: /new cannot be written"
    ):
        open_memory(make_config(["{name: durable, capacity_mib: 64, url: 'memory://new'}"]).memory, MODEL)


def test_an_empty_place_is_accepted_and_left_as_it_is(make_config, tmp_path):
    accepted(make_config())
    accepted(make_config(["{name: durable, capacity_mib: 64, url: 'memory://nothing-here'}"]))
    assert list(tmp_path.iterdir()) == []
    assert not MemoryFileSystem().exists("/nothing-here")


@pytest.mark.parametrize(
    ("disk", "words"),
    [
        (
            "run/chunks",
            "memory.tiers.2.folder = {0}/run/chunks: lies in output.folder = {0}/run; name a folder outside",
        ),
        ("run", "lies in"),
        ("", "output.folder = {0}/run: lies in memory.tiers.2.folder = {0}; name a folder outside it"),
        ("durable/x/..", "lies in"),
    ],
)
def test_folders_that_lie_in_one_another_are_refused(make_config, tmp_path, disk, words):
    assert words.format(tmp_path) in refused(make_config(folder=tmp_path / disk))


def test_pinned_memory_must_be_had_whole_on_a_device_and_on_its_host(make_config):
    host = Headroom(64 * MIB, "memory.max = 67108864 in /sys/fs/cgroup")
    said = refused(make_config(), model=ON_CUDA, probe=Probe(lambda: host, ROOMY.device))
    assert said == (
        "memory.tiers.1.capacity_mib = 65: tier host would take 65 MiB of host memory, but only 64 MiB can be had "
        "(memory.max = 67108864 in /sys/fs/cgroup); lower it to at most that, leave the tier out, or raise the limit"
    )
    said = refused(make_config(), model=ON_CUDA, probe=Probe(ROOMY.host, lambda device: Headroom(MIB, f"of {device}")))
    assert "memory.tiers.0.capacity_mib = 64: tier device would take 64 MiB of memory of cuda:0, but only 1 MiB" in said


def test_plain_memory_must_be_had_as_far_as_the_run_fills_it(make_config):
    tiers = ["{name: device, capacity_mib: 64}", "{name: host, capacity_mib: 1000000}"]
    probe = Probe(lambda: Headroom(200 * MIB, "MemAvailable"), ROOMY.device)
    accepted(make_config(tiers, "batch_sessions=1"), probe=probe)
    said = refused(make_config(tiers, "batch_sessions=4"), probe=probe)
    assert "memory.tiers.1.capacity_mib = 1000000: tier host would take 346 MiB of host memory, but only 136" in said
    accepted(make_config(tiers, "batch_sessions=4"), probe=probe, policies=("sliding",))


def test_tiers_stand_in_the_order_of_the_configuration_with_their_rules(make_config):
    tiers = [
        "{name: device, capacity_mib: 2, eviction: cost}",
        "{name: host, capacity_mib: 3, low_watermark_ratio: 0.5, high_watermark_ratio: 0.9, detail: [int4/keep=0.5]}",
        *ALL[2:],
    ]
    shares = "memory.shares=[{tenant: a, tier: host, reserved_mib: 1, limit_mib: 2}]"
    memory = open_memory(make_config(tiers, "memory.tenant=a", shares).memory, MODEL)
    assert [(tier.name, tier.capacity_bytes // MIB) for tier in memory.tiers] == [
        ("device", 2),
        ("host", 3),
        ("disk", 66),
        ("durable", 67),
    ]
    assert [rules.keeps_copies for rules in memory.rules] == [False, False, True, True]
    assert [rules.keeps_released for rules in memory.rules] == [False, False, False, True]
    host = memory.rules[1]
    assert (host.high_ratio, host.low_ratio, host.ladder.rungs[0].keep_ratio) == (0.9, 0.5, 0.5)
    assert (host.shares.share("a").reserved_bytes, host.shares.share("a").limit_bytes) == (MIB, 2 * MIB)
    assert host.shares.share("b").limit_bytes is None
    memory.close()


def test_a_tier_that_was_made_outside_takes_its_place_and_is_closed_with_the_memory(make_config, monkeypatch):
    tiers = [ALL[0], "{name: node, capacity_mib: 64}", ALL[3]]
    node, closed = ResidentTier("node", torch.device("cpu"), 64 * MIB), []
    monkeypatch.setattr(node, "close", lambda: closed.append(node))
    memory = open_memory(make_config(tiers).memory, MODEL, {"node": node})
    assert memory.tiers[1] is node
    rules = memory.rules[1]
    assert (rules.keeps_copies, rules.keeps_released, rules.copies_at_once) == (True, True, True)
    assert not any(rules.copies_at_once for rules in (memory.rules[0], memory.rules[2]))
    chunk_id = memory.admit(new_chunk())
    assert [chunk_id in tier for tier in memory.tiers] == [True, True, False]
    memory.release([chunk_id])
    assert [chunk_id in tier for tier in memory.tiers] == [False, True, False]
    memory.close()
    assert closed == [node]


def test_a_node_tier_without_a_cluster_is_refused(make_config):
    with pytest.raises(ConfigError, match="tier node: there is one only in a cluster; leave it out, or run in one"):
        open_memory(make_config([ALL[0], "{name: node, capacity_mib: 64}"]).memory, MODEL)


@pytest.mark.parametrize("fault", [OutputError("gone"), TransferError("gone"), KeyboardInterrupt()])
def test_what_was_opened_is_closed_when_a_later_tier_cannot_be(make_config, tmp_path, monkeypatch, fault):
    def fail(*_: object) -> None:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(run_memory, "open_durable_tier", fail)
        with pytest.raises(type(fault)):
            open_memory(make_config().memory, MODEL)
    DiskTier.open("disk", tmp_path / "disk", 2**20).close()


def test_what_cannot_be_read_at_the_start_closes_all_tiers_again(make_config, tmp_path, monkeypatch):
    closed: Counter[str] = Counter()
    real = DiskTier.close

    def close(self: DiskTier) -> None:
        closed[self.name] += 1
        real(self)

    def unreadable(self: object) -> None:
        raise TransferError("tier disk: broken")

    monkeypatch.setattr(run_memory.ChunkMemory, "adopt", unreadable)
    monkeypatch.setattr(DiskTier, "close", close)
    with pytest.raises(WorldKVError, match="tier disk: broken"):
        open_memory(make_config().memory, MODEL)
    assert closed == {"disk": 1, "durable": 1}


def test_chunks_outlive_a_memory_where_the_tier_keeps_them_and_nowhere_else(make_config):
    chunks = [new_chunk(i) for i in range(3)]
    first = open_memory(make_config().memory, MODEL)
    for chunk in chunks:
        first.admit(chunk)
    for level in range(3):
        first.demote([chunk.id for chunk in chunks[level:]])
    assert [len(tier) for tier in first.tiers] == [0, 1, 1, 1]
    first.release([chunk.id for chunk in chunks])
    assert [len(tier) for tier in first.tiers] == [0, 0, 0, 1]
    assert first.check_integrity([]) == []
    first.close()

    second = open_memory(make_config().memory, MODEL)
    second.admit_dropped([chunks[2].id])  # by a session that knows of it, without its bytes
    (found,) = second.fetch([chunks[2].id])
    assert found.id == chunks[2].id
    assert [tier.hits for tier in second.stats().tiers] == [0, 0, 0, 1]
    assert second.check_integrity() == []
    second.close()


def test_a_tier_that_keeps_nothing_starts_empty_whatever_a_killed_run_left(make_config, tmp_path):
    for name in ("disk", "durable"):
        tier = DiskTier.open(name, tmp_path / name, 2**20)
        tier.put(new_chunk())
        tier.close()
    memory = open_memory(make_config().memory, MODEL)
    assert [len(tier) for tier in memory.tiers] == [0, 0, 0, 1]
    memory.close()


def test_what_is_kept_makes_way_for_new_chunks(make_config):
    memory = open_memory(make_config(["{name: durable, capacity_mib: 1, url: DURABLE}"]).memory, MODEL)
    cost = memory.tiers[0].cost_bytes(new_chunk())
    fitting = MIB // cost
    for index in range(fitting + 5):
        memory.admit(new_chunk(index))
        memory.release([new_chunk(index).id])
    assert len(memory.tiers[0]) == fitting
    assert new_chunk(0).id not in memory.tiers[0]
    assert memory.check_integrity([]) == []
    memory.close()


@pytest.fixture
def as_on_cuda(monkeypatch) -> list[tuple[object, ...]]:
    """Slabs and the link between them as CUDA has them, over plain memory; what they were opened with."""
    made: list[tuple[object, ...]] = []
    link = Crossing.open

    def device(name: str, device: torch.device, capacity_bytes: int) -> DeviceTier:
        made.append((name, device, capacity_bytes))
        return DeviceTier(name, HostSlab(memoryview(bytearray(capacity_bytes))))

    def host(name: str, capacity_bytes: int) -> HostTier:
        made.append((name, capacity_bytes))
        return HostTier(name, memoryview(bytearray(capacity_bytes)))

    def crossing(device: torch.device, near: DeviceTier, far: HostTier) -> Crossing:
        made.append(("link", device, near.name, far.name))
        return link(MODEL.device, near, far)

    monkeypatch.setattr(DeviceTier, "open", device)
    monkeypatch.setattr(HostTier, "open", host)
    monkeypatch.setattr(Crossing, "open", crossing)
    return made


def test_with_cuda_the_near_tiers_are_slabs_of_the_whole_capacity_with_a_link(make_config, as_on_cuda):
    cuda = ON_CUDA.device
    memory = open_memory(make_config().memory, ON_CUDA)
    assert as_on_cuda == [("device", cuda, 64 * MIB), ("host", 65 * MIB), ("link", cuda, "device", "host")]
    chunk = new_chunk()
    memory.admit(chunk)
    for level in range(4):
        assert [len(tier) for tier in memory.tiers] == [at == level for at in range(4)]
        memory.demote([chunk.id])
    (found,) = memory.fetch([chunk.id])
    assert found.to_bytes() == chunk.to_bytes()
    assert [tier.hits for tier in memory.stats().tiers] == [0, 0, 0, 1]
    del found
    assert memory.check_integrity() == []
    memory.close()


@pytest.mark.parametrize("tiers", [ALL[:1], ALL[1:2]])
def test_one_slab_alone_needs_no_link(make_config, as_on_cuda, tiers):
    open_memory(make_config(tiers).memory, ON_CUDA).close()
    assert len(as_on_cuda) == 1


def test_memory_that_could_not_be_pinned_is_told_with_what_to_do(make_config):
    class Refuses:
        def pin(self, address: int, nbytes: int) -> None:
            raise RuntimeError("CUDA error 304 of cudaHostRegister or cudaHostUnregister")

        def unpin(self, address: int) -> None: ...

    memory = open_memory(make_config(ALL[:1]).memory, MODEL)
    assert pin_faults(memory) == []
    tier = HostTier("host", memoryview(bytearray(2**20)), Refuses())
    tier.pin()
    memory.tiers = (tier,)
    (told,) = pin_faults(memory)
    assert told.startswith("tier host: 0 of 1048576 bytes pinned, then: CUDA error 304")
    assert told.endswith("lower its capacity_mib, or raise the limit on locked memory (ulimit -l)")
    memory.close()
