import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.forecast import Planned
from scheduler.habits import Counts, Habits
from scheduler.prefetch import Settings, plan_prefetch
from scheduler.snapshot import LinkView, TierView
from worldkv.errors import SnapshotError

BYTES = 100
# Out for 24 frames (6 chunks), then exactly back: chunk c looks at what chunk 11 - c saw.
THERE_AND_BACK = "W*23 _ S*23 _"


@pytest.fixture
def going_back(make_session, walk):
    """Six chunks lie in tier 1, the script returns along them; two are retrieved per window."""
    c2w = walk(THERE_AND_BACK)
    return make_session(c2w, 6, script_F44=c2w[24:])


DEVICE, HOST = TierView("device", 10 * BYTES, 6 * BYTES), TierView("host", 100 * BYTES, 50 * BYTES)


def tiers(device=DEVICE, host=HOST):
    return (device, host, TierView("disk", 1000 * BYTES, 50 * BYTES))


def changed(view, **columns):
    return dataclasses.replace(view, table=dataclasses.replace(view.table, **columns))


def test_what_a_script_asks_for_is_fetched_first_things_first(make_view, going_back):
    plan = plan_prefetch(make_view(going_back, tiers=tiers(TierView("device", 10 * BYTES, 7 * BYTES))))
    chunks = [transfer.chunk for transfer in plan.transfers]
    # The window of chunk 6 takes 4 and 3: 5 is still the recent one. The device has room for three.
    assert set(chunks[:2]) == {4, 3}
    assert len(chunks) == 3
    assert all(one.from_tier == 1 and one.to_tier == 0 and one.probability == 1.0 for one in plan.transfers)
    assert [one.arrives_seconds for one in plan.transfers] == pytest.approx([0.1, 0.2, 0.3])
    assert plan.skipped == {"room": 1}
    assert (plan.displaced, plan.late, plan.cancelled) == ((), (), ())


def test_the_same_view_gives_the_same_plan(make_view, going_back, make_session, walk):
    assert plan_prefetch(make_view(going_back)) == plan_prefetch(make_view(going_back))
    live = make_session(walk("W*8 R*8 W*8 L*8 W*8"), 9)
    habits = Habits(Counts())
    habits.learn(live.recent_F44)
    one, two = (plan_prefetch(make_view(live), {"s": (habits,)}) for _ in range(2))
    assert one == two


def test_a_contradiction_is_refused(make_view, going_back):
    with pytest.raises(SnapshotError, match="uses 200 bytes"):
        plan_prefetch(make_view(going_back, tiers=(TierView("device", 100, 200),)))


def test_what_is_here_already_is_not_fetched(make_view, going_back):
    here = changed(going_back, tier_N=np.zeros(6, np.int64))
    plan = plan_prefetch(make_view(here))
    assert (plan.transfers, plan.leaving) == ((), ())
    full = plan_prefetch(make_view(here, tiers=tiers(TierView("device", 6 * BYTES, 6 * BYTES, BYTES))))
    assert not full.transfers
    # 5 and 4 are asked for last of all that the coming windows take; 0 is never asked for in time.
    assert [chunk for _, chunk in full.leaving][-2:] == [3, 4]


def test_room_is_made_out_of_what_is_worth_less(make_view, going_back):
    mixed = changed(going_back, tier_N=np.array([0, 0, 1, 1, 1, 1]))
    plan = plan_prefetch(make_view(mixed, tiers=tiers(TierView("device", 2 * BYTES, 2 * BYTES))))
    assert {one.chunk for one in plan.transfers} == {4, 3}
    assert {one.chunk for one in plan.displaced} == {0, 1}
    assert all(one.tier == 0 and one.nbytes == BYTES for one in plan.displaced)


def test_what_is_committed_stays(make_view, going_back):
    mixed = changed(
        going_back, tier_N=np.array([0, 0, 1, 1, 1, 1]), committed_N=np.array([True, True, False, False, False, False])
    )
    plan = plan_prefetch(make_view(mixed, tiers=tiers(TierView("device", 2 * BYTES, 2 * BYTES))))
    assert not plan.displaced
    assert not [one for one in plan.transfers if one.to_tier == 0]
    assert not plan.leaving


