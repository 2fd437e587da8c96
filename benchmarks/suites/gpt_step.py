"""A training step of the GPT, which several suites time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import Work
from tar3d.config import GPTConfig, OptimConfig, gpt_config
from tar3d.contracts import Condition
from tar3d.gpt.loss import cross_entropy
from tar3d.gpt.model import GPT
from tar3d.optim.groups import build_optimizers
from tar3d.runtime import prepare_blocks, resolve_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


@dataclass(frozen=True)
class StepOptions:
    """The options of a timed training step.

    `loss` is a key of LOSSES. Without `optimize` the step ends with the backward pass. Parameters
    whose names begin with one of `frozen` are not trained.
    """

    activation_checkpointing: str = "none"
    compile: bool = False
    precision: str = "auto"
    loss: str = "parts"
    optimize: bool = True
    frozen: tuple[str, ...] = ()


def step(
    name: str,
    batch: int,
    device: torch.device,
    *,
    changes: dict[str, object] | None = None,
    **options: object,
) -> Work:
    """A step of the named GPT with `changes` of its config; `options` are those of StepOptions."""
    config = gpt_config(name, **(changes or {}))
    return step_of(config, OptimConfig(), batch, device, name=name, options=StepOptions(**options))


def step_of(
    config: GPTConfig,
    optim: OptimConfig,
    batch: int,
    device: torch.device,
    *,
    name: str,
    options: StepOptions,
) -> Work:
    """A step of a GPT from stored embeddings, as with a frozen image encoder."""
    with device:
        model = GPT(config).train()
    for parameter_name, parameter in model.named_parameters():
        parameter.requires_grad_(not parameter_name.startswith(options.frozen))
    prepare_blocks(model, options.activation_checkpointing, options.compile)
    head_loss = LOSSES[options.loss]
    optimizers = optimizers_of(model, optim)
    precision = resolve_precision(options.precision, device.type)
    tokens = torch.randint(config.codebook_size, (batch, config.num_tokens), device=device)
    condition = Condition.of(
        torch.randn(batch, config.condition_tokens, config.condition_width, device=device)
    )
    dropped = dropped_rows(batch, device)

    def call() -> None:
        with autocast(device, precision):
            value = head_loss(
                model.hidden(tokens[:, :-1], condition, dropped), model.head.weight, tokens
            )
        if options.optimize:
            finish_step(model, optimizers, value, optim)
        else:
            value.backward()
            model.zero_grad()

    settings = describe_step(model, name, batch) | {
        "pattern": config.layer_pattern,
        "recompute": options.activation_checkpointing,
        "compiled": options.compile,
        "loss": options.loss,
        "optimizers": options.optimize,
    }
    return Work(
        call,
        batch * config.num_tokens,
        precision,
        settings,
        flops=3 * batch * model.flops(config.condition_tokens, config.num_tokens),
    )


def _plain_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2).float(), targets.flatten())


def _pytorch_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.linear_cross_entropy(
        hidden.flatten(0, -2),
        weight,
        targets.flatten(),
        options=torch.nn.LinearCrossEntropyOptions(),
    )


# The first is what the others are compared with.
LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "plain": _plain_loss,
    "parts": cross_entropy,
    "pytorch": _pytorch_loss,
}


def optimizers_of(model: nn.Module, config: OptimConfig) -> list[torch.optim.Optimizer]:
    """The optimizers of a training."""
    return [o for o in build_optimizers(model, config) if o is not None]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The arithmetic of a precision, as Fabric sets it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")


def finish_step(
    model: nn.Module, optimizers: Iterable[torch.optim.Optimizer], loss: Tensor, config: OptimConfig
) -> None:
    """The backward pass, clipping and optimizers, as in both training scripts."""
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def dropped_rows(batch: int, device: torch.device) -> Tensor:
    """A bool for each row, true for a tenth of them, as gpt.condition_dropout has it."""
    return torch.arange(batch, device=device) % 10 == 9


def describe_step(gpt: GPT, name: str, batch: int) -> dict[str, object]:
    """The sizes of a step, for the settings of a record."""
    config = gpt.config
    return {
        "model": name,
        "batch": batch,
        "tokens": config.num_tokens,
        "prefix": config.condition_tokens,
        "grid_size": config.grid_size,
        "million_parameters": round(gpt.num_parameters() / 1e6, 2),
    }
