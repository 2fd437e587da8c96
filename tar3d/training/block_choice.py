"""How a training runs the blocks of its model where the configuration leaves that to it ("auto").

On CUDA blocks are compiled, and recompute as little in the backward pass as the device's free
memory allows, by the count of `tar3d.training.memory`. No result depends on it beyond rounding, so
a run may go on with another choice on another device.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from tar3d.config import GPTRunConfig, VQVAEConfig
from tar3d.config.training import ACTIVATION_CHECKPOINTING, AUTO
from tar3d.runtime import prepare_blocks, repeated_blocks, resolve_precision
from tar3d.training.memory import gpt_step_bytes, tokenizer_step_bytes, with_margin

if TYPE_CHECKING:
    from collections.abc import Callable

    from lightning_fabric import Fabric

    from tar3d.config import GPTTrainConfig, VQVAETrainConfig

# Parameters of the blocks of a model from which on a CPU gets "cheap": that takes a third off the
# memory of a GPT-B and is no slower (docs/speed.md).
LARGE_ON_CPU = 50_000_000
# Bytes of a parameter: weight, gradient and one or two moments in float32.
LEAST_PARAMETER_BYTES, MOST_PARAMETER_BYTES = 12, 16
# What a compiled block keeps of that which "none" keeps and "cheap" recomputes: 0.2 in a linear and
# 0.3 in a full layer of the GPT (tests/training/test_compiled_blocks.py).
COMPILED_SHARE = 1 / 3
LEAST_CAPABILITY = 7  # of a GPU that torch.compile has kernels for


class BlockChoice(NamedTuple):
    """Arguments of `tar3d.runtime.prepare_blocks`, and a line that says them and why."""

    activation_checkpointing: str
    compile: bool
    line: str


def prepare_module(
    module: nn.Module, config: VQVAEConfig | GPTRunConfig, fabric: Fabric
) -> dict[str, Any]:
    """Prepares the blocks of `module` in place, before it is on its device, and prints how.

    Returns the values in force of the configuration keys that may be "auto".
    """
    blocks = choose_blocks(module, config, fabric)
    fabric.print(blocks.line)
    prepare_blocks(module, blocks.activation_checkpointing, blocks.compile)
    return {
        "train.precision": resolve_precision(config.train.precision, fabric.device.type),
        "train.compile": blocks.compile,
        "train.activation_checkpointing": blocks.activation_checkpointing,
    }


def choose_blocks(
    module: nn.Module, config: VQVAEConfig | GPTRunConfig, fabric: Fabric
) -> BlockChoice:
    """The choice of a training of `module`, which is not on its device yet.

    The first process makes it for all: under FSDP, processes that recompute differently would wait
    for each other's weights forever.
    """
    choice = None
    if fabric.is_global_zero:
        t, device = config.train, fabric.device
        compiled, compile_words = _compile_blocks(t, device, fabric.world_size)
        how, remark = t.activation_checkpointing, ""
        if how == AUTO and device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            how, remark = least_recompute(compiled, _counter(module, config, fabric), free)
        elif how == AUTO:
            how = "cheap" if _block_parameters(module) >= LARGE_ON_CPU else "none"
        choice = BlockChoice(
            how, compiled, f"activation checkpointing: {how}{remark}; {compile_words}"
        )
    return fabric.broadcast(choice)  # type: ignore[return-value] # not None in the first process


def _compile_blocks(
    t: VQVAETrainConfig | GPTTrainConfig, device: torch.device, processes: int
) -> tuple[bool, str]:
    """Whether blocks are compiled, and words for it."""
    compiled, reason = t.compile, ""
    if compiled == AUTO:
        if device.type == "cuda":
            if importlib.util.find_spec("triton") is None:
                reason = ": there is no Triton"
            elif torch.cuda.get_device_capability(device)[0] < LEAST_CAPABILITY:
                reason = ": the GPU is too old for Triton"
            elif processes > 1 and getattr(t, "strategy", "ddp") == "fsdp":
                reason = ": not tried with train.strategy=fsdp"
        compiled = device.type == "cuda" and not reason
    if compiled:
        return True, "blocks compiled: the first steps take longer, about a minute"
    return False, f"blocks not compiled{reason}"


def least_recompute(compiled: bool, counted: Callable[[str], int], free: int) -> tuple[str, str]:
    """The least activation checkpointing with which a step fits in `free` bytes, and a remark.

    `counted` gives the bytes of a step with each kind, not compiled. A compiled block recomputes by
    itself most of what "cheap" does, so it has no use for that.
    """
    for how in ACTIVATION_CHECKPOINTING:
        if compiled and how == "cheap":
            continue
        needs = counted(how)
        if compiled and how == "none":
            least = counted("cheap")
            needs = least + round(COMPILED_SHARE * (needs - least))
        needs = with_margin(needs)
        if needs <= free:
            break
    remark = f"needs {needs / 2**30:.1f} GiB of {free / 2**30:.1f} GiB; counted"
    if needs > free:
        remark += ", so it may not fit: write a smaller train.micro_batch_size"
    return how, f" ({remark})"


def _counter(
    module: nn.Module, config: VQVAEConfig | GPTRunConfig, fabric: Fabric
) -> Callable[[str], int]:
    """Counts the bytes of a step of `module` on one device, with a kind of checkpointing.

    Encoders that are trained along with a GPT count with their weights alone.
    """
    t, devices = config.train, fabric.world_size
    autocast = resolve_precision(t.precision, fabric.device.type) != "32-true"
    parameters = sum(p.numel() for p in module.parameters())
    beside = 4 * parameters if t.ema else 0
    if isinstance(config, GPTRunConfig):
        rows = t.micro_batch_size or config.train.global_batch_size // devices
        if config.train.strategy == "fsdp":
            beside -= LEAST_PARAMETER_BYTES * parameters * (devices - 1) // devices
        beside += MOST_PARAMETER_BYTES * sum(
            p.numel() for name, p in module.named_parameters() if "conditioner." in name
        )
        return lambda how: beside + gpt_step_bytes(config.gpt, config.optim, rows, how, autocast)
    rows = t.micro_batch_size or config.train.batch_size // devices
    return lambda how: beside + tokenizer_step_bytes(config, rows, how, autocast)


def _block_parameters(module: nn.Module) -> int:
    return sum(p.numel() for block in repeated_blocks(module) for p in block.parameters())
