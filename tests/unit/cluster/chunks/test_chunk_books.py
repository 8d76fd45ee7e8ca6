"""The books of a chunk server: whoever reserves, reads, claims and dies."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from cluster.chunks.books import FAR_LOAN_SECONDS, ServerBooks
from cluster.chunks.labels import Label, Process
from worldkv.errors import CapacityError
from worldkv.memory.tenants import Share, Shares

HERE, FAR = Process("a", 1, 7), Process("b", 1, 7)


def label(number: int, pages: int = 1, tenant: str = "red") -> Label:
    return Label(tenant, "weights-a", f"{number}", 4096 * pages)


def bring(books: ServerBooks, one: Label, who: Process = HERE):
    books.reserve(one, who)
    return books.arrived(one.key)


def test_what_is_on_its_way_counts_twice_and_once_when_it_is_here():
    books = ServerBooks(3 * 4096)
    books.reserve(label(0), HERE)
    assert books.used_bytes == 2 * 4096
    with pytest.raises(CapacityError, match="chunk 1: twice 4096 bytes asked, 4096 of 12288 free, 0 being read"):
        books.reserve(label(1), HERE)
    books.arrived(label(0).key)
    assert books.used_bytes == 4096
    books.reserve(label(1), HERE)
    books.abandoned(label(1).key)
    assert books.used_bytes == 4096


def test_the_least_recently_used_makes_room_unless_it_is_read():
    books = ServerBooks(4 * 4096)
    first, second, third = (bring(books, label(i)) for i in range(3))
    books.give_back(books.lend(first, HERE, 0.0))  # used last
    loan = books.lend(second, HERE, 0.0)
    assert books.reserve(label(3), HERE) == [third]
    books.arrived(label(3).key)
    assert books.reserve(label(4), HERE) == [first]
    assert books.lent_bytes == 4096
    books.give_back(loan)
    books.give_back(loan)
    assert books.lent_bytes == 0


def test_what_is_dropped_while_it_is_read_stays_counted_until_its_last_reader_is_done():
    books = ServerBooks(8 * 4096)
    holding = bring(books, label(0))
    loans = [books.lend(holding, HERE, 0.0) for _ in range(2)]
    books.drop(label(0).key)
    again = bring(books, label(0))
    assert (books.used_bytes, again.serial == holding.serial) == (2 * 4096, False)
    books.give_back(loans[0])
    assert books.used_bytes == 2 * 4096
    books.give_back(loans[1])
    assert books.used_bytes == 4096
    assert books.faults() == []


def test_a_tenant_beyond_its_limit_makes_room_of_its_own_and_a_reservation_is_left_alone():
    shares = Shares({"red": Share(0, 2 * 4096), "blue": Share(4096, None)})
    books = ServerBooks(5 * 4096, shares)
    blue, red = bring(books, label(9, tenant="blue")), bring(books, label(0))
    bring(books, label(1))
    assert books.reserve(label(2), HERE) == [red]
    books.arrived(label(2).key)
    with pytest.raises(CapacityError, match="tenant red is at its limit"):
        books.reserve(label(3, pages=3), HERE)
    green = [bring(books, label(i, tenant="green")) for i in range(4, 8)]
    assert blue.label.key in books.held
    assert green[-1].label.key in books.held
    assert books.faults() == []


def test_the_dead_give_back_what_they_had_and_others_keep_theirs():
    books = ServerBooks(20 * 4096)
    holding = bring(books, label(0))
    holding.claims.add(FAR)
    books.reserve(label(1), HERE)
    books.lend(holding, HERE, 0.0)
    far = books.lend(holding, FAR, 0.0)
    books.sweep("a", lambda process: False, FAR_LOAN_SECONDS)
    assert (holding.claims, books.on_its_way(label(1).key), books.lent_bytes) == ({FAR}, False, 4096)
    books.sweep("a", lambda process: False, FAR_LOAN_SECONDS + 1)
    assert books.lent_bytes == 0
    books.give_back(far)
    bring(books, label(2))
    books.give_back(books.lend(holding, HERE, 0.0))
    books.unclaim(label(0).key, HERE)
    assert next(iter(books.held)) == label(2).key
    books.unclaim(label(0).key, FAR)
    books.unclaim(label(0).key, FAR)
    assert next(iter(books.held)) == label(0).key
    assert books.faults() == []


def test_a_chunk_is_found_by_its_names_for_its_tenant_alone():
    books = ServerBooks(20 * 4096)
    holding = bring(books, label(0))
    assert books.also_name(holding, ["old", "0", "older", "old"])
    assert not books.also_name(holding, ["old"])
    assert books.find("red", "older") is books.find("red", "0") is holding
    assert books.find("blue", "old") is books.find("blue", "0") is None
    books.drop(label(0).key)
    assert books.find("red", "old") is None
    assert books.faults() == []


class Uses(RuleBasedStateMachine):
    """Any use; never above the capacity, never a chunk out from under a reader, never below a reservation."""

    shares = Shares({"red": Share(2 * 4096, None), "blue": Share(0, 6 * 4096)})
    chunks = st.builds(label, st.integers(0, 9), st.integers(1, 3), st.sampled_from(["red", "blue", "green"]))
    people = st.builds(Process, st.sampled_from(["a", "b"]), st.integers(1, 3), st.just(0))

    def __init__(self):
        super().__init__()
        self.books, self.loans, self.coming, self.now = ServerBooks(16 * 4096, self.shares), {}, set(), 0.0

    @rule(one=chunks, who=people)
    def bring(self, one, who):
        if one.key in self.books.held or self.books.on_its_way(one.key):
            return
        red = self.books.tenant_bytes("red")
        read = {serial for serial, _ in self.loans.values()}
        try:
            victims = self.books.reserve(one, who)
        except CapacityError:
            return
        assert not {victim.serial for victim in victims} & read
        gone = sum(victim.label.nbytes for victim in victims if victim.label.tenant == "red")
        assert one.tenant == "red" or not gone or red - gone >= 2 * 4096
        self.coming.add(one.key)

    @rule(arrives=st.booleans())
    def end(self, arrives):
        if self.coming:
            key = self.coming.pop()
            if self.books.on_its_way(key):
                (self.books.arrived if arrives else self.books.abandoned)(key)

    @rule(one=chunks, who=people)
    def lend(self, one, who):
        holding = self.books.find(*one.key)
        if holding is not None:
            self.loans[self.books.lend(holding, who, self.now)] = (holding.serial, who)

    @rule(which=st.integers(0, 50))
    def give_back(self, which):
        if self.loans:
            number = sorted(self.loans)[which % len(self.loans)]
            del self.loans[number]
            self.books.give_back(number)

    @rule(one=chunks)
    def drop(self, one):
        self.books.drop(one.key)

    @rule(dead=people)
    def sweep(self, dead):
        self.books.sweep("a", lambda process: process != dead, self.now)
        if dead.node == "a":
            self.loans = {number: loan for number, loan in self.loans.items() if loan[1] != dead}

    @invariant()
    def the_books_balance(self):
        assert self.books.faults() == []
        assert self.books.used_bytes <= 16 * 4096
        assert self.books.tenant_bytes("blue") <= 6 * 4096
        here = {one.serial for one in self.books.held.values()}
        lent = {serial for serial, _ in self.loans.values()}
        assert self.books.lent_bytes >= 4096 * len(lent - here)


def test_no_use_of_the_books_breaks_them():
    run_state_machine_as_test(Uses, settings=settings(max_examples=60, stateful_step_count=40))
