"""One lesson, one update, one validation of the rooms model.

Block-causal forcing on short clips: every chunk is denoised at its own noise level while it attends to the chunks of
the history before it, all chunks of a clip in one pass. The target is always the true picture; the history is not
(`worldkv.models.rooms.history`). No memory policy takes part: the model learns from plain causal history of 48 frames,
and every policy is applied to it at inference.

Shapes: B clips, F video frames, C chunks, T tokens.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, distributed
from torch.nn import functional as fn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from worldkv.models.rooms import weights
from worldkv.models.rooms.clips import first_frame_poses
from worldkv.models.rooms.history import compose, play_on
from worldkv.models.rooms.network import LOG_DEPTH_RANGE, RoomsNetwork, Shape, quarters
from worldkv.models.rooms.render import View, compile_parts, render
from worldkv.window import rotary

WARMUP_STEPS = 200
# Drawing and rendering are paid once a lesson, of which each update takes a part.
PARTS_PER_LESSON, UPDATES_PER_LESSON = 4, 12
DECAY_SHARE = 0.5  # the last part of the run, over which the learning rate falls to zero
NOISE_SHIFT = 3.0  # more training near pure noise, where memory alone decides the picture
AVERAGE_RATE = 0.003  # of the weights' moving average, per step
# Where a clip's history turns from shown to made: at a chunk before this share of them.
LATEST_START = 0.7
VALIDATION_STEPS = 4
# This share of the clips is slowed down, by up to so much: a history up to so many times as long stays readable.
SLOWED, SLOWEST = 0.2, 2.0
DEPTH_WEIGHT = 0.05  # of the guessed depths' error: enough to teach them, well below the picture's


@dataclass(frozen=True)
class Settings:
    """What a run was made with; stored in its checkpoint and log."""

    total_minutes: float
    batch: int
    muon_rate: float
    adam_rate: float
    seed: int


def forcing_mask(shape: Shape, device: torch.device) -> BlockMask:
    """Sequence = history, then the clip to be denoised. Tokens of the history see its chunks up to their own; tokens to
    be denoised see the history before their own chunk, and that chunk."""
    per_chunk = shape.frames_per_chunk * shape.tokens_per_frame
    clip = shape.trained_frames * shape.tokens_per_frame

    def allowed(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        q_half, k_half = q // clip, k // clip  # 0 history, 1 to be denoised
        q_chunk, k_chunk = (q % clip) // per_chunk, (k % clip) // per_chunk
        before = (k_half == 0) & (k_chunk < q_chunk)
        own = (k_chunk == q_chunk) & (k_half == q_half)
        return before | own

    return create_block_mask(allowed, None, None, 2 * clip, 2 * clip, device=str(device))


Level = TypeVar("Level", float, Tensor)


def shifted(even: Level) -> Level:
    """An evenly drawn noise level, moved towards noise (`worldkv.denoise.noise_levels`)."""
    return NOISE_SHIFT * even / (1 + (NOISE_SHIFT - 1) * even)


@dataclass(frozen=True)
class Lesson:
    """Clips that several updates learn from."""

    clean: Tensor
    """[B, F, 3, R, C] in [-1, 1]"""
    log_depth: Tensor
    """[B, T, Q]"""
    c2w: Tensor
    """[B, F, 4, 4], relative to some first pose."""
    made: Tensor
    """The model's last estimates of the clips; the clips themselves before the first."""
    start: Tensor
    """[B]"""
    slowness: Tensor
    """[B] temporal positions per frame"""

    def part(self, number: int) -> Lesson:
        """Some of the clips: views of every PARTS_PER_LESSON-th place."""
        parts = (getattr(self, name.name)[number::PARTS_PER_LESSON] for name in fields(self))
        return Lesson(*parts)


