"""Which choices matter, measured: trains and scores the arms of a study, with tuned rates, equal
budgets and three seeds each.

    python -m benchmarks.ablate attention optimizer        what is missing of these studies (`benchmarks/studies.py`)
    python -m benchmarks.ablate attention --minutes 60     begins nothing new after an hour; the same line goes on later
    python -m benchmarks.ablate --write                    the tables and plots of docs/ablations.md from the results
    python -m benchmarks.ablate attention --gpt-model GPT-B --results FILE     the same at another size, for a GPU

Each run is two commands that anybody can give: train_gpt.py with configs/gpt_ablation.yaml and the
arm's changes, and benchmarks.sampling for its F-score on validation shapes. What runs share is made
once: the code predictor that all begin on (train.stage=code_predictor), and an arm's own tokenizer with its tokens.
First an arm's rates are tried, with half the steps and a seed of their own (the grid grows by a
factor of 2 where its end is the best); then the best is trained for all steps with each seed.
Finished runs are added to --results, one JSON file for all studies: what is in it is not run again.
Run folders are in --out.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tqdm import tqdm

from benchmarks.ablation_report import write_report
from benchmarks.studies import (
    ARMS,
    CODE_PREDICTOR,
    CONFIG,
    MODEL,
    STUDIES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    Arm,
)
from tar3d import checkpoint
from tar3d.config import GPT_SIZES, load_gpt_run, size_values
from tar3d.data.defaults import DEFAULT_FOLDER
from tar3d.gpt.model import GPT
from tar3d.io import write_json
from tar3d.runtime import describe_machine, positive_int

if TYPE_CHECKING:
    from collections.abc import Callable

# Of a data set, for tokens of its own.
LINKED = ("meshes", "views", "samples", "manifest.csv", "captions.csv", "splits.json", "report.csv")
SWEEP_SEED, SWEEP_SHARE, MOST_RATES = 100, 0.5, 6
SHAPES = 48  # of the validation split, generated from one view each
# sampled from the GPT's own distribution: what the recipe's code_predictor_scale adds is the same in all
# arms
ALONE = "code_predictor_scale=0"
RESULTS = Path("benchmarks/results/ablations.json")
READY = "ready.json"  # of a tokenizer or a code predictor that runs share
_PREPARING: dict[Path, threading.Lock] = defaultdict(
    threading.Lock
)  # by folder: one run makes what another waits for


@dataclass(frozen=True)
class Trial:
    """One training: of an arm, at a rate, with a seed, for a share of the steps. `sweep`: one that
    only chooses the rate."""

    arm: Arm
    rate: float
    seed: int
    sweep: bool

    @property
    def key(self) -> str:
        return f"{self.arm.name}/rate{self.rate:g}-{'sweep' if self.sweep else f'seed{self.seed}'}"

    def overrides(self, steps: int, size: tuple[str, ...] = MODEL) -> list[str]:
        return [
            *size,
            *self.arm.changes,
            *self.arm.rate_overrides(self.rate),
            f"train.seed={self.seed}",
            f"train.steps={steps}",
        ]


def missing(arm: Arm, runs: dict[str, dict], seeds: int) -> list[Trial]:
    """What can be run next of an arm: rates that are not tried yet, or else the seeds at the best
    of them."""
    tuned = ARMS[arm.rate_of] if arm.rate_of else arm
    if trials := missing_sweep(tuned, runs):
        return trials
    best = best_rate(tuned, runs)
    return [
        t
        for t in (Trial(arm, best, seed, sweep=False) for seed in range(seeds))
        if t.key not in runs
    ]


def missing_sweep(arm: Arm, runs: dict[str, dict]) -> list[Trial]:
    """The rates that must still be tried: the arm's, and beyond an end of what was tried if that
    was the best."""
    trials = [Trial(arm, rate, SWEEP_SEED, sweep=True) for rate in arm.rates]
    if left := [t for t in trials if t.key not in runs]:
        return left
    tried = sorted(tried_rates(arm, runs))
    best = best_rate(arm, runs)
    further = tried[0] / 2 if best == tried[0] else tried[-1] * 2 if best == tried[-1] else None
    return (
        []
        if further is None or len(tried) == MOST_RATES
        else [Trial(arm, further, SWEEP_SEED, sweep=True)]
    )


def tried_rates(arm: Arm, runs: dict[str, dict]) -> dict[float, float]:
    """NLL of each rate that was tried."""
    return {r["rate"]: r["nll"] for r in runs.values() if r["arm"] == arm.name and r["sweep"]}


def best_rate(arm: Arm, runs: dict[str, dict]) -> float:
    tried = tried_rates(arm, runs)
    return min(tried, key=tried.__getitem__)


def run_trial(trial: Trial, args: argparse.Namespace) -> dict:
    """Trains and, unless it only chooses a rate, scores. Raises RuntimeError with the end of its
    log where a command fails."""
    folder = args.out / trial.key
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer, data, facts = tokens_of(trial.arm, args)
    size, steps = steps_of(trial, tokenizer, args)
    code_predictor = code_predictor_of(trial.arm, tokenizer, data, args)
    train = [
        *_train_gpt(tokenizer, data, folder / "run", args),
        *(["--init-code-predictor", code_predictor] if code_predictor else []),
        *trial.overrides(steps, size_overrides(args.gpt_model)),
    ]
    _command(train, folder / "train.log", args.threads)
    last = _last_validation(folder / "run")
    model = json.loads(
        (folder / "run" / "model" / "gpt_i23d" / "metrics.json").read_text(encoding="utf-8")
    )
    record = {
        "arm": trial.arm.name,
        "rate": trial.rate,
        "seed": trial.seed,
        "sweep": trial.sweep,
        "steps": steps,
        **{name: last[name] for name in ("nll", "nll_shuffled", "nll_null")},
        "hours": round(model["hours"], 4),
        **size,
        **facts,
        **_origin(train),
    }
    if trial.sweep:
        return record
    _command(
        [
            "-m",
            "benchmarks.sampling",
            "--gpt-type",
            "i23d",
            "--model",
            str(folder / "run" / "model"),
            "--data",
            str(data),
            "--shapes",
            str(SHAPES),
            "--out",
            str(folder / "sampling"),
            "--settings",
            *([ALONE] if code_predictor else []),
        ],
        folder / "sampling.log",
        args.threads,
    )
    results = json.loads((folder / "sampling" / "sampling.json").read_text(encoding="utf-8"))[
        "results"
    ]
    made, bound = results["as saved"], results["reconstruction"]
    alone = results[ALONE] if code_predictor else made
    return record | {
        "fscore": made["fscore"]["mean"],
        "fscore_alone": alone["fscore"]["mean"],
        "chamfer": made["chamfer"]["mean"],
        "empty": made["chamfer"]["missing"],
        "reconstruction": bound["fscore"]["mean"],
    }


def tokens_of(arm: Arm, args: argparse.Namespace) -> tuple[str, Path, dict]:
    """The tokenizer and the data of an arm, and what is noted of them. One of its own is trained
    when it is not there, and its tokens are made in a folder that has the data set's other parts as
    links."""
    if arm.tokenizer is None:
        return args.vq_ckpt, args.data, {}
    folder = args.out / arm.name / "tokenizer"
    model, own = folder / "run" / "model", folder / "data"

    def make_tokens() -> None:
        own.mkdir(exist_ok=True)
        for name in LINKED:
            if (args.data / name).exists() and not (own / name).exists():
                (own / name).symlink_to((args.data / name).resolve())
        _command(
            [
                "-m",
                "tar3d.data.make_tokens",
                str(own),
                "--tokenizer",
                str(model),
                "--config",
                CONFIG,
            ],
            folder / "tokens.log",
            args.threads,
        )

    train = [
        "train_vqvae.py",
        "--base",
        TOKENIZER_CONFIG,
        "--data",
        str(args.data),
        "--out",
        str(folder / "run"),
        "--resume",
        "auto",
        *TOKENIZER,
        *arm.tokenizer,
    ]
    made = train_once(folder, train, args.threads, make_tokens)
    return (
        str(model),
        own,
        {
            "tokenizer": {
                name: made[name]
                for name in ("iou_volume", "iou_near", "codebook_usage", "perplexity", "command")
            }
        },
    )


def code_predictor_of(arm: Arm, tokenizer: str, data: Path, args: argparse.Namespace) -> str | None:
    """The code predictor that an arm's GPTs begin on, trained alone when it is not there: one for all arms
    with the same tokens in the same order, so that arms and seeds differ in the GPT and in nothing
    else. None for an arm without a code predictor."""
    if "gpt.code_predictor_dim=0" in arm.changes:
        return None
    order = [change for change in arm.changes if change.startswith("gpt.token_order=")]
    name = "-".join(
        [
            "shipped" if arm.tokenizer is None else arm.name,
            *(change.partition("=")[2] for change in order),
        ]
    )
    folder = args.out / "code_predictors" / name
    train_once(
        folder,
        [
            *_train_gpt(tokenizer, data, folder / "run", args),
            *size_overrides(args.gpt_model),
            *CODE_PREDICTOR,
            *order,
        ],
        args.threads,
    )
    return str(folder / "run" / "model" / "gpt_i23d")


def train_once(
    folder: Path, train: list[str], threads: int, then: Callable[[], None] = lambda: None
) -> dict:
    """What runs share is trained into `folder` by whichever asks first, with what comes `then`,
    while the others wait; returns its last validation and its command."""
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
        "train_gpt.py",
        "--gpt-type",
        "i23d",
        "--gpt-model",
        args.gpt_model,
        "--config",
        CONFIG,
        "--data",
        str(data),
        "--vq-ckpt",
        tokenizer,
        "--out",
        str(out),
        "--resume",
        "auto",
    ]


def size_overrides(gpt_model: str) -> tuple[str, ...]:
    """GPT-tiny stands for the size of the studies, which has no name; the others are as named."""
    if gpt_model == "GPT-tiny":
        return MODEL
    return tuple(f"gpt.{name}={value}" for name, value in size_values(gpt_model).items())


def steps_of(
    trial: Trial, tokenizer: str, args: argparse.Namespace
) -> tuple[dict[str, float], int]:
    """A GPT's size, and the steps of its training: the recipe's, or what costs the same where its
    tokens are others."""
    named = size_overrides(args.gpt_model)
    config, default = (
        load_gpt_run(
            CONFIG, args.gpt_model, checkpoint.load_tokenizer(source).config, [*named, *changes]
        )
        for source, changes in ((tokenizer, trial.arm.changes), (args.vq_ckpt, ()))
    )
    gpt, share = GPT(config.gpt), SWEEP_SHARE if trial.sweep else trial.arm.share
    flops = gpt.flops(config.gpt.condition_tokens, config.gpt.num_tokens)
    if trial.arm.tokenizer is not None:
        share *= (
            GPT(default.gpt).flops(default.gpt.condition_tokens, default.gpt.num_tokens) / flops
        )
    return {
        "tokens": config.gpt.num_tokens,
        "million_parameters": round(gpt.num_parameters(embeddings=False) / 1e6, 3),
        "gflop_a_step": round(3 * config.train.global_batch_size * flops / 1e9, 2),
    }, round(config.train.steps * share)


def _last_validation(run: Path) -> dict[str, float]:
    with open(run / "validation.csv", newline="", encoding="utf-8") as f:
        return {name: float(value) for name, value in list(csv.DictReader(f))[-1].items()}


def _origin(command: list[str]) -> dict[str, str]:
    return {
        "command": " ".join(["python", *command]),
        "date": str(date.today()),
        **describe_machine(torch.device("cpu")),
    }


def _command(arguments: list[str], log: Path, threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with open(log, "a", encoding="utf-8") as f:
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


def load_results(path: Path) -> dict:
    return (
        json.loads(path.read_text(encoding="utf-8"))
        if path.is_file()
        else {"recipe": recipe(), "runs": {}}
    )


def recipe() -> str:
    """A short hash of what all runs have in common: results of another recipe cannot be compared
    with these."""
    shared = [Path(name).read_text(encoding="utf-8") for name in (CONFIG, TOKENIZER_CONFIG)]
    return hashlib.sha256(
        repr((*shared, MODEL, CODE_PREDICTOR, TOKENIZER, SWEEP_SEED, SWEEP_SHARE, SHAPES)).encode()
    ).hexdigest()[:16]


def run_all(arms: list[Arm], args: argparse.Namespace) -> dict[str, str]:
    """Runs what is missing of the arms, `args.workers` at a time, and saves each result as it
    comes; returns what failed, and why."""
    results, failed, began = load_results(args.results), {}, time.perf_counter()
    if results["recipe"] != recipe():
        raise ValueError(
            f"{args.results} holds runs of another recipe ({CONFIG}, {TOKENIZER_CONFIG} or benchmarks/studies.py "
            "have changed since): give other files with --results and --out, or delete these"
        )
    running: dict[Future, Trial] = {}
    bar = tqdm(unit="run", total=len(_left(arms, results["runs"], args.seeds)))
    with ThreadPoolExecutor(args.workers) as pool, bar:
        while True:
            late = args.minutes is not None and time.perf_counter() - began > 60 * args.minutes
            known = {t.key for t in running.values()} | failed.keys()
            ready = (
                []
                if late
                else [t for t in _left(arms, results["runs"], args.seeds) if t.key not in known]
            )
            for trial in ready[: args.workers - len(running)]:
                running[pool.submit(run_trial, trial, args)] = trial
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial = running.pop(future)
                try:
                    record = future.result()
                except (RuntimeError, OSError, ValueError, KeyError) as e:
                    failed[trial.key] = str(e)
                    bar.write(f"{trial.key}: {e}")
                    continue
                results["runs"][trial.key] = record
                write_json(args.results, results)
                bar.write(
                    f"{trial.key}: NLL {record['nll']:.4f}"
                    + (f", F-score {record['fscore']:.3f}" if "fscore" in record else "")
                )
                bar.update()
                bar.total = bar.n + len(_left(arms, results["runs"], args.seeds))


def _left(arms: list[Arm], runs: dict[str, dict], seeds: int) -> list[Trial]:
    """Each trial that can be run now, once; the first seed of all arms before the second, so that
    tokenizers of arms are trained side by side, and not one while all others wait for it."""
    trials = {trial.key: trial for arm in arms for trial in missing(arm, runs, seeds)}
    return sorted(trials.values(), key=lambda trial: (not trial.sweep, trial.seed))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}")
    parser.add_argument(
        "--write",
        action="store_true",
        help="bring the tables and plots of docs/ablations.md up to date",
    )
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_FOLDER, help="data set folder (default: %(default)s)"
    )
    parser.add_argument(
        "--vq-ckpt", default="pretrained/tiny/tokenizer", help="tokenizer (default: %(default)s)"
    )
    parser.add_argument(
        "--gpt-model",
        choices=list(GPT_SIZES),
        default="GPT-tiny",
        help="size by name (default: 12 layers, 96 wide); give it --out and --results of its own",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/ablate"),
        help="run folders (default: %(default)s)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--seeds", type=positive_int, default=3, help="default: %(default)s")
    parser.add_argument(
        "--workers", type=positive_int, default=2, help="trainings at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=positive_int, default=1, help="of each of them (default: %(default)s)"
    )
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.studies if name not in STUDIES]:
        parser.error(f"no such study: {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    names = dict.fromkeys(arm for study in args.studies for arm in STUDIES[study].arms)
    try:
        failed = run_all([ARMS[name] for name in names], args) if names else {}
        if args.write:
            write_report(load_results(args.results))
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    for key, reason in failed.items():
        print(f"{key}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
