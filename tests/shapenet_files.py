"""A small ShapeNetV2 in the layout of the public data, made of ellipsoids, whose insides and
surfaces are known exactly."""

from pathlib import Path

import numpy as np

SCALE, LOC = 2.5, np.array([0.1, -0.2, 0.3])  # of the surface files, to the original model


def write_shape(
    root: Path,
    category: str,
    name: str,
    rng: np.random.Generator,
    *,
    packed: bool = False,
    compressed: bool = False,
    pool: int = 301,
    surface: int = 200,
    dtype: type = np.float32,
) -> None:
    """One ellipsoid. Its query points lie in the cube, its surface's points in a frame 1 / `factor`
    as large."""
    radii, factor = rng.uniform(0.4, 0.9, 3), rng.uniform(1.5, 2.5)
    volume = rng.uniform(-1, 1, (pool, 3)).astype(dtype)
    directions = _unit(rng.standard_normal((pool + surface, 3)))
    near = (
        (directions[:pool] * radii + 0.02 * rng.standard_normal((pool, 3)))
        .clip(-1, 1)
        .astype(dtype)
    )
    points = directions[pool:] * radii
    labels = [(np.square(p.astype(np.float64) / radii).sum(1) < 1) for p in (volume, near)]
    labels = [np.packbits(bits) if packed else bits.astype(np.float32) for bits in labels]
    folder = root / "ShapeNetV2_point" / category
    on_surface = root / "surface" / category / "4_pointcloud"
    for made in (folder, on_surface):
        made.mkdir(parents=True, exist_ok=True)
    save = np.savez_compressed if compressed else np.savez
    save(
        folder / f"{name}.npz",
        vol_points=volume,
        vol_label=labels[0],
        near_points=near,
        near_label=labels[1],
    )
    np.save(folder / f"{name}.npy", np.array(factor))
    save(
        on_surface / f"{name}.npz",
        points=(points / factor).astype(dtype),
        normals=_unit(points / radii**2).astype(dtype),
        loc=LOC,
        scale=np.array(SCALE),
    )


def write_shapenet(root: Path, splits: dict[str, dict[str, list[str]]], **settings) -> Path:
    """{category: {split: [name, ...]}}; every second shape has packed labels, every second list
    .npz names and an empty end."""
    rng = np.random.default_rng(0)
    for category, lists in splits.items():
        for k, (split, names) in enumerate(lists.items()):
            for j, name in enumerate(names):
                write_shape(root, category, name, rng, packed=j % 2 == 1, **settings)
            lines = (
                "\n".join(f"{name}.npz" for name in names) + "\n\n" if k % 2 else "\n".join(names)
            )
            (root / "ShapeNetV2_point" / category / f"{split}.lst").write_text(lines)
    return root


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
