"""A data set folder held against its specification, docs/data.md: each violation with file, key,
what is there, what is allowed.

The range checks of single shapes and their views are here, those of the tables and tokens in
`checks_folder`. What is odd but allowed, such as a shape in no split, is a warning.
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
from tar3d.data.validate.overlay import View, project, seen_at
from tar3d.mesh.render import Camera

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
CAMERA_FIELDS = {"position": (3,), "target": (3,), "up": (3,), "field_of_view": ()}  # shapes
FLOAT16_STEP = 2.0**-11  # relative; a coordinate near 1 is off by as much at most
NORMAL_TOLERANCE = 2 * FLOAT16_STEP  # of the length: each of three components is rounded
SMALLEST_FILL = 0.9 * CUBE_FILL  # samples of a surface miss its farthest tip by less than that
NEAR_SHARES = (
    0.02,
    0.9,
)  # of the near points inside: thin plates are at its low end, boxes at a half
SCORED_POINTS = 4096  # of the surface, projected into each view
# views rendered of the very mesh give more than 0.99, with another axis up most shapes give below
# 0.9
FRAME_SCORE = 0.95


@dataclass(frozen=True)
class Problem:
    """A violation of the specification, or with `warning` something allowed that is worth a
    look."""

    file: str  # path, or shard:member
    key: str  # array, column or field; empty where it is the file as a whole
    found: str
    allowed: str
    shape: str = ""  # id
    warning: bool = False

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.file}: {key}{self.found}; allowed: {self.allowed}"


@dataclass
class Folder:
    """The samples and views of one data set, loose or in shards, by id, and the settings they were
    made with.

    Of another layout, another class with the same members can take its place.
    """

    root: Path
    samples: ShardedFiles
    views: ShardedFiles
    sample_names: dict[str, str]  # id -> name in `samples`
    view_names: dict[str, list[str]]
    settings: dict[str, object] = field(
        default_factory=dict
    )  # "samples": PointSamplingConfig, "views": ViewConfig or None

    @classmethod
    def open(cls, root: Path, settings: dict[str, object]) -> Folder:
        """A ValueError where a shard is damaged."""
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
        name = self.sample_names[shape_id]
        return load_samples(self.samples.where(name), self.samples.read(name))

    def view(self, name: str) -> View:
        """An `ImageError` names the picture that cannot be used."""
        return View.of(load_image(self.views.where(name), self.views.read(name)))

    def cameras(self, shape_id: str) -> list[Camera] | None:
        """None where there is no cameras.json; a ValueError where it is not as specified."""
        name = f"{shape_id}/cameras.json"
        return parse_cameras(self.views.read(name)) if name in self.views else None


def parse_cameras(content: bytes) -> list[Camera]:
    """A ValueError says "camera <k>: <field> ..." where it is one field that is wrong."""
    entries = json.loads(content.decode("utf-8"))
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is no list of cameras")
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


def check_shape(folder: Folder, shape_id: str) -> tuple[list[Problem], dict[str, float]]:
    """Everything about one shape, and its statistics; those of a file that cannot be read are
    missing."""
    name = folder.sample_names[shape_id]
    where = folder.samples.where(name)
    samples, problems, statistics = None, [], {}
    try:
        content = folder.samples.read(name)
        samples = load_samples(where, content)
    except (ValueError, OSError) as e:
        found = str(e).removeprefix(where).lstrip(": ")
        named = re.search(r"\b(surface|points|inside|is_near|transform|to_source)\b", found)
        key = named[0].replace("to_source", "transform") if named else ""
        problems.append(
            Problem(
                where,
                key,
                found,
                SAMPLE_KEYS.get(key, f"an .npz with {', '.join(SAMPLE_KEYS)}"),
                shape_id,
            )
        )
    else:
        problems += check_samples(samples, where, shape_id, folder.settings.get("samples"))
        volume, near = samples.inside[~samples.is_near], samples.inside[samples.is_near]
        statistics = {
            "surface points": len(samples.surface),
            "volume points": len(volume),
            "near points": len(near),
            "inside, share of volume": _share(volume),
            "inside, share of near": _share(near),
            "bytes": len(content),
        }
    found, of_views = check_views(folder, shape_id, samples)
    return problems + found, statistics | of_views


def check_samples(
    samples: ShapeSamples, where: str, shape_id: str, config: PointSamplingConfig | None
) -> Iterator[Problem]:
    """What `load_samples` does not look at: lengths, counts, order, the frame, and whether the
    labels can be right."""

    def problem(key: str, found: str, allowed: str, warning: bool = False) -> Problem:
        return Problem(where, key, found, allowed, shape_id, warning)

    near = samples.is_near
    length = np.sqrt(np.einsum("ni,ni->n", samples.surface[:, 3:], samples.surface[:, 3:]))
    wrong = np.abs(length - 1) > NORMAL_TOLERANCE
    if wrong.any():
        yield problem(
            "surface",
            f"{wrong.sum():,} of {len(length):,} normals are {length.min():.4g} to {length.max():.4g} long",
            f"length 1 to within {NORMAL_TOLERANCE:.4f}",
        )
    if config is not None:
        for key, kind, count, wanted in (
            ("surface", "surface", len(samples.surface), config.surface_points),
            ("is_near", "volume", int((~near).sum()), config.volume_points),
            ("is_near", "near", int(near.sum()), config.near_points),
        ):
            if count != wanted:
                yield problem(
                    key, f"{count:,} {kind} points", f"{wanted:,}, as samples/settings.json says"
                )
    if (near[:-1] & ~near[1:]).any():
        yield problem(
            "is_near",
            f"a volume point in row {int(np.flatnonzero(near[:-1] & ~near[1:])[0]) + 1} after a near one",
            "all volume points before all near points",
        )
    for name, labels in (("none", samples.inside), ("all", ~samples.inside)):
        if not labels.any():
            yield problem(
                "inside",
                f"{name} of {len(labels):,} points are inside",
                "some inside, some outside",
            )
    transform = samples.to_source
    if not np.isfinite(transform).all():
        yield problem("transform", "NaN or infinite values", SAMPLE_KEYS["transform"])
    elif (
        not np.array_equal(transform[3], [0, 0, 0, 1])
        or np.linalg.matrix_rank(transform[:3, :3]) < 3
    ):
        yield problem(
            "transform",
            f"determinant {np.linalg.det(transform):.3g}, last row {transform[3].tolist()}",
            SAMPLE_KEYS["transform"],
        )

    reach = np.abs(samples.surface[:, :3]).max()
    if not SMALLEST_FILL <= reach <= CUBE_FILL + FLOAT16_STEP:
        yield problem(
            "surface",
            f"largest |coordinate| {reach:.4f}",
            f"about {CUBE_FILL}, as the frame has it",
            True,
        )
    beyond = int((np.abs(samples.points[samples.inside]) > reach + 0.01).any(axis=1).sum())
    if beyond:
        yield problem(
            "inside",
            f"{beyond:,} points are inside that lie beyond the surface's bounding cube",
            "none, unless the mesh has large holes",
            True,
        )
    share = _share(samples.inside[near])
    if near.any() and not NEAR_SHARES[0] <= share <= NEAR_SHARES[1]:
        yield problem(
            "inside",
            f"{share:.1%} of the near points are inside",
            "{:.0%} to {:.0%} of most shapes".format(*NEAR_SHARES),
            True,
        )


def check_views(
    folder: Folder, shape_id: str, samples: ShapeSamples | None
) -> tuple[list[Problem], dict[str, float]]:
    """The pictures and cameras of one shape. The statistic `frame` is the share of surface points
    that its cameras put on the object, in that view where it is least."""
    names = folder.view_names.get(shape_id, [])
    config: ViewConfig | None = folder.settings.get("views")
    table = f"{shape_id}/cameras.json"
    where = folder.views.where(table)
    problems: list[Problem] = []

    def problem(file: str, key: str, found: str, allowed: str, warning: bool = False) -> None:
        problems.append(Problem(file, key, found, allowed, shape_id, warning))

    place = str(folder.root / "views" / shape_id)
    if not names and len(folder.views):
        problem(place, "", "no .png view", "one at least, to train a GPT on the shape", True)
    if config is not None and names and len(names) != config.count:
        problem(place, "", f"{len(names)} views", f"{config.count}, as samples/settings.json says")
    views = {}
    for name in names:
        try:
            views[name] = folder.view(name)
        except (ImageError, OSError) as e:
            problem(
                folder.views.where(name),
                "",
                str(e).removeprefix(folder.views.where(name)).lstrip(": "),
                "a still picture in which an object stands out",
            )
    try:
        cameras = folder.cameras(shape_id)
    except (ValueError, OSError) as e:  # UnicodeDecodeError and JSONDecodeError among them
        named = re.match(rf"camera \d+: ({'|'.join(CAMERA_FIELDS)})\b", str(e))
        problem(
            where,
            named[1] if named else "",
            str(e),
            "a list with position, target, up (three finite numbers each) and "
            "field_of_view (degrees in (0, 180)) of each view",
        )
        return problems, {"views": len(names)}
    if cameras is None:
        return problems, {"views": len(names)}
    if len(cameras) != len(names):
        problem(where, "", f"{len(cameras)} cameras", f"{len(names)}, one for each .png")
    if samples is None or len(cameras) != len(names):
        return problems, {"views": len(names)}
    scores = {}
    for name, camera in zip(names, cameras, strict=True):
        if name in views and views[name].picture.width != views[name].picture.height:
            problem(
                folder.views.where(name),
                "",
                "{} x {} pixels".format(*views[name].picture.size),
                "a square, where there is a camera",
            )
        elif name in views and views[name].mask is not None:
            scores[name] = float(
                seen_at(
                    project(samples.surface[:SCORED_POINTS, :3], camera), views[name].mask
                ).mean()
            )
    if not scores:
        return problems, {"views": len(names)}
    worst = min(scores, key=scores.get)
    if scores[worst] < FRAME_SCORE:
        problem(
            folder.views.where(worst),
            "frame",
            f"{scores[worst]:.1%} of the surface points fall on the object",
            f"at least {FRAME_SCORE:.0%}: is the frame of picture, camera and samples the same?",
        )
    return problems, {"views": len(names), "frame": scores[worst]}


def _share(labels: np.ndarray) -> float:
    return float(labels.mean()) if len(labels) else float("nan")
