"""The published models that can be loaded: their sizes, their files, how they are meant to be used.

What is known of them stands in `published.json`; a folder's own config goes before it. `check` looks at a folder
without reading a tensor; `open_model` reads them; `random_model` makes a model of the same sizes from nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from worldkv.camera import PictureSize
from worldkv.errors import CapacityError, CheckpointError, ConfigError
from worldkv.memory.tiers.headroom import device_headroom, host_headroom
from worldkv.models import checkpoint
from worldkv.models.encoders.picture import PictureShape
from worldkv.models.encoders.prompt import PromptShape
from worldkv.models.lingbot.model import LingBotModel
from worldkv.models.lingbot.schedule import lingbot_schedule
from worldkv.models.matrix_game.model import MatrixGameModel
from worldkv.models.matrix_game.schedule import matrix_game_schedule
from worldkv.models.matrix_game.vocabulary import VOCABULARIES, Vocabulary
from worldkv.models.ranks import ALONE, Ranks, joint_epoch
from worldkv.models.wan.model import WanModel, WanSettings
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.official import CAMERA_CHANNELS, shape_of
from worldkv.models.wan.pictures import Pictures, Resampling
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.shape import WanShape
from worldkv.models.wan.tiny_vae import TinyVAE, TinyVAEShape
from worldkv.models.wan.vae import VAEShape, WanVAE

VAE_FILE, QUICK_DECODER_FILE, CONFIG_FILE = "Wan2.1_VAE.pth", "taew2_1.pth", "config.json"
PROMPT_ENCODER_FILE, TOKENIZER_FOLDER = "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl"
PICTURE_ENCODER_FILE = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
PREFIXES = {"lingbot": "", "matrix_game": "model."}
"""Of the names of tensors, by family."""
CAMERA_TENSOR = "patch_embedding_wancamctrl.weight"
Size = Literal["full", "tiny"]


@dataclass(frozen=True)
class Published:
    """One set of weights."""

    name: str
    about: Mapping[str, Any]
    """Its entry in published.json."""

    @property
    def title(self) -> str:
        """As its makers call it."""
        return str(self.about["title"])

    @property
    def licence(self) -> str:
        """SPDX identifier of the weights' licence."""
        return str(self.about["licence"])

    @property
    def folder(self) -> str:
        """Name of the folder in which its makers would have it."""
        return str(self.about["folder"])

    @property
    def prefix(self) -> str:
        """Before the name of each tensor."""
        return PREFIXES[self.about["family"]]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """The actions that move it; None where poses do."""
        return VOCABULARIES.get(self.about.get("mode", ""))

    @property
    def policy(self) -> str:
        """A memory policy that suits it."""
        return str(self.about["policy"])

    @property
    def video_fps(self) -> int:
        """Video frames per second at which its worlds run."""
        return int(self.about["video_fps"])

    def transformer(self, root: Path) -> Path:
        """The file or folder of its transformer."""
        return root / str(self.about["transformer"])

    def shape(self, size: Size = "full", config: Mapping[str, Any] | None = None, source: str = "") -> WanShape:
        """Sizes of its transformer, those of `config` where it has them. Raises CheckpointError."""
        tiny = self.about["tiny_config"] if size == "tiny" else {}
        return shape_of({**self.about["config"], **tiny, **(config or {})}, source or self.name)

    def settings(self, size: Size = "full") -> WanSettings:
        """How it is meant to be used."""
        about = self.about
        schedule = lingbot_schedule if about["family"] == "lingbot" else matrix_game_schedule
        return WanSettings(
            name=self.name,
            picture=PictureSize(*about["picture" if size == "full" else "tiny_picture"]),
            chunk_latent_frames=about["chunk_latent_frames"],
            trained_latent_frames=about["window_latent_frames"],
            schedule=schedule(about["steps"], about["shift"]),
        )

    def vae_shape(self, size: Size = "full") -> VAEShape:
        """Sizes of its autoencoder."""
        return VAEShape(width=self.about["vae_width" if size == "full" else "tiny_vae_width"])

    @property
    def resampling(self) -> Resampling:
        """How its first picture is brought to size."""
        return "bicubic" if self.about["family"] == "lingbot" else "bilinear"

    @property
    def takes_prompts(self) -> bool:
        """Whether it is told a prompt, or else shown its first picture by CLIP."""
        return bool(self.about["family"] == "lingbot")

    def prompt_shape(self) -> PromptShape:
        """Sizes of its prompt encoder."""
        return PromptShape(**self.about.get("prompt_encoder", {}))

    def picture_shape(self) -> PictureShape:
        """Sizes of its picture encoder."""
        return PictureShape(**self.about.get("picture_encoder", {}))

    def model(self, network: WanNetwork, size: Size, epoch: str, pictures: Pictures | None) -> WanModel:
        """The model around a network."""
        if self.about["family"] == "lingbot":
            return LingBotModel(network, self.settings(size), epoch, pictures)
        assert self.vocabulary is not None
        return MatrixGameModel(network, self.settings(size), epoch, pictures, self.vocabulary)


