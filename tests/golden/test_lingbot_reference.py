"""LingBot from poses and draws to latents, against recordings of the published generation loop."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from published_window import Grid, History, past_of, sees_itself, window
from recorded import manifest
from safetensors.torch import load_file
from torch import Tensor

import worldkv.rollout
from worldkv.camera import (
    ACTION_COLUMNS,
    LINGBOT_MOVE_COLUMNS,
    Action,
    PictureSize,
    Trajectory,
    check_poses,
    from_key_columns,
    interpolate_poses,
    latent_frame_times,
)
from worldkv.denoise import renoise
from worldkv.memory.policy import MemoryPolicy
from worldkv.memory.store import ChunkMemory
from worldkv.memory.tiers.resident import ResidentTier
from worldkv.models.lingbot.camera import camera_map, latent_poses, longest_step
from worldkv.models.lingbot.model import LingBotModel
from worldkv.models.lingbot.schedule import lingbot_schedule
from worldkv.models.wan.model import LATENT_SIDE, WanSettings
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import shape_of
from worldkv.session import chunk_view, open_session

ABSOLUTE = 1e-5
EPOCH = "golden"
RUNS = {name.removeprefix("e2e/"): run for name, run in manifest("sampler").get("lingbot_e2e", {}).items()}
"""Recorded loops of the published code, by name."""


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
def sampler(reference: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((reference / "sampler" / "manifest.json").read_text())
    return content


def load_golden(folder: Path, runs: list[Path]) -> Golden:
    manifest = json.loads((folder / "manifest.json").read_text())
    network = WanNetwork(shape_of(manifest["config"], "manifest"))
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    inputs = load_file(folder / "inputs.safetensors")
    e2e: dict[str, Tensor] = {}
    for run in runs:
        e2e |= load_file(run)
    size = manifest["geometry"]["chunk_size"]
    trajectory = whole_chunks(inputs["poses_npy"].numpy(), inputs["intrinsics_npy"].numpy(), size)
    return Golden(network.requires_grad_(False), inputs, e2e, manifest, trajectory)


def whole_chunks(
    poses: np.ndarray, intrinsics: np.ndarray, chunk_frames: int, actions: tuple[Action, ...] | None = None
) -> Trajectory:
    """Whole chunks of four video frames for each latent frame, which looks at the first of them: where the published
    code reads its pose and its action."""
    latent_F44 = interpolate_poses(check_poses(poses, "poses"), latent_frame_times(len(poses), chunk_frames))
    held = None if actions is None else tuple(action for action in actions[::4] for _ in range(4))
    rows = np.repeat(intrinsics[:1], 4 * len(latent_F44), axis=0)
    return Trajectory(np.repeat(latent_F44, 4, axis=0), rows, held and held[: 4 * len(latent_F44)])


@dataclass
class NoPictures:
    """In the place of a VAE: latents are kept instead of decoded."""

    latents: list[Tensor] = field(default_factory=list)

    def decode(self, latents_FCHW: Tensor, state: object) -> Tensor:
        self.latents.append(latents_FCHW)
        return torch.zeros(len(latents_FCHW), 1, 1, 3, dtype=torch.uint8)


def model_of(
    golden: Golden, chunk_frames: int, rows: Sequence[int], shift: float, pictures: Any = None
) -> LingBotModel:
    geometry = golden.manifest["geometry"]
    settings = WanSettings(
        name="lingbot-tiny",
        picture=PictureSize(geometry["latent_h"] * LATENT_SIDE, geometry["latent_w"] * LATENT_SIDE),
        chunk_latent_frames=chunk_frames,
        trained_latent_frames=geometry["latent_frames"],
        schedule=lingbot_schedule(rows, shift),
    )
    return LingBotModel(golden.network, settings, EPOCH, pictures)


def context_of(golden: Golden) -> dict[str, Tensor]:
    return {
        "prompt": golden.inputs["context"],
        "image_latents": golden.inputs["y"][4:],
        "unit": torch.tensor(longest_step(golden.trajectory)),
    }


class Made(NamedTuple):
    latents: Tensor
    """[C, F, H, W]."""
    flows: dict[tuple[int, int], Tensor]
    """[C, F, H, W] of a chunk, by chunk and pass."""


def generate(golden: Golden, model: LingBotModel, mode: dict[str, Any], draws: Tensor) -> Made:
    """The chunks that have draws, in windows as the published code assembles them."""
    g = model.geometry
    history = History(Grid(g.chunk_latent_frames, g.layers, g.heads, g.rows, g.columns, g.head_dim))
    size, out, flows = g.chunk_latent_frames, [], {}
    passes = len(model.schedule.levels) + 1
    hook = model.network.register_forward_hook(lambda *call: flows.update({divmod(len(flows), passes): call[2][0]}))
    state = model.open(chunk_view(golden.trajectory, 0, 4 * size), context_of(golden))
    for chunk in range(len(draws)):
        noises = [golden.e2e["draws_noise"][:, chunk * size : (chunk + 1) * size], *draws[chunk]]
        condition = model.condition([state], [chunk_view(golden.trajectory, chunk, 4 * size)])
        view = window(history, past_of(history, mode, chunk), chunk * size, sees_itself=sees_itself(mode, chunk))

        def draw(step: int, noises=noises) -> Tensor:
            return noises[step].transpose(0, 1)[None]

        latents = renoise(model, draw, condition, view, model.schedule)
        kv = model.clean_pass(latents, condition, view, [state], generated=True)
        history.k.append(kv.k_LBTHD[:, 0])
        history.v.append(kv.v_LBTHD[:, 0])
        out.append(latents[0].transpose(0, 1))
    hook.remove()
    return Made(torch.cat(out, dim=1), flows)


def recorded_flows(golden: Golden, name: str, last: int) -> list[tuple[int, Tensor]]:
    """(chunk, [pass, C, F, H, W]) of the chunks whose flows a run has recorded."""
    keys = [key for key in golden.e2e if key.startswith(f"{name}/flow_pred")]
    chunks = {"chunks0_1_last": (0, 1, last), "last_chunk": (last,)}
    return [pair for key in keys for pair in zip(chunks[key.partition("flow_pred_")[2]], golden.e2e[key], strict=True)]


def assert_flows(golden: Golden, name: str, made: Made, model: LingBotModel) -> int:
    """Compare with all that is recorded; how many passes were."""
    compared = 0
    for chunk, expected in recorded_flows(golden, name, max(made.flows)[0]):
        for step, flow in enumerate(expected):
            torch.testing.assert_close(made.flows[chunk, step], flow, atol=ABSOLUTE, rtol=0)
            compared += 1
    told = [model.timestep(level) for level in (*model.schedule.levels, 0.0)]
    assert told == golden.e2e[f"{name}/t"][:, 0].tolist()
    return compared


def mode_of(golden: Golden, name: str) -> dict[str, Any]:
    """Which window a run has: that of the mode by whose name, and with whose options, it was recorded."""
    run = RUNS[name]
    mode = golden.manifest["modes"][name.rpartition("_shift")[0]]
    return mode | {"retrieved_source_start_frame_per_chunk": run["src_frame_ids"]}


@pytest.mark.parametrize("name", RUNS)
def test_generation_matches(golden: Golden, name: str):
    options = RUNS[name]["generate_kwargs"]
    size = golden.manifest["geometry"]["chunk_size"]
    model = model_of(golden, size, options["timesteps_index"], options["shift"])
    made = generate(golden, model, mode_of(golden, name), golden.e2e["draws_renoise"])
    torch.testing.assert_close(made.latents, golden.e2e[f"{name}/latents"], atol=ABSOLUTE, rtol=0)
    assert_flows(golden, name, made, model)


def test_generation_matches_with_chunks_and_window_of_lingbot_2(golden: Golden, sampler: dict[str, Any]):
    run = sampler["lingbot_v2_e2e"]
    mode = run | {"retrieved_source_start_frame_per_chunk": [None] * run["num_chunks"]}
    (key,) = (key for key in golden.e2e if key.startswith("chunk") and key.endswith("/latents"))
    model = model_of(golden, run["chunk_size"], run["timesteps_index"], run["shift"])
    made = generate(golden, model, mode, golden.e2e[key.replace("latents", "draws_renoise")])
    torch.testing.assert_close(made.latents, golden.e2e[key], atol=ABSOLUTE, rtol=0)
    assert assert_flows(golden, key.partition("/")[0], made, model) > 0


def policy_of(options: dict[str, Any]) -> MemoryPolicy | None:
    """The policy that rolls out as a run was recorded; None where memory chooses otherwise than was published."""
    if options.get("full_kv"):
        return MemoryPolicy("full", sink_chunks=0, recent_chunks=None, positions="original")
    if options.get("use_retrieval") or options.get("sliding_window"):
        return None
    return MemoryPolicy("window", sink_chunks=1, recent_chunks=1, positions="original")


@pytest.mark.parametrize("name", [name for name, run in RUNS.items() if policy_of(run["generate_kwargs"])])
def test_rollout_runs_it_unchanged(golden: Golden, name: str, monkeypatch: pytest.MonkeyPatch):
    options, size = RUNS[name]["generate_kwargs"], golden.manifest["geometry"]["chunk_size"]
    model = model_of(golden, size, options["timesteps_index"], options["shift"], NoPictures())
    policy = policy_of(options)
    assert policy is not None
    found = roll_out(golden, model, policy, golden.e2e["draws_renoise"], monkeypatch)
    torch.testing.assert_close(found, golden.e2e[f"{name}/latents"], atol=ABSOLUTE, rtol=0)


def test_rollout_runs_lingbot_2_in_its_own_window(
    golden: Golden, sampler: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    run = sampler["lingbot_v2_e2e"]
    most, sink, size = run["local_attn_size"], run["sink_size"], run["chunk_size"]
    policy = MemoryPolicy(
        "window",
        sink_chunks=-(-sink // size),
        recent_chunks=-(-(most - sink - size) // size),
        live_latent_frames=most,
        sink_latent_frames=sink,
        positions="original",
    )
    (key,) = (key for key in golden.e2e if key.startswith("chunk") and key.endswith("/latents"))
    model = model_of(golden, size, run["timesteps_index"], run["shift"], NoPictures())
    found = roll_out(golden, model, policy, golden.e2e[key.replace("latents", "draws_renoise")], monkeypatch)
    torch.testing.assert_close(found, golden.e2e[key], atol=ABSOLUTE, rtol=0)


def roll_out(
    golden: Golden, model: LingBotModel, policy: MemoryPolicy, draws: Tensor, monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Latents [C, F, H, W] of the whole trajectory, by `worldkv.rollout` with the recorded draws for noise."""
    size, pictures = model.geometry.chunk_latent_frames, model.pictures

    def gaussian(shape: tuple[int, ...], *, chunk: int, step: int, **_: int) -> Tensor:
        given = golden.e2e["draws_noise"][:, size * chunk : size * (chunk + 1)], *draws[chunk]
        return given[step].transpose(0, 1)

    monkeypatch.setattr(worldkv.rollout, "gaussian", gaussian)
    memory = ChunkMemory([ResidentTier("device", torch.device("cpu"), 2**28, verifies=False)], EPOCH)
    session = open_session(model, memory, policy, golden.trajectory, context=context_of(golden))
    for _ in worldkv.rollout.rollout(model, [session], levels=model.schedule):
        pass
    return torch.cat(pictures.latents).transpose(0, 1)


