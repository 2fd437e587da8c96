"""What `python -m tar3d.doctor` prints: devices, what works on them, what fits them."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tar3d import config as configuration
from tar3d.config import (
    GPT_SIZES,
    GPTRunConfig,
    OptimConfig,
    SamplingConfig,
    VQVAEConfig,
)
from tar3d.gpt.backends import refusals
from tar3d.gpt.engine import Engine
from tar3d.gpt.generate import generate
from tar3d.gpt.model import GPT
from tar3d.paths import shipped
from tar3d.pipeline import Pipeline
from tar3d.runtime import (
    compute_dtype,
    describe_machine,
    resolve_precision,
)
from tar3d.runtime.unusable_gpu import unusable_gpu
from tar3d.throughput import VENDOR_PEAKS, best_seconds
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.memory import gpt_step_bytes, tokenizer_step_bytes, with_margin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tar3d.conditional_gpt import ConditionalGPT

PACKAGES = (
    "lightning-fabric",
    "numpy",
    "trimesh",
    "embreex",
    "scikit-image",
    "transformers",
    "triton",
    "fla-core",
    "lightning-attn",
    "flash-attn",
    "ray",
    "wandb",
)
TOKENIZERS = ("vqvae3d_tiny", "vqvae3d_small", "vqvae3d_fast", "vqvae3d")
# Memory by NVIDIA's data sheets, for hours by arithmetic.
GPU_BYTES = {"RTX 4090": 24e9, "A100": 80e9, "H100": 80e9, "H200": 141e9}
ASSUMED_MFU = 0.4
# Decoding backends that are tried; "compiled" takes a minute.
DECODING = {"cpu": ("plain",), "cuda": ("plain", "triton")}
WRONG_DECODING = (
    ": what this machine decodes is wrong, choose another with run.py --decoding, and report it"
)
# Another order of sums may choose otherwise between tokens that are equally likely.
LEAST_AGREEMENT = 0.99


def report(model: str) -> int:
    """Prints the whole report on `model`; returns the exit code."""
    devices = [
        torch.device("cpu"),
        *(torch.device("cuda", i) for i in range(torch.cuda.device_count())),
    ]
    print_versions()
    if reason := unusable_gpu():
        print(f"\n{reason}")
    for device in devices:
        print_device(device)
    failed = [device for device in devices if not try_models(model, device)]
    print_hours(print_fits({device: memory_of(device) for device in devices}))
    if failed:
        print(f"\nsomething that should work does not: {', '.join(map(str, failed))}")
        return 1
    print("\nall that was tried works")
    return 0


def print_versions() -> None:
    print(
        f"Python {sys.version.split()[0]}, commit {describe_machine(torch.device('cpu'))['commit']}"
    )
    found = [f"torch {torch.__version__}"]  # with the build, which the package's metadata lack
    for name in PACKAGES:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    print("; ".join(found))


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU; for the CPU those of the machine, or those that its control group allows."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    physical = (
        os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if hasattr(os, "sysconf")
        else sys.maxsize
    )
    return min(physical, int(text)) if text.isdigit() else physical


def print_device(device: torch.device) -> None:
    precision = resolve_precision("auto", device.type)
    if device.type == "cuda":
        capability = ".".join(map(str, torch.cuda.get_device_capability(device)))
        more = f"compute capability {capability}, CUDA {torch.version.cuda}"
    else:
        more = f"{torch.get_num_threads()} threads"
    print(
        f"\n{device}: {describe_machine(device)['machine']}, {memory_of(device) / 2**30:.1f} GiB, "
        f"{more}; train.precision=auto is {precision}"
    )
    for option, reasons in refusals(device, compute_dtype(precision)).items():
        for name, reason in reasons.items():
            print(f"  {option}={name}: {'works' if not reason else f'no ({reason})'}")
    print(
        "  chunked (linear) and sdpa (full attention) are PyTorch's own operations and work "
        "everywhere"
    )


@torch.inference_mode()
def try_models(model: str, device: torch.device) -> bool:
    """Runs both models forward and decodes; returns whether everything works.

    `model` is a model directory or a Hub id.
    """
    try:
        pipeline = Pipeline.load(model, device=device)
        vqvae, gpt, size = (
            pipeline.vqvae,
            pipeline.model.gpt,
            pipeline.model.config.image_encoder.image_size,
        )
        surface = torch.nn.functional.normalize(torch.randn(1, 8192, 6, device=device), dim=-1)
        tokens = vqvae.tokenize(surface).ids
        seconds = best_seconds(lambda: vqvae.decode(vqvae.tokenize(surface)), device)
        print(
            f"  tokenizer of {Path(model).name}: {1 / seconds:.1f} shapes/s encoded and decoded "
            "(8,192 points)"
        )
        pixels = torch.zeros(1, size, size, 3, dtype=torch.uint8, device=device)
        dropped = torch.zeros(1, dtype=torch.bool, device=device)
        seconds = best_seconds(
            lambda: pipeline.model.token_nll(tokens, {"image": pixels}, dropped), device
        )
        rate = gpt.config.num_tokens / seconds
        print(f"  GPT of {Path(model).name}: {rate:,.0f} tokens/s forward, batch 1")
        return all(
            decodes_what_it_predicts(pipeline.model, backend) for backend in DECODING[device.type]
        )
    except (RuntimeError, ValueError, OSError) as e:
        print(f"  the models do not run here: {type(e).__name__}: {e}")
        return False


def decodes_what_it_predicts(model: ConditionalGPT, backend: str) -> bool:
    """True if decoding token by token gives the tokens that a forward pass predicts.

    The likeliest token is taken each time. A wrong cache or kernel would give shapes that look like
    a badly trained model's.
    """
    gpt, condition = model.gpt, model.condition({}, 1)
    try:
        engine = Engine(gpt, backend)
    except ValueError as e:
        print(f"  decoding={backend}: no ({e})")
        return True
    ids = gpt.to_model_order(
        generate(gpt, condition, SamplingConfig(temperature=0.0), [0], engine=engine).ids
    )
    logits = gpt(ids[:, :-1], condition)
    same = int((logits.argmax(-1) == ids).sum())
    agrees = same >= LEAST_AGREEMENT * ids.numel()
    print(
        f"  decoding={backend}: {same:,} of {ids.numel():,} tokens are those of a forward pass"
        + ("" if agrees else WRONG_DECODING)
    )
    return agrees


def print_fits(memory: dict[torch.device, int]) -> dict[str, int]:
    """Prints the memory of a step of each training, and the devices in which it fits.

    Returns the least bytes of each training, with one row at a time.
    """
    least: dict[str, int] = {}
    print(
        "\nmemory of a training step, counted without computing it (bfloat16; weights, gradients, "
        "optimizers, what the\nbackward pass needs; a tenth of it and 1 GiB are left for a GPU's "
        "allocator and context):"
    )
    header = "  ".join(f"fits {device}" for device in memory)
    print(f"{'training':<34} {'rows':>5} {'checkpointing':>13} {'GiB':>7}  {header}")
    for name, rows, checkpointing, needed in training_steps():
        fits = "  ".join(
            f"{'yes' if with_margin(needed) < size else 'no':<{5 + len(str(device))}}"
            for device, size in memory.items()
        )
        line = f"{name:<34} {rows:>5} {checkpointing:>13} {needed / 2**30:>7.1f}  {fits}"
        print(line, flush=True)
        least[name] = min(needed, least.get(name, needed))
    return least


def training_steps() -> Iterator[tuple[str, int, str, int]]:
    """Name, rows, activation checkpointing and bytes of a step of each training."""
    for name, tokenizer in tokenizer_runs():
        for rows in sorted({1, tokenizer.train.batch_size}):
            yield name, rows, "none", tokenizer_step_bytes(tokenizer, rows, "none")
    for name, run in gpt_runs():
        for checkpointing in ("cheap", "blocks"):
            needed = gpt_step_bytes(run.gpt, OptimConfig(), 1, checkpointing)
            yield name, 1, checkpointing, needed


def tokenizer_runs() -> Iterator[tuple[str, VQVAEConfig]]:
    """The shipped configs of tokenizers by name."""
    for name in TOKENIZERS:
        path = f"configs/{name}.yaml"
        yield path, configuration.load(VQVAEConfig, shipped(path))


def gpt_runs() -> Iterator[tuple[str, GPTRunConfig]]:
    """A training of each GPT size on the tokens of the paper's tokenizer, by name."""
    paper = configuration.load(VQVAEConfig, shipped("configs/vqvae3d.yaml")).tokenizer
    for size in GPT_SIZES:
        run = configuration.load_gpt_run(shipped("configs/gpt_i23d.yaml"), size, paper)
        yield f"{size}, {run.gpt.num_tokens:,} tokens", run


