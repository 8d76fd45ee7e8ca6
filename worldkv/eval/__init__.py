"""The memory benchmark: how well each memory policy shows again what the camera has seen before."""
