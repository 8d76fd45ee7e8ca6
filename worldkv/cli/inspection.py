"""`worldkv inspect`: what a folder or file of this project holds, and whether it is sound. Changes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer

MOST_KEYS = 20
FAULTS = 1
"""Exit code of a tier that is not in order: that is no mistake of whoever asks."""


def inspect(
    path: Annotated[
        Path, typer.Argument(help="A run folder, a dataset folder, a folder of a memory tier, or a chunk file.")
    ],
    verify: Annotated[bool, typer.Option("--verify", help="Read and decode everything.")] = False,
) -> None:
    """Show what a run, a dataset, a memory tier or a chunk file holds; with --verify also check every byte of it.

    A tier may be in use meanwhile. Ends with exit code 1 where a tier has faults, with 2 where anything else has.

    `worldkv inspect runs/demo --verify`
    """
    from worldkv.errors import ConfigError

    if (path / "run.yaml").is_file():
        _run(path)
        _dataset(path / "dataset", verify)
    elif (path / "tier.json").is_file():
        _tier(path, verify)
    elif path.is_dir():
        _dataset(path, verify)
    elif path.is_file():
        _chunk(path)
    else:
        raise ConfigError(f"{path}: no such file or folder; expected a run, a dataset, a tier or a chunk file")


def _run(folder: Path) -> None:
    from worldkv.config import load

    config = load(folder / "run.yaml")
    way = config.trajectory.notation or config.trajectory.folder or f"{config.trajectory.video_frames} video frames"
    finished = (folder / "summary.json").is_file() and (folder / "report.html").is_file()
    _table(
        f"run {folder}",
        {
            "worlds": f"{config.worlds.count}, from {config.worlds.first_seed} on",
            "trajectory": f"{config.trajectory.kind}, {way}",
            "policies": ", ".join(config.policies),
            "episodes wanted": config.worlds.count * len(config.policies),
            "state": "finished" if finished else "not finished; go on with --resume",
        },
    )


def _dataset(root: Path, verify: bool) -> None:
    from rich.console import Console

    from worldkv.dataset import DatasetReader
    from worldkv.errors import DatasetError

    reader = DatasetReader.open(root)
    about = reader.describe()
    _table(
        f"dataset {root}",
        {
            "episodes": f"{about.episodes}: {_some(reader.keys)}",
            "video frames": f"{about.frames} ({about.seconds:.0f} s at {about.fps} per second)",
            "videos": ", ".join(f"{name} {w}x{h} {about.codec}" for name, (h, w) in about.videos.items()),
            "columns": ", ".join(about.features),
            "per episode": ", ".join(about.metadata),
            "made by": ", ".join(f"{k}={v}" for k, v in about.provenance.items()),
            "size": f"{about.size_bytes / 2**20:.1f} MiB",
        },
    )
    if not verify:
        return
    faults = reader.verify()
    _print_all(faults)
    if faults:
        raise DatasetError(f"{root}: not as it was written ({len(faults)} found): {faults[0]}")
    Console().print(f"verified: as written, all {about.episodes} of its episodes")


def _some(keys: list[str]) -> str:
    shown = ", ".join(keys[:MOST_KEYS])
    return shown if len(keys) <= MOST_KEYS else f"{shown} and {len(keys) - MOST_KEYS} more"


def _tier(folder: Path, verify: bool) -> None:
    from worldkv.memory.tiers.survey import survey

    found = survey(folder, verify=verify)
    checked = "headers and payloads read" if verify else "headers read; --verify reads payloads too"
    _table(
        f"tier {folder}",
        {
            "tier": found.tier,
            "user id": found.owner,
            "used by": f"process {found.claimed_by}, or was by it last",
            "chunks": f"{found.chunks}, {found.chunk_bytes} bytes ({found.chunk_bytes / 2**20:.1f} MiB)",
            "tenants": _counted(found.tenants),
            "model epochs": _counted(found.epochs),
            "codecs": _counted(found.codecs),
            "unfinished writes": found.unfinished,
            "quarantined": f"{len(found.quarantined)}, {found.quarantined_bytes} bytes",
            "quarantined chunks": _some(found.quarantined),
            "faults": f"{len(found.faults)}; {checked}",
        },
    )
    _print_all(found.faults)
    if found.faults:
        raise SystemExit(FAULTS)


def _counted(chunks: Mapping[str, int]) -> str:
    return _some([f"{name} ({count})" for name, count in sorted(chunks.items())])


def _print_all(lines: Iterable[object]) -> None:
    from rich.console import Console

    for line in lines:
        Console().print(str(line), highlight=False, markup=False, soft_wrap=True)


def _chunk(path: Path) -> None:
    from worldkv.errors import ChunkCorrupt
    from worldkv.memory.format import VERSION, ChunkReader, source_of

    try:
        with source_of(path) as source:
            reader = ChunkReader.open(source)
            reader.verify()
    except ChunkCorrupt as fault:
        raise ChunkCorrupt(f"not a sound chunk file: {fault}") from fault
    header = reader.header
    layers, tokens, heads, channels = header.shape
    payload_bytes, bf16_bytes = layers * header.layer_bytes, 4 * layers * tokens * heads * channels
    _table(
        f"chunk {path}",
        {
            "id": header.checksum,
            "format version": VERSION,
            "place in its rollout": header.index,
            "tenant": header.tenant,
            "model epoch": header.epoch,
            "codec": f"{header.codec}, of {header.dtype}",
            "layers, tokens, heads, channels": f"{layers}, {tokens}, {heads}, {channels}",
            "pruned": "no" if header.token_ids_T3 is None else "yes",
            "latent frames": len(header.c2w_F44),
            "payload": f"{payload_bytes} bytes, {payload_bytes / bf16_bytes:.1%} of bf16",
            "layer": f"{header.layer_bytes} bytes",
            "file": f"{header.total_bytes} bytes, payload from byte {header.payload_offset}",
            "checksums": f"verified: header and {layers} layers",
        },
    )


def _table(title: str, rows: Mapping[str, object]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title, overflow="fold"), title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))
    Console().print(table)
