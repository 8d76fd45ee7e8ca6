"""A cluster in discrete events, on which the scheduler's own code decides: `scheduler.simulate` runs it."""
