"""Statistics by which policy trainers normalise, in LeRobot's form; computed in float64, mergeable.

Quantiles merge as their weighted mean, as in LeRobot: exact for one episode, an estimate for many.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
STAT_NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)
FeatureStats = dict[str, npt.NDArray[Any]]
Stats = dict[str, FeatureStats]

MAX_SAMPLED_FRAMES = 100
"""Neighbouring frames look alike: more would change the statistics little and cost as much as encoding."""
MAX_SAMPLED_SIDE = 300
"""Larger pictures are thinned to about half of this per side, as LeRobot does."""


def column_stats(values: npt.NDArray[Any]) -> FeatureStats:
    """Return the statistics over the first axis; a flat column counts as having shape (1,)."""
    values_FX = values.astype(np.float64).reshape(len(values), *(values.shape[1:] or (1,)))
    quantiles = np.quantile(values_FX, list(QUANTILES.values()), axis=0)
    return {
        "min": values_FX.min(axis=0),
        "max": values_FX.max(axis=0),
        "mean": values_FX.mean(axis=0),
        "std": values_FX.std(axis=0),
        "count": np.array([len(values_FX)], dtype=np.int64),
    } | dict(zip(QUANTILES, quantiles, strict=True))


def video_stats(frames_FHWC: npt.NDArray[np.uint8]) -> FeatureStats:
    """Return per-colour statistics of pixels scaled to 0..1, shaped (3, 1, 1), over a spread of frames."""
    picked = np.linspace(0, len(frames_FHWC) - 1, min(len(frames_FHWC), MAX_SAMPLED_FRAMES)).round().astype(int)
    longest = max(frames_FHWC.shape[1:3])
    step = 1 if longest < MAX_SAMPLED_SIDE else longest // (MAX_SAMPLED_SIDE // 2)
    pixels_NC = frames_FHWC[picked, ::step, ::step].reshape(-1, 3)
    colours = [_colour_stats(pixels_NC[:, colour]) for colour in range(3)]
    stats = {name: np.array([one[name] for one in colours]).reshape(3, 1, 1) for name in colours[0]}
    return stats | {"count": np.array([len(picked)], dtype=np.int64)}


def merge(one: Stats, other: Stats) -> Stats:
    """Return the statistics of both together; the two must describe the same features."""
    return {name: _merge_feature(one[name], other[name]) for name in one}


def to_json(stats: Stats) -> dict[str, dict[str, Any]]:
    """Return nested lists; Python prints floats so that they read back bit for bit."""
    return {name: {stat: feature[stat].tolist() for stat in STAT_NAMES} for name, feature in stats.items()}


def from_json(document: Mapping[str, Mapping[str, Any]]) -> Stats:
    """Return what `to_json` was given."""
    return {
        name: {
            stat: np.array(value, dtype=np.int64 if stat == "count" else np.float64) for stat, value in feature.items()
        }
        for name, feature in document.items()
    }


def _colour_stats(values: npt.NDArray[np.uint8]) -> dict[str, float]:
    # A histogram of the 256 levels holds all that is asked, at a tenth of the cost of sorting the pixels.
    counts = np.bincount(values, minlength=256)
    levels, cumulative = np.arange(256) / 255, np.cumsum(counts)
    mean = float((counts * levels).sum() / len(values))
    variance = float((counts * (levels - mean) ** 2).sum() / len(values))
    seen = np.flatnonzero(counts)
    stats = {"min": levels[seen[0]], "max": levels[seen[-1]], "mean": mean, "std": variance**0.5}
    ranks = {name: np.searchsorted(cumulative, q * len(values)) for name, q in QUANTILES.items()}
    return {name: float(value) for name, value in (stats | {n: levels[r] for n, r in ranks.items()}).items()}


def _merge_feature(one: FeatureStats, other: FeatureStats) -> FeatureStats:
    count = one["count"] + other["count"]
    share, rest = one["count"][0] / count[0], other["count"][0] / count[0]
    mean = one["mean"] * share + other["mean"] * rest
    variance = (one["std"] ** 2 + (one["mean"] - mean) ** 2) * share
    variance = variance + (other["std"] ** 2 + (other["mean"] - mean) ** 2) * rest
    return {
        "min": np.minimum(one["min"], other["min"]),
        "max": np.maximum(one["max"], other["max"]),
        "mean": mean,
        "std": np.sqrt(variance),
        "count": count,
    } | {name: one[name] * share + other[name] * rest for name in QUANTILES}
