"""Train the rooms model: `python -m worldkv.models.rooms.train --help`. What it learns: `worldkv.models.rooms.trainer`.

Runs in pieces: it stops after --stop-minutes and continues from the checkpoint in --out until --total-minutes are used
up; the learning rate decays to zero over the last part of that total. Worlds are drawn and walked by worker processes
and rendered on the device. On several GPUs of one machine, `torchrun --nproc-per-node N -m worldkv.models.rooms.train`
shares each batch out among them.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader

from worldkv.models.rooms import weights
from worldkv.models.rooms.clips import TRAIN_SEED, Clips, held_out
from worldkv.models.rooms.network import Shape
from worldkv.models.rooms.trainer import PARTS_PER_LESSON, UPDATES_PER_LESSON, Settings, Trainer

LOG_EVERY, VALIDATE_EVERY = 200, 1000  # steps


def train(trainer: Trainer, stop_minutes: float, workers: int, log: Path) -> None:
    """Train until the piece or the whole run is over; one JSON line of figures now and then."""
    settings, shape = trainer.settings, trainer.shape
    rank, processes = _rank()
    clips = Clips(
        TRAIN_SEED,
        PARTS_PER_LESSON * settings.batch // processes,
        shape.trained_frames,
        skip=(trainer.step + 7919 * settings.seed) * processes + rank,
        stride=processes,
    )
    loader = DataLoader(
        clips, batch_size=None, num_workers=workers, prefetch_factor=2 if workers else None, pin_memory=True
    )
    validation = {name: _to(clips, trainer.device) for name, clips in held_out(shape.trained_frames).items()}
    started, before, total = time.monotonic(), trainer.seconds, settings.total_minutes * 60
    losses: list[Tensor] = []
    waited, mark = 0.0, time.monotonic()
    for batch in loader:
        waited += time.monotonic() - mark
        trainer.seconds = _agreed(before + time.monotonic() - started, trainer.device)
        if trainer.seconds >= total or trainer.seconds - before >= stop_minutes * 60:
            break
        lesson = trainer.prepare(_to(batch, trainer.device))
        for number in range(UPDATES_PER_LESSON):
            losses.append(trainer.update(lesson.part(number % PARTS_PER_LESSON), trainer.seconds / total))
        if trainer.step % LOG_EVERY < UPDATES_PER_LESSON and rank == 0:
            picture, depth = torch.stack(losses).mean(0).tolist()
            line = {
                "step": trainer.step,
                "seconds": round(trainer.seconds, 1),
                "loss": round(picture, 5),
                "log_depth_error": round(depth, 4),
                "loader_wait_ms": round(1000 * waited / len(losses), 1),
            }
            if trainer.step % VALIDATE_EVERY < UPDATES_PER_LESSON:
                line |= _validated(trainer, validation)
            losses.clear()
            waited = 0.0
            _write_line(line, log)
        mark = time.monotonic()
    if rank == 0:
        last = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
        _write_line(last | _validated(trainer, validation), log)


def _validated(trainer: Trainer, validation: dict[str, dict[str, Tensor]]) -> dict[str, float]:
    return {
        f"{name}_{history}_psnr_db": value
        for name, clips in validation.items()
        for history, value in trainer.validate(clips).items()
    }


def _write_line(line: dict[str, float], log: Path) -> None:
    print(json.dumps(line), flush=True)
    with log.open("a") as file:
        file.write(json.dumps(line) + "\n")


def _rank() -> tuple[int, int]:
    """This process' number and how many there are."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def _agreed(seconds: float, device: torch.device) -> float:
    """The first process' clock, so that all stop at the same step."""
    if not distributed.is_initialized():
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64, device=device)
    distributed.broadcast(clock, 0)
    return float(clock)


def _to(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}


def main() -> None:
    """Parse the command line, train one piece, save the checkpoint and the averaged weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--total-minutes", type=float, default=17.0, help="length of the whole run")
    parser.add_argument("--stop-minutes", type=float, default=25.0, help="stop this piece after so long")
    parser.add_argument("--batch", type=int, default=32, help="clips per step")
    parser.add_argument("--muon-rate", type=float, default=5e-3, help="learning rate of hidden matrices")
    parser.add_argument("--adam-rate", type=float, default=2e-3, help="learning rate of everything else")
    parser.add_argument("--workers", type=int, default=14, help="processes that draw worlds")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="weights folder to start from, with fresh optimisers, when --out is empty",
    )
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()

    torch.set_float32_matmul_precision("high")
    if "RANK" in os.environ:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank, processes = _rank()
    if given.batch % processes:
        parser.error(f"--batch {given.batch} does not divide among {processes} processes")
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    settings = Settings(given.total_minutes, given.batch, given.muon_rate, given.adam_rate, given.seed)
    trainer = Trainer(settings, Shape(), device)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint = given.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif given.start_from is not None:
        trainer.start_from(given.start_from)
    # Every process draws its own noise.
    trainer.seed_chance(settings.seed + trainer.step, rank)
    if rank == 0:
        count = sum(p.numel() for p in trainer.network.parameters())
        print(f"{count / 1e6:.2f} M parameters, step {trainer.step}, {trainer.seconds:.0f} s done", flush=True)
    train(trainer, given.stop_minutes, given.workers, given.out / "train_log.jsonl")
    if rank == 0:
        trainer.save(checkpoint)
        weights.save(trainer.averaged, given.out / "weights", tangent=1.0)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
