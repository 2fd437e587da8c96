"""Checks single shapes of a data set, their samples and views, against docs/data.md.

The tables and tokens are checked in `check_tables`. A `Problem` is a violation of the
specification, or a warning for what is odd but allowed, such as a shape in no split.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tar3d.condition.image import ImageError, load_image
from tar3d.contracts import CUBE_FILL, ShapeSamples
from tar3d.data.formats.samples import load_samples
from tar3d.data.formats.shards import ShardedFiles
from tar3d.data.formats.views import view_names
from tar3d.data.validate.check_orientation import check_orientation
from tar3d.data.validate.overlay import View, project, seen_at
from tar3d.mesh.background import middle_span
from tar3d.mesh.cameras import Camera

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tar3d.config import PointSamplingConfig, ViewConfig

SAMPLE_KEYS = {
    "surface": "float16 (N, 6), N > 0: finite points in [-1, 1] and unit normals",
    "points": "float16 (M, 3), M > 0, finite, in [-1, 1]",
    "inside": "uint8, ceil(M / 8) bytes of packed bits, 1 inside",
    "is_near": "uint8, ceil(M / 8) bytes of packed bits, 1 for the near points, which come last",
    "transform": "float64 (4, 4), finite and invertible, last row 0 0 0 1",
}
# field of cameras.json -> shape
CAMERA_FIELDS = {"position": (3,), "target": (3,), "up": (3,), "field_of_view": ()}
FLOAT16_STEP = 2.0**-11  # largest rounding error of a coordinate near 1
NORMAL_TOLERANCE = 2 * FLOAT16_STEP  # a normal's length: each of three components is rounded
SMALLEST_FILL = 0.9 * CUBE_FILL  # samples of a surface miss its farthest tip by less than that
# usual share of the near points that are inside: low for thin plates, a half for boxes
NEAR_SHARES = (0.02, 0.9)
QUANTILES = 16  # of each of the four numbers of `outline`
SMALLEST_SPAN = 0.5  # of the frame, by all but a few of the surface points
SCORED_POINTS = 4096  # surface points projected into each view
# Least share of them on the object. Views of the same mesh give more than 0.99; with another axis
# up most shapes give less than 0.9.
FRAME_SCORE = 0.95


@dataclass(frozen=True)
class Problem:
    """A violation of the specification, or with `warning` something odd that is allowed."""

    file: str  # path, or shard:member
    key: str  # array, column or field; empty for the file as a whole
    found: str
    allowed: str
    shape: str = ""  # id of the shape, if it is about one
    warning: bool = False

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}: {key}{self.found}; allowed: {self.allowed}"


@dataclass
class Settings:
    """The settings that samples and views were made with; None for those that are unknown."""

    samples: PointSamplingConfig | None = None
    views: ViewConfig | None = None


@dataclass
class Folder:
    """The samples and views of one data set, loose or in shards, and their settings.

    For another layout, another class with the same members can take its place.
    """

    root: Path
    samples: ShardedFiles
    views: ShardedFiles
    sample_names: dict[str, str]  # id -> name in `samples`
    view_names: dict[str, list[str]]  # id -> names in `views`
    settings: Settings = field(default_factory=Settings)

    @classmethod
    def open(cls, root: Path, settings: Settings) -> Folder:
        """Lists the files of a data set; a ValueError if a shard is damaged."""
        samples, views = ShardedFiles(root / "samples", ".npz"), ShardedFiles(root / "views")
        return cls(
            root,
            samples,
            views,
            {name.removesuffix(".npz"): name for name in samples},
            view_names(views),
            settings,
        )

    def read(self, shape_id: str) -> ShapeSamples:
        """The samples of a shape; a ValueError if they are damaged."""
        name = self.sample_names[shape_id]
        return load_samples(self.samples.where(name), self.samples.read(name))

    def view(self, name: str) -> View:
        """A view by its name; an `ImageError` names an image that cannot be used."""
        return View.of(load_image(self.views.where(name), self.views.read(name)))

    def cameras(self, shape_id: str) -> list[Camera] | None:
        """The cameras of a shape, None without cameras.json; a ValueError if it is damaged."""
        name = f"{shape_id}/cameras.json"
        return parse_cameras(self.views.read(name)) if name in self.views else None


def parse_cameras(content: bytes) -> list[Camera]:
    """The cameras of a cameras.json; a ValueError says "camera <k>: <field> ..."."""
    entries = json.loads(content.decode("utf-8"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is not a list of cameras")
    cameras = []
    for k, entry in enumerate(entries):
        for name, shape in CAMERA_FIELDS.items():
            try:
                value = np.array(entry[name], dtype=np.float64)
            except (KeyError, TypeError, ValueError) as e:
                raise ValueError(f"camera {k}: {name} is {entry.get(name, 'missing')!r}") from e
            if value.shape != shape or not np.isfinite(value).all():
                raise ValueError(f"camera {k}: {name} is {entry[name]!r}")
        try:
            cameras.append(Camera.from_json(entry))
        except ValueError as e:
            raise ValueError(f"camera {k}: {e}") from e
    return cameras


@dataclass(frozen=True)
class ShapeCheck:
    """What was found in the files of one shape that can be read."""

    problems: list[Problem]
    statistics: dict[str, float]
    outline: np.ndarray | None  # `outline` of its surface


def outline(points: np.ndarray) -> np.ndarray:
    """Quantiles (64,) float32 of the coordinates and the distance to the origin of (N, 3) points.

    They describe a shape whatever points of its surface were drawn.
    """
    radius = np.linalg.norm(points, axis=1, keepdims=True)
    levels = (np.arange(QUANTILES) + 0.5) / QUANTILES
    values = np.quantile(np.concatenate([points, radius], axis=1), levels, axis=0)
    return values.T.ravel().astype(np.float32)


def check_shape(folder: Folder, shape_id: str) -> ShapeCheck:
    """The problems of one shape, its statistics and its outline."""
    name = folder.sample_names[shape_id]
    where = folder.samples.where(name)
    samples = None
    problems: list[Problem] = []
    statistics: dict[str, float] = {}
    try:
        content = folder.samples.read(name)
        samples = load_samples(where, content)
    except (ValueError, OSError) as e:
        message = str(e).removeprefix(where).lstrip(": ")
        named = re.search(r"\b(surface|points|inside|is_near|transform|to_source)\b", message)
        key = named[0].replace("to_source", "transform") if named else ""
        allowed = SAMPLE_KEYS.get(key, f"an .npz with {', '.join(SAMPLE_KEYS)}")
        problems.append(Problem(where, key, message, allowed, shape_id))
    else:
        problems += check_samples(samples, where, shape_id, folder.settings.samples)
        volume, near = samples.inside[~samples.is_near], samples.inside[samples.is_near]
        statistics = {
            "surface points": len(samples.surface),
            "volume points": len(volume),
            "near points": len(near),
            "inside, share of volume": _share(volume),
            "inside, share of near": _share(near),
            "bytes": len(content),
        }
    view_problems, view_statistics = check_views(folder, shape_id, samples)
    drawn = None if samples is None else outline(samples.surface[:, :3])
    return ShapeCheck(problems + view_problems, statistics | view_statistics, drawn)


def check_samples(
    samples: ShapeSamples, where: str, shape_id: str, config: PointSamplingConfig | None
) -> Iterator[Problem]:
    """Checks what `load_samples` does not: lengths, counts, order, frame, and plausible labels."""
    yield from _check_arrays(samples, where, shape_id, config)
    yield from _check_transform(samples.to_source, where, shape_id)
    yield from _check_plausible(samples, where, shape_id)
    for found in check_orientation(samples):
        yield Problem(where, found.key, found.found, found.allowed, shape_id, found.warning)


def _check_arrays(
    samples: ShapeSamples, where: str, shape_id: str, config: PointSamplingConfig | None
) -> Iterator[Problem]:
    """The length of normals, the number and order of points, and that labels differ."""

    def problem(key: str, found: str, allowed: str) -> Problem:
        return Problem(where, key, found, allowed, shape_id)

    near = samples.is_near
    length = np.sqrt(np.einsum("ni,ni->n", samples.surface[:, 3:], samples.surface[:, 3:]))
    wrong = np.abs(length - 1) > NORMAL_TOLERANCE
    if wrong.any():
        yield problem(
            "surface",
            f"{wrong.sum():,} of {len(length):,} normals are "
            f"{length.min():.4g} to {length.max():.4g} long",
            f"length 1 to within {NORMAL_TOLERANCE:.4f}",
        )
    if config is not None:
        for key, pool, count, expected in (
            ("surface", "surface", len(samples.surface), config.surface_points),
            ("is_near", "volume", int((~near).sum()), config.volume_points),
            ("is_near", "near", int(near.sum()), config.near_points),
        ):
            if count != expected:
                yield problem(
                    key, f"{count:,} {pool} points", f"{expected:,}, as samples/settings.json says"
                )
    if (near[:-1] & ~near[1:]).any():
        row = int(np.flatnonzero(near[:-1] & ~near[1:])[0]) + 1
        yield problem(
            "is_near",
            f"a volume point in row {row} after a near one",
            "all volume points before all near points",
        )
    for name, labels in (("none", samples.inside), ("all", ~samples.inside)):
        if not labels.any():
            yield problem(
                "inside",
                f"{name} of {len(labels):,} points are inside",
                "some inside, some outside",
            )


def _check_transform(transform: np.ndarray, where: str, shape_id: str) -> Iterator[Problem]:
    """The matrix to the mesh's frame: finite, affine and invertible."""
    allowed = SAMPLE_KEYS["transform"]
    if not np.isfinite(transform).all():
        yield Problem(where, "transform", "NaN or infinite values", allowed, shape_id)
    elif (
        not np.array_equal(transform[3], [0, 0, 0, 1])
        or np.linalg.matrix_rank(transform[:3, :3]) < 3
    ):
        determinant = np.linalg.det(transform)
        found = f"determinant {determinant:.3g}, last row {transform[3].tolist()}"
        yield Problem(where, "transform", found, allowed, shape_id)


