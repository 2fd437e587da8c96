"""Image-to-3D quality on unseen shapes, one view each, against what is easy and what is possible:

    python -m benchmarks.i23d_quality --model pretrained/tiny --test DATA_TEST --train DATA_TRAIN --out DIR

Both data are data set folders with meshes, samples and views (docs/data.md). If they are one folder, its split "test" is
used, else every shape of DATA_TEST; baselines look at the split "train" of DATA_TRAIN. Writes report.md, report.csv (a row
a shape), summary.json and grid.png. Nothing is aligned. The same seed gives the same report.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.i23d_report import ROWS, RULE, THRESHOLD, WORST, report, summarise, write
from tar3d.condition.encoders import ImageEncoder
from tar3d.condition.image import load_image, preprocess
from tar3d.config import ImageEncoderConfig
from tar3d.contracts import Mesh
from tar3d.data.folder import mesh_path, read_categories, read_splits
from tar3d.data.shapes import load_samples
from tar3d.data.views import list_views
from tar3d.gpt.evaluate import condition_nll
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import contact_sheet, picture
from tar3d.metrics.geometry import compare_meshes, mesh_volume_iou
from tar3d.pipeline import Pipeline, reconstruct
from tar3d.runtime import choose_device, describe_machine, positive_int

GRID_ROWS, GRID_SIZE = 12, 160
GRID_COLUMNS = ["view", "truth", "reconstruction", "generation", "nearest, pixels", "same category"]
FEATURE_BATCH = 64


@dataclass(frozen=True)
class Library:
    """The training shapes that baselines choose from: `ids`, and for each of their views its shape (`owner`, an index into
    ids), pixels (K, S, S, 3) uint8 and unit features (K, E)."""

    ids: list[str]
    owner: np.ndarray
    pixels: np.ndarray
    features: np.ndarray


def nearest(queries: np.ndarray, candidates: np.ndarray, *, chunk: int = 1024) -> tuple[np.ndarray, np.ndarray]:
    """For each of (Q, ...) queries the index of the candidate (N, ...) at the least L2 distance, and that distance, (Q,) each.

    In float64, so that distances between uint8 pictures are exact: 0 means identical. The first of equals is taken.
    """
    if len(candidates) == 0 or queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(f"nearest needs candidates of the queries' shape, got {queries.shape} and {candidates.shape}")
    q = queries.reshape(len(queries), -1).astype(np.float64)
    best, index = np.full(len(q), np.inf), np.zeros(len(q), dtype=np.int64)
    for start in range(0, len(candidates), chunk):
        c = candidates[start:start + chunk].reshape(-1, q.shape[1]).astype(np.float64)
        squared = (q**2).sum(1)[:, None] + (c**2).sum(1) - 2 * q @ c.T  # (Q, chunk)
        found = squared.argmin(1)
        value = squared[np.arange(len(q)), found]
        index = np.where(value < best, start + found, index)
        best = np.minimum(best, value)
    return index, np.sqrt(best.clip(0))


def choose_shapes(test: Path, train: Path, count: int, seed: int) -> list[str]:
    """`count` ids of unseen shapes, in random order (so that the next one's picture is that of any shape)."""
    splits = read_splits(test)
    ids = splits["test"] if test.resolve() == train.resolve() else [i for split in splits.values() for i in split]
    ids = sorted(i for i in ids if (test / "samples" / f"{i}.npz").is_file() and list_views(test, i))
    if not ids:
        raise ValueError(f"{test} holds no test shape with samples and views: make them with "
                         f"python -m tar3d.data.make_samples {test} --views 4")
    return [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]]


def read_library(train: Path, encoder: ImageEncoder, config: ImageEncoderConfig, device: torch.device) -> Library:
    ids = [i for i in read_splits(train)["train"] if list_views(train, i)]
    if not ids:
        raise ValueError(f"{train} holds no training shape with views, so there is nothing to compare with")
    owner, pixels = [], []
    for k, shape_id in enumerate(tqdm(ids, unit="shape", desc="training views")):
        pictures = [preprocess(load_image(p), config).pixels for p in list_views(train, shape_id)]
        pixels += pictures
        owner += [k] * len(pictures)
    stacked = np.stack(pixels)
    return Library(ids, np.array(owner), stacked, features(encoder, stacked, device))


