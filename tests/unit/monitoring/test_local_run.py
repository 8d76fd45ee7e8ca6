"""One run in this process as the snapshot of one worker."""

from dataclasses import replace

from monitoring.exporter import Exporter
from monitoring.local import EVERY_SECONDS, LocalRun
from worldkv.stats import MemoryStats, WorkStats

STATS = WorkStats(MemoryStats(3, 3), video_frames=12)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_figures_are_published_at_most_once_in_a_while_and_at_the_end():
    exporter, clock = Exporter(), Clock()
    run = LocalRun(exporter, "rooms", sessions=2, clock=clock, wall=lambda: 5.0)
    run.finish()
    assert exporter.snapshot is None
    run(STATS)
    clock.now += 0.9 * EVERY_SECONDS
    run(replace(STATS, video_frames=15))
    assert exporter.snapshot.workers[0].work.video_frames == 12
    clock.now += 0.2 * EVERY_SECONDS
    run(replace(STATS, video_frames=18))
    assert exporter.snapshot.workers[0].work.video_frames == 18
    run(replace(STATS, video_frames=21))
    run.finish()
    (worker,) = exporter.snapshot.workers
    assert (worker.work.video_frames, worker.sessions[0].state, exporter.snapshot.taken_at) == (21, "idle", 5.0)
