"""Run configurations: YAML files, `key=value` overrides, unknown keys refused, units in names.

A configuration is checked completely before anything runs; the resolved one is stored beside what it made.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from worldkv.errors import ConfigError
from worldkv.memory.detail import parse_detail
from worldkv.memory.policy import parse_policy
from worldkv.models.rooms.layout import UNTRAINED_SEEDS

Schema = TypeVar("Schema", bound=BaseModel)


class Section(BaseModel):
    """Keys of a configuration: unknown ones are refused, each is described by the string beneath it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ModelConfig(Section):
    """Which weights, where."""

    name: Literal["rooms"] = "rooms"
    """The embedded world."""
    weights: Path | None = None
    """Folder of a checkpoint; none: the weights that ship with the package."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Auto takes a CUDA device when there is one."""


class WorldsConfig(Section):
    """Which procedural worlds."""

    count: int = Field(3, ge=1, strict=True)
    """How many; each is rolled out once per policy."""
    first_seed: int = Field(0, ge=0, lt=UNTRAINED_SEEDS, strict=True)
    """Worlds first_seed, first_seed + 1, ...; training used none of those allowed here."""

    @model_validator(mode="after")
    def _untrained(self) -> WorldsConfig:
        if self.first_seed + self.count > UNTRAINED_SEEDS:
            raise ValueError(f"first_seed + count passes {UNTRAINED_SEEDS}; worlds from there served in training")
        return self


class TrajectoryConfig(Section):
    """Where the camera goes in each world."""

    kind: Literal["back", "roam", "wander", "notation", "files"] = "back"
    """back: out and exactly back; roam: between a few places again and again; wander: anywhere; notation: by
    `notation`; files: from `folder`."""
    video_frames: int = Field(96, ge=6, strict=True)
    """Length of back, roam and wander. A last chunk that would not be whole is left out."""
    turn_degrees_per_frame: float = Field(6.0, gt=0, le=30)
    """Pace of turns in back, roam, wander and notation."""
    distance_per_frame: float = Field(0.1, gt=0, le=0.5)
    """Pace of moves, in cells (a room is three to five cells wide)."""
    notation: str | None = None
    """Ops R L W S A D _ and a frame count, such as R_L_R_L90_96."""
    folder: Path | None = None
    """Folder with poses.npy, and intrinsics.npy unless the model's own camera is meant."""

    @model_validator(mode="after")
    def _complete(self) -> TrajectoryConfig:
        for kind in ("notation", "files"):
            field = "folder" if kind == "files" else kind
            if (self.kind == kind) != (getattr(self, field) is not None):
                raise ValueError(f"kind: {kind} and {field} go together; give both or neither")
        return self


