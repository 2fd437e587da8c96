"""ShapeNetV2 in the layout that TAR3D and 3DShape2VecSet train on, read as it is:

    ROOT/ShapeNetV2_point/<cat>/<id>.npz         vol_points (M, 3), vol_label (M,), near_points,
                                                 near_label
    ROOT/ShapeNetV2_point/<cat>/<id>.npy         one number: the factor that takes surface points
                                                 to the frame of the query points
    ROOT/ShapeNetV2_point/<cat>/train.lst        ids, one a line; val.lst and test.lst too
    ROOT/surface/<cat>/4_pointcloud/<id>.npz     points (N, 3), normals (N, 3), loc (3,), scale:
                                                 position in the mesh's file = points * scale + loc

3DShape2VecSet calls the last folder ShapeNetV2_watertight or ShapeNetV2_surface. Coordinates are
float16, 32 or 64 in the cube [-1, 1]^3; labels are 0 or 1 in any type, or `numpy.packbits` of them.
The id of a shape is <cat>_<id>, as in ULIP.

Files are memory-mapped: of uncompressed arrays only the drawn rows are read and checked. A
ValueError names file, key and value of what is wrong.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.npz import file_checksums, float32, map_npz
from tar3d.data.formats.sample_reader import SampleReader

if TYPE_CHECKING:
    import torch

    from tar3d.data.formats.sample_reader import ChooseRows

POINTS = "ShapeNetV2_point"
SURFACES = ("surface", "ShapeNetV2_watertight", "ShapeNetV2_surface")
OUTSIDE = 1e-3  # rounding puts coordinates outside the cube; up to this far they are clipped
# allowed distance of the normals' mean length from 1: those of degenerate faces are zero
NORMAL_LENGTH = 0.05

ChooseFromPool = Callable[[int], "slice | np.ndarray"]  # number of stored rows -> rows to read


class ShapeNetV2(SampleReader):
    """The shapes that the .lst files name and whose files exist."""

    name = f"ShapeNetV2's ({POINTS}/ with its surface points)"

    @classmethod
    def holds(cls, folder: Path) -> bool:
        """True if `folder` is ShapeNetV2_point/ or holds it."""
        return folder.name == POINTS or (folder / POINTS).is_dir()

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).parent if Path(folder).name == POINTS else Path(folder)
        surfaces = [name for name in SURFACES if (self.folder / name).is_dir()]
        if not surfaces:
            raise ValueError(
                f"{self.folder} holds {POINTS}/ but no surface points: they lie beside it in "
                f"{', '.join(SURFACES)}"
            )
        self.surfaces = self.folder / surfaces[0]
        self.advice = (
            f"its files {POINTS}/<cat>/*.lst name no shape whose .npz, .npy and surface points "
            "are all there"
        )
        self._files: dict[str, tuple[str, str]] = {}  # shape id -> category, name of its files
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
                    f"{path} is missing: it names the shapes of this split, one a line; "
                    "it may be empty"
                )
            lines = (
                line.strip().removesuffix(".npz")
                for line in path.read_text(encoding="utf-8").splitlines()
            )
            for name in dict.fromkeys(filter(None, lines)):
                shape_id = f"{category}_{name}"
                if shape_id in self._files:
                    raise ValueError(f"{path}: {name} stands in another split of {category} too")
                self._files[shape_id] = category, name
                self._listed[split].append(shape_id)

    def listed(self, split: str) -> list[str]:
        """The ids of a split in the .lst files, with or without files."""
        return self._listed[split]

    def ids(self, split: str) -> list[str]:
        """The ids of a split whose three files exist; a warning counts the others."""
        listed = self._listed[split]
        complete = {c: self._complete(c) for c in {self._files[i][0] for i in listed}}
        ids = [i for i in listed if self._files[i][1] in complete[self._files[i][0]]]
        if ids and len(ids) < len(listed):
            known = set(ids)
            first = next(i for i in listed if i not in known)
            warnings.warn(
                f"{len(listed) - len(ids)} of {len(listed)} shapes of split {split!r} under "
                f"{self.folder} lack one of their files and are left out; the first is {first}",
                stacklevel=2,
            )
        return ids

    def _complete(self, category: str) -> set[str]:
        """The names in a category that all three files exist of."""
        points, surface = self.folder / POINTS / category, self.surfaces / category / "4_pointcloud"
        # a category has thousands of files, and their names alone come four times as fast
        files = set(os.listdir(points))  # noqa: PTH208
        on_surface = set(os.listdir(surface)) if surface.is_dir() else set()  # noqa: PTH208
        stems = {f.removesuffix(".npz") for f in files & on_surface if f.endswith(".npz")}
        return {stem for stem in stems if f"{stem}.npy" in files}

    def categories(self) -> dict[str, str]:
        """The name of the category's folder, by id."""
        return {shape_id: category for shape_id, (category, _) in self._files.items()}

    def where(self, shape_id: str) -> str:
        """The file of a shape's query points."""
        return str(self._points(shape_id, ".npz"))

    def _points(self, shape_id: str, suffix: str) -> Path:
        category, name = self._files[shape_id]
        return self.folder / POINTS / category / f"{name}{suffix}"

    def arrays(self, shape_id: str, choose: ChooseRows) -> dict[str, np.ndarray]:
        """Chosen rows of a shape's samples in the frame of the query points, checked.

        The surface is float16 and the query points are float32.
        """
        surface, transform = self._surface(shape_id, lambda count: choose("surface", count))
        path = self._points(shape_id, ".npz")
        stored = map_npz(path, ("vol_points", "vol_label", "near_points", "near_label"))
        volume, volume_inside = _pool(stored, path, "vol", lambda count: choose("volume", count))
        near, near_inside = _pool(stored, path, "near", lambda count: choose("near", count))
        return {
            "surface": surface.half().numpy(),
            "points": np.concatenate([volume, near]),
            "inside": np.concatenate([volume_inside, near_inside]),
            "is_near": np.arange(len(volume) + len(near)) >= len(volume),
            "transform": transform,
        }

    def checksum(self, shape_id: str) -> str:
        """The checksums in a shape's two .npz files, and the number in its .npy."""
        category, name = self._files[shape_id]
        files = (
            self._points(shape_id, ".npz"),
            self.surfaces / category / "4_pointcloud" / f"{name}.npz",
        )
        factor = _read_number(self._points(shape_id, ".npy"))
        return " ".join([*(file_checksums(path) for path in files), f"{factor!r}"])

    def surface(self, shape_id: str) -> np.ndarray:
        """All surface points and normals, (N, 6) float32, in the frame of the query points."""
        return self._surface(shape_id, lambda count: slice(0, count))[0].numpy()

    def _surface(self, shape_id: str, choose: ChooseFromPool) -> tuple[torch.Tensor, np.ndarray]:
        """Chosen points and normals (N, 6) float32, and the transform (4, 4) to the mesh's file."""
        import torch  # here, so that processes that only write samples start without it

        category, name = self._files[shape_id]
        path = self.surfaces / category / "4_pointcloud" / f"{name}.npz"
        stored = map_npz(path, ("points", "normals", "loc", "scale"))
        if "points" in stored and "normals" not in stored:
            raise ValueError(
                f"{path} has points without normals, which the tokenizer's encoder needs: "
                "use TAR3D's surface/, or make samples of the meshes with "
                "python -m tar3d.data.make_samples"
            )
        points, normals, loc, scale = (
            _take(stored, path, key) for key in ("points", "normals", "loc", "scale")
        )
        _expect_rows(points, path, "points")
        if normals.shape != points.shape:
            raise ValueError(
                f"{path}: normals must be {points.shape} like the points, got {normals.shape}"
            )
        source_scale = _checked_scale(loc, scale, path)
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
        transform = np.diag([source_scale / factor] * 3 + [1.0])
        transform[:3, 3] = loc
        # torch joins them in a tenth of numpy's time
        return torch.cat([torch.from_numpy(points), torch.from_numpy(normals)], dim=1), transform


