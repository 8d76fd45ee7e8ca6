"""Train the rooms model: `python -m worldkv.models.rooms.train --help`.

Block-causal teacher forcing on short clips: every chunk is denoised at its own noise level while it attends to the
clean chunks before it, all chunks of a clip in one pass. No memory policy takes part: the model learns from plain
causal history of 48 frames, and every policy is applied to it at inference.

Runs in pieces: it stops after --stop-minutes and continues from --checkpoint until --total-minutes are used up; the
learning rate decays to zero over the last part of that total. Worlds are drawn and walked by worker processes and
rendered on the device.

Shapes: B clips, F video frames, C chunks, T tokens.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from worldkv.models.rooms import layout, paths, weights
from worldkv.models.rooms.network import RoomsNetwork, Shape
from worldkv.models.rooms.render import View, compile_parts, render
from worldkv.window import rotary

# Worlds of training and validation, and of every benchmark (seeds below TRAIN_SEED), never meet.
TRAIN_SEED = 10**9
VALIDATION_SEED = layout.UNTRAINED_SEEDS
WARMUP_STEPS = 200
# Drawing and rendering a batch costs a third of a step; noise differs between its two uses.
UPDATES_PER_BATCH = 2
DECAY_SHARE = 0.5  # the last part of the run, over which the learning rate falls to zero
NOISE_SHIFT = 3.0  # more training near pure noise, where memory alone decides the picture
AVERAGE_RATE = 0.003  # of the weights' moving average, per step
HISTORY_NOISE_SHARE = 0.15
HISTORY_NOISE = 0.15  # at most; a little noise in some histories makes the model forgive its own mistakes


@dataclass(frozen=True)
class Settings:
    """What a run was made with; stored in its checkpoint and log."""

    total_minutes: float
    batch: int
    muon_rate: float
    adam_rate: float
    seed: int


class Clips(IterableDataset[dict[str, Tensor]]):
    """Endless batches of layouts and camera poses; worker w of n yields batches w, w + n, ..."""

    def __init__(self, first_seed: int, batch: int, frames: int, skip: int = 0) -> None:
        self.first_seed, self.batch, self.frames, self.skip = first_seed, batch, frames, skip

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        info = get_worker_info()
        number, step = (info.id, info.num_workers) if info else (0, 1)
        number += self.skip
        while True:
            yield self.make(number)
            number += step

    def make(self, number: int) -> dict[str, Tensor]:
        """Batch `number`: the fields of `layout.stack` and the poses `c2w_BF44`."""
        seeds = range(self.first_seed + number * self.batch, self.first_seed + (number + 1) * self.batch)
        worlds = [layout.draw(seed) for seed in seeds]
        walks = [paths.training_clip(w, self.frames, seed) for w, seed in zip(worlds, seeds, strict=True)]
        batch = {name: torch.from_numpy(value) for name, value in layout.stack(worlds).items()}
        return batch | {"c2w_BF44": torch.from_numpy(paths.to_poses(np.stack(walks)))}


def first_frame_poses(c2w_BF44: Tensor, generator: torch.Generator | None) -> Tensor:
    """Poses relative to the first frame; with a generator, half of the clips are moved at random.

    The random half teaches the model places far from the origin, where long rollouts take it.
    """
    B = c2w_BF44.shape[0]
    rotation, centre = c2w_BF44[:, :1, :3, :3].transpose(-1, -2), c2w_BF44[:, :1, :3, 3:]
    relative = c2w_BF44.clone()
    relative[..., :3, :3] = rotation @ c2w_BF44[..., :3, :3]
    relative[..., :3, 3:] = rotation @ (c2w_BF44[..., :3, 3:] - centre)
    if generator is None:
        return relative
    draw = torch.rand(B, 3, device=c2w_BF44.device, generator=generator)
    offset = torch.where(draw[:, :1] < 0.5, 0.0, draw[:, 1:] * 12 - 6)
    relative[..., 0, 3] += offset[:, :1]
    relative[..., 2, 3] += offset[:, 1:]
    return relative


def teacher_forcing_mask(shape: Shape, device: torch.device) -> BlockMask:
    """Sequence = clean clip, then noisy clip. Clean tokens see clean chunks up to their own; noisy tokens see the
    clean chunks before their own and their own noisy chunk."""
    per_chunk = shape.frames_per_chunk * shape.tokens_per_frame
    clip = shape.trained_frames * shape.tokens_per_frame

    def allowed(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q_half, k_half = q // clip, k // clip  # 0 clean, 1 noisy
        q_chunk, k_chunk = (q % clip) // per_chunk, (k % clip) // per_chunk
        clean_before = (k_half == 0) & (k_chunk < q_chunk)
        own = (k_chunk == q_chunk) & (k_half == q_half)
        return clean_before | own

    return create_block_mask(allowed, None, None, 2 * clip, 2 * clip, device=str(device))


class Trainer:
    """Model, averaged model, optimisers and the compiled pieces of one step."""

    def __init__(self, settings: Settings, shape: Shape, device: torch.device) -> None:
        self.settings, self.shape, self.device = settings, shape, device
        torch.manual_seed(settings.seed)
        self.generator = torch.Generator(device).manual_seed(settings.seed)
        self.network = RoomsNetwork(shape).to(device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimisers = _optimisers(self.network, settings)
        self.step, self.seconds = 0, 0.0
        self.view = View(shape.image, shape.image, shape.image / 2)  # 90 degrees
        self.mask = teacher_forcing_mask(shape, device)
        ids = rotary.grid_token_ids(shape.trained_frames, shape.side, shape.side, device=device).repeat(2, 1)
        self.cos, self.sin = rotary.angles(ids, shape.head_dim)
        if device.type == "cuda":
            compile_parts()
            for block in (*self.network.blocks, *self.averaged.blocks):
                block.compile()

    @torch.no_grad()
    def frames(self, batch: dict[str, Tensor]) -> Tensor:
        """Clean pixels [B, F, 3, R, C] in [-1, 1]."""
        world = {name: value for name, value in batch.items() if name != "c2w_BF44"}
        colour, _ = render(world, batch["c2w_BF44"], self.view)
        return colour.permute(0, 1, 4, 2, 3).clamp(0, 1) * 2 - 1

    def attend(self, _layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Masked attention over both halves of the sequence."""
        q, k = rotary.rotate(q, self.cos, self.sin), rotary.rotate(k, self.cos, self.sin)
        q, k, v = q.transpose(1, 2).to(v.dtype), k.transpose(1, 2).to(v.dtype), v.transpose(1, 2)
        attended: Tensor = flex_attention(q, k, v, block_mask=self.mask)
        return attended.transpose(1, 2)

    def estimate(self, network: RoomsNetwork, pixels: Tensor, noise_BF: Tensor, c2w: Tensor) -> Tensor:
        """Clean pixels of the noisy half, float32, as `network` sees them."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            cameras = network.cameras(c2w, tangent=1.0).repeat(1, 1, 2, 1)
            both: Tensor = network(pixels, noise_BF, cameras, self.attend)
            return both[:, self.shape.trained_frames :].float()

    def loss(self, clean: Tensor, world_c2w_BF44: Tensor) -> Tensor:
        """Noise-weighted error of the clean estimate over the noisy half."""
        B, F = clean.shape[:2]
        uniform = torch.rand(B, F // self.shape.frames_per_chunk, device=self.device, generator=self.generator)
        level = (NOISE_SHIFT * uniform / (1 + (NOISE_SHIFT - 1) * uniform)).repeat_interleave(
            self.shape.frames_per_chunk, 1
        )
        chosen = torch.rand(B, 2, device=self.device, generator=self.generator)
        history = torch.where(chosen[:, :1] < HISTORY_NOISE_SHARE, chosen[:, 1:] * HISTORY_NOISE, 0.0).expand(B, F)
        noise_B2F = torch.cat([history, level], 1)
        x = torch.cat([clean, clean], 1)
        gaussian = torch.randn(x.shape, device=self.device, generator=self.generator)
        mix = noise_B2F[..., None, None, None]
        c2w = first_frame_poses(world_c2w_BF44, self.generator)
        estimate = self.estimate(self.network, (1 - mix) * x + mix * gaussian, noise_B2F, c2w)
        error = (estimate - clean).square().mean((2, 3, 4))
        return (error / (level + 0.1)).mean()

    def update(self, clean: Tensor, c2w_BF44: Tensor, progress: float) -> Tensor:
        """One optimiser step at `progress` in [0, 1] of the run; returns the loss (on the device)."""
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, 1 - progress) / DECAY_SHARE)
        loss = self.loss(clean, c2w_BF44)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), AVERAGE_RATE)
        return loss.detach()

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor]) -> float:
        """PSNR in dB over held-out clips of one step from pure noise, second half of each clip, averaged weights."""
        clean = self.frames(batch)
        gaussian = torch.randn(clean.shape, device=self.device, generator=torch.Generator(self.device).manual_seed(1))
        B, F = clean.shape[:2]
        level = torch.cat([torch.zeros(B, F), torch.ones(B, F)], 1).to(self.device)
        c2w = first_frame_poses(batch["c2w_BF44"], None)
        estimate = self.estimate(self.averaged, torch.cat([clean, gaussian], 1), level, c2w)
        error = (estimate - clean)[:, F // 2 :].square().mean((1, 2, 3, 4)) / 4
        return float((-10 * torch.log10(error)).mean())

    def save(self, path: Path) -> None:
        """The full training state, written beside and renamed."""
        state = {
            "settings": asdict(self.settings),
            "network": self.network.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimisers": [o.state_dict() for o in self.optimisers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, path.with_suffix(".partial"))
        path.with_suffix(".partial").rename(path)

    def start_from(self, folder: Path) -> None:
        """Take over the averaged weights of an earlier run."""
        state = weights.load(folder)[0].state_dict()
        self.network.load_state_dict(state)
        self.averaged.load_state_dict(state)

    def load(self, path: Path) -> None:
        """Continue from `save`; the settings must be the same."""
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.averaged.load_state_dict(state["averaged"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        self.generator.manual_seed(self.settings.seed + self.step)


def _optimisers(network: RoomsNetwork, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for the hidden matrices of the blocks, AdamW for everything else."""
    hidden = [
        p for n, p in network.named_parameters() if n.startswith("blocks.") and n.endswith("weight") and p.ndim == 2
    ]
    ids = {id(p) for p in hidden}
    rest = [p for p in network.parameters() if id(p) not in ids]
    muon = torch.optim.Muon(hidden, lr=settings.muon_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(rest, lr=settings.adam_rate, betas=(0.9, 0.98), weight_decay=0.0)
    for optimiser, rate in ((muon, settings.muon_rate), (adam, settings.adam_rate)):
        for group in optimiser.param_groups:
            group["base_rate"] = rate
    return [muon, adam]


def train(trainer: Trainer, stop_minutes: float, workers: int, log: Path) -> None:
    """Train until the piece or the whole run is over; one JSON line of figures every 200 steps."""
    settings, shape = trainer.settings, trainer.shape
    clips = Clips(TRAIN_SEED, settings.batch, shape.trained_frames, skip=trainer.step + 7919 * settings.seed)
    loader = DataLoader(
        clips, batch_size=None, num_workers=workers, prefetch_factor=8 if workers else None, pin_memory=True
    )
    held_out = _to(Clips(VALIDATION_SEED, settings.batch, shape.trained_frames).make(0), trainer.device)
    started, before, total = time.monotonic(), trainer.seconds, settings.total_minutes * 60
    losses: list[Tensor] = []
    waited, mark = 0.0, time.monotonic()
    for batch in loader:
        waited += time.monotonic() - mark
        trainer.seconds = before + time.monotonic() - started
        if trainer.seconds >= total or trainer.seconds - before >= stop_minutes * 60:
            break
        batch = _to(batch, trainer.device)
        clean = trainer.frames(batch)
        for _ in range(UPDATES_PER_BATCH):
            losses.append(trainer.update(clean, batch["c2w_BF44"], trainer.seconds / total))
        if trainer.step % 200 == 0:
            line = {
                "step": trainer.step,
                "seconds": round(trainer.seconds, 1),
                "loss": round(float(torch.stack(losses).mean()), 5),
                "loader_wait_ms": round(1000 * waited / len(losses), 1),
            }
            if trainer.step % 1000 == 0:
                line["validation_psnr_db"] = round(trainer.validate(held_out), 2)
            losses.clear()
            waited = 0.0
            print(json.dumps(line), flush=True)
            with log.open("a") as file:
                file.write(json.dumps(line) + "\n")
        mark = time.monotonic()
    last = {"step": trainer.step, "seconds": round(trainer.seconds, 1)}
    last["validation_psnr_db"] = round(trainer.validate(held_out), 2)
    print(json.dumps(last), flush=True)
    with log.open("a") as file:
        file.write(json.dumps(last) + "\n")


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
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = Settings(given.total_minutes, given.batch, given.muon_rate, given.adam_rate, given.seed)
    trainer = Trainer(settings, Shape(), device)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoint = given.out / "checkpoint.pt"
    if checkpoint.exists():
        trainer.load(checkpoint)
    elif given.start_from is not None:
        trainer.start_from(given.start_from)
    count = sum(p.numel() for p in trainer.network.parameters())
    print(f"{count / 1e6:.2f} M parameters, step {trainer.step}, {trainer.seconds:.0f} s done", flush=True)
    train(trainer, given.stop_minutes, given.workers, given.out / "train_log.jsonl")
    trainer.save(checkpoint)
    weights.save(trainer.averaged, given.out / "weights", tangent=1.0)


if __name__ == "__main__":
    main()
