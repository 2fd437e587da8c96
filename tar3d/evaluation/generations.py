"""What a model makes of unseen shapes, and what it must be compared with: baselines below, the
tokenizer's bound above.

From a data set of unseen shapes this makes, for each shape, the mesh generated from its first view
or its first caption, and the tokenizer's reconstruction of it; and it finds the training shapes
that somebody without a model could have copied: a random one of the same category, and the one with
the nearest view (in pixels, in the image encoder's features) or the nearest caption (in words).
From captions it also generates with those of other shapes: what the words do is the difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tar3d.condition.conditioner import Source, rows_of
from tar3d.condition.image import preprocess
from tar3d.contracts import Mesh
from tar3d.data.formats.dataset_folder import SPLITS, mesh_path
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.views import Views
from tar3d.data.tokens.conditions import captions_of
from tar3d.evaluation.pairs import Pair
from tar3d.gpt.condition_nll import condition_nll
from tar3d.mesh.export import save_mesh
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import contact_sheet, picture, text_picture
from tar3d.pipeline import Pipeline, reconstruct

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tar3d.condition.encoders import ImageEncoder

TOLD_BY = {"image": " and views", "text": " and captions", "": ""}
RECONSTRUCTION = {"reconstruction": "tokenizer's reconstruction of the truth (upper bound)"}
TITLES = {
    "image": {
        "generation": "generated from one view",
        "category": "random training shape of the same category",
        "pixels": "training shape with the nearest view, pixels",
        "features": "training shape with the nearest view, encoder's features",
        **RECONSTRUCTION,
    },
    "text": {
        "generation": "generated from its caption",
        "shuffled": "generated from another shape's caption",
        "category": "random training shape of the same category",
        "caption": "training shape with the nearest caption, words",
        **RECONSTRUCTION,
    },
}
EMPTY = "the field is empty: no surface"
GRID_ROWS, GRID_SIZE = 12, 160
GRID_COLUMNS = {
    "image": ("truth", "reconstruction", "generation", "pixels", "category"),
    "text": ("truth", "reconstruction", "generation", "shuffled", "caption", "category"),
}
FREE_COLUMNS, FREE_SHOWN = 6, 24
FEATURE_BATCH = 64


@dataclass(frozen=True)
class Told:
    """What the shapes to be generated are told: the `source` of all rows, how it looks (a picture a
    row), the training shapes that somebody would have copied for it, by baseline, its `captions` if
    it is text, and how many views are, pixel by pixel, training views."""

    source: Source
    pictures: list[np.ndarray]
    copied: dict[str, list[str]]
    captions: list[str] | None = None
    views_in_training: int = 0


@dataclass(frozen=True)
class Generations:
    """`pairs` by name of the set (TITLES), `nll` (nats a token) by condition and shape id, and what
    was told."""

    pairs: dict[str, list[Pair]]
    nll: dict[str, dict[str, float]]
    told: Told


def evaluate_model(
    pipeline: Pipeline,
    kind: str,
    test: Path,
    train: Path,
    out: Path,
    *,
    shapes: int,
    resolution: int,
    batch: int,
    seed: int,
) -> Generations:
    """Writes out/generation and out/reconstruction (a .glb a shape; for text also out/shuffled) and
    finds the baselines. `kind` is "image" or "text". Everything is decided by `seed`."""
    device, samples = pipeline.device, open_samples(test)
    ids = choose_shapes(test, train, kind, shapes, seed)
    told = (told_by_views if kind == "image" else told_by_captions)(pipeline, test, train, ids)
    categories, train_categories = samples.categories(), open_samples(train).categories()
    rng, library = np.random.default_rng([seed, 1]), training_ids(train, kind)
    copied = told.copied | {
        "category": [
            same_category(categories.get(i, ""), library, train_categories, rng) for i in ids
        ]
    }

    seeds = [seed + k for k in range(len(ids))]
    made = {"generation": generate_all(pipeline, told.source, seeds, resolution, batch)}
    if kind == "text":
        shuffled = {name: rows.roll(-(len(ids) // 2), 0) for name, rows in told.source.items()}
        made["shuffled"] = generate_all(pipeline, shuffled, seeds, resolution, batch)
    tokens, made["reconstruction"] = [], []
    for shape_id in tqdm(ids, unit="shape", desc="reconstruct"):
        surface = samples.surface(shape_id)
        tokens.append(
            pipeline.vqvae.tokenize(torch.from_numpy(surface)[None].to(device)).ids[0].cpu()
        )
        made["reconstruction"].append(
            or_none(lambda s=surface: reconstruct(pipeline.vqvae, s, resolution)[0])
        )
    nll = condition_nll(pipeline.model, torch.stack(tokens), told.source)

    pairs: dict[str, list[Pair]] = {name: [] for name in TITLES[kind]}
    for k, shape_id in enumerate(ids):
        truth, category = mesh_path(test, shape_id), categories.get(shape_id, "")
        to_source = load_mesh(
            truth
        ).to_source  # a model works in the unit cube: its meshes go back to the truth's frame
        for name, meshes in made.items():
            mesh = meshes[k]
            path = (
                None
                if mesh is None
                else save_mesh(
                    Mesh(mesh.vertices, mesh.faces, to_source),
                    out / name / f"{shape_id}.glb",
                    frame="source",
                )
            )
            pairs[name].append(Pair(shape_id, path, truth, category, EMPTY if mesh is None else ""))
        for name, chosen in copied.items():
            pairs[name].append(Pair(shape_id, mesh_path(train, chosen[k]), truth, category))
    _grid(pairs, told.pictures, kind, ids).save(out / "grid.png")
    return Generations(
        pairs,
        {name: dict(zip(ids, rows.mean(1).tolist(), strict=True)) for name, rows in nll.items()},
        told,
    )


def describable(folder: Path, kind: str) -> set[str]:
    """The ids of a data set that have what is told: a view, a caption, or nothing at all."""
    if kind == "text":
        return set(captions_of(folder))
    views, samples = Views(folder), open_samples(folder)
    return {i for split in SPLITS for i in samples.listed(split) if not kind or views.names(i)}


def choose_shapes(test: Path, train: Path, kind: str, count: int, seed: int) -> list[str]:
    """`count` ids of unseen shapes, in random order (so that the next one's picture is that of any
    shape)."""
    samples, known = open_samples(test), describable(test, kind)
    splits = ("test",) if test.resolve() == train.resolve() else SPLITS
    ids = sorted(i for split in splits for i in samples.ids(split) if i in known)
    if not ids:
        raise ValueError(
            f"{test} holds no test shape with samples{TOLD_BY[kind]}: make them with "
            f"python -m tar3d.data.make_samples {test} views.count=4"
        )
    return [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]]


def training_ids(train: Path, kind: str) -> list[str]:
    known = describable(train, kind)
    ids = [i for i in open_samples(train).listed("train") if i in known]
    if not ids:
        raise ValueError(
            f"{train} holds no training shape{TOLD_BY[kind].replace(' and', ' with')}, so there is nothing to "
            "compare with"
        )
    return ids


def told_by_views(pipeline: Pipeline, test: Path, train: Path, ids: list[str]) -> Told:
    """The first view of each shape; copied is the training shape that owns the nearest of all
    views."""
    config, encoder, device = (
        pipeline.model.config.image_encoder,
        pipeline.model.conditioner.encoder("image"),
        pipeline.device,
    )
    views = Views(test)
    source = pipeline.prepare([views.load(views.names(i)[0]) for i in ids]).inputs
    pixels = source["image"].numpy()
    library, views, owner, known = training_ids(train, "image"), Views(train), [], []
    for shape_id in tqdm(library, unit="shape", desc="training views"):
        pictures = [preprocess(views.load(name), config).pixels for name in views.names(shape_id)]
        known += pictures
        owner += [shape_id] * len(pictures)
    stacked = np.stack(known)
    by_pixels, distance = nearest(pixels, stacked)
    by_features, _ = nearest(features(encoder, pixels, device), features(encoder, stacked, device))
    seen = [
        np.asarray(Image.fromarray(p).resize((GRID_SIZE, GRID_SIZE), Image.Resampling.NEAREST))
        for p in pixels
    ]
    return Told(
        source,
        seen,
        {"pixels": [owner[k] for k in by_pixels], "features": [owner[k] for k in by_features]},
        views_in_training=int((distance == 0).sum()),
    )


def told_by_captions(pipeline: Pipeline, test: Path, train: Path, ids: list[str]) -> Told:
    """The first caption of each shape; copied is the training shape with the nearest of all
    captions."""
    known, asked = captions_of(train), captions_of(test)
    captions = [asked[i][0] for i in ids]
    library = [(i, caption) for i in training_ids(train, "text") for caption in known[i]]
    chosen = nearest_captions(captions, [caption for _, caption in library])
    return Told(
        pipeline.prepare(captions).inputs,
        [text_picture(caption, GRID_SIZE) for caption in captions],
        {"caption": [library[k][0] for k in chosen]},
        captions,
    )


def nearest_captions(queries: list[str], candidates: list[str]) -> list[int]:
    """For each query the candidate with the largest share of words in common (intersection over
    union); the first of equals."""
    known = [set(re.findall(r"\w+", caption.lower())) for caption in candidates]
    asked = [set(re.findall(r"\w+", caption.lower())) for caption in queries]
    return [
        max(range(len(known)), key=lambda k: len(words & known[k]) / max(1, len(words | known[k])))
        for words in asked
    ]


@torch.inference_mode()
def features(encoder: ImageEncoder, pixels: np.ndarray, device: torch.device) -> np.ndarray:
    """Unit vectors (K, E): the encoder's embeddings, averaged over the picture. Their L2 order is
    that of the cosine."""
    parts = []
    for start in tqdm(
        range(0, len(pixels), FEATURE_BATCH), unit="batch", desc="features", leave=False
    ):
        embeddings = encoder(
            torch.from_numpy(pixels[start : start + FEATURE_BATCH]).to(device)
        ).embeddings.float()
        parts.append(torch.nn.functional.normalize(embeddings.mean(1), dim=-1).cpu().numpy())
    return np.concatenate(parts)


def nearest(
    queries: np.ndarray, candidates: np.ndarray, *, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """For each of (Q, ...) queries the index of the candidate (N, ...) at the least L2 distance,
    and that distance, (Q,) each.

    In float64, so that distances between uint8 pictures are exact: 0 means identical. The first of
    equals is taken.
    """
    if len(candidates) == 0 or queries.shape[1:] != candidates.shape[1:]:
        raise ValueError(
            f"nearest needs candidates of the queries' shape, got {queries.shape} and {candidates.shape}"
        )
    q = queries.reshape(len(queries), -1).astype(np.float64)
    best, index = np.full(len(q), np.inf), np.zeros(len(q), dtype=np.int64)
    for start in range(0, len(candidates), chunk):
        c = candidates[start : start + chunk].reshape(-1, q.shape[1]).astype(np.float64)
        squared = (q**2).sum(1)[:, None] + (c**2).sum(1) - 2 * q @ c.T  # (Q, chunk)
        found = squared.argmin(1)
        value = squared[np.arange(len(q)), found]
        index = np.where(value < best, start + found, index)
        best = np.minimum(best, value)
    return index, np.sqrt(best.clip(0))


def same_category(
    category: str, ids: list[str], categories: dict[str, str], rng: np.random.Generator
) -> str:
    same = [i for i in ids if categories.get(i, "") == category]
    if not same:
        raise ValueError(
            f"no training shape has the category {category!r}; both manifest.csv must use the same names"
        )
    return same[int(rng.integers(len(same)))]


def generate_all(
    pipeline: Pipeline, source: Source, seeds: list[int], resolution: int, batch: int
) -> list[Mesh | None]:
    """A mesh for each seed and its row of the source, None where the field is empty."""
    meshes: list[Mesh | None] = []
    with tqdm(total=len(seeds), unit="shape", desc="generate") as bar:
        for start in range(0, len(seeds), batch):
            rows = slice(start, start + batch)
            meshes += [
                g.mesh
                for g in pipeline.generate(
                    rows_of(source, rows), seeds[rows], resolution=resolution
                )
            ]
            bar.update(len(seeds[rows]))
    return meshes


def or_none(make: Callable[[], Mesh]) -> Mesh | None:
    try:
        return make()
    except EmptyFieldError:
        return None


def _grid(
    pairs: dict[str, list[Pair]], told: list[np.ndarray], kind: str, ids: list[str]
) -> Image.Image:
    """One row a shape: what was told, the truth, and what each set has in its place."""
    sheet, columns = [], GRID_COLUMNS[kind]
    for k in range(min(GRID_ROWS, len(ids))):
        paths = [
            pairs[name][k].pred if name != "truth" else pairs["generation"][k].truth
            for name in columns
        ]
        sheet.append([told[k], *(picture(path and load_mesh(path), GRID_SIZE) for path in paths)])
    titles = ["nearest caption" if name == "caption" else name for name in columns]
    return contact_sheet(sheet, ["view" if kind == "image" else "caption", *titles])


def generate_freely(
    pipeline: Pipeline, out: Path, *, shapes: int, resolution: int, batch: int, seed: int
) -> list[str]:
    """Writes out/generation with so many shapes that the model was told nothing of, and grid.png;
    returns the names of those whose field is empty."""
    meshes = generate_all(pipeline, {}, [seed + k for k in range(shapes)], resolution, batch)
    for k, mesh in enumerate(meshes):
        if mesh is not None:
            save_mesh(mesh, out / "generation" / f"{k:05d}.glb")
    shown = [picture(mesh, GRID_SIZE) for mesh in meshes[:FREE_SHOWN]]
    contact_sheet([shown[k : k + FREE_COLUMNS] for k in range(0, len(shown), FREE_COLUMNS)]).save(
        out / "grid.png"
    )
    return [f"{k:05d}" for k, mesh in enumerate(meshes) if mesh is None]
