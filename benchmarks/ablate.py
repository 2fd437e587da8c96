"""Measures which choices matter: trains and scores the variants of an ablation study.

Each variant has a tuned learning rate, the same budget and three seeds.

    python -m benchmarks.ablate attention optimizer       the missing runs of these studies
    python -m benchmarks.ablate attention --minutes 60    begins no run after an hour; call it again
    python -m benchmarks.ablate --write                   tables and plots of docs/ablations.md
    python -m benchmarks.ablate attention --gpt-model GPT-B --results FILE    another size

Each run is two commands that anybody can give: train_gpt.py with configs/gpt_ablation.yaml and the
variant's changes (`benchmarks/ablation/variants.py`), and benchmarks.sampling for its F-score on
validation shapes. Parts that runs share are made once: the code predictor that all begin with
(train.stage=code_predictor), and a variant's own tokenizer with its tokens. First a variant's rates
are tried, with half the steps and a seed of their own (the grid grows by a factor of 2 where its
end is the best); then the best rate is trained for all steps with each seed. Finished runs are
added to --results, one JSON file for all studies, and are not run again. Run folders are in --out.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from benchmarks.ablation import trials
from benchmarks.ablation.tables import write_tables
from benchmarks.ablation.trials import Trial, first_seeds_first, run_trial
from benchmarks.ablation.variants import (
    CODE_PREDICTOR,
    CONFIG,
    MODEL,
    STUDIES,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VARIANTS,
    Variant,
)
from tar3d.config import GPT_SIZES
from tar3d.data.defaults import DEFAULT_FOLDER
from tar3d.io import write_json
from tar3d.runtime import command, command_parser, positive_int, progress_bar

if TYPE_CHECKING:
    import argparse

RESULTS = Path("benchmarks/results/ablations.json")


def load_results(path: Path) -> dict:
    """The results in a file, or none of today's recipe where there is no file."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"recipe": recipe(), "runs": {}}


def recipe() -> str:
    """A short hash of the values that all runs have in common.

    Results of another recipe cannot be compared with these.
    """
    configs = [OmegaConf.to_container(OmegaConf.load(p)) for p in (CONFIG, TOKENIZER_CONFIG)]
    settings = [MODEL, CODE_PREDICTOR, TOKENIZER]
    numbers = [trials.SWEEP_SEED, trials.SWEEP_SHARE, trials.SHAPES]
    text = json.dumps([configs, settings, numbers], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_all(variants: list[Variant], args: argparse.Namespace) -> dict[str, str]:
    """Runs what is missing of the variants, `args.workers` at a time.

    Each result is saved as it comes. Returns the reasons of failed runs by their key. Raises
    ValueError where the results are of another recipe.
    """
    results, began = load_results(args.results), time.perf_counter()
    failed: dict[str, str] = {}
    if results["recipe"] != recipe():
        raise ValueError(
            f"{args.results} holds runs of another recipe ({CONFIG}, {TOKENIZER_CONFIG} or "
            "benchmarks/ablation/variants.py have changed since): give other files with --results "
            "and --out, or delete these"
        )

    def left() -> list[Trial]:
        return first_seeds_first(variants, results["runs"], args.seeds)

    running: dict[Future, Trial] = {}
    bar = progress_bar(unit="run", total=len(left()))
    with ThreadPoolExecutor(args.workers) as pool, bar:
        while True:
            is_late = args.minutes is not None and time.perf_counter() - began > 60 * args.minutes
            known = {t.key for t in running.values()} | failed.keys()
            ready = [] if is_late else [t for t in left() if t.key not in known]
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
                fscore = f", F-score {record['fscore']:.3f}" if "fscore" in record else ""
                bar.write(f"{trial.key}: NLL {record['nll']:.4f}{fscore}")
                bar.update()
                bar.total = bar.n + len(left())


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__)
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
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if unknown := [name for name in args.studies if name not in STUDIES]:
        parser.error(f"no such study: {', '.join(unknown)}; there are {', '.join(STUDIES)}")
    names = dict.fromkeys(name for study in args.studies for name in STUDIES[study].variants)
    try:
        failed = run_all([VARIANTS[name] for name in names], args) if names else {}
        if args.write:
            write_tables(load_results(args.results))
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    for key, reason in failed.items():
        print(f"{key}: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