@dataclass(frozen=True)
class PartReport:
    """What `check` found of one part of a model."""

    part: str
    path: Path
    tensors: int
    nbytes: int
    faults: tuple[str, ...]
    optional: bool = False


@cache
def published() -> dict[str, Published]:
    """All models, by name."""
    text = resources.files("worldkv.models").joinpath("published.json").read_text()
    return {name: Published(name, about) for name, about in json.loads(text).items()}


def named(name: str) -> Published:
    """Raises ConfigError for a name that is not there."""
    if name not in published():
        raise ConfigError(f"model {name!r}: must be one of {', '.join(published())}")
    return published()[name]


def of_source(name: str) -> list[Published]:
    """The model of that name, or those that come from a repository. Raises ConfigError where there is none."""
    if "/" not in name:
        return [named(name)]
    sources = {model.about["source"]: None for model in published().values()}
    if name not in sources:
        raise ConfigError(f"repository {name!r}: must be one of {', '.join(sources)}, or give the name of a model")
    return [model for model in published().values() if model.about["source"] == name]


def found_in(root: Path) -> list[Published]:
    """The models whose transformer a folder holds. Raises CheckpointError where it holds none."""
    if not root.is_dir():
        raise CheckpointError(f"{root}: no such folder")
    held = [model for model in published().values() if model.transformer(root).exists()]
    if not held:
        places = ", ".join(str(model.about["transformer"]) for model in published().values())
        raise CheckpointError(f"{root}: holds none of the published models; one of these must be in it: {places}")
    return held


def check(root: Path, model: Published) -> list[PartReport]:
    """Look at every part of a model's folder, at headers alone. Faults are reported, not raised."""
    with torch.device("meta"):
        vae, quick = WanVAE(model.vae_shape()), TinyVAE(TinyVAEShape())
    return [
        _check_transformer(root, model),
        _check_part("VAE", root / VAE_FILE, checkpoint.expected_shapes(vae)),
        _check_part("quick decoder", root / QUICK_DECODER_FILE, checkpoint.expected_shapes(quick), optional=True),
        check_encoder(root, model),
    ]


def check_encoder(root: Path, model: Published) -> PartReport:
    """Look at what encodes its prompt or first picture; it is optional, for what it says may come as a file."""
    if not model.takes_prompts:
        shape = model.picture_shape()
        file = root / PICTURE_ENCODER_FILE
        return _check_part("picture encoder", file, shape.tensors(), unused=shape.unused, optional=True)
    report = _check_part("prompt encoder", root / PROMPT_ENCODER_FILE, model.prompt_shape().tensors(), optional=True)
    if not report.tensors or (root / TOKENIZER_FOLDER).is_dir():
        return report
    return replace(report, faults=(*report.faults, f"{root / TOKENIZER_FOLDER}: no such folder; the tokenizer's"))


def _check_transformer(root: Path, model: Published) -> PartReport:
    path = model.transformer(root)
    try:
        network = _empty_network(path, model)
    except CheckpointError as fault:
        return PartReport("transformer", path, 0, 0, (str(fault),))
    return _check_part("transformer", path, checkpoint.expected_shapes(network), prefix=model.prefix)


def _check_part(
    part: str,
    path: Path,
    expected: Mapping[str, tuple[int, ...]],
    *,
    prefix: str = "",
    unused: tuple[str, ...] = (),
    optional: bool = False,
) -> PartReport:
    try:
        stored = checkpoint.stored_tensors(checkpoint.weight_files(path), prefix)
    except CheckpointError as fault:
        return PartReport(part, path, 0, 0, (str(fault),), optional and not path.exists())
    used = {name: one for name, one in stored.items() if not name.startswith(unused)} if unused else stored
    wrong = checkpoint.faults(used, expected, path)
    return PartReport(part, path, len(stored), sum(one.nbytes for one in stored.values()), tuple(wrong))


