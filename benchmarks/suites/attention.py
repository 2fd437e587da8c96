"""The attention suite: the cost of one layer's attention, and of the pattern of layers.

    forward_*, backward_*    every form at one length; backward is forward and backward
    memory_*                 forward and backward of one form alone in its process, for the peak
                             memory
    blocks                   four blocks of GPT-B forward and backward, FFFF and LLLF, at the length
                             of a training row

q, k and v are 12 heads of 64 and batch 1, float32 on a CPU and bfloat16 on CUDA. The roofline is
the same for every implementation: q, k, v are read and o is written once, and backward
also two gradients are read and three written. A causal softmax has half of the T x T products, a
linear layer the two products of its recurrence, with the delta rule three; backward counts twice
forward.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import Case, Work
from tar3d.config import gpt_config
from tar3d.gpt import linear_attention
from tar3d.gpt.backends import FullBackend, GatedBackend, LinearBackend
from tar3d.gpt.model import GPT

# q, k, v (B, H, T, d), slopes (H,) -> o (B, H, T, d)
Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _full(name: str) -> Attend:
    attend = FullBackend(name, HEAD_DIM)
    return lambda q, k, v, _slopes: attend(q, k, v)


def _linear(name: str) -> Attend:
    attend = LinearBackend(name, HEAD_DIM, CHUNK_SIZE)
    return lambda q, k, v, slopes: attend(q, k, v, slopes, want_state=False)[0]


def _gated(name: str, delta: bool) -> Attend:
    """A state is halved in about 70 positions, and half of each new value is written."""
    attend = GatedBackend(name, HEAD_DIM, CHUNK_SIZE)

    def call(q: Tensor, k: Tensor, v: Tensor, _slopes: Tensor) -> Tensor:
        log_decay, beta = (
            torch.full(q.shape[:-1], value, device=q.device) for value in (-0.01, 0.5)
        )
        return attend(q, k, v, log_decay, beta if delta else None, want_state=False)[0]

    return call


# Each makes its form, or raises ValueError where that is not installed. The first is the baseline.
FULL: dict[str, Callable[[], Attend]] = {
    name: partial(_full, name) for name in ("sdpa", "flash_attn")
}
LINEAR: dict[str, Callable[[], Attend]] = {
    name: partial(_linear, name) for name in ("chunked", "reference", "fla", "lightning_attn")
}
GATED: dict[str, Callable[[], Attend]] = {
    f"{rule}_{name}": partial(_gated, name, rule == "delta")
    for rule in ("gated", "delta")
    for name in ("chunked", "fla")
}
FORMS = FULL | LINEAR | GATED
ON_CPU = ("sdpa", "chunked", "reference", "gated_chunked", "delta_chunked")

BATCH, HEADS, HEAD_DIM, CHUNK_SIZE = 1, 12, 64, 64
PREFIX = 197
LENGTHS = (3072, 12_288, 768, PREFIX + 3072, 6912)  # the most telling first
TINY_LENGTH = 64 + 432
LONGEST_REFERENCE = {
    "cpu": PREFIX + 3072,
    "cuda": 6912,
}  # it holds several T x T matrices for every head


def compare(length: int, backward: bool, device: torch.device) -> dict[str, Work | str]:
    return {
        form: one(form, length, backward, device)
        for form in FORMS
        if device.type in _devices(form, length)
    }


def one(form: str, length: int, backward: bool, device: torch.device) -> Work | str:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        attend = FORMS[form]()
    except ValueError as e:
        return str(e)
    q, k, v, gradient = torch.randn(
        4, BATCH, HEADS, length, HEAD_DIM, device=device, dtype=dtype
    ).unbind()
    k = F.normalize(
        k, dim=-1
    )  # or states of the delta rule would grow; the others take as long for any keys
    inputs = [x.requires_grad_(backward) for x in (q, k, v)]
    slopes = linear_attention.layer_slopes(HEADS, 6, HEADS).to(device)  # of a layer in the middle

    def call() -> None:
        o = attend(*inputs, slopes)
        if backward:
            torch.autograd.grad(o, inputs, gradient)

    settings = {
        "form": form,
        "batch": BATCH,
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "positions": length,
        "backward": backward,
    }
    products = (
        length + 1 if form in FULL else (3 if form.startswith("delta") else 2) * HEAD_DIM
    )  # multiply-adds an entry of v
    return Work(
        call,
        BATCH * length,
        str(dtype).removeprefix("torch."),
        settings,
        bytes_moved=(12 if backward else 4) * q.nbytes,
        flops=(3 if backward else 1) * 2 * q.numel() * products,
    )


def blocks(length: int, device: torch.device) -> dict[str, Work]:
    return {pattern: _blocks(pattern, length, device) for pattern in ("FFFF", "LLLF")}


def _blocks(pattern: str, length: int, device: torch.device) -> Work:
    with device:
        gpt = GPT(
            gpt_config("GPT-B", num_layers=len(pattern), layer_pattern=pattern, codebook_size=1)
        )
    config, cuda = gpt.config, device.type == "cuda"
    rotary = gpt.rope.packed(PREFIX, length)
    x, gradient = torch.randn(2, BATCH, length, config.width, device=device).unbind()
    inputs = [x.requires_grad_(), *gpt.blocks.parameters()]

    def call() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            y = x
            for block in gpt.blocks:
                y = block(y, rotary)
        torch.autograd.grad(y, inputs, gradient)

    matrices = sum(p.numel() for p in gpt.blocks.parameters() if p.ndim == 2)
    full = pattern.count("F")
    attention = config.width * (
        full * (length + 1) + (len(pattern) - full) * 2 * config.head_dim
    )  # multiply-adds a position
    settings = {
        "pattern": pattern,
        "batch": BATCH,
        "positions": length,
        "million_parameters": round(matrices / 1e6, 2),
    }
    return Work(
        call,
        BATCH * length,
        "bf16-mixed" if cuda else "float32",
        settings,
        flops=3 * 2 * BATCH * length * (matrices + attention),
    )


def _devices(form: str, length: int) -> tuple[str, ...]:
    return tuple(
        device
        for device in ("cpu", "cuda")
        if (device == "cuda" or form in ON_CPU)
        and (form != "reference" or length <= LONGEST_REFERENCE[device])
    )


def _memory(form: str, length: int) -> Case:
    return Case(
        f"memory_{length}_{form}",
        "full",
        "positions",
        partial(one, form, length, True),
        repeats=1,
        devices=_devices(form, length),
    )


def _timed(direction: str, length: int, size: str = "full") -> Case:
    return Case(
        f"{direction}_{length}",
        size,
        "positions",
        partial(compare, length, direction == "backward"),
        repeats=3,
    )


CASES = (
    *(_timed(direction, length) for length in LENGTHS for direction in ("backward", "forward")),
    Case("blocks", "full", "positions", partial(blocks, PREFIX + 3072), repeats=2),
    *(_memory(form, length) for form in FORMS for length in LENGTHS),
    *(_timed(direction, TINY_LENGTH, "tiny") for direction in ("forward", "backward")),
    Case("blocks", "tiny", "positions", partial(blocks, TINY_LENGTH), repeats=3),
)