def test_what_finds_no_room_near_the_model_waits_one_tier_farther(make_view, going_back):
    cold = changed(going_back, tier_N=np.full(6, 2))
    plan = plan_prefetch(make_view(cold, tiers=tiers(TierView("device", 2 * BYTES, BYTES))))
    assert [(one.chunk, one.to_tier) for one in plan.transfers if one.to_tier == 0] in ([(4, 0)], [(3, 0)])
    assert {one.to_tier for one in plan.transfers} == {0, 1}


def test_room_that_is_kept_free_is_not_used(make_view, going_back):
    kept = TierView("device", 10 * BYTES, 6 * BYTES, kept_free_bytes=3 * BYTES)
    assert len(plan_prefetch(make_view(going_back, tiers=tiers(kept))).transfers) == 1


def test_a_tenant_stays_within_its_share(make_view, going_back):
    device = TierView("device", 10 * BYTES, 6 * BYTES, used_by={"t": 2 * BYTES}, limits={"t": 3 * BYTES})
    plan = plan_prefetch(make_view(going_back, tiers=tiers(device)))
    assert len(plan.transfers) == 1
    assert plan.skipped["share"] == 3
    nothing = dataclasses.replace(device, limits={"t": BYTES - 1})
    assert plan_prefetch(make_view(going_back, tiers=tiers(nothing))).skipped["share"] == 4


def test_what_is_reserved_for_others_is_not_taken(make_view, going_back, make_session, walk):
    other = make_session(walk("W*40"), 6, session="o", tenant="other", tiers=[0] * 6)
    wanting = changed(going_back, tier_N=np.ones(6, np.int64))
    device = TierView("device", 6 * BYTES, 6 * BYTES, used_by={"other": 6 * BYTES})
    free_for_all = plan_prefetch(make_view(wanting, other, tiers=tiers(device)))
    assert len(free_for_all.displaced) >= 2
    guarded = dataclasses.replace(device, reserved={"other": 5 * BYTES})
    assert len(plan_prefetch(make_view(wanting, other, tiers=tiers(guarded))).displaced) == 1


def test_over_its_limit_a_tenant_makes_room_out_of_its_own(make_view, make_session, walk):
    c2w = walk(THERE_AND_BACK)
    own = make_session(c2w, 6, script_F44=c2w[24:], tiers=[0, 0, 1, 1, 1, 1])
    other = make_session(walk("R*40"), 6, session="o", tenant="other", tiers=[0] * 6)
    device = TierView("device", 20 * BYTES, 8 * BYTES, used_by={"t": 2 * BYTES, "other": 6 * BYTES}, limits={"t": 200})
    plan = plan_prefetch(make_view(own, other, tiers=tiers(device)))
    assert {(one.session, one.chunk) for one in plan.displaced} == {("s", 0), ("s", 1)}
    assert len(plan.transfers) == 2


def test_staging_bounds_what_is_under_way(make_view, going_back):
    plan = plan_prefetch(make_view(going_back, staging_bytes=5 * BYTES, staged_bytes=3 * BYTES))
    assert len(plan.transfers) == 2
    assert plan.skipped["staging"] == 2


SLOW = (LinkView(BYTES / 30.0), LinkView(BYTES / 30.0))


@pytest.mark.parametrize(("policy", "moved"), [("wait", True), ("without", False), ("reduced", True)])
def test_what_cannot_arrive_in_time_is_told_early_and_the_session_decides(make_view, going_back, policy, moved):
    view = dataclasses.replace(going_back, late_policy=policy)
    plan = plan_prefetch(make_view(view, links=SLOW))
    late = {one.chunk: one for one in plan.late}
    assert {3, 4} <= set(late)
    # There is no reduced copy: who would take one waits.
    assert {one.decision for one in plan.late} == {"wait" if policy == "reduced" else policy}
    assert late[4].deadline_seconds == 10.0 < late[4].arrives_seconds
    assert ({3, 4} <= {one.chunk for one in plan.transfers}) is moved
    assert plan.skipped.get("late", 0) == (0 if moved else len(plan.late))


