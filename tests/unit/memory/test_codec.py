import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldkv.errors import ChunkCorrupt, ModelError
from worldkv.memory import scaled
from worldkv.memory.codec import CODECS
from worldkv.memory.encoded import Encoded
from worldkv.memory.scaled import ScaledCodec

SCALED = ["int8", "fp8", "int4", "int3"]
AFFINE = ["int8", "int4", "int3"]
SMALL_WORLD = (10, 192, 5, 64)
# Quantising multiplies by the inverse of a step, up to 32,000 steps from zero, in float32.
FLOAT32_SLACK = 1.01


def normal(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def half_steps(encoded: Encoded) -> tuple[Tensor, Tensor]:
    """Half the stored scale of each key and value."""
    tokens = encoded.shape[1]
    scale_LGHD = encoded.tensors["k_scale"].float()
    size = math.ceil(tokens / scale_LGHD.shape[1])
    k_half = scale_LGHD.repeat_interleave(size, dim=1)[:, :tokens] / 2
    v_half = encoded.tensors["v_scale"].float()[..., None] / 2
    return k_half, v_half


def assert_within_half_a_step(x: Tensor, decoded: Tensor, half: Tensor) -> None:
    excess = (x - decoded).abs() - FLOAT32_SLACK * half - 4e-7 * x.abs()
    assert excess.max() <= 0


@st.composite
def contents(draw: st.DrawFn) -> Tensor:
    """Normal, constant, zero, single-outlier or mixed-scale tensors [L, T, H, D] of many magnitudes."""
    layers, tokens, heads = draw(st.integers(1, 3)), draw(st.integers(1, 40)), draw(st.integers(1, 3))
    channels = 2 * draw(st.integers(1, 5))
    x, mix = normal((layers, tokens, heads, channels), draw(st.integers(0, 10**6)))
    kind = draw(st.sampled_from(["normal", "constant", "zero", "outlier", "mixed", "offset", "sparse"]))
    if kind == "constant":
        x = torch.full_like(x, draw(st.sampled_from([1.0, -3.7, 1e-3])))
    elif kind == "zero":
        x = torch.zeros_like(x)
    elif kind == "outlier":
        x.view(-1)[draw(st.integers(0, x.numel() - 1))] = draw(st.sampled_from([1e4, -1e4]))
    elif kind == "mixed":
        x = x * 10 ** (3 * mix)
    elif kind == "offset":
        x = x + 1000 * mix[:, :1]
    elif kind == "sparse":
        x = x * (mix > 1)
    return x * draw(st.sampled_from([1.0, 1e-12, 1e-4, 1e6, 1e20]))


class TestSize:
    def test_int4_is_at_most_27_percent_of_bfloat16(self):
        k, v = normal(SMALL_WORLD)
        bf16 = 2 * 2 * k.numel()
        assert CODECS["bf16"].encode(k, v).nbytes == bf16
        assert CODECS["int4"].encode(k, v).nbytes <= 0.27 * bf16
        assert CODECS["int3"].encode(k, v).nbytes <= 0.21 * bf16
        assert CODECS["fp8"].encode(k, v).nbytes < CODECS["int8"].encode(k, v).nbytes <= 0.52 * bf16

    @pytest.mark.parametrize("name", CODECS)
    @pytest.mark.parametrize("tokens", [1, 7, 96, 192, 193, 400, 777])
    def test_bytes_are_known_beforehand(self, name: str, tokens: int):
        shape = (2, tokens, 2, 6)
        encoded = CODECS[name].encode(*normal(shape))
        assert encoded.nbytes == CODECS[name].nbytes(shape)
        assert encoded.payload_LN.is_contiguous()
        assert {n: (tuple(t.shape), t.dtype) for n, t in encoded.tensors.items()} == CODECS[name].layout(shape)


class TestLossless:
    @pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
    def test_own_dtype_comes_back_bit_exact(self, name: str, dtype: torch.dtype):
        k, v = (x.to(dtype) for x in normal((2, 5, 3, 4)))
        encoded = CODECS[name].encode(k, v)
        decoded = CODECS[name].decode(encoded)
        assert torch.equal(decoded[0], k)
        assert torch.equal(decoded[1], v)
        assert decoded[0].dtype == dtype

    @pytest.mark.parametrize("name", CODECS)
    def test_nothing_is_shared_with_the_input(self, name: str):
        k, v = normal((2, 5, 3, 4))
        encoded = CODECS[name].encode(k, v)
        before = {key: tensor.clone() for key, tensor in encoded.tensors.items()}
        k.zero_()
        decoded_k, _ = CODECS[name].decode(encoded)
        decoded_k.zero_()
        assert all(torch.equal(encoded.tensors[key], tensor) for key, tensor in before.items())


class TestError:
    @settings(deadline=None)
    @given(contents(), st.sampled_from(AFFINE))
    def test_each_value_is_within_half_its_scale(self, x: Tensor, name: str):
        v = x.flip(1).contiguous()
        encoded = CODECS[name].encode(x, v)
        k_half, v_half = half_steps(encoded)
        decoded_k, decoded_v = CODECS[name].decode(encoded)
        assert_within_half_a_step(x, decoded_k, k_half)
        assert_within_half_a_step(v, decoded_v, v_half)

    @settings(deadline=None)
    @given(contents(), st.sampled_from(sorted(CODECS)))
    def test_declared_bound_holds(self, x: Tensor, name: str):
        codec = CODECS[name]
        decoded_k, decoded_v = codec.decode(codec.encode(x, x))
        k_peak, v_peak = x.abs(), x.abs()
        if isinstance(codec, ScaledCodec):
            k_peak, v_peak = x.abs().amax(1, keepdim=True), x.abs().amax(3, keepdim=True)
        for decoded, peak in ((decoded_k, k_peak), (decoded_v, v_peak)):
            bound = FLOAT32_SLACK * codec.max_relative_error * peak + 1e-30
            assert ((x - decoded).abs() <= bound).all()

    @settings(deadline=None)
    @given(contents(), st.sampled_from(AFFINE))
    def test_decoding_twice_moves_less_than_once(self, x: Tensor, name: str):
        codec = CODECS[name]
        first = codec.encode(x, x)
        once = codec.decode(first)
        twice = codec.decode(codec.encode(*once))
        for before, after, half in zip(once, twice, half_steps(first), strict=True):
            assert_within_half_a_step(before, after, 1.1 * half)

    @pytest.mark.parametrize("name", SCALED)
    def test_zero_stays_zero(self, name: str):
        decoded = CODECS[name].decode(CODECS[name].encode(torch.zeros(1, 4, 1, 2), torch.zeros(1, 4, 1, 2)))
        assert not decoded[0].any()
        assert not decoded[1].any()

    @pytest.mark.parametrize(("name", "worst"), [("int3", 0.23), ("int4", 0.11), ("int8", 0.007), ("fp8", 0.027)])
    def test_error_on_normal_data_is_as_measured(self, name: str, worst: float):
        originals = normal(SMALL_WORLD)
        decoded = CODECS[name].decode(CODECS[name].encode(*originals))
        for x, found in zip(originals, decoded, strict=True):
            assert (x - found).norm() / x.norm() < worst

    def test_every_fp8_code_decodes_to_its_float(self):
        """On a CPU codes are taken apart as integers, which is faster than the conversion; two codes are NaN."""
        codes = torch.arange(256, dtype=torch.uint8)
        codes = codes[(codes & 127) != 127]
        fp8 = CODECS["fp8"]
        encoded = fp8.encode(*normal((1, 1, 127, 2)))
        encoded.tensors["v_codes"].copy_(codes.view(1, 1, 254))
        encoded.tensors["v_scale"].fill_(0.5)
        _, decoded = fp8.decode(encoded)
        assert torch.equal(decoded.flatten(), 0.5 * codes.view(torch.float8_e4m3fn).float())

    def test_channel_offsets_cost_keys_nothing(self):
        k, v = normal(SMALL_WORLD)
        offset = torch.linspace(-100, 100, 64)
        plain, _ = CODECS["int4"].decode(CODECS["int4"].encode(k, v))
        shifted, _ = CODECS["int4"].decode(CODECS["int4"].encode(k + offset, v))
        assert (shifted - k - offset).norm() < 1.02 * (plain - k).norm()

    def test_an_outlier_token_spoils_only_its_own_values(self):
        k, v = normal((1, 64, 2, 32))
        v[0, 10, 1] *= 1000
        _, decoded = CODECS["int4"].decode(CODECS["int4"].encode(k, v))
        others = torch.ones(64, 2, dtype=torch.bool)
        others[10, 1] = False
        assert (decoded - v)[0][others].abs().max() < 0.5


class TestRefusal:
    @pytest.mark.parametrize("name", CODECS)
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("where", ["keys", "values"])
    def test_values_that_are_not_finite(self, name: str, value: float, where: str):
        k, v = normal((2, 5, 3, 4))
        (k if where == "keys" else v)[1, 2, 0, 3] = value
        with pytest.raises(ModelError, match="NaN"):
            CODECS[name].encode(k, v)

    def test_overflow_is_not_stored(self):
        x = torch.full((1, 2, 1, 2), 3.4e38)
        with pytest.raises(ModelError, match="overflow"):
            CODECS["bf16"].encode(x, x)
        with pytest.raises(ModelError, match="overflow"):
            CODECS["int4"].encode(x * torch.tensor([1.0, -1.0]), x * torch.tensor([1.0, -1.0]))

    @pytest.mark.parametrize(
        ("k", "v"),
        [
            (torch.zeros(1, 2, 1, 4), torch.zeros(1, 3, 1, 4)),
            (torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)),
            (torch.zeros(1, 0, 1, 4), torch.zeros(1, 0, 1, 4)),
            (torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 3)),
            (torch.zeros(1, 2, 1, 4, dtype=torch.int32), torch.zeros(1, 2, 1, 4, dtype=torch.int32)),
        ],
    )
    def test_keys_and_values_that_do_not_fit(self, k: Tensor, v: Tensor):
        with pytest.raises(ModelError, match="cannot be encoded"):
            CODECS["int4"].encode(k, v)

    def test_tensors_that_are_not_the_promised_ones(self):
        encoded = CODECS["int4"].encode(*normal((2, 5, 3, 4)))
        with pytest.raises(ChunkCorrupt, match="payload of"):
            encoded.over(encoded.payload_LN[:, :-1])
        longer = CODECS["int4"].layout((2, 6, 3, 4))
        other = Encoded.empty("int4", encoded.shape, encoded.dtype, longer, torch.device("cpu"))
        with pytest.raises(ChunkCorrupt, match="k_codes"):
            CODECS["int4"].decode(other)
        with pytest.raises(ChunkCorrupt, match="found int4"):
            CODECS["int8"].decode(encoded)

    @pytest.mark.parametrize(("shape", "dtype"), [((1, 0, 1, 2), "float32"), ((1, 1, 1, 2), "load")])
    def test_a_header_that_cannot_be(self, shape: tuple[int, int, int, int], dtype: str):
        with pytest.raises(ChunkCorrupt, match="cannot exist"):
            Encoded.empty("int4", shape, dtype, {}, torch.device("cpu"))


