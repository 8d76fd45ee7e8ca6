"""A model over ranks, these being threads: its parts make up the whole, and its numbers are those of one process.

Shapes: L layers, T tokens, H heads, D head dim.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch
from thread_ranks import on_ranks
from torch import Tensor
from torch.nn import functional as fn

from worldkv.errors import ModelError
from worldkv.memory.compression import Pruning, kept_tokens
from worldkv.models.published import named
from worldkv.models.ranks import ALONE, Ranks, Slice, agreed, joint_epoch, slices_of, total
from worldkv.models.wan.actions import ActionChunk
from worldkv.models.wan.layers import Condition
from worldkv.models.wan.network import WanNetwork
from worldkv.models.wan.random_weights import randomise
from worldkv.models.wan.shape import WanShape
from worldkv.models.wan.tokens import Tokens

CPU = torch.device("cpu")
LINGBOT, MATRIX = "lingbot-world-fast", "matrix-game-2-universal"
FRAMES = 3
GRID = (6, 10)
"""Of latent pixels: 15 places, which neither 2 nor 4 ranks can share out evenly."""


def shape_of(name: str) -> WanShape:
    """Four heads; an MLP whose width does not divide by 4."""
    return replace(named(name).shape("tiny"), mlp_width=190)


def network_of(name: str, ranks: Ranks) -> WanNetwork:
    network = WanNetwork(shape_of(name), ranks).requires_grad_(False)
    randomise(network, 0)
    return network


def flow_of(name: str, ranks: Ranks, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor]]:
    """Of one forward, and the un-rotated keys of its layers."""
    network, keys = network_of(name, ranks).to(dtype), []

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys.append(k)
        return fn.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)

    draw = partial(torch.randn, generator=torch.Generator().manual_seed(1))
    shape = network.shape
    latents = draw(2, shape.out_channels, FRAMES, *GRID)
    image = draw(2, shape.image_channels, FRAMES, *GRID)
    condition = Condition(image, network.context(draw(2, 7, shape.context.width)))
    if shape.camera_channels is not None:
        condition = replace(condition, camera=network.camera(draw(2, shape.camera_channels, FRAMES, *GRID)))
    if shape.actions is not None:
        rows = [draw(2, FRAMES, shape.actions.window_rows, width) for width in (shape.actions.keys, 2)]
        condition = replace(condition, actions=ActionChunk(*rows, {}))
    return network(latents, torch.full((2, FRAMES), 500.0), condition, attend), keys


@pytest.mark.parametrize("name", [LINGBOT, MATRIX])
@pytest.mark.parametrize("size", [2, 4])
def test_a_forward_over_ranks_is_that_of_one_process(name: str, size: int):
    expected, expected_keys = flow_of(name, ALONE)
    found = on_ranks(size, partial(flow_of, name))
    for flow, _ in found:
        torch.testing.assert_close(flow, expected, rtol=0, atol=1e-5)
        assert torch.equal(flow, found[0][0])
    for layer, whole in enumerate(expected_keys):
        parts = [keys[layer] for _, keys in found]
        assert parts[0].shape[2] == whole.shape[2] // size
        torch.testing.assert_close(torch.cat(parts, 2), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [LINGBOT, MATRIX])
def test_half_precision_over_ranks_is_as_near_to_float32_as_in_one_process(name: str):
    reference, _ = flow_of(name, ALONE)
    alone, _ = flow_of(name, ALONE, torch.bfloat16)
    sharded = on_ranks(2, partial(flow_of, name, dtype=torch.bfloat16))[0][0]
    errors = [float((flow - reference).square().mean().sqrt()) for flow in (alone, sharded)]
    assert 0 < errors[1] < 1.2 * errors[0]


@pytest.mark.parametrize("name", [LINGBOT, MATRIX])
def test_parts_of_random_weights_make_up_those_of_one_process(name: str):
    whole = network_of(name, ALONE).state_dict()
    networks = on_ranks(4, partial(network_of, name))
    slices = slices_of(networks[0])
    for key, tensor in whole.items():
        parts = [network.state_dict()[key] for network in networks]
        together = torch.cat(parts, slices[key].dim) if key in slices else parts[3]
        assert torch.equal(together, tensor), key


@pytest.mark.parametrize(("name", "most"), [(LINGBOT, 0.51), (MATRIX, 0.58)])
def test_two_ranks_hold_about_half_of_the_weights_each_at_full_size(name: str, most: float):
    def held(ranks: Ranks) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in WanNetwork(named(name).shape(), ranks).parameters())

    whole = held(ALONE)
    for part in on_ranks(2, held):
        assert whole / 2 < part < most * whole


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ModelError, match="4 heads cannot be shared out among 3 ranks: their number must divide 4"):
        on_ranks(3, lambda ranks: WanNetwork(shape_of(LINGBOT), ranks))


@pytest.mark.parametrize("places", [6, 7, 8])
def test_tokens_are_shared_out_and_come_together_again(places: int):
    x_BTE = torch.randn(2, FRAMES * places, 5, generator=torch.Generator().manual_seed(0))

    def there_and_back(ranks: Ranks) -> tuple[Tensor, Tensor]:
        tokens = Tokens(ranks, FRAMES, places)
        own = tokens.own(x_BTE)
        # The sum over ranks of equal tensors is `size` times each.
        return tokens.all(own), tokens.summed(x_BTE) - ranks.size * own

    for together, nothing in on_ranks(3, there_and_back):
        assert torch.equal(together, x_BTE)
        torch.testing.assert_close(nothing, torch.zeros_like(nothing), rtol=0, atol=1e-6)


@pytest.mark.parametrize("whole", [8, 9, 3])
def test_slices_cover_a_tensor_once(whole: int):
    x = torch.arange(2 * whole).view(2, whole)
    slices = on_ranks(4, lambda ranks: Slice.own(1, whole, ranks))
    assert torch.equal(torch.cat([part.cut(x) for part in slices], 1), x)
    assert all(part.whole_shape(part.cut(x).shape) == (2, whole) for part in slices)


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
@pytest.mark.parametrize("joint", [True, False])
def test_ranks_keep_the_tokens_that_one_process_would_keep(rule: str, joint: bool):
    k_LTHD = torch.randn(3, 3 * 20, 4, 8, generator=torch.Generator().manual_seed(2))
    pruning = Pruning(0.4, rule, joint=joint)  # type: ignore[arg-type]  # one of two literals
    expected = kept_tokens(k_LTHD, 3, pruning)
    apart = [kept_tokens(part, 3, pruning) for part in k_LTHD.chunk(2, 2)]
    assert not torch.equal(apart[0], apart[1]), "by their own heads alone they would not agree"

    def kept(ranks: Ranks) -> Tensor:
        return kept_tokens(k_LTHD.chunk(2, 2)[ranks.rank], 3, pruning, partial(total, ranks))

    for found in on_ranks(2, kept):
        assert torch.equal(found, expected)


def test_what_one_rank_lacks_none_has():
    has = [[True, True, False], [True, False, True]]
    assert on_ranks(2, lambda ranks: agreed(ranks, has[ranks.rank], CPU)) == [[True, False, False]] * 2
    assert agreed(ALONE, has[0], CPU) == has[0]


def test_an_epoch_tells_ranks_apart_and_depends_on_the_weights_of_all():
    def epochs(*own: str) -> list[str]:
        return on_ranks(2, lambda ranks: joint_epoch(ranks, own[ranks.rank], CPU))

    assert epochs("a", "b") == epochs("a", "b")
    seen = [*epochs("a", "b"), *epochs("a", "c"), joint_epoch(ALONE, "a", CPU)]
    assert len(set(seen)) == 5
    assert seen[-1] == "a"
