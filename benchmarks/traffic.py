"""Counts what steps and tokens move, compute and launch, and the time that this allows on a GPU.

    python -m benchmarks.traffic --model B L --out benchmarks/results/traffic.json

Nothing is measured and no GPU is needed: steps are run on tensors without data
(`benchmarks/counting.py`). A step of the GPT is counted before and after (eager, as the defaults
were, against those on CUDA), and with one setting changed at a time; so are steps of tokenizers and
tokens of the decoding engine.

The time allowed is a sum over kernels: bytes over bandwidth or operations over rate, whichever is
longer, and at least --kernel-us. In training it is at least --launch-us a kernel, as the host has
to launch each; decoding replays a CUDA graph. MFU allowed is the model's operations over that time
and the peak.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.counting import HALF, Kernel, Traffic, counting_backend, fused_norms, touched
from benchmarks.suites.decode import SAMPLING
from benchmarks.suites.gpt_step import dropped_rows, optimizers_of
from tar3d import config as configuration
from tar3d.config import GPTConfig, OptimConfig, VQVAEConfig, gpt_config
from tar3d.contracts import Condition
from tar3d.gpt import decode_ops, loss
from tar3d.gpt.engine import MIN_WINDOW, Engine
from tar3d.gpt.model import GPT
from tar3d.optim.muon import Muon
from tar3d.runtime import command, command_parser, describe_machine, positive_int, prepare_blocks
from tar3d.runtime.blocks import repeated_blocks
from tar3d.throughput import VENDOR_PEAKS
from tar3d.tokenizer.loss import tokenizer_loss
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.memory import counted_depths

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Device:
    """Limits of a GPU.

    The bandwidth of an H200 is what a copy is expected to reach of the data sheet's 4.8 TB/s; that
    of a 4090 is its data sheet's, 1,008 GB/s, as are the float32 rates outside tensor cores.
    """

    bytes_per_second: float
    half_flops: float
    float32_flops: float


DEVICES = {
    "H200": Device(4.3e12, VENDOR_PEAKS["H200"], 67e12),
    "RTX 4090": Device(1.0e12, VENDOR_PEAKS["RTX 4090"], 82.6e12),
}


@dataclass(frozen=True)
class Settings:
    """Settings of a training step that change what it moves."""

    activation_checkpointing: str = "none"
    compile: bool = True
    residual_dtype: str = "float32"
    logits_at_once: int = loss.LOGITS_AT_ONCE * loss.ON_CUDA
    muon: str = "batched"  # or "one by one", as torch.optim.Muon does it


AFTER = Settings()
BEFORE = Settings("cheap", compile=False, logits_at_once=1 << 24)
# The variants of a step, by name; the first two are before and after.
VARIANTS = {
    "before: eager, cheap, 2^24 logits": BEFORE,
    "after: compiled, 2^26 logits": AFTER,
    "eager, none": Settings(compile=False),
    "eager, blocks": Settings("blocks", compile=False),
    "compiled, residual bfloat16": Settings(residual_dtype="autocast"),
    "compiled, 2^28 logits": Settings(logits_at_once=1 << 28),
    "eager, none, Muon one by one": Settings(compile=False, muon="one by one"),
}
TOKENIZERS = ("vqvae3d", "vqvae3d_fast", "vqvae3d_small")
MICRO_BATCH = 8  # rows or shapes that go through a model together
POSITION = 1700  # of a decoded token: about the mean over 3,072 behind a prefix of 197


def gpt_step(config: GPTConfig, rows: int, settings: Settings) -> Counter[Kernel]:
    """Kernels of a step over `rows` rows that go through the GPT together, by `counted_depths`."""
    config = dataclasses.replace(config, residual_dtype=settings.residual_dtype)

    def count(num_layers: int) -> Counter[Kernel]:
        return _gpt_step(dataclasses.replace(config, num_layers=num_layers), rows, settings)

    few, deeper, repeats = counted_depths(config)
    less = count(few)
    if not repeats:
        return less
    more = count(deeper)
    return Counter({k: less[k] + repeats * (more[k] - less[k]) for k in less.keys() | more.keys()})


def _gpt_step(config: GPTConfig, rows: int, settings: Settings) -> Counter[Kernel]:
    def make() -> tuple[nn.Module, Callable[[Traffic], Tensor]]:
        gpt = GPT(config).train()
        tokens = torch.randint(config.codebook_size, (rows, config.num_tokens))
        shape = rows, config.condition_tokens, config.condition_width
        condition = Condition.of(torch.randn(shape))
        dropped = dropped_rows(rows, torch.device("cpu"))

        def forward(traffic: Traffic) -> Tensor:
            hidden = gpt.hidden(tokens[:, :-1], condition, dropped)
            traffic.part = "loss"
            return loss.cross_entropy(hidden, gpt.head.weight, tokens)

        return gpt, forward

    with mock.patch.object(loss, "LOGITS_AT_ONCE", settings.logits_at_once):
        return count_step(make, OptimConfig(), settings)


def tokenizer_step(config: VQVAEConfig, shapes: int, settings: Settings) -> Counter[Kernel]:
    """Kernels of a step of the stage with the codebook."""
    t = config.train

    def make() -> tuple[nn.Module, Callable[[Traffic], Tensor]]:
        vqvae = VQVAE(config.tokenizer).train()
        queries = t.volume_points + t.near_points
        surface = torch.rand(shapes, t.surface_points, 6) * 2 - 1
        points = torch.rand(shapes, queries, 3) * 2 - 1
        inside = points[..., 0] < 0
        is_near = (torch.arange(queries) >= t.volume_points).expand(shapes, -1)

        def forward(traffic: Traffic) -> Tensor:
            output = vqvae(surface, points, True)
            traffic.part = "loss"
            weights = {"near_weight": t.near_weight, "commitment_weight": t.commitment_weight}
            return tokenizer_loss(
                output.logits, inside, is_near, output.commitment, **weights
            ).total

        return vqvae, forward

    return count_step(make, config.optim, settings)


def count_step(
    make: Callable[[], tuple[nn.Module, Callable[[Traffic], Tensor]]],
    optim: OptimConfig,
    settings: Settings,
) -> Counter[Kernel]:
    """Kernels of a second step in bfloat16 autocast; the first compiles and makes states."""
    traffic = Traffic()
    torch._dynamo.reset()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        fused_norms(traffic),
        torch._dynamo.config.patch(recompile_limit=64),
        mock.patch("tar3d.optim.muon._product_dtype", return_value=torch.bfloat16),
    ):
        module, forward = make()
        prepare_blocks(module, settings.activation_checkpointing, compile=False)
        if settings.compile:
            backend = counting_backend(traffic)
            for block in repeated_blocks(module):
                block.compile(backend=backend)
        optimizers = [_one_by_one(o, settings) for o in optimizers_of(module, optim)]
        for step in range(2):
            counted = traffic if step else contextlib.nullcontext()
            with counted:
                traffic.part = "forward"
                with torch.autocast("cpu", torch.bfloat16):
                    value = forward(traffic)
                traffic.part = "backward"
                value.backward()
                traffic.part = "optimizer"
                nn.utils.clip_grad_norm_(module.parameters(), optim.grad_clip or float("inf"))
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad()
            if not step:
                traffic.kernels.clear()
    return traffic.kernels


def _one_by_one(optimizer: torch.optim.Optimizer, settings: Settings) -> torch.optim.Optimizer:
    if settings.muon == "batched" or not isinstance(optimizer, Muon):
        return optimizer
    group = optimizer.param_groups[0]
    return torch.optim.Muon(
        group["params"],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        adjust_lr_fn="match_rms_adamw",
    )


def decoded_token(name: str, batch: int, backend: str, dtype: torch.dtype) -> Counter[Kernel]:
    """Kernels of a step of the decoding engine at `POSITION`, or in the middle of fewer tokens.

    With "triton" each of the six operations is one kernel (full attention: two) that reads and
    writes its arguments and result once, of a cache the filled slots.
    """
    traffic = Traffic()
    operations = _six_kernels(traffic) if backend == "triton" else decode_ops
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        fused_norms(traffic),
        mock.patch("tar3d.gpt.packed._operations_module", return_value=operations),
        mock.patch.object(decode_ops, "pack", lambda weight: weight.detach().contiguous()),
        torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        engine = Engine(GPT(gpt_config(name)).eval().requires_grad_(False), "plain")
        engine.static = True  # as on CUDA
        filled = min(POSITION, engine.capacity // 2)
        engine.window = 1 if backend == "triton" else MIN_WINDOW
        engine.prepare(batch, SAMPLING)
        with torch.no_grad(), torch.autocast("cpu", enabled=False), traffic:
            traffic.part = "token"
            engine.take_step(engine.window_for(filled))
    return traffic.kernels


def _six_kernels(traffic: Traffic) -> SimpleNamespace:
    weight_of = {"norm_linear": 2, "norm_swiglu": 2, "linear_add": 1}

    def kernel(name: str) -> Callable[..., Tensor]:
        operation = getattr(decode_ops, name)

        def call(*args: Any) -> Tensor:
            given = [a for a in args if isinstance(a, Tensor)]
            with traffic.paused():
                result = operation(*args)
            moved = sum(map(touched, given)) + touched(result)
            if name == "full_attend":  # whole caches, and the slots in use of keys and values
                keys, window = args[4], args[8]
                moved -= 2 * touched(keys) * (1 - window / keys.shape[2])
            if name == "linear_attend":
                moved += touched(args[6])  # the state, written
            if name == "draw_token":
                moved = touched(args[0])
            flops, half = 0, True
            if name in weight_of:
                weight = args[weight_of[name]]
                flops, half = 2 * len(result) * weight.numel(), weight.dtype in HALF
            launches = 2 if name == "full_attend" else 1
            traffic.add(name, moved, flops, half=half, launches=launches)
            return result

        return call

    names = (*weight_of, "linear_attend", "full_attend", "draw_token")
    return SimpleNamespace(**{name: kernel(name) for name in names})


def summary(kernels: Counter[Kernel]) -> dict[str, float]:
    """Bytes, operations and kernels in all."""
    return {
        "bytes": sum(k.bytes * n for k, n in kernels.items()),
        "product_flops": sum(k.flops * n for k, n in kernels.items()),
        "kernels": sum(k.launches * n for k, n in kernels.items()),
    }


def allowed_seconds(kernels: Counter[Kernel], device: Device, kernel_seconds: float = 0) -> float:
    """Sum over kernels of the longer of moving and computing, and at least `kernel_seconds`."""
    return sum(
        n
        * max(
            k.bytes / device.bytes_per_second,
            k.flops / (device.half_flops if k.half else device.float32_flops),
            kernel_seconds * k.launches,
        )
        for k, n in kernels.items()
    )


def record(
    kernels: Counter[Kernel], model_flops: float | None, kernel_us: float, launch_us: float
) -> dict[str, object]:
    """A row of the report; `model_flops` are those that MFU counts."""
    result: dict[str, object] = {**summary(kernels)}
    parts = dict.fromkeys(k.part for k in kernels)
    result["bytes_of_part"] = {
        part: summary(Counter({k: n for k, n in kernels.items() if k.part == part}))["bytes"]
        for part in parts
    }
    by_name: Counter[str] = Counter()
    for k, n in kernels.items():
        by_name[f"{k.part}: {k.name}"[:120]] += k.bytes * n  # type: ignore[assignment]
    result["most_bytes"] = dict(by_name.most_common(12))
    launching = launch_us * 1e-6 * result["kernels"]  # type: ignore[operator]
    for name, device in DEVICES.items():
        roofline = allowed_seconds(kernels, device)
        seconds = max(allowed_seconds(kernels, device, kernel_us * 1e-6), launching)
        limits = {"roofline_seconds": roofline, "allowed_seconds": seconds}
        if model_flops is not None:
            limits["roofline_mfu"] = model_flops / roofline / device.half_flops
            limits["allowed_mfu"] = model_flops / seconds / device.half_flops
        result[name] = limits
    return result


def accumulated(kernels: Counter[Kernel], times: int) -> Counter[Kernel]:
    """A step of `times` forward and backward passes and one of the optimizers."""
    return Counter({k: n * (1 if k.part == "optimizer" else times) for k, n in kernels.items()})


def gpt_records(
    name: str, all_rows: list[int], kernel_us: float, launch_us: float
) -> Iterator[dict[str, object]]:
    """Before and after for each number of rows; every variant for `MICRO_BATCH` rows."""
    config = gpt_config(name)
    flops = 3 * GPT(config).flops(config.condition_tokens, config.num_tokens)
    counted: dict[tuple[int, str], Counter[Kernel]] = {}
    for rows in all_rows:
        micro = min(rows, MICRO_BATCH)
        for variant, settings in list(VARIANTS.items())[: None if rows == MICRO_BATCH else 2]:
            if (micro, variant) not in counted:
                print(f"{name}, {micro} rows, {variant}", file=sys.stderr, flush=True)
                counted[micro, variant] = gpt_step(config, micro, settings)
            kernels = accumulated(counted[micro, variant], rows // micro)
            yield {
                "what": f"{name}, a training step",
                "rows": rows,
                "rows_at_once": micro,
                "variant": variant,
                "settings": dataclasses.asdict(settings),
                "model_flops": rows * flops,
                **record(kernels, rows * flops, kernel_us, launch_us),
            }


def tokenizer_records(
    name: str, shapes: int, kernel_us: float, launch_us: float
) -> Iterator[dict[str, object]]:
    config = configuration.load(VQVAEConfig, f"configs/{name}.yaml")
    t = config.train
    queries = t.volume_points + t.near_points
    flops = 3 * shapes * VQVAE(config.tokenizer).flops(t.surface_points, queries)
    for variant, settings in (
        ("before: eager, none", Settings(compile=False)),
        ("after: compiled", AFTER),
    ):
        print(f"{name}, {shapes} shapes, {variant}", file=sys.stderr, flush=True)
        kernels = tokenizer_step(config, shapes, settings)
        yield {
            "what": f"{name}, a training step",
            "rows": shapes,
            "variant": variant,
            "settings": dataclasses.asdict(settings),
            "model_flops": flops,
            **record(kernels, flops, kernel_us, launch_us),
        }


def decode_records(name: str, kernel_us: float) -> Iterator[dict[str, object]]:
    for batch in (1, 16):
        for variant, backend, dtype in (
            ("before: plain, float32", "plain", torch.float32),
            ("plain, bfloat16", "plain", torch.bfloat16),
            ("after: Triton kernels, bfloat16", "triton", torch.bfloat16),
        ):
            print(f"{name}, a token, batch {batch}, {variant}", file=sys.stderr, flush=True)
            kernels = decoded_token(name, batch, backend, dtype)
            yield {
                "what": f"{name}, a decoded token with guidance",
                "rows": batch,
                "variant": variant,
                **record(kernels, None, kernel_us, 0),
            }


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument("--model", nargs="*", default=["B", "L"], help="sizes of the GPT trained")
    parser.add_argument("--rows", nargs="*", type=positive_int, default=[8, 1, 64])
    parser.add_argument("--tokenizer", nargs="*", default=TOKENIZERS, choices=TOKENIZERS)
    parser.add_argument("--decode", nargs="*", default=["tiny", "B", "L"], help="sizes decoded")
    parser.add_argument(
        "--kernel-us", type=float, default=2.0, help="least time of a kernel (assumed: 2)"
    )
    parser.add_argument(
        "--launch-us",
        type=float,
        default=6.0,
        help="time in which the host launches a kernel of a training step (assumed: 6)",
    )
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    args = parser.parse_args(argv)
    for rows in args.rows:
        if rows > MICRO_BATCH and rows % MICRO_BATCH:
            parser.error(f"--rows takes at most {MICRO_BATCH} or a multiple of it, got {rows}")
    with torch.device("cpu"):
        report = {
            **describe_machine(torch.device("cpu")),
            "machine": "counted, no GPU",
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "-m", "benchmarks.traffic", *(argv or sys.argv[1:])]),
            "devices": {name: dataclasses.asdict(d) for name, d in DEVICES.items()},
            "kernel_us": args.kernel_us,
            "launch_us": args.launch_us,
            "cases": [],
        }
    us = args.kernel_us
    sources = [
        *(decode_records(f"GPT-{name}", us) for name in args.decode),
        *(tokenizer_records(name, MICRO_BATCH, us, args.launch_us) for name in args.tokenizer),
        *(gpt_records(f"GPT-{name}", args.rows, us, args.launch_us) for name in args.model),
    ]
    for source in sources:
        for case in source:
            report["cases"].append(case)
            print(line(case), flush=True)
            if args.out:
                args.out.parent.mkdir(parents=True, exist_ok=True)
                args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


def line(case: dict) -> str:
    """A case for people."""
    limits = "; ".join(
        f"{name} {1e3 * case[name]['allowed_seconds']:.3g} ms"
        + (f", MFU {case[name]['allowed_mfu']:.1%}" if "allowed_mfu" in case[name] else "")
        for name in DEVICES
    )
    return (
        f"{case['what']}, {case['rows']}, {case['variant']}: {case['bytes'] / 1e9:.4g} GB, "
        f"{case['product_flops'] / 1e12:.4g} TFLOP, {case['kernels']:,.0f} kernels; {limits}"
    )


if __name__ == "__main__":
    sys.exit(main())
