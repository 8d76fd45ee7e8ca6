"""How far off forecasts of live cameras are, by horizon, and whether their probabilities mean what they say.

    python benchmarks/forecast.py --out benchmarks/forecast_cpu_202611

Deterministic: nothing is timed. Held-out trajectories, of which none was used to choose a constant.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

for library in ("OPENBLAS", "OMP", "MKL"):
    os.environ[f"{library}_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import torch  # noqa: E402
from camera_sets import FRAMES, HELD_OUT, SETS, STRIDE, TUNING, traces  # noqa: E402
from recording import circumstances, markdown_table, save  # noqa: E402

from scheduler.forecast import Forecast, Steady  # noqa: E402
from scheduler.habits import Counts  # noqa: E402
from scheduler.revisits import predict_revisits  # noqa: E402
from scheduler.simulation.sessions import Live, make_live  # noqa: E402
from scheduler.snapshot import SessionView  # noqa: E402

PATHS, CHUNKS, AHEAD = 4, 150, 4
LEARNED_CHUNKS = 10
"""Of a session's first chunks nothing is counted: nobody knows a camera at once."""
BINS = np.linspace(0, 1, 11)


class Still:
    """The camera stays where it is: what a forecast must beat."""

    name = "still"

    def predict(self, session: SessionView, chunks: int) -> Forecast:
        """One way, which stands still."""
        pose_QH44 = np.tile(session.recent_F44[-1], (1, chunks, 1, 1))
        return Forecast(pose_QH44, np.ones((1, chunks)), self.name)


def sessions(kind: str, first_seed: int) -> Iterator[Live]:
    """Each session before each of its chunks, its habits learned so far."""
    tenant = Counts()
    for number, trace in enumerate(traces(kind, PATHS, CHUNKS, first_seed, scripted=False)):
        live = make_live(number, trace, tenant)
        for chunk in range(CHUNKS - AHEAD - 1):
            live.chunk = chunk
            live.tier_C[:chunk] = 1
            live.learn()
            yield live


def scores(pose_Q44: np.ndarray, chance_Q: np.ndarray, true_44: np.ndarray) -> tuple[float, float, float]:
    """Energy scores in degrees and in units, and the error in degrees of the way that came nearest.

    The energy score of a forecast that gives several ways their chances is the expected error of one drawn from them,
    less half of what two drawn from them differ by. Of a single way it is the error. Who lies about chances, loses.
    """
    rotation_Q33 = pose_Q44[:, :3, :3]
    apart_QQ = np.degrees(np.arccos(np.clip((np.einsum("aij,bij->ab", rotation_Q33, rotation_Q33) - 1) / 2, -1, 1)))
    off_Q = np.degrees(np.arccos(np.clip((np.einsum("aij,ij->a", rotation_Q33, true_44[:3, :3]) - 1) / 2, -1, 1)))
    place_Q3 = pose_Q44[:, :3, 3]
    away_Q = np.linalg.norm(place_Q3 - true_44[:3, 3], axis=1)
    between_QQ = np.linalg.norm(place_Q3[:, None] - place_Q3[None], axis=2)
    turn = chance_Q @ off_Q - 0.5 * chance_Q @ apart_QQ @ chance_Q
    move = chance_Q @ away_Q - 0.5 * chance_Q @ between_QQ @ chance_Q
    return float(turn), float(move), float(off_Q.min())


