import pytest
from hypothesis import given
from hypothesis import strategies as st

from worldkv.errors import ConfigError
from worldkv.window.positions import Positions, WindowChunks, first_frames


@st.composite
def windows(draw: st.DrawFn) -> WindowChunks:
    current = draw(st.integers(0, 60))
    sink = range(min(draw(st.integers(0, 2)), current))
    recent = range(max(len(sink), current - draw(st.integers(0, 4))), current)
    between = list(range(len(sink), recent.start))
    retrieved = draw(st.lists(st.sampled_from(between), unique=True, max_size=6)) if between else []
    return WindowChunks(tuple(sink), tuple(retrieved), tuple(recent), current)


def flat(positions: Positions) -> list[int]:
    return [*positions.sink, *positions.retrieved, *positions.recent, positions.current]


@given(windows(), st.integers(1, 5))
def test_original_is_where_the_chunk_was_generated(chunks: WindowChunks, size: int):
    found = first_frames(chunks, chunk_latent_frames=size, mode="original", trained_latent_frames=3)
    assert flat(found) == [size * chunk for chunk in (*chunks.past, chunks.current)]


@given(windows(), st.integers(1, 5))
def test_rebased_is_contiguous_from_zero_and_keeps_temporal_order(chunks: WindowChunks, size: int):
    length = size * (len(chunks.past) + 1)
    found = first_frames(chunks, chunk_latent_frames=size, mode="rebased", trained_latent_frames=length)
    assert sorted(flat(found)) == list(range(0, length, size))
    by_time = sorted(zip((*chunks.past, chunks.current), flat(found), strict=True))
    assert [place for _, place in by_time] == sorted(flat(found))


@given(st.integers(0, 30), st.integers(0, 2), st.integers(0, 4), st.integers(1, 5), st.randoms())
def test_modes_agree_until_something_is_evicted(current, sink, recent, size, random):
    sink = min(sink, current)
    start = max(sink, current - recent)
    between = list(range(sink, start))
    random.shuffle(between)
    chunks = WindowChunks(tuple(range(sink)), tuple(between), tuple(range(start, current)), current)
    length = size * (current + 1)
    original, rebased = (
        first_frames(chunks, chunk_latent_frames=size, mode=mode, trained_latent_frames=length)
        for mode in ("original", "rebased")
    )
    assert original == rebased


def test_an_example():
    chunks = WindowChunks(sink=(0,), retrieved=(41, 7), recent=(98, 99), current=100)
    original = first_frames(chunks, chunk_latent_frames=3, mode="original", trained_latent_frames=48)
    assert original == Positions((0,), (123, 21), (294, 297), 300)
    rebased = first_frames(chunks, chunk_latent_frames=3, mode="rebased", trained_latent_frames=48)
    assert rebased == Positions((0,), (6, 3), (9, 12), 15)


def test_a_window_longer_than_the_trained_range_is_refused():
    chunks = WindowChunks(sink=(0,), retrieved=(41, 7), recent=(98, 99), current=100)
    with pytest.raises(ConfigError, match=r"trained_latent_frames=17.*18 latent frames"):
        first_frames(chunks, chunk_latent_frames=3, mode="rebased", trained_latent_frames=17)


@pytest.mark.parametrize(
    "parts",
    [
        {"sink": (0,), "retrieved": (0,), "recent": ()},
        {"sink": (0,), "retrieved": (5,), "recent": ()},
        {"sink": (0,), "retrieved": (), "recent": (4, 4)},
        {"sink": (-1,), "retrieved": (), "recent": ()},
    ],
)
def test_a_chunk_in_two_parts_or_not_in_the_past_is_refused(parts: dict[str, tuple[int, ...]]):
    with pytest.raises(ConfigError, match="one part only"):
        WindowChunks(**parts, current=5)


def test_unknown_modes_and_sizes_are_refused():
    chunks = WindowChunks((0,), (), (), 1)
    with pytest.raises(ConfigError, match="mode='shifted'"):
        first_frames(chunks, chunk_latent_frames=3, mode="shifted", trained_latent_frames=48)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="chunk_latent_frames=0"):
        first_frames(chunks, chunk_latent_frames=0, mode="original", trained_latent_frames=48)
