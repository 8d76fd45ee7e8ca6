from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldkv.geometry import KVGeometry
from worldkv.window import rotary
from worldkv.window.buffer import AssembledWindow, Slot, WindowBuffer

GEOMETRY = KVGeometry(
    layers=2, heads=2, head_dim=12, rows=1, columns=2, chunk_latent_frames=3, trained_latent_frames=12
)
TOKENS = GEOMETRY.tokens_per_chunk


def buffer_of(dtype: torch.dtype = torch.float32) -> WindowBuffer:
    return WindowBuffer(GEOMETRY, torch.device("cpu"), dtype)


class Source:
    """One stored chunk: un-rotated KV, whole or pruned to some tokens, and how often it was loaded."""

    def __init__(self, seed: int, kept: Sequence[int] | None = None) -> None:
        generator = torch.Generator().manual_seed(seed)
        tokens = TOKENS if kept is None else len(kept)
        self.kv = torch.randn(2, GEOMETRY.layers, tokens, 2, 12, generator=generator)
        self.key, self.tokens, self.loads = (seed, tokens), tokens, 0
        whole = rotary.grid_token_ids(3, 1, 2)
        self.ids = whole if kept is None else whole[list(kept)]
        self.pruned = kept is not None

    def at(self, first_frame: int) -> Slot:
        def load(k_LTHD: Tensor, v_LTHD: Tensor) -> None:
            self.loads += 1
            k_LTHD.copy_(self.kv[0])
            v_LTHD.copy_(self.kv[1])

        return Slot(self.key, first_frame, self.tokens, load, self.ids if self.pruned else None)

    def rotated(self, first_frame: int) -> Tensor:
        """Keys [L, T, H, D] turned by themselves, token by token."""
        ids = self.ids + torch.tensor([first_frame, 0, 0])
        parts = [
            rotary.rotate(self.kv[0][:, t : t + 1], *rotary.angles(ids[t : t + 1], 12)) for t in range(self.tokens)
        ]
        return torch.cat(parts, 1)


Row = Sequence[tuple[Source, int]]


def assemble(buffer: WindowBuffer, *rows: Row, current: int = 9) -> AssembledWindow:
    return buffer.assemble([[source.at(first) for source, first in row] for row in rows], [current] * len(rows))


def assert_holds(window: AssembledWindow, *rows: Row) -> None:
    """The window's past equals the chunks rotated one by one and laid end to end."""
    for b, row in enumerate(rows):
        k = torch.cat([source.rotated(first) for source, first in row], 1)
        v = torch.cat([source.kv[1] for source, _ in row], 1)
        assert window.past_tokens == k.shape[1]
        assert torch.equal(window._v[:, b, : window.past_tokens], v)
        torch.testing.assert_close(window._k[:, b, : window.past_tokens], k, atol=1e-6, rtol=1e-6)


def test_the_past_is_each_chunk_rotated_at_its_position():
    a, b, c, d = (Source(seed) for seed in range(4))
    rows = [(a, 0), (b, 3)], [(c, 40), (d, 2000)]
    assert_holds(assemble(buffer_of(), *rows), *rows)


def test_pruned_tokens_are_rotated_at_their_own_places():
    whole, pruned = Source(0), Source(1, kept=[0, 1, 3, 4])
    row = [(whole, 0), (pruned, 3)]
    assert_holds(assemble(buffer_of(), row), row)


@st.composite
def window_sequences(draw: st.DrawFn) -> list[list[list[tuple[int, int]]]]:
    """Windows of 1 or 2 sessions over time: (chunk, first frame); chunks 5 to 7 are pruned to 4, 5 and 1 tokens."""
    rows = draw(st.integers(1, 2))
    sequence = []
    for _ in range(draw(st.integers(1, 6))):
        chunks = draw(st.lists(st.integers(0, 7), max_size=6, unique=True))
        window = []
        for b in range(rows):
            firsts = draw(st.lists(st.integers(0, 30), min_size=len(chunks), max_size=len(chunks)))
            window.append([(10 * b + chunk, first) for chunk, first in zip(chunks, firsts, strict=True)])
        sequence.append(window)
    return sequence


