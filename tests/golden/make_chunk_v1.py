"""Write chunks in format version 1 with nothing but this file's own reading of docs/chunk_format.md and of the codecs.

    python tests/golden/make_chunk_v1.py

`chunk_v1.wkv` holds float32, `chunk_v1_NAME.wkv` what each codec stores. It was run once. If what it writes is no
longer read, the reader is wrong: version 1 stays readable for ever.

Codes, zeros and scales are chosen so that float32 holds every decoded number exactly, in whatever order it is computed.
"""

from collections.abc import Sequence
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
    keys, values = keys_and_values()
    return written("fp32", "float32", keys.shape, [("k", "float32", keys), ("v", "float32", values)], token_ids())


def written(
    codec: str,
    dtype: str,
    shape: Sequence[int],
    tensors: Sequence[tuple[str, str, np.ndarray]],
    ids: np.ndarray | None,
) -> bytes:
    """The file of a chunk: name, type and content, layers first, of each of its tensors."""
    layers = [b"".join(padded(content[layer].tobytes(), 64) for _, _, content in tensors) for layer in range(shape[0])]
    header = msgpack.packb(
        {
            "tenant": TENANT,
            "epoch": EPOCH,
            "index": INDEX,
            "c2w": poses().tobytes(),
            "token_ids": None if ids is None else ids.tobytes(),
            "codec": codec,
            "shape": list(shape),
            "dtype": dtype,
            "layout": [[name, kind, list(content.shape[1:])] for name, kind, content in tensors],
            "layer_bytes": len(layers[0]),
            "layer_digests": [xxhash.xxh3_128_digest(layer) for layer in layers],
        }
    )
    prefix = b"WKVCHNK\n" + (1).to_bytes(4, "little") + len(header).to_bytes(4, "little")
    return padded(prefix + xxhash.xxh3_128_digest(header) + header, 4096) + b"".join(layers)


# Of the chunks by codec: keys in two groups of unequal length, and tokens whose codes no eighth divides.
CODED_TOKENS, CODED_CHANNELS, PER_GROUP = 193, 6, 97
BITS = {"int8": 8, "int4": 4, "int3": 3}
STEPS_PER_CODE = {"int8": 1, "int4": 16, "int3": 32}
CODED = ("bf16", "fp8", "int8", "int4", "int3", "pruned_int4")


def target(name: str) -> Path:
    return TARGET.with_name(f"chunk_v1_{name}.wkv")


def numbers(shape: Sequence[int], salt: int, below: int) -> np.ndarray:
    """Whole numbers that look like noise."""
    n = np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(1000 * salt)
    return ((n * n * np.uint64(40503) + n * np.uint64(30011)) // np.uint64(64) % np.uint64(below)).reshape(shape)


def coded_v1(name: str) -> tuple[bytes, np.ndarray]:
    """The file of a codec's chunk, and the keys and values [2, L, T, H, D] in float32 that are to be read from it."""
    codec, ids = (name, None) if name != "pruned_int4" else ("int4", pruned_ids())
    shape = (LAYERS, CODED_TOKENS if ids is None else len(ids), HEADS, CODED_CHANNELS)
    tensors: list[tuple[str, str, np.ndarray]] = []
    decoded = []
    for letter, salt in (("k", 1), ("v", 2)):
        if codec == "bf16":
            # Sign, exponents 119 to 134, any mantissa: no NaN, no infinity.
            bits = (
                numbers(shape, salt, 2) << 15 | 119 + numbers(shape, salt + 2, 16) << 7 | numbers(shape, salt + 4, 128)
            )
            tensors.append((letter, "bfloat16", bits.astype(np.uint16)))
            decoded.append((bits.astype(np.uint32) << 16).view(np.float32))
        else:
            parts, x = coded(codec, letter, shape, salt)
            tensors += parts
            decoded.append(x)
    return written(codec, "bfloat16", shape, tensors, ids), np.stack(decoded).astype(np.float32)


def coded(
    codec: str, letter: str, shape: tuple[int, ...], salt: int
) -> tuple[list[tuple[str, str, np.ndarray]], np.ndarray]:
    """Codes, scale and zero of keys or values, and what they mean."""
    layers, tokens, heads, channels = shape
    group_T = np.arange(tokens) // min(PER_GROUP, tokens)
    scales = (layers, group_T[-1] + 1, heads, channels) if letter == "k" else (layers, tokens, heads)
    # bfloat16 of an exact fraction of 1: its upper half as float32.
    scale = (1 + numbers(scales, salt + 6, 127)).astype(np.float32) / 256
    stored_scale = (scale.view(np.uint32) >> 16).astype(np.uint16)
    zeros = numbers(scales, salt + 8, 200).astype(np.int64) - (100 if letter == "k" else 0)
    step_LTHD, zero_LTHD = (x[:, group_T] if letter == "k" else x[..., None] for x in (scale.astype(float), zeros))
    if codec == "fp8":
        codes = numbers(shape, salt, 127) | numbers(shape, salt + 2, 2) << 7  # 127 and 255 are NaN
        tensors = [(f"{letter}_codes", "uint8", codes.reshape(layers, tokens, -1).astype(np.uint8))]
        return [*tensors, (f"{letter}_scale", "bfloat16", stored_scale)], step_LTHD * e4m3fn(codes.astype(np.int64))
    codes = numbers(shape, salt, 1 << BITS[codec]).astype(np.int64)
    packed = packed_codes(codes.reshape(layers, tokens, -1), BITS[codec]).astype(np.uint8)
    kind, dtype = ("int16", np.int16) if letter == "k" else ("uint8", np.uint8)
    tensors = [(f"{letter}_codes", "uint8", packed), (f"{letter}_scale", "bfloat16", stored_scale)]
    tensors += [(f"{letter}_zero", kind, zeros.astype(dtype))]
    return tensors, step_LTHD * (codes - zero_LTHD / STEPS_PER_CODE[codec])


def e4m3fn(code: np.ndarray) -> np.ndarray:
    """Value of 8-bit floats with 4 bits of exponent, bias 7, and 3 of mantissa."""
    exponent, mantissa = code >> 3 & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return np.where(code >> 7, -size, size)


def packed_codes(code_LTC: np.ndarray, bits: int) -> np.ndarray:
    """A token's codes in its bytes: worldkv/memory/packing.py tells how."""
    if bits == 8:
        return code_LTC
    if bits == 4:
        low, high = np.split(code_LTC, 2, axis=2)
        return low | high << 4
    missing = -code_LTC.shape[2] % 8
    a, b, c, d, e, f, g, h = np.split(np.pad(code_LTC, ((0, 0), (0, 0), (0, missing))), 8, axis=2)
    first = a | d << 3 | (g & 3) << 6
    second = b | e << 3 | (h & 3) << 6
    third = c | f << 3 | (g >> 2) << 6 | (h >> 2) << 7
    return np.concatenate([first, second, third], axis=2)


def pruned_ids() -> np.ndarray:
    """All of the first latent frame of 6 x 8 tokens, every other one of the rest."""
    frame, row, column = (x.ravel() for x in np.indices((LATENT_FRAMES, 6, 8)))
    kept = (frame == 0) | ((row + column) % 2 == 1)
    return np.stack([frame, row, column], axis=1)[kept].astype(np.int16)


if __name__ == "__main__":
    TARGET.write_bytes(chunk_v1())
    for coded_name in CODED:
        target(coded_name).write_bytes(coded_v1(coded_name)[0])
