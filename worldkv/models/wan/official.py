"""The published `config.json` of a causal Wan model, read into a `WanShape`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worldkv.errors import CheckpointError
from worldkv.models.wan.shape import ActionShape, ImageShape, MouseShape, TextShape, WanShape

CAMERA_CHANNELS = {"cam": 6 * 8 * 8, "act": 7 * 8 * 8}
"""By control type: rays, or directions and keys, of the pixels of a latent pixel."""


def shape_of(config: Mapping[str, Any], source: str) -> WanShape:
    """The sizes that a config gives. Raises CheckpointError, naming `source` and the key, where one is amiss."""
    read = _Reader(config, source)
    actions = read.section("action_config") if "action_config" in config else None
    image = ImageShape(read.size("image_dim")) if actions else None
    width, heads = read.size("dim"), read.size("num_heads")
    if width % (2 * heads):
        raise CheckpointError(f"{source}: dim {width} does not divide into {heads} heads of an even size")
    return WanShape(
        width=width,
        mlp_width=read.size("ffn_dim"),
        heads=heads,
        layers=read.size("num_layers"),
        noise_features=read.size("freq_dim"),
        in_channels=read.size("in_dim"),
        out_channels=read.size("out_dim"),
        context=image or TextShape(read.size("text_dim"), read.size("text_len")),
        patch=read.patch(),
        camera_channels=None if actions else CAMERA_CHANNELS[read.choice("control_type", *CAMERA_CHANNELS)],
        actions=_actions(actions, read.size("local_attn_size")) if actions else None,
        eps=float(config.get("eps", WanShape.eps)),
    )


def _actions(read: _Reader, reach: int) -> ActionShape:
    mouse = None
    if read.config.get("enable_mouse", True):
        mouse = MouseShape(read.size("mouse_dim_in"), read.size("mouse_hidden_dim"))
    layers, turning = read.sizes("blocks"), read.sizes("rope_dim_list")
    return ActionShape(
        layers=layers,
        heads=read.size("heads_num"),
        keys=read.size("keyboard_dim_in"),
        embedding=read.size("hidden_size"),
        keyboard_width=read.size("keyboard_hidden_dim"),
        mouse=mouse,
        window=read.size("windows_size"),
        rows_per_latent=read.size("vae_time_compression_ratio"),
        time_pairs=turning[0] // 2,
        theta=float(read.size("rope_theta")),
        reach=reach,
    )


class _Reader:
    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self.config, self.source = config, source

    def section(self, key: str) -> _Reader:
        value = self.config.get(key)
        if not isinstance(value, Mapping):
            raise self._fault(key, "a section")
        return _Reader(value, f"{self.source}: {key}")

    def size(self, key: str) -> int:
        value = self.config.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._fault(key, "a whole number above 0")
        return value

    def sizes(self, key: str) -> tuple[int, ...]:
        value = self.config.get(key)
        if not isinstance(value, list) or not all(isinstance(one, int) and one >= 0 for one in value) or not value:
            raise self._fault(key, "a list of whole numbers")
        return tuple(value)

    def patch(self) -> tuple[int, int, int]:
        frames, rows, columns = self.sizes("patch_size") if len(self.config.get("patch_size", ())) == 3 else (0, 0, 0)
        if frames != 1 or min(rows, columns) < 1:
            raise self._fault("patch_size", "1 and two whole numbers above 0")
        return frames, rows, columns

    def choice(self, key: str, *allowed: str) -> str:
        value = self.config.get(key)
        if value not in allowed:
            raise self._fault(key, f"one of {', '.join(allowed)}")
        return str(value)

    def _fault(self, key: str, wanted: str) -> CheckpointError:
        return CheckpointError(f"{self.source}: {key} is {self.config.get(key)!r}, expected {wanted}")
