"""Worlds from a folder with its encoders in it: a prompt or a first picture is all that they are told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

pytest.importorskip("transformers", reason="the models extra is not installed")

import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from worldkv.cli import models as commands
from worldkv.config import load_as
from worldkv.errors import CapacityError, CheckpointError, ConfigError, ModelError, OutputError, WorldKVError
from worldkv.models import published as catalogue
from worldkv.models.published import Published, check, named, published
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.vae import WanVAE
from worldkv.runs import encoding, play
from worldkv.runs.play_config import PlayConfig

LINGBOT, MATRIX = "lingbot-world-fast", "matrix-game-2-universal"
PROMPT_ENCODER = {"vocabulary": 9, "width": 32, "mlp_width": 24, "heads": 2, "head_dim": 8, "layers": 1, "buckets": 8}
PICTURE_ENCODER = {"width": 32, "mlp_width": 24, "heads": 2, "layers": 2, "side": 28}


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> dict[str, Published]:
    """The published models and their encoders at tiny sizes, as if these were the published ones."""
    models = {}
    for name, model in published().items():
        about = model.about
        small = {"config": {**about["config"], **about["tiny_config"]}, "vae_width": about["tiny_vae_width"]}
        encoders = {"prompt_encoder": PROMPT_ENCODER, "picture_encoder": PICTURE_ENCODER}
        models[name] = Published(name, {**about, **small, **encoders, "picture": about["tiny_picture"]})
    monkeypatch.setattr(catalogue, "published", lambda: models)
    return models


@pytest.fixture
def root(tmp_path: Path, tiny: dict[str, Published]) -> Path:
    """Both models, whole."""
    folder = tmp_path / "weights"
    for name in (LINGBOT, MATRIX):
        path = tiny[name].transformer(folder)
        file = path if path.suffix else path / "model.safetensors"
        file.parent.mkdir(parents=True)
        state = drawn(WanNetwork(tiny[name].shape()))
        save_file({tiny[name].prefix + key: tensor for key, tensor in state.items()}, file)
    torch.save(drawn(WanVAE(tiny[LINGBOT].vae_shape())), folder / "Wan2.1_VAE.pth")
    for shapes, file in (
        (tiny[LINGBOT].prompt_shape().tensors(), catalogue.PROMPT_ENCODER_FILE),
        (tiny[MATRIX].picture_shape().tensors(), catalogue.PICTURE_ENCODER_FILE),
    ):
        draw = torch.Generator().manual_seed(0)
        torch.save({key: torch.randn(shape, generator=draw) / 4 for key, shape in shapes.items()}, folder / file)
    words = Tokenizer(WordLevel({"a": 0, "red": 1, "room": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    wrapped.save_pretrained(folder / catalogue.TOKENIZER_FOLDER)
    return folder


def drawn(network: nn.Module) -> dict[str, torch.Tensor]:
    randomise(network, 0)
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    pixels = torch.randint(0, 256, (64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    Image.fromarray(pixels.numpy()).save(tmp_path / "first.png")
    return tmp_path / "first.png"


@pytest.fixture
def make(root: Path, image: Path, tmp_path: Path) -> Callable[..., PlayConfig]:
    def build(name: str, video: str, *changes: str) -> PlayConfig:
        words = [f"model.name={name}", f"model.folder={root}", f"inputs.image={image}", "inputs.trajectory=R_L20_24"]
        return load_as(PlayConfig, None, [*words, f"video={tmp_path / video}.mp4", *changes])

    return build


def silent(name: str, done: int, of: int) -> None:
    assert 0 <= done <= of, name


def command(*words: object) -> None:
    """As `worldkv models WORDS`; raises what it raises."""
    app = typer.Typer()
    app.add_typer(commands.app, name="models")
    result = CliRunner().invoke(app, ["models", *map(str, words)])
    if result.exception is not None:
        raise result.exception


def test_a_folder_with_its_encoders_is_whole(root: Path):
    for name, part in ((LINGBOT, "prompt encoder"), (MATRIX, "picture encoder")):
        report = check(root, named(name))[3]
        assert (report.part, report.faults) == (part, ())
        assert report.tensors > 10


def test_a_prompt_is_encoded_as_its_file_would_say(root: Path, make, tmp_path: Path):
    told = {}
    file = tmp_path / "prompt.safetensors"
    command("encode", root, "--prompt", "a red room", "--out", file)
    assert load_file(file)["embeddings"].shape == (3, 32)
    for video, change in (
        ("one", "inputs.prompt=a red room"),
        ("two", f"inputs.embeddings={file}"),
        ("three", "inputs.prompt=red red room"),
    ):
        config = make(LINGBOT, video, change)
        assert play.play(config, progress=silent).chunks == 2
        told[video] = config.video.read_bytes()
    assert told["one"] == told["two"] != told["three"]


def test_a_picture_is_encoded_as_its_file_would_say(root: Path, image: Path, make, tmp_path: Path):
    file = tmp_path / "clip.safetensors"
    command("encode", root, "--image", image, "--out", file)
    assert load_file(file)["embeddings"].shape == (5, 32)
    told = []
    for video, changes in (("one", ()), ("two", (f"inputs.embeddings={file}",))):
        config = make(MATRIX, video, *changes)
        play.play(config, progress=silent)
        told.append(config.video.read_bytes())
    assert told[0] == told[1]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (LINGBOT, (), "give prompt or embeddings; lingbot-world-fast is told what its world is like"),
        (LINGBOT, ("inputs.prompt=a", "inputs.embeddings=b"), "give either prompt or embeddings"),
        (MATRIX, ("inputs.prompt=a",), "matrix-game-2-universal takes no prompt"),
    ],
)
def test_what_a_model_cannot_be_told_is_refused(make, name: str, changes: tuple[str, ...], message: str):
    with pytest.raises(ConfigError, match=message):
        make(name, "none", *changes)


@pytest.mark.parametrize(("name", "change"), [(LINGBOT, "inputs.prompt=a room"), (MATRIX, "seed=0")])
def test_random_weights_are_told_noise(make, name: str, change: str):
    config = make(name, "noise", change, "model.folder=null", "model.random_weights=1", "model.size=tiny")
    assert play.play(config, progress=silent).chunks == 2


class TestNothingIsReadBefore:
    """All that is amiss in a folder is told before an encoder or a transformer is read."""

    @pytest.fixture(autouse=True)
    def unread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("weights were read")

        monkeypatch.setattr("worldkv.models.checkpoint._tensors", refuse)

    def fault(self, config: PlayConfig, kind: type[WorldKVError]) -> str:
        with pytest.raises(kind) as caught:
            play.play(config, progress=silent)
        return str(caught.value)

    def test_an_encoder_that_is_not_there(self, root: Path, make):
        (root / catalogue.PROMPT_ENCODER_FILE).unlink()
        said = self.fault(make(LINGBOT, "none", "inputs.prompt=a room"), CheckpointError)
        assert said == f"{root / catalogue.PROMPT_ENCODER_FILE}: no such file"
        assert check(root, named(LINGBOT))[3].optional

    def test_a_tokenizer_that_is_not_there(self, root: Path, make):
        (root / catalogue.TOKENIZER_FOLDER).rename(root / "elsewhere")
        said = self.fault(make(LINGBOT, "none", "inputs.prompt=a room"), CheckpointError)
        assert said == f"{root / catalogue.TOKENIZER_FOLDER}: no such folder; the tokenizer's"

    def test_a_transformer_that_is_not_whole(self, root: Path, make, tiny: dict[str, Published]):
        file = tiny[MATRIX].transformer(root)
        save_file({"model.head.head.bias": torch.zeros(2)}, file)
        assert "is missing (and" in self.fault(make(MATRIX, "none"), CheckpointError)

    def test_no_room_for_the_encoder(self, make, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(catalogue, "free_bytes", lambda device: 2**10)
        said = self.fault(make(LINGBOT, "none", "inputs.prompt=a room"), CapacityError)
        assert said.startswith("the prompt encoder has 0.0 GiB of weights")

    def test_commands_that_cannot_be_meant(self, root: Path, image: Path, tmp_path: Path, tiny: dict[str, Published]):
        out = tmp_path / "out.safetensors"
        with pytest.raises(ConfigError, match="give either --prompt or --image"):
            command("encode", root, "--out", out)
        with pytest.raises(OutputError, match=r"first\.png: already exists"):
            command("encode", root, "--prompt", "a", "--out", image)
        wide = tmp_path / "wide.png"
        Image.new("RGB", (96, 32)).save(wide)
        with pytest.raises(ModelError, match="the image has 32x96 pixels, the model makes 64x96"):
            command("encode", root, "--image", wide, "--out", out)
        tiny[MATRIX].transformer(root).unlink()
        with pytest.raises(ConfigError, match="holds lingbot-world-fast, which takes no encoded image"):
            command("encode", root, "--image", image, "--out", out)


def test_encoders_say_what_library_they_miss(root: Path, monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("worldkv.models.encoders.library.importlib.import_module", absent)
    with pytest.raises(ConfigError, match="encoding a prompt needs transformers, which is not installed: pip install"):
        encoding.encoded_prompt(root, named(LINGBOT), "a room", torch.device("cpu"))
