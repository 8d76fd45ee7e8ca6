import dataclasses
import json
import math

import numpy as np
import pytest

from scheduler.costs import CostModel, LinkCost
from scheduler.habits import Counts
from scheduler.prefetch import PrefetchPlan, Transfer
from scheduler.simulate import Simulation, main, simulate
from scheduler.simulation.engine import FirstFree, World
from scheduler.simulation.hardware import Hardware, LinkSpec, Rates, Sizes, TierSpec, h200_cluster
from scheduler.simulation.links import Line, Move
from scheduler.simulation.placing import Rounds
from scheduler.simulation.sessions import make_live
from scheduler.simulation.shelves import Shelves
from scheduler.simulation.strategies import STRATEGIES, Planned, Reactive
from scheduler.snapshot import Recall, TenantView
from scheduler.synthetic import Load, made_up
from worldkv.camera import Frustum
from worldkv.errors import ConfigError

CHUNK = 100
SMALL = Hardware(
    tiers=(
        TierSpec("device", 7 * CHUNK, "worker"),
        TierSpec("host", 20 * CHUNK, "node"),
        TierSpec("disk", math.inf, "cluster"),
    ),
    links=(LinkSpec(CHUNK / 0.02, 0.0, "worker"), LinkSpec(CHUNK / 0.5, 0.0, "node")),
    workers_per_node=2,
    staging_bytes=100 * CHUNK,
)


# A disk that takes longer for one chunk than a chunk takes to make, and much of what is needed lies there.
SLOW = dataclasses.replace(
    SMALL,
    tiers=(SMALL.tiers[0], TierSpec("host", 4 * CHUNK, "node"), SMALL.tiers[2]),
    links=(SMALL.links[0], LinkSpec(CHUNK / 3.0, 0.0, "node")),
)


def traces(sessions=2, chunks=40, **changes):
    return made_up(Load(sessions, chunks, **({"kind": "look", "chunk_bytes": CHUNK, "chunk_seconds": 2.0} | changes)))


def run(strategy, load, hardware=SMALL, placing=None):
    world = World(load, hardware, strategy, placing=placing)
    return world, world.run()


def assert_empty(world):
    """All sessions ended: nothing lies anywhere, nothing is promised, nobody holds a worker."""
    assert not world.lives
    assert not any(world.on_worker)
    for tier, spec in enumerate(world.hardware.tiers):
        for number in range(world.hardware.instances(spec.scope)):
            shelf = world.shelves._shelves[tier][number]
            assert (len(shelf.lying), shelf.used_bytes) == (0, 0)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("scripted", [0.0, 1.0])
def test_every_strategy_makes_every_chunk_and_leaves_nothing_behind(name, scripted):
    load = traces(scripted_share=scripted)
    world, figures = run(STRATEGIES[name](), load)
    assert figures.chunks.total() == 2 * 40
    assert figures.hits.total() == figures.lookups
    assert_empty(world)
    again = run(STRATEGIES[name](), load)[1].summary()
    assert again == figures.summary()


@pytest.mark.parametrize("name", STRATEGIES)
def test_where_links_are_too_slow_windows_wait_and_books_stay_right(name):
    world, figures = run(STRATEGIES[name](), traces(2, 60, scripted_share=0.5), SLOW)
    assert figures.chunks.total() == 2 * 60
    assert figures.stall_seconds > 0 or name == "clairvoyant"
    assert figures.hits.total() == figures.lookups
    assert_empty(world)


def test_what_is_suspended_on_its_way_comes_to_nothing():
    flood = [dataclasses.replace(one, tenant="flood") for one in traces(4, 60)]
    quiet = [
        dataclasses.replace(one, session=f"q{n}", tenant="quiet", arrives_seconds=90.0 + 21 * n)
        for n, one in enumerate(traces(20, 3, seed=1))
    ]
    world, figures = run(Planned(), [*flood, *quiet], SLOW, Rounds(SLOW))
    assert figures.suspended > 3
    assert_empty(world)


def test_plans_beat_waiting_and_nobody_beats_the_clairvoyant():
    load = traces(3, 80)
    stalls = {name: run(STRATEGIES[name](), load)[1].stall_seconds for name in ("lru", "planned", "clairvoyant")}
    assert stalls["clairvoyant"] <= stalls["planned"] < 0.3 * stalls["lru"]