def test_a_reduced_copy_that_is_nearer_is_taken_instead_of_waiting(make_view, going_back):
    reduced = changed(
        dataclasses.replace(going_back, late_policy="reduced"),
        tier_N=np.full(6, 2),
        reduced_tier_N=np.array([-1, -1, 1, 1, 0, 1]),
        reduced_nbytes_N=np.full(6, 10),
    )
    plan = plan_prefetch(make_view(reduced, links=(LinkView(10.0), LinkView(1e-3))))
    decisions = {one.chunk: one.decision for one in plan.late}
    assert decisions[4] == decisions[3] == "reduced"
    taken = {one.chunk: one for one in plan.transfers}
    assert (taken[3].reduced, taken[3].nbytes, taken[3].from_tier) == (True, 10, 1)
    assert 4 not in taken  # its reduced copy is on the device already


def test_a_reduced_copy_that_would_be_late_too_is_no_help(make_view, going_back):
    reduced = changed(
        dataclasses.replace(going_back, late_policy="reduced"),
        reduced_tier_N=np.full(6, 1),
        reduced_nbytes_N=np.full(6, BYTES),
    )
    assert {one.decision for one in plan_prefetch(make_view(reduced, links=SLOW)).late} == {"wait"}


def test_a_turned_camera_cancels_what_it_does_not_need(make_view, going_back):
    under_way = changed(going_back, arrives_N=np.array([5.0, np.inf, np.inf, np.inf, 5.0, -1.0]))
    plan = plan_prefetch(make_view(under_way))
    assert [one.chunk for one in plan.cancelled] == [0]
    assert 4 not in {one.chunk for one in plan.transfers}


def test_an_unsure_chunk_of_a_later_window_waits_until_more_is_known(make_view, going_back):
    live = dataclasses.replace(going_back, script_F44=None)
    planner = Planned(going_back.script_F44, 0.8)
    asked_now = plan_prefetch(make_view(live), {"s": (planner,)}, Settings(chunks_ahead_live=1))
    later_too = plan_prefetch(make_view(live), {"s": (planner,)}, Settings(chunks_ahead_live=2))
    assert {one.chunk for one in later_too.transfers} == {one.chunk for one in asked_now.transfers} == {3, 4}
    slow = make_view(live, links=(LinkView(10.0), LinkView(10.0)))
    early = plan_prefetch(slow, {"s": (planner,)}, Settings(chunks_ahead_live=2))
    assert {one.chunk for one in early.transfers} > {3, 4}


def test_unlikely_chunks_stay_where_they_are(make_view, going_back):
    live = dataclasses.replace(going_back, script_F44=None)
    assert not plan_prefetch(make_view(live), {"s": (Planned(going_back.script_F44, 0.4),)}).transfers


@pytest.mark.parametrize(("chance", "target"), [(0.9, 0), (0.6, 1)])
def test_what_is_hardly_likelier_than_not_waits_one_tier_away(make_view, going_back, chance, target):
    live = changed(dataclasses.replace(going_back, script_F44=None), tier_N=np.full(6, 2))
    plan = plan_prefetch(make_view(live), {"s": (Planned(going_back.script_F44, chance),)})
    assert {one.to_tier for one in plan.transfers} == {target}


def test_a_bad_predictor_is_named_in_the_plan(make_view, going_back):
    live = dataclasses.replace(going_back, script_F44=None)
    plan = plan_prefetch(make_view(live), {"s": (Planned(np.zeros((8, 4, 4)), 0.9),)})
    assert len(plan.ignored) == 1
    assert "planner was ignored" in plan.ignored[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"links": (LinkView(0.0), LinkView(0.0))},
        {"staging_bytes": 0},
        {"tiers": tiers(TierView("device", 0, 0), TierView("host", 0, 0))},
        {"sessions": ()},
        {"tiers": (), "links": ()},
    ],
    ids=["no bandwidth", "no staging", "no room", "no sessions", "no tiers"],
)
def test_nothing_to_work_with_is_an_empty_plan(make_view, going_back, changes):
    if "tiers" in changes and not changes["tiers"]:
        going_back = changed(going_back, tier_N=np.full(6, -1))
    plan = plan_prefetch(dataclasses.replace(make_view(going_back), **changes))
    assert not plan.transfers
    assert not plan.displaced


