"""`worldkv trajectory`: make trajectory files, and look at them from above."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make trajectory files from a notation; show them as a top-down plot.")


@app.command("make")
def make(
    notation: Annotated[str, typer.Argument(help="Ops R L W S A D _, degrees for turns, _frames: R_L_R_L_R_L90_360.")],
    folder: Annotated[Path, typer.Argument(help="New folder for poses.npy, intrinsics.npy and action.npy.")],
    turn_degrees: Annotated[float, typer.Option(help="Degrees per video frame.")] = 2.0,
    distance: Annotated[float, typer.Option(help="World units per video frame of a move.", show_default="1/24")] = 1
    / 24,
    move_frames: Annotated[int, typer.Option(help="Video frames per move.")] = 24,
    rooms_camera: Annotated[
        bool, typer.Option("--rooms-camera", help="Intrinsics of the rooms model, not 480x832.")
    ] = False,
) -> None:
    """Write the files of a trajectory given in the short notation of the world-model papers.

    `worldkv trajectory make R_L90_96 traj/look --turn-degrees 6 --rooms-camera`
    """
    from worldkv.camera import LINGBOT_INTRINSICS, Motion, Pace, save_trajectory, trajectory_from_notation

    intrinsics = LINGBOT_INTRINSICS
    if rooms_camera:
        from worldkv.models.rooms.model import RoomsModel

        intrinsics = RoomsModel.load().intrinsics
    pace = Pace(Motion(turn_degrees, distance), move_frames=move_frames)
    trajectory = trajectory_from_notation(notation, pace=pace, intrinsics=intrinsics)
    save_trajectory(trajectory, folder)
    typer.echo(f"{folder}: {len(trajectory)} poses; look at them with: worldkv trajectory show {folder} look.png")


@app.command("show")
def show(
    path: Annotated[Path, typer.Argument(help="A trajectory folder, or its poses.npy.")],
    picture: Annotated[Path, typer.Argument(help="Plot to write: .png, .svg or .pdf.")],
) -> None:
    """Plot a trajectory from above: the way over time, where the camera looks, which places it revisits."""
    from worldkv.camera import LINGBOT_INTRINSICS, load_trajectory, plot_topdown

    trajectory = load_trajectory(path, default_intrinsics=LINGBOT_INTRINSICS)
    plot_topdown(trajectory, picture)
    typer.echo(f"{picture}: {len(trajectory)} poses of {trajectory.name}")
