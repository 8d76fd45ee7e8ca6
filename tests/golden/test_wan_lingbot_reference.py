"""The Wan DiT with LingBot's weights, chunk by chunk, against recordings of the published code in all its cache modes.

Every pass has a recorded input (teacher forcing); each chunk's clean pass gives the KV that later windows are made of.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from published_window import Grid, History, past_of, sees_itself, window
from recorded import manifest
from safetensors.torch import load_file
from torch import Tensor

from worldkv.memory.retrieval import candidates, pose_distance, select
from worldkv.models.wan.layers import Condition
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import shape_of

ABSOLUTE = 2e-5
PASSES = ("noise", "x1", "clean")
MODES = tuple(manifest("lingbot_dit").get("modes", ()))


class Case(NamedTuple):
    network: WanNetwork
    inputs: dict[str, Tensor]
    manifest: dict[str, Any]
    folder: Path


@pytest.fixture(scope="module")
def case(reference: Path) -> Case:
    folder = reference / "lingbot_dit"
    manifest = json.loads((folder / "manifest.json").read_text())
    network = WanNetwork(shape_of(manifest["config"], "manifest"))
    network.load_state_dict(load_file(folder / "weights.safetensors"))
    return Case(network.requires_grad_(False), load_file(folder / "inputs.safetensors"), manifest, folder)


def history_of(case: Case) -> History:
    geometry, shape = case.manifest["geometry"], case.network.shape
    rows, columns = geometry["latent_h"] // shape.patch[1], geometry["latent_w"] // shape.patch[2]
    return History(Grid(geometry["chunk_size"], shape.layers, shape.heads, rows, columns, shape.head_dim))


def play(case: Case, mode: dict[str, Any], chunks: int) -> tuple[Tensor, History]:
    """Outputs [chunk, pass, C, F, H, W] and the KV of all chunks."""
    history, inputs, out = history_of(case), case.inputs, []
    size = history.grid.chunk_frames
    context = case.network.context(inputs["context"][None])
    for chunk in range(chunks):
        part = slice(chunk * size, (chunk + 1) * size)
        condition = Condition(
            inputs["y"][None, :, part], context, case.network.camera(inputs["cond"][:, :, part].float())
        )
        view = window(history, past_of(history, mode, chunk), chunk * size, sees_itself=sees_itself(mode, chunk))
        own: list[tuple[Tensor, Tensor]] = []

        def attend(layer, q, k, v, view=view, own=own):
            own.append((k[0], v[0]))
            return view.attend(layer, q, k, v)

        for number, name in enumerate(PASSES):
            own.clear()
            timestep = inputs["t"][number].expand(1, size)
            out.append(case.network(inputs[name][None, :, part], timestep, condition, attend)[0])
        history.k.append(torch.stack([k for k, _ in own]))
        history.v.append(torch.stack([v for _, v in own]))
    return torch.stack(out).unflatten(0, (chunks, len(PASSES))), history


@pytest.mark.parametrize("name", MODES)
def test_outputs_match_in_every_cache_mode(case: Case, name: str):
    mode = case.manifest["modes"][name]
    expected = load_file(case.folder / "outputs.safetensors")[f"{name}/out"]
    found, _ = play(case, mode, case.manifest["geometry"]["num_chunks"])
    stored = mode["outputs_stored"]
    found = found[stored["first_chunk"] :, stored["passes"]]
    torch.testing.assert_close(found, expected, atol=ABSOLUTE, rtol=0)


@pytest.mark.parametrize("name", [name for name in MODES if "retr" in name])
def test_the_published_ranking_finds_the_recorded_chunks(case: Case, name: str):
    mode, size = case.manifest["modes"][name], case.manifest["geometry"]["chunk_size"]
    c2w_NF44 = case.inputs["c2ws_infer"].numpy().reshape(-1, size, 4, 4)
    recent = max(1, mode["recent_frames"] // size) - 1
    for chunk, expected in enumerate(mode["retrieved_source_start_frame_per_chunk"]):
        ids = candidates(chunk, -(-mode["sink_size"] // size), recent, parity=True)
        distance_N = pose_distance(c2w_NF44[ids], c2w_NF44[chunk], parity=True) if ids else np.zeros(0)
        found = select(distance_N, ids, mode["generate_kwargs"]["retrieval_frames"] // size)
        assert [size * int(one) for one in found] == (expected or []), f"chunk {chunk}"


def test_outputs_match_with_the_window_of_lingbot_2(case: Case):
    (name,) = (key for key in case.manifest if key.startswith("v2_"))
    chunks = case.manifest["geometry"]["num_chunks"]
    mode = case.manifest[name]["model_kwargs"] | {"retrieved_source_start_frame_per_chunk": [None] * chunks}
    ((key, expected),) = load_file(case.folder / "outputs_v2.safetensors").items()
    first = int(key.split("out_chunks")[1].split("to")[0])
    torch.testing.assert_close(play(case, mode, chunks)[0][first:], expected, atol=ABSOLUTE, rtol=0)


def test_kv_matches_after_each_recorded_chunk(case: Case):
    caches = load_file(case.folder / "caches.safetensors")
    histories: dict[str, History] = {}
    compared = 0
    for key, expected in caches.items():
        if "/after_chunk" not in key:
            continue
        name, after, layer, kind = key.split("/")
        mode, stop = (
            case.manifest["modes"][name],
            (int(after.removeprefix("after_chunk")) + 1) * case.manifest["geometry"]["chunk_size"],
        )
        if name not in histories:
            histories[name] = play(case, mode, case.manifest["geometry"]["num_chunks"])[1]
        parts = [histories[name].frames(*part) for part in kept_frames(case, mode, stop)]
        found = torch.cat([part["kv".index(kind[0])] for part in parts], dim=1)[int(layer.removeprefix("layer"))]
        torch.testing.assert_close(found[None, : expected.shape[1]], expected, atol=ABSOLUTE, rtol=0)
        compared += 1
    assert compared >= len(histories) >= 3


def kept_frames(case: Case, mode: dict[str, Any], stop: int) -> list[tuple[int, int]]:
    """What a published cache of the mode's size holds once latent frame `stop` is reached."""
    capacity = mode["kv_cache_tokens"] // case.manifest["geometry"]["tokens_per_frame"]
    sink = mode["sink_size"]
    return [(0, stop)] if stop <= capacity else [(0, sink), (stop - (capacity - sink), stop)]


def test_context_kv_matches(case: Case):
    caches, context = load_file(case.folder / "caches.safetensors"), case.network.context(case.inputs["context"][None])
    for layer in range(case.network.shape.layers):
        for kind, found_LBCHD in zip("kv", context, strict=True):
            expected = caches[f"crossattn/layer{layer}/{kind}"]
            torch.testing.assert_close(found_LBCHD[layer], expected, atol=ABSOLUTE, rtol=0)