@settings(max_examples=60)
@given(window_sequences())
def test_a_reused_buffer_holds_what_a_fresh_one_would(sequence):
    kept = {5: [0, 1, 2, 5], 6: [0, 1, 2, 3, 4], 7: [3]}
    sources = {10 * b + i: Source(10 * b + i, kept.get(i)) for b in range(2) for i in range(8)}
    buffer = buffer_of()
    for window in sequence:
        rows = [[(sources[chunk], first) for chunk, first in row] for row in window]
        if rows[0]:
            assembled = assemble(buffer, *rows)
            assert_holds(assembled, *rows)
            # As a forward would: the current chunk's tokens overwrite whatever lay behind the past.
            current = torch.full((len(rows), TOKENS, 2, 12), 7.0)
            for layer in range(GEOMETRY.layers):
                assembled.attend(layer, current, current, current)


def test_what_is_in_place_is_not_loaded_again():
    sink, a, b, c, d = sources = [Source(seed) for seed in range(5)]
    buffer = buffer_of()
    assemble(buffer, [(sink, 0), (a, 3), (b, 6), (c, 9)])
    assemble(buffer, [(sink, 0), (a, 3), (b, 6), (c, 9)])
    assert [source.loads for source in sources] == [1, 1, 1, 1, 0]
    assemble(buffer, [(sink, 0), (d, 3), (b, 6), (c, 9)])
    assert [source.loads for source in sources] == [1, 1, 1, 1, 1]
    assemble(buffer, [(sink, 0), (d, 3), (c, 6), (b, 9)])
    assert [source.loads for source in sources] == [1, 1, 2, 2, 1]


def test_a_chunk_at_a_new_position_is_loaded_again():
    a, b = Source(0), Source(1)
    buffer = buffer_of()
    assemble(buffer, [(a, 0), (b, 3)])
    row = [(a, 0), (b, 30)]
    assert_holds(assemble(buffer, row), row)
    assert (a.loads, b.loads) == (1, 2)


def test_only_what_lies_behind_a_changed_length_is_loaded_again():
    a, b, c, pruned = Source(0), Source(1), Source(2), Source(3, kept=[0, 1, 4])
    buffer = buffer_of()
    assemble(buffer, [(a, 0), (b, 3), (c, 6)])
    row = [(a, 0), (pruned, 3), (c, 6)]
    assert_holds(assemble(buffer, row), row)
    assert (a.loads, c.loads, pruned.loads) == (1, 2, 1)


def test_one_sessions_change_leaves_the_other_sessions_row_in_place():
    a, b, c = (Source(seed) for seed in range(3))
    buffer = buffer_of()
    assemble(buffer, [(a, 0)], [(b, 0)])
    assemble(buffer, [(a, 0)], [(c, 0)])
    assert (a.loads, b.loads, c.loads) == (1, 1, 1)


def test_a_full_window_grows_and_loads_each_chunk_once():
    sources = [Source(seed) for seed in range(20)]
    buffer = buffer_of()
    sizes = set()
    for count in range(1, len(sources) + 1):
        row = [(source, 3 * place) for place, source in enumerate(sources[:count])]
        assert_holds(assemble(buffer, row), row)
        sizes.add(buffer.nbytes)
    assert [source.loads for source in sources] == [1] * len(sources)
    assert len(sizes) <= 5  # doubled now and then, not extended for every chunk


def test_a_window_inside_the_trained_clip_is_allocated_once():
    sources = [Source(seed) for seed in range(3)]
    buffer = buffer_of()
    sizes = []
    for count in (1, 2, 3):
        assemble(buffer, [(source, 3 * place) for place, source in enumerate(sources[:count])])
        sizes.append(buffer.nbytes)
    trained = 2 * GEOMETRY.layers * GEOMETRY.trained_latent_frames * 2 * 2 * 12 * 4
    assert sizes == [trained] * 3


def test_a_window_of_known_length_gets_exactly_its_room():
    sources = [Source(seed) for seed in range(3)]
    buffer = WindowBuffer(GEOMETRY, torch.device("cpu"), torch.float32, latent_frames=6)
    sizes = []
    for count in (0, 1, 2):
        assemble(buffer, [(source, 3 * place) for place, source in enumerate(sources[:count])])
        sizes.append(buffer.nbytes)
    known = 2 * GEOMETRY.layers * 6 * 2 * 2 * 12 * 4
    assert sizes[:2] == [known] * 2
    assert sizes[2] > known  # a longer one is served all the same


