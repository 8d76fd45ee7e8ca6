"""The library's command tree with what needs a cluster added. Loads neither ray nor torch until a command runs."""

from __future__ import annotations

from cluster import cli_simulate
from cluster.cli import jobs, nodes, rolling
from monitoring import commands
from worldkv.cli import app as library


def main() -> None:
    """Run the command line: 0 when all went well, 2 for a user's mistake, 130 for Ctrl-C."""
    app = library.tree(rolling.rollout)
    app.command("top")(commands.top)
    app.command("simulate")(cli_simulate.simulate)
    app.add_typer(jobs.app, name="jobs")
    app.add_typer(nodes.app, name="cluster")
    library.run(app)
