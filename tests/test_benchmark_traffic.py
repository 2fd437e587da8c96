"""The counter of bytes, operations and kernels against sums by hand."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import traffic
from benchmarks.counting import Kernel, Traffic, counting_backend
from tar3d.config import GPTConfig

ROWS, WIDTH, OUT = 32, 64, 48


def counted(call) -> dict[str, float]:
    with FakeTensorMode(), Traffic() as counter:
        made = call()  # what it needs is made before anything counts
        counter.kernels.clear()
        made()
    return traffic.summary(counter.kernels)


def linear(dtype: torch.dtype):
    def make():
        x, weight = torch.empty(ROWS, WIDTH, dtype=dtype), torch.empty(OUT, WIDTH, dtype=dtype)
        return lambda: F.linear(x, weight)

    return make


def elementwise(call):
    def make():
        x, y = torch.empty(ROWS, WIDTH), torch.empty(1, WIDTH).expand(ROWS, WIDTH)
        return lambda: call(x, y)

    return make


FLOATS = 4 * ROWS * WIDTH  # bytes


@pytest.mark.parametrize(
    ("make", "moved", "flops", "kernels"),
    [
        (linear(torch.float32), FLOATS + 4 * OUT * (WIDTH + ROWS), 2 * ROWS * WIDTH * OUT, 1),
        (linear(torch.bfloat16), FLOATS // 2 + 2 * OUT * (WIDTH + ROWS), 2 * ROWS * WIDTH * OUT, 1),
        (elementwise(lambda x, y: x + x), 2 * FLOATS, 0, 1),
        (elementwise(lambda x, y: x + y), 2 * FLOATS + 4 * WIDTH, 0, 1),  # y is one row
        (elementwise(lambda x, y: x.mul_(2)), 2 * FLOATS, 0, 1),
        (elementwise(lambda x, y: x.copy_(y)), FLOATS + 4 * WIDTH, 0, 1),
        (elementwise(lambda x, y: x.softmax(-1)), 2 * FLOATS, 0, 1),
        (elementwise(lambda x, y: x.bfloat16()), 1.5 * FLOATS, 0, 1),
        (elementwise(lambda x, y: x.view(-1, 2).T[1:].detach()), 0, 0, 0),
    ],
)
def test_operations_cost_what_a_hand_counts(make, moved, flops, kernels) -> None:
    found = counted(make)
    assert (found["bytes"], found["product_flops"], found["kernels"]) == (moved, flops, kernels)


class Elementwise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(torch.tanh(F.silu(x)))


def test_compiled_elementwise_operations_are_one_kernel() -> None:
    torch._dynamo.reset()
    counter, block = Traffic(), Elementwise()
    block.compile(backend=counting_backend(counter))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(ROWS, WIDTH)
        block(x)
        with counter:
            counter.kernels.clear()
            block(x)
    found = traffic.summary(counter.kernels)
    assert found["bytes"] == 2 * FLOATS
    assert found["kernels"] == 1


def test_time_allowed_is_that_of_each_kernels_limit() -> None:
    kernels = Counter(
        {Kernel("", "moves", 100, 10, True, 1): 2, Kernel("", "computes", 1, 400, True, 1): 1}
    )
    device = traffic.Device(bytes_per_second=10, half_flops=20, float32_flops=1)
    assert traffic.allowed_seconds(kernels, device) == 2 * 10 + 20
    assert traffic.allowed_seconds(kernels, device, kernel_seconds=15) == 2 * 15 + 20


def test_deep_gpts_are_counted_from_two_depths() -> None:
    config = GPTConfig(
        num_layers=3,
        layer_pattern="L",
        width=32,
        num_heads=2,
        grid_size=4,
        codebook_size=64,
        condition_tokens=2,
        condition_width=8,
    )
    with pytest.MonkeyPatch.context() as patch:
        whole = traffic._gpt_step(config, 2, traffic.BEFORE)
        counted_depths = []
        one = traffic._gpt_step
        patch.setattr(
            traffic,
            "_gpt_step",
            lambda c, *rest: counted_depths.append(c.num_layers) or one(c, *rest),
        )
        found = traffic.summary(traffic.gpt_step(config, 2, traffic.BEFORE))
    assert counted_depths == [1, 2]
    expected = traffic.summary(whole)
    assert found["product_flops"] == pytest.approx(expected["product_flops"])
    assert found["bytes"] == pytest.approx(expected["bytes"], rel=1e-3)


def test_triton_kernels_read_the_weights_and_the_filled_slots_once() -> None:
    plain, triton = (
        traffic.summary(traffic.decoded_token("GPT-tiny", 1, backend, torch.bfloat16))
        for backend in ("plain", "triton")
    )
    assert triton["kernels"] < plain["kernels"] / 4
    assert 2 * triton["product_flops"] > plain["product_flops"]
    assert triton["bytes"] < plain["bytes"]


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(x, 2 * x, x + 1, is_causal=True)


@pytest.mark.parametrize("compiled", [False, True])
def test_causal_attention_counts_half_of_its_products(compiled) -> None:
    torch._dynamo.reset()
    counter, block = Traffic(), Attention()
    if compiled:
        block.compile(backend=counting_backend(counter))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 4, 16, 8, requires_grad=True)
        block(x).sum().backward()
        with counter:
            counter.kernels.clear()
            block(x).sum().backward()
    forward = 4 * 2 * 4 * 16 * 16 * 8 / 2
    assert traffic.summary(counter.kernels)["product_flops"] == 3.5 * forward
