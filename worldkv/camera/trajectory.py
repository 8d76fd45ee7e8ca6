"""Trajectories: poses, intrinsics and actions of a whole rollout, and the folders that hold them.

A folder holds `poses.npy` [F, 4, 4] and `intrinsics.npy` [F, 4], and may hold `action.npy` [F, 4] (keys W, A,
S, D) and `ijkl_action.npy` [F, 4] (turn keys): the layout of LingBot-World. `name_poses.npy` with siblings
`name_intrinsics.npy` and so on, as the published WorldKV generator writes them, is read as well.

Shapes: F video frames.
"""

from __future__ import annotations

import tokenize
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import exists  # unlike Path.exists it answers False, not PermissionError, in a closed folder
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from worldkv.camera.actions import (
    LINGBOT_MOVE_COLUMNS,
    LINGBOT_TURN_COLUMNS,
    Action,
    combine,
    from_key_columns,
    to_key_columns,
)
from worldkv.camera.intrinsics import check_intrinsics
from worldkv.camera.poses import FloatArray, check_poses
from worldkv.errors import OutputError, TrajectoryError

POSES_FILE = "poses.npy"
INTRINSICS_FILE = "intrinsics.npy"
ACTION_FILE = "action.npy"
TURN_FILE = "ijkl_action.npy"
FILES = (POSES_FILE, INTRINSICS_FILE, ACTION_FILE, TURN_FILE)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The camera over a rollout; its arrays are private copies that cannot be written to.

    Construction raises TrajectoryError, naming `name`, where the parts are unsound or of different lengths.
    """

    c2w_F44: FloatArray
    """Camera-to-world poses on OpenCV axes, in world units."""
    intrinsics_F4: FloatArray
    """fx, fy, cx, cy in pixels of the picture size the trajectory was made for."""
    actions: tuple[Action, ...] | None = None
    """Action i leads from frame i to frame i + 1; None where only the poses are known."""
    name: str = "trajectory"

    def __post_init__(self) -> None:
        object.__setattr__(self, "c2w_F44", _private(check_poses(self.c2w_F44, self.name)))
        if len(self.c2w_F44) == 0:
            raise TrajectoryError(f"{self.name}: has no poses")
        object.__setattr__(self, "intrinsics_F4", _private(check_intrinsics(self.intrinsics_F4, self.name)))
        _check_count(self.name, "intrinsics", len(self.intrinsics_F4), len(self.c2w_F44))
        if self.actions is not None:
            object.__setattr__(self, "actions", tuple(self.actions))
            _check_count(self.name, "actions", len(self.actions), len(self.c2w_F44))

    def __len__(self) -> int:
        """Number of video frames."""
        return len(self.c2w_F44)


def load_trajectory(
    path: str | Path, *, default_intrinsics: ArrayLike | None = None, minimum_frames: int = 1
) -> Trajectory:
    """Read a trajectory folder, or the poses file in it. Its name is that of the folder or the file's prefix.

    `default_intrinsics` [4] serve all frames where the intrinsics file is missing. Raises TrajectoryError,
    naming the file and its fault, for anything missing or malformed and for fewer poses than
    `minimum_frames`.
    """
    poses_file = _find_poses(Path(path))
    prefix = poses_file.name.removesuffix(POSES_FILE)
    c2w_F44 = check_poses(_read_array(poses_file), str(poses_file))
    if len(c2w_F44) < minimum_frames:
        raise TrajectoryError(f"{poses_file}: has {len(c2w_F44)} poses, at least {minimum_frames} are needed")
    return Trajectory(
        c2w_F44=c2w_F44,
        intrinsics_F4=_read_intrinsics(
            poses_file.with_name(prefix + INTRINSICS_FILE), len(c2w_F44), default_intrinsics
        ),
        actions=_read_actions(poses_file.parent, prefix, len(c2w_F44)),
        name=prefix.rstrip("_") or poses_file.absolute().parent.name,
    )


def save_trajectory(trajectory: Trajectory, folder: str | Path) -> None:
    """Write a trajectory into `folder`, making it if needed; `load_trajectory` gives back the same bits.

    Raises OutputError where the folder already holds a trajectory or cannot be written.
    """
    folder = Path(folder)
    arrays: dict[str, NDArray[np.floating]] = {
        POSES_FILE: trajectory.c2w_F44,
        INTRINSICS_FILE: trajectory.intrinsics_F4,
    }
    if trajectory.actions is not None:
        arrays[ACTION_FILE] = to_key_columns(trajectory.actions, LINGBOT_MOVE_COLUMNS)
        arrays[TURN_FILE] = to_key_columns(trajectory.actions, LINGBOT_TURN_COLUMNS)
    held = [name for name in FILES if exists(folder / name)]
    if held:
        raise OutputError(f"{folder}: already holds a trajectory ({', '.join(held)})")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / name, array, allow_pickle=False)
    except OSError as error:
        raise OutputError(f"{folder}: the trajectory cannot be written: {error.strerror or error}") from error


def _find_poses(path: Path) -> Path:
    if not path.is_dir():
        if not path.name.endswith(POSES_FILE):
            raise TrajectoryError(f"{path}: expected a folder or a file whose name ends in {POSES_FILE}")
        return path
    if exists(path / POSES_FILE):
        return path / POSES_FILE
    found = sorted(path.glob(f"*_{POSES_FILE}"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise TrajectoryError(f"{path}: holds no {POSES_FILE}, and not one *_{POSES_FILE} (found: {names})")
    return found[0]


def _read_array(file: Path) -> FloatArray:
    try:
        # Mapping never unpickles, and it holds the header against the file's size before allocating anything.
        array = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError as error:
        raise TrajectoryError(f"{file}: no such file") from error
    except (OSError, ValueError, EOFError, SyntaxError, tokenize.TokenError) as error:
        # The last two: numpy reads a header as Python source, and a damaged one need not parse.
        fault = str(error).partition("\n")[0]
        raise TrajectoryError(f"{file}: not a readable .npy array of numbers: {fault}") from error
    if array.dtype.kind not in "fiu":
        raise TrajectoryError(f"{file}: holds values of type {array.dtype}, expected real numbers")
    return np.array(array, dtype=np.float64)


def _read_intrinsics(file: Path, frames: int, default: ArrayLike | None) -> FloatArray:
    if default is not None and not exists(file):
        return np.tile(check_intrinsics(np.atleast_2d(default), "default intrinsics"), (frames, 1))
    intrinsics_F4 = check_intrinsics(_read_array(file), str(file))
    _check_count(str(file), "intrinsics", len(intrinsics_F4), frames)
    return intrinsics_F4


def _read_actions(folder: Path, prefix: str, frames: int) -> tuple[Action, ...] | None:
    moves = _read_keys(folder / (prefix + ACTION_FILE), LINGBOT_MOVE_COLUMNS, frames)
    turns = _read_keys(folder / (prefix + TURN_FILE), LINGBOT_TURN_COLUMNS, frames)
    if moves is None or turns is None:
        return turns if moves is None else moves
    return combine(moves, turns)


def _read_keys(file: Path, columns: Sequence[Action], frames: int) -> tuple[Action, ...] | None:
    if not exists(file):
        return None
    actions = from_key_columns(_read_array(file), columns, str(file))
    _check_count(str(file), "actions", len(actions), frames)
    return actions


def _check_count(source: str, what: str, count: int, frames: int) -> None:
    if count != frames:
        raise TrajectoryError(f"{source}: {count} {what} for {frames} poses")


def _private(array: FloatArray) -> FloatArray:
    copy = array.copy()
    copy.setflags(write=False)
    return copy
