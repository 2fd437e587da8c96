"""The training suite: a step of the GPT as train_gpt.py takes it, and its parts.

    step          the tiny recipe, or a GPT-L as an H200 would train it: eager, and compiled
    patterns_*    full attention (F) and the hybrid (LLLF), at 3,072 tokens (R 32) and 6,912 (R 48)
    loss          head and cross-entropy: the plain form, parts of the batch (tar3d/gpt/loss.py),
                  PyTorch's own where it has one
    recompute     activation checkpointing: none, of cheap operations, of blocks; and compiled
    muon, adamw   one update: matrix by matrix and in batches; plain and fused
    growth_*      forward, loss and backward over R (16, 32, 48) for both patterns
    memory_*      one step alone in its process, for the peak memory: sizes of GPT, forms of loss,
                  activation checkpointing, R
    fits_*        whether a whole step fits a consumer card

A step is forward, loss, backward, clipping and optimizers. Weights are random, conditions random
embeddings but in tiny/step, which trains its image encoder and its code predictor along. The
precision is that of training: bfloat16 autocast where the device has it, else float32. `flops` are
`GPT.flops` times three: operations that are computed again do not count, nor those of optimizers,
so the share of the limit is the MFU (on a known GPU `mfu` is that of its data sheet).
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from benchmarks.measure import Case, Work
from benchmarks.suites.gpt_step import (
    LOSSES,
    autocast,
    describe_step,
    dropped_rows,
    finish_step,
    optimizers_of,
    step,
)
from tar3d import config as configuration
from tar3d.config import OptimConfig, VQVAEConfig, gpt_config
from tar3d.contracts import Condition
from tar3d.gpt.loss import cross_entropy
from tar3d.gpt.model import GPT
from tar3d.optim.muon import Muon
from tar3d.runtime import resolve_precision
from tar3d.training.memory import gpt_step_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

TINY_CONFIGS = ("configs/vqvae3d_tiny.yaml", "configs/gpt_i23d_tiny.yaml", "GPT-tiny")
PATTERNS = ("F", "LLLF")  # the first is what the other is compared with
GOAL_SPEEDUP = {32: 1.1, 48: 1.5}  # of the hybrid on an H200, by R
GOAL_MFU = 0.45  # of GPT-L on an H200
GOAL_MIB = {"GPT-B": 12 * 1024, "GPT-L": 24 * 1024}  # of GPU memory for a step: consumer cards
LARGE_BATCH = {"cpu": 1, "cuda": 8}
LOSS_ROWS = {"cpu": 3072, "cuda": 8 * 3072}


def tiny_step(device: torch.device) -> Work:
    """The tiny recipe with its image encoder and the rows that only the code predictor sees."""
    from tar3d.condition.conditioner import build_encoder
    from tar3d.conditional_gpt import ConditionalGPT

    tokenizer, path, name = TINY_CONFIGS
    vqvae = configuration.load(VQVAEConfig, tokenizer).tokenizer
    config = configuration.load_gpt_run(path, name, vqvae)
    t, batch = config.train, config.train.global_batch_size
    encoders = {modality: build_encoder(config, modality) for modality in config.conditions}
    model = ConditionalGPT(config, encoders).to(device).train()
    precision = resolve_precision(t.precision, device.type)
    optimizers = optimizers_of(model, config.optim)
    tokens = torch.randint(
        config.gpt.codebook_size,
        (batch + t.code_predictor_rows, config.gpt.num_tokens),
        device=device,
    )
    codes = F.normalize(
        torch.randn(config.gpt.codebook_size, config.gpt.code_predictor_dim, device=device), dim=-1
    )
    side = config.image_encoder.image_size
    pixels = torch.randint(256, (len(tokens), side, side, 3), dtype=torch.uint8, device=device)
    dropped = dropped_rows(batch, device)

    def call() -> None:
        with autocast(device, precision):
            whole = model.condition({"image": pixels}, len(pixels))
            condition = Condition(whole.embeddings[:batch], whole.mask[:batch], whole.full)
            nll = cross_entropy(
                model.gpt.hidden(tokens[:batch, :-1], condition, dropped),
                model.gpt.head.weight,
                tokens[:batch],
            )
            predicted = model.gpt.code_predictor(whole.embeddings, whole.mask)
            code_loss = 1 - F.cosine_similarity(predicted, codes[tokens], dim=-1).mean()
        finish_step(model, optimizers, nll + t.code_predictor_weight * code_loss, config.optim)

    settings = {
        **describe_step(model.gpt, name, batch),
        "code_predictor_rows": t.code_predictor_rows,
    }
    flops = (
        batch * model.gpt.flops(config.gpt.condition_tokens, config.gpt.num_tokens)
        + len(tokens) * encoders["image"].flops()
    )
    return Work(call, batch * config.gpt.num_tokens, precision, settings, flops=3 * flops)


def large_steps(device: torch.device) -> dict[str, Work]:
    """A step of GPT-L, eager and compiled."""
    works = {
        how: step(
            "GPT-L",
            LARGE_BATCH[device.type],
            device,
            activation_checkpointing="cheap" if how == "eager" else "none",
            compile=how == "compiled",
        )
        for how in ("eager", "compiled")
    }
    return {how: dataclasses.replace(work, goals={"mfu": GOAL_MFU}) for how, work in works.items()}


def patterns(
    name: str, grid: int, batch: int, device: torch.device, *, whole: bool = True
) -> dict[str, Work]:
    """A step of each layer pattern; without `whole`, without the optimizers.

    Their part of a step does not grow with the sequence.
    """
    works = {
        pattern: step(
            name,
            batch,
            device,
            compile=device.type == "cuda",
            optimize=whole,
            changes={"grid_size": grid, "layer_pattern": pattern},
        )
        for pattern in PATTERNS
    }
    if whole and grid in GOAL_SPEEDUP and device.type == "cuda":
        works["LLLF"] = dataclasses.replace(works["LLLF"], goals={"speedup": GOAL_SPEEDUP[grid]})
    return works


def recomputing(
    name: str, batch: int, device: torch.device, *, compiled: bool = True, **more: object
) -> dict[str, Work]:
    """A step with each form of activation checkpointing, and last a compiled one.

    Compiling takes a minute: without `compiled` it is left out.
    """
    works = {
        how: step(name, batch, device, activation_checkpointing=how, **more)
        for how in configuration.ACTIVATION_CHECKPOINTING
    }
    return works | (
        {"compiled": step(name, batch, device, compile=True, **more)} if compiled else {}
    )


def fits(name: str, batch: int, activation_checkpointing: str, device: torch.device) -> Work:
    """Memory of a whole step in bfloat16, compared with a consumer card; measured on a GPU.

    Elsewhere the step runs on tensors without data, and `tensor_mib` in the notes is the most that
    they would have held at a time. A GPU needs a little more, for its context, its allocator and
    its kernels.
    """
    if device.type == "cuda":
        work = step(
            name,
            batch,
            device,
            activation_checkpointing=activation_checkpointing,
            precision="bf16-mixed",
        )
        return dataclasses.replace(work, goals={"gpu_mib": GOAL_MIB[name]})

    def call() -> dict[str, float]:
        return {
            "tensor_mib": round(
                gpt_step_bytes(gpt_config(name), OptimConfig(), batch, activation_checkpointing)
                / 2**20,
                1,
            )
        }

    settings = {
        "model": name,
        "batch": batch,
        "recompute": activation_checkpointing,
        "goal_mib": GOAL_MIB[name],
    }
    return Work(
        call,
        2 * batch,
        "bf16-mixed",
        settings,
        reduced="nothing is computed: only the sizes of tensors are followed",
    )


def losses(rows: int, width: int, codes: int, device: torch.device) -> dict[str, Work | str]:
    return {form: one_loss(form, rows, width, codes, device) for form in LOSSES}


def one_loss(form: str, rows: int, width: int, codes: int, device: torch.device) -> Work | str:
    if form == "pytorch" and not hasattr(F, "linear_cross_entropy"):
        return "this PyTorch has no linear_cross_entropy"
    precision = resolve_precision("auto", device.type)
    hidden = torch.randn(1, rows, width, device=device, requires_grad=True)
    weight = (0.02 * torch.randn(codes, width, device=device)).requires_grad_()
    targets = torch.randint(codes, (1, rows), device=device)

    def call() -> None:
        with autocast(device, precision):
            value = LOSSES[form](hidden, weight, targets)
        torch.autograd.grad(value, (hidden, weight))

    return Work(
        call,
        rows,
        precision,
        {"loss": form, "positions": rows, "width": width, "codes": codes},
        flops=6 * rows * width * codes,
    )


def muon(name: str, layers: int, device: torch.device) -> dict[str, Work]:
    """One update of the matrices of so many layers: PyTorch's loop over them, and in batches.

    On a CPU without bfloat16 the second multiplies in float32.
    """
    with device:
        blocks = GPT(gpt_config(name, num_layers=layers)).blocks
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    options = {"lr": 1e-3, "weight_decay": 0.05, "momentum": 0.95}
    return {
        "one by one": _update(
            torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options), name
        ),
        "batches": _update(Muon(matrices, **options), name),
    }


def adamw(name: str, device: torch.device) -> dict[str, Work]:
    """One update of the head and the embedding table."""
    with device:
        gpt = GPT(gpt_config(name, num_layers=1))
    tables = [gpt.head.weight, gpt.token_embedding.weight]
    return {
        label: _update(torch.optim.AdamW(tables, fused=label == "fused"), name)
        for label in ("plain", "fused")
    }


def _update(optimizer: torch.optim.Optimizer, name: str) -> Work:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for p in parameters:
        p.grad = torch.randn_like(p)
    count = sum(p.numel() for p in parameters)
    settings = {
        "model": name,
        "tensors": len(parameters),
        "million_parameters": round(count / 1e6, 2),
    }
    return Work(lambda: optimizer.step(), 1, "float32", settings)


def _growth(grid: int) -> tuple[Case, Case]:
    """The longest on a CPU is a minute a call."""
    name = f"growth_{grid}"
    return (
        Case(
            name,
            "full",
            "tokens",
            partial(patterns, "GPT-B", grid, 1, whole=False),
            repeats=2 if grid < 48 else 1,
            warmup=1 if grid < 48 else 0,
            devices=("cpu",),
        ),
        Case(
            name,
            "full",
            "tokens",
            partial(patterns, "GPT-B", grid, 4, whole=False),
            repeats=5,
            devices=("cuda",),
        ),
    )


def _memory(name: str, build: Callable[[torch.device], Work]) -> Case:
    return Case(f"memory_{name}", "full", "tokens", build, repeats=1, warmup=0)


SMALL = {"num_layers": 4, "grid_size": 6, "codebook_size": 512}
CASES = (
    Case("step", "full", "tokens", large_steps, repeats=10, warmup=3, devices=("cuda",)),
    Case(
        "patterns_3072",
        "full",
        "tokens",
        partial(patterns, "GPT-L", 32, 8),
        repeats=10,
        warmup=3,
        devices=("cuda",),
    ),
    Case(
        "patterns_6912",
        "full",
        "tokens",
        partial(patterns, "GPT-L", 48, 4),
        repeats=5,
        warmup=3,
        devices=("cuda",),
    ),
    Case(
        "loss",
        "full",
        "positions",
        lambda device: losses(LOSS_ROWS[device.type], 768, 16_384, device),
        repeats=3,
    ),
    Case(
        "recompute",
        "full",
        "tokens",
        partial(recomputing, "GPT-B", 1, optimize=False),
        repeats=1,
        devices=("cpu",),
    ),
    Case(
        "recompute",
        "full",
        "tokens",
        partial(recomputing, "GPT-B", 4),
        repeats=10,
        warmup=3,
        devices=("cuda",),
    ),
    *(case for grid in (16, 32, 48) for case in _growth(grid)),
    Case(
        "muon",
        "full",
        "updates",
        partial(muon, "GPT-L", 24),
        repeats=10,
        warmup=2,
        devices=("cuda",),
    ),
    Case("adamw", "full", "updates", partial(adamw, "GPT-L"), repeats=10),
    *(
        Case(
            f"fits_GPT-B_{how}", "full", "rows", partial(fits, "GPT-B", 4, how), repeats=1, warmup=0
        )
        for how in configuration.ACTIVATION_CHECKPOINTING
    ),
    *(
        Case(
            f"fits_GPT-L_{how}", "full", "rows", partial(fits, "GPT-L", 4, how), repeats=1, warmup=0
        )
        for how in configuration.ACTIVATION_CHECKPOINTING[1:]
    ),
    *(
        _memory(
            f"loss_{form}",
            lambda device, form=form: one_loss(form, LOSS_ROWS[device.type], 768, 16_384, device),
        )
        for form in LOSSES
    ),
    *(_memory(f"size_{name}", partial(step, name, 1)) for name in ("GPT-tiny", "GPT-B", "GPT-L")),
    *(
        _memory(
            f"recompute_{how}",
            partial(step, "GPT-B", 1, activation_checkpointing=how, optimize=False),
        )
        for how in configuration.ACTIVATION_CHECKPOINTING
    ),
    *(
        _memory(
            f"grid_{grid}_{pattern}",
            partial(
                step,
                "GPT-B",
                1,
                optimize=False,
                changes={"grid_size": grid, "layer_pattern": pattern},
            ),
        )
        for grid in (16, 32, 48)
        for pattern in PATTERNS
    ),
    Case("step", "tiny", "tokens", tiny_step),
    Case("patterns_108", "tiny", "tokens", partial(patterns, "GPT-tiny", 6, 2)),
    Case("loss", "tiny", "positions", partial(losses, 512, 64, 4096)),
    Case(
        "recompute",
        "tiny",
        "tokens",
        partial(recomputing, "GPT-tiny", 2, compiled=False, changes=SMALL),
    ),
    Case("muon", "tiny", "updates", partial(muon, "GPT-tiny", 2)),
    Case("adamw", "tiny", "updates", partial(adamw, "GPT-tiny"), repeats=10),
    Case("growth_6", "tiny", "tokens", partial(patterns, "GPT-tiny", 6, 1, whole=False)),
    Case(
        "memory_recompute",
        "tiny",
        "tokens",
        partial(step, "GPT-tiny", 2, activation_checkpointing="blocks", changes=SMALL),
    ),
)
