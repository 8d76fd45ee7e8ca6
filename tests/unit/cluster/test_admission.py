"""Who may start: quotas hold, turns are fair, the queue is bounded, the silent are forgotten."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import LEASE_SECONDS, STALE_SECONDS, Admission, Applicant, Asked, TenantsConfig
from worldkv.errors import JobError

ALICE, BOB = Applicant("a", "alice"), Applicant("b", "bob")


class Books(Admission):
    """Asks for one batch at a time."""

    def ask_one(self, applicant: Applicant, ticket: int, sessions: int, now: float, **more: bool) -> str:
        return self.ask(applicant, {ticket: Asked(sessions, **more)}, now)[ticket]


def admission(**more: object) -> Books:
    tenants = [{"name": "alice"}, {"name": "bob", "weight": 3, "sessions": 6}]
    return Books(TenantsConfig.model_validate({"tenants": tenants} | more))


def held(books: Admission) -> dict[str, int]:
    return {one.tenant: one.sessions for one in books.figures(0.0)}


def test_a_tenant_never_has_more_than_its_quota_and_is_told_its_place():
    books = admission()
    assert books.ask_one(BOB, 0, 4, 0.0) == ""
    assert books.ask_one(BOB, 1, 4, 0.0) == "in the queue; tenant bob has 4 of 6 sessions"
    assert books.ask_one(ALICE, 0, 4, 0.0) == "", "others are not held up"
    books.release("b", 0)
    assert books.ask_one(BOB, 1, 4, 1.0) == ""


def test_asking_again_for_what_is_held_changes_nothing():
    books = admission()
    assert books.ask_one(BOB, 0, 4, 0.0) == books.ask_one(BOB, 0, 4, 1.0) == ""
    assert held(books) == {"alice": 0, "bob": 4}


def test_whoever_has_least_for_its_weight_goes_first():
    books = admission(sessions=4)
    assert books.ask_one(ALICE, 0, 2, 0.0) == ""
    assert books.ask_one(BOB, 0, 2, 0.0) == ""
    assert "place 1 of 1" in books.ask_one(ALICE, 1, 2, 0.0)
    assert "place 1 of 2" in books.ask_one(BOB, 1, 2, 0.0)
    books.release("a", 0)
    books.release("b", 0)
    # Nobody has anything now: who came first goes first, and the next in turn is bob.
    assert books.ask_one(ALICE, 1, 2, 1.0) == ""
    assert books.ask_one(BOB, 1, 2, 1.0) == ""


def test_within_a_tenant_priority_goes_before_arrival():
    books = admission(sessions=2)
    assert books.ask_one(ALICE, 0, 2, 0.0) == ""
    late = Applicant("urgent", "alice", priority=5)
    assert "place 1 of 1" in books.ask_one(Applicant("c", "alice"), 0, 2, 0.0)
    assert "place 1 of 2" in books.ask_one(late, 0, 2, 0.0)
    books.release("a", 0)
    assert books.ask_one(Applicant("c", "alice"), 0, 2, 1.0) != ""
    assert books.ask_one(late, 0, 2, 1.0) == ""


def test_a_large_batch_is_not_passed_by_small_ones():
    books = admission(sessions=8)
    assert books.ask_one(ALICE, 0, 6, 0.0) == ""
    assert books.ask_one(BOB, 0, 5, 0.0) != ""
    assert books.ask_one(ALICE, 1, 1, 0.0) != ""


def test_a_full_queue_is_said_and_not_an_error():
    books = admission(sessions=1, queue=1)
    assert books.ask_one(ALICE, 0, 1, 0.0) == ""
    assert "place 1 of 1" in books.ask_one(ALICE, 1, 1, 0.0)
    assert books.ask_one(BOB, 0, 1, 0.0) == "the queue is full: 1 batches wait"


def test_what_nobody_asks_for_any_more_holds_nobody_up():
    books = admission(sessions=1)
    assert books.ask_one(ALICE, 0, 1, 0.0) == ""
    assert books.ask_one(ALICE, 1, 1, 0.0) != ""
    books.release("a", 0)
    assert books.ask_one(BOB, 0, 1, STALE_SECONDS + 1) == ""


def test_a_silent_job_loses_what_it_held():
    books = admission(sessions=1)
    assert books.ask_one(ALICE, 0, 1, 0.0) == ""
    assert books.ask_one(BOB, 0, 1, 1.0) != ""
    assert books.ask_one(BOB, 0, 1, LEASE_SECONDS + 1) == ""


def test_books_that_were_lost_are_told_again():
    books = admission()
    assert books.hold(BOB, {3: Asked(4)}, 0.0) == set()
    assert held(books)["bob"] == 4
    assert books.ask_one(BOB, 4, 4, 0.0) != ""


def test_several_batches_are_asked_for_at_once_and_as_many_start_as_there_is_room_for():
    books = admission(sessions=4)
    answers = books.ask(ALICE, {ticket: Asked(2) for ticket in range(3)}, 0.0)
    assert answers == {0: "", 1: "", 2: "in the queue at place 1 of 1; tenant alice has 4 sessions"}


def test_who_is_below_its_share_has_others_give_way():
    books = admission(sessions=4)
    assert set(books.ask(ALICE, {0: Asked(2, may_leave=True), 1: Asked(2)}, 0.0).values()) == {""}
    assert books.ask_one(BOB, 0, 2, 1.0) != ""
    assert books.hold(ALICE, {0: Asked(2, may_leave=True), 1: Asked(2)}, 1.0) == set(), "who just came may find room"
    assert books.ask_one(BOB, 0, 2, 2.0) != ""
    assert books.hold(ALICE, {0: Asked(2, may_leave=True), 1: Asked(2)}, 2.0) == {0}, "the other could not go on"
    books.release("a", 0)
    assert books.ask_one(ALICE, 2, 2, 2.5) != "", "what was given up is bob's"
    assert books.ask_one(BOB, 0, 2, 3.0) == ""


def test_what_is_reserved_stays_free_for_its_owner():
    tenants = [{"name": "alice"}, {"name": "bob", "reserved": 3}]
    books = admission(sessions=8, tenants=tenants)
    assert list(books.ask(ALICE, {ticket: Asked(1) for ticket in range(8)}, 0.0).values()).count("") == 5
    assert books.ask_one(BOB, 0, 3, 0.0) == ""
    with pytest.raises(JobError, match="the cluster may have 5 at once beside 3 that are reserved"):
        books.ask_one(ALICE, 9, 6, 0.0)


@pytest.mark.parametrize("sessions", [None, 2])
def test_more_cannot_be_reserved_than_there_is(sessions):
    with pytest.raises(ValueError, match=f"3 sessions are reserved, but sessions is {sessions}"):
        TenantsConfig.model_validate({"sessions": sessions, "tenants": [{"name": "bob", "reserved": 3}]})


def test_the_figures_tell_who_waits_and_how_long_others_had_to():
    books = admission(sessions=2)
    assert books.ask_one(ALICE, 0, 2, 0.0) == ""
    assert books.ask_one(ALICE, 1, 2, 1.0) != ""
    assert books.ask_one(ALICE, 1, 2, 4.0) != ""
    alice, bob = books.figures(6.0)
    assert (alice.waiting, alice.oldest_wait_seconds, alice.waits.count, alice.waits.seconds) == (1, 5.0, 1, 0.0)
    assert (bob.waiting, bob.oldest_wait_seconds, bob.waits.count) == (0, 0.0, 0)
    books.release("a", 0)
    assert books.ask_one(ALICE, 1, 2, 6.0) == ""
    assert books.figures(6.0)[0].waits.seconds == 5.0


@pytest.mark.parametrize(
    ("applicant", "sessions", "fault"),
    [
        (Applicant("x", "carol"), 1, "memory.tenant = 'carol': the cluster knows alice, bob"),
        (BOB, 7, "its batches have 7 sessions, tenant bob may have 6 at once"),
        (ALICE, 9, "its batches have 9 sessions, the cluster may have 8 at once"),
    ],
)
def test_what_can_never_start_is_refused_at_once(applicant, sessions, fault):
    with pytest.raises(JobError, match=fault):
        admission(sessions=8).ask_one(applicant, 0, sessions, 0.0)


def test_a_tenant_with_a_token_wants_to_see_it():
    digest = hashlib.sha256(b"secret").hexdigest()
    books = Books(TenantsConfig.model_validate({"tenants": [{"name": "alice", "token_sha256": digest}]}))
    for token in ("", "guess"):
        with pytest.raises(JobError, match="the token is not that of tenant alice"):
            books.ask_one(Applicant("a", "alice", token=token), 0, 1, 0.0)
    assert books.ask_one(Applicant("a", "alice", token="secret"), 0, 1, 0.0) == ""


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.integers(0, 4), st.integers(1, 5), st.booleans())))
def test_no_order_of_asking_and_leaving_passes_a_quota(events):
    books, total = admission(sessions=8), {}
    for now, (applicant, ticket, sessions, leaves) in enumerate(events):
        if leaves:
            books.release(applicant.job, ticket)
            total.pop((applicant.job, ticket), None)
        elif books.ask_one(applicant, ticket, sessions, now / 100) == "":
            total.setdefault((applicant.job, ticket), sessions)
        assert sum(total.values()) == sum(held(books).values()) <= 8
        assert held(books)["bob"] <= 6
