"""What a model makes of unseen shapes, and what it must be compared with: baselines below, the tokenizer's bound above.

From a data set of unseen shapes with views this makes, for each shape, the mesh generated from its first view and the
tokenizer's reconstruction of it; and it finds the training shapes that somebody without a model could have copied: the one
with the nearest view (in pixels, in the image encoder's features) and a random one of the same category.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from tar3d.condition.encoders import ImageEncoder
from tar3d.condition.image import preprocess
from tar3d.config import ImageEncoderConfig
from tar3d.contracts import Mesh
from tar3d.data.folder import SPLITS, mesh_path
from tar3d.data.shapes import open_samples
from tar3d.data.views import Views
from tar3d.evaluation.pairs import Pair
from tar3d.gpt.evaluate import condition_nll
from tar3d.mesh.export import save_mesh
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.load import load_mesh
from tar3d.mesh.render import contact_sheet, picture
from tar3d.pipeline import Pipeline, reconstruct

TITLES = {
    "generation": "generated from one view",
    "category": "random training shape of the same category",
    "pixels": "training shape with the nearest view, pixels",
    "features": "training shape with the nearest view, encoder's features",
    "reconstruction": "tokenizer's reconstruction of the truth (upper bound)",
}
EMPTY = "the field is empty: no surface"
GRID_ROWS, GRID_SIZE = 12, 160
GRID_COLUMNS = ("truth", "reconstruction", "generation", "pixels", "category")
FEATURE_BATCH = 64


@dataclass(frozen=True)
class Library:
    """The training shapes that baselines choose from: `ids`, and for each of their views its shape (`owner`, an index into
    ids), pixels (K, S, S, 3) uint8 and unit features (K, E)."""

    ids: list[str]
    owner: np.ndarray
    pixels: np.ndarray
    features: np.ndarray


@dataclass(frozen=True)
class Generations:
    """`pairs` by name of the set (TITLES), `nll` (nats a token) by condition and shape id, and how many test views are, pixel by
    pixel, training views."""

    pairs: dict[str, list[Pair]]
    nll: dict[str, dict[str, float]]
    views_in_training: int


def evaluate_model(pipeline: Pipeline, test: Path, train: Path, out: Path, *, shapes: int, resolution: int, batch: int,
                   seed: int) -> Generations:
    """Writes out/generation and out/reconstruction (a .glb a shape) and finds the baselines. Everything is decided by `seed`."""
    config, encoder, device = pipeline.i23d.config.image_encoder, pipeline.i23d.encoder, pipeline.device
    samples, views = open_samples(test), Views(test)
    ids = choose_shapes(test, train, shapes, seed)
    pixels = np.stack([preprocess(views.load(views.names(i)[0]), config).pixels for i in ids])
    categories, train_categories = samples.categories(), open_samples(train).categories()
    library = read_library(train, encoder, config, device)
    by_pixels, distance = nearest(pixels, library.pixels)
    by_features, _ = nearest(features(encoder, pixels, device), library.features)
    rng = np.random.default_rng([seed, 1])
    copied = {"category": [same_category(categories.get(i, ""), library.ids, train_categories, rng) for i in ids],
              "pixels": [library.ids[library.owner[k]] for k in by_pixels],
              "features": [library.ids[library.owner[k]] for k in by_features]}

    generated = generate_all(pipeline, pixels, [seed + k for k in range(len(ids))], resolution, batch)
    tokens, rebuilt = [], []
    for shape_id in tqdm(ids, unit="shape", desc="reconstruct"):
        surface = samples.surface(shape_id)
        tokens.append(pipeline.vqvae.tokenize(torch.from_numpy(surface)[None].to(device)).ids[0].cpu())
        rebuilt.append(_or_none(lambda s=surface: reconstruct(pipeline.vqvae, s, resolution)[0]))
    nll = condition_nll(pipeline.i23d, torch.stack(tokens), torch.from_numpy(pixels))

    pairs: dict[str, list[Pair]] = {name: [] for name in TITLES}
    for k, shape_id in enumerate(ids):
        truth, category = mesh_path(test, shape_id), categories.get(shape_id, "")
        to_source = load_mesh(truth).to_source  # a model works in the unit cube: its meshes go back to the truth's frame
        for name, mesh in (("generation", generated[k]), ("reconstruction", rebuilt[k])):
            path = None if mesh is None else save_mesh(Mesh(mesh.vertices, mesh.faces, to_source), out / name / f"{shape_id}.glb",
                                                       frame="source")
            pairs[name].append(Pair(shape_id, path, truth, category, EMPTY if mesh is None else ""))
        for name, chosen in copied.items():
            pairs[name].append(Pair(shape_id, mesh_path(train, chosen[k]), truth, category))
    _grid(pairs, pixels, ids).save(out / "grid.png")
    return Generations(pairs, {kind: dict(zip(ids, rows.mean(1).tolist(), strict=True)) for kind, rows in nll.items()},
                       int((distance == 0).sum()))


def choose_shapes(test: Path, train: Path, count: int, seed: int) -> list[str]:
    """`count` ids of unseen shapes, in random order (so that the next one's picture is that of any shape)."""
    samples, views = open_samples(test), Views(test)
    splits = ("test",) if test.resolve() == train.resolve() else SPLITS
    ids = sorted(i for split in splits for i in samples.ids(split) if views.names(i))
    if not ids:
        raise ValueError(f"{test} holds no test shape with samples and views: make them with "
                         f"python -m tar3d.data.make_samples {test} views.count=4")
    return [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))[:count]]