class Trainer:
    """Model, averaged model, optimisers and the compiled pieces of one step."""

    def __init__(self, settings: Settings, shape: Shape, device: torch.device) -> None:
        self.settings, self.shape, self.device = settings, shape, device
        torch.manual_seed(settings.seed)
        self.seed_chance(settings.seed)
        self.network = RoomsNetwork(shape).to(device)
        self.averaged = copy.deepcopy(self.network).requires_grad_(False)
        self.optimisers = _optimisers(self.network, settings)
        self.step, self.seconds = 0, 0.0
        self.view = View(shape.image, shape.image, shape.image / 2)  # 90 degrees
        self.mask = forcing_mask(shape, device)
        self.token_ids_T3 = rotary.grid_token_ids(shape.trained_frames, shape.side, shape.side, device=device)
        # Plays clips on, in steps too small to be worth compiling; shares the averaged weights.
        with torch.device("meta"):
            self.player = RoomsNetwork(shape)
        self.player.load_state_dict(self.averaged.state_dict(), assign=True)
        self.player.requires_grad_(False)
        if device.type == "cuda":
            compile_parts()
            for block in (*self.network.blocks, *self.averaged.blocks):
                block.compile()

    def seed_chance(self, seed: int, rank: int = 0) -> None:
        """Start all random choices anew, every process with its own."""
        self.generator = torch.Generator(self.device).manual_seed(seed + 10**6 * rank)

    @torch.no_grad()
    def frames(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Clean pixels [B, F, 3, R, C] in [-1, 1] and log depths [B, T, Q] of the quarters of every token."""
        world = {name: value for name, value in batch.items() if name != "c2w_BF44"}
        colour, depth = render(world, batch["c2w_BF44"], self.view)
        quarter = self.shape.patch // 2
        middles = depth[..., quarter // 2 :: quarter, quarter // 2 :: quarter]
        log_depth = quarters(middles, self.shape.side).flatten(1, 2).log().clamp(*LOG_DEPTH_RANGE)
        return colour.permute(0, 1, 4, 2, 3).clamp(0, 1) * 2 - 1, log_depth

    def set_pace(self, slowness_B: Tensor) -> None:
        """Temporal positions of the forwards to come: each clip's frames lie `slowness_B` apart."""
        ids_BT3 = self.token_ids_T3.double().repeat(len(slowness_B), 1, 1)
        ids_BT3[..., 0] *= slowness_B[:, None]
        self.angles = rotary.angles(ids_BT3, self.shape.head_dim)
        self.cos, self.sin = (x.repeat(1, 2, 1) for x in self.angles)

    def attend(self, _layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Masked attention over both halves of the sequence."""
        q, k = rotary.rotate(q, self.cos, self.sin), rotary.rotate(k, self.cos, self.sin)
        q, k, v = q.transpose(1, 2).to(v.dtype), k.transpose(1, 2).to(v.dtype), v.transpose(1, 2)
        attended: Tensor = flex_attention(q, k, v, block_mask=self.mask)
        return attended.transpose(1, 2)

    def estimate(
        self, network: RoomsNetwork, pixels: Tensor, noise_BF: Tensor, c2w: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Clean pixels of the noisy half, float32, as `network` sees them; log depths of both halves."""
        with self._autocast():
            cameras = network.cameras(c2w, tangent=1.0).twice()
            both, log_depths = network(pixels, noise_BF, cameras, self.attend)
            return both[:, self.shape.trained_frames :].float(), log_depths

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    @torch.no_grad()
    def prepare(self, batch: dict[str, Tensor]) -> Lesson:
        """Draw clips and choose their pace and origin."""
        clean, log_depth = self.frames(batch)
        B, F = clean.shape[:2]
        chosen = torch.rand(B, 3, device=self.device, generator=self.generator)
        slowness = torch.where(chosen[:, 0] < SLOWED, 1 + chosen[:, 1] * (SLOWEST - 1), 1.0)
        c2w = first_frame_poses(batch["c2w_BF44"], self.generator)
        start = 1 + (chosen[:, 2] * int(LATEST_START * F // self.shape.frames_per_chunk)).long()
        return Lesson(clean, log_depth, c2w, clean.clone(), start, slowness)

    @torch.no_grad()
    def play_on(self, clean: Tensor, c2w: Tensor, start: Tensor, steps: int) -> Tensor:
        """The clips as the averaged model goes on with them from chunk `start` each, at the pace last set."""
        levels = [shifted(1 - step / steps) for step in range(steps)]
        with self._autocast():
            cameras = self.player.cameras(c2w, tangent=1.0)
            return play_on(self.player, clean, cameras, self.angles, start, levels, self.generator)

    def loss(self, lesson: Lesson) -> tuple[Tensor, Tensor]:
        """Noise-weighted error of the clean estimate; mean error of the log depths, of the history too.

        The estimate becomes what the lesson's next history takes for made.
        """
        clean, per_chunk = lesson.clean, self.shape.frames_per_chunk
        B, F = clean.shape[:2]
        self.set_pace(lesson.slowness)
        uniform = torch.rand(B, F // per_chunk, device=self.device, generator=self.generator)
        level = shifted(uniform).repeat_interleave(per_chunk, 1)
        past = compose(clean, lesson.made, lesson.start, per_chunk, self.generator)
        x = torch.cat([past.pixels_BFCHW, clean], 1)
        gaussian = torch.randn(x.shape, device=self.device, generator=self.generator)
        mix = torch.cat([past.noise_BF, level], 1)[..., None, None, None]
        told_B2F = torch.cat([past.level_BF, level], 1)
        estimate, guesses = self.estimate(self.network, (1 - mix) * x + mix * gaussian, told_B2F, lesson.c2w)
        lesson.made.copy_(estimate.detach().clamp(-1, 1))
        error = (estimate - clean).square().mean((2, 3, 4))
        off = torch.stack([fn.l1_loss(guess, lesson.log_depth.repeat(1, 2, 1)) for guess in guesses])
        return (error / (level + 0.1)).mean(), off.mean()

    def update(self, lesson: Lesson, progress: float) -> Tensor:
        """One optimiser step at `progress` in [0, 1] of the run; returns both losses."""
        rate = min(1.0, (self.step + 1) / WARMUP_STEPS) * min(1.0, max(0.0, 1 - progress) / DECAY_SHARE)
        picture, depth = self.loss(lesson)
        (picture + DEPTH_WEIGHT * depth).backward()  # type: ignore[no-untyped-call]
        self._share_gradients()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["base_rate"] * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.network.parameters()), AVERAGE_RATE)
        return torch.stack([picture, depth]).detach()

    @torch.no_grad()
    def _share_gradients(self) -> None:
        """The mean over all processes, each of which has its own part of the batch."""
        if not distributed.is_initialized():
            return
        grads = [p.grad for p in self.network.parameters() if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        distributed.all_reduce(flat, op=distributed.ReduceOp.AVG)
        parts = torch.split(flat, [grad.numel() for grad in grads])
        torch._foreach_copy_(grads, [part.view_as(grad) for part, grad in zip(parts, grads, strict=True)])

    @torch.no_grad()
    def validate(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """PSNR in dB over the second half of held-out clips, averaged weights.

        `shown`: one step from pure noise, history exact. `made`: played on from the half, as an evaluation does.
        """
        clean, _ = self.frames(batch)
        gaussian = torch.randn(clean.shape, device=self.device, generator=torch.Generator(self.device).manual_seed(1))
        B, F = clean.shape[:2]
        level = torch.cat([torch.zeros(B, F), torch.ones(B, F)], 1).to(self.device)
        c2w = first_frame_poses(batch["c2w_BF44"], None)
        self.set_pace(torch.ones(B, device=self.device))
        shown, _ = self.estimate(self.averaged, torch.cat([clean, gaussian], 1), level, c2w)
        half = torch.full((B,), F // self.shape.frames_per_chunk // 2, device=self.device)
        made = self.play_on(clean, c2w, half, VALIDATION_STEPS)
        errors = {
            name: (video - clean)[:, F // 2 :].square().mean((1, 2, 3, 4)) / 4
            for name, video in (("shown", shown), ("made", made))
        }
        return {name: round(float((-10 * torch.log10(error)).mean()), 2) for name, error in errors.items()}

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
        self.seed_chance(self.settings.seed + self.step)


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
