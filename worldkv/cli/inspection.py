"""`worldkv inspect`: what a folder or file of this project holds, and whether it is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def inspect(
    path: Annotated[Path, typer.Argument(help="A run folder, a dataset folder, or a chunk file.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read and decode everything; exit code 2 on a fault.")
    ] = False,
) -> None:
    """Show what a run, a dataset or a chunk file holds; with --verify also check every byte of it."""
    from worldkv.errors import ConfigError

    if path.is_dir():
        dataset = path / "dataset" if (path / "run.yaml").exists() else path
        _dataset(dataset, verify)
    elif path.is_file():
        _chunk(path)
    else:
        raise ConfigError(f"{path}: no such file or folder; expected a run, a dataset or a chunk file")


def _dataset(root: Path, verify: bool) -> None:
    from rich.console import Console

    from worldkv.dataset import DatasetReader
    from worldkv.errors import DatasetError

    reader = DatasetReader.open(root)
    about = reader.describe()
    _table(
        f"dataset {root}",
        {
            "episodes": about.episodes,
            "video frames": f"{about.frames} ({about.seconds:.0f} s at {about.fps} per second)",
            "videos": ", ".join(f"{name} {w}x{h} {about.codec}" for name, (h, w) in about.videos.items()),
            "columns": ", ".join(about.features),
            "per episode": ", ".join(about.metadata),
            "made by": ", ".join(f"{k}={v}" for k, v in about.provenance.items()),
            "size": f"{about.size_bytes / 2**20:.1f} MiB",
        },
    )
    console = Console()
    for key in reader.keys:
        console.print(f"  {key}", highlight=False)
    if verify:
        faults = reader.verify()
        if faults:
            raise DatasetError("\n".join(str(fault) for fault in faults))
        console.print(f"verified: {about.episodes} episodes are as they were written")


def _chunk(path: Path) -> None:
    from worldkv.memory.chunk import KVChunk

    chunk = KVChunk.from_bytes(path.read_bytes())
    layers, tokens, heads, channels = chunk.encoded.shape
    _table(
        f"chunk {path}",
        {
            "id": chunk.id,
            "place in its rollout": chunk.index,
            "tenant": chunk.tenant,
            "model epoch": chunk.epoch,
            "codec": chunk.encoded.codec,
            "layers, tokens, heads, channels": f"{layers}, {tokens}, {heads}, {channels}",
            "pruned": "no" if chunk.token_ids_T3 is None else "yes",
            "latent frames": len(chunk.c2w_F44),
            "size": f"{chunk.nbytes} bytes, {chunk.nbytes / (4 * layers * tokens * heads * channels):.1%} of bf16",
            "checksum": "verified",
        },
    )


def _table(title: str, rows: dict[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    Console().print(table)
