"""The page's plots of a single world: where the camera went and looked, and what was retrieved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from worldkv.camera.poses import planar_coordinates
from worldkv.report.figures import generated_revisits
from worldkv.report.labels import REVISIT_COLOUR, policy_colours
from worldkv.report.svg import GIVEN_COLOUR, INK, drawing

if TYPE_CHECKING:
    from worldkv.results import PolicyRollout, WorldRollouts

MISSED_COLOUR = "#D55E00"
WORLD_PANELS = 4
"""Worlds drawn one by one, at most."""
ARROWS = 24
"""Along one path."""
LEGEND_ABOVE: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, 1.15),
    "ncols": 4,
    "handlelength": 1,
    "columnspacing": 0.8,
}


def path_plot(world: WorldRollouts) -> str:
    """The camera's way through one world, seen from above; dots are generated revisits."""
    with drawing(f"path-{world.seed}-{world.name}", (3.0, 3.0)) as sheet:
        axes = sheet.figure.subplots()
        x_F, z_F, yaw_degrees_F = planar_coordinates(world.trajectory.c2w_F44)
        flag_F = generated_revisits(world)
        given = world.given_frames
        axes.plot(x_F[:given], z_F[:given], color=GIVEN_COLOUR, linewidth=3.5, label="shown", solid_capstyle="round")
        axes.plot(x_F[given:], z_F[given:], color="#0072B2", linewidth=1.4, label="made")
        seen = np.flatnonzero(flag_F)
        axes.scatter(x_F[seen], z_F[seen], s=14, color=REVISIT_COLOUR, label="revisit", zorder=3, linewidth=0)
        at = slice(None, None, max(1, len(x_F) // ARROWS))
        look = np.radians(yaw_degrees_F[at])
        # In inches, not world units: a camera that turns on the spot shows as a fan.
        size: Any = {"units": "inches", "scale_units": "inches", "scale": 3.2, "width": 0.016}
        axes.quiver(x_F[at], z_F[at], np.sin(look), np.cos(look), color=INK, alpha=0.5, zorder=4, **size)
        axes.plot(x_F[0], z_F[0], "^", color=INK, markersize=7, label="start", zorder=5)
        axes.set_aspect("equal", adjustable="datalim")
        axes.margins(0.2)
        axes.set(xlabel="x (world units)", ylabel="z (world units)")
        axes.legend(**LEGEND_ABOVE)
    return sheet.svg


def heading_plot(world: WorldRollouts) -> str:
    """Where the camera looks over time, in degrees to the right of its first heading."""
    with drawing(f"heading-{world.seed}-{world.name}", (3.0, 3.0)) as sheet:
        axes = sheet.figure.subplots()
        yaw_F = np.unwrap(planar_coordinates(world.trajectory.c2w_F44).yaw_degrees_F, period=360)
        turned_F, seen = yaw_F - yaw_F[0], np.flatnonzero(generated_revisits(world))
        axes.plot(turned_F, color="#0072B2", linewidth=1.4)
        axes.scatter(seen, turned_F[seen], s=14, color=REVISIT_COLOUR, label="revisit", zorder=3, linewidth=0)
        axes.axvspan(0, world.given_frames - 0.5, color=GIVEN_COLOUR, alpha=0.18, linewidth=0, label="shown")
        axes.set(xlabel="time (video frames)", ylabel="heading (degrees to the right)", xlim=(0, len(yaw_F)))
        axes.legend(**LEGEND_ABOVE)
    return sheet.svg


def retrieval_plot(world: WorldRollouts, rollout: PolicyRollout, frames_per_chunk: int) -> str:
    """Which chunks were brought back for which; a cross marks one that was wanted and not available."""
    with drawing(f"retrieval-{world.seed}-{world.name}-{rollout.policy}", (3.0, 3.0)) as sheet:
        axes = sheet.figure.subplots()
        colour = policy_colours([rollout.policy])[rollout.policy]
        pairs = [(record.chunk, earlier) for record in rollout.records for earlier in record.retrieved]
        chunks = len(rollout.records)
        if pairs:
            made_N, brought_N = zip(*pairs, strict=True)
            axes.scatter(made_N, brought_N, s=13, marker="s", color=colour, label="retrieved", zorder=3)
        missed = [record.chunk for record in rollout.records if record.missed]
        if missed:
            axes.scatter(missed, missed, s=26, marker="x", color=MISSED_COLOUR, label="missed", zorder=4)
        axes.axvspan(-0.5, world.given_frames / frames_per_chunk - 0.5, color=GIVEN_COLOUR, alpha=0.18, linewidth=0)
        axes.plot((0, chunks - 1), (0, chunks - 1), color=INK, alpha=0.45, linewidth=0.8)
        axes.set(xlabel="chunk being made", ylabel="chunk brought back")
        axes.set(xlim=(-0.5, chunks - 0.5), ylim=(-0.5, chunks - 0.5))
        if pairs or missed:
            axes.legend(**LEGEND_ABOVE)
    return sheet.svg
