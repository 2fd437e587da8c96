"""ShapeNetV2 in the layout that TAR3D and 3DShape2VecSet train on, read as it is:

    ROOT/ShapeNetV2_point/<cat>/<id>.npz           vol_points (M, 3), vol_label (M,), near_points, near_label
    ROOT/ShapeNetV2_point/<cat>/<id>.npy           one number: the surface's points times it lie in the frame of the others
    ROOT/ShapeNetV2_point/<cat>/train.lst          ids, one a line; val.lst and test.lst too
    ROOT/surface/<cat>/4_pointcloud/<id>.npz       points (N, 3), normals (N, 3), loc (3,), scale: source = points * scale + loc

3DShape2VecSet calls the last folder ShapeNetV2_watertight or ShapeNetV2_surface. Coordinates are
float16, 32 or 64 in the cube [-1, 1]^3; labels are 0 or 1 in any type, or `numpy.packbits` of them.
An id here is <cat>_<id>, as ULIP names the shapes.

Files are mapped, not read: of arrays that are stored uncompressed only the rows that are drawn are
read, and only they are checked. What is not as it should be is a ValueError that names file, key
and value.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.npz import float32, map_npz

POINTS = "ShapeNetV2_point"
SURFACES = ("surface", "ShapeNetV2_watertight", "ShapeNetV2_surface")
OUTSIDE = 1e-3  # coordinates leave the cube by rounding; up to this far they are clipped
# how far the mean length of normals may be from 1: a few of degenerate faces are zero
NORMAL_LENGTH = 0.05

Choose = Callable[[str, int], "slice | np.ndarray"]


def holds_shapenet(folder: str | Path) -> bool:
    return Path(folder).name == POINTS or (Path(folder) / POINTS).is_dir()


class ShapeNetV2:
    """The shapes that the .lst files name and whose files are there. Has the methods of
    `tar3d.data.datasets.shapes.SampleFolder`."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).parent if Path(folder).name == POINTS else Path(folder)
        surfaces = [name for name in SURFACES if (self.folder / name).is_dir()]
        if not surfaces:
            raise ValueError(
                f"{self.folder} holds {POINTS}/ but no surface points: they lie beside it in {', '.join(SURFACES)}"
            )
        self.surfaces = self.folder / surfaces[0]
        self.advice = f"its files {POINTS}/<cat>/*.lst name no shape whose .npz, .npy and surface points are all there"
        self._places: dict[str, tuple[str, str]] = {}  # shape id -> category, name of its files
        self._listed: dict[str, list[str]] = {split: [] for split in SPLITS}
        for category in sorted(
            p.name for p in (self.folder / POINTS).iterdir() if p.is_dir() and any(p.glob("*.lst"))
        ):
            self._read_lists(category)

    def _read_lists(self, category: str) -> None:
        for split in SPLITS:
            path = self.folder / POINTS / category / f"{split}.lst"
            if not path.is_file():
                raise ValueError(
                    f"{path} is missing: it names the shapes of this split, one a line; it may be empty"
                )
            lines = (
                line.strip().removesuffix(".npz")
                for line in path.read_text(encoding="utf-8").splitlines()
            )
            for name in dict.fromkeys(filter(None, lines)):
                shape_id = f"{category}_{name}"
                if shape_id in self._places:
                    raise ValueError(f"{path}: {name} stands in another split of {category} too")
                self._places[shape_id] = category, name
                self._listed[split].append(shape_id)

    def listed(self, split: str) -> list[str]:
        """The ids of a split, whether or not their files are there."""
        return self._listed[split]

    def ids(self, split: str) -> list[str]:
        """Those whose three files are there; the others are counted in a warning."""
        names = {c: self._complete(c) for c in {self._places[i][0] for i in self._listed[split]}}
        kept = [i for i in self._listed[split] if self._places[i][1] in names[self._places[i][0]]]
        if kept and len(kept) < len(self._listed[split]):
            first = next(i for i in self._listed[split] if i not in set(kept))
            warnings.warn(
                f"{len(self._listed[split]) - len(kept)} of {len(self._listed[split])} shapes of split {split!r} under "
                f"{self.folder} lack one of their files and are left out; the first is {first}",
                stacklevel=2,
            )
        return kept

    def _complete(self, category: str) -> set[str]:
        points, surface = self.folder / POINTS / category, self.surfaces / category / "4_pointcloud"
        files = set(os.listdir(points))
        on_surface = set(os.listdir(surface)) if surface.is_dir() else set()
        stems = {f.removesuffix(".npz") for f in files & on_surface if f.endswith(".npz")}
        return {stem for stem in stems if f"{stem}.npy" in files}

    def categories(self) -> dict[str, str]:
        return {shape_id: category for shape_id, (category, _) in self._places.items()}

    def where(self, shape_id: str) -> str:
        """For messages: the file of its query points."""
        return str(self._points(shape_id, ".npz"))

    def _points(self, shape_id: str, suffix: str) -> Path:
        category, name = self._places[shape_id]
        return self.folder / POINTS / category / f"{name}{suffix}"

    def arrays(self, shape_id: str, choose: Choose) -> dict[str, np.ndarray]:
        """Chosen rows of a shape's surface (N, 6) float16, points (M, 3) float32, inside and
        is_near (M,) bool, volume points first, and its transform (4, 4), in the frame of the query
        points. `choose` as in `SampleFolder.arrays`."""
        surface, transform = self._surface(shape_id, lambda stored: choose("surface", stored))
        path = self._points(shape_id, ".npz")
        stored = map_npz(path, ("vol_points", "vol_label", "near_points", "near_label"))
        pools = [
            _pool(stored, path, prefix, lambda count, kind=kind: choose(kind, count))
            for kind, prefix in (("volume", "vol"), ("near", "near"))
        ]
        (volume, _), (near, _) = pools
        return {
            "surface": surface.half().numpy(),
            "points": np.concatenate([volume, near]),
            "inside": np.concatenate([labels for _, labels in pools]),
            "is_near": np.arange(len(volume) + len(near)) >= len(volume),
            "transform": transform,
        }

    def surface(self, shape_id: str) -> np.ndarray:
        """All surface points and normals, (N, 6) float32, in the frame of the query points."""
        return self._surface(shape_id, lambda stored: slice(None))[0].numpy()

    def _surface(
        self, shape_id: str, choose: Callable[[int], slice | np.ndarray]
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Chosen points and normals (N, 6) float32, joined by torch: numpy takes ten times as long;
        and their transform."""
        category, name = self._places[shape_id]
        path = self.surfaces / category / "4_pointcloud" / f"{name}.npz"
        stored = map_npz(path, ("points", "normals", "loc", "scale"))
        if "points" in stored and "normals" not in stored:
            raise ValueError(
                f"{path} has points without normals, which the tokenizer's encoder needs: use TAR3D's surface/, "
                "or make samples of the meshes with python -m tar3d.data.make_samples"
            )
        points, normals, loc, scale = (
            _take(stored, path, key) for key in ("points", "normals", "loc", "scale")
        )
        _expect_rows(points, path, "points")
        if normals.shape != points.shape:
            raise ValueError(
                f"{path}: normals must be {points.shape} like the points, got {normals.shape}"
            )
        if (
            loc.shape != (3,)
            or scale.size != 1
            or not (np.isfinite(loc).all() and float(scale.reshape(())) > 0)
        ):
            raise ValueError(
                f"{path}: loc must be three numbers and scale a positive one, "
                f"got {loc.tolist()} and {scale.tolist()}"
            )
        factor, rows = _read_number(self._points(shape_id, ".npy")), choose(len(points))
        points = _in_cube(
            float32(_rows(points, rows)) * np.float32(factor), path, f"points times {factor:g}"
        )
        normals = float32(_rows(normals, rows))
        length = float(np.sqrt(np.einsum("ij,ij->i", normals, normals)).mean())
        if not abs(length - 1) <= NORMAL_LENGTH:
            raise ValueError(
                f"{path}: normals must be unit vectors, got a mean length of {length:.4g}"
            )
        transform = np.diag([float(scale.reshape(())) / factor] * 3 + [1.0])
        transform[:3, 3] = loc
        return torch.cat([torch.from_numpy(points), torch.from_numpy(normals)], dim=1), transform


def _rows(array: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    return (
        array[rows] if isinstance(rows, slice) else array.take(rows, axis=0)
    )  # three times as fast as array[rows]


def _take(stored: dict[str, np.ndarray], path: Path, key: str) -> np.ndarray:
    if key not in stored:
        raise ValueError(f"{path} has no key {key!r}")
    return stored[key]


def _expect_rows(points: np.ndarray, path: Path, key: str) -> None:
    if (
        points.ndim != 2
        or points.shape[1] != 3
        or points.dtype not in (np.float16, np.float32, np.float64)
    ):
        raise ValueError(
            f"{path}: {key} must be (rows, 3) of float16, 32 or 64, got {points.shape} {points.dtype}"
        )


def _pool(
    stored: dict[str, np.ndarray],
    path: Path,
    prefix: str,
    choose: Callable[[int], slice | np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Chosen query points (m, 3) float32 of one kind, and whether they are inside (m,) bool."""
    points, labels = (_take(stored, path, f"{prefix}_{what}") for what in ("points", "label"))
    _expect_rows(points, path, f"{prefix}_points")
    count = len(points)
    packed = labels.dtype == np.uint8 and labels.shape == (-(-count // 8),) != (count,)
    if not packed and labels.shape != (count,):
        raise ValueError(
            f"{path}: {prefix}_label must be ({count},), one for each point, or {-(-count // 8)} bytes of packed "
            f"bits, got {labels.shape} {labels.dtype}"
        )
    rows = choose(count)
    if packed:
        rows = np.arange(count)[rows]
        inside = (labels[rows >> 3] >> (7 - (rows & 7)).astype(np.uint8) & 1).astype(bool)
    else:
        values = labels[rows]
        inside = values == 1
        if not (inside | (values == 0)).all():
            raise ValueError(
                f"{path}: {prefix}_label must hold 0 and 1, got {values[~(inside | (values == 0))][0]}"
            )
    return _in_cube(float32(_rows(points, rows)), path, f"{prefix}_points"), inside


def _in_cube(points: np.ndarray, path: Path, key: str) -> np.ndarray:
    """`points` clipped to the cube, in place."""
    largest = float(max(points.max(initial=0.0), -points.min(initial=0.0)))
    if not largest <= 1 + OUTSIDE:  # NaN is none of the two
        raise ValueError(
            f"{path}: {key} must lie in the cube [-1, 1]^3, got a coordinate of magnitude {largest:.6g}"
        )
    return points if largest <= 1 else points.clip(-1, 1, out=points)


def _read_number(path: Path) -> float:
    try:
        number = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise ValueError(f"{path} is not a readable .npy file ({e})") from e
    if (
        number.size != 1
        or number.dtype.kind not in "fiu"
        or not 0 < float(number.reshape(())) < np.inf
    ):
        raise ValueError(
            f"{path} must hold one positive number, the surface's scale, got {number.dtype} {number.shape}"
        )
    return float(number.reshape(()))
