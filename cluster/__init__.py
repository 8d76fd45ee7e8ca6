"""The Ray runtime: workers, the node-wide chunk tier, jobs. Mechanism only; the one package that may import ray."""
