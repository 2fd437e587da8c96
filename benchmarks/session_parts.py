"""The parts of a GPU session in their order, and the figures that it exists for."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Part:
    """One part of a session.

    `share` is its share of the time, in seconds of a session of twelve minutes. `arguments` are
    files of tests, the arguments of Python for a script, or the name of a suite of
    `benchmarks.run`. In those of a script, {work}, {data} and {device} stand for folders and the
    device; `small` is added to them in a rehearsal. Parts that run `beside` the others begin with
    the session, one after another, while the tests run: they make {data}, and take the CPU alone.
    """

    name: str
    share: float
    kind: Literal["tests", "script", "suite"]
    arguments: tuple[str, ...]
    small: tuple[str, ...] = field(default=())
    beside: bool = False

    @property
    def has_data(self) -> bool:
        """True if it makes {data} or reads it."""
        return any("{data}" in argument for argument in self.arguments)


# First what has never run on a GPU, then each script from its command to its end, then figures. The
# tests of attention backends come last: fla and lightning-attn compile for minutes.
PARTS = (
    Part(
        "shapes",
        60,
        "script",
        ("-m", "tar3d.data.toy", "--out", "{data}", "--num", "24", "--seed", "5", "views.count=2"),
        ("--num", "4"),
        beside=True,
    ),
    Part(
        "samples",
        60,
        "script",
        (
            *("-m", "tar3d.data.make_samples", "{data}", "surface_points=8192"),
            *("volume_points=4096", "near_points=4096"),
        ),
        beside=True,
    ),
    # It counts the memory of trainings, which takes a processor a minute.
    Part("doctor", 100, "script", ("-m", "tar3d.doctor"), beside=True),
    Part(
        "engine",
        70,
        "tests",
        ("tests/gpt/test_on_a_gpu.py", "tests/gpt/test_engine.py", "tests/test_runtime.py"),
    ),
    Part(
        "kernels",
        60,
        "tests",
        (
            "tests/gpt/test_decode_triton.py",
            "tests/gpt/test_loss.py",
            "tests/tokenizer/test_plane_pool.py",
            "tests/mesh/test_extract.py",
            "tests/optim/test_groups.py",
        ),
    ),
    Part("training_tests", 30, "tests", ("tests/training",)),
    Part(
        "train_vqvae",
        35,
        "script",
        (
            *("train_vqvae.py", "--base", "configs/vqvae3d_small.yaml", "--data", "{data}"),
            *("--out", "{work}/vqvae", "train.autoencoder_steps=10", "train.codebook_steps=10"),
            *("train.validate_every=20", "train.save_every=20", "train.validation_shapes=1"),
            *("train.preview_shapes=1", "train.num_workers=2", "optim.warmup_steps=1"),
        ),
        (
            *("train.autoencoder_steps=1", "train.codebook_steps=1", "train.num_workers=1"),
            *("train.batch_size=2", "tokenizer.width=32"),
        ),
    ),
    # Its preview captures CUDA graphs while a thread of the loader pins memory.
    Part(
        "train_gpt",
        60,
        "script",
        (
            *("train_gpt.py", "--gpt-type", "i23d", "--data", "{data}", "--out", "{work}/gpt"),
            *("train.steps=20", "train.validate_every=10", "train.save_every=20"),
            *("train.validation_shapes=1", "train.preview_shapes=1", "train.num_workers=2"),
            *("train.log_every=5", "optim.warmup_steps=1"),
        ),
        (
            *("train.steps=2", "train.global_batch_size=2", "train.code_predictor_rows=0"),
            "train.num_workers=1",
        ),
    ),
    Part("run", 20, "script", ("run.py", "--save-path", "{work}/run", "--device", "{device}")),
    Part(
        "infer_vqvae",
        20,
        "script",
        (
            *("infer_vqvae.py", "--input_file", "{data}/meshes"),
            *("--output_dir", "{work}/rebuilt", "--device", "{device}"),
        ),
        ("--resolution", "32"),
    ),
    Part(
        "eval_3d",
        15,
        "script",
        (
            *("eval_3d.py", "--pred", "{work}/rebuilt", "--gt", "{data}/meshes"),
            *("--out", "{work}/eval_3d", "--device", "{device}"),
        ),
    ),
    Part(
        "eval_2d",
        15,
        "script",
        (
            *("eval_2d.py", "--pred", "{work}/rebuilt", "--gt", "{data}/meshes"),
            *("--out", "{work}/eval_2d", "--device", "{device}"),
        ),
        ("--size", "32"),
    ),
    Part("decode", 120, "suite", ("decode",)),
    Part("train", 110, "suite", ("train",)),
    Part("extract", 40, "suite", ("extract",)),
    Part("tokenizer", 45, "suite", ("tokenizer",)),
    Part("attention", 20, "suite", ("attention",)),
    Part("stages", 10, "suite", ("stages",)),
    Part("data", 10, "suite", ("data",)),
    Part("backends", 25, "tests", ("tests/gpt/test_backends.py",)),
)

# What a session exists for, the cells of docs/speed.md that only a GPU can fill: a figure's name ->
# the suite and the case that has it, or the part whose seconds it is.
FIGURES: dict[str, tuple[str, str]] = {
    "GPT-L, a shape of 3,072 tokens, Triton, batch 1": ("decode", "full/shape_LLLF_triton_batch_1"),
    "GPT-L, 16 shapes of 3,072 tokens, Triton": ("decode", "full/shape_LLLF_triton_batch_16"),
    "... by PyTorch's operations, batch 1": ("decode", "full/shape_LLLF_plain_batch_1"),
    "... by PyTorch's operations, 16 shapes": ("decode", "full/shape_LLLF_plain_batch_16"),
    "GPT-B, hybrid against full attention, batch 1": ("decode", "full/patterns_batch_1"),
    "GPT-B, hybrid against full attention, batch 8": ("decode", "full/patterns_batch_8"),
    "a training step of GPT-L, MFU": ("train", "full/step"),
    "GPT-B, hybrid against full, a step at 3,072 tokens": ("train", "full/patterns_3072"),
    "GPT-B, hybrid against full, a step at 6,912 tokens": ("train", "full/patterns_6912"),
    "cross-entropy over 16,384 codes": ("train", "full/loss"),
    "activation checkpointing": ("train", "full/recompute"),
    "memory of GPT-B with 4 rows": ("train", "full/memory_size_GPT-B"),
    "memory of GPT-L with 4 rows": ("train", "full/memory_size_GPT-L"),
    "extraction at 384^3 against the dense lattice": ("extract", "full/compare_384"),
    "extraction at 1024^3, seconds and memory": ("extract", "full/growth_1024"),
    "a tokenizer step at 81,920 points, hours of the recipe": ("tokenizer", "full/train_81920"),
    "encoding 81,920 points": ("tokenizer", "full/encode_81920"),
    "attention alone at 3,072 tokens, forward": ("attention", "full/forward_3072"),
    "attention alone at 3,072 tokens, backward": ("attention", "full/backward_3072"),
    "shapes a second that the loader gives": ("data", "full/shapes"),
    "run.py on the sample image, seconds": ("run", ""),
}


def missing_packages() -> list[str]:
    """The packages of requirements.txt that are not installed."""
    missing = []
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines():
        name = line.split("#")[0].split(">")[0].split("=")[0].strip()
        if not name:
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    return missing


def missing_figures(reports: dict[str, dict], done: set[str], asked: set[str]) -> dict[str, str]:
    """The figures that are not there, each with the reason.

    `reports` are those of suites by name, `done` the parts that ended without a fault, of those
    that were `asked` for.
    """
    reasons = {}
    for figure, (part, name) in FIGURES.items():
        if part not in asked:
            reasons[figure] = f"the part {part} was not asked for"
            continue
        if not name:
            if part not in done:
                reasons[figure] = f"the part {part} was not reached, or failed"
            continue
        if part not in reports:
            reasons[figure] = f"the suite {part} left no report"
            continue
        records = [record for record in reports[part]["cases"] if record["case"] == name]
        if any("error" not in record and "left_out" not in record for record in records):
            continue
        why = [record.get("error") or record["left_out"] for record in records]
        reasons[figure] = why[0] if why else f"{name} was not reached"
    return reasons
