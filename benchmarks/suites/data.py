"""The data suite: items a second for training, from files that this machine has just written.

    shapes    items of the tokenizer's training, from one .npz a shape (81,920 surface and 200,000
              query points)
    shapenet  the same from ShapeNetV2's files (100,000 surface points and two pools of 500,000
              query points)
    tokens    rows of the GPT's training, from memory-mapped shards (3,072 tokens and 197 x 768
              embeddings in float16)

Variants: `plain` is an item made from a whole file as NumPy reads it (shapes only), `item` the data
set called in this process, `packed` the same from a tar shard, `workers_N` a DataLoader with so
many workers and the batches of training, pinned where the device is a GPU; as many as the machine
has cores. Each call goes through a loader once, whose workers are alive but have nothing prepared.

Of shapenet, `public` is an item as public training code makes it: both files read whole, rows drawn
from the pools; `public_mask` adds the dense causal mask over condition and tokens that TAR3D's
items for the GPT bring along. `item` draws from the same files, and `*_compressed` from those of
numpy.savez_compressed.

The arrays are random, of the right shapes, in a temporary folder; warm-up reads every file, so they
come from memory, not from a disk. The goal is what one GPU would use at the rates named in
`needed`, which are arithmetic: nothing is computed with the items.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import weakref
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.measure import Case, Work
from benchmarks.suites.tokenizer import (
    FULL_CONFIGS,
    GOAL_SHARE,
    PAPER_HOURS,
    TINY_CONFIG,
    needed_rate,
)
from tar3d import config as configuration
from tar3d.config import GPTRunConfig, PointSamplingConfig, VQVAEConfig
from tar3d.contracts import ShapeSamples
from tar3d.data.datasets.sampler import TrainingOrder
from tar3d.data.datasets.shapes import ShapeDataset
from tar3d.data.datasets.tokens import TokenDataset
from tar3d.data.formats.samples import save_samples
from tar3d.data.formats.shards import write_shard
from tar3d.gpt.model import GPT
from tar3d.io import write_json

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = (0, 1, 2, 4, 8)
FILES, SHARDS, SHARD_ROWS = 32, 2, 128
BATCHES = 8  # of a call
SHAPENET_FILES, SHAPENET_SURFACE, SHAPENET_ITEMS = 8, 100_000, 32
SHAPENET_POOL = {"tiny": 10_000, "full": 500_000}
MASK_SIDE = 197 + 3072  # condition and tokens
GPT_CONFIGS = {
    "tiny": ("configs/gpt_i23d_tiny.yaml", "GPT-tiny"),
    "full": ("configs/gpt_i23d.yaml", "GPT-B"),
}
# Dense bfloat16 of an H100 or H200 by its data sheet, and an assumed share of it.
GPU_FLOPS, GPU_SHARE = 989e12, 0.4


def shapes(size: str, device: torch.device) -> dict[str, Work]:
    """Items of the tokenizer's training."""
    config = configuration.load(
        VQVAEConfig, TINY_CONFIG if size == "tiny" else FULL_CONFIGS["plane_pool"]
    )
    t = config.train
    stored = PointSamplingConfig(surface_points=t.surface_points)
    temporary = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    folder = Path(temporary.name)
    _write_shapes(folder, stored)

    def open_set(path: Path) -> ShapeDataset:
        return ShapeDataset(
            path,
            "train",
            surface_points=t.surface_points,
            volume_points=t.volume_points,
            near_points=t.near_points,
            seed=0,
        )

    data, packed = open_set(folder), open_set(folder / "packed")
    weakref.finalize(data, temporary.cleanup)
    why = f"shapes/s: the whole recipe in {GOAL_SHARE:g} of {PAPER_HOURS} h"
    settings = {
        "batch": t.batch_size,
        "surface_points": t.surface_points,
        "stored_surface_points": stored.surface_points,
        "stored_query_points": stored.volume_points + stored.near_points,
    }
    needed = needed_rate(config) if size == "full" else None
    works = _works(data, t.batch_size, settings, needed, why, device)
    item = works.pop("item")

    def alone(get: Callable[[tuple[int, int]], object]) -> Work:
        return Work(partial(_each, get, data, item.items), item.items, "float32", item.settings)

    plain = alone(partial(plain_item, data))
    return {"plain": plain, "item": item, "packed": alone(packed.__getitem__), **works}


def _write_shapes(folder: Path, stored: PointSamplingConfig) -> None:
    """FILES random shapes, as .npz files in `folder`/samples and as a shard in `folder`/packed."""
    rng, ids = np.random.default_rng(0), [f"shape_{i}" for i in range(FILES)]
    queries = stored.volume_points + stored.near_points
    for shape_id in ids:
        save_samples(
            ShapeSamples(
                rng.uniform(-1, 1, (stored.surface_points, 6)).astype(np.float32),
                rng.uniform(-1, 1, (queries, 3)).astype(np.float32),
                rng.random(queries) < 0.5,
                np.arange(queries) >= stored.volume_points,
            ),
            folder / "samples" / f"{shape_id}.npz",
        )
    shard = folder / "packed" / "samples" / "00000.tar"
    write_shard(shard, {p.name: p.read_bytes() for p in (folder / "samples").iterdir()})
    for path in (folder, folder / "packed"):
        write_json(path / "splits.json", {"train": ids, "val": [], "test": []})


