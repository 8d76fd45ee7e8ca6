"""Codes of 8, 4 or 3 bits packed into bytes, without a bit left over. Any device.

L layers, T tokens, H heads, D head dim, C = H * D codes of a token, E eighths: C / 8 rounded up, P bytes of a token.

- 8 bits: a byte each.
- 4 bits: two to a byte, code c in its low half and code c + C/2 in its high one.
- 3 bits: eight to three bytes. The codes, zeros added to a multiple of 8, are cut into eighths a b c d e f g h.
  The bytes of [a b c] hold their own codes in bits 0-2 and those of [d e f] in bits 3-5. Of their two bits left
  those of a hold the low bits of g, those of b the low bits of h, those of c the high bit of g, then that of h.

A token's parts are joined, not neighbours: that is byte arithmetic on long runs. On a CPU, joining neighbours as words
of 16 and 32 bits was measured at 0.2 to 1 times its speed, joining the halves of each head's 64 channels at 0.4 to 0.6.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def packed_shape(shape: tuple[int, ...], bits: int) -> tuple[int, int, int]:
    """[L, T, P]: shape of the bytes that hold codes of shape [L, T, H, D]; D is even."""
    codes = shape[2] * shape[3]
    per_token = {8: codes, 4: codes // 2, 3: 3 * math.ceil(codes / 8)}
    return shape[0], shape[1], per_token[bits]


def pack(code_LTC: Tensor, bits: int, out_LTP: Tensor) -> None:
    """Write uint8 codes below 2**bits into their bytes."""
    if bits == 8:
        out_LTP.copy_(code_LTC)
    elif bits == 4:
        low, high = code_LTC.chunk(2, dim=2)
        torch.add(low, high, alpha=16, out=out_LTP)
    else:
        _pack_eighths(code_LTC, out_LTP)


def unpack(packed_LTP: Tensor, bits: int, codes: int) -> Tensor:
    """The uint8 codes [L, T, C], given C; may be a view of the bytes."""
    if bits == 8:
        return packed_LTP
    if bits == 4:
        code_LTC = packed_LTP.new_empty((*packed_LTP.shape[:2], codes))
        low, high = code_LTC.chunk(2, dim=2)
        torch.bitwise_and(packed_LTP, 15, out=low)
        torch.bitwise_right_shift(packed_LTP, 4, out=high)
        return code_LTC
    return _unpack_eighths(packed_LTP)[..., :codes]


def _pack_eighths(code_LTC: Tensor, out_LTP: Tensor) -> None:
    eighth = out_LTP.shape[2] // 3
    missing = 8 * eighth - code_LTC.shape[2]
    if missing:
        code_LTC = functional.pad(code_LTC, (0, missing))
    abc, def_, gh = torch.split(code_LTC, [3 * eighth, 3 * eighth, 2 * eighth], dim=2)
    torch.add(abc, def_, alpha=8, out=out_LTP)
    high_g, high_h = (gh >> 2).chunk(2, dim=2)
    out_LTP[..., : 2 * eighth].add_(gh & 3, alpha=64)
    out_LTP[..., 2 * eighth :].add_(high_g, alpha=64).add_(high_h, alpha=128)


def _unpack_eighths(packed_LTP: Tensor) -> Tensor:
    eighth = packed_LTP.shape[2] // 3
    code_LTC = packed_LTP.new_empty((*packed_LTP.shape[:2], 8 * eighth))
    abc, def_, gh = torch.split(code_LTC, [3 * eighth, 3 * eighth, 2 * eighth], dim=2)
    torch.bitwise_and(packed_LTP, 7, out=abc)
    torch.bitwise_and(packed_LTP >> 3, 7, out=def_)
    low, high = torch.split(packed_LTP >> 6, [2 * eighth, eighth], dim=2)
    torch.add(low, torch.cat([high & 1, high >> 1], dim=2), alpha=4, out=gh)
    return code_LTC
