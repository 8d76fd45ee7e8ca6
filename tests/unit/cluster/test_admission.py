"""Who may start: quotas hold, turns are fair, the queue is bounded, the silent are forgotten."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.admission import LEASE_SECONDS, STALE_SECONDS, Admission, Applicant, TenantsConfig
from worldkv.errors import JobError

ALICE, BOB = Applicant("a", "alice"), Applicant("b", "bob")


def admission(**more: object) -> Admission:
    tenants = [{"name": "alice"}, {"name": "bob", "weight": 3, "sessions": 6}]
    return Admission(TenantsConfig.model_validate({"tenants": tenants} | more))


def held(books: Admission) -> dict[str, int]:
    return {name: sessions for name, sessions, _, _ in books.figures()}


def test_a_tenant_never_has_more_than_its_quota_and_is_told_its_place():
    books = admission()
    assert books.ask(BOB, 0, 4, 0.0) == ""
    assert books.ask(BOB, 1, 4, 0.0) == "in the queue at place 1 of 1; tenant bob has 4 of 6 sessions"
    assert books.ask(ALICE, 0, 4, 0.0) == "", "others are not held up"
    books.release("b", 0)
    assert books.ask(BOB, 1, 4, 1.0) == ""


def test_asking_again_for_what_is_held_changes_nothing():
    books = admission()
    assert books.ask(BOB, 0, 4, 0.0) == books.ask(BOB, 0, 4, 1.0) == ""
    assert held(books) == {"alice": 0, "bob": 4}


def test_whoever_has_least_for_its_weight_goes_first():
    books = admission(sessions=4)
    assert books.ask(ALICE, 0, 2, 0.0) == ""
    assert books.ask(BOB, 0, 2, 0.0) == ""
    assert "place 1 of 1" in books.ask(ALICE, 1, 2, 0.0)
    assert "place 1 of 2" in books.ask(BOB, 1, 2, 0.0)
    books.release("a", 0)
    books.release("b", 0)
    # Nobody has anything now: who came first goes first, and the next in turn is bob.
    assert books.ask(ALICE, 1, 2, 1.0) == ""
    assert books.ask(BOB, 1, 2, 1.0) == ""


def test_within_a_tenant_priority_goes_before_arrival():
    books = admission(sessions=2)
    assert books.ask(ALICE, 0, 2, 0.0) == ""
    late = Applicant("urgent", "alice", priority=5)
    assert "place 1 of 1" in books.ask(Applicant("c", "alice"), 0, 2, 0.0)
    assert "place 1 of 2" in books.ask(late, 0, 2, 0.0)
    books.release("a", 0)
    assert books.ask(Applicant("c", "alice"), 0, 2, 1.0) != ""
    assert books.ask(late, 0, 2, 1.0) == ""


def test_a_large_batch_is_not_passed_by_small_ones():
    books = admission(sessions=8)
    assert books.ask(ALICE, 0, 6, 0.0) == ""
    assert books.ask(BOB, 0, 5, 0.0) != ""
    assert books.ask(ALICE, 1, 1, 0.0) != ""


def test_a_full_queue_is_said_and_not_an_error():
    books = admission(sessions=1, queue=1)
    assert books.ask(ALICE, 0, 1, 0.0) == ""
    assert "place 1 of 1" in books.ask(ALICE, 1, 1, 0.0)
    assert books.ask(BOB, 0, 1, 0.0) == "the queue is full: 1 batches wait"


def test_what_nobody_asks_for_any_more_holds_nobody_up():
    books = admission(sessions=1)
    assert books.ask(ALICE, 0, 1, 0.0) == ""
    assert books.ask(ALICE, 1, 1, 0.0) != ""
    books.release("a", 0)
    assert books.ask(BOB, 0, 1, STALE_SECONDS + 1) == ""


def test_a_silent_job_loses_what_it_held():
    books = admission(sessions=1)
    assert books.ask(ALICE, 0, 1, 0.0) == ""
    assert books.ask(BOB, 0, 1, 1.0) != ""
    assert books.ask(BOB, 0, 1, LEASE_SECONDS + 1) == ""


def test_books_that_were_lost_are_told_again():
    books = admission()
    books.hold(BOB, {3: 4}, 0.0)
    assert held(books)["bob"] == 4
    assert books.ask(BOB, 4, 4, 0.0) != ""


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
        admission(sessions=8).ask(applicant, 0, sessions, 0.0)


def test_a_tenant_with_a_token_wants_to_see_it():
    digest = hashlib.sha256(b"secret").hexdigest()
    books = Admission(TenantsConfig.model_validate({"tenants": [{"name": "alice", "token_sha256": digest}]}))
    for token in ("", "guess"):
        with pytest.raises(JobError, match="the token is not that of tenant alice"):
            books.ask(Applicant("a", "alice", token=token), 0, 1, 0.0)
    assert books.ask(Applicant("a", "alice", token="secret"), 0, 1, 0.0) == ""


@given(st.lists(st.tuples(st.sampled_from([ALICE, BOB]), st.integers(0, 4), st.integers(1, 5), st.booleans())))
def test_no_order_of_asking_and_leaving_passes_a_quota(events):
    books, total = admission(sessions=8), {}
    for now, (applicant, ticket, sessions, leaves) in enumerate(events):
        if leaves:
            books.release(applicant.job, ticket)
            total.pop((applicant.job, ticket), None)
        elif books.ask(applicant, ticket, sessions, now / 100) == "":
            total.setdefault((applicant.job, ticket), sessions)
        assert sum(total.values()) == sum(held(books).values()) <= 8
        assert held(books)["bob"] <= 6
