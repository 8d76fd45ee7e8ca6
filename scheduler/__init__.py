"""Pure policy: a snapshot in, a plan out. Forecast, prefetch and placement; never imports torch or ray."""