def plain_item(data: ShapeDataset, key: tuple[int, int]) -> dict[str, torch.Tensor]:
    """An item of a `ShapeDataset` by the simplest code.

    The whole file is read with NumPy, converted and checked, and the item is the first rows of a
    permutation of all.
    """
    position, index = key
    rng = np.random.default_rng([data.seed, position])
    with np.load(data.reader.where(data.ids[index])) as archive:
        points = archive["points"].astype(np.float32)
        inside, is_near = (
            np.unpackbits(archive[name], count=len(points)).astype(bool)
            for name in ("inside", "is_near")
        )
        whole = ShapeSamples(
            archive["surface"].astype(np.float32), points, inside, is_near, archive["transform"]
        )
    surface = rng.permutation(len(whole.surface))[: data.counts["surface"]]
    chosen = np.concatenate(
        [
            rng.permutation(np.flatnonzero(is_near == near))[: data.counts[kind]]
            for near, kind in ((False, "volume"), (True, "near"))
        ]
    )
    arrays = {
        "surface": whole.surface[surface],
        "points": points[chosen],
        "inside": inside[chosen],
        "is_near": is_near[chosen],
    }
    return {name: torch.from_numpy(a) for name, a in arrays.items()}


def shapenet(size: str, _device: torch.device) -> dict[str, Work]:
    t = configuration.load(
        VQVAEConfig, TINY_CONFIG if size == "tiny" else FULL_CONFIGS["plane_pool"]
    ).train
    temporary, pool = tempfile.TemporaryDirectory(ignore_cleanup_errors=True), SHAPENET_POOL[size]
    settings = {
        "surface_points": t.surface_points,
        "stored_surface_points": SHAPENET_SURFACE,
        "pool": pool,
    }
    works = {}
    for suffix, save in (("", np.savez), ("_compressed", np.savez_compressed)):
        root = Path(temporary.name) / f"set{suffix}"
        _write_shapenet(root, pool, save)
        data = ShapeDataset(
            root,
            "train",
            surface_points=t.surface_points,
            volume_points=t.volume_points,
            near_points=t.near_points,
            seed=0,
        )
        weakref.finalize(data, temporary.cleanup)
        for name, get in (
            ("public", partial(public_item, data)),
            ("public_mask", partial(public_item, data, with_mask=True)),
            ("item", data.__getitem__),
        ):
            works[f"{name}{suffix}"] = Work(
                partial(_each, get, data, SHAPENET_ITEMS), SHAPENET_ITEMS, "float32", settings
            )
    return works


def _write_shapenet(root: Path, pool: int, save: Callable[..., None]) -> None:
    rng, folders = (
        np.random.default_rng(0),
        [root / "ShapeNetV2_point" / "0", root / "surface" / "0" / "4_pointcloud"],
    )
    for folder in folders:
        folder.mkdir(parents=True)
    for split in ("val", "test"):
        (folders[0] / f"{split}.lst").touch()
    (folders[0] / "train.lst").write_text(
        "\n".join(map(str, range(SHAPENET_FILES))), encoding="utf-8"
    )
    for k in range(SHAPENET_FILES):
        queries = {
            f"{kind}_points": rng.uniform(-1, 1, (pool, 3)).astype(np.float32)
            for kind in ("vol", "near")
        }
        save(
            folders[0] / f"{k}.npz",
            **queries,
            **{f"{kind}_label": rng.random(pool) < 0.5 for kind in ("vol", "near")},
        )
        np.save(folders[0] / f"{k}.npy", np.array(1.5))
        normals = rng.standard_normal((SHAPENET_SURFACE, 3)).astype(np.float32)
        save(
            folders[1] / f"{k}.npz",
            points=rng.uniform(-0.5, 0.5, (SHAPENET_SURFACE, 3)).astype(np.float32),
            normals=normals / np.linalg.norm(normals, axis=1, keepdims=True),
            loc=np.zeros(3),
            scale=np.array(1.0),
        )


def public_item(
    data: ShapeDataset, key: tuple[int, int], with_mask: bool = False
) -> dict[str, torch.Tensor]:
    """An item of ShapeNetV2 as public training code makes it."""
    position, index = key
    rng, path = (
        np.random.default_rng([data.seed, position]),
        Path(data.reader.where(data.ids[index])),
    )
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive}
    with np.load(data.reader.surfaces / "0" / "4_pointcloud" / path.name) as archive:
        points, normals = archive["points"] * np.load(path.with_suffix(".npy")), archive["normals"]
    surface = rng.choice(len(points), data.counts["surface"], replace=False)
    parts = []
    for kind, prefix in (("volume", "vol"), ("near", "near")):
        rows = rng.choice(len(stored[f"{prefix}_points"]), data.counts[kind], replace=False)
        parts.append((stored[f"{prefix}_points"][rows], stored[f"{prefix}_label"][rows]))
    queries, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    arrays = {
        "surface": np.concatenate([points[surface], normals[surface]], axis=1),
        "points": queries,
        "inside": labels,
    }
    mask = (
        {"mask": torch.tril(torch.ones(MASK_SIDE, MASK_SIDE, dtype=torch.bool))}
        if with_mask
        else {}
    )
    return {name: torch.from_numpy(a).float() for name, a in arrays.items()} | mask


