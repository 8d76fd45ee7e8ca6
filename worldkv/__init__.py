"""WorldKV: a retrieval memory of KV chunks for autoregressive video world models.

Importing this package loads neither torch nor ray. Start reading at `worldkv.rollout`.
"""

__version__ = "0.1.0"
