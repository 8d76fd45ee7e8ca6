"""The causal DiT of the rooms model: noisy pixels of one chunk in, the clean picture (x0) out.

A token is one PATCH x PATCH square of one latent frame; a latent frame is a video frame (there is no VAE).
Attention is left to the caller, who decides what is attended to: `Attend` gets a layer's queries, keys and values
before rotation. Training passes a block-causal mask over a whole clip, inference an assembled window.

Shapes: B sessions, L layers, F latent frames, S tokens per latent frame, T = F * S tokens, H heads, D head dim,
E = H * D embedding, Q quarters of a token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_BTHD, k_BTHD, v_BTHD), all un-rotated -> attended values [B, T, H, D]."""

# After these layers a token says how far its surface is and is told where in the world that lies.
SURFACE_LAYERS = (2, 5)
# What the model is told of a finished chunk that it made itself, in the place of a noise level; of one it was shown, 0.
MADE_LEVEL = 0.1
# Depths are guessed for the quarters of a token: at 90 degrees over 8 tokens an object's edge runs through many.
QUARTERS = 4


@dataclass(frozen=True)
class Shape:
    """Everything that fixes the tensors of a checkpoint."""

    image: int = 80  # pixels, square
    patch: int = 10
    layers: int = 10
    heads: int = 5
    head_dim: int = 64
    mlp_ratio: int = 4
    frames_per_chunk: int = 3
    trained_frames: int = 48  # clip length of training: temporal positions beyond are untrained

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def side(self) -> int:
        """Tokens along one side of a frame."""
        return self.image // self.patch

    @property
    def tokens_per_frame(self) -> int:
        return self.side**2


@dataclass(frozen=True)
class Cameras:
    """What the network needs of the poses: independent of the noise level, so computed once per chunk."""

    terms_LBTE: Tensor
    """Added to the input of each layer's attention."""
    eye_BT3: Tensor
    """Camera centres, relative to the rollout's first."""
    ray_BTQ3: Tensor
    """Ray through the middle of each quarter of a token, of length 1 along the camera's z axis."""

    def part(self, tokens: slice) -> Cameras:
        """Of some of the tokens."""
        return Cameras(self.terms_LBTE[:, :, tokens], self.eye_BT3[:, tokens], self.ray_BTQ3[:, tokens])

    def twice(self) -> Cameras:
        """For a sequence that holds every token two times over, one copy behind the other (training)."""
        return Cameras(
            *(torch.cat([x, x], dim) for x, dim in ((self.terms_LBTE, 2), (self.eye_BT3, 1), (self.ray_BTQ3, 1)))
        )