def tokens(size: str, device: torch.device) -> dict[str, Work]:
    path, name = GPT_CONFIGS[size]
    tokenizer = configuration.load(
        VQVAEConfig, TINY_CONFIG if size == "tiny" else FULL_CONFIGS["plane_pool"]
    ).tokenizer
    config = configuration.load_gpt_run(path, name, tokenizer)
    gpt, side = config.gpt, config.image_encoder.image_size
    temporary, rng = (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True),
        np.random.default_rng(0),
    )
    folder = Path(temporary.name)
    write_json(folder / "tokens" / "stamp.json", {"codebook_size": gpt.codebook_size})
    for k in range(SHARDS):
        shard = folder / "tokens" / f"train-{k:05d}"
        shard.mkdir()
        np.save(
            shard / "tokens.npy",
            rng.integers(gpt.codebook_size, size=(SHARD_ROWS, gpt.num_tokens), dtype=np.uint16),
        )
        inputs = (
            rng.integers(256, size=(SHARD_ROWS, side, side, 3), dtype=np.uint8)
            if size == "tiny"
            else rng.random(
                (SHARD_ROWS, gpt.condition_tokens, gpt.condition_width), dtype=np.float32
            ).astype(np.float16)
        )
        np.save(shard / "image.npy", inputs)
        write_json(
            shard / "index.json", {"ids": [f"{k}_{i}" for i in range(SHARD_ROWS)], "sha256": ""}
        )
        write_json(shard / "image.json", {"counts": [1] * SHARD_ROWS, "sha256": ""})
    batch = config.train.global_batch_size
    data = TokenDataset(folder, "train", seed=0, expected_stamp={}, conditions=["image"])
    weakref.finalize(data, temporary.cleanup)
    settings = {
        "batch": batch,
        "tokens": gpt.num_tokens,
        "source": f"{inputs.dtype} {inputs.shape[1:]}",
    }
    why = (
        f"rows/s: a step of {name} at {GPU_SHARE:.0%} of {GPU_FLOPS / 1e12:.0f} TFLOP/s, six "
        "operations a weight and position"
    )
    return _works(
        data, batch, settings, _rows_needed(config) if size == "full" else None, why, device
    )


def _rows_needed(config: GPTRunConfig) -> float:
    with torch.device("meta"):
        gpt = GPT(config.gpt)
    weights = sum(
        p.numel() for part in (gpt.blocks, gpt.head) for p in part.parameters() if p.ndim == 2
    )
    return (
        GPU_SHARE
        * GPU_FLOPS
        / (6 * weights * (config.gpt.condition_tokens + config.gpt.num_tokens))
    )


def _works(
    data: Dataset,
    batch: int,
    settings: dict[str, object],
    needed: float | None,
    why: str,
    device: torch.device,
) -> dict[str, Work]:
    items, pinned = batch * BATCHES, device.type == "cuda"
    if needed is not None:
        settings = settings | {"needed": f"{needed:.0f} {why}"}

    def work(call: Callable[[], None], **more: object) -> Work:
        return Work(
            call,
            items,
            "float32",
            settings | more,
            goals={} if needed is None else {"seconds": items / needed},
        )

    works = {"item": work(lambda: _each(data.__getitem__, data, items))}
    for workers in (
        WORKERS[:2] if needed is None else [n for n in WORKERS if n <= max(2, os.cpu_count() or 1)]
    ):
        order = TrainingOrder(len(data), batch, seed=0, start=0, stop=BATCHES)
        loader = DataLoader(
            data,
            batch_sampler=order,
            num_workers=workers,
            pin_memory=pinned,
            persistent_workers=workers > 0,
        )
        works[f"workers_{workers}"] = work(
            partial(_exhaust, loader), workers=workers, pinned=pinned
        )
    return works


def _each(get: Callable[[tuple[int, int]], object], data: Dataset, items: int) -> None:
    for position, index in zip(range(items), itertools.cycle(range(len(data))), strict=False):
        get((position, index))


def _exhaust(loader: DataLoader) -> None:
    for _ in loader:
        pass


CASES = (
    Case("shapes", "full", "shapes", partial(shapes, "full")),
    Case("shapenet", "full", "shapes", partial(shapenet, "full")),
    Case("tokens", "full", "rows", partial(tokens, "full"), repeats=5),
    Case("shapes", "tiny", "shapes", partial(shapes, "tiny")),
    Case("shapenet", "tiny", "shapes", partial(shapenet, "tiny")),
    Case("tokens", "tiny", "rows", partial(tokens, "tiny")),
)
