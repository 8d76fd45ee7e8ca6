"""The digests that a GPU computes, by the very source of its kernels, built for the host: the same as xxhash's."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from worldkv.memory import digests
from worldkv.memory.digests import Kernels, digests_of

SOURCE = Path(digests.__file__).with_name("xxh3.cu")
# What CUDA brings along, and threads one after the other: no kernel looks at what another thread of it writes.
HOST = """
struct Dim { int x, y, z; };
static Dim blockIdx, blockDim, threadIdx;
#define __constant__ static const
#define __device__ inline
#define __global__
static unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned __int128)a * b >> 64;
}
#include "xxh3.cu"
template <class Kernel, class... Args> static void run(int grid, int block, Kernel kernel, Args... args) {
    blockDim = {block, 1, 1};
    for (int i = 0; i < grid; i++)
        for (int j = 0; j < block; j++) {
            blockIdx = {i, 0, 0};
            threadIdx = {j, 0, 0};
            kernel(args...);
        }
}
extern "C" void run_block_sums(int grid, int block, const u64* payload, u64* sums, int l, int w, int n) {
    run(grid, block, block_sums, payload, sums, l, w, n);
}
extern "C" void run_chain(int grid, int block, const u64* payload, const u64* sums, u64* ends, int l, int w, int n) {
    run(grid, block, chain, payload, sums, ends, l, w, n);
}
extern "C" void run_finish(int grid, int block, const u64* ends, unsigned char* found, int l, int w) {
    run(grid, block, finish, ends, found, l, w);
}
"""


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("needs a C++ compiler for the host, and this machine has none")
    library = tmp_path_factory.mktemp("xxh3") / "xxh3.so"
    options = ["-O2", "-shared", "-fPIC", "-Wno-unknown-pragmas", f"-I{SOURCE.parent}", "-x", "c++", "-"]
    subprocess.run([compiler, *options, "-o", library], input=HOST.encode(), check=True, timeout=60)
    built = ctypes.CDLL(str(library))

    def launcher(name):
        def launch(*, grid, block, args):
            assert grid[1:] == block[1:] == (1, 1)
            pointers = [ctypes.c_void_p(x.data_ptr()) if isinstance(x, torch.Tensor) else x for x in args]
            getattr(built, f"run_{name}")(grid[0], block[0], *pointers)

        return launch

    return Kernels(*map(launcher, ("block_sums", "chain", "finish")))


def noise(layers, nbytes):
    return torch.randint(256, (layers, nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(nbytes))


@given(layers=st.integers(1, 5), words=st.integers(31, 3000))
@example(layers=2, words=128)  # one block
@example(layers=2, words=129)
@example(layers=3, words=16 * 128)  # as many blocks as are loaded ahead
@example(layers=3, words=17 * 128)
@example(layers=3, words=17 * 128 + 8)
@example(layers=1, words=100_000)
def test_kernels_agree_with_xxhash_on_layers_of_any_length(kernels, layers, words):
    payload_LN = noise(layers, 8 * words)
    assert kernels.digests(payload_LN) == digests_of(payload_LN)


def test_long_payloads_are_digested_a_few_layers_at_a_time(kernels, monkeypatch):
    payload_LN = noise(7, 5 * 1024)
    monkeypatch.setattr(digests, "SCRATCH_BYTES", 3 * 5 * 64)
    calls = []
    short = Kernels(lambda **call: (calls.append(call), kernels.block_sums(**call)), kernels.chain, kernels.finish)
    assert short.digests(payload_LN) == digests_of(payload_LN)
    assert [call["args"][2] for call in calls] == [3, 3, 1]


def test_a_single_bit_changes_the_digest_of_its_layer_alone(kernels):
    payload_LN = noise(3, 5 * 1024 + 64)
    before = kernels.digests(payload_LN)
    for place in (0, 1023, 1024, 5 * 1024 + 63):
        payload_LN[1, place] ^= 1
        after = kernels.digests(payload_LN)
        assert (after[0], after[2]) == (before[0], before[2])
        assert after[1] != before[1]
        payload_LN[1, place] ^= 1


def test_without_a_gpu_nothing_is_compiled_and_nothing_is_wrong():
    assert digests.computed_on(torch.device("cpu"))
    assert digests.fault(torch.device("cpu")) is None


@pytest.mark.parametrize("broken", [RuntimeError("no compiler"), OSError("CUDA_HOME is not set")])
def test_where_kernels_cannot_be_built_the_reason_is_told(broken, monkeypatch):
    def compiled(device):
        raise broken

    monkeypatch.setattr(Kernels, "compiled", compiled)
    gpu = torch.device("cuda", 0)
    digests._kernels_of.cache_clear()
    try:
        assert not digests.computed_on(gpu)
        assert digests.fault(gpu) == f"cuda:0: the kernels that compute digests cannot be built: {broken}"
    finally:
        digests._kernels_of.cache_clear()
