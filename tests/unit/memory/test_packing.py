import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldkv.memory.packing import pack, packed_shape, unpack


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.sampled_from([8, 4, 3]))
def test_codes_come_back(layers: int, tokens: int, heads: int, half_channels: int, bits: int):
    shape = (layers, tokens, heads, 2 * half_channels)
    codes = shape[2] * shape[3]
    generator = torch.Generator().manual_seed(codes)
    code_LTC = torch.randint(0, 1 << bits, (layers, tokens, codes), generator=generator, dtype=torch.uint8)
    out_LTP = torch.zeros(packed_shape(shape, bits), dtype=torch.uint8)
    pack(code_LTC, bits, out_LTP)
    assert torch.equal(unpack(out_LTP, bits, codes), code_LTC)


@pytest.mark.parametrize(("bits", "expected"), [(8, 320), (4, 160), (3, 120)])
def test_bytes_of_a_token(bits: int, expected: int):
    assert packed_shape((10, 192, 5, 64), bits) == (10, 192, expected)


def test_the_documented_places():
    code_LTC = torch.arange(8, dtype=torch.uint8).view(1, 1, 8)
    nibbles, eighths = torch.zeros(1, 1, 4, dtype=torch.uint8), torch.zeros(1, 1, 3, dtype=torch.uint8)
    pack(code_LTC, 4, nibbles)
    pack(code_LTC, 3, eighths)
    assert nibbles.flatten().tolist() == [0 | 4 << 4, 1 | 5 << 4, 2 | 6 << 4, 3 | 7 << 4]
    # g = 6 and h = 7: low bits 2 and 3; high bits 1 and 1.
    assert eighths.flatten().tolist() == [0 | 3 << 3 | 2 << 6, 1 | 4 << 3 | 3 << 6, 2 | 5 << 3 | 1 << 6 | 1 << 7]
