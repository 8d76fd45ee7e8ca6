"""How the tokens of a chunk are shared out among ranks: each has the same places of every latent frame.

Between attention and linears a rank works on its own places only. What projects sees all tokens; what comes out of a
projection back to the width is summed over ranks, and each keeps its places of the sum. Places that do not divide are
filled up with zeros, which are dropped where tokens come together again.

Shapes: B sessions, F latent frames, S tokens per latent frame, T = F * S tokens, s and t a rank's own, E channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as fn

from worldkv.models.ranks import Ranks


@dataclass(frozen=True)
class Tokens:
    """Those of one chunk."""

    ranks: Ranks
    frames: int
    places: int
    """Tokens per latent frame."""

    def own(self, x_BTE: Tensor) -> Tensor:
        """This rank's of what all ranks have, [B, t, E]."""
        if self.ranks.size == 1:
            return x_BTE
        share = -(-self.places // self.ranks.size)
        return self._filled(x_BTE).narrow(2, self.ranks.rank * share, share).flatten(1, 2)

    def all(self, x_BtE: Tensor) -> Tensor:
        """Of what each rank has for its own, [B, T, E]."""
        if self.ranks.size == 1:
            return x_BtE
        x_BFSE = self.ranks.gather(torch.unflatten(x_BtE, 1, (self.frames, -1)), 2)
        return x_BFSE[:, :, : self.places].flatten(1, 2)

    def summed(self, x_BTE: Tensor) -> Tensor:
        """This rank's of the sum of what ranks have computed for all, [B, t, E]."""
        if self.ranks.size == 1:
            return x_BTE
        return self.ranks.scatter_sum(self._filled(x_BTE), 2).flatten(1, 2)

    def _filled(self, x_BTE: Tensor) -> Tensor:
        """[B, F, S, E] with as many places as divide."""
        x_BFSE = torch.unflatten(x_BTE, 1, (self.frames, -1))
        return fn.pad(x_BFSE, (0, 0, 0, -self.places % self.ranks.size))
