import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worldkv.errors import ConfigError
from worldkv.window import rotary
from worldkv.window.rotary import angles, axis_pairs, grid_token_ids, rotate, shift_time

HEAD_DIMS = st.sampled_from([2, 6, 12, 16, 28, 64, 128])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def placed(x_THD: Tensor, token_ids_T3: Tensor) -> Tensor:
    return rotate(x_THD, *angles(token_ids_T3, x_THD.shape[-1]))


@pytest.mark.parametrize(
    ("head_dim", "pairs"), [(128, (22, 21, 21)), (64, (12, 10, 10)), (28, (6, 4, 4)), (4, (2, 0, 0))]
)
def test_axes_share_the_pairs_as_wan_does(head_dim: int, pairs: tuple[int, int, int]):
    assert axis_pairs(head_dim) == pairs


def test_odd_head_dim_is_refused():
    with pytest.raises(ConfigError, match="head_dim=7"):
        axis_pairs(7)


def test_token_ids_run_by_frame_then_row_then_column():
    ids = grid_token_ids(2, 2, 3, first_frame=5)
    assert ids.shape == (12, 3)
    assert ids[[0, 1, 3, 6, 11]].tolist() == [[5, 0, 0], [5, 0, 1], [5, 1, 0], [6, 0, 0], [6, 1, 2]]


@settings(deadline=None)
@given(HEAD_DIMS, st.integers(0, 10**6), st.integers(-(10**6), 10**6))
def test_norms_are_preserved(head_dim: int, seed: int, first_frame: int):
    x = normal(12, 2, head_dim, seed=seed)
    turned = placed(x, grid_token_ids(2, 2, 3, first_frame=first_frame))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(HEAD_DIMS, st.integers(0, 10**6), st.tuples(*[st.integers(-3000, 3000)] * 3))
def test_scores_depend_on_relative_positions_only(head_dim: int, seed: int, move: tuple[int, int, int]):
    q, k = normal(12, 1, head_dim, seed=seed), normal(12, 1, head_dim, seed=seed + 1)
    ids = grid_token_ids(2, 2, 3)
    here = placed(q, ids)[:, 0] @ placed(k, ids)[:, 0].T
    there_ids = ids + torch.tensor(move)
    there = placed(q, there_ids)[:, 0] @ placed(k, there_ids)[:, 0].T
    torch.testing.assert_close(here, there, atol=2e-5 * head_dim, rtol=0)


@settings(deadline=None)
@given(HEAD_DIMS, st.integers(-5000, 5000), st.integers(-5000, 5000))
def test_shifting_rotated_keys_is_rotating_at_the_new_position(head_dim: int, first_frame: int, delta: int):
    k = normal(12, 2, head_dim)
    shifted = shift_time(placed(k, grid_token_ids(2, 2, 3, first_frame=first_frame)), delta)
    direct = placed(k, grid_token_ids(2, 2, 3, first_frame=first_frame + delta))
    torch.testing.assert_close(shifted, direct, atol=5e-6, rtol=0)


def test_origin_changes_nothing_and_shift_leaves_its_input():
    k = normal(4, 2, 64)
    assert torch.equal(placed(k, torch.zeros(4, 3)), k)
    before = k.clone()
    shift_time(k, 3)
    assert torch.equal(k, before)


def test_fractional_positions_lie_between():
    ids = torch.tensor([[0.5, 0.0, 0.0]])
    cos, sin = angles(ids, 64)
    half = rotate(rotate(normal(1, 1, 64), cos, sin), cos, sin)
    torch.testing.assert_close(half, placed(normal(1, 1, 64), torch.tensor([[1, 0, 0]])), atol=1e-6, rtol=0)


def test_far_positions_keep_their_digits():
    far, near = angles(torch.tensor([[10**6 + 1, 0, 0]]), 64), angles(torch.tensor([[10**6, 0, 0]]), 64)
    step = torch.atan2(far[1] * near[0] - far[0] * near[1], far[0] * near[0] + far[1] * near[1])
    assert step[0, 0].item() == pytest.approx(1.0, abs=1e-6)  # the fastest pair turns one radian a frame


class TestBatches:
    def test_shared_ids_serve_every_layer(self):
        x, ids = normal(3, 12, 2, 16), grid_token_ids(2, 2, 3, first_frame=7)
        expected = torch.stack([placed(layer, ids) for layer in x])
        torch.testing.assert_close(placed(x, ids), expected, atol=0, rtol=0)

    def test_each_entry_may_have_its_own_ids(self):
        x = normal(3, 12, 2, 16)
        ids = torch.stack([grid_token_ids(2, 2, 3, first_frame=frame) for frame in (0, 9, 300)])
        expected = torch.stack([placed(*pair) for pair in zip(x, ids, strict=True)])
        torch.testing.assert_close(placed(x, ids), expected, atol=0, rtol=0)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_writing_into_a_window_leaves_its_other_tokens(self, dtype: torch.dtype):
        x, ids = normal(3, 12, 2, 16).to(dtype), grid_token_ids(2, 2, 3, first_frame=7)
        window = torch.full((3, 40, 2, 16), 7.0, dtype=dtype)
        out = rotate(x, *angles(ids, 16), out=window[:, 5:17])
        assert out.data_ptr() == window[:, 5:17].data_ptr()
        assert torch.equal(window[:, 5:17], placed(x, ids))
        assert (window[:, :5] == 7).all()
        assert (window[:, 17:] == 7).all()

    def test_in_place(self):
        x, tables = normal(3, 12, 2, 16), angles(grid_token_ids(2, 2, 3, first_frame=7), 16)
        expected = rotate(x, *tables)
        assert torch.equal(rotate(x, *tables, out=x), expected)

    def test_strides_that_split_pairs(self):
        x, tables = normal(12, 2, 17), angles(grid_token_ids(2, 2, 3), 16)
        odd = x[..., 1:]
        torch.testing.assert_close(rotate(odd, *tables), rotate(odd.contiguous(), *tables), atol=0, rtol=0)
        into = torch.zeros(12, 2, 17)[..., 1:]
        torch.testing.assert_close(rotate(odd, *tables, out=into), rotate(odd, *tables), atol=0, rtol=0)

    def test_bfloat16_is_rounded_once(self):
        x, tables = normal(12, 2, 16).bfloat16(), angles(grid_token_ids(2, 2, 3), 16)
        assert torch.equal(rotate(x, *tables), rotate(x.float(), *tables).bfloat16())


def test_the_form_for_compilers_agrees(monkeypatch: pytest.MonkeyPatch):
    x, tables = normal(3, 12, 2, 16), angles(grid_token_ids(2, 2, 3, first_frame=7), 16)
    expected = rotate(x, *tables)
    monkeypatch.setattr(rotary.torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, *tables), expected, atol=1e-6, rtol=0)


def test_gradients_pass():
    x = normal(12, 2, 16).requires_grad_()
    rotate(x, *angles(grid_token_ids(2, 2, 3), 16)).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach(), atol=1e-5, rtol=0)