class TestLayers:
    @pytest.mark.parametrize("name", CODECS)
    def test_a_range_decodes_as_in_the_whole(self, name: str):
        encoded = CODECS[name].encode(*normal((5, 20, 2, 8)))
        whole = CODECS[name].decode(encoded)
        part = CODECS[name].decode(encoded.layer_range(1, 3))
        assert torch.equal(part[0], whole[0][1:3])
        assert torch.equal(part[1], whole[1][1:3])

    @pytest.mark.parametrize("name", SCALED)
    @pytest.mark.parametrize("workspace", [2 * 4 * 500 * 2 * 8, 4 * 320 * 2 * 8, 1])
    def test_bounded_workspace_changes_nothing(self, name: str, workspace: int, monkeypatch: pytest.MonkeyPatch):
        """Two layers at a time, two groups of a layer, one group; the last of three groups is shorter."""
        k, v = normal((5, 500, 2, 8))
        whole = CODECS[name].encode(k, v)
        monkeypatch.setitem(scaled.WORKSPACE_BYTES, "cpu", workspace)
        by_parts = CODECS[name].encode(k, v)
        assert torch.equal(whole.payload_LN, by_parts.payload_LN)
        assert all(map(torch.equal, CODECS[name].decode(whole), CODECS[name].decode(by_parts)))

    @pytest.mark.parametrize("tokens", [193, 400, 777])
    @pytest.mark.parametrize("name", AFFINE)
    def test_tokens_need_not_fill_the_groups(self, name: str, tokens: int):
        k, v = normal((2, tokens, 2, 8))
        encoded = CODECS[name].encode(k, v)
        decoded_k, _ = CODECS[name].decode(encoded)
        assert_within_half_a_step(k, decoded_k, half_steps(encoded)[0])

    def test_decoding_into_a_window_leaves_its_other_tokens(self):
        k, v = normal((3, 12, 2, 8))
        encoded = CODECS["int4"].encode(k, v)
        window = torch.full((2, 3, 30, 2, 8), 7.0, dtype=torch.bfloat16)
        CODECS["int4"].decode(encoded, out=(window[0, :, 4:16], window[1, :, 4:16]))
        expected = CODECS["int4"].decode(encoded, torch.bfloat16)
        assert torch.equal(window[0, :, 4:16], expected[0])
        assert torch.equal(window[1, :, 4:16], expected[1])
        assert (window[:, :, :4] == 7).all()
        assert (window[:, :, 16:] == 7).all()

    def test_any_strides_may_be_encoded(self):
        k, v = normal((3, 12, 2, 8))
        strided = k.permute(2, 1, 0, 3).contiguous().permute(2, 1, 0, 3)
        plain, other = CODECS["int4"].encode(k, v), CODECS["int4"].encode(strided, v)
        assert all(torch.equal(plain.tensors[key], other.tensors[key]) for key in plain.tensors)
