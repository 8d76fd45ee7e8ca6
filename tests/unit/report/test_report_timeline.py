import itertools

from worldkv.report.timeline import END_SECONDS, GENERATED_SECONDS, GIVEN_SECONDS, timeline


def test_a_short_run_is_shown_frame_by_frame_in_order() -> None:
    shots = timeline(48, 24, fps=8)
    assert [s.frame for s in shots if s.phase in ("given", "generated")] == list(range(48))
    assert {s.speed for s in shots} == {1}


def test_the_video_pauses_where_the_models_take_over() -> None:
    phases = [phase for phase, _ in itertools.groupby(timeline(48, 24, fps=8), key=lambda s: s.phase)]
    turn = [s for s in timeline(48, 24, fps=8) if s.phase == "turn"]
    assert phases == ["given", "turn", "generated", "end"]
    assert {s.frame for s in turn} == {23}
    assert len(turn) >= 4


def test_a_long_run_is_thinned_to_a_bounded_length_and_says_so() -> None:
    shots = timeline(5760, 2880, fps=8)
    given, made = ([s for s in shots if s.phase == phase] for phase in ("given", "generated"))
    assert len(given) <= GIVEN_SECONDS * 8
    assert len(made) <= GENERATED_SECONDS * 8
    assert given[0].speed > 1
    assert made[-1].frame == 5759


def test_nothing_given_or_nothing_generated_needs_no_turning_point() -> None:
    assert {s.phase for s in timeline(12, 0, fps=8)} == {"generated", "end"}
    assert {s.phase for s in timeline(12, 12, fps=8)} == {"given", "end"}


def test_the_result_stays_long_enough_to_be_read() -> None:
    assert sum(s.phase == "end" for s in timeline(12, 6, fps=8)) == END_SECONDS * 8
