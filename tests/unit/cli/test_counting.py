import pytest

from worldkv.cli.counting import count


@pytest.mark.parametrize(("number", "said"), [(0, "0 faults"), (1, "1 fault"), (2, "2 faults")])
def test_one_thing_is_no_things(number, said):
    assert count(number, "fault") == said
