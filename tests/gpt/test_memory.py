"""Memory grows with the length of a sequence, not with its square: in both kinds of layer and in
the whole GPT."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tar3d.config import GPTConfig
from tar3d.contracts import Condition
from tar3d.gpt.layers.base import RowLengths
from tar3d.gpt.layers.full import FullAttention
from tar3d.gpt.layers.lightning import LightningAttention
from tar3d.gpt.model import GPT
from tar3d.gpt.rope import TriPE
from tar3d.layouts import build_layout

ROOT = Path(__file__).resolve().parents[2]
WIDTH, HEADS, P, E, V = 32, 2, 6, 5, 40


class Tensors(TorchDispatchMode):
    """Every tensor that an operation within it returns, in forward and backward: `largest` storage
    in bytes, and the shapes that have at least two dimensions of `length` or more."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length, self.largest, self.square = length, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for x in tree_leaves(results):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes())
                if sum(size >= self.length for size in x.shape) >= 2:
                    self.square.add((str(func), tuple(x.shape)))
        return results


def config(**changes) -> GPTConfig:
    return GPTConfig(
        **{
            "num_layers": 4,
            "width": WIDTH,
            "num_heads": HEADS,
            "codebook_size": V,
            "condition_tokens": P,
            "condition_width": E,
            "layer_pattern": "LLLF",
            **changes,
        }
    )


def run_layer(kind: str, grid_size: int) -> Tensors:
    """Forward and backward of one layer over whole rows, then prefill with rows of different
    length."""
    T = 3 * grid_size**2
    layer = (LightningAttention if kind == "L" else FullAttention)(config(), 0)
    of_grid = config(grid_size=grid_size)
    rotary = TriPE(of_grid, build_layout(of_grid)).packed(P, P + T - 1)
    x = torch.randn(2, P + T - 1, WIDTH, requires_grad=True)
    with Tensors(T) as made:
        layer(x, rotary).square().sum().backward()
        layer.prefill(x, rotary, RowLengths(torch.tensor([P + T - 1, T // 2]), 1))
    return made


def run_gpt(grid_size: int) -> Tensors:
    """A training step and prefill with prefixes of different length."""
    gpt = GPT(config(grid_size=grid_size))
    T = gpt.config.num_tokens
    mask = torch.tensor(
        [[True] * P, [False, False, True, False, True, True], [True] + [False] * (P - 1)]
    )
    condition, tokens = Condition(torch.randn(3, P, E), mask), torch.randint(V, (3, T))
    with Tensors(T) as made:
        F.cross_entropy(gpt(tokens[:, :-1], condition).transpose(1, 2), tokens).backward()
        gpt.prefill(condition, tokens[:, :-1])
    return made


def test_the_recorder_sees_forward_and_backward():
    x = torch.randn(50, 4, requires_grad=True)
    with Tensors(50) as made:
        (x @ x.T).softmax(-1).square().sum().backward()
    assert (
        any("softmax_backward" in name for name, _ in made.square) and made.largest == 50 * 50 * 4
    )


@pytest.mark.parametrize(
    "run",
    [lambda R: run_layer("L", R), lambda R: run_layer("F", R), run_gpt],
    ids=["L", "F", "GPT"],
)
def test_the_largest_tensor_grows_with_the_length(run: Callable[[int], Tensors]):
    """From T = 192 to 768 and 3,072: four times as much at each step, where T x T would be sixteen
    times."""
    small, middle, large = run(8), run(16), run(32)
    for made in (small, middle, large):
        assert not made.square, sorted(made.square)
    assert middle.largest < 4.2 * small.largest and large.largest < 4.2 * middle.largest
    assert large.largest < 3072 * 3072  # bytes: a single T x T mask of bool


PEAKS = """
import torch
from tar3d.config import GPTConfig
from tar3d.gpt.layers.lightning import LightningAttention
from tar3d.runtime import peak_resident_bytes

torch.set_num_threads(1)
torch.manual_seed(0)
layer = LightningAttention(GPTConfig(num_layers=4, width=64, num_heads=2), 0)

def step(T):
    x, rotary = torch.randn(1, T, 64, requires_grad=True), (torch.ones(T, 32), torch.zeros(T, 32))
    layer(x, rotary).square().sum().backward()

step(64)  # whatever is loaded once
for T in (4096, 8192, 16384):
    step(T)
    print(peak_resident_bytes())
"""


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="reads Linux's high-water mark of memory"
)
def test_peak_memory_of_a_linear_layer_grows_with_the_length():
    """Doubling T adds what the doubling before added, twice; growth with T^2 would add it four
    times. One T x T matrix of the last length alone would take 1 GiB."""
    # Blocks of 64 KiB and more go back to the system when they are freed: the mark is of what is
    # alive at once.
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "65536",
    }
    done = subprocess.run(
        [sys.executable, "-c", PEAKS],
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, second, third = (int(line) / 2**20 for line in done.stdout.split())  # MiB
    assert second - first > 16, "the mark does not show the layer's memory"
    assert third - second < 2.5 * (second - first), (first, second, third)
    assert third - first < 300
