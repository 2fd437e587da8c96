"""The Triton kernels against `decode_ops`, in Triton's interpreter and on a GPU.

Triton is interpreted or not from its import on, so this file run as a script compares in the
interpreter and prints the errors.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy
import pytest
import torch
from torch import Tensor

from tar3d.config import SamplingConfig
from tar3d.gpt import decode_ops
from tar3d.gpt.sampling import draw_misses

ROOT = Path(__file__).resolve().parents[2]
# Largest relative error. Compared are two results rounded to the dtype. The interpreter rounds to
# bfloat16 towards zero.
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


def error(found: Tensor, expected: Tensor) -> float:
    """NaN if anything was not written."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


@contextmanager
def poisoned() -> Iterator[None]:
    """What is allocated without a value is NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


class Drawn:
    """Random inputs of one dtype on one device."""

    def __init__(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> None:
        self.dtype, self.device = dtype, device
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Activations and weights, in the dtype."""
        return self.residual(*shape).to(self.dtype)

    def residual(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def positive(self, *shape: int) -> Tensor:
        """Gains and decays, between 0.5 and 1.5 or below 1."""
        return torch.rand(*shape, generator=self.generator, device=self.device) + 0.5

    def rotary(self, d: int) -> tuple[Tensor, Tensor]:
        angle = 6 * self.positive(d // 2)
        return torch.cat([angle.cos(), angle.cos()]), torch.cat([-angle.sin(), angle.sin()])


def linear_errors(ops, drawn: Drawn, B: int, D: int, N: int) -> list[float]:
    """Of norm_linear, linear_add and norm_swiglu, with N outputs each."""
    x, gain = 30 * drawn.residual(B, D), drawn.positive(D)
    weight, wide = drawn.normal(N, D) / math.sqrt(D), drawn.normal(2 * N, D) / math.sqrt(D)
    narrow, residual = drawn.normal(B, D), drawn.residual(B, N)
    calls: list[Callable] = [
        lambda o: o.norm_linear(x, gain, weight),
        lambda o: o.linear_add(narrow, weight, residual),
        lambda o: o.norm_swiglu(x, gain, wide),
    ]
    with poisoned():
        found = [call(ops) for call in calls]
    return [error(ours, call(decode_ops)) for ours, call in zip(found, calls, strict=True)]


def linear_attend_errors(
    ops, drawn: Drawn, B: int, H: int, d: int, gate: bool, steps: int
) -> list[float]:
    """Of the outputs of a few steps and of the state after them."""
    ours, theirs = (drawn.residual(B, H, d, d),) * 2
    ours = ours.clone()
    fixed = drawn.positive(2, d), drawn.positive(H) - 0.5, drawn.positive(d)
    errors = []
    for _ in range(steps):
        projected, rotary = drawn.normal(B, (3 + gate) * H * d), drawn.rotary(d)
        with poisoned():
            found = ops.linear_attend(projected, *rotary, *fixed, ours)
        errors.append(error(found, decode_ops.linear_attend(projected, *rotary, *fixed, theirs)))
    return [*errors, error(ours, theirs)]


def full_attend_errors(
    ops, drawn: Drawn, B: int, H: int, C: int, d: int, first: int, steps: int, ragged: bool
) -> list[float]:
    """Of the outputs of a few steps and of the slots that they leave; ours are NaN behind them and
    must stay so.

    Ragged rows have padding before slot `first`. What is behind `slot` is then hidden from
    `decode_ops` by the mask, else by the window.
    """
    keys, values = drawn.normal(B, H, C, d), drawn.normal(B, H, C, d)
    ours = [
        cache.clone().index_fill_(2, torch.arange(first, C, device=drawn.device), float("nan"))
        for cache in (keys, values)
    ]
    gain, place, slot = (
        drawn.positive(2, d),
        torch.arange(C, device=drawn.device),
        torch.tensor([first], device=drawn.device),
    )
    lengths = torch.randint(
        first // 2, first + 1, (B, 1, 1, 1), generator=drawn.generator, device=drawn.device
    )
    errors = []
    for step in range(first, first + steps):
        projected, rotary = drawn.normal(B, 3 * H * d), drawn.rotary(d)
        valid = (((place < lengths) | (place >= first)) & (place <= step)) if ragged else None
        window = C if ragged else step + 1
        with poisoned():
            found = ops.full_attend(projected, *rotary, gain, *ours, slot, valid, window)
        errors.append(
            error(
                found,
                decode_ops.full_attend(projected, *rotary, gain, keys, values, slot, valid, window),
            )
        )
        slot += 1
    end = first + steps
    assert all(cache[:, :, end:].isnan().all() for cache in ours)
    return errors + [
        error(cache[:, :, :end], other[:, :, :end])
        for cache, other in zip(ours, (keys, values), strict=True)
    ]


def draw_faults(ops, drawn: Drawn, V: int, spread: float, options: dict) -> list[float]:
    """How far draws are from their tokens' parts; items whose token depends on the others.

    Also counted are items whose token is another than that of the plain form without a draw near
    the end of its part, and what is stored elsewhere or summed otherwise.
    """
    B, T, sampling = 10, 3, SamplingConfig(**options)
    logits = spread * drawn.residual(B, V)
    draws = torch.rand(B, T, generator=drawn.generator, device=drawn.device)
    draws[0], draws[1] = 0.0, 1.0 - 2.0**-24
    given = logits, sampling, draws, torch.tensor([1], device=drawn.device)

    def stores(rows: int) -> tuple[Tensor, Tensor]:
        ids = torch.full((rows, T), -7, device=drawn.device)
        return torch.ones(rows, device=drawn.device), ids

    (sums, ids), (plain_sums, plain_ids) = stores(B), stores(B)
    with poisoned():
        token = ops.draw_token(*given, sums, ids)
        alone = [
            ops.draw_token(
                logits[i : i + 1].contiguous(), sampling, draws[i : i + 1], given[3], *stores(1)
            )
            for i in (0, B - 1)
        ]
    plain = decode_ops.draw_token(*given, plain_sums, plain_ids)
    miss = draw_misses(logits, sampling, draws[:, 1], token)
    near = draw_misses(logits, sampling, draws[:, 1] - 1e-6, token) > 0
    near |= draw_misses(logits, sampling, draws[:, 1] + 1e-6, token) > 0
    return [
        miss.max().item(),
        ((token != plain) & ~near).sum().item(),
        *((x != token[i]).sum().item() for x, i in zip(alone, (0, B - 1), strict=True)),
        (ids != torch.stack([ids[:, 0], token, ids[:, 0]], 1)).sum().item(),
        (ids[:, 0] + 7).abs().sum().item(),
        error(sums, plain_sums),
    ]


def draw_of_equal_codes(ops, drawn: Drawn) -> list[float]:
    """Tokens other than those of 2 codes by top-k and of 3 by top-p: the first, all as likely."""
    draws, wrong = torch.arange(24)[:, None] / 24 + 0.01, []
    for count, options in ((2, {"top_k": 2}), (3, {"top_p": 0.5})):
        given = torch.zeros(24, 6), SamplingConfig(**options), draws, torch.tensor([0])
        token = ops.draw_token(*given, torch.zeros(24), torch.zeros(24, 1, dtype=torch.int64))
        wrong.append((token != (count * draws[:, 0]).long()).sum().item())
    return wrong


def draw_of_what_is_not_finite(ops, drawn: Drawn) -> list[float]:
    """0: some token is drawn."""
    logits, tokens = drawn.residual(3, 40), []
    logits[0], logits[1, 3], logits[2, 5] = float("nan"), float("nan"), float("inf")
    for options in DRAWS.values():
        ids, position = torch.zeros(3, 1, dtype=torch.int64), torch.tensor([0])
        given = SamplingConfig(**options), torch.full((3, 1), 0.5), position
        tokens.append(ops.draw_token(logits, *given, torch.zeros(3), ids))
    return [float(not all(0 <= int(t) < 40 for token in tokens for t in token))]


# Settings whose filters leave many codes, or few.
DRAWS: dict[str, dict[str, float]] = {
    "": {},
    "greedy": {"temperature": 0},
    "cold": {"temperature": 0.05},
    "top-k": {"top_k": 7},
    "top-k of all": {"top_k": 99999},
    "top-p": {"top_p": 0.9},
    "least top-p": {"top_p": 1e-9},
    "min-p": {"min_p": 0.033},
    "all filters": {"temperature": 1.3, "top_k": 30, "top_p": 0.8, "min_p": 0.033},
}

INTERPRETED = {
    **{
        f"draw, {V} codes {name}": (draw_faults, torch.float32, (V, spread, options))
        for V, spread, names in (
            (16384, 2.0, ("", "all filters")),
            (1000, 3.0, tuple(DRAWS)),
        )
        for name, options in DRAWS.items()
        if name in names
    },
    "draw of equal codes": (draw_of_equal_codes, torch.float32, ()),
    "draw of what is not finite": (draw_of_what_is_not_finite, torch.float32, ()),
    **{f"linear, {B} rows": (linear_errors, torch.float32, (B, 96, 4)) for B in (1, 2, 16, 33)},
    "linear, 3 rows, two blocks": (linear_errors, torch.float32, (3, 600, 10)),
    "linear, 2 rows of bfloat16": (linear_errors, torch.bfloat16, (2, 1040, 10)),
    # Tensor cores. bfloat16 is left to the GPU: the interpreter multiplies its bits as integers.
    **{
        f"linear, {B} rows of float16": (linear_errors, torch.float16, (B, 200, 20))
        for B in (5, 16, 33, 65)
    },
    **{
        f"linear attention, {d} channels{', gate' * gate}": (
            linear_attend_errors,
            torch.float32,
            (B, 2, d, gate, 2),
        )
        for B, d, gate in (
            (1, 64, True),
            (3, 64, False),
            (2, 48, True),
            (2, 100, False),
            (1, 80, True),
        )
    },
    "linear attention, bfloat16": (linear_attend_errors, torch.bfloat16, (2, 2, 64, True, 2)),
    "linear attention, float16": (linear_attend_errors, torch.float16, (2, 2, 64, True, 2)),
    **{
        f"full attention from slot {first}": (
            full_attend_errors,
            torch.float32,
            (2, 2, 54, 64, first, 2, False),
        )
        for first in (0, 15, 52)
    },
    **{
        f"full attention from slot {first}, ragged": (
            full_attend_errors,
            torch.float32,
            (2, 2, 54, 64, first, 2, True),
        )
        for first in (1, 31, 40, 52)
    },
    **{
        f"full attention, {d} channels": (
            full_attend_errors,
            torch.float32,
            (2, 1, 37, d, 15, 2, True),
        )
        for d in (48, 100, 128)
    },
    "full attention, one row": (full_attend_errors, torch.float32, (1, 2, 37, 64, 35, 2, True)),
    "full attention, bfloat16": (full_attend_errors, torch.bfloat16, (2, 1, 37, 64, 20, 2, True)),
    "full attention, float16": (full_attend_errors, torch.float16, (2, 1, 37, 64, 20, 2, True)),
}


def interpret() -> dict[str, list[float]]:
    from tar3d.gpt import decode_triton

    decode_triton.ATTEND_SLOTS, decode_triton.ATTEND_LEAST_SPLITS, decode_triton.ATTEND_PROGRAMS = (
        16,
        1,
        8,
    )  # two splits or more
    return {
        name: errors(decode_triton, Drawn(dtype), *sizes)
        for name, (errors, dtype, sizes) in INTERPRETED.items()
    }


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


@pytest.fixture(scope="module")
def interpreted() -> dict[str, list[float]]:
    triton = pytest.importorskip("triton")
    if version(triton.__version__) < (3, 7) and version(numpy.__version__) >= (2, 4):
        pytest.skip(
            "the interpreter of this Triton cannot take the end of a loop from memory "
            "with this numpy"
        )
    env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, __file__],
        env=env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("name", INTERPRETED)
def test_interpreted_kernels_are_the_operations(interpreted, name):
    bound = BOUNDS[INTERPRETED[name][1]]
    assert all(found <= bound for found in interpreted[name]), interpreted[name]  # False for NaN


@pytest.fixture
def kernels():
    """The module, not interpreted."""
    pytest.importorskip("triton")
    if os.environ.get("TRITON_INTERPRET"):
        pytest.skip("Triton is interpreted in this process")
    from tar3d.gpt import decode_triton

    return decode_triton


def test_what_is_not_supported_is_refused(kernels):
    drawn = Drawn(torch.float32)
    x, gain, weight = drawn.residual(2, 8), drawn.positive(8), drawn.normal(4, 8)
    with pytest.raises(ValueError, match="CUDA device"):
        kernels.norm_linear(x, gain, weight)
    with pytest.raises(ValueError, match="float64"):
        kernels.norm_linear(x.double(), gain, weight)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.norm_linear(x.T.contiguous().T, gain, weight)
    for d in (65, 130):
        with pytest.raises(ValueError, match=f"up to 128, got {d}"):
            kernels.linear_attend(
                drawn.normal(1, 3 * d),
                *drawn.rotary(d),
                gain,
                gain,
                gain,
                drawn.residual(1, 1, d, d),
            )
    with pytest.raises(ValueError, match="projected"):
        kernels.full_attend(
            drawn.normal(1, 32),
            *drawn.rotary(8),
            gain,
            *drawn.normal(2, 1, 1, 4, 8),
            torch.tensor([0]),
            None,
            4,
        )


GPU_BOUNDS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


@pytest.mark.gpu
@pytest.mark.parametrize("B", [1, 2, 4, 5, 16, 32, 33])
@pytest.mark.parametrize("dtype", GPU_BOUNDS, ids=str)
def test_on_a_gpu_linear(kernels, dtype, B):
    drawn = Drawn(dtype, "cuda")
    for D, N in ((1024, 4096), (1024, 2752), (2752, 1024), (1280, 1280), (997, 77)):
        errors = linear_errors(kernels, drawn, B, D, N)
        assert all(found <= GPU_BOUNDS[dtype] for found in errors), (D, N, errors)


@pytest.mark.gpu
@pytest.mark.parametrize("B", [2, 32])
@pytest.mark.parametrize("d", [64, 48, 80, 100, 128])
@pytest.mark.parametrize("dtype", GPU_BOUNDS, ids=str)
def test_on_a_gpu_attention(kernels, dtype, d, B):
    drawn = Drawn(dtype, "cuda")
    errors = [
        found
        for gate in (True, False)
        for found in linear_attend_errors(kernels, drawn, B, 16, d, gate, 3)
    ]
    for first in (0, 1, 63, 64, 1000, 1087, 3265):
        errors += full_attend_errors(
            kernels, drawn, B, 16, 3269, d, first, 3, ragged=first % 2 == 0
        )
    assert all(found <= GPU_BOUNDS[dtype] for found in errors), errors


@pytest.mark.gpu
@pytest.mark.parametrize("B", [2, 32])
@pytest.mark.parametrize("dtype", GPU_BOUNDS, ids=str)
def test_on_a_gpu_in_a_graph(kernels, dtype, B):
    """A linear and a full layer, replayed over positions, are what `decode_ops` makes of them one
    by one."""
    D, F, H, C, first, steps = 1024, 2752, 16, 600, 125, 6
    d, drawn = D // H, Drawn(dtype, "cuda")

    def matrix(rows: int, columns: int) -> Tensor:
        return drawn.normal(rows, columns) / math.sqrt(columns)

    weights = [
        (
            drawn.positive(D),
            matrix((3 + gate) * D, D),
            matrix(D, D),
            drawn.positive(D),
            matrix(2 * F, D),
            matrix(D, F),
        )
        for gate in (True, False)
    ]
    qk_gain, o_gain, decay = drawn.positive(2, d), drawn.positive(d), drawn.positive(H) - 0.5
    cos, sin = (table.clone() for table in drawn.rotary(d))
    x, slot = drawn.residual(B, D), torch.tensor([first], device="cuda")
    valid = torch.arange(C, device="cuda")[None, None, None] <= first
    start = drawn.residual(B, H, d, d), drawn.normal(B, H, C, d), drawn.normal(B, H, C, d)

    def run(ops, x: Tensor, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        for (norm, qkv, o, mlp_norm, gate_up, down), linear in zip(
            weights, (True, False), strict=True
        ):
            projected = ops.norm_linear(x, norm, qkv)
            attended = (
                ops.linear_attend(projected, cos, sin, qk_gain, decay, o_gain, state)
                if linear
                else ops.full_attend(projected, cos, sin, qk_gain, keys, values, slot, valid, C)
            )
            x = ops.linear_add(attended, o, x)
            x = ops.linear_add(ops.norm_swiglu(x, mlp_norm, gate_up), down, x)
        return x

    ours, theirs = ([cache.clone() for cache in start] for _ in range(2))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(kernels, x, *ours)  # compiles
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(kernels, x, *ours)
    for cache, original in zip(ours, start, strict=True):
        cache.copy_(original)
    for step in range(first, first + steps):
        x.copy_(drawn.residual(B, D))
        for table, drawn_table in zip((cos, sin), drawn.rotary(d), strict=True):
            table.copy_(drawn_table)
        slot.fill_(step)
        valid[..., step] = True
        out.fill_(float("nan"))
        graph.replay()
        expected = run(decode_ops, x, *theirs)
        errors = [
            error(out, expected),
            *(error(cache, other) for cache, other in zip(ours, theirs, strict=True)),
        ]
        assert all(found <= 3 * GPU_BOUNDS[dtype] for found in errors), (
            errors
        )  # two layers, one on the other


if __name__ == "__main__":
    print(json.dumps(interpret()))
