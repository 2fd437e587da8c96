"""Which sampling settings make the best shapes, on the validation split:

    python -m benchmarks.sampling --gpt-type t23d --model pretrained/tiny --out outputs/sampling
    python -m benchmarks.sampling --gpt-type t23d --shapes 100 --settings code_predictor_scale=40 code_predictor_scale=40,cfg_scale=2

Each setting of SamplingConfig is changed by itself from the model's own (SWEEP); the same shapes
and seeds every time. A table (sampling.md, sampling.json) has the F-score and Chamfer distance to
the truth, how much of the true surface has some generated one within 0.1 (a part that is missing
has not), and for texts how many of the stated attributes are met, and how often the evaluator finds the
category and, among all captions, the shape's own (docs/evaluation.md). Which of them a model is to
be good at is for whoever saves its settings to decide.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import GPT_TYPES, SamplingConfig
from tar3d.data.datasets.sampler import spread
from tar3d.data.defaults import DEFAULT_FOLDER
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import mesh_path
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.views import Views
from tar3d.evaluation.attributes import ATTRIBUTES, score
from tar3d.evaluation.evaluator import load_evaluator, measured, surface
from tar3d.evaluation.generations import generate_all, or_none
from tar3d.io import write_json
from tar3d.mesh.load import load_mesh
from tar3d.metrics.geometry import in_frame, point_scores, surface_cloud
from tar3d.metrics.summary import aggregate, cell, markdown_table
from tar3d.pipeline import Pipeline, reconstruct
from tar3d.runtime import choose_device, command_line, describe_machine, positive_int
from tar3d.upgrade import upgrade_flags

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

SWEEP: dict[str, tuple[float, ...]] = {
    "code_predictor_scale": (0.0, 10.0, 20.0, 40.0),
    "cfg_scale": (1.0, 1.5, 2.0, 3.0),
    "temperature": (0.0, 0.7, 0.85, 1.0),
    "top_k": (0, 50),
    "top_p": (0.9, 1.0),
    "min_p": (0.0, 0.05, 0.2),
}
POINTS, THRESHOLD = 8_000, 0.02
# true surface further than that from the generated one is a part that is missing, not one that is
# displaced
FAR = 0.1
SCORES = {
    f"F-score@{THRESHOLD:g}": "fscore",
    "Chamfer": "chamfer",
    f"recall@{FAR:g}": "recall",
}  # as the table heads them


def settings(base: SamplingConfig, given: list[str] | None = None) -> dict[str, SamplingConfig]:
    """The model's own settings, and each with one value changed; or with the values `given`, as in
    "top_k=50,min_p=0.1"."""
    result = {"as saved": base}
    if given is not None:
        own = configuration.to_mapping(base)
        return result | {
            one: configuration.load(SamplingConfig, None, one.split(","), base=own) for one in given
        }
    for name, values in SWEEP.items():
        result |= {
            f"{name} {value:g}": dataclasses.replace(base, **{name: value})
            for value in values
            if value != getattr(base, name)
        }
    return result


def row_of(meshes: list[Mesh | None], truths: list[Mesh]) -> dict[str, dict]:
    """F-score, Chamfer distance and recall of generations; a shape that is empty has no Chamfer
    distance, and 0 of the others."""
    rows = []
    for mesh, truth in zip(meshes, truths, strict=True):
        if mesh is None:
            rows.append({"fscore": 0.0, "chamfer": None, "recall": 0.0})
            continue
        both = in_frame(
            mesh, truth, "each"
        )  # both are in the project's frame, in which the truth's box is centred
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpt-type",
        choices=[name for name, kinds in GPT_TYPES.items() if len(kinds) == 1],
        default="i23d",
    )
    parser.add_argument(
        "--model",
        default="pretrained/tiny",
        help="model directory or Hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--evaluator", default="pretrained/tiny/evaluator", help="default: %(default)s"
    )
    parser.add_argument(
        "--settings",
        nargs="*",
        metavar="NAME=VALUE,...",
        help="compare these with the model's own, or none, without a sweep",
    )
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_FOLDER, help="data set folder (default: %(default)s)"
    )
    parser.add_argument(
        "--shapes",
        type=positive_int,
        default=32,
        help="of its validation split (default: %(default)s)",
    )
    parser.add_argument("--resolution", type=positive_int, default=64, help="default: %(default)s")
    parser.add_argument("--batch", type=positive_int, default=16, help="default: %(default)s")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--out", type=Path, default=Path("outputs/sampling"), help="default: %(default)s"
    )
    args = parser.parse_args(upgrade_flags(argv))
    start = time.perf_counter()
    try:
        pipeline = Pipeline.load(args.model, args.gpt_type, device=choose_device(args.device))
        compared = settings(own := pipeline.sampling(GPT_TYPES[args.gpt_type]), args.settings)
        samples, (kind,) = open_samples(args.data), GPT_TYPES[args.gpt_type]
        ids = samples.ids("val")
        ids = [ids[k] for k in spread(len(ids), args.shapes)]
        truths = [load_mesh(mesh_path(args.data, i)) for i in ids]
        categories = samples.categories()
        if kind == "text":
            known, evaluator = captions_of(args.data), load_evaluator(args.evaluator)
            captions = [known[i][0] for i in ids]
            source = pipeline.prepare(captions).inputs
        else:
            views = Views(args.data)
            source = pipeline.prepare([views.load(views.names(i)[0]) for i in ids]).inputs
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    table = []
    rebuilt = [
        or_none(lambda i=i: reconstruct(pipeline.vqvae, samples.surface(i), args.resolution)[0])
        for i in ids
    ]
    results = {
        "reconstruction": row_of(rebuilt, truths)
    }  # what a GPT that made no error would have
    for name, sampling in tqdm(compared.items(), unit="setting"):
        pipeline.model.config.sampling = sampling
        meshes = generate_all(pipeline, source, list(range(len(ids))), args.resolution, args.batch)
        found = row_of(meshes, truths)
        cells = [cell(found[key]) for key in SCORES.values()]
        if kind == "text":
            met = [
                float(v)
                for mesh, caption, i in zip(meshes, captions, ids, strict=True)
                if categories[i] in ATTRIBUTES
                for v in score(mesh, caption, categories[i]).values()
            ]
            said = measured(
                evaluator,
                [mesh and surface(mesh, 0) for mesh in meshes],
                captions,
                [categories[i] for i in ids],
            )
            found |= {"attributes": aggregate(met), "evaluator": said}
            cells += [
                cell(found["attributes"]),
                *(f"{said[k]:.2f}" for k in ("category", "r@1", "r@5")),
            ]
        table.append([name, *cells])
        results[name] = found
    pipeline.model.config.sampling = own
    head = [
        "setting",
        *SCORES,
        *(["attributes", "category", "R@1", "R@5"] if kind == "text" else []),
    ]
    lines = [
        f"# Sampling settings, {args.gpt_type}",
        "",
        f"Saved: {own}. {len(ids)} validation shapes.",
        "",
        *markdown_table(head, table),
        "",
        "The tokenizer's reconstruction: "
        + ", ".join(
            f"{title} {cell(results['reconstruction'][key])}" for title, key in SCORES.items()
        )
        + ".",
        "",
        f"`{command_line()}`",
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "sampling.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(
        args.out / "sampling.json",
        {
            "command": command_line(),
            "date": str(date.today()),
            "ids": ids,
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
