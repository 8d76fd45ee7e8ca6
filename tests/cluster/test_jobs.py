"""Jobs on two nodes that nobody disturbs, and those that are stopped on purpose."""

import pytest

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nodes")]


def test_two_workers_make_the_bytes_of_one_process(carry_out, undisturbed, tree, tmp_path):
    outcome = carry_out()
    assert (outcome.generated.made, outcome.generated.kept, outcome.set_aside) == (8, 0, {})
    assert tree(tmp_path / "run") == undisturbed()
    assert outcome.generated.memory.lookups == outcome.generated.memory.hits > 0