def test_a_script_ranked_by_overlap_leaves_nothing_to_wait_for():
    recall = Recall(3, ranking="overlap", frustum=Frustum(-1.0, 1.0, -0.6, 0.6, 0.125, 8.0))
    load = [dataclasses.replace(one, recall=recall) for one in traces(scripted_share=1.0)]
    assert any(one for one in make_live(0, load[0], Counts()).wanted)
    _, figures = run(Planned(), load)
    assert figures.lookups > 0
    assert figures.summary()["on_time_ratio"] == 1.0


def test_a_script_leaves_nothing_to_wait_for():
    _, figures = run(Planned(), traces(2, 60, scripted_share=1.0))
    result = figures.summary()
    assert result["on_time_ratio"] >= 0.99
    assert result["stall_ratio_p99"] < 0.02
    assert result["prefetch_waste_ratio"] <= 0.1


def test_rates_that_were_wrong_at_the_start_are_found_out():
    believed = CostModel((LinkCost(0.0, CHUNK / 0.02), LinkCost(0.0, CHUNK / 10.0)), chunk_seconds=2.0)
    world = World(traces(2, 60, scripted_share=1.0), SMALL, Planned(), costs=believed)
    learned = world.run().summary()
    truth = run(Planned(), traces(2, 60, scripted_share=1.0))[1].summary()
    assert world.costs.links[1].seconds(CHUNK) == pytest.approx(0.5, rel=0.25)
    assert learned["late_told"] > truth["late_told"]  # as long as the disk was taken for slow
    assert learned["on_time_ratio"] >= 0.98


def test_rounds_place_and_give_way_to_who_is_below_its_share():
    flood = [dataclasses.replace(one, tenant="flood") for one in traces(8, 20)]
    quiet = [
        dataclasses.replace(one, session=f"q{n}", tenant="quiet", arrives_seconds=10.0)
        for n, one in enumerate(traces(4, 6, seed=1))
    ]
    rounds = Rounds(SMALL, {"quiet": TenantView(1.0)})
    world, figures = run(Planned(), [*flood, *quiet], placing=rounds)
    assert figures.suspended > 0
    assert figures.chunks == {"flood": 8 * 20, "quiet": 4 * 6}
    # The first of the quiet tenant waits for its patience and one chunk, not for the end of a session.
    assert min(figures.queue_seconds["quiet"]) < 12.0 < 2.0 * 20
    assert_empty(world)


def test_gangs_hold_several_workers():
    load = [dataclasses.replace(one, gang=2) for one in traces(2, 6)]
    world, figures = run(Planned(), load, placing=Rounds(SMALL))
    assert figures.slot_seconds["tenant-0"] == pytest.approx(2 * 2 * 6 * 2.0, rel=0.2)
    assert_empty(world)


def test_crowded_workers_are_relieved_when_others_fall_idle():
    hardware = dataclasses.replace(SMALL, slots=4, tiers=(TierSpec("device", 40 * CHUNK, "worker"), *SMALL.tiers[1:]))
    # Six sessions over two workers; those of one worker end early.
    load = [one for n, one in enumerate(traces(6, 30))]
    short = [dataclasses.replace(one, c2w_F44=one.c2w_F44[: 12 * (3 if n % 2 else 30)]) for n, one in enumerate(load)]
    later = [dataclasses.replace(one, session=f"l{n}", arrives_seconds=45.0) for n, one in enumerate(traces(1, 3))]
    world, figures = run(Planned(), [*short, *later], hardware, Rounds(hardware))
    assert figures.moved > 0
    assert_empty(world)


def test_the_snapshot_tells_no_more_than_a_scheduler_may_know():
    (trace,) = traces(1, 10)
    live = make_live(0, trace, Counts())
    live.chunk = 4
    view = live.view()
    assert view.script_F44 is None
    assert len(view.table) == 5
    assert np.array_equal(view.recent_F44[-1], trace.c2w_F44[5 * 12 - 1])


def test_a_window_that_retrieves_nothing_waits_for_nothing():
    (trace,) = traces(1, 10)
    none = dataclasses.replace(trace, recall=dataclasses.replace(trace.recall, retrieved_chunks=0))
    _, figures = run(Planned(), [none])
    assert figures.lookups == 0
    assert figures.summary()["on_time_ratio"] is None


