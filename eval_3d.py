"""Scores meshes against the truth, and says exactly what was measured.

    python eval_3d.py                        the shipped model on unseen shapes, with baselines
    python eval_3d.py --gpt-type t23d        ... from captions: does the text matter?
    python eval_3d.py --gpt-type uncond      ... from nothing, as a set: coverage, MMD, 1-NN
    python eval_3d.py --model MODEL --test DATA --train DATA    your model on your data set
    python eval_3d.py --pred DIR --gt DIR --out OUT    any meshes, paired by file name
    python eval_3d.py --pairs PAIRS.csv --out OUT      ... by a CSV with the columns id, pred, truth
    python eval_3d.py --pred DIR --gt DIR --unpaired   two sets without pairs
    python eval_3d.py --selftest             the whole script on shapes with known answers

OUT gets report.md, summary.json (protocol, formulas, versions, aggregates), rows.csv (a row a
pair), histogram.png and ranked.png (the ten worst, median and best). A pair that cannot be scored
is listed with the reason, the rest goes on, and the exit status is 1. docs/evaluation.md explains
the protocols and every score.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.config import ALIGNMENTS, ANY, GPT_TYPES
from tar3d.data.defaults import LIBRARY_NOTE, default_library, default_test
from tar3d.data.formats.dataset_folder import read_categories
from tar3d.evaluation.arguments import (
    MODEL_DEFAULTS,
    add_model_arguments,
    add_output_arguments,
    fill_in,
    protocol_names,
)
from tar3d.folders import probe_output
from tar3d.runtime import (
    choose_device,
    command,
    command_line,
    command_parser,
    describe_machine,
    encoder_folders,
)
from tar3d.upgrade import upgrade_flags

if TYPE_CHECKING:
    from tar3d.config import EvalProtocol
    from tar3d.evaluation.unseen_shapes import EvalData
    from tar3d.pipeline import Pipeline

if TYPE_CHECKING:
    import argparse


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument_group("meshes that are there").add_argument
    add("--pred", type=Path, help="folder of predicted meshes")
    add("--gt", type=Path, help="folder of true meshes, or a data set folder")
    add("--pairs", type=Path, help="CSV with the columns id, pred, truth; paths relative to it")
    add("--unpaired", action="store_true", help="compare --pred and --gt as sets, without pairs")
    model = parser.add_argument_group("a model")
    add_model_arguments(model, [name for name in GPT_TYPES if name != ANY])
    model.add_argument(
        "--evaluator",
        default="pretrained/tiny/evaluator",
        help="for t23d: model directory of the evaluator, which recognises categories and matches "
        "captions (default: %(default)s)",
    )
    model.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add = parser.add_argument
    add("--protocol", default="tar3d", help=f"{protocol_names()}, or a file (default: %(default)s)")
    add(
        "--align",
        choices=ALIGNMENTS,
        default="none",
        help="also score after this alignment; raw scores stand in any report (default: none)",
    )
    add_output_arguments(parser, "outputs/eval_3d")
    add("--selftest", action="store_true", help="check this script on shapes with known answers")
    add(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values of the protocol, as in points=100000 seed=1",
    )
    args = parser.parse_intermixed_args(upgrade_flags(argv))
    fill_in(args, MODEL_DEFAULTS)
    return args


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    from tar3d.evaluation.mesh_pairs import load_protocol  # loads torch, which --help does without
    from tar3d.evaluation.selftest import selftest

    try:
        protocol = load_protocol(args.protocol, args.overrides)
        check_arguments(args)
        if args.selftest:
            flags = ["--protocol", args.protocol, "--workers", str(args.workers), *args.overrides]
            return selftest(main, flags, protocol)
        probe_output(args.out, "--out")
        if args.unpaired:
            return evaluate_sets(protocol, args)
        if args.pred or args.pairs:
            return evaluate_pairs(protocol, args)
        if args.gpt_type == "uncond":
            return evaluate_unconditional(protocol, args)
        return evaluate_conditional(protocol, args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2


def check_arguments(args: argparse.Namespace) -> None:
    """Raises ValueError for arguments that contradict each other."""
    if args.pairs and (args.pred or args.gt):
        raise ValueError("--pairs names the files itself: give it, or --pred and --gt, not both")
    if (args.pred is None) != (args.gt is None):
        missing = "gt" if args.pred else "pred"
        raise ValueError(f"--{missing} is missing: --pred and --gt are two folders of meshes")
    if args.unpaired and not args.pred:
        raise ValueError("--unpaired compares the meshes of --pred and --gt: give both folders")
    if args.unpaired and args.align != "none":
        raise ValueError(
            "--align moves a prediction onto its own truth, and sets have no pairs: leave out one "
            "of the two"
        )


def describe_run(args: argparse.Namespace, start: float) -> dict:
    """The entries of summary.json about the run; `start` is when it began, by perf_counter."""
    import torch

    return {
        "command": command_line(),
        "align": args.align,
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - start, 1),
        **describe_machine(torch.device("cpu")),
    }


def evaluate_pairs(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    """Scores the meshes of two folders, or of a CSV, pair by pair."""
    from tar3d.evaluation.mesh_pairs import pairs_by_csv, pairs_by_id, score_pairs
    from tar3d.evaluation.mesh_report import write_mesh_report

    start = time.perf_counter()
    if args.pairs:
        pairs = pairs_by_csv(args.pairs)
    else:
        pairs = pairs_by_id(args.pred, args.gt, read_categories(args.gt))
    sets = {"prediction": score_pairs(pairs, protocol, args.align, args.workers)}
    print(write_mesh_report(args.out, sets, protocol, describe_run(args, start)))
    return finish(sets, args.out)


def evaluate_sets(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    """Scores the meshes of two folders as sets, without pairs."""
    from tar3d.evaluation.mesh_pairs import meshes_by_id, set_clouds
    from tar3d.evaluation.sets_report import score_table, write_sets_report
    from tar3d.metrics.sets import set_scores

    start = time.perf_counter()
    failed: dict[str, str] = {}
    clouds = []
    for folder in (args.pred, args.gt):
        paths, unusable = meshes_by_id(folder)
        found, reasons = set_clouds(paths, protocol, args.workers)
        failed |= dict(unusable) | {f"{folder}: {i}": reason for i, reason in reasons.items()}
        clouds.append(found)
    generated, reference = clouds
    scores = set_scores(list(generated.values()), list(reference.values()))
    about = {**describe_run(args, start), "scores": scores}
    title = "Two sets of shapes"
    print(write_sets_report(args.out, title, score_table(scores), failed, protocol, about))
    return 1 if failed else 0


def load_model(args: argparse.Namespace) -> tuple[Pipeline, EvalData, dict]:
    """The model, the data, and the entries of summary.json about them."""
    from tar3d.evaluation.unseen_shapes import EvalData
    from tar3d.pipeline import Pipeline

    device, encoders = choose_device(args.device), encoder_folders(args)
    pipeline = Pipeline.load(args.model, args.gpt_type, encoders=encoders, device=device)
    data = EvalData(args.test or default_test(args.shapes), args.train or default_library())
    baselines = {} if args.train else {"baselines": LIBRARY_NOTE}
    for note in baselines.values():
        print(note, file=sys.stderr)
    return (
        pipeline,
        data,
        {
            "model": args.model,
            "test": str(data.test),
            "train": str(data.train),
            **baselines,
            "resolution": args.resolution,
            "precision": pipeline.precision,
            "sampling": vars(pipeline.sampling(GPT_TYPES[args.gpt_type])),
        },
    )


def evaluate_conditional(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    """Generates unseen shapes from their images or captions, and scores them with baselines."""
    from tar3d.evaluation.evaluator import load_evaluator
    from tar3d.evaluation.generation_report import nll_section, views_line
    from tar3d.evaluation.generations import TITLES, GenerationSettings, evaluate_model
    from tar3d.evaluation.mesh_pairs import score_pairs
    from tar3d.evaluation.mesh_report import write_mesh_report
    from tar3d.evaluation.text_scores import text_report, text_scores
    from tar3d.metrics.summary import aggregate

    start = time.perf_counter()
    (modality,) = GPT_TYPES[args.gpt_type]
    evaluator = load_evaluator(args.evaluator) if modality == "text" else None
    pipeline, data, about = load_model(args)
    settings = GenerationSettings(args.shapes, args.resolution, args.batch, protocol.seed)
    generations = evaluate_model(pipeline, modality, data, args.out, settings)
    sets = {
        name: score_pairs(pairs, protocol, args.align, args.workers, name)
        for name, pairs in generations.pairs.items()
    }
    about["nll"] = {
        condition: aggregate(list(values.values()), protocol.seed)
        for condition, values in generations.nll.items()
    }
    extra = nll_section(about["nll"], "image" if modality == "image" else "caption")
    if evaluator is None:
        about["views_in_training"] = generations.inputs.views_in_training
        extra.append(views_line(generations.inputs.views_in_training))
    else:
        about["text"] = text_scores(evaluator, generations, protocol.seed)
        extra += text_report(about["text"], TITLES[modality])
    about = describe_run(args, start) | about
    titles = TITLES[modality]
    print(write_mesh_report(args.out, sets, protocol, about, titles=titles, extra=extra))
    return finish(sets, args.out)


def evaluate_unconditional(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    """Generates shapes from nothing, and scores them as a set against the unseen ones.

    As many training shapes are scored beside them: they are what a model need not be better than.
    """
    from tar3d.evaluation.generations import (
        EMPTY,
        GenerationSettings,
        generate_unconditional,
        unconditional_sets,
    )
    from tar3d.evaluation.mesh_pairs import set_clouds
    from tar3d.evaluation.sets_report import set_table, write_sets_report
    from tar3d.metrics.sets import set_scores

    start = time.perf_counter()
    pipeline, data, about = load_model(args)
    settings = GenerationSettings(args.shapes, args.resolution, args.batch, protocol.seed)
    empty = generate_unconditional(pipeline, args.out, settings)
    sets = unconditional_sets(data, args.out, empty, settings)
    failed = {f"generation: {name}": EMPTY for name in empty}
    clouds = {}
    for name, paths in sets.items():
        found, problems = set_clouds({path.stem: path for path in paths}, protocol, args.workers)
        clouds[name] = list(found.values())
        failed |= {f"{name}: {i}": reason for i, reason in problems.items()}
    scores = {name: set_scores(clouds[name], clouds["truth"]) for name in ("generated", "training")}
    about = {**describe_run(args, start), **about, "scores": scores}
    title = "Shapes from nothing against unseen ones"
    print(write_sets_report(args.out, title, set_table(scores), failed, protocol, about))
    return 1 if failed else 0


def finish(sets: dict[str, list[dict]], out: Path) -> int:
    """Says where the report is and what failed; returns the exit code."""
    from tar3d.evaluation.mesh_report import print_failures

    print(f"report.md, summary.json, rows.csv and images in {out}")
    rows = [row for of_set in sets.values() for row in of_set if row["status"] != "ok"]
    return print_failures([(row["id"], row["reason"]) for row in rows], out)


if __name__ == "__main__":
    sys.exit(main())
