"""Compares sampling settings on the validation split.

    python -m benchmarks.sampling --gpt-type t23d --model pretrained/tiny --out outputs/sampling
    python -m benchmarks.sampling --gpt-type t23d --shapes 100 \\
        --settings code_predictor_scale=40 code_predictor_scale=40,cfg_scale=2

Each setting of SamplingConfig is changed by itself from the model's own (SWEEP), with the same
shapes and seeds every time. A table (sampling.md, sampling.json) has the F-score and Chamfer
distance to the truth, and the share of the true surface with some generated surface within 0.1 (a
missing part has none); for texts also how many of the stated attributes are met, and how often the
evaluator finds the category and, among all captions, the shape's own (docs/evaluation.md). Which of
them matters is for whoever saves a model's settings to decide.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import GPT_TYPES, SamplingConfig
from tar3d.data.datasets.spread import spread
from tar3d.data.defaults import DEFAULT_FOLDER
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import mesh_path
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.views import Views
from tar3d.io import write_json
from tar3d.metrics.summary import aggregate, cell, markdown_table
from tar3d.runtime import (
    choose_device,
    command,
    command_line,
    command_parser,
    describe_machine,
    positive_int,
    progress_bar,
)
from tar3d.upgrade import upgrade_flags

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.contracts import Mesh
    from tar3d.evaluation.evaluator_network import Evaluator
    from tar3d.pipeline import Pipeline

SWEEP: dict[str, tuple[float, ...]] = {
    "code_predictor_scale": (0.0, 10.0, 20.0, 40.0),
    "cfg_scale": (1.0, 1.5, 2.0, 3.0),
    "temperature": (0.0, 0.7, 0.85, 1.0),
    "top_k": (0, 50),
    "top_p": (0.9, 1.0),
    "min_p": (0.0, 0.05, 0.2),
}
POINTS, THRESHOLD = 8_000, 0.02
# True surface further than that from the generated one belongs to a missing part, not a displaced
# one.
FAR = 0.1
# The scores by their heads in the table.
SCORES = {f"F-score@{THRESHOLD:g}": "fscore", "Chamfer": "chamfer", f"recall@{FAR:g}": "recall"}


@dataclass(frozen=True)
class ValidationShapes:
    """The shapes that settings are compared on; `captions` are there for texts."""

    ids: list[str]
    surfaces: list[np.ndarray]
    truths: list[Mesh]
    categories: list[str]
    inputs: ConditionInputs
    captions: list[str] | None


def settings(base: SamplingConfig, changes: list[str] | None = None) -> dict[str, SamplingConfig]:
    """The model's own settings, and each with one value changed.

    `changes` are compared instead, as in "top_k=50,min_p=0.1".
    """
    result = {"as saved": base}
    if changes is not None:
        own = configuration.to_mapping(base)
        return result | {
            one: configuration.load(SamplingConfig, None, one.split(","), base=own)
            for one in changes
        }
    for name, values in SWEEP.items():
        result |= {
            f"{name} {value:g}": dataclasses.replace(base, **{name: value})
            for value in values
            if value != getattr(base, name)
        }
    return result


def read_shapes(pipeline: Pipeline, data: Path, modality: str, count: int) -> ValidationShapes:
    """`count` shapes of the validation split of a data set, spread evenly over it."""
    from tar3d.mesh.load import load_mesh

    samples = open_samples(data)
    ids = samples.ids("val")
    ids = [ids[k] for k in spread(len(ids), count)]
    truths = [load_mesh(mesh_path(data, i)) for i in ids]
    categories = samples.categories()
    captions = None
    if modality == "text":
        known = captions_of(data)
        captions = [known[i][0] for i in ids]
        inputs = pipeline.prepare(captions, any_text=True).inputs
    else:
        views = Views(data)
        inputs = pipeline.prepare([views.load(views.names(i)[0]) for i in ids]).inputs
    surfaces = [samples.surface(i) for i in ids]
    return ValidationShapes(
        ids, surfaces, truths, [categories.get(i, "") for i in ids], inputs, captions
    )


def score_meshes(meshes: list[Mesh | None], truths: list[Mesh]) -> dict[str, dict]:
    """F-score, Chamfer distance and recall of generations.

    A shape that is empty has no Chamfer distance, and 0 of the others.
    """
    from tar3d.metrics.geometry import in_frame, point_scores, surface_cloud

    rows = []
    for mesh, truth in zip(meshes, truths, strict=True):
        if mesh is None:
            rows.append({"fscore": 0.0, "chamfer": None, "recall": 0.0})
            continue
        # Both are in the project's frame, in which the truth's box is centred.
        both = in_frame(mesh, truth, "each")
        clouds = (surface_cloud(m, POINTS, seed) for seed, m in enumerate(both))
        found = point_scores(*clouds, thresholds=[THRESHOLD, FAR])
        rows.append(
            {
                "fscore": found[f"fscore@{THRESHOLD:g}"],
                "chamfer": found["chamfer"],
                "recall": found[f"recall@{FAR:g}"],
            }
        )
    return {name: aggregate([row[name] for row in rows]) for name in SCORES.values()}


def score_texts(
    evaluator: Evaluator, meshes: list[Mesh | None], shapes: ValidationShapes
) -> dict[str, dict]:
    """The attributes that are met, and the evaluator's scores."""
    from tar3d.evaluation.evaluator import score_shapes, surface
    from tar3d.evaluation.text_scores import attributes_met

    captions = shapes.captions or []
    by_shape = attributes_met(meshes, captions, shapes.categories)
    met = [value for found in by_shape for value in found.values()]
    surfaces = [None if mesh is None else surface(mesh, 0) for mesh in meshes]
    scores = score_shapes(evaluator, surfaces, captions, shapes.categories)
    return {"attributes": aggregate(met), "evaluator": scores}


