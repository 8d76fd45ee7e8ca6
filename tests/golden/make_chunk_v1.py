"""Write `chunk_v1.wkv`, a chunk in format version 1, with nothing but this file's own reading of docs/chunk_format.md.

    python tests/golden/make_chunk_v1.py

It was run once. If what it writes is no longer read, the reader is wrong: version 1 stays readable for ever.
"""

from pathlib import Path

import msgpack
import numpy as np
import xxhash

TARGET = Path(__file__).with_name("chunk_v1.wkv")
LAYERS, TOKENS, HEADS, CHANNELS, LATENT_FRAMES = 2, 3, 2, 4, 3
TENANT, EPOCH, INDEX = "lab-ü", "weights-of-2026", 41


def keys_and_values() -> tuple[np.ndarray, np.ndarray]:
    """Float32 [L, T, H, D] with a different number in each place."""
    size = LAYERS * TOKENS * HEADS * CHANNELS
    numbers = np.arange(2 * size, dtype=np.float32) / 8 - 3
    keys, values = numpy_shape(numbers[:size]), numpy_shape(numbers[size:])
    return keys, values


def numpy_shape(numbers: np.ndarray) -> np.ndarray:
    return numbers.reshape(LAYERS, TOKENS, HEADS, CHANNELS)


def poses() -> np.ndarray:
    """A camera that moves one metre per latent frame."""
    c2w_F44 = np.tile(np.eye(4, dtype=np.float32), (LATENT_FRAMES, 1, 1))
    c2w_F44[:, 2, 3] = np.arange(LATENT_FRAMES)
    return c2w_F44


def token_ids() -> np.ndarray:
    """(frame, row, column) of three tokens that pruning kept."""
    return np.array([[0, 0, 1], [1, 2, 0], [2, 1, 1]], np.int16)


def padded(data: bytes, multiple: int) -> bytes:
    return data.ljust(-(-len(data) // multiple) * multiple, b"\0")


def chunk_v1() -> bytes:
    layers = [b"".join(padded(part.tobytes(), 64) for part in pair) for pair in zip(*keys_and_values(), strict=True)]
    part = [TOKENS, HEADS, CHANNELS]
    header = msgpack.packb(
        {
            "tenant": TENANT,
            "epoch": EPOCH,
            "index": INDEX,
            "c2w": poses().tobytes(),
            "token_ids": token_ids().tobytes(),
            "codec": "fp32",
            "shape": [LAYERS, *part],
            "dtype": "float32",
            "layout": [["k", "float32", part], ["v", "float32", part]],
            "layer_bytes": len(layers[0]),
            "layer_digests": [xxhash.xxh3_128_digest(layer) for layer in layers],
        }
    )
    prefix = b"WKVCHNK\n" + (1).to_bytes(4, "little") + len(header).to_bytes(4, "little")
    return padded(prefix + xxhash.xxh3_128_digest(header) + header, 4096) + b"".join(layers)


if __name__ == "__main__":
    TARGET.write_bytes(chunk_v1())