def test_more_sessions_find_room_and_the_first_stays_in_place():
    a, b = Source(0), Source(1)
    buffer = buffer_of()
    assemble(buffer, [(a, 0)])
    rows = [(a, 0)], [(b, 5)]
    assert_holds(assemble(buffer, *rows), *rows)
    assert (a.loads, b.loads) == (1, 1)


def test_a_failed_load_leaves_nothing_that_could_pass_for_a_chunk():
    a, b, c = (Source(seed) for seed in range(3))
    buffer = buffer_of()
    assemble(buffer, [(a, 0), (b, 3)])

    def fail(k_LTHD: Tensor, v_LTHD: Tensor) -> None:
        k_LTHD.zero_()
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        buffer.assemble([[c.at(0), Slot("broken", 3, TOKENS, fail)]], [6])
    row = [(a, 0), (b, 3)]
    assert_holds(assemble(buffer, row), row)


def test_windows_of_unequal_length_are_refused_with_their_lengths():
    a, b, pruned = Source(0), Source(1), Source(2, kept=[0, 1])
    with pytest.raises(ValueError, match=r"equally long, got \[6, 2\]"):
        assemble(buffer_of(), [(a, 0)], [(pruned, 0)])
    with pytest.raises(ValueError, match=r"equally long, got \[6, 12\]"):
        assemble(buffer_of(), [(a, 0)], [(a, 0), (b, 3)])


def naive_attention(row: Row, current: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, layer: int) -> Tensor:
    """Concatenate, rotate and attend in float64."""
    here = rotary.angles(rotary.grid_token_ids(3, 1, 2, first_frame=current), 12)
    q, k_here = (rotary.rotate(x, *here).double() for x in (q_THD, k_THD))
    k = torch.cat([*(source.rotated(first)[layer].double() for source, first in row), k_here])
    v = torch.cat([*(source.kv[1][layer].double() for source, _ in row), v_THD.double()])
    scores_HTT = torch.einsum("qhd,khd->hqk", q, k) / 12**0.5
    return torch.einsum("hqk,khd->qhd", scores_HTT.softmax(-1), v)


@pytest.mark.parametrize("past", [0, 1, 5])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 0.03)])
def test_attention_is_that_over_past_and_current_chunk_in_one(past, dtype, tolerance):
    generator = torch.Generator().manual_seed(past)
    rows = [[(Source(10 * b + i), 3 * i) for i in range(past)] for b in range(2)]
    currents = (3 * past, 100)
    slots = [[source.at(first) for source, first in row] for row in rows]
    window = buffer_of(dtype).assemble(slots, currents)
    for layer in range(GEOMETRY.layers):
        q, k, v = torch.randn(3, 2, TOKENS, 2, 12, generator=generator)
        out = window.attend(layer, q, k, v)
        for b, row in enumerate(rows):
            expected = naive_attention(row, currents[b], q[b], k[b], v[b], layer)
            torch.testing.assert_close(out[b].double(), expected, atol=tolerance, rtol=tolerance)


def test_attention_only_depends_on_positions_relative_to_the_current_chunk():
    source = Source(0)
    q, k, v = torch.randn(3, 1, TOKENS, 2, 12, generator=torch.Generator().manual_seed(1))
    near = assemble(buffer_of(), [(source, 4)], current=10).attend(0, q, k, v)
    far = assemble(buffer_of(), [(source, 1004)], current=1010).attend(0, q, k, v)
    other = assemble(buffer_of(), [(source, 4)], current=20).attend(0, q, k, v)
    torch.testing.assert_close(near, far, atol=1e-4, rtol=0)
    assert (near - other).abs().max() > 1e-2


def test_each_forward_overwrites_the_current_chunk_and_leaves_the_past():
    source = Source(0)
    window = assemble(buffer_of(), [(source, 0)])
    first, second = torch.randn(2, 3, 1, TOKENS, 2, 12, generator=torch.Generator().manual_seed(1))
    once = window.attend(0, *first)
    window.attend(0, *second)
    assert torch.equal(window.attend(0, *first), once)
    assert_holds(window, [(source, 0)])
