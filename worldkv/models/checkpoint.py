"""Weights on disk: what files hold, whether that is what a network needs, and the way from there to a device.

- Looking reads headers alone: no tensor, no device.
- Loading maps files into memory and moves one tensor at a time, so the host never holds a model twice.
- `.pth` files are read by torch's restricted loader, which builds tensors and nothing else.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from worldkv.errors import CheckpointError
from worldkv.models.ranks import Slice, slices_of

INDEX_SUFFIX = ".safetensors.index.json"
DTYPES = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of an element of the types that weights may have."""
TORCH_NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a checkpoint, as its file's header tells."""

    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """On disk; 0 where the type is not one of DTYPES."""
        return DTYPES.get(self.dtype, 0) * torch.Size(self.shape).numel()


def weight_files(path: Path) -> list[Path]:
    """The files of a checkpoint: `path` itself, or a folder's shards by its index, or the one file in it.

    Raises CheckpointError for an index that cannot be read or names files that are not there.
    """
    if not path.is_dir():
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        return [path]
    indices = sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if indices:
        return _shards(indices[0])
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"{path}: holds {len(files)} safetensors files and no *{INDEX_SUFFIX} that orders them")
    return files


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensors to files in it")
    files = [index.parent / name for name in sorted(set(weight_map.values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise CheckpointError(f"{index}: {len(missing)} of its {len(files)} files are missing: {', '.join(missing)}")
    return files


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises CheckpointError."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as fault:
        raise CheckpointError(f"{path}: not readable as JSON: {fault}") from fault
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def stored_tensors(files: Sequence[Path], prefix: str = "") -> dict[str, StoredTensor]:
    """What the files hold, by name without `prefix`. Raises CheckpointError for a file that is truncated or foreign."""
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, dtype, shape in _headers(file):
            stored[name.removeprefix(prefix)] = StoredTensor(file, dtype, shape)
    return stored


def faults(stored: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], where: Path) -> list[str]:
    """Everything in which a checkpoint at `where` is not what a network needs: name, expected and found."""
    found = []
    for name, shape in expected.items():
        if name not in stored:
            found.append(f"{where}: tensor {name} {list(shape)} is missing")
        elif stored[name].shape != shape:
            one = stored[name]
            found.append(f"{one.file}: tensor {name} has shape {list(one.shape)}, expected {list(shape)}")
        elif stored[name].dtype not in DTYPES:
            one = stored[name]
            found.append(f"{one.file}: tensor {name} is of type {one.dtype}, expected one of {', '.join(DTYPES)}")
    unknown = stored.keys() - expected.keys()
    return found + [f"{stored[name].file}: tensor {name} does not belong to this model" for name in sorted(unknown)]


def expected_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """What a network, on the meta device say, needs; whole tensors where it holds a rank's part."""
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    return shapes | {name: part.whole_shape(shapes[name]) for name, part in slices_of(network).items()}


def load(
    network: nn.Module, files: Sequence[Path], *, device: torch.device, dtype: torch.dtype, prefix: str = ""
) -> str:
    """Fill a network made on the meta device; returns the digest of what it holds. Raises CheckpointError before that.

    Tensors that do not belong to the network are refused like missing ones. Of what it holds in part, only that part
    is read.
    """
    refuse(faults(stored_tensors(files, prefix), expected_shapes(network), files[0].parent))
    digests: dict[str, bytes] = {}
    state: dict[str, Tensor] = {}
    slices = {prefix + name: part for name, part in slices_of(network).items()}
    for name, tensor in _tensors(files, slices):
        own = name.removeprefix(prefix)
        data = tensor.contiguous()
        digests[own] = xxhash.xxh3_128_digest(data.reshape(-1).view(torch.uint8).numpy().data)
        state[own] = data.to(device, dtype, copy=True)
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False).eval()
    return xxhash.xxh3_128_hexdigest(b"".join(name.encode() + digests[name] for name in sorted(digests)))


def load_renamed(
    network: nn.Module,
    file: Path,
    expected: Mapping[str, tuple[int, ...]],
    rename: Callable[[str, Tensor], Mapping[str, Tensor]],
    *,
    device: torch.device,
    dtype: torch.dtype,
    unused: tuple[str, ...] = (),
) -> None:
    """Fill a network made on the meta device from a file that names its tensors otherwise.

    `expected` has the file's names and shapes; `rename` says under which names a network has a tensor, or parts of it.
    What begins like one of `unused` is not looked at. Raises CheckpointError before a tensor is read.
    """
    stored = {name: one for name, one in stored_tensors([file]).items() if not name.startswith(unused)}
    refuse(faults(stored, expected, file))
    state: dict[str, Tensor] = {}
    for name, tensor in _tensors([file], {}):
        if name in expected:
            state |= rename(name, tensor.to(device, dtype, copy=True))
    network.load_state_dict(state, assign=True)
    network.requires_grad_(False).eval()


def refuse(wrong: Sequence[str]) -> None:
    """Raise CheckpointError with the first of some faults, where there is one."""
    if wrong:
        raise CheckpointError(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))


def sole_tensor(file: Path) -> Tensor:
    """The one tensor of a safetensors file, of a floating type. Raises CheckpointError."""
    with _opened(file) as handle:
        names = list(handle.keys())
        if len(names) != 1:
            raise CheckpointError(f"{file}: holds {len(names)} tensors, expected one")
        tensor: Tensor = handle.get_tensor(names[0])
    if not tensor.is_floating_point():
        raise CheckpointError(f"{file}: tensor {names[0]} is of type {tensor.dtype}, expected floating numbers")
    return tensor


def _headers(file: Path) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    if file.suffix == ".pth":
        for name, tensor in _mapped(file).items():
            yield name, TORCH_NAMES.get(tensor.dtype, str(tensor.dtype)), tuple(tensor.shape)
        return
    with _opened(file) as handle:
        for name in handle.keys():  # noqa: SIM118 - not a dict
            header = handle.get_slice(name)
            yield name, header.get_dtype(), tuple(header.get_shape())


def _tensors(files: Sequence[Path], slices: Mapping[str, Slice]) -> Iterator[tuple[str, Tensor]]:
    for file in files:
        if file.suffix == ".pth":
            for name, tensor in _mapped(file).items():
                yield name, slices[name].cut(tensor) if name in slices else tensor
            continue
        with _opened(file) as handle:
            for name in handle.keys():  # noqa: SIM118 - not a dict
                yield name, _part(handle, name, slices.get(name))


def _part(handle: Any, name: str, part: Slice | None) -> Tensor:
    """A tensor of a safetensors file, or that part of it."""
    if part is None:
        return handle.get_tensor(name)  # type: ignore[no-any-return]
    before = [slice(None)] * part.dim
    tensor: Tensor = handle.get_slice(name)[(*before, slice(part.start, part.stop))]
    return tensor


def _opened(file: Path) -> safe_open:
    try:
        return safe_open(str(file), framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (SafetensorError, OSError) as fault:
        raise CheckpointError(f"{file}: truncated or not a safetensors file: {fault}") from fault


def _mapped(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as fault:
        reason = str(fault).partition("\n")[0]
        raise CheckpointError(f"{file}: truncated or not a file of tensors: {reason}") from fault
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise CheckpointError(f"{file}: expected tensors by name, found something else")
    return content