TIER_NAMES = ("device", "host", "node", "disk", "durable")
"""Nearest first, which is the order in which a configuration lists them."""
TierName = Literal["device", "host", "node", "disk", "durable"]
# Where a tier of this name lies, for those that are told.
PLACES = {"disk": "folder", "durable": "url"}
# A label of metrics, and part of each chunk's id.
Tenant = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class TierConfig(Section):
    """One tier of the chunk memory."""

    name: TierName
    """device: in the memory of the model's device; host: in host memory; node: in the object store of a cluster's node,
    shared by all its workers and read by those of other nodes; disk: files in `folder`; durable: objects at `url`. With
    CUDA, device and host are allocated whole when the run starts, and host is pinned in the background."""
    capacity_mib: int = Field(ge=1, strict=True)
    """Never passed. Of tier node: by all workers of one node together."""
    folder: Path | None = None
    """Of tier disk: nobody else's, on a local disk."""
    url: str | None = Field(None, min_length=1)
    """Of tier durable: nobody else's. Any URL that fsspec opens, such as s3://bucket/worlds, or a folder. Of tier node,
    if given: where every chunk is copied to as well, so that it outlives the cluster; every node has to reach it."""
    url_capacity_mib: int | None = Field(None, ge=1, strict=True)
    """Of tier node with a `url`: what may lie there, of all nodes together; never passed."""
    copies: int | None = Field(None, ge=1, le=8, strict=True)
    """Of tier node: on how many nodes each chunk lies, as far as there are so many. Not given: 1."""
    keep: bool | None = Field(None, strict=True)
    """Of disk and durable. true: what lies here when the run ends stays until its room is needed, and a later run of
    the same weights and tenant finds it; nothing is copied here for that. false: empty when a run starts and when it
    ends, and so is a folder that another run kept. Not given: true for durable, false for disk."""
    eviction: Literal["lru", "cost", "pose"] = "lru"
    """What goes first: lru: unused for longest; cost: least worth its bytes; pose: what another kept chunk sees too."""
    high_watermark_ratio: float = Field(1.0, gt=0, le=1)
    """Of the capacity; a chunk that would pass it makes the tier empty itself ..."""
    low_watermark_ratio: float = Field(1.0, gt=0, le=1)
    """... down to here."""
    detail: tuple[str, ...] = ()
    """What chunks here are reduced to before one of them leaves, such as [int4, int4/keep=0.5/rule=nearest]."""

    @property
    def keeps(self) -> bool:
        """`keep`, or what holds where it is not given."""
        return self.name in ("node", "durable") if self.keep is None else self.keep

    @property
    def outlives_the_process(self) -> bool:
        """Whether its chunks lie where another process can find them."""
        return self.name in PLACES or self.name == "node"

    @field_validator("detail")
    @classmethod
    def _rungs(cls, detail: tuple[str, ...]) -> tuple[str, ...]:
        for text in detail:
            parse_detail(text)
        return detail

    @model_validator(mode="after")
    def _complete(self) -> TierConfig:
        for name, place in PLACES.items():
            given = getattr(self, place) is not None and not (self.name == "node" and place == "url")
            if (self.name == name) != given:
                raise ValueError(f"name: {name} and {place} go together; give both or neither")
        if self.name != "node" and (self.copies, self.url_capacity_mib) != (None, None):
            raise ValueError("copies and url_capacity_mib: only tier node has them; leave them out")
        if self.name == "node" and (self.url is None) != (self.url_capacity_mib is None):
            raise ValueError("url and url_capacity_mib: of tier node they go together; give both or neither")
        if self.keep is not None and self.name not in PLACES:
            raise ValueError(f"keep = {self.keep}: only tiers {' and '.join(PLACES)} have it; leave it out")
        if self.low_watermark_ratio > self.high_watermark_ratio:
            raise ValueError(
                f"low_watermark_ratio = {self.low_watermark_ratio} is above "
                f"high_watermark_ratio = {self.high_watermark_ratio}: lower it"
            )
        return self


class ShareConfig(Section):
    """One tenant's part of one tier."""

    tenant: Tenant
    """The run's own, or, of a tier that keeps chunks, one whose chunks it may hold."""
    tier: TierName
    """One of those in `tiers`."""
    reserved_mib: int = Field(0, ge=0, strict=True)
    """Up to here no other tenant's need takes the tenant's chunks away."""
    limit_mib: int | None = Field(None, ge=1, strict=True)
    """Beyond it the tenant's own chunks make way for its new ones; none: the whole tier."""

    @model_validator(mode="after")
    def _consistent(self) -> ShareConfig:
        if self.limit_mib is not None and self.limit_mib < self.reserved_mib:
            raise ValueError(
                f"limit_mib = {self.limit_mib}: must be at least reserved_mib = {self.reserved_mib}; "
                "raise it or reserve less"
            )
        return self


