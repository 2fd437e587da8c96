"""The three forms of data-dependent decay and the gated delta rule are one function."""

import pytest
import torch
import torch.nn.functional as F

from tar3d.gpt import linear_attention
from tar3d.gpt.gated_attention import chunked, recurrent_step, reference

B, H, D, C = 2, 3, 5, 8
LENGTHS = [1, C - 1, C, C + 1, 3 * C + 7]
with_delta = pytest.mark.parametrize("delta", [False, True], ids=["gated", "delta"])


def _inputs(T: int, delta: bool, dtype: torch.dtype = torch.float64) -> list[torch.Tensor | None]:
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, B, H, T, D, generator=random, dtype=torch.float64)
    decay, beta = torch.rand(2, B, H, T, generator=random, dtype=torch.float64)
    return [
        x if x is None else x.to(dtype)
        for x in (q, F.normalize(k, dim=-1), v, decay.log(), beta if delta else None)
    ]


def _state() -> torch.Tensor:
    return torch.randn(B, H, D, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _by_definition(q, k, v, log_decay, beta, state):
    """The two equations, written out with matrices."""
    outputs = []
    for t in range(q.shape[2]):
        column, a = k[:, :, t, :, None], log_decay[:, :, t].exp()[..., None, None]
        b = 1.0 if beta is None else beta[:, :, t][..., None, None]
        forget = torch.eye(D, dtype=q.dtype) - (
            0.0 if beta is None else b * column @ column.transpose(-1, -2)
        )
        state = a * forget @ state + b * column * v[:, :, t, None]
        outputs.append(q[:, :, t, None] @ state)
    return torch.cat(outputs, 2), state


def _chunked(*args, **kwargs):
    return chunked(*args, **kwargs, chunk_size=C)


@with_delta
def test_reference_is_the_definition(delta):
    inputs = _inputs(7, delta)
    for got, expected in zip(
        reference(*inputs, _state()), _by_definition(*inputs, _state()), strict=True
    ):
        torch.testing.assert_close(got, expected)


@with_delta
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
def test_chunks_are_the_reference_in_outputs_states_and_gradients(T, carried, delta):
    weights = torch.randn(
        B, H, T, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    results = []
    for function in (reference, _chunked):
        leaves = [x if x is None else x.clone().requires_grad_() for x in _inputs(T, delta)]
        leaves += [_state().requires_grad_()] if carried else []
        o, final = function(*leaves)
        ((o * weights).sum() + final.square().sum()).backward()
        results.append([o, final, *(x.grad for x in leaves if x is not None)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@with_delta
@pytest.mark.parametrize("function", [reference, _chunked])
def test_padding_neither_enters_nor_decays_the_state(function, delta):
    T = 3 * C + 7
    inputs = _inputs(T, delta)
    for short in (*LENGTHS, 0):
        o, final = function(*inputs, _state(), lengths=torch.tensor([short, T]))
        if short == 0:
            torch.testing.assert_close(final[0], _state()[0])
            continue
        expected, state = reference(
            *(x if x is None else x[:1, :, :short] for x in inputs), _state()[:1]
        )
        torch.testing.assert_close(o[:1, :, :short], expected)
        torch.testing.assert_close(final[:1], state)


@with_delta
def test_a_carried_state_continues_the_sequence(delta):
    inputs, split = _inputs(3 * C + 7, delta), C + 3
    whole, last = reference(*inputs)
    first, state = _chunked(*(x if x is None else x[:, :, :split] for x in inputs))
    second, state = _chunked(*(x if x is None else x[:, :, split:] for x in inputs), state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(state, last)


def test_fixed_decays_are_lightning_attention():
    q, k, v, _, _ = _inputs(3 * C + 7, False)
    slopes = linear_attention.alibi_slopes(H).double()
    fixed = -slopes[:, None].expand(B, H, q.shape[2])
    for got, expected in zip(
        _chunked(q, k, v, fixed, None), linear_attention.reference(q, k, v, slopes), strict=True
    ):
        torch.testing.assert_close(got, expected)


@with_delta
def test_extreme_decays_and_bfloat16_stay_finite_with_states_in_float32(delta):
    q, k, v, decay, beta = _inputs(3 * C + 7, delta, torch.bfloat16)
    for log_decay in (
        decay.float(),
        torch.full_like(decay, -1e4).float(),
        torch.zeros_like(decay).float(),
    ):
        leaves = [x.clone().requires_grad_() for x in (q, k, v, log_decay)]
        with torch.autocast("cpu", torch.bfloat16):
            o, state = _chunked(*leaves, beta)
        (o.float().sum() + state.sum()).backward()
        assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
        assert all(x.isfinite().all() for x in (o, state, *(leaf.grad for leaf in leaves)))


def test_more_than_one_position_is_refused_by_the_step():
    with pytest.raises(ValueError, match="one position, got 2"):
        recurrent_step(*_inputs(2, True))