def test_zero_bandwidth_is_told_as_never_arriving(make_view, going_back):
    plan = plan_prefetch(make_view(going_back, links=(LinkView(0.0), LinkView(0.0))))
    assert plan.skipped["link"] > 0
    assert all(np.isinf(one.arrives_seconds) for one in plan.late)


@st.composite
def worlds(draw):
    """Sessions of two tenants in random tiers, budgets of any size."""
    seed = draw(st.integers(0, 10**6))
    rng = np.random.default_rng(seed)
    sessions = draw(st.integers(1, 3))
    return rng, sessions, draw(st.integers(0, 12)), draw(st.integers(0, 12)), draw(st.booleans())


@settings(max_examples=150)
@given(world=worlds())
def test_no_plan_passes_a_budget_or_touches_what_is_committed(make_session, make_view, walk, world):
    rng, count, device_room, staging, scripted = world
    sessions = []
    for number in range(count):
        words = " ".join(f"{rng.choice(list('WSADRL'))}*{rng.integers(1, 9)}" for _ in range(14))
        c2w = walk(words + " W*60")[:80]
        chunk = int(rng.integers(1, 12))
        view = make_session(
            c2w, chunk, session=f"s{number}", tenant=f"t{number % 2}", tiers=rng.integers(-1, 3, chunk).tolist()
        )
        view = changed(
            view,
            committed_N=rng.random(chunk) < 0.3,
            nbytes_N=rng.integers(1, 4, chunk) * BYTES // 2,
            arrives_N=np.where(rng.random(chunk) < 0.1, 5.0, np.inf),
        )
        sessions.append(dataclasses.replace(view, script_F44=c2w[chunk * 4 :]) if scripted else view)
    used = [Counter(), Counter(), Counter()]
    for view in sessions:
        for tier in range(3):
            used[tier][view.tenant] += int(view.table.nbytes_N[view.table.tier_N == tier].sum())
    limits = {"t0": used[0]["t0"] + int(rng.integers(0, 6)) * BYTES}
    reserved = {"t1": int(rng.integers(0, 6)) * BYTES}
    given_tiers = (
        TierView("device", used[0].total() + device_room * BYTES // 2, used[0].total(), 0, used[0], limits, reserved),
        TierView("host", used[1].total() + 3 * BYTES, used[1].total(), 0, used[1]),
        TierView("disk", used[2].total(), used[2].total(), 0, used[2]),
    )
    view = make_view(*sessions, tiers=given_tiers, staging_bytes=staging * BYTES)
    plan = plan_prefetch(view, {}, Settings(least_probability=0.2))
    by_name = {one.session: one for one in sessions}
    fill = [Counter(one) for one in used]
    for out in plan.displaced:
        table = by_name[out.session].table
        assert table.tier_N[out.chunk] == out.tier
        assert not table.committed_N[out.chunk]
        fill[out.tier][by_name[out.session].tenant] -= out.nbytes
    assert len({(one.session, one.chunk) for one in plan.displaced}) == len(plan.displaced)
    for move in plan.transfers:
        table = by_name[move.session].table
        assert table.tier_N[move.chunk] == move.from_tier > move.to_tier
        assert not table.committed_N[move.chunk]
        assert np.isinf(table.arrives_N[move.chunk])
        fill[move.to_tier][move.tenant] += move.nbytes
    assert len({(one.session, one.chunk) for one in plan.transfers}) == len(plan.transfers)
    assert sum(one.nbytes for one in plan.transfers) <= staging * BYTES
    for tier in (0, 1):
        assert fill[tier].total() <= given_tiers[tier].capacity_bytes
    assert fill[0]["t0"] <= max(limits["t0"], used[0]["t0"])
    taken_by_others = used[0]["t1"] - fill[0]["t1"]
    own_moves = any(one.tenant == "t1" for one in plan.transfers)
    assert taken_by_others <= max(0, used[0]["t1"] - reserved["t1"]) or own_moves
    assert plan_prefetch(view, {}, Settings(least_probability=0.2)) == plan
