import itertools

import pytest
import torch

from tar3d.gpt.linear_attention import (
    alibi_slopes,
    chunked,
    layer_slopes,
    recurrent_step,
    reference,
)

B, H, D, C = 2, 3, 5, 8
LENGTHS = [1, C - 1, C, C + 1, 3 * C + 7]


def _inputs(T: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, B, H, T, D, generator=generator, dtype=torch.float64).to(dtype)
    return q, k, v


def _state(seed: int = 1) -> torch.Tensor:
    return torch.randn(
        B, H, D, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def _by_definition(q, k, v, slopes, state=None):
    """The sum over s <= t, written out."""
    T = q.shape[2]
    o = torch.zeros_like(v)
    for h in range(H):
        for t in range(T):
            for s in range(t + 1):
                o[:, h, t] += (
                    torch.exp(-slopes[h] * (t - s))
                    * (q[:, h, t] * k[:, h, s]).sum(-1, keepdim=True)
                    * v[:, h, s]
                )
            if state is not None:
                o[:, h, t] += torch.exp(-slopes[h] * (t + 1)) * torch.einsum(
                    "bd,bde->be", q[:, h, t], state[:, h]
                )
    return o


def _recurrent(q, k, v, slopes, state=None):
    outputs = []
    for t in range(q.shape[2]):
        o, state = recurrent_step(
            q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], slopes, state
        )
        outputs.append(o)
    return torch.cat(outputs, 2), state


def _chunked(q, k, v, slopes, state=None):
    return chunked(q, k, v, slopes, state, chunk_size=C)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("T", [1, 7, 12])
