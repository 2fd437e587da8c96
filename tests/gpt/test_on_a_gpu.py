"""What only a GPU can show and no other file asks: captures beside other threads, the numbering of
devices, and the kernels at the sizes that are trained."""

from __future__ import annotations

import threading

import pytest
import torch
from networks import draw_large_weights, small_gpt

from tar3d.config import SamplingConfig, gpt_config
from tar3d.contracts import Condition
from tar3d.gpt.engine import Engine
from tar3d.gpt.sampling import uniform_draws

pytestmark = pytest.mark.gpu
TOKENS = 12


def tokens(device: str, backend: str = "auto") -> torch.Tensor:
    gpt = draw_large_weights(small_gpt()).to(device).requires_grad_(False)
    condition = Condition(
        torch.linspace(-1, 1, 60, device=device).view(2, 6, 5),
        torch.ones(2, 6, dtype=torch.bool, device=device),
    )
    draws = uniform_draws([0, 1], TOKENS)
    return Engine(gpt, backend).run(condition, SamplingConfig(cfg_scale=2.0), draws).cpu()


@pytest.mark.parametrize("backend", ["plain", "triton"])
def test_graphs_are_captured_beside_a_thread_that_pins_memory(backend):
    stop, pinned = threading.Event(), []

    def pin() -> None:
        while not stop.is_set():
            batch = torch.empty(1 << 16).pin_memory().to("cuda", non_blocking=True)
            pinned.append(batch.numel())

    thread = threading.Thread(target=pin)
    thread.start()
    try:
        for _ in range(3):
            assert torch.equal(tokens("cuda", backend), tokens("cpu", "plain"))
    finally:
        stop.set()
        thread.join()
    assert pinned


def test_a_numbered_device_need_not_be_the_current_one():
    last = torch.cuda.device_count() - 1
    for device in ("cuda:0", f"cuda:{last}"):
        assert torch.equal(tokens(device), tokens("cpu"))
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("size", ["GPT-tiny", "GPT-B", "GPT-L"])
def test_the_kernels_are_right_at_the_sizes_that_are_trained(size, dtype):
    from tar3d.gpt.kernel_check import kernel_fault

    assert kernel_fault(gpt_config(size), torch.device("cuda"), dtype) == ""
