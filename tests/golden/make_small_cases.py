"""Cuts the smallest useful cases out of the recordings, so that parity is tested where these are not at hand.

python tests/golden/make_small_cases.py ../shared/reference
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent / "small"
LINGBOT_MODE, LINGBOT_CHUNKS = "retr6_rope_storepool", 5
MATRIX_CHUNKS = 3


def lingbot(reference: Path) -> None:
    """One run up to the first chunk that retrieves."""
    source, folder = reference / "lingbot_dit", HERE / "lingbot"
    folder.mkdir(parents=True, exist_ok=True)
    frames = 3 * LINGBOT_CHUNKS
    inputs = load_file(source / "inputs.safetensors")
    kept = {name: inputs[name] for name in ("context", "poses_npy", "intrinsics_npy")} | {"y": inputs["y"][:, :frames]}
    write(folder / "inputs.safetensors", kept)
    write(folder / "weights.safetensors", load_file(source / "weights.safetensors"))
    run = load_file(reference / "sampler" / "lingbot_e2e.safetensors")
    latents = run[f"{LINGBOT_MODE}_shift10/latents"][:, :frames]
    draws = {"draws_noise": run["draws_noise"][:, :frames], "draws_renoise": run["draws_renoise"][:LINGBOT_CHUNKS]}
    write(folder / "run.safetensors", draws | {"latents": latents})
    manifest = read(source / "manifest.json")
    mode = manifest["modes"][LINGBOT_MODE]
    cut = {key: manifest[key] for key in ("provenance", "config", "geometry")}
    (folder / "manifest.json").write_text(json.dumps(cut | {"modes": {LINGBOT_MODE: mode}}, indent=1) + "\n")


def matrix_game(reference: Path) -> None:
    """The first chunks of the universal weights."""
    source, folder = reference / "matrix_game2_dit", HERE / "matrix_game"
    folder.mkdir(parents=True, exist_ok=True)
    frames = 3 * MATRIX_CHUNKS
    inputs, outputs = (load_file(source / f"{name}.safetensors") for name in ("inputs", "outputs"))
    rows = {name: inputs[name] for name in ("visual_context", "mouse_cond", "keyboard_cond4")}
    cut = {name: inputs[name][:, :, :frames] for name in ("noise", "cond_concat")}
    write(folder / "inputs.safetensors", rows | cut)
    write(folder / "weights.safetensors", load_file(source / "weights.safetensors"))
    latents, draws = outputs["universal/latents"][:, :, :frames], outputs["universal/draws"][:MATRIX_CHUNKS]
    write(folder / "outputs.safetensors", {"universal/latents": latents, "universal/draws": draws})
    write(folder / "caches.safetensors", {})
    manifest = read(source / "manifest.json")
    manifest = {
        "provenance": manifest["provenance"],
        "config": manifest["config"],
        "cases": {"universal": manifest["cases"]["universal"]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


if __name__ == "__main__":
    lingbot(Path(sys.argv[1]))
    matrix_game(Path(sys.argv[1]))
