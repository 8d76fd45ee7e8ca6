"""Which files are fetched and how they are checked, from a hub that is a folder of this test."""

import fcntl
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import pytest

from worldkv.errors import ConfigError, FetchError, OutputError
from worldkv.models.fetch import HubFile, Wanted, fetch, refuse_without_room, verify, wanted_files
from worldkv.models.published import named, of_source, published

FAST, BASE, SECOND = "robbyant/lingbot-world-fast", "robbyant/lingbot-world-base-cam", "lingbot-world-2"
MATRIX = "Skywork/Matrix-Game-2.0"
CONTENTS = {
    FAST: (
        *("README.md", "a.safetensors.index.json", "a-1.safetensors", "a-2.safetensors", "assets/x.png"),
        *("older/a-1.safetensors", "/a.safetensors", "../a.safetensors"),
    ),
    BASE: (
        *("Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"),
        *("google/umt5-xxl/spiece.model", "high_noise_model/a.safetensors", "low_noise_model/a.safetensors"),
        "google/umt5-xxl/..",
    ),
    MATRIX: (
        *("Wan2.1_VAE.pth", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth", "base_model/m.safetensors"),
        *("base_distilled_model/base_distill.safetensors", "base_distilled_model/config.json"),
        *("gta_distilled_model/gta_keyboard2dim.safetensors", "xlm-roberta-large/tokenizer.json"),
        "templerun_distilled_model/templerun_7dim_onlykey.safetensors",
    ),
}


@dataclass
class FolderHub:
    """A `fetch.Hub` that makes each file's content of its name."""

    contents: dict[str, tuple[str, ...]]
    asked: list[str] = field(default_factory=list)
    brought: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    spoilt: str = ""
    """A file that comes as another."""
    broken: str = ""
    """A file of which half comes."""

    def files(self, repository: str) -> tuple[str, list[HubFile]]:
        self.asked.append(repository)
        if repository not in self.contents:
            raise FetchError(f"{repository}: no such repository")
        return "commit-1", [hub_file(name) for name in self.contents[repository]]

    def send(
        self, repository: str, commit: str, file: HubFile, start: int, into: BinaryIO, told: Callable[[int], None]
    ) -> None:
        assert commit == "commit-1"
        self.brought.append(file.name)
        self.starts.append(start)
        data = content(file.name)
        data = data[::-1] if file.name == self.spoilt else data
        rest = data[start:] if file.name != self.broken else data[start : len(data) // 2]
        into.write(rest)
        told(len(rest))
        if file.name == self.broken:
            raise FetchError(f"{repository}, {file.name}: the line broke")


def content(name: str) -> bytes:
    return f"the content of {name}".encode()


def hub_file(name: str) -> HubFile:
    data = content(name)
    if name.endswith((".json", ".md", ".model")):
        return HubFile(name, len(data), None, hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest())
    return HubFile(name, len(data), hashlib.sha256(data).hexdigest(), None)


@pytest.fixture
def hub() -> FolderHub:
    return FolderHub(CONTENTS)


def silent(name: str, done: int, of: int) -> None:
    assert 0 <= done <= of, name


def names(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


def test_only_what_a_model_needs_is_fetched_into_its_official_folder(hub: FolderHub, tmp_path: Path):
    wanted = wanted_files(named("lingbot-world-fast"), tmp_path, hub)
    assert fetch(wanted, hub, progress=silent) == sum(path.stat().st_size for path in tmp_path.rglob("*.*"))
    assert names(tmp_path) == {
        *("lingbot_world_fast/a.safetensors.index.json", "lingbot_world_fast/a-1.safetensors"),
        *("lingbot_world_fast/a-2.safetensors", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"),
        *("google/umt5-xxl/tokenizer.json", "google/umt5-xxl/spiece.model"),
    }
    assert hub.asked == [FAST, BASE]


def test_without_its_encoder_a_model_is_smaller(hub: FolderHub, tmp_path: Path):
    fetch(wanted_files(named("matrix-game-2-universal"), tmp_path, hub, encoder=False), hub, progress=silent)
    assert names(tmp_path) == {
        *("Wan2.1_VAE.pth", "base_distilled_model/base_distill.safetensors", "base_distilled_model/config.json"),
    }


def test_a_repository_stands_for_all_models_in_it():
    assert {model.name for model in of_source(MATRIX)} == {name for name in published() if "matrix" in name}
    assert [model.name for model in of_source(SECOND)] == [SECOND]
    with pytest.raises(ConfigError, match="repository 'a/b': must be one of robbyant/lingbot-world-fast, "):
        of_source("a/b")


def test_what_each_model_says_of_itself_agrees():
    for model in published().values():
        sources = [source["repository"] for source in model.about["downloads"]]
        assert model.about["source"] in sources
        into = model.about["downloads"][0].get("into", "")
        transformer = str(model.about["transformer"])
        files = [f"{into}/{pattern}".lstrip("/") for pattern in model.about["downloads"][0]["files"]]
        assert any(file == transformer or file.startswith(f"{transformer}/") for file in files)


def test_a_repository_that_lacks_a_file_is_told_before_anything_comes(tmp_path: Path):
    hub = FolderHub(CONTENTS | {BASE: CONTENTS[BASE][1:]})
    with pytest.raises(FetchError, match=f"{BASE} at commit-1: has no file Wan2.1_VAE.pth, which lingbot-world-fast"):
        wanted_files(named("lingbot-world-fast"), tmp_path, hub)
    assert hub.brought == []


@pytest.mark.parametrize("spoilt", ["Wan2.1_VAE.pth", "base_distilled_model/config.json"])
def test_a_file_that_came_as_another_is_removed_and_named(hub: FolderHub, tmp_path: Path, spoilt: str):
    hub.spoilt = spoilt
    wanted = wanted_files(named("matrix-game-2-universal"), tmp_path, hub)
    with pytest.raises(FetchError, match=rf"{MATRIX}, {spoilt}: expected digest [0-9a-f]+, found [0-9a-f]+; the file"):
        fetch(wanted, hub, progress=silent)
    assert spoilt not in names(tmp_path)
    hub.spoilt = ""
    fetch(wanted, hub, progress=silent)
    assert (tmp_path / spoilt).read_bytes() == content(spoilt)


def test_a_disk_without_room_is_told_before_anything_comes(tmp_path: Path):
    there = Wanted("a/b", "1", HubFile("x", 3 * 2**30, None, None), tmp_path)
    with pytest.raises(OutputError, match=r"3\.0 GiB are yet to come, the disk has 2\.0 GiB free"):
        refuse_without_room([there], lambda _: 2 * 2**30)
    (tmp_path / "small").write_bytes(b"123")
    refuse_without_room([Wanted("a/b", "1", HubFile("small", 3, None, None), tmp_path)], lambda _: 0)


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"file/in: cannot be written: Not a directory"):
        refuse_without_room([Wanted("a/b", "1", HubFile("x", 3, None, None), tmp_path / "file" / "in")])


def test_a_disk_that_fills_meanwhile_is_an_output_error(hub: FolderHub, tmp_path: Path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hub, "send", full)
    with pytest.raises(OutputError, match=r"Wan2.1_VAE.pth: cannot be written: No space left on device"):
        fetch(wanted_files(named("matrix-game-2-universal"), tmp_path, hub), hub, progress=silent)


def test_a_file_whose_digest_the_hub_does_not_know_passes(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"anything")
    verify(Wanted("a/b", "1", HubFile("x", 8, None, None), tmp_path), tmp_path / "x")


def test_progress_counts_bytes_to_the_end(hub: FolderHub, tmp_path: Path):
    told: list[tuple[int, int]] = []
    wanted = wanted_files(named("matrix-game-2-gta-drive"), tmp_path, hub)
    total = fetch(wanted, hub, progress=lambda name, done, of: told.append((done, of)))
    assert told[0] == (0, total)
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_what_was_cut_off_goes_on_where_it_stopped(hub: FolderHub, tmp_path: Path):
    hub.broken = "Wan2.1_VAE.pth"
    wanted = wanted_files(named("matrix-game-2-universal"), tmp_path, hub)
    with pytest.raises(FetchError, match="the line broke"):
        fetch(wanted, hub, progress=silent)
    assert not (tmp_path / hub.broken).exists()
    half, hub.broken = len(content(hub.broken)) // 2, ""
    fetch(wanted, hub, progress=silent)
    assert hub.starts[:2] == [0, half]
    assert hub.brought.count("Wan2.1_VAE.pth") == 2
    assert names(tmp_path) == {one.path.relative_to(tmp_path).as_posix() for one in wanted}
    brought = len(hub.brought)
    fetch(wanted, hub, progress=silent)
    assert len(hub.brought) == brought


def test_a_file_in_place_that_is_another_one_is_removed(hub: FolderHub, tmp_path: Path):
    wanted = wanted_files(named("matrix-game-2-universal"), tmp_path, hub)
    (tmp_path / "Wan2.1_VAE.pth").write_bytes(content("Wan2.1_VAE.pth")[::-1])
    with pytest.raises(FetchError, match="the file was removed, fetch again"):
        fetch(wanted, hub, progress=silent)
    fetch(wanted, hub, progress=silent)
    assert (tmp_path / "Wan2.1_VAE.pth").read_bytes() == content("Wan2.1_VAE.pth")


def test_two_that_fetch_one_file_do_not_spoil_it(hub: FolderHub, tmp_path: Path):
    wanted = wanted_files(named("matrix-game-2-universal"), tmp_path, hub)
    wanted[0].part.parent.mkdir(parents=True)
    with wanted[0].part.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(FetchError, match="another process is fetching it"):
            fetch(wanted, hub, progress=silent)
