"""The tiered store of evicted chunks: which to bring back, how to shrink them, where they live."""