class MemoryConfig(Section):
    """The chunk memory that all sessions of a run share."""

    tenant: Tenant = "default"
    """Who owns the run's sessions. The tenant is part of every chunk's id: no tenant finds another's chunks."""
    tiers: tuple[TierConfig, ...] = (
        TierConfig(name="device", capacity_mib=1024),
        TierConfig(name="host", capacity_mib=4096),
    )
    """Nearest first."""
    shares: tuple[ShareConfig, ...] = ()
    """Who may use how much; a tenant that is not named has nothing reserved and no limit."""

    @model_validator(mode="after")
    def _in_order(self) -> MemoryConfig:
        names = [tier.name for tier in self.tiers]
        if not names or names != [name for name in TIER_NAMES if name in names]:
            raise ValueError(
                f"tiers = [{', '.join(names)}]: list at least one of {', '.join(TIER_NAMES)}, "
                "each once and in this order"
            )
        return self

    @model_validator(mode="after")
    def _shared(self) -> MemoryConfig:
        tiers = {tier.name: tier for tier in self.tiers}
        for place, share in enumerate(self.shares):
            if share.tier not in tiers:
                raise ValueError(f"shares.{place}.tier = {share.tier!r}: must be one of the tiers, {', '.join(tiers)}")
            if share.tenant != self.tenant and not tiers[share.tier].keeps:
                raise ValueError(
                    f"shares.{place}.tenant = {share.tenant!r}: unknown in tier {share.tier}, which holds chunks of "
                    f"tenant = {self.tenant!r} alone; name that one, or leave the share out"
                )
        if len({(share.tenant, share.tier) for share in self.shares}) < len(self.shares):
            raise ValueError("shares: each tenant once per tier; leave out one of two equal ones")
        for tier in self.tiers:
            reserved = sum(share.reserved_mib for share in self.shares if share.tier == tier.name)
            if reserved > tier.capacity_mib:
                raise ValueError(
                    f"shares: {reserved} MiB of tier {tier.name} are reserved, but its capacity_mib = "
                    f"{tier.capacity_mib}: reserve less or raise it"
                )
        return self


class SamplingConfig(Section):
    """How latents are denoised."""

    denoise_steps: int = Field(2, ge=1, le=64, strict=True)
    """Forwards per chunk, the clean pass not counted."""
    noise_shift: float = Field(3.0, gt=0)
    """Above 1 spends more of the steps near pure noise."""
    seed: int = Field(0, ge=0, strict=True)
    """All noise is a function of this seed, the world and the chunk."""


class OutputConfig(Section):
    """What is left behind."""

    folder: Path = Path("runs/rollout")
    """Where; must be new, or hold this very run (--resume)."""
    video_fps: int = Field(12, ge=1, le=120, strict=True)
    """Playback rate; the model itself knows no time."""
    lossless: bool = Field(False, strict=True)
    """True stores videos with ffv1: exact pixels, several times larger, plays in no browser."""


class RunConfig(Section):
    """One run: worlds x policies along one kind of trajectory."""

    model: ModelConfig = ModelConfig()
    worlds: WorldsConfig = WorldsConfig()
    trajectory: TrajectoryConfig = TrajectoryConfig()
    policies: tuple[str, ...] = ("full", "sliding", "worldkv")
    """Memory policies: full, sliding, worldkv, or changed ones such as worldkv/codec=int8/retrieved_chunks=6."""
    history: Literal["truth", "own"] = "truth"
    """truth: the first half is shown to the model; own: only the first chunk is, the rest it makes up."""
    memory: MemoryConfig = MemoryConfig()
    sampling: SamplingConfig = SamplingConfig()
    batch_sessions: int = Field(4, ge=1, strict=True)
    """Worlds rolled out together."""
    output: OutputConfig = OutputConfig()

    @field_validator("policies", mode="before")
    @classmethod
    def _split(cls, policies: object) -> object:
        # As `worldkv eval --policies` takes them, and as one writes a single one.
        return [part.strip() for part in policies.split(",")] if isinstance(policies, str) else policies

    @field_validator("policies")
    @classmethod
    def _known(cls, policies: tuple[str, ...]) -> tuple[str, ...]:
        if not policies or len(set(policies)) != len(policies):
            raise ValueError("at least one policy is needed, and each only once")
        for policy in policies:
            parse_policy(policy)
        return policies

    def to_yaml(self) -> str:
        """The resolved configuration; `load` of it gives an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def load(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (none: the defaults), apply `key.path=value` overrides, check. Raises ConfigError."""
    return load_as(RunConfig, path, overrides)


