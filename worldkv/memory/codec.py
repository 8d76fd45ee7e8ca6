"""How the keys and values of a chunk are stored, by name; from 32 to 3 bits a number.

Tests hold each codec to the errors it declares, on chunks of the rooms model. There fp8, as large as int8, is eight
times as wrong in keys (2.6 % against 0.33 %, root mean square) and five times in values (2.5 % against 0.54 %): its
codes are densest near zero, where few numbers of a group lie. It serves comparison, and hardware that multiplies fp8.
"""

from collections.abc import Mapping

import torch

from worldkv.memory.coding import CastCodec, Codec
from worldkv.memory.scaled import AffineCodec, Fp8Codec

__all__ = ["CODECS", "Codec"]

CODECS: Mapping[str, Codec] = {
    "fp32": CastCodec("fp32", torch.float32),
    "bf16": CastCodec("bf16", torch.bfloat16, max_relative_error=2**-8, rms_relative_error=0.0018),
    "int8": AffineCodec("int8", bits=8, zero_step=1.0, rms_relative_error=0.006),
    "fp8": Fp8Codec("fp8", rms_relative_error=0.028),
    "int4": AffineCodec("int4", bits=4, zero_step=1 / 16, rms_relative_error=0.1),
    "int3": AffineCodec("int3", bits=3, zero_step=1 / 32, rms_relative_error=0.21),
}
