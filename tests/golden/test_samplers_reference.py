"""Noise tables and the two conversions of a denoise step, against recordings of the published schedulers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from worldkv.models.lingbot.schedule import lingbot_schedule, noise_table
from worldkv.models.matrix_game import schedule as matrix_game

ROUNDING = 5e-7


@pytest.fixture(scope="module")
def lingbot(reference: Path) -> dict[str, Tensor]:
    return load_file(reference / "sampler" / "lingbot_scheduler.safetensors")


@pytest.fixture(scope="module")
def manifest(reference: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((reference / "sampler" / "manifest.json").read_text())
    return content


def test_lingbot_noise_tables_match(lingbot: dict[str, Tensor]):
    recorded = [key for key in lingbot if key.endswith("/sigmas")]
    assert recorded
    for key in recorded:
        shift = key.removesuffix("/sigmas")
        table, expected = noise_table(float(shift.removeprefix("shift"))), lingbot[key]
        torch.testing.assert_close(torch.from_numpy(table).float(), expected[:-1], atol=1e-7, rtol=0)
        assert (table * 1000).astype(np.int64).tolist() == lingbot[f"{shift}/timesteps"].tolist()


def test_lingbot_steps_match(lingbot: dict[str, Tensor], manifest: dict[str, Any]):
    for name, case in manifest["lingbot"].items():
        shift, version = name.split("_")
        schedule = lingbot_schedule(case["timesteps_index"], float(shift.removeprefix("shift")))
        assert schedule.levels == pytest.approx(case["sigma_x0"], abs=1e-7)
        assert schedule.mixed == pytest.approx(case["sigma_add_noise"][1:], abs=1e-7)
        assert [int(level * 1000) for level in schedule.levels] == case["timesteps"]
        for step, level in enumerate(schedule.levels):
            clean = lingbot["in/xt"].double() - level * lingbot["in/flow_pred"].double()
            expected = lingbot[f"{shift}/{version}/x0"][step]
            torch.testing.assert_close(clean.float(), expected, atol=ROUNDING, rtol=0)
        for step, share in enumerate(schedule.mixed, start=1):
            mixed = (1 - torch.tensor(share)) * lingbot["in/x0"] + torch.tensor(share) * lingbot["in/noise"]
            expected = lingbot[f"{shift}/{version}/add_noise"][step]
            torch.testing.assert_close(mixed, expected, atol=ROUNDING, rtol=0)


def test_matrix_game_noise_table_and_conversions_match(reference: Path):
    recorded = load_file(reference / "sampler" / "matrix_game2_scheduler.safetensors")
    table = matrix_game.noise_table(5.0)
    assert torch.equal(table, recorded["sched/sigmas"])
    assert torch.equal(table * matrix_game.STEPS, recorded["sched/timesteps"])
    clean, noise = recorded["sched/in_a"], recorded["sched/in_b"]
    for row, timestep in enumerate(recorded["sched/in_t"]):
        level = table[(recorded["sched/timesteps"] - timestep).abs().argmin()]
        mixed = (1 - level) * clean[row] + level * noise[row]
        torch.testing.assert_close(mixed, recorded["sched/add_noise"][row], atol=ROUNDING, rtol=0)
        found = noise[row].double() - level.double() * clean[row].double()
        torch.testing.assert_close(found.float(), recorded["sched/x0_from_flow"][row], atol=ROUNDING, rtol=0)