class Once(Reactive):
    """Carries out a plan made by the test, once."""

    def __init__(self, at_chunk, *plans):
        self.at_chunk, self.plans = at_chunk, list(plans)

    def ahead(self, world, session, now):
        if world.lives[session].chunk >= self.at_chunk and self.plans:
            world.carry_out(self.plans.pop(0)(world, session), world.lives[session].worker, now)


def demoted(world, session):
    """A chunk that lies in the last tier and that no window will want soon."""
    live = world.lives[session]
    cold = [chunk for chunk in range(live.chunk) if live.tier_C[chunk] == 2]
    return max(cold, key=live.next_use)


def transfer(world, session, to_tier):
    live = world.lives[session]
    return Transfer(live.trace.session, "t", demoted(world, session), 2, to_tier, CHUNK, 1.0, 1.0, 0.0, 0.0)


def test_a_cancelled_move_gives_its_room_back():
    from scheduler.prefetch import Cancelled

    seen = []

    def begin(world, session):
        seen.append(transfer(world, session, 0))
        return PrefetchPlan(transfers=(seen[0],))

    def cancel(world, session):
        names = (seen[0].session, world.lives[session].trace.session)
        return PrefetchPlan(cancelled=(Cancelled(names[0], seen[0].chunk), Cancelled(names[1], 0)))

    world, figures = run(Once(35, begin, cancel), traces(1, 60), SLOW)
    assert figures.prefetched["cancelled"] == 1
    assert_empty(world)


def test_a_move_under_way_when_its_session_gives_up_its_worker_comes_to_nothing():
    def begin_and_leave(world, session):
        world.lives[session].suspend = True
        return PrefetchPlan((transfer(world, session, 0),))

    world, figures = run(Once(35, begin_and_leave), traces(1, 60), SLOW, Rounds(SLOW))
    assert (figures.suspended, figures.chunks.total()) == (1, 60)
    assert_empty(world)


def test_a_chunk_can_be_staged_one_tier_nearer():
    world, figures = run(Once(35, lambda world, session: PrefetchPlan((transfer(world, session, 1),))), traces(1, 60))
    assert figures.plans == 1
    assert_empty(world)


def test_a_window_takes_over_what_was_on_its_way_elsewhere():
    def stage_the_next(world, session):
        live = world.lives[session]
        wanted = [chunk for chunk in live.wanted[live.chunk + 1] if live.tier_C[chunk] == 2]
        moves = [Transfer(live.trace.session, "t", chunk, 2, 1, CHUNK, 1.0, 1.0, 0.0, 0.0) for chunk in wanted]
        return PrefetchPlan(tuple(moves))

    world, figures = run(Once(20, *[stage_the_next] * 30), traces(1, 60), SLOW)
    assert figures.chunks.total() == 60
    assert_empty(world)


@pytest.mark.parametrize("device", [0, 2])
def test_an_urgent_chunk_that_finds_no_room_is_used_where_it_is(device):
    tight = dataclasses.replace(SMALL, tiers=(TierSpec("device", device * CHUNK, "worker"), *SMALL.tiers[1:]))
    for strategy in (Reactive(), STRATEGIES["clairvoyant"](), STRATEGIES["next"]()):
        world, figures = run(strategy, traces(1, 40), tight)
        assert figures.chunks.total() == 40
        assert_empty(world)


def test_links_carry_in_turn_but_for_what_is_urgent():
    events, order = [], []
    line = Line(LinkSpec(10.0, 1.0, "worker"), lambda when, happen: events.append((when, happen)))

    def move(chunk, urgent=False):
        return Move(0, chunk, 0, 10, [line], 0, lambda move, now: order.append((move.chunk, now)), urgent)

    moves = [move(0), move(1), move(2), move(3, urgent=True)]
    for one in moves:
        line.submit(one, 0.0)
    assert line.free_from(0.0) == 8.0
    line.hurry(moves[2])
    line.hurry(moves[0])  # under way: nothing to hurry
    assert line.withdraw(moves[1])
    assert not line.withdraw(moves[0])
    while events:
        when, happen = events.pop(0)
        happen(when)
    assert order == [(0, 2.0), (2, 4.0), (3, 6.0)]
    assert line.busy_seconds == 6.0