def read_library(train: Path, encoder: ImageEncoder, config: ImageEncoderConfig, device: torch.device) -> Library:
    views = Views(train)
    ids = [i for i in open_samples(train).listed("train") if views.names(i)]
    if not ids:
        raise ValueError(f"{train} holds no training shape with views, so there is nothing to compare with")
    owner, pixels = [], []
    for k, shape_id in enumerate(tqdm(ids, unit="shape", desc="training views")):
        pictures = [preprocess(views.load(name), config).pixels for name in views.names(shape_id)]
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


def same_category(category: str, ids: list[str], categories: dict[str, str], rng: np.random.Generator) -> str:
    same = [i for i in ids if categories.get(i, "") == category]
    if not same:
        raise ValueError(f"no training shape has the category {category!r}; both manifest.csv must use the same names")
    return same[int(rng.integers(len(same)))]


def generate_all(pipeline: Pipeline, pixels: np.ndarray, seeds: list[int], resolution: int, batch: int) -> list[Mesh | None]:
    """A mesh for each picture, None where the field is empty."""
    meshes: list[Mesh | None] = []
    with tqdm(total=len(pixels), unit="shape", desc="generate") as bar:
        for start in range(0, len(pixels), batch):
            part = torch.from_numpy(pixels[start:start + batch])
            meshes += [g.mesh for g in pipeline.generate(part, seeds[start:start + batch], resolution=resolution)]
            bar.update(len(part))
    return meshes


def _or_none(make: Callable[[], Mesh]) -> Mesh | None:
    try:
        return make()
    except EmptyFieldError:
        return None


def _grid(pairs: dict[str, list[Pair]], pixels: np.ndarray, ids: list[str]) -> Image.Image:
    """One row a shape: the view given, the truth, and what each set has in its place."""
    sheet = []
    for k in range(min(GRID_ROWS, len(ids))):
        seen = np.asarray(Image.fromarray(pixels[k]).resize((GRID_SIZE, GRID_SIZE), Image.Resampling.NEAREST))
        paths = [pairs[name][k].pred if name != "truth" else pairs["generation"][k].truth for name in GRID_COLUMNS]
        sheet.append([seen, *(picture(path and load_mesh(path), GRID_SIZE) for path in paths)])
    return contact_sheet(sheet, ["view", *GRID_COLUMNS])

