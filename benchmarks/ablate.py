"""Which choices matter, measured: trains and scores the arms of a study, with tuned rates, equal budgets and three seeds each.

    python -m benchmarks.ablate attention optimizer        what is missing of these studies (`benchmarks/studies.py`)
    python -m benchmarks.ablate attention --minutes 60     begins nothing new after an hour; the same line goes on later
    python -m benchmarks.ablate --write                    the tables and plots of docs/ablations.md from the results

Each run is two commands that anybody can give: train_gpt.py with configs/gpt_ablation.yaml and the arm's changes, and
benchmarks.sampling for its F-score on validation shapes. First an arm's rates are tried, with half the steps and a seed of
their own (the grid grows by a factor of 2 where its end is the best); then the best is trained for all steps with each seed.
Finished runs are added to --results, one JSON file for all studies: what is in it is not run again. Run folders are in --out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.ablation_report import write_report
from benchmarks.studies import ARMS, MODEL, STUDIES, Arm
from tar3d.config import GPTRunConfig, load_gpt_run
from tar3d.data.default import DEFAULT_FOLDER
from tar3d.data.folder import write_json
from tar3d.pipeline import load_gpt
from tar3d.runtime import describe_machine, positive_int

CONFIG = "configs/gpt_ablation.yaml"
SWEEP_SEED, SWEEP_SHARE, MOST_RATES = 100, 0.5, 6
SHAPES = 48  # of the validation split, generated from one view each
RESULTS = Path("benchmarks/results/ablations.json")


@dataclass(frozen=True)
class Trial:
    """One training: of an arm, at a rate, with a seed, for a share of the steps. `sweep`: one that only chooses the rate."""

    arm: Arm
    rate: float
    seed: int
    sweep: bool

    @property
    def key(self) -> str:
        return f"{self.arm.name}/rate{self.rate:g}-{'sweep' if self.sweep else f'seed{self.seed}'}"

    def steps(self, config: GPTRunConfig) -> int:
        return round(config.train.steps * (SWEEP_SHARE if self.sweep else self.arm.share))

    def overrides(self, config: GPTRunConfig) -> list[str]:
        return [*MODEL, *self.arm.changes, *self.arm.rate_overrides(self.rate), f"train.seed={self.seed}",
                f"train.steps={self.steps(config)}"]


def missing(arm: Arm, runs: dict[str, dict], seeds: int) -> list[Trial]:
    """What can be run next of an arm: rates that are not tried yet, or else the seeds at the best of them."""
    if arm.rate_of:
        tuned = ARMS[arm.rate_of]
        if missing_sweep(tuned, runs):
            return missing_sweep(tuned, runs)
        best = best_rate(tuned, runs)
    else:
        if trials := missing_sweep(arm, runs):
            return trials
        best = best_rate(arm, runs)
    return [t for t in (Trial(arm, best, seed, sweep=False) for seed in range(seeds)) if t.key not in runs]


def missing_sweep(arm: Arm, runs: dict[str, dict]) -> list[Trial]:
    """The rates that must still be tried: the arm's, and beyond an end of what was tried if that was the best."""
    trials = [Trial(arm, rate, SWEEP_SEED, sweep=True) for rate in arm.rates]
    if left := [t for t in trials if t.key not in runs]:
        return left
    tried = sorted(tried_rates(arm, runs))
    best = best_rate(arm, runs)
    further = tried[0] / 2 if best == tried[0] else tried[-1] * 2 if best == tried[-1] else None
    return [] if further is None or len(tried) == MOST_RATES else [Trial(arm, further, SWEEP_SEED, sweep=True)]


def tried_rates(arm: Arm, runs: dict[str, dict]) -> dict[float, float]:
    """NLL of each rate that was tried."""
    return {r["rate"]: r["nll"] for r in runs.values() if r["arm"] == arm.name and r["sweep"]}


def best_rate(arm: Arm, runs: dict[str, dict]) -> float:
    tried = tried_rates(arm, runs)
    return min(tried, key=tried.__getitem__)


def run_trial(trial: Trial, config: GPTRunConfig, args: argparse.Namespace) -> dict:
    """Trains and, unless it only chooses a rate, scores. Raises RuntimeError with the end of its log where a command fails."""
    folder = args.out / trial.key
    folder.mkdir(parents=True, exist_ok=True)
    overrides = trial.overrides(config)
    train = ["train_gpt.py", "--gpt-type", "i23d", "--config", CONFIG, "--data", str(args.data), "--vq-ckpt", args.vq_ckpt,
             "--out", str(folder / "run"), "--resume", "auto", *overrides]
    _command(train, folder / "train.log", args.threads)
    with open(folder / "run" / "validation.csv", newline="", encoding="utf-8") as f:
        last = list(csv.DictReader(f))[-1]
    model = json.loads((folder / "run" / "model" / "gpt_i23d" / "metrics.json").read_text(encoding="utf-8"))
    record = {"arm": trial.arm.name, "rate": trial.rate, "seed": trial.seed, "sweep": trial.sweep, "steps": trial.steps(config),
              **{name: float(last[name]) for name in ("nll", "nll_shuffled", "nll_null")},
              "hours": round(model["hours"], 4), **_size(folder / "run", config), "command": " ".join(["python", *train]),
              "date": str(date.today()), **describe_machine(torch.device("cpu"))}
    if trial.sweep:
        return record
    _command(["-m", "benchmarks.sampling", "--gpt-type", "i23d", "--model", str(folder / "run" / "model"), "--data",
              str(args.data), "--shapes", str(SHAPES), "--settings", "--out", str(folder / "sampling")],
             folder / "sampling.log", args.threads)
    found = json.loads((folder / "sampling" / "sampling.json").read_text(encoding="utf-8"))["results"]["as saved"]
    return record | {name: found[name]["mean"] for name in ("fscore", "chamfer")} | {"empty": found["chamfer"]["missing"]}


