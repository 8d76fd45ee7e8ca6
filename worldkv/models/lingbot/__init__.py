"""LingBot-World-Fast and LingBot-World 2.0: worlds from an image, a prompt and camera poses."""
