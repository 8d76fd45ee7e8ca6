"""A session over two gloo ranks on loopback, against the same session in one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from sharded_rank import CHUNKS, MODELS, POLICIES, SHOWN, SILENT_SECONDS, alone
from torch import Tensor

from cluster.sharding import Seat, check_details, join, open_rank
from worldkv.errors import ConfigError, ModelError
from worldkv.models.ranks import Ranks
from worldkv.models.wan.model import WanModel

ROOT = Path(__file__).resolve().parents[2]
SIZE = 2
RUN_SECONDS = 240
"""For all that the ranks do; on two idle cores they take a tenth of it."""
TOLERANCE = {"cpu": 1e-5, "cuda": 1e-4}
"""Of latents, keys and values, over the largest magnitude among them, in float32."""
INT4_TOLERANCE = {"cpu": 1e-3, "cuda": 1e-2}
"""Where chunks are stored as int4: a number that lies between two codes may be rounded the other way."""
TWO_GPUS = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < SIZE, reason=f"needs {SIZE} CUDA devices"),
]


def started(rank: int, folder: Path, kind: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        str(Path(__file__).with_name("sharded_rank.py")),
        str(rank),
        str(SIZE),
        str(folder),
        kind,
    ]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=TWO_GPUS)])
def kind(request: pytest.FixtureRequest) -> str:
    """Of device: gloo between CPUs, NCCL between GPUs."""
    return request.param


@pytest.fixture(scope="module")
def over_ranks(kind: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each rank has written; they run once for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [started(rank, folder, kind) for rank in range(SIZE)]
    deadline = time.monotonic() + RUN_SECONDS
    try:
        for process in processes:
            _, told = process.communicate(timeout=deadline - time.monotonic())
            assert process.returncode == 0, told.decode()
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(SIZE)]


@pytest.fixture(scope="module")
def in_one_process(kind: str) -> dict:
    return alone(kind)


def assert_near(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_a_sharded_session_is_the_session_of_one_process(over_ranks, in_one_process, kind: str, name: str, policy: str):
    expected, found = in_one_process[name][policy], [results[name][policy] for results in over_ranks]
    tolerance = (INT4_TOLERANCE if policy == "int4" else TOLERANCE)[kind]
    assert len(expected["latents"]) == CHUNKS
    for one in found:
        assert_near(one["latents"], expected["latents"], tolerance)
        assert torch.equal(one["latents"], found[0]["latents"])
        assert one["window_tokens"] == expected["window_tokens"]
    for part in ("k", "v"):
        assert_near(torch.cat([one[part] for one in found], 3), expected[part], tolerance)


@pytest.mark.parametrize("name", MODELS)
def test_pictures_are_the_same_on_all_ranks_and_differ_by_rounding_from_those_of_one_process(
    over_ranks, in_one_process, name: str
):
    expected = in_one_process[name][SHOWN]["frames"]
    assert len(expected) == 12 * CHUNKS - 3
    for results in over_ranks:
        assert int((results[name][SHOWN]["frames"].int() - expected.int()).abs().max()) <= 1
        assert torch.equal(results[name][SHOWN]["frames"], over_ranks[0][name][SHOWN]["frames"])


@pytest.mark.parametrize("policy", ["worldkv", "int4", "centroid", "nearest"])
@pytest.mark.parametrize("name", MODELS)
def test_all_ranks_retrieve_the_same_chunks_and_keep_the_same_tokens(
    over_ranks, in_one_process, name: str, policy: str
):
    expected = in_one_process[name][policy]
    assert expected["retrieved"][-1] == [1, 2], "the way back retrieves from the way there"
    assert len(expected["token_ids"]) == (CHUNKS - 2 if policy in ("centroid", "nearest") else 0)
    for results in over_ranks:
        found = results[name][policy]
        assert found["retrieved"] == expected["retrieved"]
        for kept, wanted in zip(found["token_ids"], expected["token_ids"], strict=True):
            assert torch.equal(kept, wanted)


@pytest.mark.parametrize("name", MODELS)
def test_each_rank_stores_its_heads_part_of_a_chunk(over_ranks, in_one_process, name: str):
    whole = in_one_process[name]["worldkv"]["stored_bytes"]
    for results in over_ranks:
        # Poses are stored by each.
        assert whole / SIZE <= results[name]["worldkv"]["stored_bytes"] < 1.01 * whole / SIZE
        assert results[name]["weight_bytes"] < 0.75 * in_one_process[name]["weight_bytes"]
        assert results[name]["epoch"] != over_ranks[0][name]["epoch"] or results is over_ranks[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_snapshot_of_every_rank_continues_bit_for_bit(over_ranks, name: str):
    for results in over_ranks:
        undisturbed, resumed = (results[f"{name} resumed"][key] for key in ("undisturbed", "resumed"))
        assert len(resumed["latents"]) == CHUNKS - 4
        for part in ("latents", "k", "v"):
            assert torch.equal(resumed[part], undisturbed[part])
        assert resumed["retrieved"] == undisturbed["retrieved"]


def test_a_snapshot_of_another_rank_is_refused(over_ranks):
    assert over_ranks[0]["strange snapshot"] == "restored"
    assert "a session snapshot cannot continue: epoch " in over_ranks[1]["strange snapshot"]


def test_a_chunk_that_one_rank_has_dropped_is_a_miss_for_all(over_ranks, in_one_process):
    first, last = (results["short of room"] for results in over_ranks)
    assert sum(first["missed"]) > 0
    for part in ("retrieved", "missed", "window_tokens", "indexed"):
        assert first[part] == last[part]
    assert torch.equal(first["latents"], last["latents"])
    assert first["retrieved"] != in_one_process[MODELS[0]]["worldkv"]["retrieved"]


def test_a_rank_whose_fellow_is_gone_says_so(over_ranks, kind: str):
    if kind == "cuda":
        pytest.skip("NCCL's watchdog ends a rank that waits in vain")
    assert over_ranks[0]["left alone"]["fault"].startswith("rank 0 of 2: another rank is gone, or was silent for 60 s,")


def test_a_rank_whose_fellow_is_silent_says_so_in_time(over_ranks, kind: str):
    if kind == "cuda":
        pytest.skip("NCCL's watchdog ends a rank that waits in vain")
    found = over_ranks[0]["silent"]
    assert found["fault"].startswith("rank 0 of 2: another rank is gone, or was silent for 4 s, while gathering")
    assert SILENT_SECONDS - 1 <= found["seconds"] <= 3 * SILENT_SECONDS


def test_ranks_that_do_not_meet_say_so(tmp_path: Path):
    with pytest.raises(ModelError, match=r"rank 0 of 2: no group of ranks at file://.* within 1 s"):
        join(Seat(0, 2, f"file://{tmp_path}/meeting", timeout_seconds=1), torch.device("cpu"))


def test_a_seat_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="rank=2, size=2"):
        Seat(2, 2, "env://")


def test_a_rank_that_cannot_load_is_in_no_group(tmp_path: Path):
    seat, device = Seat(0, 1, f"file://{tmp_path}/meeting", timeout_seconds=10), torch.device("cpu")

    def failing(*, ranks: Ranks) -> WanModel:
        raise ModelError("no weights")

    with pytest.raises(ModelError, match="no weights"):
        open_rank(seat, device, failing)
    assert not torch.distributed.is_initialized()


def test_a_tier_that_prunes_is_refused():
    with pytest.raises(ConfigError, match=r"detail 'int4/keep=0.5': a memory tier of a sharded session cannot prune"):
        check_details(["int8", "int4/keep=0.5"])
    check_details(["int8", "int4"])
