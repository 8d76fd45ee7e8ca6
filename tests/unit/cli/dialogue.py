"""What the command line is told, and how it answers."""

from typing import NamedTuple

# A rollout of a tiny model.
RUN = ("--set", "worlds.count=1", "--set", "trajectory.video_frames=12", "--set", "sampling.denoise_steps=1")


class Said(NamedTuple):
    code: int
    out: str
    err: str


def only_error(said: Said, code: int = 2) -> str:
    """The one line on stderr."""
    assert said.code == code
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line