def _checked_scale(loc: np.ndarray, scale: np.ndarray, path: Path) -> float:
    if (
        loc.shape != (3,)
        or scale.size != 1
        or not (np.isfinite(loc).all() and float(scale.reshape(())) > 0)
    ):
        raise ValueError(
            f"{path}: loc must be three numbers and scale a positive one, "
            f"got {loc.tolist()} and {scale.tolist()}"
        )
    return float(scale.reshape(()))


def _rows(array: np.ndarray, rows: slice | np.ndarray) -> np.ndarray:
    # take needs a third of the time of array[rows]
    return array[rows] if isinstance(rows, slice) else array.take(rows, axis=0)


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
            f"{path}: {key} must be (rows, 3) of float16, 32 or 64, "
            f"got {points.shape} {points.dtype}"
        )


def _pool(
    stored: dict[str, np.ndarray], path: Path, prefix: str, choose: ChooseFromPool
) -> tuple[np.ndarray, np.ndarray]:
    """Chosen query points (m, 3) float32 of one pool, and whether they are inside (m,) bool."""
    points, labels = (_take(stored, path, f"{prefix}_{key}") for key in ("points", "label"))
    _expect_rows(points, path, f"{prefix}_points")
    count = len(points)
    packed = labels.dtype == np.uint8 and labels.shape == (-(-count // 8),) != (count,)
    if not packed and labels.shape != (count,):
        raise ValueError(
            f"{path}: {prefix}_label must be ({count},), one for each point, or "
            f"{-(-count // 8)} bytes of packed bits, got {labels.shape} {labels.dtype}"
        )
    rows = choose(count)
    if packed:
        rows = np.arange(count)[rows]
        inside = (labels[rows >> 3] >> (7 - (rows & 7)).astype(np.uint8) & 1).astype(bool)
    else:
        values = labels[rows]
        inside = values == 1
        allowed = inside | (values == 0)
        if not allowed.all():
            raise ValueError(f"{path}: {prefix}_label must hold 0 and 1, got {values[~allowed][0]}")
    return _in_cube(float32(_rows(points, rows)), path, f"{prefix}_points"), inside


def _in_cube(points: np.ndarray, path: Path, key: str) -> np.ndarray:
    """Clips `points` to the cube, in place; a ValueError if they are far outside."""
    largest = float(max(points.max(initial=0.0), -points.min(initial=0.0)))
    if not largest <= 1 + OUTSIDE:  # not largest > ...: NaN is refused too
        raise ValueError(
            f"{path}: {key} must lie in the cube [-1, 1]^3, "
            f"got a coordinate of magnitude {largest:.6g}"
        )
    return points if largest <= 1 else points.clip(-1, 1, out=points)


def _read_number(path: Path) -> float:
    """The positive number that an .npy file holds."""
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
            f"{path} must hold one positive number, the surface's scale, "
            f"got {number.dtype} {number.shape}"
        )
    return float(number.reshape(()))
