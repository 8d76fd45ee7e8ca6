"""Exact frames of a layout from any level pose: the ground truth of the rooms model.

Rays are cast per image column through the grid (walls and doorways are vertical), per pixel for the floor, the
undersides of doorways and the objects. A pixel's depth is measured along the camera's z axis.

Coordinates: OpenCV camera axes (x right, y down, z forward); the world's y axis points down too, the camera
travels at y = 0 with the floor EYE below it. Poses must be level (yaw only).

Shapes: B worlds, F video frames, R rows, C columns, G cells per side.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldkv.models.rooms.layout import DOOR, GRID, OBJECTS, PILLAR, WALL

EYE = 0.5
WALL_TOP = 1.0
LINTEL = 0.74
# A ray crosses at most 2 * GRID cell borders before it meets the outer wall.
DDA_STEPS = 2 * GRID
FAR = 1e4
FOG_PER_CELL = 0.055
SUPERSAMPLE = 2


@dataclass(frozen=True)
class View:
    """Image size and field of view; square pixels, principal point in the middle."""

    height: int
    width: int
    focal: float  # pixels

    @property
    def intrinsics(self) -> tuple[float, float, float, float]:
        """fx, fy, cx, cy in pixels."""
        return (self.focal, self.focal, self.width / 2, self.height / 2)


World = dict[str, Tensor]


def render(world: World, c2w_BF44: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """Frames [B, F, R, C, 3] in [0, 1] and depth [B, F, R, C] (FAR for sky) seen from `c2w_BF44`.

    `world` holds the fields of `layout.stack` as tensors on the device of the poses. Colours are averaged over
    SUPERSAMPLE x SUPERSAMPLE rays per pixel; depth is that of the nearest of them.
    """
    B, F = c2w_BF44.shape[:2]
    n = SUPERSAMPLE
    colour, depth = _cast(world, c2w_BF44, View(view.height * n, view.width * n, view.focal * n))
    colour = colour.reshape(B, F, view.height, n, view.width, n, 3).mean((3, 5))
    depth = depth.reshape(B, F, view.height, n, view.width, n).amin((3, 5))
    return colour, depth


def _cast(world: World, c2w: Tensor, view: View) -> tuple[Tensor, Tensor]:
    """One ray per pixel of `view`: colour [B, F, R, C, 3] and depth [B, F, R, C]."""
    u, v = _pixel_slopes(view, c2w.device)
    right, forward, eye = c2w[..., :3, 0], c2w[..., :3, 2], c2w[..., :3, 3]
    dx = forward[..., 0:1] + u * right[..., 0:1]  # [B, F, C]
    dz = forward[..., 2:3] + u * right[..., 2:3]
    px, pz = eye[..., 0:1], eye[..., 2:3]

    hits = _march(world["cells_GG"], px, pz, dx, dz)
    scene = _Scene(world, px[..., None, :], pz[..., None, :], dx[..., None, :], dz[..., None, :], v[:, None])
    colour, depth = scene.sky()
    for layer in (scene.floor(), scene.lintel_underside(), *(scene.wall(*hit) for hit in hits)):
        colour, depth = _nearer(colour, depth, *layer)
    for k in range(OBJECTS):
        colour, depth = _nearer(colour, depth, *scene.thing(*(scene.pick(name, k) for name in _OBJECT_FIELDS)))
    return colour, depth


def compile_parts() -> None:
    """Compile the per-pixel parts for this process: worth it where frames are rendered by the million.

    Part by part, because the compiler takes minutes over the whole.
    """
    for name in ("sky", "floor", "lintel_underside", "wall", "thing"):
        setattr(_Scene, name, torch.compile(getattr(_Scene, name)))


def _pixel_slopes(view: View, device: torch.device) -> tuple[Tensor, Tensor]:
    u = (torch.arange(view.width, device=device) + 0.5 - view.width / 2) / view.focal
    v = (torch.arange(view.height, device=device) + 0.5 - view.height / 2) / view.focal
    return u, v


def _nearer(colour: Tensor, depth: Tensor, new_colour: Tensor, new_depth: Tensor) -> tuple[Tensor, Tensor]:
    closer = new_depth < depth
    return torch.where(closer[..., None], new_colour, colour), torch.where(closer, new_depth, depth)


Hit = tuple[Tensor, Tensor, Tensor, float]  # depth, cell index, side, lowest height of the face


def _march(cells_BGG: Tensor, px: Tensor, pz: Tensor, dx: Tensor, dz: Tensor) -> list[Hit]:
    """Walk each column's ray over the grid: the wall it meets and the first two doorways before it."""
    B = cells_BGG.shape[0]
    flat = cells_BGG.reshape(B, -1)
    shape = dx.shape
    ix, iz = px.floor().long().expand(shape).clone(), pz.floor().long().expand(shape).clone()
    sx, sz = torch.where(dx < 0, -1, 1), torch.where(dz < 0, -1, 1)
    step_x, step_z = 1 / dx.abs().clamp_min(1e-9), 1 / dz.abs().clamp_min(1e-9)
    next_x = torch.where(dx < 0, px - ix, ix + 1 - px) * step_x
    next_z = torch.where(dz < 0, pz - iz, iz + 1 - pz) * step_z

    far, none = torch.full_like(dx, FAR), torch.zeros_like(ix)
    wall, door_1, door_2 = (far, none, none), (far, none, none), (far, none, none)
    for _ in range(DDA_STEPS):
        go_x = next_x < next_z
        depth = torch.minimum(next_x, next_z)
        ix = (ix + torch.where(go_x, sx, 0)).clamp(0, GRID - 1)
        iz = (iz + torch.where(go_x, 0, sz)).clamp(0, GRID - 1)
        next_x = torch.where(go_x, next_x + step_x, next_x)
        next_z = torch.where(go_x, next_z, next_z + step_z)
        # Moving towards +x one meets the cell's west face, and so on.
        side = torch.where(go_x, torch.where(sx > 0, 0, 1), torch.where(sz > 0, 2, 3))
        cell = ix * GRID + iz
        kind = flat.gather(1, cell.reshape(B, -1)).reshape(shape)
        open_so_far = wall[0] >= FAR
        wall = _first(wall, (kind == WALL) & open_so_far, depth, cell, side)
        is_door = (kind == DOOR) & open_so_far
        door_2 = _first(door_2, is_door & (door_1[0] < FAR) & (door_2[0] >= FAR), depth, cell, side)
        door_1 = _first(door_1, is_door & (door_1[0] >= FAR), depth, cell, side)
    return [(*wall, 0.0), (*door_1, LINTEL), (*door_2, LINTEL)]


