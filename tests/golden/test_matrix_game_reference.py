"""Matrix-Game-2.0 from actions and draws to latents and caches, against recordings of the published pipeline."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from published_window import Grid, History, past_of, window
from recorded import manifest
from safetensors.torch import load_file
from torch import Tensor

from worldkv.camera import PictureSize
from worldkv.denoise import renoise
from worldkv.models.base import ModelState, View
from worldkv.models.matrix_game.model import MatrixGameModel
from worldkv.models.matrix_game.schedule import matrix_game_schedule
from worldkv.models.wan.model import LATENT_SIDE, WanSettings
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import shape_of

ABSOLUTE = 2e-5
SHIFT = 5.0
CASES = tuple(manifest("matrix_game2_dit").get("cases", ()))


class Case(NamedTuple):
    name: str
    model: MatrixGameModel
    config: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    caches: dict[str, Tensor]


@dataclass(frozen=True)
class RawRows:
    """In the place of a vocabulary: recorded rows are given as they are, mouse first, for their values are no keys."""

    mouse_values: int

    def rows(self, actions_FA: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return actions_FA[:, self.mouse_values :], actions_FA[:, : self.mouse_values]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, reference: Path) -> Case:
    return load_case(reference / "matrix_game2_dit", request.param)


def load_case(folder: Path, name: str) -> Case:
    told = json.loads((folder / "manifest.json").read_text())
    config = told["cases"][name]
    sizes = config["model_config"] | {"image_dim": told["config"]["ctxd"], "patch_size": [1, 2, 2]}
    network = WanNetwork(shape_of(sizes, "manifest")).requires_grad_(False)
    weights = load_file(folder / "weights.safetensors") | load_file(folder / config["weights_file"])
    state = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    rows, columns = told["config"]["lat"]
    settings = WanSettings(
        name=name,
        picture=PictureSize(rows * LATENT_SIDE, columns * LATENT_SIDE),
        chunk_latent_frames=config["pipeline_args"]["num_frame_per_block"],
        trained_latent_frames=15,
        schedule=matrix_game_schedule(config["pipeline_args"]["denoising_step_list"], SHIFT),
    )
    mouse = network.shape.actions.mouse
    model = MatrixGameModel(network, settings, "golden", None, RawRows(mouse.values if mouse else 0))
    data = (load_file(folder / f"{name}.safetensors") for name in ("inputs", "outputs", "caches"))
    return Case(name, model, config, *data)


def views(case: Case) -> Iterator[View]:
    """Per chunk, its rows of actions; after the last recorded one nothing is looked at."""
    keyboard = case.inputs[f"keyboard_cond{case.model.network.shape.actions.keys}"][0]
    rows = torch.cat([case.inputs["mouse_cond"][0], keyboard], dim=1) if case.model._actions.mouse else keyboard
    per_chunk = 4 * case.model.geometry.chunk_latent_frames
    missing = -len(rows) % per_chunk
    for chunk_rows in torch.cat([rows, rows[-1:].expand(missing, -1)]).split(per_chunk):
        poses = np.tile(np.eye(4, dtype=np.float32), (len(chunk_rows), 1, 1))
        yield View(poses, np.ones((len(poses), 4), np.float32), chunk_rows.numpy())


class Played(NamedTuple):
    latents: Tensor
    flows: dict[tuple[int, int], Tensor]
    history: History
    states: list[ModelState]


@pytest.fixture(scope="module")
def played(case: Case) -> Played:
    return play(case)


def play(case: Case) -> Played:
    """All chunks that have draws."""
    model, g, flows, latents, states = case.model, case.model.geometry, {}, [], []
    history = History(Grid(g.chunk_latent_frames, g.layers, g.heads, g.rows, g.columns, g.head_dim))
    chunks = len(case.outputs[f"{case.name}/draws"])
    mode = {
        "local_attn_size": case.config["model_config"]["local_attn_size"],
        "sink_size": case.config["model_config"]["sink_size"],
        "retrieved_source_start_frame_per_chunk": [None] * chunks,
    }
    context = {"image_tokens": case.inputs["visual_context"][0], "image_latents": case.inputs["cond_concat"][0, 4:]}
    state = model.open(next(views(case)), context)
    for chunk, view in zip(range(chunks), views(case), strict=False):
        part = slice(chunk * g.chunk_latent_frames, (chunk + 1) * g.chunk_latent_frames)
        start = case.inputs["noise"][:, :, part].transpose(1, 2)
        draws = [start, *case.outputs[f"{case.name}/draws"][chunk][:, None]]
        condition = model.condition([state], [view])
        seen = window(history, past_of(history, mode, chunk), part.start)
        record_flows(model, flows, chunk)
        out = renoise(model, draws.__getitem__, condition, seen, model.schedule)
        kv = model.clean_pass(out, condition, seen, [state], generated=True)
        history.k.append(kv.k_LBTHD[:, 0])
        history.v.append(kv.v_LBTHD[:, 0])
        latents.append(out[0].transpose(0, 1))
        states.append(ModelState(dict(state.tensors)))
    return Played(torch.cat(latents, dim=1), flows, history, states)


def record_flows(model: MatrixGameModel, flows: dict[tuple[int, int], Tensor], chunk: int) -> None:
    """Keep what the network says in each pass over this chunk."""
    steps = iter(range(len(model.schedule.levels) + 1))

    def keep(_: object, __: object, flow: Tensor) -> None:
        flows[chunk, next(steps)] = flow

    model.network._forward_hooks.clear()
    model.network.register_forward_hook(keep)


def test_schedule_matches(case: Case):
    expected = case.outputs[f"{case.name}/denoising_step_list"]
    assert torch.equal(torch.tensor(case.model.schedule.levels) * 1000, expected)
    told = [case.model.timestep(level) for level in (*case.model.schedule.levels, 0.0)]
    assert torch.equal(torch.tensor(told), case.outputs[f"{case.name}/t"][:, 0, 0])


def test_generation_matches(case: Case, played: Played):
    expected = case.outputs[f"{case.name}/latents"][0]
    torch.testing.assert_close(played.latents, expected, atol=ABSOLUTE, rtol=0)


def test_every_pass_matches(case: Case, played: Played):
    (key,) = (key for key in case.outputs if key.startswith(f"{case.name}/flow_pred"))
    expected, chunks = case.outputs[key], len(case.outputs[f"{case.name}/draws"])
    first = chunks - len(expected)
    assert len(played.flows) == chunks * expected.shape[1]
    for (chunk, step), flow in played.flows.items():
        if chunk >= first:
            torch.testing.assert_close(flow, expected[chunk - first, step], atol=ABSOLUTE, rtol=0)


def test_self_attention_kv_matches(case: Case, played: Played):
    size, chunk_frames = case.config["model_config"]["local_attn_size"], case.model.geometry.chunk_latent_frames
    for chunk, name, layer, expected in recorded(case, "kv_cache", ("k", "v")):
        stop = (chunk + 1) * chunk_frames
        found = dict(zip("kv", played.history.frames(max(0, stop - size), stop), strict=True))[name]
        torch.testing.assert_close(found[layer][None], expected, atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("device", ["mouse", "keyboard"])
def test_action_caches_match(case: Case, played: Played, device: str):
    compared = 0
    for chunk, name, layer, expected in recorded(case, f"kv_cache_{device}", ("k", "v")):
        found = played.states[chunk].tensors[f"{device}_{name}/{layer}"]
        kept, stop = found.shape[-3], (chunk + 1) * case.model.geometry.chunk_latent_frames
        if name == "k":
            cos, sin = case.model.network.blocks[layer].action_model.angles(torch.arange(stop - kept, stop))
            found = torch.view_as_real(
                torch.view_as_complex(found.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin)[:, None]
            ).flatten(-2)
        # The published cache also holds what the next chunk will push out.
        found = found if device == "mouse" else found[None]
        torch.testing.assert_close(found, expected[:, expected.shape[1] - kept :], atol=ABSOLUTE, rtol=0)
        compared += 1
    assert compared or (device == "mouse" and case.model._actions.mouse is None)


def test_context_kv_matches(case: Case, played: Played):
    for _, name, layer, expected in recorded(case, "crossattn_cache", ("k", "v")):
        found = played.states[0].tensors[f"context_{name}"][layer]
        torch.testing.assert_close(found[None], expected, atol=ABSOLUTE, rtol=0)


def test_action_rotation_matches(case: Case):
    cos, sin = case.model.network.blocks[0].action_model.angles(torch.arange(len(case.outputs["rope/cos"])))
    for table, name in ((cos, "cos"), (sin, "sin")):
        expected = case.outputs[f"rope/{name}"]
        torch.testing.assert_close(table.repeat_interleave(2, dim=1), expected, atol=1e-6, rtol=0)


def recorded(case: Case, group: str, names: tuple[str, ...]) -> Iterator[tuple[int, str, int, Tensor]]:
    """(chunk, k or v, layer, tensor) of a group of caches of this case."""
    for key, tensor in case.caches.items():
        name, after, found, layer, kind = key.split("/")
        if (name, found) == (case.name, group) and kind in names:
            filled = case.caches.get(f"{name}/{after}/{found}/{layer}/local_end_index")
            filled = tensor[:, : int(filled)] if filled is not None else tensor
            yield int(after.removeprefix("cache_after_chunk")), kind, int(layer.removeprefix("layer")), filled