@torch.inference_mode()
def features(encoder: ImageEncoder, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """Unit vectors (K, E): the encoder's embeddings, averaged over the picture. Their L2 order is that of the cosine."""
    parts = []
    for start in tqdm(range(0, len(pixels), FEATURE_BATCH), unit="batch", desc="features", leave=False):
        embeddings = encoder(torch.from_numpy(pixels[start:start + FEATURE_BATCH]).to(device)).embeddings.float()
        parts.append(torch.nn.functional.normalize(embeddings.mean(1), dim=-1).cpu().numpy())
    return np.concatenate(parts)


def generate_all(pipeline: Pipeline, pixels: np.ndarray, seeds: list[int], resolution: int, batch: int) -> list[Mesh | None]:
    """A mesh for each picture, None where the field is empty. A row depends on its picture and seed alone, so a batch with
    an empty field is simply made again one by one."""
    meshes: list[Mesh | None] = []
    with tqdm(total=len(pixels), unit="shape", desc="generate") as bar:
        for start in range(0, len(pixels), batch):
            part, part_seeds = torch.from_numpy(pixels[start:start + batch]), seeds[start:start + batch]
            try:
                meshes += [g.mesh for g in pipeline.generate(part, part_seeds, resolution=resolution)]
            except EmptyFieldError:
                meshes += [_or_none(lambda s=s, p=p: pipeline.generate(p[None], [s], resolution=resolution)[0].mesh)
                           for s, p in zip(part_seeds, part, strict=True)]
            bar.update(len(part))
    return meshes


def _or_none(make: Callable[[], Mesh]) -> Mesh | None:
    try:
        return make()
    except EmptyFieldError:
        return None


def score(mesh: Mesh | None, truth: Mesh, seed: int) -> dict[str, float]:
    if mesh is None:
        return WORST
    scores = compare_meshes(mesh, truth, thresholds=(THRESHOLD,), seed=seed)
    return {"chamfer": scores.chamfer, "fscore": scores.fscore[THRESHOLD], "iou": mesh_volume_iou(mesh, truth, seed=seed)}


def evaluate(args: argparse.Namespace) -> dict:
    """Runs everything and writes the four files; returns what summary.json holds."""
    start = time.perf_counter()
    device = choose_device(args.device)
    pipeline = Pipeline.load(args.model, device=device)
    encoder, image_config = pipeline.i23d.encoder, pipeline.i23d.config.image_encoder
    ids = choose_shapes(args.test, args.train, args.shapes, args.seed)
    seeds = [args.seed + k for k in range(len(ids))]
    pixels = np.stack([preprocess(load_image(list_views(args.test, i)[0]), image_config).pixels for i in ids])
    categories = read_categories(args.test)

    library = read_library(args.train, encoder.to(device), image_config, device)
    train_categories, rng = read_categories(args.train), np.random.default_rng([args.seed, 1])
    by_pixels, distance = nearest(pixels, library.pixels)
    by_features, _ = nearest(features(encoder, pixels, device), library.features)
    copied = {"category": [same_category(categories.get(i, ""), library.ids, train_categories, rng) for i in ids],
              "pixels": [library.ids[library.owner[k]] for k in by_pixels],
              "features": [library.ids[library.owner[k]] for k in by_features]}
    generated = generate_all(pipeline, pixels, seeds, args.resolution, args.batch)

    rows, tokens, sheet = [], [], []
    for k, shape_id in enumerate(tqdm(ids, unit="shape", desc="reconstruct, score")):
        truth = load_mesh(mesh_path(args.test, shape_id))
        surface = load_samples(args.test / "samples" / f"{shape_id}.npz").surface
        tokens.append(pipeline.vqvae.tokenize(torch.from_numpy(surface)[None].to(device)).ids[0].cpu())
        rebuilt = _or_none(lambda s=surface: reconstruct(pipeline.vqvae, s, args.resolution)[0])
        meshes = {"generation": generated[k], "reconstruction": rebuilt, "floor": truth}
        meshes |= {name: load_mesh(mesh_path(args.train, others[k])) for name, others in copied.items()}
        row = {"id": shape_id, "category": categories.get(shape_id, ""), "seed": seeds[k], "pixel_distance": float(distance[k])}
        row |= {f"{name}_id": others[k] for name, others in copied.items()}
        row["failed"] = " ".join(name for name, mesh in meshes.items() if mesh is None)
        for name in ROWS:
            row |= {f"{name}_{s}": value for s, value in score(meshes[name], truth, args.seed).items()}
        rows.append(row)
        if k < GRID_ROWS:
            seen = np.asarray(Image.fromarray(pixels[k]).resize((GRID_SIZE, GRID_SIZE), Image.Resampling.NEAREST))
            shown = [truth, *(meshes[name] for name in ("reconstruction", "generation", "pixels", "category"))]
            sheet.append([seen, *(picture(mesh, GRID_SIZE) for mesh in shown)])

    for kind, values in condition_nll(pipeline.i23d, torch.stack(tokens), torch.from_numpy(pixels)).items():
        for row, value in zip(rows, values.mean(1).tolist(), strict=True):
            row[f"nll_{kind}"] = value

    summary = {"model": args.model, "test": str(args.test), "train": str(args.train), "shapes": len(rows),
               "training_shapes": len(library.ids), "training_views": len(library.owner), "resolution": args.resolution,
               "seed": args.seed, "sampling": vars(pipeline.sampling), "rule": RULE,
               "command": shlex.join(["python", "-m", "benchmarks.i23d_quality", *args.given]),
               "date": str(date.today()), "seconds": round(time.perf_counter() - start, 1), **describe_machine(device),
               **summarise(rows, args.seed)}
    write(args.out, rows, summary, contact_sheet(sheet, GRID_COLUMNS))
    return summary


def same_category(category: str, ids: list[str], categories: dict[str, str], rng: np.random.Generator) -> str:
    same = [i for i in ids if categories.get(i, "") == category]
    if not same:
        raise ValueError(f"no training shape has the category {category!r}; both manifest.csv must use the same names")
    return same[int(rng.integers(len(same)))]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="pretrained/tiny",
                        help="directory or Hub id with tokenizer/ and gpt_i23d/ (default: %(default)s)")
    parser.add_argument("--test", type=Path, required=True, help="data set folder with unseen shapes")
    parser.add_argument("--train", type=Path, required=True, help="data set folder that the model was trained on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--shapes", type=positive_int, default=100, help="how many, drawn with the seed (default: %(default)s)")
    parser.add_argument("--batch", type=positive_int, default=10, help="shapes generated at once (default: %(default)s)")
    parser.add_argument("--resolution", type=positive_int, default=128,
                        help="extraction cells along each axis (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0,
                        help="of the choice of shapes, of the baselines and of the sampling (default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    args.given = sys.argv[1:] if argv is None else argv
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        summary = evaluate(args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    print(report(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
