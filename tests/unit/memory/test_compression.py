import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from worldkv.errors import ConfigError
from worldkv.memory.compression import Pruning, gather, kept_tokens

PRUNINGS = st.builds(
    Pruning,
    keep_ratio=st.sampled_from([0.01, 0.25, 1 / 3, 0.5, 0.9, 1.0]),
    rule=st.sampled_from(["centroid", "nearest"]),
    pooled=st.booleans(),
    joint=st.booleans(),
    anchor_frame=st.integers(0, 2),
)


def keys(seed: int, layers: int = 2, tokens: int = 36, heads: int = 2, channels: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(layers, tokens, heads, channels, generator=generator)


@settings(deadline=None)
@given(st.integers(0, 10**6), PRUNINGS)
def test_the_anchor_is_kept_whole_and_the_rest_to_budget(seed: int, pruning: Pruning):
    kept = kept_tokens(keys(seed), 3, pruning)
    rows = kept[None] if pruning.joint else kept
    assert rows.shape == (1 if pruning.joint else 2, 12 + 2 * pruning.kept_per_frame(12))
    anchor = set(range(12 * pruning.anchor_frame, 12 * pruning.anchor_frame + 12))
    for row in rows.tolist():
        assert anchor <= set(row)
        assert len(set(row)) == len(row)
        if not pruning.pooled:
            assert row == sorted(row)
            per_frame = [sum(token // 12 == frame for token in row) for frame in range(3)]
            assert sorted(per_frame)[:2] == [pruning.kept_per_frame(12)] * 2


@settings(deadline=None)
@given(st.integers(0, 10**6), PRUNINGS)
def test_scaling_the_keys_changes_nothing(seed: int, pruning: Pruning):
    k_LTHD = keys(seed)
    assert torch.equal(kept_tokens(k_LTHD, 3, pruning), kept_tokens(4 * k_LTHD, 3, pruning))


def test_joint_is_the_layer_itself_where_there_is_one():
    k_LTHD = keys(1, layers=1)
    for rule in ("centroid", "nearest"):
        alone = kept_tokens(k_LTHD, 3, Pruning(0.5, rule=rule))
        joint = kept_tokens(k_LTHD, 3, Pruning(0.5, rule=rule, joint=True))
        assert torch.equal(alone[0], joint)


def test_each_layer_counts_alone():
    k_LTHD = keys(2, layers=3)
    together = kept_tokens(k_LTHD, 3, Pruning(0.5))
    alone = [kept_tokens(k_LTHD[layer : layer + 1], 3, Pruning(0.5))[0] for layer in range(3)]
    assert torch.equal(together, torch.stack(alone))


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
def test_copies_of_the_anchor_go_first(rule: str):
    k_LTHD = keys(3, layers=1)
    k_LTHD[:, :12] = k_LTHD[:, :1]  # one scene all over the anchor, so that both rules see it
    k_LTHD[:, 12:18] = 2 * k_LTHD[:, :1]
    kept = kept_tokens(k_LTHD, 3, Pruning(0.5, rule=rule))[0].tolist()
    assert not set(kept) & set(range(12, 18))


def test_nearest_knows_an_anchor_token_that_the_centroid_forgets():
    k_LTHD = torch.zeros(1, 12, 1, 4)
    k_LTHD[0, 0, 0, 0] = 1  # a lone anchor token, lost in the mean
    k_LTHD[0, 1:6, 0, 1] = 1
    k_LTHD[0, 6, 0, 0] = 1  # its copy
    k_LTHD[0, 7:, 0] = torch.tensor([0.0, 1.0, 1.5, 0.0])
    assert 6 in kept_tokens(k_LTHD, 2, Pruning(0.5, rule="centroid"))[0].tolist()
    assert 6 not in kept_tokens(k_LTHD, 2, Pruning(0.5, rule="nearest"))[0].tolist()


@pytest.mark.parametrize("rule", ["centroid", "nearest"])
def test_ties_and_zero_keys_keep_the_first_tokens(rule: str):
    kept = kept_tokens(torch.zeros(1, 12, 1, 4), 3, Pruning(0.5, rule=rule))[0]
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 8, 9]


def test_bfloat16_keys_are_compared_in_float32():
    k_LTHD = keys(4).bfloat16()
    assert torch.equal(kept_tokens(k_LTHD, 3, Pruning(0.5)), kept_tokens(k_LTHD.float(), 3, Pruning(0.5)))


def test_one_latent_frame_is_all_anchor():
    assert kept_tokens(keys(5, tokens=6), 1, Pruning(0.1)).tolist() == [list(range(6))] * 2


def test_gather_takes_one_list_or_one_per_layer():
    k_LTHD = keys(6)
    kept_LK = torch.tensor([[0, 5, 7], [1, 2, 30]])
    expected = torch.stack([k_LTHD[0, [0, 5, 7]], k_LTHD[1, [1, 2, 30]]])
    assert torch.equal(gather(k_LTHD, kept_LK), expected)
    assert torch.equal(gather(k_LTHD, kept_LK[0]), k_LTHD[:, [0, 5, 7]])


@pytest.mark.parametrize(
    ("field", "value"), [("keep_ratio", 0.0), ("keep_ratio", 1.1), ("rule", "best"), ("anchor_frame", -1)]
)
def test_a_pruning_that_is_not_allowed_is_refused(field: str, value: object):
    with pytest.raises(ConfigError, match=field):
        Pruning(**{"keep_ratio": 0.5, field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("latent_frames", "anchor"), [(5, 0), (0, 0), (3, 3)])
def test_tokens_must_divide_into_latent_frames(latent_frames: int, anchor: int):
    with pytest.raises(ConfigError, match="36 tokens"):
        kept_tokens(keys(7), latent_frames, Pruning(0.5, anchor_frame=anchor))
