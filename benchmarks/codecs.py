"""Speed and error of every codec. The error is of keys and values that the rooms model makes of true videos.

    python benchmarks/codecs.py --device cpu --threads 1,2 --out benchmarks/codecs_cpu_202611

Needs torch, numpy, scipy, msgpack and xxhash; prints the tables and, with --out, writes them as .md and .json.

Shapes: L layers, T tokens, H heads, D head dim.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

import torch
from recording import circumstances, markdown_table, save
from torch import Tensor

from worldkv.memory.codec import CODECS, Codec
from worldkv.memory.encoded import Shape
from worldkv.memory.policy import PRESETS
from worldkv.memory.scaled import ScaledCodec
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.rooms.model import RoomsModel
from worldkv.models.rooms.paths import Pace
from worldkv.models.rooms.scene import Scene
from worldkv.rollout import rollout
from worldkv.session import open_session

CHUNKS = 12
WARM_UPS = 2
# Tokens, heads and channels of a chunk: the rooms model's, and that of LingBot-World-Fast at 480x832 (40 layers).
SPEED_SHAPES = {"rooms": (192, 5, 64), "14B": (4680, 40, 128)}
KeysValues = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class ErrorRow:
    """Worst chunk of all; relative to the declared measure."""

    codec: str
    bytes_of_bf16: float
    rms_keys: float
    rms_values: float
    rms_declared: float
    max_keys: float
    max_values: float
    max_declared: float


@dataclass(frozen=True)
class SpeedRow:
    """GB/s of bfloat16 keys and values, in the fastest and in the median call."""

    shape: str
    layers: int
    threads: int | None
    codec: str
    encode_best: float
    encode_median: float
    decode_best: float
    decode_median: float


def rooms_chunks(model: RoomsModel, worlds: int) -> list[KeysValues]:
    """Un-rotated keys and values [L, T, H, D] of walks through worlds that training never saw."""
    chunks: list[KeysValues] = []
    for seed in range(worlds):
        scene = Scene(seed, model.latent_shape[1], model.device)
        trajectory = scene.trajectory("wander", CHUNKS * model.geometry.chunk_latent_frames, Pace())
        truth_FHWC, _ = scene.truth(trajectory)
        memory = ChunkMemory([ResidentTier("device", model.device, 2**30)], model.epoch)
        session = open_session(model, memory, PRESETS["full"], trajectory)
        for _ in rollout(model, [session], levels=[1.0], given=[truth_FHWC]):
            pass
        chunks += [(live.k_LTHD.float(), live.v_LTHD.float()) for live in session.live]
        session.close()
    return chunks


def error_row(codec: Codec, chunks: Sequence[KeysValues]) -> ErrorRow:
    """The codec's worst root mean square and largest error over the chunks."""
    rms: dict[int, list[float]] = {1: [], 3: []}
    most: dict[int, list[float]] = {1: [], 3: []}
    for kv in chunks:
        for x, decoded, axis in zip(kv, codec.decode(codec.encode(*kv)), (1, 3), strict=True):
            difference = x - decoded
            peak = x.abs().amax(axis, keepdim=True) if isinstance(codec, ScaledCodec) else x.abs()
            rms[axis].append(float(difference.norm() / x.norm()))
            most[axis].append(float((difference.abs() / peak.clamp_min(1e-30)).max()))
    shape: Shape = chunks[0][0].shape  # type: ignore[assignment]  # four sizes
    return ErrorRow(
        codec=codec.name,
        bytes_of_bf16=codec.nbytes(shape) / CODECS["bf16"].nbytes(shape),
        rms_keys=max(rms[1]),
        rms_values=max(rms[3]),
        rms_declared=codec.rms_relative_error,
        max_keys=max(most[1]),
        max_values=max(most[3]),
        max_declared=codec.max_relative_error,
    )