def test_reference_is_the_definition(T, with_state):
    q, k, v = _inputs(T)
    state = _state() if with_state else None
    slopes = torch.tensor([0.0, 0.3, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        reference(q, k, v, slopes, state)[0], _by_definition(q, k, v, slopes, state)
    )


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("form", [_chunked, _recurrent])
def test_forms_agree_in_outputs_states_and_gradients(form, T, with_state):
    slopes = alibi_slopes(H).double()
    weights = torch.randn(
        B, H, T, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    results = []
    for function in (reference, form):
        leaves = [x.clone().requires_grad_() for x in _inputs(T)] + (
            [_state().requires_grad_()] if with_state else []
        )
        o, final = function(*leaves[:3], slopes, *leaves[3:])
        ((o * weights).sum() + final.square().sum()).backward()
        results.append([o, final, *(x.grad for x in leaves)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("T", LENGTHS)
def test_float32_forms_agree(T):
    q, k, v = _inputs(T, torch.float32)
    expected = reference(q.double(), k.double(), v.double(), alibi_slopes(H))
    for got in (_chunked(q, k, v, alibi_slopes(H)), _recurrent(q, k, v, alibi_slopes(H))):
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [reference, _chunked])
@pytest.mark.parametrize("split", [1, C, C + 3])
def test_a_carried_state_continues_the_sequence(function, split):
    q, k, v = _inputs(3 * C + 7)
    slopes = alibi_slopes(H).double()
    whole, whole_state = reference(q, k, v, slopes)
    first, state = function(q[:, :, :split], k[:, :, :split], v[:, :, :split], slopes)
    second, state = function(q[:, :, split:], k[:, :, split:], v[:, :, split:], slopes, state)
    torch.testing.assert_close(torch.cat([first, second], 2), whole)
    torch.testing.assert_close(state, whole_state)


def _with_lengths(function, *args, **kwargs):
    return (
        chunked(*args, chunk_size=C, **kwargs)
        if function is _chunked
        else function(*args, **kwargs)
    )


@pytest.mark.parametrize("function", [reference, _chunked])
@pytest.mark.parametrize("with_state", [False, True])
def test_padding_neither_enters_nor_decays_the_state(function, with_state):
    T, slopes, state = 3 * C + 7, alibi_slopes(H).double(), _state() if with_state else None
    q, k, v = _inputs(T)
    for short in (*LENGTHS, 0):
        lengths = torch.tensor([short, T])
        o, final = _with_lengths(function, q, k, v, slopes, state, lengths=lengths)
        for row, length in enumerate(lengths.tolist()):
            first = None if state is None else state[row : row + 1]
            if length == 0:
                torch.testing.assert_close(
                    final[row], torch.zeros_like(final[row]) if state is None else state[row]
                )
                continue
            alone = [x[row : row + 1, :, :length] for x in (q, k, v)]
            expected, expected_state = reference(*alone, slopes, first)
            torch.testing.assert_close(o[row : row + 1, :, :length], expected)
            torch.testing.assert_close(final[row : row + 1], expected_state)


@pytest.mark.parametrize("function", [reference, _chunked])
@pytest.mark.parametrize("t", [0, C - 1, C, 2 * C + 3])
def test_causality(function, t):
    q, k, v = _inputs(3 * C)
    slopes = alibi_slopes(H).double()
    before, _ = function(q, k, v, slopes)
    k, v = k.clone(), v.clone()
    k[:, :, t] += 1.0
    v[:, :, t] -= 1.0
    after, _ = function(q, k, v, slopes)
    assert torch.equal(before[:, :, :t], after[:, :, :t])
    assert not torch.allclose(before[:, :, t:], after[:, :, t:])


@pytest.mark.parametrize("slope", [0.0, 1e-6, 0.7, 50.0, 1e4])
def test_extreme_decays_are_exact_with_finite_gradients(slope):
    slopes = torch.full((H,), slope)
    leaves = [x.requires_grad_() for x in _inputs(3 * C + 7, torch.float32)]
    o, state = _chunked(*leaves, slopes)
    (o.square().sum() + state.square().sum()).backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    torch.testing.assert_close(o, reference(*leaves, slopes)[0], rtol=1e-4, atol=1e-4)


def test_ten_thousand_tokens_stay_finite_in_bfloat16_and_close_to_float32():
    q, k, v = _inputs(10_000, torch.float32)
    slopes = torch.tensor([0.0, 0.004, 1.0])
    exact, exact_state = chunked(q, k, v, slopes)
    leaves = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    o, state = chunked(*leaves, slopes)
    o.float().mean().backward()
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert o.isfinite().all() and all(x.grad.isfinite().all() for x in leaves)
    for h in range(H):
        assert (o[:, h].float() - exact[:, h]).norm() < 0.02 * exact[:, h].norm()
        assert (state[:, h] - exact_state[:, h]).norm() < 0.02 * exact_state[:, h].norm()


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
)
def test_state_precision(dtype, expected):
    q, k, v = _inputs(C + 1, dtype)
    for function in (reference, _chunked, _recurrent):
        with torch.autocast("cpu", torch.bfloat16):
            assert function(q, k, v, alibi_slopes(H))[1].dtype == expected


def test_slopes():
    assert alibi_slopes(8).tolist() == [2.0 ** -(h + 1) for h in range(8)]
    assert alibi_slopes(2).tolist() == [2.0**-4, 2.0**-8]
    assert alibi_slopes(6).tolist() == [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    for heads in range(1, 41):
        slopes = alibi_slopes(heads)
        assert len(set(slopes.tolist())) == heads and (slopes > 0).all() and (slopes < 1).all()


def test_deeper_layers_forget_more_slowly():
    layers = [layer_slopes(4, layer, 12) for layer in range(12)]
    assert all((a > b).all() for a, b in itertools.pairwise(layers))
    torch.testing.assert_close(layers[0], alibi_slopes(4), rtol=1e-4, atol=0)
    torch.testing.assert_close(layer_slopes(4, 0, 1), alibi_slopes(4), rtol=1e-4, atol=0)


def test_a_step_is_one_position():
    with pytest.raises(ValueError, match="one position"):
        recurrent_step(*_inputs(2), alibi_slopes(H))
