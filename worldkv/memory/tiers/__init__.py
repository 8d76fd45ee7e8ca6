"""Where chunks lie. Tier 0 is nearest; each tier is bounded in bytes."""
