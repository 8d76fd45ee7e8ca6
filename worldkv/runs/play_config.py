"""Configurations of `worldkv models play`: one world of a published model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, field_validator, model_validator

from worldkv.config import MemoryConfig, Section
from worldkv.memory.policy import parse_policy
from worldkv.models.published import published


class PlayedModel(Section):
    """Which weights, from where."""

    name: str
    """As `worldkv models list` names it."""
    folder: Path | None = None
    """Laid out as its makers publish it."""
    random_weights: int | None = Field(None, ge=0, strict=True)
    """Instead of a folder: the seed of weights that mean nothing."""
    size: Literal["full", "tiny"] = "full"
    """Of random weights; tiny is for tests."""
    quick_decoder: bool = Field(False, strict=True)
    """True decodes with TAEHV, which must be in the folder."""
    ranks: int = Field(1, ge=1, le=64, strict=True)
    """Over how many GPUs, or CPU processes, the model and its memory are shared out; must divide the model's heads."""
    across_nodes: bool = Field(False, strict=True)
    """True lets ranks be on several nodes, for what no node holds alone: they exchange megabytes in every layer."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in published():
            raise ValueError(f"{name!r} must be one of {', '.join(published())}")
        return name

    @model_validator(mode="after")
    def _one_source(self) -> PlayedModel:
        if (self.folder is None) == (self.random_weights is None):
            raise ValueError("give either folder or random_weights")
        if self.folder is not None and self.size != "full":
            raise ValueError("size: tiny goes with random_weights; a folder's weights have their own size")
        if self.quick_decoder and self.folder is None:
            raise ValueError("quick_decoder goes with folder; random weights have none")
        return self

    @model_validator(mode="after")
    def _shared_out(self) -> PlayedModel:
        heads = published()[self.name].shape(self.size).heads
        if heads % self.ranks:
            allowed = ", ".join(str(ranks) for ranks in range(1, heads + 1) if heads % ranks == 0)
            raise ValueError(
                f"ranks = {self.ranks}: must divide the {heads} heads of {self.name}, so be one of {allowed}"
            )
        return self


class PlayInputs(Section):
    """What a world starts from."""

    image: Path
    """First picture, of the model's aspect ratio."""
    embeddings: Path
    """safetensors file of one tensor: the encoded prompt (LingBot), or the image as CLIP encodes it (Matrix-Game)."""
    trajectory: str
    """Folder with poses.npy and intrinsics.npy, or a notation such as R_L90_96."""


class PlayConfig(Section):
    """One rollout of one world."""

    model: PlayedModel
    inputs: PlayInputs
    policy: str | None = None
    """Memory policy; none: what suits the model."""
    memory: MemoryConfig = MemoryConfig()
    """Of each rank, for its heads' part of every chunk."""
    seed: int = Field(0, ge=0, strict=True)
    """Of the noise."""
    video: Path
    """The mp4 to write; must not be there yet."""

    @field_validator("policy")
    @classmethod
    def _parsed(cls, policy: str | None) -> str | None:
        if policy is not None:
            parse_policy(policy)
        return policy

    def to_yaml(self) -> str:
        """The resolved configuration; `load` of it gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
