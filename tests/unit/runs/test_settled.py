"""What lives as long as a run is looked at by no collection, and what comes later is."""

import gc
import weakref

from worldkv.runs.settled import settled


class Node:
    """Refers to itself, so that only the collector can free it."""

    def __init__(self):
        self.me = self


def test_only_what_came_later_is_collected_and_afterwards_all_is():
    before = gc.get_freeze_count()
    old = Node()
    gone = weakref.ref(old)
    with settled():
        assert gc.get_freeze_count() > before
        later = weakref.ref(Node())
        del old
        gc.collect()
        assert gone() is not None
        assert later() is None
    gc.collect()
    assert gone() is None
    assert gc.get_freeze_count() == 0