def _size(run: Path, config: GPTRunConfig) -> dict[str, float]:
    gpt = load_gpt(run / "model" / "gpt_i23d").gpt
    flops = 3 * config.train.global_batch_size * gpt.flops(gpt.config.condition_tokens, gpt.config.num_tokens)
    return {"million_parameters": round(gpt.num_parameters(embeddings=False) / 1e6, 3), "gflop_a_step": round(flops / 1e9, 2)}


def _command(arguments: list[str], log: Path, threads: int) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    with open(log, "a", encoding="utf-8") as f:
        code = subprocess.run([sys.executable, *arguments], stdout=f, stderr=subprocess.STDOUT, env=environment,
                              check=False).returncode
    if code:
        end = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").strip().splitlines()[-5:]
        raise RuntimeError(f"python {' '.join(arguments)} ended with {code}; {log} ends with: " + " | ".join(end))


def load_results(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"runs": {}}


def run_all(arms: list[Arm], args: argparse.Namespace) -> list[str]:
    """Runs what is missing of the arms, `args.workers` at a time, and saves each result as it comes; returns what failed."""
    config = load_gpt_run(CONFIG, "GPT-tiny", _tokenizer(args.vq_ckpt), list(MODEL))
    results, failed, began = load_results(args.results), [], time.perf_counter()
    running: dict[Future, Trial] = {}
    bar = tqdm(unit="run", total=sum(1 for _ in _left(arms, results["runs"], args.seeds)))
    with ThreadPoolExecutor(args.workers) as pool, bar:
        while True:
            late = args.minutes is not None and time.perf_counter() - began > 60 * args.minutes
            known = {t.key for t in running.values()} | {message.split(":")[0] for message in failed}
            ready = [] if late else [t for t in _left(arms, results["runs"], args.seeds) if t.key not in known]
            for trial in ready[: args.workers - len(running)]:
                running[pool.submit(run_trial, trial, config, args)] = trial
            if not running:
                return failed
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial = running.pop(future)
                try:
                    record = future.result()
                except (RuntimeError, OSError, ValueError, KeyError) as e:
                    failed.append(f"{trial.key}: {e}")
                    bar.write(failed[-1])
                    continue
                results["runs"][trial.key] = record
                write_json(args.results, results)
                bar.write(f"{trial.key}: NLL {record['nll']:.4f}"
                          + (f", F-score {record['fscore']:.3f}" if "fscore" in record else ""))
                bar.update()
                bar.total = bar.n + sum(1 for _ in _left(arms, results["runs"], args.seeds))


def _left(arms: list[Arm], runs: dict[str, dict], seeds: int) -> Iterator[Trial]:
    """Each trial that can be run now, once."""
    seen = set()
    for trial in (t for arm in arms for t in missing(arm, runs, seeds)):
        if trial.key not in seen:
            seen.add(trial.key)
            yield trial


def _tokenizer(source: str):
    from tar3d import checkpoint

    return checkpoint.load_tokenizer(source).config


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"of {', '.join(STUDIES)}")
    parser.add_argument("--write", action="store_true", help="bring the tables and plots of docs/ablations.md up to date")
    parser.add_argument("--data", type=Path, default=DEFAULT_FOLDER, help="data set folder (default: %(default)s)")
    parser.add_argument("--vq-ckpt", default="pretrained/tiny/tokenizer", help="tokenizer (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/ablate"), help="run folders (default: %(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="default: %(default)s")
    parser.add_argument("--seeds", type=positive_int, default=3, help="default: %(default)s")
    parser.add_argument("--workers", type=positive_int, default=2, help="trainings at a time (default: %(default)s)")
    parser.add_argument("--threads", type=positive_int, default=1, help="of each of them (default: %(default)s)")
    parser.add_argument("--minutes", type=float, help="begin no run after so many minutes")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.studies if name not in STUDIES]:
        parser.error(f"no such study: {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    names = dict.fromkeys(arm for study in args.studies for arm in STUDIES[study].arms)
    failed = run_all([ARMS[name] for name in names], args) if names else []
    if args.write:
        write_report(load_results(args.results))
    for message in failed:
        print(message, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