def measure(first_seed: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Errors per set, predictor and horizon; and calibration of revisit chances per set."""
    errors: dict[tuple[str, str, int], list[tuple[float, float, float]]] = defaultdict(list)
    calibration = []
    for kind in SETS:
        told, came = [], []
        for live in sessions(kind, first_seed):
            view = live.view()
            for predictor in (Still(), Steady(), live.habits):
                found = predictor.predict(view, AHEAD)
                assert found is not None
                if live.chunk < LEARNED_CHUNKS:
                    continue
                for ahead in range(AHEAD):
                    true_44 = live.pose_C44[view.chunk + ahead]
                    pose_Q44, chance_Q = found.pose_QH44[:, ahead], found.probability_QH[:, ahead]
                    errors[kind, predictor.name, ahead].append(scores(pose_Q44, chance_Q / chance_Q.sum(), true_44))
                if predictor is live.habits:
                    chance_HN = predict_revisits(view, found).chance_HN[:2]
                    for ahead, chance_N in enumerate(chance_HN):
                        wanted = np.isin(np.arange(len(chance_N)), live.wanted[view.chunk + ahead])
                        worth = (chance_N > 0) | wanted
                        told += [(ahead, float(value)) for value in chance_N[worth]]
                        came += wanted[worth].tolist()
        calibration.append(calibrated(kind, np.array(told), np.array(came)))
    rows = [
        {
            "set": kind,
            "predictor": name,
            "chunks ahead": ahead + 1,
            "degrees, mean": round(float(np.mean([one[0] for one in found])), 2),
            "degrees, p90": round(float(np.percentile([one[0] for one in found], 90)), 2),
            "units, mean": round(float(np.mean([one[1] for one in found])), 3),
            "units, p90": round(float(np.percentile([one[1] for one in found], 90)), 3),
            "degrees, nearest way, p90": round(float(np.percentile([one[2] for one in found], 90)), 2),
        }
        for (kind, name, ahead), found in errors.items()
    ]
    return rows, calibration


def calibrated(kind: str, told: np.ndarray, came: np.ndarray) -> dict[str, object]:
    """How often a chunk was retrieved that was said to be with some probability, for the next window."""
    first = told[:, 0] == 0
    chance, hit = told[first, 1], came[first]
    place = np.clip(np.digitize(chance, BINS) - 1, 0, len(BINS) - 2)
    bins = []
    off = 0.0
    for number in range(len(BINS) - 1):
        here = place == number
        if here.any():
            said, was = float(chance[here].mean()), float(hit[here].mean())
            off += abs(said - was) * here.sum() / len(place)
            bins.append([f"{BINS[number]:.1f}", int(here.sum()), round(said, 3), round(was, 3)])
    brier = float(np.mean((chance - hit) ** 2))
    return {"set": kind, "calibration error": round(off, 3), "Brier score": round(brier, 3), "bins": bins}


def body(rows: list[dict[str, object]], calibration: list[dict[str, object]]) -> str:
    """What the .md file says."""
    heads = [*rows[0]]
    parts = [
        f"{PATHS} trajectories of {CHUNKS} chunks of {FRAMES} video frames per set, 2 degrees or 1/24 unit per frame, "
        f"every {STRIDE}th a latent frame. Errors of the mean pose of a chunk, in degrees and world units: the energy "
        "score, which for one way is its error, and for several ways with chances the expected error less half of "
        "their expected difference. `nearest way`: the error of the way that came nearest, of those followed. "
        "Forecasts are made when a chunk begins to be made, so one chunk ahead is the chunk after it.",
        markdown_table(heads, [[str(row[head]) for head in heads] for row in rows]),
        "Chance of a stored chunk to be retrieved for the next window: what was said, and how often it came true. The "
        "calibration error is the mean difference of the two, weighed by how often each was said. Chunks that were "
        "given no chance and were not retrieved are not counted.",
        markdown_table(
            ["set", "calibration error", "Brier score"],
            [[str(row["set"]), str(row["calibration error"]), str(row["Brier score"])] for row in calibration],
        ),
    ]
    for row in calibration:
        bins = row["bins"]
        assert isinstance(bins, list)
        lines = [[str(cell) for cell in line] for line in bins]
        parts.append(f"{row['set']}:\n\n" + markdown_table(["chance from", "times", "said", "came true"], lines))
    return "\n\n".join(parts)


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json")
    parser.add_argument("--tuning", action="store_true", help="on the trajectories that constants were chosen on")
    given = parser.parse_args()
    rows, calibration = measure(TUNING if given.tuning else HELD_OUT)
    text = body(rows, calibration)
    print(text)
    if given.out:
        content = {"circumstances": circumstances(torch.device("cpu")), "rows": rows, "calibration": calibration}
        save(given.out, "Forecasts of live cameras", text, content)


if __name__ == "__main__":
    main()
