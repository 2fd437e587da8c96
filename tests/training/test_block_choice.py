"""What a training chooses where `train.compile` and `train.activation_checkpointing` are "auto"."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tar3d.config import GPTConfig, GPTRunConfig, GPTTrainConfig, OptimConfig
from tar3d.gpt.model import GPT
from tar3d.training import block_choice, memory

GIB = 2**30
# Bytes of a step, in GiB, by kind: as much as GPT-L with 8 rows.
COUNTED = {"none": 62, "cheap": 26, "blocks": 8}


@pytest.mark.parametrize(
    ("compiled", "free", "how", "needs"),
    [
        (True, 139.8, "none", "42.8"),  # a compiled block keeps a third of what is between
        (True, 42.9, "none", "42.8"),
        (True, 42.7, "blocks", "9.8"),  # a tenth and 1 GiB are left
        (True, 22.0, "blocks", "9.8"),
        (False, 139.8, "none", "69.2"),
        (False, 69.1, "cheap", "29.6"),
        (False, 22.0, "blocks", "9.8"),
    ],
)
def test_the_least_recompute_that_fits_is_chosen(compiled, free, how, needs):
    counted = lambda kind: COUNTED[kind] * GIB  # noqa: E731
    chosen, remark = block_choice.least_recompute(compiled, counted, int(free * GIB))
    assert chosen == how and remark == f" (needs {needs} GiB of {free} GiB; counted)"


def test_where_nothing_fits_the_line_says_what_to_do():
    counted = lambda kind: COUNTED[kind] * GIB  # noqa: E731
    chosen, remark = block_choice.least_recompute(True, counted, 8 * GIB)
    assert chosen == "blocks" and "may not fit: write a smaller train.micro_batch_size" in remark


def tiny_run(**train: object) -> GPTRunConfig:
    gpt = GPTConfig(num_layers=4, width=64, num_heads=2, grid_size=8, codebook_size=64)
    gpt.condition_tokens, gpt.condition_width = 4, 8
    values = {"global_batch_size": 8, "precision": "bf16-mixed", **train}
    return GPTRunConfig(gpt=gpt, train=GPTTrainConfig(**values))


def fabric(device: str, processes: int = 1) -> SimpleNamespace:
    return SimpleNamespace(
        device=torch.device(device),
        world_size=processes,
        is_global_zero=True,
        broadcast=lambda choice: choice,
    )


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for what a GPU says of itself: its memory in MiB, and its capability."""

    def stand_in(mib: float, capability: tuple[int, int] = (8, 9)) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(mib * 2**20), 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(block_choice.importlib.util, "find_spec", lambda _: "here")

    return stand_in


@pytest.mark.parametrize(
    ("train", "mib", "expected"),
    [
        ({"compile": False}, 9.81 * 1024, ("none", False)),  # 8 GiB, a tenth of it, and 1
        ({"compile": False}, 9.79 * 1024, ("cheap", False)),
        ({}, 6.88 * 1024, ("none", True)),  # a third of the way from 4 to 8 GiB
        ({}, 6.86 * 1024, ("blocks", True)),
        ({"compile": False, "micro_batch_size": 4}, 9.79 * 1024, ("none", False)),
        ({"compile": False, "global_batch_size": 16}, 9.79 * 1024, ("blocks", False)),
        ({"precision": "32-true"}, 9.79 * 1024, ("blocks", True)),
    ],
)
def test_on_a_gpu_the_count_of_the_run_decides(gpu, monkeypatch, train, mib, expected):
    def count(config, optim, rows, how, autocast):
        return {"none": 8, "cheap": 4, "blocks": 1}[how] * rows * (1 if autocast else 2) * GIB // 8

    monkeypatch.setattr(block_choice, "gpt_step_bytes", count)
    gpu(mib)
    run = tiny_run(**train)
    chosen = block_choice.choose_blocks(GPT(run.gpt), run, fabric("cuda"))
    assert chosen[:2] == expected and "; counted)" in chosen.line


def test_what_is_written_is_taken(gpu):
    run = tiny_run(compile=False, activation_checkpointing="cheap")
    gpu(1 << 20)
    for device in ("cpu", "cuda"):
        line = "activation checkpointing: cheap; blocks not compiled"
        chosen = block_choice.choose_blocks(GPT(run.gpt), run, fabric(device))
        assert chosen == ("cheap", False, line)


@pytest.mark.parametrize(
    ("capability", "processes", "package", "reason"),
    [
        ((8, 9), 1, "here", ""),
        ((6, 1), 1, "here", ": the GPU is too old for Triton"),
        ((8, 9), 2, "here", ": not tried with train.strategy=fsdp"),
        ((8, 9), 1, None, ": there is no Triton"),
    ],
)
def test_blocks_are_compiled_where_that_is_known_to_work(
    gpu, monkeypatch, capability, processes, package, reason
):
    gpu(1 << 20, capability)
    monkeypatch.setattr(block_choice.importlib.util, "find_spec", lambda _: package)
    run = tiny_run(strategy="fsdp", activation_checkpointing="none")
    chosen = block_choice.choose_blocks(GPT(run.gpt), run, fabric("cuda", processes))
    assert chosen.compile == (not reason)
    assert chosen.line.endswith(f"blocks not compiled{reason}" if reason else "about a minute")


def test_on_a_cpu_nothing_is_compiled_and_large_models_recompute_what_is_cheap(monkeypatch):
    run = tiny_run()
    module = GPT(run.gpt)
    assert block_choice.choose_blocks(module, run, fabric("cpu"))[:2] == ("none", False)
    monkeypatch.setattr(block_choice, "LARGE_ON_CPU", 1000)
    assert block_choice.choose_blocks(module, run, fabric("cpu"))[:2] == ("cheap", False)


@pytest.mark.parametrize(("pattern", "how"), [("LLLF", "cheap"), ("LF", "none")])
def test_a_few_layers_give_the_count_of_all(monkeypatch, how, pattern):
    config = tiny_run().gpt
    config.num_layers, config.layer_pattern = 11, pattern
    few = memory.gpt_step_bytes(config, OptimConfig(), 1, how)
    layers = []
    count = memory.step_bytes
    monkeypatch.setattr(
        memory, "step_bytes", lambda make, *rest: layers.append(make()) or count(make, *rest)
    )
    config.layer_pattern = (pattern * 11)[:11]  # not repeated: all are run
    assert few == pytest.approx(memory.gpt_step_bytes(config, OptimConfig(), 1, how), rel=0.01)
    assert len(layers) == 1
