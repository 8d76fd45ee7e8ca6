"""The shared chunk tier: every node's chunks in its object store, found and read by the workers of all nodes.

    worker   NodeTier -> Outbox -> Client        one per process
    node     ChunkServer                         one actor per node; owns the bytes that lie there
    cluster  Directory                           a few replicas: who has what; rebuilt from the servers' reports
             ChunkServer over a durable tier     one, where chunks are also written through

Plain Python that knows nothing of Ray, but for `runtime` and `connect`; `server_actor` and `directory_actor` are what
Ray runs.
"""