def load_text_as(schema: type[Schema], text: str, where: str) -> Schema:
    """The configuration that `to_yaml` wrote; `where` it was found is named in faults. Raises ConfigError."""
    try:
        return schema.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as fault:
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(fault).split())}") from fault
    except ValidationError as fault:
        raise ConfigError(f"{where}: {_first_fault(fault, schema)}") from None


def load_as(schema: type[Schema], path: Path | None, overrides: Sequence[str] = ()) -> Schema:
    """The same for a configuration of another kind."""
    try:
        return schema.model_validate(read(path, overrides))
    except ValidationError as fault:
        raise ConfigError(f"{path or 'configuration'}: {_first_fault(fault, schema)}") from None


def read(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """What a YAML file and overrides say, unchecked. Raises ConfigError where that cannot be read."""
    content: dict[str, Any] = {} if path is None else _read(path)
    for override in overrides:
        _override(content, override)
    return content


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as fault:
        raise ConfigError(f"{path}: cannot be read: {fault}") from fault
    except yaml.YAMLError as fault:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(fault).split())}") from fault
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected sections such as `model:`, found {type(content).__name__}")
    return content


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, such as worlds.count=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as fault:
        raise ConfigError(f"--set {override}: the value is not valid YAML") from fault
    part: Any = content
    *sections, last = key.split(".")
    for section, name in pairwise([*sections, last]):
        place = _place(part, section)
        part = part.setdefault(place, {}) if isinstance(part, dict) else part[place]
        if _place(part, name) is None:
            raise ConfigError(f"--set {override}: {section} is not a section, nor a list with an entry {name}")
    part[_place(part, last)] = value


def _place(part: object, name: str) -> str | int | None:
    """The key or index that `name` stands for; None where there is no such place."""
    if isinstance(part, dict):
        return name
    return int(name) if isinstance(part, list) and name.isdecimal() and int(name) < len(part) else None


def _first_fault(fault: ValidationError, schema: type[BaseModel]) -> str:
    """`worlds.count = 0: must be greater than or equal to 1`, and how many more faults there are."""
    errors = fault.errors()
    first = errors[0]
    key = ".".join(str(part) for part in first["loc"]) or "configuration"
    if first["type"] == "extra_forbidden":
        text = f"{key}: unknown key; allowed here are {_names(_section_at(schema, first['loc'][:-1]))}"
    elif first["type"] == "missing":
        text = f"{key}: missing; keys here are {_names(_section_at(schema, first['loc'][:-1]))}"
    elif first["type"] == "model_type":
        text = f"{key} = {first['input']!r}: must be a section with keys {_names(_section_at(schema, first['loc']))}"
    elif first["type"] == "value_error":
        text = f"{key}: {first['msg'].removeprefix('Value error, ')}"
    else:
        # YAML knows lists and no tuples.
        allowed = first["msg"].replace("Input should", "must").replace("String should", "must").replace("tuple", "list")
        text = f"{key} = {first['input']!r}: {allowed}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _section_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel]:
    section = schema
    for part in location:
        if isinstance(part, int):
            continue  # the place in a list, whose annotation says what all of them are
        annotation = section.model_fields[part].annotation
        annotation = next(iter(get_args(annotation)), annotation)
        assert isinstance(annotation, type)
        assert issubclass(annotation, BaseModel), "only sections hold keys of their own"
        section = annotation
    return section


def _names(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)
