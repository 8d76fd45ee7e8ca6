"""3D rotary position embedding of Wan-family models over (latent frame, row, column). Any device.

B sessions, L layers, T tokens, H heads, D head dim; a pair is two neighbouring channels, D/2 of them.

Each axis owns a run of pairs: D//2 - 2*(D//6) for time, D//6 each for row and column, with frequencies
10000^(-2i/width) over the axis' own width (`rope_params`, `causal_rope_apply` in Wan 2.x). The published
code looks angles up in a table of 1,024 latent frames; here they are computed from the ids, in float64
because an angle of thousands of radians has no digits to spare in float32. So any position works,
fractional ones too.
"""

import torch
from torch import Tensor

from worldkv.errors import ConfigError

THETA = 10000.0


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Pairs that turn with (time, row, column). Raises ConfigError where the head dim is odd."""
    if head_dim < 2 or head_dim % 2:
        raise ConfigError(f"head_dim={head_dim}: rotary embedding needs an even number of channels")
    return head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6


def grid_token_ids(
    latent_frames: int, rows: int, columns: int, *, first_frame: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """(frame, row, column) of each token of a chunk in the order the models lay them out: int64 [F*S, 3]."""
    frame = torch.arange(first_frame, first_frame + latent_frames, device=device)
    row, column = torch.arange(rows, device=device), torch.arange(columns, device=device)
    return torch.cartesian_prod(frame, row, column).view(-1, 3)


def frequencies(pairs: int, *, theta: float = THETA, device: torch.device | str = "cpu") -> Tensor:
    """Radians per position of each pair of one axis, float64 [pairs]."""
    step = torch.arange(pairs, dtype=torch.float64, device=device)
    return theta ** (-step / max(pairs, 1))


def angles(token_ids_T3: Tensor, head_dim: int, *, theta: float = THETA) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every pair, float32 [..., T, D/2] each, from ids [..., T, 3], integer or floating.

    Compute once per window and use for all layers and heads.
    """
    ids = token_ids_T3.double()
    turns = [
        ids[..., axis, None] * frequencies(pairs, theta=theta, device=ids.device)
        for axis, pairs in enumerate(axis_pairs(head_dim))
    ]
    radians = torch.cat(turns, dim=-1)
    return radians.cos().float(), radians.sin().float()


def rotate(x_THD: Tensor, cos_TP: Tensor, sin_TP: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Queries or keys [..., T, H, D] turned by `angles`; same shape and dtype, computed in float32.

    The tables are [T, D/2] for the whole batch or [..., T, D/2] for each entry of it. `out` may be a slice
    of the window's buffer, of any dtype, and may be the input itself.
    """
    x, cos, sin = x_THD.float(), cos_TP.unsqueeze(-2), sin_TP.unsqueeze(-2)
    if torch.compiler.is_compiling():
        turned = _turn_real(x, cos, sin)
    elif out is not None and out.dtype == torch.float32 and _viewable_as_pairs(out):
        torch.mul(_pairs(x), torch.complex(cos, sin), out=torch.view_as_complex(out.view(*out.shape[:-1], -1, 2)))
        return out
    else:
        turned = torch.view_as_real(_pairs(x) * torch.complex(cos, sin)).flatten(-2)
    return turned.to(x_THD.dtype) if out is None else out.copy_(turned)


def shift_time(k_THD: Tensor, delta_frames: float, *, theta: float = THETA) -> Tensor:
    """Keys [..., T, H, D] that are already rotated, moved by `delta_frames` latent frames; a new tensor.

    Only the time channels turn. The published `_rope_time_delta_mul_` silently stops at +-1,023; this does
    not.
    """
    head_dim = k_THD.shape[-1]
    pairs = axis_pairs(head_dim)[0]
    radians_1P = (delta_frames * frequencies(pairs, theta=theta, device=k_THD.device))[None]
    out = k_THD.clone()
    time_THD = out[..., : 2 * pairs]
    rotate(time_THD, radians_1P.cos().float(), radians_1P.sin().float(), out=time_THD)
    return out


def _turn_real(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    # The compiler fuses this form and cannot fuse complex numbers. Run eagerly, its strided halves take ten
    # times as long on a CPU as one complex product.
    even, odd = x_THD[..., 0::2], x_THD[..., 1::2]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


def _pairs(x_THD: Tensor) -> Tensor:
    x_THD = x_THD if _viewable_as_pairs(x_THD) else x_THD.contiguous()
    return torch.view_as_complex(x_THD.view(*x_THD.shape[:-1], -1, 2))


def _viewable_as_pairs(x_THD: Tensor) -> bool:
    *outer, inner = x_THD.stride()
    return inner == 1 and x_THD.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in outer)
