"""The transfer engine, inline, with a link and a clock of the test's own; and once with its threads."""

import gc
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from worldkv.errors import TransferError
from worldkv.memory.ticket import Copy
from worldkv.memory.tiers.device import DeviceTier
from worldkv.memory.transfer import PlainLink, TransferEngine

CPU = torch.device("cpu")
LAYERS = 4


@dataclass
class Later:
    """The end of a copy that lands when the test says so, or when somebody waits."""

    copy: object
    over: bool = False

    def done(self):
        return self.over

    def wait(self):
        if not self.over:
            self.over = True
            self.copy()

    hold_stream = wait


@dataclass
class SlowLink:
    """Lands nothing by itself; `broken` copies raise."""

    marks: list[Later] = field(default_factory=list)
    broken: int | None = None

    def copy(self, destinations, sources, after):
        if self.broken == len(self.marks):
            raise RuntimeError("the link is down")
        for mark in after:
            mark.wait()
        self.marks.append(Later(lambda: PlainLink().copy(destinations, sources, ())))
        return self.marks[-1]


@pytest.fixture(autouse=True)
def _short_fragments(monkeypatch):
    """One layer each, so that tests move bytes, not megabytes."""
    monkeypatch.setattr("worldkv.memory.fragments.FRAGMENT_BYTES", 16)


