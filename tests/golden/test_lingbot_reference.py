"""LingBot from poses and draws to latents, against recordings of the published generation loop."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from published_window import Grid, History, past_of, window
from safetensors.torch import load_file
from torch import Tensor

import worldkv.rollout
from worldkv.camera import ACTION_COLUMNS, LINGBOT_MOVE_COLUMNS, PictureSize, Trajectory, from_key_columns
from worldkv.denoise import renoise
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.base import View
from worldkv.models.lingbot.camera import camera_map, latent_poses, longest_step
from worldkv.models.lingbot.model import LingBotModel
from worldkv.models.lingbot.schedule import lingbot_schedule
from worldkv.models.wan.model import LATENT_SIDE, WanSettings
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import shape_of
from worldkv.session import chunk_view, open_session

ABSOLUTE = 5e-5
EPOCH = "golden"
SMALL = Path(__file__).parent / "small" / "lingbot"
ROWS = {3: (0, 179, 358, 679), 4: (0, 250, 500, 750)}


class Golden(NamedTuple):
    network: WanNetwork
    inputs: dict[str, Tensor]
    e2e: dict[str, Tensor]
    manifest: dict[str, Any]
    trajectory: Trajectory


@pytest.fixture(scope="module")
def golden(reference: Path) -> Golden:
    runs = [reference / "sampler" / f"{name}.safetensors" for name in ("lingbot_e2e", "lingbot_v2_e2e")]
    return load_golden(reference / "lingbot_dit", runs)


@pytest.fixture(scope="module")
def small() -> Golden:
    """The first chunks of one run, kept beside this file."""
    return load_golden(SMALL, [SMALL / "run.safetensors"])


def load_golden(folder: Path, runs: list[Path]) -> Golden:
    manifest = json.loads((folder / "manifest.json").read_text())
    network = WanNetwork(shape_of(manifest["config"], "manifest"))
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    inputs = load_file(folder / "inputs.safetensors")
    e2e: dict[str, Tensor] = {}
    for run in runs:
        e2e |= load_file(run)
    frames = manifest["geometry"]["latent_frames"] * 4
    poses, intrinsics = (stretched(inputs[name].numpy(), frames) for name in ("poses_npy", "intrinsics_npy"))
    return Golden(network.requires_grad_(False), inputs, e2e, manifest, Trajectory(poses, intrinsics))


def stretched(rows: np.ndarray, frames: int) -> np.ndarray:
    """The last row again and again up to whole chunks of video frames; no latent frame looks there."""
    return np.concatenate([rows, np.repeat(rows[-1:], frames - len(rows), axis=0)])


@dataclass
class NoPictures:
    """In the place of a VAE: latents are kept instead of decoded."""

    latents: list[Tensor] = field(default_factory=list)

    def decode(self, latents_FCHW: Tensor, state: object) -> Tensor:
        self.latents.append(latents_FCHW)
        return torch.zeros(len(latents_FCHW), 1, 1, 3, dtype=torch.uint8)


def model_of(golden: Golden, chunk_frames: int, shift: float, pictures: Any = None) -> LingBotModel:
    geometry = golden.manifest["geometry"]
    settings = WanSettings(
        name="lingbot-tiny",
        picture=PictureSize(geometry["latent_h"] * LATENT_SIDE, geometry["latent_w"] * LATENT_SIDE),
        chunk_latent_frames=chunk_frames,
        trained_latent_frames=geometry["latent_frames"],
        schedule=lingbot_schedule(ROWS[chunk_frames], shift),
    )
    return LingBotModel(golden.network, settings, EPOCH, pictures)


def context_of(golden: Golden) -> dict[str, Tensor]:
    return {
        "prompt": golden.inputs["context"],
        "image_latents": golden.inputs["y"][4:],
        "unit": torch.tensor(longest_step(golden.trajectory)),
    }


def generate(golden: Golden, model: LingBotModel, mode: dict[str, Any], draws: Tensor) -> Tensor:
    """Latents [C, F, H, W] of the chunks that have draws, in windows as the published code assembles them."""
    g = model.geometry
    history = History(Grid(g.chunk_latent_frames, g.layers, g.heads, g.rows, g.columns, g.head_dim))
    size, out = g.chunk_latent_frames, []
    state = model.open(chunk_view(golden.trajectory, 0, 4 * size), context_of(golden))
    for chunk in range(len(draws)):
        noises = [golden.e2e["draws_noise"][:, chunk * size : (chunk + 1) * size], *draws[chunk]]
        condition = model.condition([state], [chunk_view(golden.trajectory, chunk, 4 * size)])
        view = window(history, past_of(history, mode, chunk), chunk * size)

        def draw(step: int, noises=noises) -> Tensor:
            return noises[step].transpose(0, 1)[None]

        latents = renoise(model, draw, condition, view, model.schedule)
        kv = model.clean_pass(latents, condition, view, [state], generated=True)
        history.k.append(kv.k_LBTHD[:, 0])
        history.v.append(kv.v_LBTHD[:, 0])
        out.append(latents[0].transpose(0, 1))
    return torch.cat(out, dim=1)


@pytest.mark.parametrize(
    ("name", "mode", "shift"),
    [
        ("full_shift10", "full", 10.0),
        ("full_shift5", "full", 5.0),
        ("sink3_recent6_shift10", "sink3_recent6", 10.0),
        ("retr6_shift10", "retr6", 10.0),
        ("retr6_rope_storepool_shift10", "retr6_rope_storepool", 10.0),
    ],
)
def test_generation_matches(golden: Golden, name: str, mode: str, shift: float):
    model = model_of(golden, 3, shift)
    found = generate(golden, model, golden.manifest["modes"][mode], golden.e2e["draws_renoise"])
    torch.testing.assert_close(found, golden.e2e[f"{name}/latents"], atol=ABSOLUTE, rtol=0)


def test_a_few_chunks_with_retrieval_and_pruning_match_wherever_this_runs(small: Golden):
    (name,) = small.manifest["modes"]
    draws = small.e2e["draws_renoise"]
    found = generate(small, model_of(small, 3, 10.0), small.manifest["modes"][name], draws)
    torch.testing.assert_close(found, small.e2e["latents"], atol=ABSOLUTE, rtol=0)


def test_generation_matches_with_chunks_and_window_of_lingbot_2(golden: Golden):
    mode = {"local_attn_size": 12, "sink_size": 6, "retrieved_source_start_frame_per_chunk": [None] * 6}
    found = generate(golden, model_of(golden, 4, 10.0), mode, golden.e2e["chunk4_local12_sink6/draws_renoise"])
    torch.testing.assert_close(found, golden.e2e["chunk4_local12_sink6/latents"], atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("full_shift10", MemoryPolicy("full", sink_chunks=0, recent_chunks=None, positions="original")),
        ("sink3_recent6_shift10", MemoryPolicy("sink3", sink_chunks=1, recent_chunks=1, positions="original")),
    ],
)
def test_rollout_runs_it_unchanged(golden: Golden, name: str, policy: MemoryPolicy, monkeypatch: pytest.MonkeyPatch):
    def gaussian(shape: tuple[int, ...], *, chunk: int, step: int, **_: int) -> Tensor:
        given = golden.e2e["draws_noise"][:, 3 * chunk : 3 * chunk + 3], *golden.e2e["draws_renoise"][chunk]
        return given[step].transpose(0, 1)

    monkeypatch.setattr(worldkv.rollout, "gaussian", gaussian)
    pictures = NoPictures()
    model = model_of(golden, 3, 10.0, pictures)
    memory = ChunkMemory([ResidentTier("device", torch.device("cpu"), 2**28, verifies=False)], EPOCH)
    session = open_session(model, memory, policy, golden.trajectory, context=context_of(golden))
    for _ in worldkv.rollout.rollout(model, [session], levels=model.schedule):
        pass
    found = torch.cat(pictures.latents).transpose(0, 1)
    torch.testing.assert_close(found, golden.e2e[f"{name}/latents"], atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("control", ["cam", "act"])
def test_camera_maps_of_chunks_match_the_clip(reference: Path, control: str):
    tensors = load_file(reference / "camera" / "camera.safetensors")
    manifest = json.loads((reference / "camera" / "manifest.json").read_text())
    poses, intrinsics, keys = (
        stretched(tensors[f"{name}_npy"].numpy(), 48) for name in ("poses", "intrinsics", "action")
    )
    trajectory = Trajectory(poses, intrinsics, from_key_columns(keys, LINGBOT_MOVE_COLUMNS, "action"))
    unit, before, maps = longest_step(trajectory), trajectory.c2w_F44[0], []
    for chunk in range(4):
        view = first_intrinsics(chunk_view(trajectory, chunk, 12), intrinsics[0])
        assert view.actions_FA.shape == (12, len(ACTION_COLUMNS))
        maps.append(camera_map(view, before, unit, PictureSize(*manifest["config"]["image_hw"]), control))
        before = latent_poses(view.c2w_F44)[-1]
    found = torch.from_numpy(np.concatenate(maps, axis=1))[None]
    torch.testing.assert_close(found, tensors[f"dit_cond_{control}"], atol=5e-5, rtol=0)


def first_intrinsics(view: View, row_4: np.ndarray) -> View:
    return View(view.c2w_F44, np.tile(row_4, (len(view.c2w_F44), 1)).astype(np.float32), view.actions_FA)