@pytest.mark.parametrize("control", ["cam", "act"])
def test_camera_maps_of_chunks_match_the_clip(reference: Path, control: str):
    tensors = load_file(reference / "camera" / "camera.safetensors")
    config = json.loads((reference / "camera" / "manifest.json").read_text())["config"]
    poses, intrinsics, keys = (tensors[f"{name}_npy"].numpy() for name in ("poses", "intrinsics", "action"))
    used = config["frame_num_arg"]
    actions = from_key_columns(keys, LINGBOT_MOVE_COLUMNS, "action")[:used]
    trajectory = whole_chunks(poses[:used], intrinsics, config["chunk_size"], actions)
    unit, first, before, maps = longest_step(trajectory), latent_poses(trajectory.c2w_F44)[0], None, []
    for chunk in range(len(trajectory) // (4 * config["chunk_size"])):
        view = chunk_view(trajectory, chunk, 4 * config["chunk_size"])
        assert view.actions_FA.shape == (len(view.c2w_F44), len(ACTION_COLUMNS))
        maps.append(camera_map(view, first, before, unit, PictureSize(*config["image_hw"]), control))
        before = latent_poses(view.c2w_F44)[-1]
    found = torch.from_numpy(np.concatenate(maps, axis=1))[None]
    torch.testing.assert_close(found, tensors[f"dit_cond_{control}"], atol=ABSOLUTE, rtol=0)
