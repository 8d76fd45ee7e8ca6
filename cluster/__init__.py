"""The Ray runtime: jobs over workers on many GPUs and nodes. Mechanism only; the one package that imports ray.

Start reading at `cluster.jobs`: a job is driven there, batch by batch, to the bytes that one process would have made.
"""
