"""A tier's folder looked at from outside, in use or not."""

import os
from dataclasses import replace

import pytest

from worldkv.errors import ConfigError
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.folder import MARKER
from worldkv.memory.tiers.survey import survey


@pytest.fixture
def tier(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    tier = DiskTier.open("disk", tmp_path / "tier", 2**20)
    yield tier
    tier.close()


def files_of(folder):
    """Path -> bytes and times of every file, and the times of every folder."""
    return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in folder.rglob("*")}


def test_it_counts_chunks_bytes_tenants_epochs_and_codecs(tier, new_chunk):
    chunks = [new_chunk(0), new_chunk(1, tenant="lab"), new_chunk(2, epoch="weights-b", codec="int4")]
    for chunk in chunks:
        tier.put(chunk)
    found = survey(tier.folder, verify=True)
    assert (found.tier, found.owner, found.claimed_by) == ("disk", str(os.geteuid()), str(os.getpid()))
    assert (found.chunks, found.chunk_bytes) == (3, sum(chunk.header.total_bytes for chunk in chunks))
    assert found.tenants == {"default": 2, "lab": 1}
    assert found.epochs == {"weights-a": 2, "weights-b": 1}
    assert found.codecs == {"fp32": 2, "int4": 1}
    assert (found.unfinished, found.quarantined, found.faults) == (0, [], [])


def test_it_changes_nothing_and_works_beside_the_process_that_holds_the_lock(tier, new_chunk):
    tier.put(new_chunk(0))
    (tier.folder / "00" / f"{0:032x}.part").write_bytes(b"half a chunk")
    before = files_of(tier.folder)
    assert survey(tier.folder, verify=True).unfinished == 1
    assert files_of(tier.folder) == before
    with pytest.raises(ConfigError, match="in use"):
        DiskTier.open("disk", tier.folder, 2**20)
    tier.put(new_chunk(1))
    assert survey(tier.folder).chunks == 2


def test_damage_to_a_payload_is_found_only_by_reading_it(tier, new_chunk):
    chunk = new_chunk(0)
    tier.put(chunk)
    (path,) = tier.folder.rglob(f"{chunk.id}.wkv")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert survey(tier.folder).faults == []
    (fault,) = survey(tier.folder, verify=True).faults
    assert fault.startswith(f"{path}: checksum of layer 1: ")


def test_every_kind_of_fault_is_named_with_its_file(tier, new_chunk):
    chunks = [new_chunk(i) for i in range(4)]
    for chunk in chunks:
        tier.put(chunk)
    cut, renamed, moved, sound = (next(tier.folder.rglob(f"{chunk.id}.wkv")) for chunk in chunks)
    cut.write_bytes(cut.read_bytes()[:-1])
    renamed = renamed.rename(renamed.with_name(f"{renamed.parent.name}{0:030x}.wkv"))
    elsewhere = next(folder for folder in sorted(tier.folder.glob("??")) if folder != moved.parent)
    moved = moved.rename(elsewhere / moved.name)
    faults = survey(tier.folder).faults
    assert len(faults) == 3
    told = "\n".join(faults)
    assert f"{cut}: truncated" in told
    assert f"{renamed}: holds chunk {chunks[1].id}" in told
    assert f"{moved}: lies in the wrong folder" in told
    assert str(sound) not in told


def test_quarantined_chunks_are_named_and_are_no_fault(tier, new_chunk):
    chunk = new_chunk(0)
    tier.put(chunk)
    tier.quarantine(chunk.id)
    found = survey(tier.folder, verify=True)
    assert (found.chunks, found.quarantined, found.faults) == (0, [chunk.id], [])
    assert found.quarantined_bytes == chunk.header.total_bytes


@pytest.mark.parametrize("marker", ["", "[]", '{"tier": "disk"}', '{"what": "other", "version": 1, "tier": "disk"}'])
def test_a_marker_that_is_not_ours_is_a_fault_and_the_chunks_are_still_counted(tier, new_chunk, marker):
    tier.put(new_chunk(0))
    (tier.folder / MARKER).write_text(marker)
    found = survey(tier.folder)
    assert found.chunks == 1
    (fault,) = found.faults
    assert str(tier.folder / MARKER) in fault


def test_a_chunk_that_goes_while_the_folder_is_read_is_no_fault(tier, new_chunk, monkeypatch):
    gone, stays = new_chunk(0), new_chunk(1)
    tier.put(gone)
    tier.put(stays)
    listed = os.listdir

    def names(folder):
        found = listed(folder)
        tier.remove(gone.id)
        return found

    monkeypatch.setattr(os, "listdir", names)
    found = survey(tier.folder, verify=True)
    assert (found.chunks, found.faults) == (1, [])


def test_objects_copied_from_a_durable_tier_lie_beside_the_marker(tmp_path, new_chunk):
    chunk = new_chunk(0)
    (tmp_path / MARKER).write_text('{"what": "worldkv chunk tier", "version": 1, "tier": "durable"}')
    (tmp_path / f"{chunk.id}.wkv").write_bytes(chunk.to_bytes())
    (tmp_path / f"{0:032x}.wkv").write_bytes(replace(chunk, checksum="").to_bytes())
    found = survey(tmp_path, verify=True)
    assert (found.tier, found.chunks, len(found.faults)) == ("durable", 2, 1)
