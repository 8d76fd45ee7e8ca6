"""The embedded world: procedural rooms with exact ground truth, and a small trained causal model of them.

`layout` draws a random floor plan, `render` shows it from any pose (the ground truth), `paths` walks it,
`network` is the causal DiT, `model` offers it behind `worldkv.models.base`, `train` made its weights.
"""
