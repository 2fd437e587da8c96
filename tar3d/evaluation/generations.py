"""Shapes that a model makes for unseen conditions, and what they must be compared with.

From a data set of unseen shapes this makes, for each shape, the mesh generated from its first view
or its first caption, and the tokenizer's reconstruction of it, which is the upper bound. The lower
bounds are training shapes that somebody without a model could have copied: a random one of the same
category, and the one with the nearest view (in pixels, in the image encoder's features) or the
nearest caption (in words). From captions it also generates with those of other shapes; the
difference is what the text does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

from tar3d.condition.base import ImageEncoder
from tar3d.condition.conditioner import rows_of
from tar3d.condition.image import preprocess
from tar3d.contracts import Mesh
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import mesh_path
from tar3d.data.formats.samples import open_samples
from tar3d.data.formats.views import Views
from tar3d.evaluation.baselines import (
    features,
    nearest,
    nearest_captions,
    random_of_category,
)
from tar3d.evaluation.mesh_pairs import Pair
from tar3d.evaluation.unseen_shapes import EvalData, choose_shapes, training_ids
from tar3d.gpt.condition_nll import condition_nll
from tar3d.mesh.export import save_mesh
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import contact_sheet, render_preview, text_image
from tar3d.pipeline import Pipeline, reconstruct
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.tokenizer.vqvae import VQVAE

RECONSTRUCTION = {"reconstruction": "tokenizer's reconstruction of the truth (upper bound)"}
# What each modality is compared with, by the name of the set, for readers.
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
FREE_COLUMNS, FREE_SHAPES = 6, 24  # grid.png of unconditional shapes


@dataclass(frozen=True)
class GenerationSettings:
    """How many shapes are drawn from the unseen ones, and how they are generated.

    `resolution` is the number of extraction cells along an axis, `batch` how many shapes are
    generated at once. The `seed` decides which shapes are drawn and what is generated.
    """

    shapes: int
    resolution: int
    batch: int
    seed: int


@dataclass(frozen=True)
class GenerationInputs:
    """The conditions that shapes are generated from.

    `inputs` are those of all rows, `thumbnails` an image of each row. `nearest` are the training
    shapes with the nearest condition, by baseline. `captions` are there for text.
    `views_in_training` counts the views that are training views, pixel by pixel.
    """

    inputs: ConditionInputs
    thumbnails: list[np.ndarray]
    nearest: dict[str, list[str]]
    captions: list[str] | None = None
    views_in_training: int = 0


@dataclass(frozen=True)
class Generations:
    """`pairs` by name of the set (TITLES), `nll` (nats a token) by condition and shape id."""

    pairs: dict[str, list[Pair]]
    nll: dict[str, dict[str, float]]
    inputs: GenerationInputs


def evaluate_model(
    pipeline: Pipeline, modality: str, data: EvalData, out: Path, settings: GenerationSettings
) -> Generations:
    """Makes everything that a model is evaluated by, and finds the baselines.

    Writes out/generation and out/reconstruction (a .glb a shape; for text also out/shuffled) and
    out/grid.png. `modality` is "image" or "text".
    """
    ids = choose_shapes(data, modality, settings.shapes, settings.seed)
    read_inputs = inputs_from_views if modality == "image" else inputs_from_captions
    inputs = read_inputs(pipeline, data, ids)
    copied = inputs.nearest | {"category": random_of_category(data, modality, ids, settings.seed)}

    seeds = [settings.seed + k for k in range(len(ids))]
    generate = partial(generate_all, pipeline, resolution=settings.resolution, batch=settings.batch)
    meshes = {"generation": generate(inputs.inputs, seeds)}
    if modality == "text" and len(ids) > 1:  # a single shape has no other one's caption
        shuffled = {name: rows.roll(-(len(ids) // 2), 0) for name, rows in inputs.inputs.items()}
        meshes["shuffled"] = generate(shuffled, seeds)
    tokens, meshes["reconstruction"] = _reconstruct_all(
        pipeline, data.test, ids, settings.resolution
    )
    nll = condition_nll(pipeline.model, tokens, inputs.inputs)

    found = _save_pairs(data, ids, meshes, copied, out)
    pairs = {name: found[name] for name in TITLES[modality] if name in found}
    _draw_grid(pairs, inputs.thumbnails, modality).save(out / "grid.png")
    return Generations(
        pairs,
        {name: dict(zip(ids, rows.mean(1).tolist(), strict=True)) for name, rows in nll.items()},
        inputs,
    )


def _reconstruct_all(
    pipeline: Pipeline, test: Path, ids: list[str], resolution: int
) -> tuple[Tensor, list[Mesh | None]]:
    """The tokens (B, T) of the true shapes, and what the tokenizer makes of them."""
    samples, tokens, meshes = open_samples(test), [], []
    for shape_id in progress_bar(ids, unit="shape", desc="reconstruct"):
        surface = samples.surface(shape_id)
        batch = torch.from_numpy(surface)[None].to(pipeline.device)
        tokens.append(pipeline.vqvae.tokenize(batch).ids[0].cpu())
        meshes.append(reconstruct_or_none(pipeline.vqvae, surface, resolution))
    return torch.stack(tokens), meshes


def _save_pairs(
    data: EvalData,
    ids: list[str],
    meshes: dict[str, list[Mesh | None]],
    copied: dict[str, list[str]],
    out: Path,
) -> dict[str, list[Pair]]:
    """Pairs by set: those of `meshes`, which are written to out/SET, and the `copied` shapes."""
    categories = open_samples(data.test).categories()
    pairs: dict[str, list[Pair]] = {name: [] for name in (*meshes, *copied)}
    for k, shape_id in enumerate(ids):
        truth, category = mesh_path(data.test, shape_id), categories.get(shape_id, "")
        # A model works in the unit cube: its meshes go back to the frame of the truth.
        to_source = load_mesh(truth).to_source
        for name, of_set in meshes.items():
            path, mesh = None, of_set[k]
            if mesh is not None:
                moved = Mesh(mesh.vertices, mesh.faces, to_source)
                path = save_mesh(moved, out / name / f"{shape_id}.glb", frame="source")
            pairs[name].append(Pair(shape_id, path, truth, category, EMPTY if mesh is None else ""))
        for name, chosen in copied.items():
            pairs[name].append(Pair(shape_id, mesh_path(data.train, chosen[k]), truth, category))
    return pairs


def inputs_from_views(pipeline: Pipeline, data: EvalData, ids: list[str]) -> GenerationInputs:
    """The first view of each shape, and the training shapes that own the nearest of all views."""
    encoder, device = pipeline.model.conditioner.encoder("image"), pipeline.device
    if not isinstance(encoder, ImageEncoder):
        raise ValueError("the model takes image embeddings from elsewhere: it has no image encoder")
    config, views = pipeline.model.config.image_encoder, Views(data.test)
    inputs = pipeline.prepare([views.load(views.names(i)[0]) for i in ids]).inputs
    pixels = inputs["image"].numpy()
    library, views, owner, known = training_ids(data.train, "image"), Views(data.train), [], []
    for shape_id in progress_bar(library, unit="shape", desc="training views"):
        images = [preprocess(views.load(name), config).pixels for name in views.names(shape_id)]
        known += images
        owner += [shape_id] * len(images)
    stacked = np.stack(known)
    by_pixels, distance = nearest(pixels, stacked)
    by_features, _ = nearest(features(encoder, pixels, device), features(encoder, stacked, device))
    size = (GRID_SIZE, GRID_SIZE)
    return GenerationInputs(
        inputs,
        [np.asarray(Image.fromarray(p).resize(size, Image.Resampling.NEAREST)) for p in pixels],
        {"pixels": [owner[k] for k in by_pixels], "features": [owner[k] for k in by_features]},
        views_in_training=int((distance == 0).sum()),
    )


def inputs_from_captions(pipeline: Pipeline, data: EvalData, ids: list[str]) -> GenerationInputs:
    """The first caption of each shape, and the training shapes with the nearest of all captions."""
    known, asked = captions_of(data.train), captions_of(data.test)
    captions = [asked[i][0] for i in ids]
    library = [(i, caption) for i in training_ids(data.train, "text") for caption in known[i]]
    chosen = nearest_captions(captions, [caption for _, caption in library])
    return GenerationInputs(
        pipeline.prepare(captions, any_text=True).inputs,
        [text_image(caption, GRID_SIZE) for caption in captions],
        {"caption": [library[k][0] for k in chosen]},
        captions,
    )


def generate_all(
    pipeline: Pipeline, inputs: ConditionInputs, seeds: list[int], resolution: int, batch: int
) -> list[Mesh | None]:
    """A mesh for each seed and its row of the inputs, None where the field is empty."""
    meshes: list[Mesh | None] = []
    with progress_bar(total=len(seeds), unit="shape", desc="generate") as bar:
        for start in range(0, len(seeds), batch):
            rows = slice(start, start + batch)
            meshes += [
                g.mesh
                for g in pipeline.generate(
                    rows_of(inputs, rows), seeds[rows], resolution=resolution
                )
            ]
            bar.update(len(seeds[rows]))
    return meshes


def reconstruct_or_none(vqvae: VQVAE, surface: np.ndarray, resolution: int) -> Mesh | None:
    """The reconstruction from surface points (N, 6), or None where the field is empty."""
    try:
        return reconstruct(vqvae, surface, resolution)[0]
    except EmptyFieldError:
        return None


def _draw_grid(
    pairs: dict[str, list[Pair]], thumbnails: list[np.ndarray], modality: str
) -> Image.Image:
    """One row a shape: the condition, the truth, and what each set has in its place."""
    sheet = []
    columns = [name for name in GRID_COLUMNS[modality] if name in ("truth", *pairs)]
    for k in range(min(GRID_ROWS, len(thumbnails))):
        paths = [
            pairs[name][k].pred if name != "truth" else pairs["generation"][k].truth
            for name in columns
        ]
        meshes = [None if path is None else load_mesh(path) for path in paths]
        sheet.append([thumbnails[k], *(render_preview(mesh, GRID_SIZE) for mesh in meshes)])
    titles = ["nearest caption" if name == "caption" else name for name in columns]
    return contact_sheet(sheet, ["view" if modality == "image" else "caption", *titles])


def generate_unconditional(
    pipeline: Pipeline, out: Path, settings: GenerationSettings
) -> list[str]:
    """Writes out/generation, with a .glb for each shape generated from nothing, and out/grid.png.

    Returns the names of the shapes whose field is empty.
    """
    seeds = [settings.seed + k for k in range(settings.shapes)]
    meshes = generate_all(pipeline, {}, seeds, settings.resolution, settings.batch)
    for k, mesh in enumerate(meshes):
        if mesh is not None:
            save_mesh(mesh, out / "generation" / f"{k:05d}.glb")
    images = [render_preview(mesh, GRID_SIZE) for mesh in meshes[:FREE_SHAPES]]
    contact_sheet([images[k : k + FREE_COLUMNS] for k in range(0, len(images), FREE_COLUMNS)]).save(
        out / "grid.png"
    )
    return [f"{k:05d}" for k, mesh in enumerate(meshes) if mesh is None]


def unconditional_sets(
    data: EvalData, out: Path, empty: list[str], settings: GenerationSettings
) -> dict[str, list[Path]]:
    """Meshes of the sets that shapes from nothing are scored with.

    "generated" are those of `generate_unconditional` that are not `empty`, "truth" as many unseen
    shapes, "training" as many training shapes, which are what a model need not be better than.
    """
    unseen = choose_shapes(data, "", settings.shapes, settings.seed)
    library = sorted(open_samples(data.train).listed("train"))
    drawn = np.random.default_rng([settings.seed, 1]).permutation(library)[: len(unseen)]
    names = [f"{k:05d}" for k in range(settings.shapes)]
    return {
        "generated": [out / "generation" / f"{i}.glb" for i in names if i not in empty],
        "truth": [mesh_path(data.test, i) for i in unseen],
        "training": [mesh_path(data.train, i) for i in drawn],
    }