def _first(
    old: tuple[Tensor, Tensor, Tensor], where: Tensor, depth: Tensor, cell: Tensor, side: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.where(where, depth, old[0]),
        torch.where(where, cell, old[1]),
        torch.where(where, side, old[2]),
    )


class _Scene:
    """Everything a pixel's ray can meet; each method returns the colour and depth it would give.

    Ray of a pixel: position (px + t dx, pz + t dz), height EYE - t v above the floor, at depth t.
    """

    def __init__(self, world: World, px: Tensor, pz: Tensor, dx: Tensor, dz: Tensor, v: Tensor) -> None:
        self.world = world
        self.B = world["cells_GG"].shape[0]
        self.px, self.pz, self.v = px, pz, v
        self.dx, self.dz = dx.expand(*dx.shape[:2], v.shape[0], dx.shape[-1]), dz
        self.dz = dz.expand_as(self.dx)

    def _per_world(self, name: str) -> Tensor:
        return self.world[name].reshape(self.B, 1, 1, 1, -1)

    def _lookup(self, table_BN: Tensor, index: Tensor) -> Tensor:
        """Row `index` [B, ...] of each world's table [B, N] or [B, N, 3]."""
        flat = index.reshape(self.B, -1)
        if table_BN.ndim == 2:
            return table_BN.gather(1, flat).reshape(index.shape)
        rows = table_BN.gather(1, flat[..., None].expand(-1, -1, table_BN.shape[-1]))
        return rows.reshape(*index.shape, -1)

    def _fog(self, colour: Tensor, depth: Tensor) -> Tensor:
        haze = 1 - torch.exp(-FOG_PER_CELL * depth.clamp(0, 50))
        horizon = self._per_world("sky_43")[..., 3:6]
        return colour + (horizon - colour) * haze[..., None]

    def sky(self) -> tuple[Tensor, Tensor]:
        """Gradient, distant mountains by azimuth and a sun: the same from everywhere."""
        colours = self._per_world("sky_43")
        zenith, horizon, mountain, sun = colours.chunk(4, dim=-1)
        angles = self._per_world("sky_angles_6")
        flat = torch.sqrt(self.dx**2 + self.dz**2)
        up = -self.v / flat  # tangent of the elevation
        azimuth = torch.atan2(self.dx, self.dz)
        blend = (up * 1.1).clamp(0, 1)[..., None]
        colour = horizon + (zenith - horizon) * blend
        sun_up = 0.35 + 0.25 * torch.sin(angles[..., 1])
        turn = torch.remainder(azimuth - angles[..., 0] + torch.pi, 2 * torch.pi) - torch.pi
        glow = torch.sigmoid((0.13 - torch.sqrt(turn**2 + (up - sun_up) ** 2)) * 40)
        colour = colour + (sun - colour) * glow[..., None]
        ridge = 0.16 + sum(a * torch.sin(n * azimuth + angles[..., 2 + i]) for i, (n, a) in enumerate(_RIDGES))
        colour = torch.where((up < ridge)[..., None], mountain + (horizon - mountain) * 0.25, colour)
        return colour, torch.full_like(up, FAR)

    def floor(self) -> tuple[Tensor, Tensor]:
        """Two-tone tiles per room, darker along the foot of walls."""
        depth = torch.where(self.v > 0, EYE / self.v.clamp_min(1e-6), FAR).expand_as(self.dx)
        x, z = self.px + depth * self.dx, self.pz + depth * self.dz
        ix, iz = x.floor().clamp(0, GRID - 1).long(), z.floor().clamp(0, GRID - 1).long()
        cell = ix * GRID + iz
        odd = ((x * 2).floor() + (z * 2).floor()).remainder(2)
        tiles = self._lookup(self.world["floor_GG23"].reshape(self.B, -1, 6), cell)
        fade = torch.exp(-0.25 * depth.clamp(0, 50))
        mix = (odd * fade + 0.5 * (1 - fade))[..., None]
        colour = tiles[..., :3] * (1 - mix) + tiles[..., 3:] * mix
        return self._fog(colour * self._foot_shadow(x, z, ix, iz)[..., None], depth), depth

    def _foot_shadow(self, x: Tensor, z: Tensor, ix: Tensor, iz: Tensor) -> Tensor:
        cells = self.world["cells_GG"].reshape(self.B, -1)
        fx, fz = x - ix, z - iz
        shadow = torch.ones_like(fx)
        for di, dj, gap in ((-1, 0, fx), (1, 0, 1 - fx), (0, -1, fz), (0, 1, 1 - fz)):
            near = (ix + di).clamp(0, GRID - 1) * GRID + (iz + dj).clamp(0, GRID - 1)
            solid = (self._lookup(cells, near) == WALL).float()
            shadow = shadow * (1 - 0.4 * solid * torch.exp(-6 * gap.clamp(0, 1)))
        return shadow

    def lintel_underside(self) -> tuple[Tensor, Tensor]:
        """The flat underside of a doorway's beam."""
        depth = torch.where(self.v < 0, (LINTEL - EYE) / (-self.v).clamp_min(1e-6), FAR).expand_as(self.dx)
        x, z = self.px + depth * self.dx, self.pz + depth * self.dz
        cell = x.floor().clamp(0, GRID - 1).long() * GRID + z.floor().clamp(0, GRID - 1).long()
        kind = self._lookup(self.world["cells_GG"].reshape(self.B, -1), cell)
        base = self._lookup(self.world["face_base_GG43"].reshape(self.B, -1, 12)[..., :3], cell)
        return self._fog(base * 0.4, depth), torch.where(kind == DOOR, depth, FAR)

    def wall(self, depth: Tensor, cell: Tensor, side: Tensor, lowest: float) -> tuple[Tensor, Tensor]:
        """A wall face, or a doorway's lintel when `lowest` is above the floor. Column arrays [B, F, C]."""
        x = self.px[..., 0, :] + depth * self.dx[..., 0, :]
        z = self.pz[..., 0, :] + depth * self.dz[..., 0, :]
        along = torch.where(side < 2, z, x)
        along = along - along.floor()
        face = cell * 4 + side
        base = self._lookup(self.world["face_base_GG43"].reshape(self.B, -1, 3), face)[..., None, :, :]
        accent = self._lookup(self.world["face_accent_GG43"].reshape(self.B, -1, 3), face)[..., None, :, :]
        kind = self._lookup(self.world["face_pattern_GG4"].reshape(self.B, -1), face)[..., None, :]
        along, depth_col, side = along[..., None, :], depth[..., None, :], side[..., None, :]
        height = EYE - depth_col * self.v
        fade = torch.exp(-0.12 * (depth_col - 3).clamp_min(0))
        ink = _pattern(kind, along, height / WALL_TOP) * fade + 0.3 * (1 - fade)
        colour = base + (accent - base) * ink[..., None]
        # Sides are lit differently and the foot of a wall is darker: corners read as corners.
        light = torch.where(side == 0, 0.95, torch.where(side == 1, 0.72, torch.where(side == 2, 0.84, 1.0)))
        light = light * (0.72 + 0.28 * (height / 0.35).clamp(0, 1))
        inside = (height >= lowest) & (height <= WALL_TOP)
        return self._fog(colour * light[..., None], depth_col), torch.where(inside, depth_col, FAR)

    def pick(self, name: str, k: int) -> Tensor:
        """Field `name` of object k in every world."""
        return self.world[name][:, k].reshape(self.B, 1, 1, 1, -1)

    def thing(self, xzrh: Tensor, kind: Tensor, base: Tensor, accent: Tensor) -> tuple[Tensor, Tensor]:
        """An object: a two-tone ball on the floor or a banded pillar."""
        cx, cz, radius, height = xzrh.unbind(-1)
        pillar = kind[..., 0] == PILLAR
        ox, oz, dy = self.px - cx, self.pz - cz, -self.v
        # Quadratic in t of |o + t d| = r: in the ground plane for a pillar, in space for a ball.
        oy, dyb = torch.where(pillar, 0.0, EYE - radius), torch.where(pillar, 0.0, dy)
        a = self.dx**2 + self.dz**2 + dyb**2
        b = self.dx * ox + self.dz * oz + dyb * oy
        c = ox**2 + oz**2 + oy**2 - radius**2
        root = b * b - a * c
        depth = (-b - torch.sqrt(root.clamp_min(0))) / a
        y = EYE + depth * dy
        ok = (root > 0) & (depth > 0.02) & (radius > 0) & (y >= 0) & (~pillar | (y <= height))
        nx, nz = (
            (ox + depth * self.dx) / radius.clamp_min(1e-3),
            (oz + depth * self.dz) / radius.clamp_min(1e-3),
        )
        band = torch.where(pillar, torch.sin(y * 22) > 0.3, torch.sin(3 * torch.atan2(nx, nz)) > 0)
        colour = torch.where(band[..., None], accent, base)
        light = 0.72 + 0.28 * (0.6 * nx + 0.8 * nz)
        return self._fog(colour * light[..., None], depth), torch.where(ok, depth, FAR)


