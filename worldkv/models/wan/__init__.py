"""The causal Wan DiT and its VAE: what LingBot-World and Matrix-Game-2.0 have in common."""