class RoomsNetwork(nn.Module):
    """Weights and the forward pass; stateless."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        E = shape.width
        self.patch_in = nn.Linear(3 * shape.patch**2, E)
        self.place = nn.Parameter(torch.zeros(shape.tokens_per_frame, E))
        self.ray_in = nn.Linear(RAY_FEATURES, E)
        self.ray_out = nn.Linear(E, E)
        self.reach_in = nn.Linear(REACH_FEATURES, E, bias=False)
        self.noise_in = nn.Linear(NOISE_FEATURES, E)
        self.noise_out = nn.Linear(E, 6 * E)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.surfaces = nn.ModuleDict({str(layer): Surface(shape) for layer in SURFACE_LAYERS if layer < shape.layers})
        self.head_bias = nn.Parameter(torch.zeros(2, E))
        self.head_noise = nn.Linear(E, 2 * E)
        self.head = nn.Linear(E, 3 * shape.patch**2)
        self._initialise()

    def _initialise(self) -> None:
        for module in (self.noise_out, self.head_noise, self.head):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        nn.init.zeros_(self.reach_in.weight)
        nn.init.normal_(self.place, std=0.02)

    def cameras(self, c2w_BF44: Tensor, tangent: float) -> Cameras:
        """See `Cameras`. `tangent` is that of half the field of view. Poses are relative to the rollout's first."""
        # Positions lose their last digits in bf16, and with them the geometry: this part stays in float32.
        with torch.autocast(c2w_BF44.device.type, enabled=False):
            c2w = c2w_BF44.float()
            seen = self.ray_out(fn.silu(self.ray_in(ray_features(c2w, self.shape.side, tangent))))
            seen = seen + self.reach_in(reach_features(c2w, self.shape.side, tangent))
            eye, ray = quarter_rays(c2w, self.shape.side, tangent)
        return Cameras(torch.stack([block.camera(seen) for block in self.blocks]), eye, ray)  # type: ignore[operator]

    def forward(
        self, pixels_BFCHW: Tensor, noise_BF: Tensor, cameras: Cameras, attend: Attend
    ) -> tuple[Tensor, list[Tensor]]:
        """Estimate of the clean pixels [B, F, 3, image, image] in [-1, 1]; log depths [B, T, Q] guessed on the way.

        `noise_BF` is the noise level of each frame in [0, 1]: x = (1 - noise) clean + noise Gaussian.
        """
        B, F = noise_BF.shape
        tokens = patchify(pixels_BFCHW, self.shape.patch)
        x = self.patch_in(tokens) + self.place.repeat(F, 1)
        level = self.noise_in(noise_features(noise_BF).to(x.dtype))
        shared = self.noise_out(fn.silu(level)).reshape(B, F, 6, -1)
        log_depths = []
        for layer, block in enumerate(self.blocks):
            x = block(x, shared, cameras.terms_LBTE[layer], layer, attend)
            if str(layer) in self.surfaces:
                x, log_depth = self.surfaces[str(layer)](x, cameras.eye_BT3, cameras.ray_BTQ3)
                log_depths.append(log_depth)
        shift, scale = (self.head_bias + self.head_noise(fn.silu(level)).reshape(B, F, 2, -1)).unbind(2)
        x = self.head(_modulate(x, shift, scale))
        return unpatchify(x, F, self.shape.patch), log_depths


class Surface(nn.Module):
    """Turns a token's idea of how far its surface is into the place of that surface in the world.

    With the place in both a query and a key, attention can find a surface again from anywhere.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.depth = nn.Linear(shape.width, QUARTERS)
        self.place = nn.Linear(QUARTERS * SURFACE_FEATURES, shape.width)

    def forward(self, x_BTE: Tensor, eye_BT3: Tensor, ray_BTQ3: Tensor) -> tuple[Tensor, Tensor]:
        """x with the place added, and log depths [B, T, QUARTERS], which training compares with the true ones."""
        log_depth = self.depth(fn.layer_norm(x_BTE, x_BTE.shape[-1:])).float()
        # No gradient through the place: its waves are too short for a guess to slide along them.
        features = surface_features(log_depth.detach(), eye_BT3, ray_BTQ3)
        return x_BTE + self.place(features.to(x_BTE.dtype)), log_depth


class Block(nn.Module):
    """Self-attention with the camera in its input, then an MLP; Wan-style modulation: shared, plus a bias."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        E = shape.width
        self.heads, self.head_dim = shape.heads, shape.head_dim
        self.bias = nn.Parameter(torch.randn(6, E) / E**0.5)
        self.camera = nn.Linear(E, E)
        self.qkv = nn.Linear(E, 3 * E)
        self.norm_q = nn.RMSNorm(shape.head_dim, eps=1e-6)
        self.norm_k = nn.RMSNorm(shape.head_dim, eps=1e-6)
        self.out = nn.Linear(E, E)
        self.up = nn.Linear(E, shape.mlp_ratio * E)
        self.down = nn.Linear(shape.mlp_ratio * E, E)
        for module in (self.out, self.down):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, shared_BF6E: Tensor, camera_BTE: Tensor, layer: int, attend: Attend) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (shared_BF6E + self.bias).unbind(2)
        B, T, E = x.shape
        q, k, v = (
            self.qkv(_modulate(x, shift_a, scale_a) + camera_BTE).reshape(B, T, 3, self.heads, self.head_dim).unbind(2)
        )
        # Normalised in float32 also under autocast, as its weights are: mixed, torch takes a slow path and warns.
        attended = attend(layer, self.norm_q(q.float()), self.norm_k(k.float()), v).reshape(B, T, E)
        x = x + _per_frame(self.out(attended), 1 + gate_a)
        hidden = fn.gelu(self.up(_modulate(x, shift_m, scale_m)), approximate="tanh")
        return x + _per_frame(self.down(hidden), 1 + gate_m)