def _check_plausible(samples: ShapeSamples, where: str, shape_id: str) -> Iterator[Problem]:
    """Warnings for a shape that does not fill its frame, and for implausible labels."""

    def warning(key: str, found: str, allowed: str) -> Problem:
        return Problem(where, key, found, allowed, shape_id, True)

    near = samples.is_near
    reach = np.abs(samples.surface[:, :3]).max()
    if not SMALLEST_FILL <= reach <= CUBE_FILL + FLOAT16_STEP:
        yield warning(
            "surface",
            f"largest |coordinate| {reach:.4f}",
            f"about {CUBE_FILL}, as the frame has it",
        )
    span, share = middle_span(samples.surface[:, :3])
    if span < SMALLEST_SPAN:
        yield warning(
            "surface",
            f"{share:.0%} of the points along each axis span {span:.1%} of the frame",
            f"at least {SMALLEST_SPAN:.0%}: does a stray part far away make the object small?",
        )
    beyond = int((np.abs(samples.points[samples.inside]) > reach + 0.01).any(axis=1).sum())
    if beyond:
        yield warning(
            "inside",
            f"{beyond:,} points are inside that lie beyond the surface's bounding cube",
            "none, unless the mesh has large holes",
        )
    share = _share(samples.inside[near])
    if near.any() and not NEAR_SHARES[0] <= share <= NEAR_SHARES[1]:
        yield warning(
            "inside",
            f"{share:.1%} of the near points are inside",
            "{:.0%} to {:.0%} of most shapes".format(*NEAR_SHARES),
        )


