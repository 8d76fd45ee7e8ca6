"""What is on its way to a server: bounded, readable, tried again, and never waited for in vain."""

import threading

import numpy as np
import pytest

from cluster.chunks.labels import Label
from cluster.chunks.outbox import PATIENCE_SECONDS, PAUSE_SECONDS, Outbox
from worldkv.errors import CapacityError, TransferError

PATIENCE = 20.0


def letter(number: int, size: int = 100) -> tuple[Label, np.ndarray]:
    return Label("default", "weights-a", f"{number}", 4096), np.full(size, number, np.uint8)


class Gate:
    """Writes wait here until they are let through."""

    def __init__(self):
        self.written, self.open, self.waiting = [], threading.Event(), threading.Event()

    def write(self, label, data):
        self.waiting.set()
        assert self.open.wait(PATIENCE)
        self.written.append(label.chunk_id)


class Clock:
    """Goes forward when somebody waits."""

    def __init__(self):
        self.time, self.pauses = 0.0, []

    def now(self):
        return self.time

    def pause(self, seconds):
        self.time += seconds
        self.pauses.append(seconds)


def outbox_of(write, bound_bytes=1000, clock=None) -> Outbox:
    return Outbox(write, lambda: None, bound_bytes, clock or Clock())


def test_puts_return_at_once_and_are_written_in_order_and_can_be_read_meanwhile():
    gate = Gate()
    outbox = outbox_of(gate.write)
    outbox.start()
    for number in range(3):
        outbox.put(*letter(number))
    outbox.put(*letter(1))
    assert outbox.pending("1").tolist() == [1] * 100
    assert not outbox.wait(0.01)
    gate.open.set()
    assert outbox.wait(PATIENCE)
    assert (gate.written, outbox.pending("1"), outbox.failures) == (["0", "1", "2"], None, {})
    outbox.close()


def test_who_brings_more_than_fits_waits_until_there_is_room():
    gate = Gate()
    outbox = outbox_of(gate.write, bound_bytes=250)
    outbox.start()
    came = threading.Event()

    def bring():
        for number in range(3):
            outbox.put(*letter(number))
        came.set()

    bringer = threading.Thread(target=bring)
    bringer.start()
    assert gate.waiting.wait(PATIENCE)
    assert not came.wait(0.05)
    assert outbox.pending("2") is None
    gate.open.set()
    assert came.wait(PATIENCE)
    bringer.join()
    outbox.close()
    assert gate.written == ["0", "1", "2"]


def test_a_chunk_larger_than_the_bound_goes_alone():
    written = []
    outbox = outbox_of(lambda label, data: written.append(data.nbytes), bound_bytes=10)
    outbox.put(*letter(0, 100))
    assert written == [100]


def test_what_is_not_being_written_yet_can_be_taken_back():
    gate = Gate()
    outbox = outbox_of(gate.write)
    outbox.start()
    outbox.put(*letter(0))
    assert gate.waiting.wait(PATIENCE)
    outbox.put(*letter(1))
    assert outbox.cancel("1") is False
    gate.open.set()
    assert outbox.cancel("0") is True
    outbox.close()
    assert gate.written == ["0"]


def test_a_server_that_comes_back_gets_the_chunk_after_all():
    tries, clock = [], Clock()

    def write(label, data):
        tries.append(label)
        if len(tries) < 4:
            raise TransferError("nobody answers")

    outbox = outbox_of(write, clock=clock)
    outbox.put(*letter(0))
    assert (len(tries), len(clock.pauses), outbox.failures) == (4, 3, {})


@pytest.mark.parametrize(
    ("fault", "attempts"),
    [
        (TransferError("away"), 1 + PATIENCE_SECONDS / PAUSE_SECONDS),
        (CapacityError("full"), 1),
        (RuntimeError("a fault of ours"), 1),
    ],
)
def test_a_chunk_that_cannot_be_written_is_given_up_counted_and_stops_no_other(fault, attempts):
    tries = []

    def write(label, data):
        tries.append(label.chunk_id)
        if label.chunk_id == "0":
            raise fault

    outbox = outbox_of(write)
    outbox.put(*letter(0))
    outbox.put(*letter(1))
    assert tries == ["0"] * int(attempts) + ["1"]
    assert outbox.failures.keys() == {"0"}
    assert str(fault) in outbox.failures["0"]
    outbox.put(*letter(1))
    assert outbox.failures.keys() == {"0"}


def test_a_server_that_stays_away_holds_up_one_chunk_and_not_each():
    """One that hangs takes seconds to fail a write: whoever brings chunks must not wait for all their tries."""
    clock, away = Clock(), True

    def write(label, data):
        if away:
            clock.pause(5.0)  # until the question is given up
            raise TransferError("no answer")

    outbox = outbox_of(write, clock=clock)
    outbox.put(*letter(0))
    assert PATIENCE_SECONDS <= clock.now() < PATIENCE_SECONDS + 6
    before = clock.now()
    for number in (1, 2, 3):
        outbox.put(*letter(number))
    assert clock.now() - before == 15.0
    away = False
    outbox.put(*letter(4))
    away = True
    before = clock.now()
    outbox.put(*letter(5))
    assert clock.now() - before >= PATIENCE_SECONDS, "a server that was back is waited for again"
    assert outbox.failures.keys() == {"0", "1", "2", "3", "5"}


def test_closing_writes_what_is_left_and_tries_nothing_twice():
    tries = []

    def write(label, data):
        tries.append(label.chunk_id)
        raise TransferError("away")

    outbox = outbox_of(write)
    outbox._closing = True
    outbox.put(*letter(0))
    assert tries == ["0"]
