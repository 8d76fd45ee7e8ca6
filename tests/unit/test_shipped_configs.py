"""Every configuration that ships: accepted, and as far as it can be told without weights, one that runs."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cluster.admission import TenantsConfig
from worldkv.camera import ACTION_COLUMNS, to_key_columns
from worldkv.config import RunConfig, load_as
from worldkv.memory.policy import parse_policy
from worldkv.models.published import named, published
from worldkv.models.wan.model import geometry_of
from worldkv.runs.memory_check import check_windows, chunk_bytes
from worldkv.runs.play import check_window, read_trajectory
from worldkv.runs.play_config import PlayConfig

ROOT = Path(__file__).resolve().parents[2] / "configs"
SCHEMAS = {"play": PlayConfig, "cluster": TenantsConfig, ".": RunConfig}
"""By folder."""
SHIPPED = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.yaml"))
PLAYED = [path for path in SHIPPED if path.parent.name == "play"]
DEVICE_GIB = {"h100": 79, "h200": 139}
"""Of memory that a process can have, by the name in a file's name."""
PASSES_GIB = 20
"""For activations, camera terms, autoencoder and encoding; an upper guess."""


@pytest.mark.parametrize("path", SHIPPED, ids=str)
def test_every_shipped_configuration_is_accepted(path: Path):
    load_as(SCHEMAS[str(path.parent)], ROOT / path)


def test_every_published_model_has_a_configuration():
    assert {load_as(PlayConfig, ROOT / path).model.name for path in PLAYED} == set(published())


@pytest.mark.parametrize("path", PLAYED, ids=str)
def test_a_played_world_fits_its_model_and_device(path: Path):
    config = load_as(PlayConfig, ROOT / path)
    model, policy = named(config.model.name), parse_policy(config.policy)
    check_window(model, policy)
    trajectory = read_trajectory(config.inputs.trajectory)
    if model.vocabulary is not None:
        model.vocabulary.rows(to_key_columns(trajectory.actions, ACTION_COLUMNS))
    shape, ranks = model.shape(), config.model.ranks
    whole = geometry_of(shape, model.settings())
    own = replace(whole, heads=whole.heads // ranks)
    check_windows(config.memory, policy, policy.retrieved_chunks * chunk_bytes(own, policy))
    chunk = own.kv_bytes(own.tokens_per_chunk, torch.bfloat16)
    window = policy.window_latent_frames(own.chunk_latent_frames) / own.chunk_latent_frames
    live = policy.sink_chunks + policy.recent_chunks + 1
    weights = {"lingbot": 37.1e9, "matrix_game": 3.3e9}[model.about["family"]]
    on_device = sum(tier.capacity_mib for tier in config.memory.tiers if tier.name == "device") * 2**20
    needed = (weights / ranks + (window + live) * chunk + on_device) / 2**30 + PASSES_GIB
    count, card = path.stem.rpartition("_")[2].split("x")
    assert int(count) == ranks
    assert needed < DEVICE_GIB[card], f"{needed:.0f} GiB"