def _modulate(x_BTE: Tensor, shift_BFE: Tensor, scale_BFE: Tensor) -> Tensor:
    normal = fn.layer_norm(x_BTE, x_BTE.shape[-1:])
    return _per_frame(normal, 1 + scale_BFE, shift_BFE)


def _per_frame(x_BTE: Tensor, scale_BFE: Tensor, shift_BFE: Tensor | None = None) -> Tensor:
    """Scale (and shift) the tokens of each frame by that frame's vector."""
    B, T, E = x_BTE.shape
    x = x_BTE.reshape(B, scale_BFE.shape[1], -1, E) * scale_BFE[:, :, None]
    if shift_BFE is not None:
        x = x + shift_BFE[:, :, None]
    return x.reshape(B, T, E)


def patchify(pixels_BFCHW: Tensor, patch: int) -> Tensor:
    """[B, F, 3, H, W] -> tokens [B, F * S, 3 * patch * patch], row by row."""
    B, F, C, H, W = pixels_BFCHW.shape
    x = pixels_BFCHW.reshape(B, F, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(B, F * (H // patch) * (W // patch), C * patch * patch)


def unpatchify(tokens_BTP: Tensor, frames: int, patch: int) -> Tensor:
    """The inverse of `patchify` for square frames."""
    B, T, _ = tokens_BTP.shape
    side = round((T // frames) ** 0.5)
    x = tokens_BTP.reshape(B, frames, side, side, 3, patch, patch)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(B, frames, 3, side * patch, side * patch)


NOISE_FEATURES = 64
_POSITION_WAVES = (16.0, 8.0, 4.0, 2.0, 1.0)  # cells
_HEADING_HARMONICS = (1, 2, 4, 8)
RAY_FEATURES = 2 * 2 * len(_POSITION_WAVES) + 2 * len(_HEADING_HARMONICS) + 9
SURFACE_FEATURES = 2 * 2 * len(_POSITION_WAVES) + 2
# Depths in cells at which a token's ray may meet its surface, before anything is known of it.
_REACHES = (0.4, 0.8, 1.6, 3.2, 6.4)
REACH_FEATURES = 2 * 2 * len(_POSITION_WAVES) * len(_REACHES)
LOG_DEPTH_RANGE = (-2.5, 2.8)  # of 0.08 to 16 cells; the sky counts as the far end


def noise_features(noise_BF: Tensor) -> Tensor:
    """Sinusoids of the noise level, [B, F, NOISE_FEATURES]."""
    octaves = 2.0 ** torch.linspace(-1, 9, NOISE_FEATURES // 2, device=noise_BF.device)
    angle = noise_BF.float()[..., None] * octaves
    return torch.cat([angle.sin(), angle.cos()], -1)


def _pixel_rays(side: int, tangent: float, device: torch.device) -> Tensor:
    """Camera rays (u, v, 1) through the middles of a side x side grid of squares, row by row, [side * side, 3]."""
    middle = ((torch.arange(side, device=device) + 0.5) / side * 2 - 1) * tangent
    v, u = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([u, v, torch.ones_like(u)], -1).reshape(-1, 3)


def quarters(grid_X: Tensor, side: int) -> Tensor:
    """[..., 2 side, 2 side] -> [..., side * side, 4]: the four quarters of each token, row by row."""
    outer = grid_X.shape[:-2]
    x = grid_X.reshape(*outer, side, 2, side, 2).transpose(-3, -2)
    return x.reshape(*outer, side * side, QUARTERS)


def quarter_rays(c2w_BF44: Tensor, side: int, tangent: float) -> tuple[Tensor, Tensor]:
    """Camera centres [B, T, 3] and world rays [B, T, QUARTERS, 3] of unit length along the camera's z axis."""
    B, F = c2w_BF44.shape[:2]
    grid = _pixel_rays(2 * side, tangent, c2w_BF44.device).T.reshape(3, 2 * side, 2 * side)
    camera = quarters(grid, side).permute(1, 2, 0)  # [S, QUARTERS, 3]
    ray = torch.einsum("bfij,sqj->bfsqi", c2w_BF44[..., :3, :3], camera)
    eye = c2w_BF44[:, :, None, :3, 3].expand(B, F, side * side, 3)
    return eye.reshape(B, -1, 3), ray.reshape(B, -1, QUARTERS, 3)


def surface_features(log_depth_BTQ: Tensor, eye_BT3: Tensor, ray_BTQ3: Tensor) -> Tensor:
    """Sinusoids of the guessed surface's place on the ground, its height, and the guess: [B, T, Q * 22] float32."""
    log_depth = log_depth_BTQ.clamp(*LOG_DEPTH_RANGE)
    point = eye_BT3[..., None, :] + log_depth.exp()[..., None] * ray_BTQ3
    waves = 2 * torch.pi / torch.tensor(_POSITION_WAVES, device=point.device)
    angle = (point[..., [0, 2], None] * waves).flatten(-2)
    height = point[..., 1:2].clamp(-2, 1)
    return torch.cat([angle.sin(), angle.cos(), height, log_depth[..., None]], -1).flatten(-2)


def reach_features(c2w_BF44: Tensor, side: int, tangent: float) -> Tensor:
    """Sinusoids of the places on the ground along each token's ray, [B, F * side * side, REACH_FEATURES] float32.

    A key knows where its surface is (`surface_features`, of the same waves). A token that is still noise does not: with
    these in its query, attention finds the surfaces that lie along its ray.
    """
    c2w = c2w_BF44.float()
    B, F = c2w.shape[:2]
    ray = torch.einsum("bfij,sj->bfsi", c2w[..., :3, :3], _pixel_rays(side, tangent, c2w.device))
    reach = torch.tensor(_REACHES, device=c2w.device)
    point = c2w[:, :, None, None, :3, 3] + reach[:, None] * ray[..., None, :]
    waves = 2 * torch.pi / torch.tensor(_POSITION_WAVES, device=c2w.device)
    angle = (point[..., [0, 2], None] * waves).flatten(3)
    return torch.cat([angle.sin(), angle.cos()], -1).reshape(B, F * side * side, REACH_FEATURES)


def ray_features(c2w_BF44: Tensor, side: int, tangent: float) -> Tensor:
    """The ray through each token's middle, [B, F * side * side, RAY_FEATURES] float32.

    Pluecker coordinates (direction, moment), the camera centre, and sinusoids of position and heading, which let
    attention compare places at several scales.
    """
    c2w = c2w_BF44.float()
    B, F = c2w.shape[:2]
    camera_ray = fn.normalize(_pixel_rays(side, tangent, c2w.device), dim=-1)
    ray = torch.einsum("bfij,sj->bfsi", c2w[..., :3, :3], camera_ray)
    eye = c2w[..., None, :3, 3].expand_as(ray)
    waves = 2 * torch.pi / torch.tensor(_POSITION_WAVES, device=c2w.device)
    place = (eye[..., [0, 2], None] * waves).flatten(-2)
    harmonics = torch.tensor(_HEADING_HARMONICS, device=c2w.device)
    heading = torch.atan2(ray[..., 0], ray[..., 2])[..., None] * harmonics
    parts = [
        place.sin(),
        place.cos(),
        heading.sin(),
        heading.cos(),
        ray,
        torch.linalg.cross(eye, ray) / 4,
        eye / 4,
    ]
    return torch.cat(parts, -1).reshape(B, F * side * side, RAY_FEATURES)
