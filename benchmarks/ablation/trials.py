"""The runs of an ablation study: which are missing, and the commands of each.

`args` are the arguments of `benchmarks/ablate.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import TYPE_CHECKING

from benchmarks.ablation.variants import (
    CODE_PREDICTOR,
    CONFIG,
    MODEL,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VARIANTS,
    Variant,
)
from tar3d.config import load_gpt_run, size_values
from tar3d.data.formats.tables import read_rows
from tar3d.io import write_json
from tar3d.runtime import describe_machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from pathlib import Path

# Parts of a data set that are linked into a folder with tokens of its own.
LINKED = ("meshes", "views", "samples", "manifest.csv", "captions.csv", "splits.json", "report.csv")
SWEEP_SEED, SWEEP_SHARE, MOST_RATES = 100, 0.5, 6
SHAPES = 48  # of the validation split, generated from one view each
# Samples from the GPT's own distribution: what the recipe's code_predictor_scale adds is the same
# in all variants.
ALONE = "code_predictor_scale=0"
READY = "ready.json"  # of a tokenizer or a code predictor that runs share
# By folder: one run makes what another waits for.
_PREPARING: dict[Path, threading.Lock] = defaultdict(threading.Lock)


@dataclass(frozen=True)
class Trial:
    """One training of a variant, at a rate and with a seed; a `sweep` only chooses the rate."""

    variant: Variant
    rate: float
    seed: int
    sweep: bool

    @property
    def key(self) -> str:
        run = "sweep" if self.sweep else f"seed{self.seed}"
        return f"{self.variant.name}/rate{self.rate:g}-{run}"

    def overrides(self, steps: int, size: tuple[str, ...] = MODEL) -> list[str]:
        return [
            *size,
            *self.variant.changes,
            *self.variant.rate_overrides(self.rate),
            f"train.seed={self.seed}",
            f"train.steps={steps}",
        ]


def missing(variant: Variant, runs: dict[str, dict], seeds: int) -> list[Trial]:
    """The next runs of a variant: rates that are not tried yet, or the seeds at the best rate."""
    tuned = VARIANTS[variant.rate_of] if variant.rate_of else variant
    if trials := missing_sweep(tuned, runs):
        return trials
    best = best_rate(tuned, runs)
    return [
        t
        for t in (Trial(variant, best, seed, sweep=False) for seed in range(seeds))
        if t.key not in runs
    ]


def missing_sweep(variant: Variant, runs: dict[str, dict]) -> list[Trial]:
    """The rates that must still be tried.

    They are the variant's own, and one beyond an end of the tried ones if that end was the best.
    """
    trials = [Trial(variant, rate, SWEEP_SEED, sweep=True) for rate in variant.rates]
    if left := [t for t in trials if t.key not in runs]:
        return left
    tried = sorted(tried_rates(variant, runs))
    best = best_rate(variant, runs)
    beyond = tried[0] / 2 if best == tried[0] else tried[-1] * 2 if best == tried[-1] else None
    if beyond is None or len(tried) == MOST_RATES:
        return []
    return [Trial(variant, beyond, SWEEP_SEED, sweep=True)]


def tried_rates(variant: Variant, runs: dict[str, dict]) -> dict[float, float]:
    """NLL of each rate that was tried."""
    return {r["rate"]: r["nll"] for r in runs.values() if r["arm"] == variant.name and r["sweep"]}


def best_rate(variant: Variant, runs: dict[str, dict]) -> float:
    """The rate with the least NLL."""
    tried = tried_rates(variant, runs)
    return min(tried, key=tried.__getitem__)


def first_seeds_first(variants: list[Variant], runs: dict[str, dict], seeds: int) -> list[Trial]:
    """Each trial that can be run now, once.

    The first seed of all variants comes before the second, so that tokenizers of variants are
    trained side by side, and not one while all others wait for it.
    """
    trials = {t.key: t for variant in variants for t in missing(variant, runs, seeds)}
    return sorted(trials.values(), key=lambda trial: (not trial.sweep, trial.seed))


def run_trial(trial: Trial, args: argparse.Namespace) -> dict:
    """Trains and, unless it only chooses a rate, scores; returns the record of the run.

    Raises RuntimeError with the end of its log where a command fails.
    """
    folder = args.out / trial.key
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, data, facts = tokens_of(trial.variant, args)
    size, steps = steps_of(trial, tokenizer, args)
    code_predictor = code_predictor_of(trial.variant, tokenizer, data, args)
    train = [
        *_train_gpt(tokenizer, data, folder / "run", args),
        *(["--init-code-predictor", code_predictor] if code_predictor else []),
        *trial.overrides(steps, size_overrides(args.gpt_model)),
    ]
    _command(train, folder / "train.log", args.threads)
    last = _last_validation(folder / "run")
    metrics = folder / "run" / "model" / "gpt_i23d" / "metrics.json"
    record = {
        "arm": trial.variant.name,
        "rate": trial.rate,
        "seed": trial.seed,
        "sweep": trial.sweep,
        "steps": steps,
        **{name: last[name] for name in ("nll", "nll_shuffled", "nll_null")},
        "hours": round(json.loads(metrics.read_text(encoding="utf-8"))["hours"], 4),
        **size,
        **facts,
        **_origin(train),
    }
    if trial.sweep:
        return record
    return record | score_samples(folder, data, args.threads, alone=bool(code_predictor))


def score_samples(folder: Path, data: Path, threads: int, *, alone: bool) -> dict[str, float]:
    """Generates shapes with the model in `folder`/run and scores them.

    With `alone` they are generated again without what a code predictor adds.
    """
    _command(
        [
            *("-m", "benchmarks.sampling", "--gpt-type", "i23d"),
            *("--model", str(folder / "run" / "model"), "--data", str(data)),
            *("--shapes", str(SHAPES), "--out", str(folder / "sampling")),
            *("--settings", *([ALONE] if alone else [])),
        ],
        folder / "sampling.log",
        threads,
    )
    text = (folder / "sampling" / "sampling.json").read_text(encoding="utf-8")
    results = json.loads(text)["results"]
    as_saved, bound = results["as saved"], results["reconstruction"]
    return {
        "fscore": as_saved["fscore"]["mean"],
        "fscore_alone": (results[ALONE] if alone else as_saved)["fscore"]["mean"],
        "chamfer": as_saved["chamfer"]["mean"],
        "empty": as_saved["chamfer"]["missing"],
        "reconstruction": bound["fscore"]["mean"],
    }


def tokens_of(variant: Variant, args: argparse.Namespace) -> tuple[str, Path, dict]:
    """The tokenizer and the data of a variant, and what is noted of them.

    A tokenizer of its own is trained when it is not there. Tokens of its own are made in a folder
    that has the data set's other parts as links.
    """
    if variant.tokenizer is None:
        if not (changes := variant.token_changes):
            return args.vq_ckpt, args.data, {}
        folder = args.out / "tokens" / token_name(variant)
        with _PREPARING[folder]:
            if not (folder / READY).is_file():
                make_tokens(args.vq_ckpt, folder, args, changes)
                write_json(folder / READY, {})
        return args.vq_ckpt, folder / "data", {}
    folder = args.out / variant.name / "tokenizer"
    model = folder / "run" / "model"

    train = [
        *("train_vqvae.py", "--base", TOKENIZER_CONFIG, "--data", str(args.data)),
        *("--out", str(folder / "run"), "--resume", "auto"),
        *TOKENIZER,
        *variant.tokenizer,
    ]
    made = train_once(folder, train, args.threads, partial(make_tokens, str(model), folder, args))
    noted = ("iou_volume", "iou_near", "codebook_usage", "perplexity", "command")
    return str(model), folder / "data", {"tokenizer": {name: made[name] for name in noted}}


def token_name(variant: Variant) -> str:
    """A name for the tokens of a variant, the same for all that have the same tokens."""
    if variant.tokenizer is not None:
        return variant.name
    changed = (change.removeprefix("train.token_") for change in variant.token_changes)
    return "-".join(["shipped", *(change.replace("=", "") for change in changed)])


def make_tokens(
    tokenizer: str, folder: Path, args: argparse.Namespace, changes: tuple[str, ...] = ()
) -> None:
    """Makes the tokens of `folder`/data, whose other parts are links to those of the data set."""
    own = folder / "data"
    own.mkdir(exist_ok=True, parents=True)
    for name in LINKED:
        if (args.data / name).exists() and not (own / name).exists():
            (own / name).symlink_to((args.data / name).resolve())
    command = ["-m", "tar3d.data.make_tokens", str(own), "--tokenizer", tokenizer]
    _command([*command, "--config", CONFIG, *changes], folder / "tokens.log", args.threads)


def code_predictor_of(
    variant: Variant, tokenizer: str, data: Path, args: argparse.Namespace
) -> str | None:
    """The code predictor that a variant's GPTs begin with, trained alone when it is not there.

    There is one for all variants with the same tokens in the same order, so that variants and seeds
    differ in the GPT alone. None for a variant without a code predictor.
    """
    if "gpt.code_predictor_dim=0" in variant.changes:
        return None
    order = [change for change in variant.changes if change.startswith("gpt.token_order=")]
    name = "-".join([token_name(variant), *(change.partition("=")[2] for change in order)])
    folder = args.out / "code_predictors" / name
    train = [
        *_train_gpt(tokenizer, data, folder / "run", args),
        *size_overrides(args.gpt_model),
        *CODE_PREDICTOR,
        "train.code_predictor_weight=1",  # 0 in the configuration, for the transformer's stage
        *order,
        *variant.token_changes,
    ]
    train_once(folder, train, args.threads)
    return str(folder / "run" / "model" / "gpt_i23d")


def train_once(
    folder: Path, train: list[str], threads: int, then: Callable[[], None] = lambda: None
) -> dict:
    """Trains what runs share into `folder`, and calls `then`, unless that was done before.

    Whichever run asks first does it while the others wait. Returns the last validation and the
    command.
    """
    with _PREPARING[folder]:
        if not (folder / READY).is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _command(train, folder / "train.log", threads)
            then()
            write_json(
                folder / READY,
                _last_validation(folder / "run") | {"command": " ".join(["python", *train])},
            )
        return json.loads((folder / READY).read_text(encoding="utf-8"))


def _train_gpt(tokenizer: str, data: Path, out: Path, args: argparse.Namespace) -> list[str]:
    return [
        *("train_gpt.py", "--gpt-type", "i23d", "--gpt-model", args.gpt_model, "--config", CONFIG),
        *("--data", str(data), "--vq-ckpt", tokenizer, "--out", str(out), "--resume", "auto"),
    ]


def size_overrides(gpt_model: str) -> tuple[str, ...]:
    """Changes for a size: GPT-tiny stands for that of the studies, the others are as named."""
    if gpt_model == "GPT-tiny":
        return MODEL
    return tuple(f"gpt.{name}={value}" for name, value in size_values(gpt_model).items())


def steps_of(
    trial: Trial, tokenizer: str, args: argparse.Namespace
) -> tuple[dict[str, float], int]:
    """A GPT's size, and the steps of its training.

    They are the recipe's steps, or as many as cost the same where the tokens are others.
    """
    from tar3d import checkpoint
    from tar3d.gpt.model import GPT

    named = size_overrides(args.gpt_model)
    config, default = (
        load_gpt_run(
            CONFIG, args.gpt_model, checkpoint.load_tokenizer(source).config, [*named, *changes]
        )
        for source, changes in ((tokenizer, trial.variant.changes), (args.vq_ckpt, ()))
    )
    gpt, share = GPT(config.gpt), SWEEP_SHARE if trial.sweep else trial.variant.share
    flops = gpt.flops(config.gpt.condition_tokens, config.gpt.num_tokens)
    if trial.variant.tokenizer is not None or trial.variant.equal_cost:
        share *= (
            GPT(default.gpt).flops(default.gpt.condition_tokens, default.gpt.num_tokens) / flops
        )
    return {
        "tokens": config.gpt.num_tokens,
        "million_parameters": round(gpt.num_parameters(embeddings=False) / 1e6, 3),
        "gflop_a_step": round(3 * config.train.global_batch_size * flops / 1e9, 2),
    }, round(config.train.steps * share)


def _last_validation(run: Path) -> dict[str, float]:
    *_, (_, last) = read_rows(run / "validation.csv", "step")
    return {name: float(value) for name, value in last.items()}


def _origin(command: list[str]) -> dict[str, str]:
    import torch

    return {
        "command": " ".join(["python", *command]),
        "date": str(date.today()),
        **describe_machine(torch.device("cpu")),
    }


def _command(arguments: list[str], log: Path, threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with log.open("a", encoding="utf-8") as f:
        code = subprocess.run(
            [sys.executable, *arguments],
            stdout=f,
            stderr=subprocess.STDOUT,
            env=environment,
            check=False,
        ).returncode
    if code:
        end = (
            log.read_text(encoding="utf-8", errors="replace")
            .replace("\r", "\n")
            .strip()
            .splitlines()[-5:]
        )
        raise RuntimeError(
            f"python {' '.join(arguments)} ended with {code}; {log} ends with: " + " | ".join(end)
        )