def payload(seed=0, layers=LAYERS, layer_bytes=16):
    return torch.randint(256, (layers, layer_bytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def down(seed=0, **options):
    source = payload(seed)
    return Copy(source, torch.zeros_like(source), "down", **options)


def inline(link=None, **options):
    link = link or PlainLink()
    return TransferEngine(link, link, **options)


def books_balance(stats):
    for lane in (stats.down, stats.up):
        assert lane.submitted == lane.done + lane.late + lane.cancelled + lane.failed + lane.open


def test_what_is_copied_is_the_same_in_both_directions():
    engine = inline()
    for direction in ("down", "up"):
        copy = Copy(payload(), torch.zeros_like(payload()), direction)
        engine.submit(copy).wait()
        assert copy.destination_LN.equal(copy.source_LN)
    assert engine.stats().down.copied_bytes == engine.stats().up.copied_bytes == payload().nbytes


def test_a_layer_is_there_while_later_ones_still_move():
    engine, copy = inline(), down()
    ticket = engine.submit(copy)
    for layer in range(LAYERS):
        ticket.wait_layer(layer)
        assert copy.destination_LN[: layer + 1].equal(copy.source_LN[: layer + 1])
        assert not copy.destination_LN[layer + 1 :].any()


def test_waiting_for_a_layer_waits_for_its_copy_only_on_the_stream():
    link = SlowLink()
    ticket = inline(link).submit(down())
    ticket.wait_layer(1)
    assert [mark.over for mark in link.marks] == [False, True]
    assert ticket.state == "moving"


def test_the_earlier_deadline_goes_first_and_overtakes_what_moves():
    engine = inline(clock=lambda: 0.0)
    slack, urgent = down(1, deadline=9.0), down(2, deadline=5.0)
    first = engine.submit(slack)
    engine.step("down")
    second = engine.submit(urgent)
    second.wait()
    assert (first.state, second.state) == ("moving", "done")
    first.wait()
    assert slack.destination_LN.equal(slack.source_LN)


@pytest.fixture
def three_in_a_haul(monkeypatch):
    """Of the payloads of these tests."""
    monkeypatch.setattr("worldkv.memory.fragments.FRAGMENT_BYTES", 3 * payload().nbytes)


@pytest.mark.usefixtures("three_in_a_haul")
def test_short_payloads_travel_together_by_one_call_of_the_link():
    link = SlowLink()
    engine, copies = inline(link), [down(seed) for seed in range(7)]
    tickets = engine.submit_all(copies)
    tickets[2].wait()
    assert (len(link.marks), [ticket.state for ticket in tickets[:4]]) == (3, ["done"] * 3 + ["moving"])
    for copy, ticket in zip(copies, tickets, strict=True):
        ticket.wait()
        assert copy.destination_LN.equal(copy.source_LN)
    stats = engine.stats().down
    assert (stats.hauls, stats.done, stats.copied_bytes) == (3, 7, 7 * payload().nbytes)


@pytest.mark.usefixtures("three_in_a_haul")
def test_in_a_haul_only_what_is_wanted_and_in_time_moves():
    now, link = [0.0], SlowLink()
    engine, copies = inline(link, clock=lambda: now[0]), [down(seed, deadline=seed) for seed in range(1, 6)]
    tickets = engine.submit_all(copies)
    tickets[2].cancel()
    now[0] = 1.0
    while engine.step("down"):
        pass
    assert [ticket.state for ticket in tickets] == ["late", "done", "cancelled", "done", "done"]
    assert [bool(copy.destination_LN.any()) for copy in copies] == [False, True, False, True, True]
    assert engine.stats().down.hauls == 1


@pytest.mark.usefixtures("three_in_a_haul")
def test_what_fails_in_a_haul_is_one_transfer_where_it_is_the_listener_and_all_where_it_is_the_link():
    def landed(layers):
        raise RuntimeError("no more threads")

    engine = inline()
    tickets = engine.submit_all([down(1), down(2, landed=landed), down(3)])
    while engine.step("down"):
        pass
    assert [ticket.state for ticket in tickets] == ["done", "failed", "done"]
    engine = inline(SlowLink(broken=0))
    tickets = engine.submit_all([down(1), down(2), down(3), down(4)])
    engine.step("down")
    assert [ticket.state for ticket in tickets] == ["failed"] * 3 + ["queued"]
    assert [ticket.sources for ticket in tickets[:3]] == [()] * 3
    books_balance(engine.stats())


@pytest.mark.usefixtures("three_in_a_haul")
def test_what_a_haul_waits_for_is_waited_for_before_any_of_it_moves():
    first, second, order = down(1), down(2), []

    class Before(Later):
        def wait(self):
            order.append(bool(first.destination_LN.any() or second.destination_LN.any()))

    engine, mark = inline(), Before(None)
    engine.submit_all([Copy(c.source_LN, c.destination_LN, "down", after=(mark,)) for c in (first, second)])[1].wait()
    assert order == [False]  # asked once for both


def test_many_at_once_wait_for_room_and_go_both_ways():
    copies = [Copy(payload(i), torch.zeros_like(payload()), ("down", "up")[i % 2]) for i in range(50)]
    engine = inline(queue_limit=2)
    tickets = engine.submit_all(copies)
    assert engine.stats().down.queued == engine.stats().up.queued == 2
    for copy, ticket in zip(copies, tickets, strict=True):
        ticket.wait()
        assert copy.destination_LN.equal(copy.source_LN)
    assert engine.submit_all([]) == []
    engine.close()
    with pytest.raises(TransferError, match="closed"):
        engine.submit_all(copies)


def test_equal_deadlines_keep_their_order():
    engine = inline()
    first, second = engine.submit(down(1)), engine.submit(down(2))
    first.wait()
    assert second.state == "queued"


def test_a_transfer_past_its_deadline_before_it_starts_is_late_and_moves_nothing():
    now = [0.0]
    engine = inline(clock=lambda: now[0])
    copy = down(deadline=1.0)
    ticket = engine.submit(copy)
    now[0] = 1.0
    assert not engine.step("down")
    assert ticket.state == "late"
    assert not copy.destination_LN.any()
    with pytest.raises(TransferError, match="late, 0 of 64 bytes done"):
        ticket.wait()
    assert engine.stats().down.late == 1


def test_a_transfer_that_started_in_time_is_finished():
    now = [0.0]
    engine = inline(clock=lambda: now[0])
    ticket = engine.submit(down(deadline=1.0))
    engine.step("down")
    now[0] = 2.0
    ticket.wait()
    assert ticket.state == "done"


def test_what_is_cancelled_before_it_starts_moves_nothing():
    engine, copy = inline(), down()
    ticket = engine.submit(copy)
    assert ticket.cancel()
    assert not ticket.cancel()
    assert not engine.step("down")
    assert not copy.destination_LN.any()
    with pytest.raises(TransferError, match="cancelled, 0 of 64 bytes"):
        ticket.wait_layer(0)


def test_what_is_cancelled_while_it_moves_stops_at_the_next_fragment():
    engine, copy = inline(), down()
    ticket = engine.submit(copy)
    engine.step("down")
    engine.step("down")
    assert ticket.cancel()
    assert not engine.step("down")
    assert copy.destination_LN[:2].equal(copy.source_LN[:2])
    assert not copy.destination_LN[2:].any()
    with pytest.raises(TransferError, match="cancelled, 32 of 64 bytes"):
        ticket.wait()
    assert engine.stats().down.copied_bytes == 32


def test_what_is_enqueued_whole_cannot_be_cancelled():
    engine = inline(SlowLink())
    ticket = engine.submit(down())
    ticket.wait_layer(LAYERS - 1)
    assert not ticket.cancel()
    ticket.wait()
    assert ticket.state == "done"


def test_memory_is_referred_to_until_the_last_enqueued_fragment_has_landed():
    link = SlowLink()
    engine = inline(link)
    tier = DeviceTier.open("device", CPU, 8 * 4096)
    room = tier.reserve(LAYERS, 16)
    ticket = engine.submit(Copy(payload(), room.payload_LN, "up", after=room.after))
    engine.step("up")
    ticket.cancel()
    del room
    gc.collect()
    assert tier.used_bytes == 4096
    engine.step("up")
    del ticket  # whose marks are of this test's making, and refer to the memory
    link.marks.clear()
    gc.collect()
    assert tier.used_bytes == 0
    assert tier.check() == []


def test_an_offer_to_a_full_queue_is_refused_and_a_submission_waits():
    engine = inline(queue_limit=2)
    first = engine.submit(down(1))
    second = engine.submit(down(2))
    assert engine.offer(down(3)) is None
    third = engine.submit(down(4))  # inline, waiting does the work
    assert (first.state, second.state, third.state) == ("done", "queued", "queued")
    stats = engine.stats().down
    assert (stats.refused, stats.queued, stats.submitted, stats.open) == (1, 2, 3, 2)


def test_a_broken_link_says_from_where_to_where_and_how_much_was_done():
    engine = inline(SlowLink(broken=2))
    ticket = engine.submit(down())
    with pytest.raises(TransferError, match=r"cpu to cpu failed, \d+ of 64 bytes done: the link is down"):
        ticket.wait()
    other = engine.submit(down(1))
    with pytest.raises(TransferError):
        other.wait()
    assert engine.stats().down.failed == 2
    books_balance(engine.stats())


def test_a_listener_that_fails_fails_the_transfer():
    def landed(layers):
        raise RuntimeError("no more threads")

    engine = inline()
    with pytest.raises(TransferError, match="no more threads"):
        engine.submit(down(landed=landed)).wait()


def test_a_closed_engine_cancels_what_waits_and_refuses_the_rest():
    link = SlowLink()
    engine = inline(link)
    moving, waiting = engine.submit(down(1)), engine.submit(down(2))
    moving.wait_layer(LAYERS - 1)
    engine.close()
    assert (moving.state, waiting.state) == ("done", "cancelled")
    for again in (engine.submit, engine.offer):
        with pytest.raises(TransferError, match="closed"):
            again(down(3))
    books_balance(engine.stats())


def test_only_payloads_of_one_shape_are_copied():
    with pytest.raises(ValueError, match=r"\(4, 16\) cannot be copied over one of \(2, 32\)"):
        Copy(payload(), torch.zeros(2, 32, dtype=torch.uint8), "up")
    with pytest.raises(ValueError, match="contiguous uint8"):
        Copy(payload()[:, ::2], payload()[:, ::2], "up")


def test_a_payload_that_is_one_fragment_is_copied_uncut():
    copy = Copy(payload(layers=1), torch.zeros_like(payload(layers=1)), "down")
    ticket = inline().submit(copy)
    assert ticket.sources[0] is copy.source_LN
    assert ticket.targets[0] is copy.destination_LN
    ticket.wait()
    assert copy.destination_LN.equal(copy.source_LN)


def test_an_engine_works_inline_until_it_is_started():
    copy = down()
    with inline() as engine:
        ticket = engine.submit(copy)
        assert ticket.state == "queued"
        engine.start()
        ticket.wait()
    assert copy.destination_LN.equal(copy.source_LN)


def test_threads_do_the_same_work():
    with TransferEngine.open(CPU, queue_limit=2) as engine:
        copies = [down(seed) for seed in range(20)]
        tickets = [engine.submit(copy) for copy in copies]
        for copy, ticket in zip(copies, tickets, strict=True):
            ticket.wait_layer(0)
            ticket.wait()
            assert copy.destination_LN.equal(copy.source_LN)
    assert engine.stats().down.done == 20


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_dies_leaves_nobody_waiting():
    def landed(layers):
        raise AssertionError("a mistake in the code")

    with TransferEngine.open(CPU) as engine:
        with pytest.raises(TransferError, match="thread has ended"):
            engine.submit(down(landed=landed)).wait()
        books_balance(engine.stats())


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("submit"), st.floats(0, 10)),
            st.tuples(st.just("offer"), st.floats(0, 10)),
            st.tuples(st.just("step"), st.just(0.0)),
            st.tuples(st.just("tick"), st.floats(0, 2)),
            st.tuples(st.just("cancel"), st.integers(0, 20).map(float)),
        ),
        max_size=60,
    ),
    st.sampled_from([16, 40, 200]),
)
def test_the_books_balance_and_only_what_is_done_is_whole(steps, haul_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worldkv.memory.fragments.FRAGMENT_BYTES", haul_bytes)
        _play(steps)


def _play(steps):
    now, link = [0.0], SlowLink()
    engine = inline(link, queue_limit=3, clock=lambda: now[0])
    tickets, copies = [], []
    for what, x in steps:
        if what in ("submit", "offer"):
            copy = down(len(tickets), deadline=x)
            if (ticket := getattr(engine, what)(copy)) is not None:
                tickets.append(ticket)
                copies.append(copy)
        elif what == "step":
            engine.step("down")
        elif what == "tick":
            now[0] += x
        elif tickets:
            tickets[int(x) % len(tickets)].cancel()
        books_balance(engine.stats())
        assert engine.stats().down.queued <= 3
    while engine.step("down"):
        pass
    assert engine.stats().down.open == 0
    for ticket, copy in zip(tickets, copies, strict=True):
        same = copy.destination_LN.equal(copy.source_LN)
        assert same == (ticket.state == "done")
        if ticket.state == "late":
            assert not copy.destination_LN.any()


def test_a_ticket_that_is_done_keeps_no_memory():
    engine, tier = inline(), DeviceTier.open("device", CPU, 8 * 4096)
    room = tier.reserve(LAYERS, 16)
    ticket = engine.submit(Copy(payload(), room.payload_LN, "up"))
    ticket.wait()
    del room
    assert tier.used_bytes == 0
    ticket.wait_layer(0)
    assert ticket.state == "done"


def test_what_is_cancelled_while_its_fragment_is_being_enqueued_keeps_its_memory_until_that_lands():
    class Cancelling(SlowLink):
        def copy(self, destinations, sources, after):
            assert ticket.cancel()
            return super().copy(destinations, sources, after)

    engine, copy = inline(Cancelling()), down()
    ticket = engine.submit(copy)
    engine.step("down")
    assert len(ticket.targets) == LAYERS
    engine.step("down")
    assert (ticket.targets, ticket.state) == ((), "cancelled")
    assert not engine.step("down")
    assert copy.destination_LN[:1].equal(copy.source_LN[:1])
