"""Revisits: video frames from which the camera sees again what it saw earlier, after having looked away.

Shapes: F video frames, N revisits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from worldkv.camera.poses import FloatArray


def find_revisits(c2w_F44: FloatArray, *, distance: float, degrees: float) -> NDArray[np.int64]:
    """Pairs [N, 2] of a frame and the earlier frame it revisits, in order of the former.

    Two poses match when their places are within `distance` (world units) and their rotations within
    `degrees`. A frame revisits when it matches an earlier one and some frame between them matches it not:
    holding still is no revisit. Of several such earlier frames the nearest in rotation, then the oldest, is
    named.
    """
    pairs = []
    for frame in range(1, len(c2w_F44)):
        apart_F, angle_F = _distances(c2w_F44[:frame], c2w_F44[frame])
        match_F = (apart_F <= distance) & (angle_F <= degrees)
        away = np.flatnonzero(~match_F)
        before_leaving_F = match_F[: away[-1]] if len(away) else match_F[:0]
        if before_leaving_F.any():
            candidates = np.flatnonzero(before_leaving_F)
            pairs.append((frame, candidates[angle_F[candidates].round(6).argmin()]))
    return np.asarray(pairs, dtype=np.int64).reshape(-1, 2)


def _distances(c2w_F44: FloatArray, query_44: FloatArray) -> tuple[FloatArray, FloatArray]:
    apart_F = np.linalg.norm(c2w_F44[:, :3, 3] - query_44[:3, 3], axis=1)
    cosine_F = (np.einsum("fij,ij->f", c2w_F44[:, :3, :3], query_44[:3, :3]) - 1) / 2
    return apart_F, np.degrees(np.arccos(np.clip(cosine_F, -1, 1)))
