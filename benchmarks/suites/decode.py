"""The decoding suite: tokens with guidance through `Engine`.

    shape_*        whole shapes with their prefill
    patterns_*     full attention (F), the hybrid (LLLF), linear attention alone (L), at position
                   3,000
    engine         the plain GPT.decode, and the engine that does the same
    backends_*     the backends of a layer's operations, at position 3,000
    cell           a token a step, and the three tokens of a cell a step
    growth_*       the cost of the last tokens over their number T, the batch and the size of the
                   GPT, for the three patterns

Weights are random, float32 on a CPU and bfloat16 on CUDA. All but the whole shapes start in the
middle: caches and states hold random numbers, the position is set, and a call takes a few steps
from there, always the same ones. No time depends on the values in a cache, and a prefill of
thousands of tokens is saved.

`bytes_moved` counts the layers' weights once a step and those of the head once a token, filled
key-value slots as read once and the new one as written, states as read and written.
Embedding rows, activations and logits are left out. GPT-tiny fits in a processor's cache, where
memory is no limit: its fraction of the roofline says little.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Case, Work
from tar3d import config as configuration
from tar3d.config import DECODING_BACKENDS, GPTRunConfig, SamplingConfig, VQVAEConfig, gpt_config
from tar3d.contracts import Condition
from tar3d.gpt.engine import Engine
from tar3d.gpt.layers.full import FullAttention, KVCache
from tar3d.gpt.layers.linear import StateCache
from tar3d.gpt.model import GPT, Cache
from tar3d.gpt.sampling import guide, sample, uniform_draws

SAMPLING = SamplingConfig(cfg_scale=3.0)
PATTERNS = ("F", "LLLF", "L")  # the first is what the others are compared with
POSITION = 3000
TINY_POSITION = 300  # of 432
STEPS = {"cpu": 4, "cuda": 32}  # of a call
# Seconds for so many whole shapes of the hybrid GPT-L on an H200, by batch.
GOALS = {1: 1.0, 16: 4.0}
TINY_CONFIGS = ("configs/vqvae3d_tiny.yaml", "configs/gpt_i23d_tiny.yaml", "GPT-tiny")


def patterns(
    name: str, grid: int, batch: int, position: int | None, device: torch.device
) -> dict[str, Work]:
    """The three patterns from `position` on, None for the last tokens.

    `kv_share` is the share of the key-value cache of F.
    """
    works = {
        pattern: from_position(
            _engine(_gpt(device, name, grid_size=grid, layer_pattern=pattern)),
            name,
            batch,
            position,
        )
        for pattern in PATTERNS
    }
    whole = works[PATTERNS[0]].settings["kv_bytes"]
    for work in works.values():
        work.settings["kv_share"] = work.settings["kv_bytes"] / whole
    return works


def plain_and_engine(name: str, position: int, device: torch.device) -> dict[str, Work]:
    gpt = _shipped(device)[1] if name == "GPT-tiny" else _gpt(device, name)
    return {
        "GPT.decode": plain_from_position(gpt, name, 1, position),
        "engine": from_position(_engine(gpt), name, 1, position),
    }


def token_and_cell(name: str, device: torch.device) -> dict[str, Work]:
    return {
        unit: from_position(_engine(_gpt(device, name, tokens_per_step=n)), name, 1, POSITION)
        for unit, n in (("token", 1), ("cell", 3))
    }


def backends(name: str, batch: int, device: torch.device) -> dict[str, Work | str]:
    gpt, works = _gpt(device, name), {}
    for backend in DECODING_BACKENDS[1:]:  # the first, auto, is one of the others
        try:
            engine = _engine(gpt, backend)
        except ValueError as e:
            works[backend] = str(e)
        else:
            works[backend] = from_position(engine, name, batch, POSITION)
    return works


def from_position(engine: Engine, name: str, batch: int, position: int | None) -> Work:
    """A few steps of the engine: tokens from `position` on are drawn, or the last ones."""
    config, count = engine.config, STEPS[engine.device.type]
    step = _start(config.num_steps, count, position, config.tokens_per_step)
    slot = config.condition_tokens + step
    if engine.static:
        engine.window = (
            engine.capacity
        )  # that of late positions: graphs for the earlier ones are not needed
    engine.prepare(batch, SAMPLING)
    b = engine.buffers
    b.ids.random_(config.codebook_size)
    b.draws.uniform_()
    for tensor in (t for cache in b.caches for t in cache):
        tensor.normal_()
    if b.hints is not None:
        b.hints.normal_()
    if b.valid is not None:
        b.valid.copy_(torch.arange(engine.capacity, device=engine.device) < slot)

    @torch.inference_mode()
    def call() -> None:
        b.step.fill_(step)
        b.slot.fill_(slot)
        for i in range(count):
            engine.advance(slot + i + 1)

    settings = _settings(engine.gpt, name, batch) | {
        "position": step * config.tokens_per_step,
        "backend": engine.backend,
        **memory_bytes(engine),
    }
    bytes_moved, flops = step_cost(engine.gpt, engine.dtype, len(b.hidden), slot + (count - 1) / 2)
    return Work(
        call,
        batch * count * config.tokens_per_step,
        _dtype_name(engine.dtype),
        settings,
        bytes_moved=count * bytes_moved,
        flops=count * flops,
    )


def plain_from_position(gpt: GPT, name: str, batch: int, position: int) -> Work:
    """The same steps by GPT.decode, one token a step.

    Its cache is made here in place of a prefill.
    """
    config, device = gpt.config, gpt.head.weight.device
    count, dtype = STEPS[device.type], _dtype(device)
    step = _start(config.num_steps, count, position, 1)
    slot, rows = config.condition_tokens + step, 2 * batch
    capacity = config.condition_tokens + config.num_steps - 1
    heads = (rows, config.num_heads)
    layers = []
    for block in gpt.blocks:
        if isinstance(block.attention, FullAttention):
            keys, values = torch.randn(
                2, *heads, capacity, config.head_dim, device=device, dtype=dtype
            )
            layers.append(KVCache(keys, values, slot, None))
        else:
            layers.append(
                StateCache(torch.randn(*heads, config.head_dim, config.head_dim, device=device))
            )
    hints = (
        torch.randn(rows, config.num_steps, config.width, device=device)
        if config.code_predictor_dim
        else None
    )
    pending = torch.empty(rows, 0, dtype=torch.int64, device=device)
    cache = Cache(layers, step, hints, torch.randn(rows, config.width, device=device), pending)
    logits, draws = (
        torch.randn(rows, config.codebook_size, device=device),
        torch.rand(batch, count, device=device),
    )

    @torch.inference_mode()
    def call() -> None:
        cache.num_tokens, last = step, logits
        for layer in layers:
            if isinstance(layer, KVCache):
                layer.filled = slot
        with _autocast(device):
            for i in range(count):
                token = sample(guide(*last.chunk(2), SAMPLING.cfg_scale), SAMPLING, draws[:, i])
                last = gpt.decode(token.repeat(2), cache)

    settings = _settings(gpt, name, batch) | {"position": step}
    bytes_moved, flops = step_cost(gpt, dtype, rows, slot + (count - 1) / 2)
    return Work(
        call,
        batch * count,
        _dtype_name(dtype),
        settings,
        bytes_moved=count * bytes_moved,
        flops=count * flops,
    )


def tiny_shape(batch: int, device: torch.device) -> Work:
    """The shipped GPT, as it samples but for the guidance."""
    config, gpt = _shipped(device)
    codes = F.normalize(
        torch.randn(gpt.config.codebook_size, config.gpt.code_predictor_dim, device=device), dim=-1
    )
    sampling = dataclasses.replace(config.sampling, cfg_scale=SAMPLING.cfg_scale)
    return whole_shape(_engine(gpt), TINY_CONFIGS[2], batch, sampling, codes)


def large_shape(backend: str, pattern: str, batch: int, device: torch.device) -> Work:
    work = whole_shape(
        _engine(_gpt(device, "GPT-L", layer_pattern=pattern), backend), "GPT-L", batch, SAMPLING
    )
    return dataclasses.replace(work, goals={"seconds": GOALS[batch]}) if pattern == "LLLF" else work


def whole_shape(
    engine: Engine, name: str, batch: int, sampling: SamplingConfig, codes: Tensor | None = None
) -> Work:
    """From random conditions to all tokens.

    The engine is prepared before: the notes have its `prepare_seconds`.
    """
    config, device = engine.config, engine.device
    shape = (batch, config.condition_tokens, config.condition_width)
    condition = Condition.of(torch.randn(shape, device=device))
    draws = uniform_draws(list(range(batch)), config.num_tokens)
    engine.prepare(batch, sampling, codes)

    def call() -> dict[str, float | int]:
        with _autocast(device):
            engine.run(condition, sampling, draws, codes)
        return {"prepare_seconds": engine.prepare_seconds}

    steps, prefix = config.num_steps, config.condition_tokens
    # The prefill reads the weights as a step does, and multiplies them with the prefixes and the
    # one null prefix.
    bytes_moved, flops = step_cost(
        engine.gpt, engine.dtype, len(engine.buffers.hidden), prefix + (steps - 1) / 2
    )
    prefill = 2 * (batch + 1) * prefix * _matrix_elements(engine.gpt.blocks)
    settings = _settings(engine.gpt, name, batch) | {
        "backend": engine.backend,
        **memory_bytes(engine),
    }
    return Work(
        call,
        batch * config.num_tokens,
        _dtype_name(engine.dtype),
        settings,
        bytes_moved=steps * bytes_moved,
        flops=steps * flops + prefill,
    )


def step_cost(gpt: GPT, dtype: torch.dtype, rows: int, filled: float) -> tuple[float, float]:
    """(bytes, operations) of a step of `rows` with `filled` slots before it.

    Both are linear in `filled`, so it may be a mean.
    """
    config, n = gpt.config, gpt.config.tokens_per_step
    parts: list[tuple[nn.Module, int]] = [(gpt.blocks, 1), (gpt.norm, n), (gpt.head, n)]
    if gpt.cell_head is not None:
        parts += [
            (gpt.merge, 1),
            (gpt.cell_head.before, 1),
            (gpt.cell_head.norms, n),
            (gpt.cell_head.mlps, n),
        ]
    moved = sum(
        times * p.numel() * (dtype.itemsize if p.ndim == 2 else 4)
        for part, times in parts
        for p in part.parameters()
    )
    flops = sum(2 * rows * times * _matrix_elements(part) for part, times in parts)
    full = sum(isinstance(block.attention, FullAttention) for block in gpt.blocks)
    slots = full * rows * config.width * (filled + 1)
    states = (len(gpt.blocks) - full) * rows * config.width * config.head_dim
    return moved + 2 * slots * dtype.itemsize + 2 * states * 4, flops + 4 * slots + 5 * states


def memory_bytes(engine: Engine) -> dict[str, int]:
    """Bytes of the engine's caches: two tensors of keys and values, or one state, a layer."""
    sizes = {"kv_bytes": 0, "state_bytes": 0}
    for cache in engine.buffers.caches:
        sizes["kv_bytes" if len(cache) == 2 else "state_bytes"] += sum(t.nbytes for t in cache)
    return sizes


