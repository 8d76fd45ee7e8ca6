"""Plain words, units and colours: the same in the video, the plots, the page and the terminal. Pure."""

from __future__ import annotations

from collections.abc import Sequence

# Okabe and Ito's colours: told apart by people with any kind of colour vision.
POLICY_COLOURS = {"full": "#0072B2", "sliding": "#D55E00", "worldkv": "#009E73"}
OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#8C6D31", "#7A5FB5")
# What marks a revisit, everywhere.
REVISIT_COLOUR = "#F2B01E"

POLICY_LABELS = {"full": "full KV", "sliding": "sliding window", "worldkv": "WorldKV"}
POLICY_HINTS = {
    "full": "keeps everything",
    "sliding": "keeps the last moments",
    "worldkv": "brings back what is needed",
}
NOT_MEASURED = "–"


def policy_label(policy: str) -> str:
    """The policy's name in plain words."""
    return POLICY_LABELS.get(policy, policy.replace("_", " "))


def policy_colours(policies: Sequence[str]) -> dict[str, str]:
    """A colour per policy; the well-known ones always have theirs."""
    others = [policy for policy in policies if policy not in POLICY_COLOURS]
    extra = {policy: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, policy in enumerate(others)}
    return {policy: extra.get(policy) or POLICY_COLOURS[policy] for policy in policies}


def binary_size(count: float) -> str:
    """Bytes for people: three significant digits at least, in KiB, MiB, GiB or TiB."""
    if count < 1024:
        return f"{count:.0f} B"
    unit, size = binary_unit(count)
    count /= size
    return f"{count:.{0 if count >= 100 else 1 if count >= 10 else 2}f} {unit}"


def binary_unit(count: float) -> tuple[str, int]:
    """The unit in which so many bytes are read best, and its bytes."""
    power = min(4, max(1, (int(max(count, 1)).bit_length() - 1) // 10))
    return ("KiB", "MiB", "GiB", "TiB")[power - 1], 1024**power


def spread(mean: float | None, deviation: float | None, digits: int) -> str:
    """A mean with its standard deviation where there is one: 31.2 ± 1.4."""
    if mean is None:
        return NOT_MEASURED
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def counted(count: int, noun: str) -> str:
    """1 world, 2 worlds."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
