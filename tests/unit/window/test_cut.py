from worldkv.window.cut import kept_frames


def test_without_a_limit_every_latent_frame_stays():
    assert kept_frames(2, 3, None, 0) == [(0, 1, 2), (0, 1, 2)]
    assert kept_frames(0, 3, None, 0) == []


def test_until_the_limit_is_reached_every_latent_frame_stays():
    assert kept_frames(2, 4, 12, 6) == [(0, 1, 2, 3), (0, 1, 2, 3)]


def test_the_oldest_behind_the_sink_go_first():
    assert kept_frames(3, 4, 12, 6) == [(0, 1, 2, 3), (0, 1), (2, 3)]
    assert kept_frames(1, 3, 4, 0) == [(2,)]
    assert kept_frames(2, 3, 4, 0) == [(), (2,)]


def test_a_chunk_may_lose_its_middle():
    assert kept_frames(1, 4, 7, 2) == [(0, 1, 3)]


def test_no_more_than_the_limit_is_attended_to():
    for chunks in range(6):
        for most in range(4, 20):
            for sink in range(most - 3):
                kept = sum(map(len, kept_frames(chunks, 4, most, sink))) + 4
                assert kept == min(most, 4 * (chunks + 1))
