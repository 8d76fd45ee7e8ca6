"""`worldkv cluster`: nodes of this machine, and the cluster that they are in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from monitoring import commands

app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="Clusters: start, look at, drain, end.")
app.add_typer(commands.monitor, name="monitor")
DEFAULT_ADDRESS = "127.0.0.1:6379"
AddressOption = Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the cluster's head.")]
TokenOption = Annotated[
    Path | None, typer.Option("--token-file", help="Ray's token, without which nobody gets in; made where it is not.")
]


@app.command("up")
def up(
    host: Annotated[str, typer.Option(help="Address of this machine, as the other nodes reach it.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the head.")] = 6379,
    join: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Join the cluster of that head instead of starting one.")
    ] = None,
    tenants: Annotated[Path | None, typer.Option(help="YAML file of tenants and their quotas.")] = None,
    token_file: TokenOption = None,
    cpus: Annotated[int | None, typer.Option(min=0, help="None: all cores.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="None: all that Ray finds.")] = None,
    store_mib: Annotated[int, typer.Option("--store-mib", min=80, help="Object store of this node.")] = 256,
    domain: Annotated[
        str | None, typer.Option(metavar="NAME", help="What fails together with this node, such as its rack.")
    ] = None,
) -> None:
    """Start a node in the background: the head of a new cluster, or, with --join, one more.

    `worldkv cluster up --host 10.0.0.7 --token-file ~/.worldkv/token --tenants configs/cluster/tenants.yaml`
    """
    from cluster import environment, nodes
    from cluster.admission import TenantsConfig
    from worldkv.config import load_as
    from worldkv.errors import ClusterError, ConfigError

    if join is not None and tenants is not None:
        raise ConfigError(f"--tenants {tenants}: the head keeps the tenants; leave it out with --join")
    config = load_as(TenantsConfig, tenants)
    if token_file is None and not environment.is_loopback(host) and "RAY_AUTH_MODE" not in os.environ:
        raise ClusterError(f"--host {host}: whoever reaches it could run anything here; give it a --token-file")
    _authenticate(token_file, join or host)
    wanted = nodes.NodeWanted(host, None if join else port, join, cpus, gpus, store_mib, domain)
    address = join or f"{host}:{port}"
    if join is not None and environment.is_loopback(join.partition(":")[0]):
        raise ClusterError(f"--join {join}: a head on the loopback device stays alone; start it with another --host")
    if join is not None:
        environment.check_address(join)
    elif environment.listens(address):
        raise ClusterError(f"{address}: something listens there already; choose another --port")
    node = nodes.start(wanted, os.environ)
    if join is None:
        _open_gate(node, config)
    typer.echo(f"node on {host} is up; use it by: worldkv rollout --address {address}")


@app.command("status")
def status(address: AddressOption = DEFAULT_ADDRESS, token_file: TokenOption = None) -> None:
    """Show the nodes of a cluster, and what each tenant has and waits for.

    `worldkv cluster status --address 10.0.0.7:6379`
    """
    from rich.console import Console
    from rich.table import Table

    _authenticate(token_file, address)
    from cluster.connection import every_node, joined
    from cluster.gate import answer, find_gate
    from cluster.nodes import DOMAIN_LABEL

    nodes, tenants = Table(title=f"cluster {address}", title_justify="left"), Table()
    for name in ("node", "address", "state", "CPUs", "GPUs", "domain"):
        nodes.add_column(name)
    for name in ("tenant", "sessions", "of", "waiting batches", "oldest waits s", "others waited s"):
        tenants.add_column(name)
    with joined(address):
        keeper = find_gate()
        leaving: set[str] = set() if keeper is None else answer(keeper.draining.remote())
        for node in every_node():
            state = "dead" if not node["Alive"] else "draining" if node["NodeID"] in leaving else "alive"
            counts = [f"{node['Resources'].get(kind, 0):g}" for kind in ("CPU", "GPU")]
            domain = node.get("Labels", {}).get(DOMAIN_LABEL, "-")
            nodes.add_row(node["NodeID"][:12], node["NodeManagerAddress"], state, *counts, domain)
        for one in [] if keeper is None else answer(keeper.figures.remote()):
            limit = "-" if one.limit is None else str(one.limit)
            waits = f"{one.oldest_wait_seconds:.0f}", f"{one.waits.seconds / max(1, one.waits.count):.1f}"
            tenants.add_row(one.tenant, str(one.sessions), limit, str(one.waiting), *waits)
    Console().print(nodes)
    if tenants.row_count:
        Console().print(tenants)


@app.command("drain")
def drain(
    node: Annotated[str, typer.Argument(help="Id of the node, or its start, as `worldkv cluster status` shows it.")],
    address: AddressOption = DEFAULT_ADDRESS,
    token_file: TokenOption = None,
) -> None:
    """Let all jobs leave a node: batches there are written down and go on elsewhere.

    `worldkv cluster drain 4f1c9a`
    """
    _authenticate(token_file, address)
    from cluster.connection import joined, living_nodes
    from cluster.gate import answer, find_gate
    from worldkv.errors import ClusterError

    with joined(address):
        found = [one["NodeID"] for one in living_nodes() if one["NodeID"].startswith(node)]
        if len(found) != 1:
            known = ", ".join(one["NodeID"][:12] for one in living_nodes())
            raise ClusterError(f"node {node!r}: {len(found)} living nodes are called so; there are {known}")
        keeper = find_gate()
        if keeper is None:
            raise ClusterError(f"cluster {address}: has no gate, it was not started by `worldkv cluster up`")
        answer(keeper.drain.remote(found[0]))
    typer.echo(f"node {found[0][:12]}: all jobs leave it now, at their next chunk")


@app.command("down")
def down() -> None:
    """End all nodes that were started on this machine; jobs there are resumed elsewhere, or later.

    `worldkv cluster down`
    """
    from cluster import nodes

    found = nodes.started()
    # The head last: others would look for it.
    for node in sorted(found, key=lambda one: one.head):
        nodes.stop(node)
        typer.echo(f"node of {node.address} ended")
    if not found:
        typer.echo("no node of yours runs on this machine")


def _authenticate(token_file: Path | None, address: str) -> None:
    from cluster import environment, nodes

    if token_file is not None:
        nodes.make_token(token_file)
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_file.absolute())
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ.pop("RAY_AUTH_TOKEN", None)
    environment.for_joining(address)


def _open_gate(node: object, config: object) -> None:
    from cluster import nodes
    from cluster.admission import TenantsConfig
    from cluster.connection import joined
    from cluster.gate import open_gate

    assert isinstance(node, nodes.Node)
    assert isinstance(config, TenantsConfig)
    try:
        with joined(node.address):
            open_gate(config)
    except BaseException:
        nodes.stop(node)
        raise
