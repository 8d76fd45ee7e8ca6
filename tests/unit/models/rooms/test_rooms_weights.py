import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from worldkv.errors import CheckpointError
from worldkv.models.rooms import weights
from worldkv.models.rooms.model import SHIPPED_WEIGHTS, RoomsModel
from worldkv.models.rooms.network import RoomsNetwork, Shape

SHAPE = Shape(image=20, patch=10, layers=2, heads=2, head_dim=24, trained_frames=48)
FILE_LIMIT = 15 * 2**20
TOTAL_LIMIT = 32 * 2**20


@pytest.fixture
def network(make_network: Callable[..., RoomsNetwork]) -> RoomsNetwork:
    return make_network(SHAPE)


@pytest.fixture
def folder(network: RoomsNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sound checkpoint in several shards."""
    monkeypatch.setattr(weights, "SHARD_BYTES", 100_000)
    weights.save(network, tmp_path / "weights", tangent=0.75)
    return tmp_path / "weights"


def shards_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as fault:
        weights.load(folder)
    for word in words:
        assert word in str(fault.value)


def test_weights_come_back_as_float16_would_have_them(network, folder):
    loaded, tangent, epoch = weights.load(folder)
    assert tangent == 0.75
    assert loaded.shape == SHAPE
    assert not loaded.training
    assert len(epoch) == 32
    for name, tensor in network.state_dict().items():
        found = loaded.state_dict()[name]
        assert found.dtype == torch.float32
        assert torch.equal(found, tensor.half().float())


def test_saving_what_was_loaded_gives_the_same_epoch(folder, tmp_path):
    loaded, tangent, epoch = weights.load(folder)
    weights.save(loaded, tmp_path / "again", tangent)
    assert weights.load(tmp_path / "again")[2] == epoch


def test_other_weights_have_another_epoch(make_network, folder, tmp_path):
    weights.save(make_network(SHAPE, seed=1), tmp_path / "other", 0.75)
    assert weights.load(tmp_path / "other")[2] != weights.load(folder)[2]


def test_the_loaded_network_computes(folder):
    model = RoomsModel.load(folder)
    assert model.intrinsics == pytest.approx((10 / 0.75, 10 / 0.75, 10, 10))
    assert model.geometry.trained_latent_frames == 48
    assert model.epoch == weights.load(folder)[2]


def test_files_have_hugging_face_names_and_an_index(folder):
    shards = shards_of(folder)
    assert len(shards) > 1
    assert [s.name for s in shards] == [
        f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    held = {name: shard.name for shard in shards for name in load_file(shard)}
    assert index["weight_map"] == held
    assert index["metadata"]["total_size"] == sum(t.nbytes for s in shards for t in load_file(s).values())


def test_no_file_of_a_full_size_model_passes_15_mib(tmp_path):
    weights.save(RoomsNetwork(Shape()), tmp_path, tangent=1.0)
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert max(sizes) <= FILE_LIMIT
    assert sum(sizes) <= TOTAL_LIMIT


def test_the_shipped_weights_are_sound_and_small_enough():
    sizes = [file.stat().st_size for file in SHIPPED_WEIGHTS.iterdir()]
    assert max(sizes) <= FILE_LIMIT
    assert sum(sizes) <= TOTAL_LIMIT
    model = RoomsModel.load()
    assert all(parameter.isfinite().all() for parameter in model.network.parameters())


def test_a_truncated_shard_is_refused_by_name_wherever_it_ends(folder):
    shard = shards_of(folder)[1]
    data = shard.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        shard.write_bytes(data[:length])
        assert_refused(folder, str(shard))


def test_a_shard_that_is_something_else_is_refused_by_name(folder):
    shard = shards_of(folder)[0]
    shard.write_bytes(b"<!doctype html>" * 100)
    assert_refused(folder, str(shard), "not a safetensors file")


def test_a_missing_shard_is_refused_by_name(folder):
    shards_of(folder)[1].unlink()
    assert_refused(folder, shards_of(folder)[0].parent.name, "model-00002-of", "no such file")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_a_missing_json_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    assert_refused(folder, str(folder / name), "no such file")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe\x00", b"null"])
def test_a_malformed_json_file_is_refused_by_name(folder, name, content):
    (folder / name).write_bytes(content)
    assert_refused(folder, str(folder / name))


def test_an_absent_folder_is_refused_by_name(tmp_path):
    assert_refused(tmp_path / "nowhere", str(tmp_path / "nowhere"))


def test_another_model_type_is_refused_by_name(folder):
    edit_json(folder / "config.json", model_type="wan")
    assert_refused(folder, str(folder / "config.json"), "'wan'", "weights of another model")


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "two"},
        {"layers": 0},
        {"heads": -2},
        {"head_dim": 24.5},
        {"patch": 7},
        {"patch": [10]},
        {"frames_per_chunk": None},
        {"trained_frames": True},
        {"colours": 3},
        {"image": 25},
        {"tangent_half_fov": "wide"},
        {"tangent_half_fov": 0},
        {"tangent_half_fov": None},
    ],
    ids=str,
)
def test_a_senseless_config_is_refused_by_file_and_key(folder, changes):
    edit_json(folder / "config.json", **changes)
    assert_refused(folder, str(folder / "config.json"), next(iter(changes)))


def test_a_config_without_field_of_view_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    del config["tangent_half_fov"]
    (folder / "config.json").write_text(json.dumps(config))
    assert_refused(folder, str(folder / "config.json"), "tangent_half_fov")


def test_a_config_of_another_size_is_refused_by_tensor_and_both_shapes(folder, network):
    edit_json(folder / "config.json", head_dim=32)
    assert_refused(folder, ".safetensors: tensor ", "has shape", "expected")


def test_a_config_with_more_layers_is_refused_by_the_missing_tensor(folder):
    edit_json(folder / "config.json", layers=3)
    assert_refused(folder, "index.json", "tensor blocks.2.")


def test_weights_of_a_network_with_surfaces_come_back_with_them(make_network, tmp_path):
    network = make_network(replace(SHAPE, layers=3))
    weights.save(network, tmp_path, 1.0)
    loaded = weights.load(tmp_path)[0].state_dict()
    surfaces = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("surfaces.")}
    assert len(surfaces) == 4
    assert all(torch.equal(loaded[name], tensor.half().float()) for name, tensor in surfaces.items())


def test_weights_from_before_the_surfaces_are_refused_by_the_missing_tensor(make_network, tmp_path):
    weights.save(make_network(replace(SHAPE, layers=3)), tmp_path, 1.0)
    path = tmp_path / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    edit_json(path, weight_map={name: file for name, file in weight_map.items() if not name.startswith("surfaces.")})
    assert_refused(tmp_path, "index.json", "tensor surfaces.2.")


def rewritten(shard: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)


def test_a_tensor_of_the_wrong_shape_is_refused_by_file_name_and_shapes(folder):
    shard = next(s for s in shards_of(folder) if "head.bias" in load_file(s))
    rewritten(shard, lambda tensors: tensors.update({"head.bias": torch.zeros(7).half()}))
    assert_refused(folder, str(shard), "tensor head.bias has shape (7,), expected (300,)")


def test_an_extra_tensor_is_refused_by_file_and_name(folder):
    shard = shards_of(folder)[0]
    rewritten(shard, lambda tensors: tensors.update({"decoder.weight": torch.zeros(2)}))
    assert_refused(folder, str(shard), "tensor decoder.weight does not belong")


def test_a_tensor_that_its_shard_lost_is_refused_by_name(folder):
    shard = next(s for s in shards_of(folder) if "head.bias" in load_file(s))
    rewritten(shard, lambda tensors: tensors.pop("head.bias"))
    assert_refused(folder, "head.bias")


def test_an_index_without_a_tensor_is_refused_by_name(folder):
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    del weight_map["head.bias"]
    edit_json(path, weight_map=weight_map)
    assert_refused(folder, str(path), "tensor head.bias is missing")


@pytest.mark.parametrize("weight_map", [None, [], "all"])
def test_an_index_without_a_map_is_refused_by_name(folder, weight_map):
    path = folder / "model.safetensors.index.json"
    edit_json(path, weight_map=weight_map)
    assert_refused(folder, str(path), "weight_map")


def test_an_index_that_maps_to_no_file_name_is_refused_by_name(folder):
    path = folder / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    edit_json(path, weight_map=weight_map | {"head.bias": 3})
    assert_refused(folder, str(path), "weight_map")


def test_a_shape_survives_only_as_itself(folder, make_network, tmp_path):
    other = replace(SHAPE, trained_frames=96, frames_per_chunk=4)
    weights.save(make_network(other), tmp_path / "other", 1.0)
    assert weights.load(tmp_path / "other")[0].shape == other
