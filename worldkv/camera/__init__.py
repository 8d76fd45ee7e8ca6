"""The camera: actions and notations become poses; poses become rays, overlaps, forecasts, files and plots.

Everything speaks camera-to-world poses on OpenCV axes (x right, y down, z forward) in float64. Loads numpy
and scipy, never torch. Start reading at `worldkv.camera.trajectory`.
"""

from worldkv.camera.actions import (
    ACTION_COLUMNS,
    LINGBOT_MOVE_COLUMNS,
    LINGBOT_TURN_COLUMNS,
    MATRIX_GAME_COLUMNS,
    WORLD_MODEL_MOTION,
    Action,
    Motion,
    advance,
    combine,
    from_key_columns,
    from_mouse,
    integrate,
    parse_action,
    spell_action,
    to_key_columns,
    to_mouse,
)
from worldkv.camera.forecast import extrapolate, read_ahead
from worldkv.camera.frustum import Frustum, frustum_of, probe_points, view_overlap
from worldkv.camera.intrinsics import (
    LINGBOT_INTRINSICS,
    LINGBOT_SIZE,
    PictureSize,
    check_intrinsics,
    from_field_of_view,
    resize_and_crop,
)
from worldkv.camera.notation import (
    PUBLISHED_PACE,
    Pace,
    Script,
    parse_notation,
    script_actions,
    trajectory_from_notation,
)
from worldkv.camera.plan import out_and_back, out_and_back_actions, reverse_path, wander
from worldkv.camera.plot import plot_topdown
from worldkv.camera.poses import (
    PlanarPoses,
    check_poses,
    interpolate_poses,
    invert_poses,
    latent_frame_times,
    normalise_translations,
    planar_coordinates,
    planar_poses,
    relative_framewise,
    relative_to_first,
)
from worldkv.camera.rays import fold_pixels, plucker_rays, ray_directions
from worldkv.camera.revisits import find_revisits
from worldkv.camera.trajectory import Trajectory, load_trajectory, save_trajectory

__all__ = [
    "ACTION_COLUMNS",
    "LINGBOT_INTRINSICS",
    "LINGBOT_MOVE_COLUMNS",
    "LINGBOT_SIZE",
    "LINGBOT_TURN_COLUMNS",
    "MATRIX_GAME_COLUMNS",
    "PUBLISHED_PACE",
    "WORLD_MODEL_MOTION",
    "Action",
    "Frustum",
    "Motion",
    "Pace",
    "PictureSize",
    "PlanarPoses",
    "Script",
    "Trajectory",
    "advance",
    "check_intrinsics",
    "check_poses",
    "combine",
    "extrapolate",
    "find_revisits",
    "fold_pixels",
    "from_field_of_view",
    "from_key_columns",
    "from_mouse",
    "frustum_of",
    "integrate",
    "interpolate_poses",
    "invert_poses",
    "latent_frame_times",
    "load_trajectory",
    "normalise_translations",
    "out_and_back",
    "out_and_back_actions",
    "parse_action",
    "parse_notation",
    "planar_coordinates",
    "planar_poses",
    "plot_topdown",
    "plucker_rays",
    "probe_points",
    "ray_directions",
    "read_ahead",
    "relative_framewise",
    "relative_to_first",
    "resize_and_crop",
    "reverse_path",
    "save_trajectory",
    "script_actions",
    "spell_action",
    "to_key_columns",
    "to_mouse",
    "trajectory_from_notation",
    "view_overlap",
    "wander",
]
