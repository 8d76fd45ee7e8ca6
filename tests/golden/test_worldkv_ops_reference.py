"""Rotation, pruning and retrieval against recordings of the published WorldKV code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import manifest as recorded_manifest
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file as load_torch
from torch import Tensor

from worldkv.memory.compression import Pruning, gather, kept_tokens
from worldkv.memory.retrieval import candidates, pose_distance, select
from worldkv.window.rotary import angles, axis_pairs, frequencies, grid_token_ids, rotate, shift_time

ABSOLUTE = 5e-6
# Distances are recorded with eight digits, from float32.
DISTANCE = 2e-5
HEAD_DIMS = [int(name.removeprefix("rope_d")) for name in recorded_manifest("worldkv_ops").get("rope", ())]
COMPRESSED = [name.removeprefix("compress_") for name in recorded_manifest("worldkv_ops").get("compress", ())]


@pytest.fixture(scope="module")
def manifest(reference: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((reference / "worldkv_ops" / "manifest.json").read_text())
    return content


@pytest.fixture(scope="module")
def ops(reference: Path) -> dict[str, Tensor]:
    return load_torch(reference / "worldkv_ops" / "ops.safetensors")


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
class TestRotary:
    def test_causal_rotation_matches(self, ops: dict[str, Tensor], manifest: dict[str, Any], head_dim: int):
        case = manifest["rope"][f"rope_d{head_dim}"]
        q, expected = ops[f"rope/d{head_dim}/q_in"], ops[f"rope/d{head_dim}/q_out"]
        assert 2 * axis_pairs(head_dim)[0] == case["time_channels"]
        for start, out in zip(case["start_frames"], expected, strict=True):
            cos, sin = angles(grid_token_ids(*case["grid"], first_frame=start), head_dim)
            torch.testing.assert_close(rotate(q, cos, sin), out, atol=ABSOLUTE, rtol=0)

    def test_time_shift_matches_inside_the_published_table(
        self, ops: dict[str, Tensor], manifest: dict[str, Any], head_dim: int
    ):
        deltas = manifest["rope"][f"rope_d{head_dim}"]["deltas"]
        k, expected = ops[f"rope/d{head_dim}/k_in"], ops[f"rope/d{head_dim}/k_out"]
        for delta, out in zip(deltas, expected, strict=True):
            inside = max(-1023, min(1023, delta))
            torch.testing.assert_close(shift_time(k, inside), out, atol=ABSOLUTE, rtol=0)
            if delta != inside:  # the published code stops at the end of its table without a word
                assert (shift_time(k, delta) - out).abs().max() > 0.1

    def test_frequencies_match_the_published_table(self, ops: dict[str, Tensor], head_dim: int):
        position = torch.arange(64, dtype=torch.float64)
        radians = torch.cat([position[:, None] * frequencies(pairs) for pairs in axis_pairs(head_dim)], dim=1)
        torch.testing.assert_close(radians.cos(), ops[f"rope/d{head_dim}/freqs_cos"], atol=1e-12, rtol=0)
        torch.testing.assert_close(radians.sin(), ops[f"rope/d{head_dim}/freqs_sin"], atol=1e-12, rtol=0)


@pytest.mark.parametrize("case", COMPRESSED)
def test_kept_tokens_match(ops: dict[str, Tensor], manifest: dict[str, Any], case: str):
    config = manifest["compress"][f"compress_{case}"]
    frames, chunk_tokens = config["chunk_size"], config["chunk_size"] * config["frame_seqlen"]
    k = ops[f"compress/{case}/k"]
    for key, expected in config["kept"].items():
        ratio, rotate_anchor, pooled = key.removeprefix("ratio").replace("rotate", "").replace("pooled", "").split("_")
        found = []
        for chunk in range(config["num_chunks"]):
            anchor = chunk % frames if rotate_anchor == "1" else 0
            pruning = Pruning(float(ratio), pooled=pooled == "1", anchor_frame=anchor)
            start = chunk * chunk_tokens
            kept_1K = kept_tokens(k[:, start : start + chunk_tokens], frames, pruning)
            found += (kept_1K[0] + start).tolist()
        assert found == expected, key


def test_gathered_values_are_bit_exact(ops: dict[str, Tensor], manifest: dict[str, Any]):
    k, v = ops[f"compress/{COMPRESSED[0]}/k"], ops[f"compress/{COMPRESSED[0]}/v"]
    config = manifest["compress"][f"compress_{COMPRESSED[0]}"]
    tokens = config["chunk_size"] * config["frame_seqlen"]
    k, v = k[:, :tokens], v[:, :tokens]
    kept_1K = kept_tokens(k, config["chunk_size"], Pruning(0.25))
    assert torch.equal(gather(v, kept_1K), v[:, kept_1K[0]])


def retrieval_runs(reference: Path) -> list[tuple[str, np.ndarray, dict[str, Any]]]:
    folder = reference / "worldkv_ops"
    poses = load_numpy(folder / "trajectories.safetensors")
    cases = json.loads((folder / "retrieval.json").read_text())
    return [(case["name"], poses[f"{case['name']}/c2ws_infer"], run) for case in cases for run in case["runs"]]


def test_retrieval_matches(reference: Path):
    compared = robust = 0
    for name, c2w_F44, run in retrieval_runs(reference):
        size = run["chunk_size"]
        c2w_NF44 = c2w_F44[: len(c2w_F44) // size * size].reshape(-1, size, 4, 4)
        sink_chunks = -(-run["sink_size"] // size)
        # The published recent part counts the current chunk, and keeps one chunk apart even where it has no room.
        recent_chunks = max(1, run["recent_frames"][0] // size) - 1
        robust += sum(map(bool, run["robust"]))
        for current, expected in enumerate(run["selected_chunks"]):
            ids = candidates(current, sink_chunks, recent_chunks, parity=True)
            if expected is None:
                assert len(ids) == 0
                continue
            assert [ids[0], ids[-1]] == run["candidates"][current]
            distance_N = pose_distance(c2w_NF44[ids], c2w_NF44[current], parity=True)
            found = select(distance_N, ids, run["retrieval_frames"] // size)
            where = f"{name}, {run['retrieval_frames']} latent frames, chunk {current}"
            compared += _agrees(run, current, ids, distance_N, found.tolist(), where)
    assert compared == robust > 0


def _agrees(
    run: dict[str, Any], current: int, ids: range, distance_N: np.ndarray, found: list[int], where: str
) -> bool:
    expected, recorded_N = run["selected_chunks"][current], np.array(run["distances"][current])
    if run["robust"][current]:
        np.testing.assert_allclose(distance_N, recorded_N, atol=DISTANCE, err_msg=where)
        assert found == expected, where
        return True
    # Ties, or a camera that hardly moved: any choice that the recorded distances call as near is right.
    uncertain = 10 * run["max_abs_distance_diff_float32_vs_float64"][current] + DISTANCE
    reached, best = (recorded_N[[ids.index(chunk) for chunk in chosen]] for chosen in (found, expected))
    np.testing.assert_allclose(reached, best, atol=uncertain, err_msg=where)
    return False