def test_what_no_tier_nearby_takes_goes_to_the_last():
    hardware = dataclasses.replace(
        SMALL, tiers=(TierSpec("device", CHUNK, "worker"), TierSpec("host", 0, "node"), SMALL.tiers[2])
    )
    moved = []
    shelves = Shelves(hardware, lambda key: key == (0, 9), lambda key, tier: moved.append((key, tier)))
    assert shelves.promise(0, 0, CHUNK)
    shelves.shelf(0, 0).add((0, 1), CHUNK, "t")
    assert not shelves.promise(0, 0, 2 * CHUNK)
    shelves.shelf(0, 0).leaving = [(0, 1), (0, 7), (0, 1)]
    assert shelves.promise(0, 0, CHUNK)
    assert moved == [((0, 1), 2)]
    shelves.shelf(0, 0).add((0, 9), CHUNK, "t")
    assert not shelves.promise(0, 0, CHUNK)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"links": SMALL.links[:1]}, "3 tiers need 2 links, got 1"),
        ({"nodes": 0}, "nodes=0"),
        ({"tiers": (*SMALL.tiers[:2], TierSpec("disk", 5.0, "node"))}, "last tier, disk, must have infinite capacity"),
    ],
)
def test_hardware_that_cannot_be_is_refused(changes, fault):
    with pytest.raises(ConfigError, match=fault):
        dataclasses.replace(SMALL, **changes)
    with pytest.raises(ConfigError, match="disk=0"):
        Rates(disk=0)
    with pytest.raises(ConfigError, match="none may be below 1"):
        Sizes(device_chunks=0)


def test_sessions_that_could_never_run_are_refused():
    simulation = Simulation(h200_cluster(), ("lru",))
    (one,) = made_up(Load(1, 4))
    with pytest.raises(ConfigError, match="needs 2 workers of one node, nodes have 1"):
        simulate(simulation, [dataclasses.replace(one, gang=2)])
    with pytest.raises(ConfigError, match="is there twice"):
        simulate(simulation, [one, one])
    small = Simulation(h200_cluster(sizes=Sizes(device_chunks=4)), ("lru",))
    with pytest.raises(ConfigError, match="take 5100000000 bytes, tier device has 4080000000"):
        simulate(small, [one])
    with pytest.raises(ConfigError, match="'best'"):
        Simulation(strategies=("best",))
    with pytest.raises(ConfigError, match="at least one"):
        Simulation(strategies=())


def test_first_come_first_served_suspends_nobody():
    with pytest.raises(AssertionError):
        FirstFree().suspended(None, None, 0.0)


def test_the_command_line_prints_a_table_and_writes_all_figures(tmp_path, capsys):
    target = tmp_path / "figures.json"
    arguments = ["--sessions", "2", "--chunks", "30", "--workers-per-node", "2", "--device-chunks", "6", "--json"]
    assert main([*arguments, str(target), "--strategies", "none,lru,planned"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["strategy,", "none", "lru", "planned"] or len(lines) == 4
    figures = json.loads(target.read_text())
    assert set(figures) == {"none", "lru", "planned"}
    assert figures["planned"]["plan_ms"]["count"] > 0
    assert figures["lru"]["plan_ms"] is None


def test_the_package_runs_as_a_program(monkeypatch, capsys):
    import runpy
    import sys

    monkeypatch.setattr(sys, "argv", ["scheduler", "--sessions", "0"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module("scheduler", run_name="__main__")
    assert end.value.code == 2
    assert "sessions=0" in capsys.readouterr().err


def test_a_recorded_trace_is_replayed(tmp_path, capsys):
    from scheduler.trace import write_trace

    file = tmp_path / "run.trace"
    write_trace(file, made_up(Load(2, 12)))
    assert main(["--trace", str(file), "--strategies", "planned"]) == 0
    assert "24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["--trace", "/nowhere/at.all"], "/nowhere/at.all: cannot be read"),
        (["--sessions", "0"], "sessions=0"),
        (["--device-chunks", "3"], "tier device"),
        (["--strategies", "magic"], "'magic'"),
        (["--sessions", "1", "--chunks", "2", "--json", "/nowhere/at.all"], "/nowhere/at.all: cannot be written"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_2(capsys, arguments, fault):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert fault in error
    assert error.count("\n") == 1


def test_a_trace_without_sessions_is_refused(tmp_path, capsys):
    file = tmp_path / "empty.trace"
    file.write_text('{"format": "worldkv-trace", "version": 1}\n')
    assert main(["--trace", str(file)]) == 2
    assert "no session" in capsys.readouterr().err
