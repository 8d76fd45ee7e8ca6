import pytest

from worldkv.report import binary_size, policy_label
from worldkv.report.labels import policy_colours, spread


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (19_029_568, "18.1 MiB"),
        (157_286_400, "150 MiB"),
        (3.83 * 1024**3, "3.83 GiB"),
        (5 * 1024**5, "5120 TiB"),
    ],
)
def test_bytes_are_said_in_the_unit_in_which_they_read_best(count: float, words: str) -> None:
    assert binary_size(count) == words


def test_an_unknown_policy_keeps_its_name_and_gets_a_colour_of_its_own() -> None:
    colours = policy_colours(["full", "worldkv_random", "worldkv"])
    assert policy_label("worldkv_random") == "worldkv random"
    assert len(set(colours.values())) == 3


def test_a_mean_without_a_deviation_is_said_alone() -> None:
    assert [spread(31.25, 1.5, 1), spread(31.25, None, 1), spread(None, None, 1)] == ["31.2 ± 1.5", "31.2", "–"]