_OBJECT_FIELDS = ("object_xzrh_K4", "object_kind_K", "object_base_K3", "object_accent_K3")
_RIDGES = ((2, 0.05), (5, 0.03), (9, 0.02), (14, 0.012))


def _pattern(kind: Tensor, u: Tensor, h: Tensor) -> Tensor:
    """How much accent colour a face shows at (u along, h up), both in [0, 1]: 0, 1 or a panel's half tone."""
    du, dh = (u - 0.5).abs(), (h - 0.5).abs()
    far = torch.sqrt(du**2 + dh**2)
    ink = [
        torch.zeros_like(u * h),
        ((u * 3).remainder(1) < 0.42) + 0 * h,
        ((h * 4).remainder(1) < 0.4) + 0 * u,
        (((u * 3).floor() + (h * 3).floor()).remainder(2) < 0.5),
        far < 0.3,
        (far < 0.36) & (far > 0.2),
        du + dh < 0.36,
        (torch.minimum(du, dh) < 0.1) & (torch.maximum(du, dh) < 0.36),
        torch.maximum(du, dh) < 0.28,
        (h < 0.3) + 0 * u,
    ]
    out = ink[0]
    for k, mask in enumerate(ink[1:], start=1):
        out = torch.where(kind == k, mask.to(out.dtype), out)
    return out
