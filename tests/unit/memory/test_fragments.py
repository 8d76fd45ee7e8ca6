"""How payloads are cut for copies."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.memory.fragments import FRAGMENT_BYTES, PIN_PIECE_BYTES, fragments_of, layer_runs


@given(st.integers(1, 64), st.integers(1, 40), st.integers(0, 200), st.sampled_from([16, 48]))
def test_fragments_cover_a_payload_in_order_and_never_cross_a_pinned_piece(layers, layer_bytes, address, piece):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldkv.memory.fragments.FRAGMENT_BYTES", 16)
        patch.setattr("worldkv.memory.fragments.PIN_PIECE_BYTES", piece)
        fragments = fragments_of(layers, layer_bytes, address)
    assert [f.start for f in fragments] == [0, *(f.stop for f in fragments[:-1])]
    assert fragments[-1].stop == layers * layer_bytes
    for start, stop in fragments:
        assert start < stop
        assert (address + start) // piece == (address + stop - 1) // piece


@pytest.mark.parametrize(("layers", "layer_bytes"), [(40, 24 << 20), (30, 1 << 20), (8, 3 << 20), (20, 100 << 10)])
def test_real_fragments_are_of_two_mebibytes_or_more(layers, layer_bytes, monkeypatch):
    monkeypatch.setattr("worldkv.memory.fragments.PIN_PIECE_BYTES", 2**50)
    fragments = fragments_of(layers, layer_bytes, PIN_PIECE_BYTES)
    sizes = [stop - start for start, stop in fragments]
    assert min(2 << 20, layers * layer_bytes) <= min(sizes)
    assert max(sizes) <= 2 * FRAGMENT_BYTES
    assert [layer for run in layer_runs(layers, layer_bytes) for layer in run] == list(range(layers))


@pytest.mark.parametrize(("address", "fragments"), [(0, [(0, 32)]), (32, [(0, 32)]), (33, [(0, 31), (31, 32)])])
def test_a_short_payload_is_one_fragment_unless_it_lies_across_pinned_pieces(address, fragments, monkeypatch):
    monkeypatch.setattr("worldkv.memory.fragments.PIN_PIECE_BYTES", 64)
    assert fragments_of(4, 8, address) == fragments
