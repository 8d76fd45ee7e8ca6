"""Matrix-Game-2.0: worlds from an image, a keyboard and a mouse."""
