"""Windows that are not made of whole chunks: which latent frames of the chunks at hand stay. Pure Python."""

from __future__ import annotations


def kept_frames(chunks: int, chunk_latent_frames: int, most: int | None, sink: int) -> list[tuple[int, ...]]:
    """Of each chunk before the current one, oldest first, which of its latent frames are attended to.

    `most` counts them together with the current chunk's; None keeps all. As the published caches do, the first `sink`
    stay and the oldest behind them go.
    """
    total = (chunks + 1) * chunk_latent_frames
    first_after_cut = sink if most is None else max(sink, total - (most - sink))
    frames = range(chunk_latent_frames)
    return [
        tuple(f for f in frames if (at := chunk * chunk_latent_frames + f) < sink or at >= first_after_cut)
        for chunk in range(chunks)
    ]