def check_views(
    folder: Folder, shape_id: str, samples: ShapeSamples | None
) -> tuple[list[Problem], dict[str, float]]:
    """The problems of a shape's views and cameras, and statistics.

    The statistic `frame` is the share of surface points that the cameras put on the object, in the
    view where it is least.
    """
    names = folder.view_names.get(shape_id, [])
    problems, views = _check_images(folder, shape_id, names)
    statistics: dict[str, float] = {"views": len(names)}
    file = folder.views.where(f"{shape_id}/cameras.json")
    try:
        cameras = folder.cameras(shape_id)
    except (ValueError, OSError) as e:  # UnicodeDecodeError and JSONDecodeError among them
        named = re.match(rf"camera \d+: ({'|'.join(CAMERA_FIELDS)})\b", str(e))
        allowed = (
            "a list with position, target, up (three finite numbers each) and "
            "field_of_view (degrees in (0, 180)) of each view"
        )
        problems.append(Problem(file, named[1] if named else "", str(e), allowed, shape_id))
        return problems, statistics
    if cameras is not None and len(cameras) != len(names):
        allowed = f"{len(names)}, one for each .png"
        problems.append(Problem(file, "", f"{len(cameras)} cameras", allowed, shape_id))
    elif cameras is not None and samples is not None:
        points = samples.surface[:SCORED_POINTS, :3]
        frame_problems, scores = _check_frame(
            folder, shape_id, points, dict(zip(names, cameras, strict=True)), views
        )
        problems += frame_problems
        if scores:
            statistics["frame"] = min(scores.values())
    return problems, statistics