def _empty_network(path: Path, model: Published, ranks: Ranks = ALONE) -> WanNetwork:
    """The transformer that the files at `path` are for, on the meta device."""
    file = (path if path.is_dir() else path.parent) / CONFIG_FILE
    config = checkpoint.read_json(file) if file.is_file() else {}
    if model.about["family"] == "lingbot":
        config["control_type"] = _control_type(model, checkpoint.stored_tensors(checkpoint.weight_files(path)))
    with torch.device("meta"):
        return WanNetwork(model.shape("full", config, str(file)), ranks)


def _control_type(model: Published, stored: Mapping[str, checkpoint.StoredTensor]) -> str:
    """By the width of what takes the camera: both kinds are published under one config."""
    found = stored.get(CAMERA_TENSOR)
    wide = CAMERA_CHANNELS["act"] * math.prod(model.about["config"]["patch_size"])
    return "act" if found is not None and found.shape[-1:] == (wide,) else "cam"


def open_model(
    root: Path,
    model: Published,
    *,
    device: torch.device,
    dtype: torch.dtype,
    quick_decoder: bool = False,
    ranks: Ranks = ALONE,
) -> WanModel:
    """Load a model, or this rank's part of it. Everything is checked before anything is read.

    Raises CheckpointError with the first fault, CapacityError where the device has no room for the weights, and
    ModelError where the heads cannot be shared out among the ranks.
    """
    refuse_faulty(root, model, {"quick decoder"} if quick_decoder else set())
    path = model.transformer(root)
    network = _empty_network(path, model, ranks)
    refuse_too_large(network.to(dtype), model.name, device)
    files = checkpoint.weight_files(path)
    epoch = checkpoint.load(network, files, device=device, dtype=dtype, prefix=model.prefix)
    with torch.device("meta"):
        vae, quick = WanVAE(model.vae_shape()), TinyVAE(TinyVAEShape()) if quick_decoder else None
    checkpoint.load(vae, [root / VAE_FILE], device=device, dtype=_picture_dtype(device))
    if quick is not None:
        checkpoint.load(quick, [root / QUICK_DECODER_FILE], device=device, dtype=_picture_dtype(device))
    epoch = joint_epoch(ranks, epoch, device)
    return model.model(network, "full", epoch, _pictures(model, "full", vae, quick))


def refuse_faulty(root: Path, model: Published, wanted: Set[str] = frozenset()) -> None:
    """Raise CheckpointError where a part that every model has, or one of the `wanted` ones, cannot be used."""
    parts = {"transformer", "VAE", *wanted}
    checkpoint.refuse([fault for one in check(root, model) if one.part in parts for fault in one.faults])


def refuse_too_large(network: nn.Module, name: str, device: torch.device) -> None:
    """Raise CapacityError where the weights of a network, on the meta device say, would not fit on `device`."""
    needed, free = sum(parameter.nbytes for parameter in network.parameters()), free_bytes(device)
    if free is not None and needed > free:
        raise CapacityError(
            f"{name} has {needed / 2**30:.1f} GiB of weights, {device} has {free / 2**30:.1f} GiB of memory free"
        )


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that can still be taken; None where nobody knows."""
    headroom = device_headroom(device) if device.type == "cuda" else host_headroom()
    return None if headroom is None else headroom.nbytes


def random_model(
    model: Published, seed: int, *, size: Size, device: torch.device, dtype: torch.dtype, ranks: Ranks = ALONE
) -> WanModel:
    """A model of random weights, for measuring at full size and for tests at tiny size; its pictures are noise.

    The ranks together have the weights that one process would have alone.
    """
    with torch.device("meta"):
        network = WanNetwork(model.shape(size), ranks).to(dtype)
        vae = WanVAE(model.vae_shape(size)).to(_picture_dtype(device))
    refuse_too_large(network, model.name, device)
    network.to_empty(device=device).requires_grad_(False).eval()
    vae.to_empty(device=device).requires_grad_(False).eval()
    randomise(vae, seed)
    epoch = joint_epoch(ranks, f"{model.name}-{size}-{randomise(network, seed)}", device)
    return model.model(network, size, epoch, _pictures(model, size, vae))


def _pictures(model: Published, size: Size, vae: WanVAE, quick: TinyVAE | None = None) -> Pictures:
    return Pictures(vae, model.settings(size).picture, quick, resampling=model.resampling)


def _picture_dtype(device: torch.device) -> torch.dtype:
    """Of the autoencoder: half precision where it is fast, with the most digits in its range."""
    return torch.float16 if device.type == "cuda" else torch.float32
