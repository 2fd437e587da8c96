"""Scores meshes against the truth, and says exactly what was measured:

    python eval_3d.py                                       the shipped model on unseen procedural shapes, with baselines
    python eval_3d.py --gpt-type t23d                       ... from captions: does the text matter?
    python eval_3d.py --gpt-type uncond                     ... from nothing, as a set: coverage, MMD, 1-NN accuracy
    python eval_3d.py --model MODEL --test DATA --train DATA   a model of yours on a data set of yours
    python eval_3d.py --pred DIR --gt DIR --out OUT         any meshes, paired by id (file name without suffix)
    python eval_3d.py --pairs PAIRS.csv --out OUT           ... or by a CSV with the columns id, pred, truth
    python eval_3d.py --pred DIR --gt DIR --unpaired        two sets without pairs: coverage, MMD, 1-NN accuracy
    python eval_3d.py --selftest                            the whole script on shapes with known answers: PASS or FAIL

OUT gets report.md, summary.json (protocol, formulas, versions, aggregates), rows.csv (a row a
pair), histogram.png and ranked.png (the ten worst, median and best). A pair that cannot be scored
is listed with the reason, the rest goes on, and the exit status is 1. docs/evaluation.md explains
the protocols and every score.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import os
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
import trimesh

from tar3d.conditional_gpt import ANY
from tar3d.config import GPT_TYPES, EvalProtocol
from tar3d.contracts import Mesh
from tar3d.data.defaults import DEFAULT_FOLDER, default_library, default_test
from tar3d.data.formats.dataset_folder import mesh_path, read_categories
from tar3d.data.formats.samples import open_samples
from tar3d.evaluation.evaluator import load_evaluator
from tar3d.evaluation.generations import (
    EMPTY,
    TITLES,
    choose_shapes,
    evaluate_model,
    generate_freely,
)
from tar3d.evaluation.pairs import (
    load_protocol,
    mesh_ids,
    pairs_by_csv,
    pairs_by_id,
    protocol_names,
    score_pairs,
    set_clouds,
)
from tar3d.evaluation.report import print_failures, versions, write_report
from tar3d.evaluation.text import text_report, text_scores
from tar3d.io import write_json
from tar3d.mesh.export import save_mesh
from tar3d.metrics.align import ALIGNMENTS
from tar3d.metrics.metric import formulas
from tar3d.metrics.sets import SET_METRICS, set_scores
from tar3d.metrics.summary import aggregate, cell, markdown_table
from tar3d.pipeline import Pipeline
from tar3d.runtime import choose_device, command_line, describe_machine, positive_int
from tar3d.upgrade import upgrade_flags


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    meshes = parser.add_argument_group("meshes that are there")
    meshes.add_argument("--pred", type=Path, help="folder of predicted meshes")
    meshes.add_argument("--gt", type=Path, help="folder of true meshes, or a data set folder")
    meshes.add_argument(
        "--pairs", type=Path, help="CSV with the columns id, pred, truth; paths relative to it"
    )
    meshes.add_argument("--unpaired", action="store_true", help="compare --pred and --gt as sets")
    model = parser.add_argument_group("a model")
    model.add_argument(
        "--model",
        default="pretrained/tiny",
        help="model directory or Hub id (default: %(default)s)",
    )
    model.add_argument(
        "--gpt-type",
        choices=[name for name in GPT_TYPES if name != ANY],
        default="i23d",
        help="what the model is told: i23d an image, t23d a text, uncond nothing (default: %(default)s)",
    )
    model.add_argument(
        "--test",
        type=Path,
        help="data set folder with unseen shapes (default: 100 procedural ones, seed 1)",
    )
    model.add_argument(
        "--train",
        type=Path,
        help=f"data set the model was trained on (default: {DEFAULT_FOLDER}, procedural)",
    )
    model.add_argument(
        "--evaluator",
        default="pretrained/tiny/evaluator",
        help="of t23d: model directory of what tells categories and captions (default: %(default)s)",
    )
    model.add_argument(
        "--shapes",
        type=positive_int,
        default=100,
        help="how many, drawn with the seed (default: %(default)s)",
    )
    model.add_argument(
        "--resolution",
        type=positive_int,
        default=128,
        help="extraction cells an axis (default: %(default)s)",
    )
    model.add_argument(
        "--batch",
        type=positive_int,
        default=10,
        help="shapes generated at once (default: %(default)s)",
    )
    model.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--protocol", default="tar3d", help=f"{protocol_names()}, or a file (default: %(default)s)"
    )
    parser.add_argument(
        "--align",
        choices=ALIGNMENTS,
        default="none",
        help="also score after this alignment; raw scores are reported in any case (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/eval_3d"),
        help="folder of the report (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="processes (default: all cores)",
    )
    parser.add_argument(
        "--selftest", action="store_true", help="check this script on shapes with known answers"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="values of the protocol, as in points=100000 seed=1",
    )
    return parser.parse_intermixed_args(upgrade_flags(argv))


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        protocol = load_protocol(args.protocol, args.overrides)
        check_choice(args)
        if args.selftest:
            return selftest(protocol, args)
        if args.unpaired:
            return unpaired(protocol, args)
        if args.pred or args.pairs:
            return paired(protocol, args)
        return model(protocol, args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2


def check_choice(args: argparse.Namespace) -> None:
    if args.pairs and (args.pred or args.gt):
        raise ValueError("--pairs names the files itself: give it, or --pred and --gt, not both")
    if (args.pred is None) != (args.gt is None):
        raise ValueError(
            f"--{'gt' if args.pred else 'pred'} is missing: --pred and --gt are two folders of meshes"
        )
    if args.unpaired and not args.pred:
        raise ValueError("--unpaired compares the meshes of --pred and --gt: give both folders")
    if args.unpaired and args.align != "none":
        raise ValueError(
            "--align moves a prediction onto its own truth, and sets have no pairs: leave out one of the two"
        )


def about(args: argparse.Namespace, start: float) -> dict:
    return {
        "command": command_line(),
        "align": args.align,
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - start, 1),
        **describe_machine(torch.device("cpu")),
    }


def paired(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    start = time.perf_counter()
    if args.pairs:
        pairs = pairs_by_csv(args.pairs)
    else:
        pairs = pairs_by_id(args.pred, args.gt, read_categories(args.gt))
    rows = score_pairs(pairs, protocol, args.align, args.workers)
    print(write_report(args.out, {"prediction": rows}, protocol, about(args, start)))
    return finish({"prediction": rows}, args.out)


def model(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    start = time.perf_counter()
    test = args.test or default_test(args.shapes)
    train = args.train or default_library()
    pipeline = Pipeline.load(args.model, args.gpt_type, device=choose_device(args.device))
    described = {
        "model": args.model,
        "test": str(test),
        "train": str(train),
        "resolution": args.resolution,
        "sampling": vars(pipeline.sampling(GPT_TYPES[args.gpt_type])),
    }
    if args.gpt_type == "uncond":
        return freely(pipeline, test, train, protocol, args, described, start)
    (kind,) = GPT_TYPES[args.gpt_type]
    made = evaluate_model(
        pipeline,
        kind,
        test,
        train,
        args.out,
        shapes=args.shapes,
        resolution=args.resolution,
        batch=args.batch,
        seed=protocol.seed,
    )
    sets = {
        name: score_pairs(pairs, protocol, args.align, args.workers, name)
        for name, pairs in made.pairs.items()
    }
    losses = {
        kind: aggregate(list(values.values()), protocol.seed) for kind, values in made.nll.items()
    }
    told = "picture" if kind == "image" else "caption"
    table = markdown_table(
        [f"right {told}", f"another shape's {told}", f"no {told}"],
        [[cell(v, ".4f") for v in losses.values()]],
    )
    extra = [
        "",
        f"## Does it use its {told}?",
        "",
        "NLL of the true tokens in nats a token.",
        "",
        *table,
        "",
    ]
    described |= {"nll": losses}
    if kind == "image":
        described["views_in_training"] = made.told.views_in_training
        extra.append(
            f"Views that are, pixel by pixel, training views: {made.told.views_in_training}. More than 0 means that "
            "test shapes were trained on."
        )
    else:
        scores = text_scores(load_evaluator(args.evaluator), made, protocol.seed)
        described["text"] = scores
        extra += text_report(scores, TITLES[kind])
    print(
        write_report(
            args.out,
            sets,
            protocol,
            about(args, start) | described,
            titles=TITLES[kind],
            extra=extra,
        )
    )
    return finish(sets, args.out)


def finish(sets: dict[str, list[dict]], out: Path) -> int:
    print(f"report.md, summary.json, rows.csv and pictures in {out}")
    return print_failures(
        [
            (row["id"], row["reason"])
            for rows in sets.values()
            for row in rows
            if row["status"] != "ok"
        ],
        out,
    )


def freely(
    pipeline: Pipeline,
    test: Path,
    train: Path,
    protocol: EvalProtocol,
    args: argparse.Namespace,
    described: dict,
    start: float,
) -> int:
    """Shapes of a model that was told nothing against the unseen ones, as sets; beside it as many
    training shapes, which no model has to be better than."""
    empty = generate_freely(
        pipeline,
        args.out,
        shapes=args.shapes,
        resolution=args.resolution,
        batch=args.batch,
        seed=protocol.seed,
    )
    truths = [
        mesh_path(test, i) for i in choose_shapes(test, train, "", args.shapes, protocol.seed)
    ]
    drawn = np.random.default_rng([protocol.seed, 1]).permutation(
        sorted(open_samples(train).listed("train"))
    )[: len(truths)]
    failed = {f"generation: {name}": EMPTY for name in empty}
    clouds = {}
    made = [
        args.out / "generation" / f"{k:05d}.glb"
        for k in range(args.shapes)
        if f"{k:05d}" not in empty
    ]
    for name, paths in (
        ("generated", made),
        ("truth", truths),
        ("training", [mesh_path(train, i) for i in drawn]),
    ):
        found, problems = set_clouds({path.stem: path for path in paths}, protocol, args.workers)
        clouds[name] = list(found.values())
        failed |= {f"{name}: {i}": reason for i, reason in problems.items()}
    scores = {name: set_scores(clouds[name], clouds["truth"]) for name in ("generated", "training")}
    rows = [
        [
            name,
            *(f"{values[k]:.4g}" for k in (*SET_METRICS, "generated_shapes", "reference_shapes")),
        ]
        for name, values in scores.items()
    ]
    return sets_report(
        "Shapes from nothing against unseen ones",
        markdown_table(["set", *SET_METRICS, "shapes", "unseen shapes"], rows),
        failed,
        protocol,
        args,
        {**about(args, start), **described, "scores": scores},
    )


def unpaired(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    start = time.perf_counter()
    (generated, failed_g), (reference, failed_r) = (
        set_clouds(mesh_ids(folder), protocol, args.workers) for folder in (args.pred, args.gt)
    )
    failed = {f"{args.pred}: {i}": r for i, r in failed_g.items()} | {
        f"{args.gt}: {i}": r for i, r in failed_r.items()
    }
    scores = set_scores(list(generated.values()), list(reference.values()))
    table = markdown_table(["score", "value"], [[k, f"{v:.4g}"] for k, v in scores.items()])
    return sets_report(
        "Two sets of shapes",
        table,
        failed,
        protocol,
        args,
        {**about(args, start), "scores": scores},
    )


def sets_report(
    title: str,
    table: list[str],
    failed: dict[str, str],
    protocol: EvalProtocol,
    args: argparse.Namespace,
    described: dict,
) -> int:
    where = (
        "the files' coordinates"
        if protocol.frame == "source"
        else "each shape centred and scaled by its own bounding box"
    )
    lines = [
        f"# {title}",
        "",
        *table,
        "",
        *(f"failed: {i}: {reason}  " for i, reason in failed.items()),
        "",
        f"2,048 points a shape, {where}, seed {protocol.seed}.",
        "",
        *(f"{name} = {formula}  " for name, formula in formulas(SET_METRICS).items()),
        "",
        f"`{command_line()}`",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        args.out / "summary.json",
        {
            **described,
            "versions": versions(),
            "failed": failed,
            "formulas": formulas(SET_METRICS),
            "frame": where,
            "seed": protocol.seed,
        },
    )
    print("\n".join(lines))
    return 1 if failed else 0


# ---- selftest: the whole script on shapes whose scores can be worked out by hand


def block(
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    turn: np.ndarray | None = None,
) -> Mesh:
    box = trimesh.creation.box(bounds=(low, high))
    return Mesh(box.vertices if turn is None else box.vertices @ turn.T, box.faces)


def ball(radius: float) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return Mesh(sphere.vertices, sphere.faces)


def selftest_shapes() -> tuple[dict[str, Mesh], dict[str, Mesh]]:
    """Predictions and truths by id; "absent" has no prediction. In the unit of the truths, which
    span -1 to 1."""
    cube, quarter_turn = (
        block((-1, -1, -1), (1, 1, 1)),
        np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]]),
    )
    low, high = (-1.0, -0.6, -0.3), (1.0, 0.6, 0.3)
    truths = {
        "same": ball(1.0),
        "larger": ball(1.0),
        "moved": cube,
        "half": cube,
        "turned": block(low, high),
        "absent": cube,
    }
    preds = {
        "same": ball(1.0),
        "larger": ball(1.05),
        "moved": block((-0.9, -1, -1), (1.1, 1, 1)),
        "half": block((-1, -1, -1), (0, 1, 1)),
        "turned": block(low, high, quarter_turn),
    }
    return preds, truths


# id, score, what arithmetic says, tolerance (sampling and the sphere's facets)
PRECISION, RECALL = (
    (12 + 4 - 1.96**2) / 16,
    (12 + 8 * 0.02) / 24,
)  # half a cube: its new face, but for a rim, is wrong
EXPECTED = [
    ("same", "surface_chamfer", 0.0, 1e-6),
    ("same", "surface_fscore@0.02", 1.0, 0.0),
    ("same", "iou", 1.0, 0.0),
    ("same", "iou_near", 1.0, 0.0),
    ("same", "surface_normal_consistency", 1.0, 1e-6),
    ("same", "pred_closed", 1.0, 0.0),
    ("larger", "surface_chamfer", 0.05, 1e-3),
    ("larger", "surface_chamfer_sum", 0.1, 2e-3),
    ("larger", "surface_chamfer_squared", 0.0025, 1e-4),
    ("larger", "surface_chamfer_squared_sum", 0.005, 2e-4),
    ("larger", "surface_hausdorff", 0.05, 1e-3),
    ("larger", "surface_fscore@0.02", 0.0, 0.0),
    ("larger", "chamfer", 0.05, 0.01),
    ("larger", "normal_consistency", 1.0, 0.01),
    ("larger", "iou", 1.05**-3, 0.02),
    ("moved", "iou", 1.9 / 2.1, 0.01),
    ("moved", "surface_hausdorff", 0.1, 1e-6),
    ("moved", "aligned_surface_chamfer", 0.0, 0.01),
    ("half", "surface_precision@0.02", PRECISION, 0.02),
    ("half", "surface_recall@0.02", RECALL, 0.02),
    ("half", "surface_fscore@0.02", 2 * PRECISION * RECALL / (PRECISION + RECALL), 0.02),
    ("half", "iou", 0.5, 0.02),
    ("half", "surface_hausdorff", 1.0, 0.02),
    ("turned", "aligned_surface_chamfer", 0.0, 0.01),
    ("turned", "aligned_iou", 1.0, 0.03),
]


def selftest(protocol: EvalProtocol, args: argparse.Namespace) -> int:
    """Runs `paired` and `unpaired` on analytic shapes, with the number of points and the seed of
    the protocol."""
    thresholds = sorted({0.02, *protocol.thresholds})
    protocol = dataclasses.replace(protocol, frame="source", thresholds=thresholds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        preds, truths = selftest_shapes()
        for kind, meshes in (("pred", preds), ("gt", truths)):
            for shape_id, mesh in meshes.items():
                save_mesh(mesh, folder / kind / f"{shape_id}.ply")
        given = {"pred": folder / "pred", "gt": folder / "gt", "pairs": None, "align": "rot24+icp"}
        run = argparse.Namespace(**vars(args) | given)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            run.out = folder / "paired"
            status = paired(protocol, run)
            run.out, run.align, run.gt = folder / "sets", "none", folder / "pred"
            unpaired(protocol, run)
        with open(folder / "paired" / "rows.csv", encoding="utf-8", newline="") as f:
            rows = {row["id"]: row for row in csv.DictReader(f)}
        sets = json.loads((folder / "sets" / "summary.json").read_text(encoding="utf-8"))["scores"]
    checks = [
        (f"{i} {score}", float(rows[i][score]), expected, tolerance)
        for i, score, expected, tolerance in EXPECTED
    ]
    checks += [
        (
            "same chamfer is its floor",
            float(rows["same"]["chamfer"]),
            float(rows["same"]["floor_chamfer"]),
            0.0,
        ),
        ("absent has failed", float(rows["absent"]["status"] == "failed"), 1.0, 0.0),
        ("exit status", float(status), 1.0, 0.0),
        ("a set against itself: coverage", sets["coverage"], 1.0, 0.0),
        ("... mmd", sets["mmd"], 0.0, 1e-12),
        ("... one_nn_accuracy", sets["one_nn_accuracy"], 0.0, 0.0),
    ]
    wrong = 0
    for what, found, expected, tolerance in checks:
        good = abs(found - expected) <= tolerance
        wrong += not good
        print(
            f"{'ok   ' if good else 'WRONG'} {what:<38} {found:.6f}, expected {expected:.6f} +- {tolerance:g}"
        )
    print(f"{'PASS' if not wrong else 'FAIL'}: {len(checks) - wrong} of {len(checks)} checks")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