def compare(
    pipeline: Pipeline,
    shapes: ValidationShapes,
    compared: dict[str, SamplingConfig],
    args: argparse.Namespace,
) -> dict[str, dict]:
    """Scores by name of the setting, and those of the tokenizer's reconstructions."""
    from tar3d.evaluation.evaluator import load_evaluator
    from tar3d.evaluation.generations import generate_all, reconstruct_or_none

    evaluator = load_evaluator(args.evaluator) if shapes.captions else None
    rebuilt = [reconstruct_or_none(pipeline.vqvae, s, args.resolution) for s in shapes.surfaces]
    # What a GPT that made no error would have.
    results = {"reconstruction": score_meshes(rebuilt, shapes.truths)}
    own, seeds = pipeline.model.config.sampling, list(range(len(shapes.ids)))
    for name, sampling in progress_bar(compared.items(), unit="setting"):
        pipeline.model.config.sampling = sampling
        meshes = generate_all(pipeline, shapes.inputs, seeds, args.resolution, args.batch)
        results[name] = score_meshes(meshes, shapes.truths)
        if evaluator is not None:
            results[name] |= score_texts(evaluator, meshes, shapes)
    pipeline.model.config.sampling = own
    return results


def table_row(name: str, scores: dict) -> list[str]:
    """A line of the table."""
    from tar3d.evaluation.text_scores import EVALUATOR_SCORES

    row = [name, *(cell(scores[key]) for key in SCORES.values())]
    if "evaluator" in scores:
        row.append(cell(scores["attributes"]))
        row += [f"{scores['evaluator'][key]:.2f}" for key in EVALUATOR_SCORES]
    return row


def report(results: dict[str, dict], own: SamplingConfig, gpt_type: str, count: int) -> list[str]:
    """Lines of sampling.md."""
    bound = results["reconstruction"]
    rows = [table_row(name, scores) for name, scores in results.items() if scores is not bound]
    texts = ["attributes", "category", "R@1", "R@5"] if "evaluator" in results["as saved"] else []
    cells = ", ".join(f"{title} {cell(bound[key])}" for title, key in SCORES.items())
    return [
        *[f"# Sampling settings, {gpt_type}", "", f"Saved: {own}. {count} validation shapes.", ""],
        *markdown_table(["setting", *SCORES, *texts], rows),
        *["", f"The tokenizer's reconstruction: {cells}.", "", f"`{command_line()}`"],
    ]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument
    add(
        "--gpt-type",
        choices=[name for name, modalities in GPT_TYPES.items() if len(modalities) == 1],
        default="i23d",
    )
    add(
        "--model",
        default="pretrained/tiny",
        help="model directory or Hub id (default: %(default)s)",
    )
    add("--evaluator", default="pretrained/tiny/evaluator", help="default: %(default)s")
    add(
        "--settings",
        nargs="*",
        metavar="NAME=VALUE,...",
        help="compare these with the model's own, or none, without a sweep",
    )
    add("--data", type=Path, default=DEFAULT_FOLDER, help="data set folder (default: %(default)s)")
    add(
        "--shapes",
        type=positive_int,
        default=32,
        help="of its validation split (default: %(default)s)",
    )
    add("--resolution", type=positive_int, default=64, help="default: %(default)s")
    add("--batch", type=positive_int, default=16, help="default: %(default)s")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--out", type=Path, default=Path("outputs/sampling"), help="default: %(default)s")
    return parser.parse_args(upgrade_flags(argv))


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    from tar3d.pipeline import Pipeline  # loads torch, which --help does without

    start = time.perf_counter()
    try:
        pipeline = Pipeline.load(args.model, args.gpt_type, device=choose_device(args.device))
        (modality,) = GPT_TYPES[args.gpt_type]
        own = pipeline.sampling([modality])
        compared = settings(own, args.settings)
        shapes = read_shapes(pipeline, args.data, modality, args.shapes)
        results = compare(pipeline, shapes, compared, args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    lines = report(results, own, args.gpt_type, len(shapes.ids))
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sampling.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        args.out / "sampling.json",
        {
            "command": command_line(),
            "date": str(date.today()),
            "ids": shapes.ids,
            "saved": dataclasses.asdict(own),
            "seconds": round(time.perf_counter() - start, 1),
            "results": results,
            **describe_machine(pipeline.device),
        },
    )
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
