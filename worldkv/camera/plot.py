"""A picture of a trajectory seen from above, for people who check a path before they spend GPU hours on it.

Shapes: F video frames, N revisits.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldkv.camera.poses import planar_coordinates
from worldkv.camera.revisits import find_revisits
from worldkv.camera.trajectory import Trajectory
from worldkv.errors import OutputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WEDGE_COUNT = 36
WEDGE_DEGREES = 24.0
WEDGE_EXTENT_SHARE = 0.13
# Length of the last wedge as a share of the path's extent.
FIRST_WEDGE_SHARE = 0.4
# Length of the first wedge as a share of the last: they grow, so that a second visit shows around the first.
REVISIT_DISTANCE_SHARE = 0.01
REVISIT_DEGREES = 5.0
SUFFIXES = (".png", ".svg", ".pdf")


def plot_topdown(trajectory: Trajectory, path: str | Path) -> None:
    """Draw the trajectory from above into a .png, .svg or .pdf: x to the right, z up, colour is time.

    Wedges show where the camera looks; rings mark frames that revisit an earlier view, and the lower panel
    says which. Raises OutputError for another suffix or a file that cannot be written.
    """
    # Imported here because matplotlib takes a second to load. A bare Figure needs neither windows nor state.
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise OutputError(f"{path}: cannot draw {path.suffix or 'without a suffix'}, allowed are {', '.join(SUFFIXES)}")
    figure = Figure(figsize=(7, 8.4), layout="constrained")
    above, revisits = figure.subplots(2, 1, height_ratios=(4, 1))
    _draw_path(above, trajectory)
    _draw_revisits(above, revisits, trajectory)
    above.legend(loc="best", fontsize="small")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise OutputError(f"{path}: the plot cannot be written: {error.strerror or error}") from error


def _draw_path(axes: Axes, trajectory: Trajectory) -> None:
    x_F, z_F, _ = planar_coordinates(trajectory.c2w_F44)
    axes.plot(x_F, z_F, color="0.6", linewidth=1, zorder=1)
    _draw_wedges(axes, trajectory, _set_limits(axes, trajectory))
    axes.plot(x_F[0], z_F[0], "k^", label="start", zorder=4)
    axes.plot(x_F[-1], z_F[-1], "ks", label="end", zorder=4, fillstyle="none")
    axes.set_title(f"{trajectory.name}: {len(trajectory)} video frames", parse_math=False)
    axes.set(xlabel="x (world units)", ylabel="z (world units)")


def _draw_wedges(axes: Axes, trajectory: Trajectory, reach: float) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Wedge

    x_F, z_F, yaw_degrees_F = planar_coordinates(trajectory.c2w_F44)
    # Matplotlib's angles run anticlockwise from +x, yaw runs clockwise from +z, which points up the page.
    angle_F = 90 - yaw_degrees_F
    last = max(1, len(trajectory) - 1)
    chosen = np.unique(np.linspace(0, len(trajectory) - 1, WEDGE_COUNT).round().astype(int))
    chosen = chosen[::-1]  # so that the longest, the last, lie at the bottom
    sizes = reach * np.interp(chosen, (0, last), (FIRST_WEDGE_SHARE, 1))
    half = WEDGE_DEGREES / 2
    wedges = [
        Wedge((x_F[i], z_F[i]), size, angle_F[i] - half, angle_F[i] + half)
        for i, size in zip(chosen, sizes, strict=True)
    ]
    drawn = PatchCollection(wedges, cmap="viridis", alpha=0.55, edgecolor="0.2", linewidth=0.5, zorder=2)
    drawn.set_array(chosen.astype(float))
    drawn.set_clim(0, last)
    axes.add_collection(drawn)
    axes.figure.colorbar(drawn, ax=axes, label="video frame", shrink=0.8)


def _draw_revisits(above: Axes, below: Axes, trajectory: Trajectory) -> None:
    x_F, z_F, _ = planar_coordinates(trajectory.c2w_F44)
    distance = REVISIT_DISTANCE_SHARE * max(np.ptp(x_F), np.ptp(z_F), 1e-6)
    pairs_N2 = find_revisits(trajectory.c2w_F44, distance=distance, degrees=REVISIT_DEGREES)
    frame_N, earlier_N = pairs_N2.T
    above.scatter(x_F[frame_N], z_F[frame_N], s=14, facecolor="none", edgecolor="crimson", label="revisit", zorder=3)
    below.scatter(frame_N, earlier_N, s=4, color="crimson")
    limits = (0, len(trajectory))
    below.set(xlim=limits, ylim=limits, xlabel="video frame", ylabel="revisits frame")
    below.set_title(f"{len(pairs_N2)} of {len(trajectory)} frames revisit an earlier view", fontsize="medium")


def _set_limits(axes: Axes, trajectory: Trajectory) -> float:
    # Returns the length of the last wedge, in world units.
    x_F, z_F, _ = planar_coordinates(trajectory.c2w_F44)
    extent = float(max(np.ptp(x_F), np.ptp(z_F)))
    reach = WEDGE_EXTENT_SHARE * extent if extent > 0 else 1.0
    x_centre, z_centre = (x_F.min() + x_F.max()) / 2, (z_F.min() + z_F.max()) / 2
    half = extent / 2 + 1.2 * reach
    axes.set_aspect("equal")
    axes.set_xlim(x_centre - half, x_centre + half)
    axes.set_ylim(z_centre - half, z_centre + half)
    return reach
