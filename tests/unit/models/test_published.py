"""Folders of weights, made here at tiny sizes in the published layouts: what is found, refused and loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from thread_ranks import on_ranks
from torch import Tensor

from worldkv.errors import CapacityError, CheckpointError, ConfigError
from worldkv.models import checkpoint
from worldkv.models import published as catalogue
from worldkv.models.published import Published, check, found_in, named, open_model, published, random_model
from worldkv.models.ranks import Slice, slices_of
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.vae import WanVAE

CPU = torch.device("cpu")
LINGBOT, MATRIX = "lingbot-world-fast", "matrix-game-2-templerun"
INDEX = "diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Published]:
    """The published models at their tiny sizes, as if these were the published ones."""
    models = {}
    for name, model in published().items():
        about = model.about
        small = {"config": {**about["config"], **about["tiny_config"]}, "vae_width": about["tiny_vae_width"]}
        models[name] = Published(name, {**about, **small, "picture": about["tiny_picture"]})
    monkeypatch.setattr(catalogue, "published", lambda: models)
    return models


def weights(model: Published, config: dict[str, str] | None = None) -> dict[str, Tensor]:
    network = WanNetwork(model.shape(config=config))
    randomise(network, 0)
    return {model.prefix + name: tensor.bfloat16() for name, tensor in network.state_dict().items()}


def write_vae(root: Path, model: Published) -> None:
    vae = WanVAE(model.vae_shape())
    randomise(vae, 0)
    torch.save(dict(vae.state_dict()), root / "Wan2.1_VAE.pth")


def write_lingbot(root: Path, model: Published, *, shards: int = 2, config: dict[str, str] | None = None) -> Path:
    folder = model.transformer(root)
    folder.mkdir(parents=True)
    state, weight_map = weights(model, config), {}
    for shard in range(shards):
        names = sorted(state)[shard::shards]
        file = f"diffusion_pytorch_model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({"_class_name": "WanModelFast", "model_type": "i2v"}))
    write_vae(root, model)
    return folder


def write_matrix_game(root: Path, model: Published) -> Path:
    file = model.transformer(root)
    file.parent.mkdir(parents=True)
    save_file(weights(model), file)
    write_vae(root, model)
    return file


def changed(file: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file)


def first_shard(root: Path, model: Published) -> Path:
    return sorted(model.transformer(root).glob("*.safetensors"))[0]


def transformer_faults(root: Path, name: str) -> tuple[str, ...]:
    return check(root, named(name))[0].faults


def test_a_whole_folder_is_recognised_and_has_no_fault(tmp_path: Path, tiny):
    write_lingbot(tmp_path, tiny[LINGBOT])
    write_matrix_game(tmp_path, tiny[MATRIX])
    assert [model.name for model in found_in(tmp_path)] == [LINGBOT, MATRIX]
    for name in (LINGBOT, MATRIX):
        transformer, vae, quick, encoder = check(tmp_path, named(name))
        assert transformer.faults == vae.faults == ()
        assert transformer.tensors == len(weights(tiny[name]))
        for part in (quick, encoder):
            assert part.optional
            assert "no such file" in part.faults[0]


def test_what_was_written_is_what_is_loaded(tmp_path: Path, tiny):
    write_lingbot(tmp_path, tiny[LINGBOT])
    model = open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.bfloat16)
    state = model.network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in weights(tiny[LINGBOT]).items())
    assert model.name == LINGBOT
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_a_prefix_is_taken_off(tmp_path: Path, tiny):
    write_matrix_game(tmp_path, tiny[MATRIX])
    model = open_model(tmp_path, tiny[MATRIX], device=CPU, dtype=torch.float32)
    expected = weights(tiny[MATRIX])["model.head.head.weight"].float()
    assert torch.equal(model.network.state_dict()["head.head.weight"], expected)


def test_the_epoch_depends_on_the_weights_and_not_on_their_shards(tmp_path: Path, tiny):
    epochs = []
    for shards in (1, 3):
        write_lingbot(tmp_path / str(shards), tiny[LINGBOT], shards=shards)
        epochs.append(open_model(tmp_path / str(shards), tiny[LINGBOT], device=CPU, dtype=torch.bfloat16).epoch)
    file = first_shard(tmp_path / "1", tiny[LINGBOT])
    changed(file, lambda state: state["head.head.bias"].add_(1))
    other = open_model(tmp_path / "1", tiny[LINGBOT], device=CPU, dtype=torch.bfloat16).epoch
    assert epochs[0] == epochs[1] != other


def test_a_folder_with_one_file_needs_no_index(tmp_path: Path, tiny):
    folder = write_lingbot(tmp_path, tiny[LINGBOT], shards=1)
    (folder / INDEX).unlink()
    assert check(tmp_path, tiny[LINGBOT])[0].faults == ()
    (folder / "stray.safetensors").write_bytes(b"")
    (fault,) = check(tmp_path, tiny[LINGBOT])[0].faults
    assert fault.startswith(f"{folder}: holds 2 safetensors files and no *.safetensors.index.json")


def test_weights_of_the_act_kind_are_told_by_their_shape(tmp_path: Path, tiny):
    write_lingbot(tmp_path, tiny[LINGBOT], config={"control_type": "act"})
    assert open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.float32).control == "act"


@pytest.mark.parametrize(("name", "write"), [(LINGBOT, write_lingbot), (MATRIX, write_matrix_game)])
def test_each_rank_takes_its_part_of_the_files_and_no_more(
    tmp_path: Path, tiny, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable
):
    write(tmp_path, tiny[name])
    read, part = [], checkpoint._part

    def recorded(handle: object, key: str, wanted: Slice | None) -> Tensor:
        tensor = part(handle, key, wanted)
        read.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(checkpoint, "_part", recorded)
    models = on_ranks(2, lambda ranks: open_model(tmp_path, tiny[name], device=CPU, dtype=torch.bfloat16, ranks=ranks))
    states = [model.network.state_dict() for model in models]
    assert sum(read) == sum(tensor.nbytes for state in states for tensor in state.values())
    slices = slices_of(models[0].network)
    for key, whole in weights(tiny[name]).items():
        own = key.removeprefix(tiny[name].prefix)
        parts = [state[own] for state in states]
        assert torch.equal(torch.cat(parts, slices[own].dim) if own in slices else parts[1], whole)
    assert {model.geometry.heads for model in models} == {2}


def test_a_change_in_one_ranks_part_is_another_epoch_for_all(tmp_path: Path, tiny):
    def epochs() -> list[str]:
        return on_ranks(
            2, lambda ranks: open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.bfloat16, ranks=ranks).epoch
        )

    write_lingbot(tmp_path, tiny[LINGBOT], shards=1)
    before = epochs()
    changed(first_shard(tmp_path, tiny[LINGBOT]), lambda state: state["blocks.0.self_attn.q.bias"][-1:].add_(1))
    assert len({*before, *epochs()}) == 4


class TestFaults:
    def test_a_folder_of_nothing_known(self, tmp_path: Path):
        with pytest.raises(CheckpointError, match="holds none of the published models; one of these must be in it"):
            found_in(tmp_path)
        with pytest.raises(CheckpointError, match="no such folder"):
            found_in(tmp_path / "nowhere")

    def test_a_name_that_is_not_there(self):
        with pytest.raises(ConfigError, match=f"model 'lingbot': must be one of {LINGBOT}"):
            named("lingbot")

    def test_a_missing_shard_is_named(self, tmp_path: Path, tiny):
        write_lingbot(tmp_path, tiny[LINGBOT])
        first_shard(tmp_path, tiny[LINGBOT]).unlink()
        (fault,) = transformer_faults(tmp_path, LINGBOT)
        assert "1 of its 2 files are missing: diffusion_pytorch_model-00001-of-00002.safetensors" in fault

    def test_a_truncated_shard_is_named(self, tmp_path: Path, tiny):
        write_lingbot(tmp_path, tiny[LINGBOT])
        file = first_shard(tmp_path, tiny[LINGBOT])
        file.write_bytes(file.read_bytes()[:-10])
        (fault,) = transformer_faults(tmp_path, LINGBOT)
        assert fault.startswith(f"{file}: truncated or not a safetensors file")

    def test_tensors_missing_unknown_or_of_another_shape_or_type(self, tmp_path: Path, tiny):
        write_lingbot(tmp_path, tiny[LINGBOT], shards=1)
        file = first_shard(tmp_path, tiny[LINGBOT])

        def spoil(state: dict[str, Tensor]) -> None:
            del state["head.head.bias"]
            state["head.norm.weight"] = torch.zeros(3)
            state["blocks.0.self_attn.q.bias"] = torch.zeros(7)
            state["blocks.1.self_attn.q.bias"] = state["blocks.1.self_attn.q.bias"].to(torch.int16)

        changed(file, spoil)
        assert sorted(transformer_faults(tmp_path, LINGBOT)) == sorted(
            [
                f"{file}: tensor blocks.0.self_attn.q.bias has shape [7], expected [96]",
                f"{file}: tensor blocks.1.self_attn.q.bias is of type I16, expected one of BF16, F16, F32",
                f"{file.parent}: tensor head.head.bias [64] is missing",
                f"{file}: tensor head.norm.weight does not belong to this model",
            ]
        )
        with pytest.raises(CheckpointError, match=r"\(and 3 more\)"):
            open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.bfloat16)

    def test_weights_of_another_model_are_refused(self, tmp_path: Path, tiny):
        file = write_matrix_game(tmp_path, tiny["matrix-game-2-universal"])
        other = tiny[MATRIX].transformer(tmp_path)
        other.parent.mkdir()
        file.rename(other)
        faults = transformer_faults(tmp_path, MATRIX)
        assert any("keyboard_embed.0.weight has shape [8, 4], expected [8, 7]" in fault for fault in faults)
        assert any("mouse_mlp.0.weight does not belong to this model" in fault for fault in faults)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"dim": "wide"}, "dim is 'wide', expected a whole number above 0"),
            ({"patch_size": [1, 2]}, r"patch_size is \[1, 2\], expected 1 and two whole numbers above 0"),
            ({"patch_size": [2, 2, 2]}, r"patch_size is \[2, 2, 2\], expected 1 and"),
            ({"num_heads": 5}, "dim 96 does not divide into 5 heads of an even size"),
        ],
    )
    def test_a_config_that_cannot_be_meant(self, tmp_path: Path, tiny, config, message: str):
        folder = write_lingbot(tmp_path, tiny[LINGBOT])
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"config.json: {message}"):
            open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.float32)

    @pytest.mark.parametrize("content", [b"", b"PK nonsense", None])
    def test_a_vae_that_is_no_file_of_tensors(self, tmp_path: Path, tiny, content: bytes | None):
        write_lingbot(tmp_path, tiny[LINGBOT])
        file = tmp_path / "Wan2.1_VAE.pth"
        if content is None:
            torch.save({"a": "text"}, file)
        else:
            file.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"Wan2.1_VAE.pth: (truncated or not a file|expected tensors)"):
            open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.float32)

    def test_a_vae_that_is_not_there(self, tmp_path: Path, tiny):
        write_lingbot(tmp_path, tiny[LINGBOT])
        (tmp_path / "Wan2.1_VAE.pth").unlink()
        with pytest.raises(CheckpointError, match=r"Wan2.1_VAE.pth: no such file"):
            open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.float32)

    def test_a_quick_decoder_is_only_missed_when_it_is_wanted(self, tmp_path: Path, tiny):
        write_lingbot(tmp_path, tiny[LINGBOT])
        with pytest.raises(CheckpointError, match=r"taew2_1.pth: no such file"):
            open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.float32, quick_decoder=True)


@pytest.mark.parametrize("name", list(json.loads((Path(catalogue.__file__).parent / "published.json").read_text())))
def test_random_weights_are_a_function_of_the_seed(name: str):
    one, same, other = (
        random_model(named(name), seed, size="tiny", device=CPU, dtype=torch.float32) for seed in (1, 1, 2)
    )
    states = [model.network.state_dict() for model in (one, same, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["head.head.weight"], states[2]["head.head.weight"])
    assert one.epoch == same.epoch != other.epoch


def test_weights_that_do_not_fit_are_refused_before_anything_is_allocated(tmp_path: Path, tiny, monkeypatch):
    monkeypatch.setattr(catalogue, "free_bytes", lambda device: 2**20)
    with pytest.raises(CapacityError, match=r"lingbot-world-fast has 0.\d GiB of weights, cpu has 0.0 GiB"):
        random_model(tiny[LINGBOT], 0, size="full", device=CPU, dtype=torch.float32)
    write_lingbot(tmp_path, tiny[LINGBOT])
    with pytest.raises(CapacityError):
        open_model(tmp_path, tiny[LINGBOT], device=CPU, dtype=torch.float32)
