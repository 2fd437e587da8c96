"""A training step of every kind of GPT uses operations that have a deterministic form on CUDA."""

import pytest
import torch
from networks import small_gpt
from torch.utils._python_dispatch import TorchDispatchMode

from tar3d.contracts import Condition
from tar3d.gpt.gated_attention import _running_sum
from tar3d.runtime import deterministic

# Operations that raise on CUDA under `torch.use_deterministic_algorithms`, by its documentation,
# as far as a sequence model could use them.
NOT_DETERMINISTIC = {
    "cumsum",
    "grid_sampler_2d_backward",
    "histc",
    "kthvalue",
    "median",
    "put_",
    "scatter_reduce",
    "upsample_bilinear2d_backward",
    "upsample_linear1d_backward",
    "upsample_nearest2d_backward",
}


class _OnlyDeterministic(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        floating = isinstance(args[0], torch.Tensor) and args[0].is_floating_point()
        assert not (name in NOT_DETERMINISTIC and floating), name
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("linear_attention", ["lightning", "gated", "delta"])
@pytest.mark.parametrize("n", [1, 3])
def test_a_step_of_a_gpt_has_deterministic_operations(linear_attention, n):
    gpt = small_gpt(tokens_per_step=n, linear_attention=linear_attention, code_predictor_dim=3)
    condition = Condition(torch.randn(2, 6, 5), torch.ones(2, 6, dtype=torch.bool))
    with deterministic(), _OnlyDeterministic():
        gpt(torch.randint(11, (2, 11)), condition).square().mean().backward()
        with pytest.raises(AssertionError, match="cumsum"):
            torch.ones(3).cumsum(0)


def test_running_sums_by_product():
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    with deterministic():
        found = _running_sum(x)
    torch.testing.assert_close(found, x.cumsum(-1))
