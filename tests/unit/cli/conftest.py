"""The command line called in this process."""

import sys
from collections.abc import Callable

import pytest
from dialogue import RUN, Said

from worldkv.cli import app as command_tree
from worldkv.models.rooms.model import RoomsModel
from worldkv.runs import generate


@pytest.fixture
def worldkv(monkeypatch, capsys) -> Callable[..., Said]:
    """Run the command line with these words, 80 columns wide."""

    def run(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["worldkv", *map(str, words)])
        code = 0
        try:
            command_tree.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Said(code, *capsys.readouterr())

    monkeypatch.setenv("COLUMNS", "80")
    return run


@pytest.fixture
def tiny_rooms(tiny, monkeypatch) -> None:
    """The commands get the tiny model instead of the shipped one."""
    monkeypatch.setattr(generate, "load_model", lambda config: tiny.model)
    monkeypatch.setattr(RoomsModel, "load", lambda *_: tiny.model)


@pytest.fixture
def rollout(worldkv, tiny_rooms, tmp_path) -> Callable[..., Said]:
    """A tiny rollout of one policy into `tmp_path / run`."""
    folder = tmp_path / "run"

    def run(*words: object) -> Said:
        return worldkv("rollout", *RUN, "--set", "policies=sliding", "--set", f"output.folder={folder}", *words)

    return run
