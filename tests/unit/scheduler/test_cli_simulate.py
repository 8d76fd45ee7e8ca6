import json

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli_simulate import simulate
from worldkv.errors import ConfigError


@pytest.fixture
def command():
    app = typer.Typer()
    app.command("simulate")(simulate)
    return lambda *arguments: CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_it_prints_a_table_and_writes_all_figures(command, tmp_path):
    target = tmp_path / "figures.json"
    shape = ("--sessions", "2", "--chunks", "20", "--workers-per-node", "2", "--device-chunks", "6")
    result = command(*shape, "--scripted-share", "1", "--strategies", "lru,planned", "--json", str(target))
    assert result.exit_code == 0
    assert "planned" in result.output
    assert json.loads(target.read_text())["planned"]["on_time_ratio"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (("--kind", "fly"), "kind='fly'"),
        (("--trace", "/nowhere/at.all"), "cannot be read"),
        (("--disk-bytes-per-second", "0"), "disk=0.0"),
        (("--strategies", ""), r"\[''\]"),
    ],
)
def test_a_users_mistake_is_an_error_of_ours_for_the_command_tree_to_tell(command, arguments, fault):
    with pytest.raises((ConfigError, ValueError), match=fault):
        command(*arguments)