def _matrix_elements(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.ndim == 2)


def _start(steps: int, count: int, position: int | None, tokens_per_step: int) -> int:
    """The step whose tokens go in first; `count` steps follow it.

    The tokens of the last one are drawn and do not go in.
    """
    last = steps - 1 - count
    return last if position is None else min(position // tokens_per_step, last)


def _settings(gpt: GPT, name: str, batch: int) -> dict[str, object]:
    config = gpt.config
    return {
        "model": name,
        "batch": batch,
        "tokens": config.num_tokens,
        "prefix": config.condition_tokens,
        "pattern": config.layer_pattern,
        "tokens_per_step": config.tokens_per_step,
        "cfg_scale": SAMPLING.cfg_scale,
        "million_parameters": round(gpt.num_parameters() / 1e6, 2),
    }


def _gpt(device: torch.device, name: str, **changes: object) -> GPT:
    with device:
        return GPT(gpt_config(name, **changes)).eval().requires_grad_(False)


def _shipped(device: torch.device) -> tuple[GPTRunConfig, GPT]:
    vqvae, path, name = TINY_CONFIGS
    config = configuration.load_gpt_run(
        path, name, configuration.load(VQVAEConfig, vqvae).tokenizer
    )
    with device:
        return config, GPT(config.gpt).eval().requires_grad_(False)


def _engine(gpt: GPT, backend: str = "auto") -> Engine:
    with _autocast(gpt.head.weight.device):
        return Engine(gpt, backend)


def _dtype(device: torch.device) -> torch.dtype:
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def _growth(name: str, grid: int, batch: int, devices: tuple[str, ...] = ("cpu", "cuda")) -> Case:
    case = f"growth_{name.removeprefix('GPT-')}_{3 * grid * grid}_batch_{batch}"
    return Case(
        case,
        "full",
        "tokens",
        partial(patterns, name, grid, batch, None),
        repeats=5,
        devices=devices,
    )


def _large_shape(backend: str, batch: int, pattern: str = "LLLF") -> Case:
    return Case(
        f"shape_{pattern}_{backend}_batch_{batch}",
        "full",
        "tokens",
        partial(large_shape, backend, pattern, batch),
        repeats=2,
        devices=("cuda",),
    )


CASES = (
    *(_large_shape(backend, batch) for backend in ("triton", "plain") for batch in (1, 16)),
    *(
        Case(
            f"patterns_batch_{batch}",
            "full",
            "tokens",
            partial(patterns, "GPT-B", 32, batch, POSITION),
            repeats=5,
        )
        for batch in (1, 8)
    ),
    Case(
        "backends_batch_1",
        "full",
        "tokens",
        partial(backends, "GPT-L", 1),
        repeats=5,
        devices=("cuda",),
    ),
    _large_shape("auto", 16, "F"),
    _large_shape("auto", 1, "F"),
    Case("engine", "full", "tokens", partial(plain_and_engine, "GPT-B", POSITION), repeats=5),
    Case("cell", "full", "tokens", partial(token_and_cell, "GPT-B"), repeats=5),
    *(_growth("GPT-B", grid, 1) for grid in (64, 16, 32, 48)),
    *(_growth("GPT-B", 32, batch) for batch in (8, 2, 4)),
    *(_growth("GPT-B", 32, batch, ("cuda",)) for batch in (32, 16)),
    *(_growth(name, 32, 1) for name in ("GPT-tiny", "GPT-L")),
    _growth("GPT-XL", 32, 1, ("cuda",)),
    *(_large_shape("compiled", batch) for batch in (1, 16)),
    *(
        Case(f"shape_batch_{batch}", "tiny", "tokens", partial(tiny_shape, batch), repeats=3)
        for batch in (1, 4, 8)
    ),
    Case(
        "engine", "tiny", "tokens", partial(plain_and_engine, "GPT-tiny", TINY_POSITION), repeats=10
    ),
)
