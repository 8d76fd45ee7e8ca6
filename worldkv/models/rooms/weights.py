"""Read and write the rooms checkpoint: float16 safetensors shards under Hugging Face names, and config.json."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worldkv.errors import CheckpointError
from worldkv.models.rooms.network import RoomsNetwork, Shape

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
MODEL_TYPE = "worldkv-rooms"
# Repositories and package indexes dislike single files above 15 MiB.
SHARD_BYTES = 14 * 2**20


def save(network: RoomsNetwork, folder: Path, tangent: float) -> None:
    """Write config, shards and index into `folder`, which is created."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous().cpu() for name, tensor in network.state_dict().items()}
    shards: list[dict[str, torch.Tensor]] = [{}]
    room = SHARD_BYTES
    for name, tensor in state.items():
        if tensor.nbytes > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, str(folder / file), metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    config = {"model_type": MODEL_TYPE, "tangent_half_fov": tangent, **asdict(network.shape)}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n")


def load(folder: Path) -> tuple[RoomsNetwork, float, str]:
    """The network (float32, CPU, eval mode), the tangent of half its field of view, and the weights' digest.

    The digest is the xxh3-128 of config and shards: the model epoch that chunks carry. Raises CheckpointError.
    """
    shape, tangent = _read_config(folder / CONFIG)
    weight_map = _read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CheckpointError(f"{folder / INDEX}: no weight_map from tensors to files in it")
    with torch.device("meta"):
        network = RoomsNetwork(shape)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    if missing := sorted(expected.keys() - weight_map.keys()):
        raise CheckpointError(f"{folder / INDEX}: tensor {missing[0]} is missing ({len(missing)} in all)")
    state: dict[str, torch.Tensor] = {}
    digest = xxhash.xxh3_128((folder / CONFIG).read_bytes())
    for file in sorted(set(weight_map.values())):
        state |= _read_shard(folder / file, expected)
        digest.update((folder / file).read_bytes())
    if absent := sorted(expected.keys() - state.keys()):
        raise CheckpointError(f"{folder}: no shard holds tensor {absent[0]} ({len(absent)} missing in all)")
    network.load_state_dict(state, assign=True)
    return network.requires_grad_(False).eval(), tangent, digest.hexdigest()


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; a rooms checkpoint has {CONFIG} and {INDEX}") from None
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{path}: not readable as JSON: {fault}") from fault
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _read_config(path: Path) -> tuple[Shape, float]:
    config = _read_json(path)
    kind = config.pop("model_type", None)
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{path}: model_type is {kind!r}, expected {MODEL_TYPE!r}: weights of another model")
    tangent = config.pop("tangent_half_fov", None)
    if not isinstance(tangent, float | int) or not 0 < tangent < math.inf:
        raise CheckpointError(f"{path}: tangent_half_fov is {tangent!r}, expected a number above 0")
    return _read_shape(path, config), float(tangent)


def _read_shape(path: Path, config: dict[str, object]) -> Shape:
    known = [field.name for field in fields(Shape)]
    if unknown := sorted(config.keys() - set(known)):
        raise CheckpointError(f"{path}: {unknown[0]} does not belong to a {MODEL_TYPE} model")
    sizes: dict[str, int] = {}
    for name in known:
        value = config.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{path}: {name} is {value!r}, expected a whole number above 0")
        sizes[name] = value
    if sizes["image"] % sizes["patch"]:
        raise CheckpointError(f"{path}: image {sizes['image']} does not divide by patch {sizes['patch']}")
    return Shape(**sizes)


def _read_shard(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    try:
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file, though {INDEX} names it") from None
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{path}: truncated or not a safetensors file: {fault}") from fault
    for name, tensor in tensors.items():
        if name not in expected:
            raise CheckpointError(f"{path}: tensor {name} does not belong to a {MODEL_TYPE} model")
        if tuple(tensor.shape) != expected[name]:
            raise CheckpointError(f"{path}: tensor {name} has shape {tuple(tensor.shape)}, expected {expected[name]}")
    return {name: tensor.float() for name, tensor in tensors.items()}