def training_flops() -> dict[str, tuple[int, int, float]]:
    """Steps, rows of a step, and model FLOPs of a step of each training by name.

    FLOPs are those of the forward pass and twice as many for the backward pass.
    """
    found: dict[str, tuple[int, int, float]] = {}
    with FakeTensorMode():  # a GPT-7B without its 28 GB
        for name, tokenizer in tokenizer_runs():
            t = tokenizer.train
            queries = t.volume_points + t.near_points
            flops = VQVAE(tokenizer.tokenizer).flops(t.surface_points, queries)
            found[name] = t.steps, t.batch_size, 3 * t.batch_size * flops
        for name, run in gpt_runs():
            rows = run.train.global_batch_size
            flops = GPT(run.gpt).flops(run.gpt.condition_tokens, run.gpt.num_tokens)
            found[name] = run.train.steps, rows, 3 * rows * flops
    return found


def print_hours(least: dict[str, int]) -> None:
    """Prints the hours of whole trainings on one GPU, by arithmetic.

    `least` are the bytes of each training's smallest step; a GPU with less memory has no hours.
    """
    print(
        "\nhours of a whole training on one GPU, computed and not measured: model FLOPs at "
        f"{ASSUMED_MFU:.0%} of the\ndata sheet's dense bfloat16 peak (small models reach less), "
        "without validation; -: not even one row at a time fits"
    )
    header = "  ".join(f"{gpu:>8}" for gpu in GPU_BYTES)
    print(f"{'training':<34} {'steps':>8} {'rows':>5} {'TFLOP/step':>11}  {header}")
    for name, (steps, rows, flops) in training_flops().items():
        hours = "  ".join(
            f"{_hours(steps * flops, gpu) if with_margin(least[name]) < size else '-':>8}"
            for gpu, size in GPU_BYTES.items()
        )
        print(f"{name:<34} {steps:>8,} {rows:>5} {_figure(flops / 1e12):>11}  {hours}")


def _hours(flops: float, gpu: str) -> str:
    return _figure(flops / (ASSUMED_MFU * VENDOR_PEAKS[gpu]) / 3600)


def _figure(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"
