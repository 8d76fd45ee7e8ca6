"""One model over several processes, its ranks: what they tell each other, and which part of the weights each holds.

A rank computes with its own heads and its own part of the linears, and holds the keys and values of its heads only.
What all have to know is gathered; what each has computed a part of is summed. How bytes get from one to another is the
business of whoever starts the ranks (`cluster/sharding.py`): here it is a Protocol, and `Alone` for one process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import xxhash
from torch import Tensor, nn

from worldkv.errors import ModelError


class Ranks(Protocol):
    """The processes of one model as one of them sees them. All must make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """This process, from 0."""
        ...

    @property
    def size(self) -> int:
        """How many there are."""
        ...

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """All ranks' tensors, equal in shape, one after the other along `dim`; the same bits everywhere. Blocks."""
        ...

    def scatter_sum(self, x: Tensor, dim: int) -> Tensor:
        """This rank's share along `dim`, one of `size` equal ones, of the sum of all ranks' tensors. Blocks."""
        ...


class Alone:
    """One process: whatever is gathered or summed is what it has."""

    rank, size = 0, 1

    def gather(self, x: Tensor, dim: int) -> Tensor:
        """The tensor itself."""
        return x

    def scatter_sum(self, x: Tensor, dim: int) -> Tensor:
        """The tensor itself."""
        return x


ALONE = Alone()


def total(ranks: Ranks, x: Tensor) -> Tensor:
    """Sum over ranks, added up in the order of ranks on each of them: the same bits everywhere, for decisions."""
    return x if ranks.size == 1 else ranks.gather(x[None], 0).sum(0)


def agreed(ranks: Ranks, flags: Sequence[bool], device: torch.device) -> list[bool]:
    """Which flags are set on all ranks; `device` is the model's."""
    if ranks.size == 1 or not flags:
        return list(flags)
    everywhere: list[bool] = ranks.gather(torch.tensor([flags], dtype=torch.uint8, device=device), 0).amin(0).tolist()
    return list(map(bool, everywhere))


def joint_epoch(ranks: Ranks, epoch: str, device: torch.device) -> str:
    """Epoch of one rank's KV: it depends on the weights of all ranks, and fits this place among them only."""
    if ranks.size == 1:
        return epoch
    own = torch.frombuffer(bytearray(xxhash.xxh3_128_digest(epoch.encode())), dtype=torch.uint8)
    digests = ranks.gather(own.to(device), 0).cpu().numpy().tobytes()
    return f"{xxhash.xxh3_128_hexdigest(digests)}-{ranks.rank}of{ranks.size}"


def check_heads(heads: int, ranks: Ranks) -> None:
    """Raise ModelError unless the ranks can have equally many heads."""
    if heads % ranks.size:
        raise ModelError(
            f"{heads} heads cannot be shared out among {ranks.size} ranks: their number must divide {heads}"
        )


@dataclass(frozen=True)
class Slice:
    """What one rank holds of a tensor: start..stop-1 along `dim`, where there are `whole`."""

    dim: int
    whole: int
    start: int
    stop: int

    @classmethod
    def own(cls, dim: int, whole: int, ranks: Ranks) -> Slice:
        """This rank's; of unequal ones where `whole` does not divide."""
        return cls(dim, whole, *(whole * edge // ranks.size for edge in (ranks.rank, ranks.rank + 1)))

    @property
    def length(self) -> int:
        """Along `dim`."""
        return self.stop - self.start

    def cut(self, whole: Tensor) -> Tensor:
        """A view of this rank's part."""
        return whole.narrow(self.dim, self.start, self.length)

    def whole_shape(self, own: Sequence[int]) -> tuple[int, ...]:
        """Shape of the tensor of which `own` is the shape of this part."""
        return (*own[: self.dim], self.whole, *own[self.dim + 1 :])


class Sliced(nn.Module):
    """A module whose parameters are parts of published tensors."""

    slices: Mapping[str, Slice]
    """By the name of the parameter."""


def slices_of(network: nn.Module) -> dict[str, Slice]:
    """By the name of the parameter; those that are not there are held whole."""
    found = ((name, module) for name, module in network.named_modules() if isinstance(module, Sliced))
    return {f"{name}.{own}": part for name, module in found for own, part in module.slices.items()}
