"""A tier's folder is its own: who is refused, and that nothing of anybody else's is touched."""

import errno
import json
import os
from contextlib import suppress

import pytest
from faulty_disk import FaultyDisk, PowerCut

from worldkv.errors import ConfigError, OutputError
from worldkv.memory.tiers.disk import DiskTier
from worldkv.memory.tiers.filesystem import PUT_POINTS, FailPoint


@pytest.fixture
def open_tier(tmp_path):
    """Open a tier in the test's folder; closed at the end."""
    tiers = []

    def opened(disk=None, name="disk", folder=tmp_path / "tier"):
        tiers.append(DiskTier.open(name, folder, 2**20, disk))
        return tiers[-1]

    yield opened
    for tier in tiers:
        tier.close()


def test_a_folder_of_other_files_is_refused_untouched(open_tier, tmp_path):
    folder = tmp_path / "tier"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=rf"folder {folder} holds 'thesis.tex'.*name a folder of its own.*/worldkv"):
        open_tier()
    assert os.listdir(folder) == ["thesis.tex"]


def test_another_tiers_folder_is_refused(open_tier):
    open_tier(name="nvme").close()
    with pytest.raises(ConfigError, match="belongs to another tier: name 'nvme', not 'disk'; name another folder"):
        open_tier()


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("uid", 4242, "user id 4242"), ("version", 2, "version 2"), ("what", "mail", "kind 'mail'")],
)
def test_a_marker_of_someone_else_is_refused(open_tier, tmp_path, key, value, said):
    open_tier().close()
    marker = tmp_path / "tier" / "tier.json"
    marker.write_text(json.dumps(json.loads(marker.read_text()) | {key: value}))
    with pytest.raises(ConfigError, match=f"belongs to another tier: {said}, not"):
        open_tier()
    for foreign in (b"{", b"\x89PNG\r\n\xff\xfe"):
        marker.write_bytes(foreign)
        with pytest.raises(ConfigError, match=r"tier\.json is damaged"):
            open_tier()


def test_two_at_once_are_refused_and_the_holder_is_named(open_tier):
    tier = open_tier()
    with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}; end that, or name another folder"):
        open_tier()
    tier.close()
    tier.close()
    open_tier()


def test_a_folder_that_is_a_file_or_cannot_be_written_is_an_output_error(open_tier, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=f"tier disk: folder {tmp_path / 'file'} cannot be used"):
        open_tier(folder=tmp_path / "file")
    disk = FaultyDisk()
    disk.failing = {FailPoint.CREATE: errno.EROFS}
    with pytest.raises(OutputError, match="cannot be used: Read-only file system; name another folder"):
        open_tier(disk=disk)
    open_tier()


def test_a_crash_while_the_folder_is_claimed_can_be_repeated(open_tier):
    for point in PUT_POINTS:
        disk = FaultyDisk()
        disk.cut_at = point
        with suppress(PowerCut):
            open_tier(disk=disk).close()
    assert open_tier().check() == []