def _check_images(
    folder: Folder, shape_id: str, names: list[str]
) -> tuple[list[Problem], dict[str, View]]:
    """Problems of the number of views and of single images; the views that can be used, by name."""
    problems: list[Problem] = []
    config = folder.settings.views
    path = str(folder.root / "views" / shape_id)
    if not names and len(folder.views):
        allowed = "one at least, to train a GPT on the shape"
        problems.append(Problem(path, "", "no .png view", allowed, shape_id, True))
    if config is not None and names and len(names) != config.count:
        allowed = f"{config.count}, as samples/settings.json says"
        problems.append(Problem(path, "", f"{len(names)} views", allowed, shape_id))
    views = {}
    for name in names:
        try:
            views[name] = folder.view(name)
        except (ImageError, OSError) as e:
            file = folder.views.where(name)
            found = str(e).removeprefix(file).lstrip(": ")
            allowed = "a still image in which an object stands out"
            problems.append(Problem(file, "", found, allowed, shape_id))
    return problems, views


def _check_frame(
    folder: Folder,
    shape_id: str,
    points: np.ndarray,
    cameras: dict[str, Camera],
    views: dict[str, View],
) -> tuple[list[Problem], dict[str, float]]:
    """Projects surface points (n, 3) into the views; returns problems and scores by view."""
    problems: list[Problem] = []
    scores: dict[str, float] = {}
    for name, camera in cameras.items():
        if name not in views:
            continue
        view, file = views[name], folder.views.where(name)
        if view.image.width != view.image.height:
            found = "{} x {} pixels".format(*view.image.size)
            allowed = "a square, where there is a camera"
            problems.append(Problem(file, "", found, allowed, shape_id))
        elif view.mask is not None:
            scores[name] = float(seen_at(project(points, camera), view.mask).mean())
    if scores:
        worst = min(scores, key=lambda name: scores[name])
        if scores[worst] < FRAME_SCORE:
            problems.append(
                Problem(
                    folder.views.where(worst),
                    "frame",
                    f"{scores[worst]:.1%} of the surface points fall on the object",
                    f"at least {FRAME_SCORE:.0%}: "
                    "is the frame of image, camera and samples the same?",
                    shape_id,
                )
            )
    return problems, scores


def _share(labels: np.ndarray) -> float:
    return float(labels.mean()) if len(labels) else float("nan")