def speed_rows(device: torch.device, name: str, layers: int, threads: int | None, repeats: int) -> list[SpeedRow]:
    """Every codec, and a plain copy to compare with, on random bfloat16 keys and values."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (layers, *SPEED_SHAPES[name])
    k, v = (torch.randn(shape, dtype=torch.bfloat16, device=device, generator=generator) for _ in range(2))
    out = torch.empty_like(k), torch.empty_like(v)
    gigabytes = (k.nbytes + v.nbytes) / 1e9

    def row(codec: str, encode: Callable[[], object], decode: Callable[[], object]) -> SpeedRow:
        taken = [seconds(call, device, repeats) for call in (encode, decode)]
        rates = [gigabytes / which(times) for times in taken for which in (min, statistics.median)]
        return SpeedRow(name, layers, threads, codec, *rates)

    def copy() -> None:
        out[0].copy_(k)
        out[1].copy_(v)

    rows = [row("plain copy", copy, copy)]
    for codec in CODECS.values():
        encoded = codec.encode(k, v)
        rows.append(
            row(codec.name, lambda c=codec: c.encode(k, v), lambda c=codec, e=encoded: c.decode(e, out=out))  # type: ignore[misc]
        )
    return rows


def seconds(call: Callable[[], object], device: torch.device, repeats: int) -> list[float]:
    """Of single calls, each begun and ended with an idle device; by events where there are such.

    A lone CPU thread is timed by its own clock, which stands still while other processes have its core.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    taken = []
    for _ in range(WARM_UPS + repeats):
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            start.record()
            call()
            stop.record()
            stop.synchronize()
            taken.append(start.elapsed_time(stop) / 1e3)
        else:
            started = clock()
            call()
            taken.append(clock() - started)
    return taken[WARM_UPS:]


def error_table(rows: Sequence[ErrorRow]) -> str:
    """Percent, but for the name."""
    heads = ["codec", "bytes, % of bf16", "RMS error of keys, %", "of values, %", "declared, %"]
    heads += ["largest error of keys, % of their group's peak", "of values, %", "declared, %"]
    return markdown_table(heads, [[row.codec, *(f"{100 * x:.3g}" for x in astuple(row)[1:])] for row in rows])


def speed_table(rows: Sequence[SpeedRow]) -> str:
    """A line per codec; encode and decode for each shape and number of threads."""
    heads, lines = ["codec"], {row.codec: [row.codec] for row in rows}
    for row in rows:
        where = f"{row.shape}, {row.layers} layers" + (f", {row.threads} threads" if row.threads else "")
        heads += [] if where + ": encode" in heads else [where + ": encode", "decode"]
        lines[row.codec] += [f"{row.encode_best:.2f}", f"{row.decode_best:.2f}"]
    return markdown_table(heads, list(lines.values()))


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", default="1,2", help="CPU threads, comma-separated; a GPU ignores it")
    parser.add_argument("--worlds", type=int, default=3, help=f"worlds of {CHUNKS} chunks whose error is measured")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layers", type=int, help="of the 14B shape; default: 1 on a CPU, all 40 on a GPU")
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    given = parser.parse_args()
    device = torch.device(given.device)
    large = given.layers or (1 if device.type == "cpu" else 40)
    model = RoomsModel.load(device=device)
    chunks = rooms_chunks(model, given.worlds)
    errors = [error_row(codec, chunks) for codec in CODECS.values()]
    print(error_table(errors), flush=True)
    speeds: list[SpeedRow] = []
    for threads in [int(n) for n in given.threads.split(",")] if device.type == "cpu" else [None]:
        if threads:
            torch.set_num_threads(threads)
        for name, layers in (("rooms", model.geometry.layers), ("14B", large)):
            speeds += speed_rows(device, name, layers, threads, given.repeats)
    print(speed_table(speeds))
    if given.out:
        facts = circumstances(device) | {"rooms weights": model.epoch}
        body = _body(errors, speeds, len(chunks), given.repeats)
        rows = {"errors": [asdict(row) for row in errors], "speeds": [asdict(row) for row in speeds]}
        save(given.out, "Codecs: error on real chunks, and speed", body, {"circumstances": facts} | rows)


def _body(errors: Sequence[ErrorRow], speeds: Sequence[SpeedRow], chunks: int, repeats: int) -> str:
    return (
        f"Error: the worst of {chunks} chunks of the rooms model; RMS of x - x' over RMS of x.\n\n{error_table(errors)}"
        "\n\nSpeed: GB/s of the bfloat16 keys and values, which `encode` reads and `decode` writes, on random numbers. "
        f"The fastest of {repeats} calls, medians are in the JSON file. A lone CPU thread is timed by its own clock, "
        "which leaves out what other processes took, two threads by the wall's, which does not. "
        f"`encode` allocates what it returns and looks for NaN.\n\n{speed_table(speeds)}"
    )


if __name__ == "__main__":
    main()
