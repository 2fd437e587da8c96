import dataclasses

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tar3d.config import SamplingConfig
from tar3d.gpt.sampling import filter_logits, guide, probabilities, sample, uniform_draws

MASSES = torch.tensor([[0.05, 0.5, 0.15, 0.3]])  # best to worst: tokens 1, 3, 2, 0
LOGITS = MASSES.log() + 3.0  # a constant changes nothing


def _kept(logits: torch.Tensor, **options) -> list[int]:
    return (
        filter_logits(logits, SamplingConfig(**options)).isfinite()[0].nonzero().flatten().tolist()
    )


def _draws(*seeds: int) -> torch.Tensor:
    return uniform_draws(list(seeds), 1)[:, 0]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [1]),
        ({"top_k": 2}, [1, 3]),
        ({"top_k": 99}, [0, 1, 2, 3]),
        ({"top_p": 0.01}, [1]),
        ({"top_p": 0.5}, [1]),
        ({"top_p": 0.51}, [1, 3]),
        ({"top_p": 0.8}, [1, 3]),
        ({"top_p": 0.81}, [1, 2, 3]),
        ({"top_p": 0.95}, [1, 2, 3]),
        ({"top_p": 0.96}, [0, 1, 2, 3]),
        ({"min_p": 0.05}, [0, 1, 2, 3]),
        ({"min_p": 0.2}, [1, 2, 3]),
        ({"min_p": 0.5}, [1, 3]),
        ({"min_p": 0.9}, [1]),
        ({"top_k": 3, "top_p": 0.83}, [1, 3]),  # masses over what top-k left: 0.526, 0.316, 0.158
        ({"temperature": 0.5, "top_p": 0.9}, [1, 3]),  # masses 0.685, 0.247, 0.062, 0.007
        ({"temperature": 0.5, "min_p": 0.2}, [1, 3]),  # ratios 1, 0.36, 0.09, 0.01
    ],
)
def test_filters_against_a_table_worked_by_hand(options, kept):
    assert _kept(LOGITS, **options) == kept


@pytest.mark.parametrize("draw", [0.0, 1.0 - 2.0**-24])
def test_the_extreme_draws_never_hit_a_token_that_was_cut(draw):
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(4))
    logits[:, [0, -1]] = -9.0
    tokens = sample(logits, SamplingConfig(top_k=10), torch.full((64,), draw))
    kept = probabilities(logits, SamplingConfig(top_k=10)) > 0
    assert kept.gather(1, tokens[:, None]).all()


def test_ties_do_not_widen_top_k():
    assert len(_kept(torch.zeros(1, 6), top_k=2)) == 2


def test_probabilities_are_renormalised():
    torch.testing.assert_close(probabilities(LOGITS, SamplingConfig()), MASSES)
    torch.testing.assert_close(
        probabilities(LOGITS, SamplingConfig(top_k=2)), torch.tensor([[0, 0.625, 0, 0.375]])
    )
    torch.testing.assert_close(
        probabilities(LOGITS, SamplingConfig(temperature=0)), torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    )


def test_frequencies_follow_the_probabilities():
    config, draws = SamplingConfig(top_k=3), 4000
    tokens = sample(LOGITS.expand(draws, -1), config, _draws(*range(draws)))
    frequencies = torch.bincount(tokens, minlength=4) / draws
    assert frequencies[0] == 0
    torch.testing.assert_close(frequencies[None], probabilities(LOGITS, config), atol=0.03, rtol=0)


def test_seed_repeats():
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).expand(8, -1)
    first = sample(logits, SamplingConfig(), _draws(*range(8)))
    assert torch.equal(first, sample(logits, SamplingConfig(), _draws(*range(8))))
    assert len(set(first.tolist())) > 4


def test_a_row_does_not_depend_on_its_batch_mates():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    together = sample(logits, SamplingConfig(top_p=0.9), _draws(3, 1, 4, 15))
    for row, seed in enumerate((3, 1, 4, 15)):
        assert (
            sample(logits[row : row + 1], SamplingConfig(top_p=0.9), _draws(seed)) == together[row]
        )


def test_temperature_zero_is_greedy_whatever_is_drawn():
    logits = torch.randn(2, 50, generator=torch.Generator().manual_seed(2))
    for draw in (0.0, 0.5, 0.999):
        assert torch.equal(
            sample(logits, SamplingConfig(temperature=0, top_k=5), torch.full((2,), draw)),
            logits.argmax(-1),
        )


def test_draws_of_a_row_depend_on_its_seed_alone():
    together = uniform_draws([3, 1, 4], 100)
    assert together.shape == (3, 100) and together.min() >= 0 and together.max() < 1
    assert torch.equal(uniform_draws([1], 100)[0], together[1]) and torch.equal(
        uniform_draws([4], 20)[0], together[2, :20]
    )
    assert abs(uniform_draws([0], 10_000).mean() - 0.5) < 0.02


def test_a_setting_is_known_to_both_forms_of_the_draw():
    """A new one needs its line in `filter_logits` and its pass in tar3d/gpt/triton_sampling.py."""
    guidance = {"cfg_scale", "code_predictor_scale"}  # before the draw
    drawn = {field.name for field in dataclasses.fields(SamplingConfig)} - guidance
    assert drawn == {"temperature", "top_k", "top_p", "min_p"}


class _NoFloat64(TorchDispatchMode):
    """Refuses float64 on MPS, as Apple's GPUs do."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.device.type == "mps":
            assert found.dtype != torch.float64, function
        return found


def test_a_draw_on_mps_computes_no_float64_there():
    with FakeTensorMode():
        logits, draws = torch.empty(2, 50, device="mps"), torch.empty(2, device="mps")
        with _NoFloat64():
            token = sample(logits, SamplingConfig(top_k=5), draws)
    assert token.device.type == "mps"


def test_guidance():
    conditional, null = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(3))
    assert torch.equal(guide(conditional, null, 1.0), conditional)
    assert torch.equal(guide(conditional, null, 0.0), null)
    torch.testing.assert_close(guide(conditional, null, 7.5), 7.5 * conditional - 6.5 * null)


def test_refusals():
    with pytest.raises(ValueError, match="for 1 rows: each row needs one"):
        sample(LOGITS, SamplingConfig(), _draws(0, 1))
    with pytest.raises(ValueError, match="greedy"):
        filter_logits(LOGITS, SamplingConfig(temperature=0))
