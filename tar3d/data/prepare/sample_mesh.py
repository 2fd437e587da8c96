"""One mesh -> its row of report.csv and the bytes of its files: what a process or machine does of
`make_samples`.

It writes nothing, so that nobody who is ended in the middle leaves half of something behind.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from tar3d.data.formats.sample_bytes import sample_bytes
from tar3d.data.formats.views import picture_files, view_files
from tar3d.mesh.load import MeshError, load_mesh
from tar3d.mesh.points import sample_shape

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.config import PointSamplingConfig, ViewConfig


@dataclass(frozen=True)
class MeshJob:
    """A mesh, and what is to be made of it: "samples", "views" or both."""

    id: str
    path: Path
    pictures: tuple[Path, ...]  # given ones, to be its views
    parts: tuple[str, ...]


@dataclass(frozen=True)
class SampleResult:
    """Values of a row of the report, and files by name: samples/<id>.npz, views/<id>/<k>.png,
    views/<id>/cameras.json."""

    row: dict[str, object]
    files: dict[str, bytes] = field(default_factory=dict)


def sample_mesh(
    job: MeshJob, *, config: PointSamplingConfig, seed: int, views: ViewConfig | None
) -> SampleResult:
    """What comes out depends on the mesh, its id and the settings; a mesh that cannot be used gives
    a row with the reason. Views are rendered where no picture is given, or none of use, unless
    `views` is None."""
    start = time.perf_counter()
    entropy = int.from_bytes(hashlib.sha256(f"{seed}:{job.id}".encode()).digest()[:8], "big")
    row: dict[str, object] = {"status": "ok", "reason": ""}
    files: dict[str, bytes] = {}
    try:
        mesh = load_mesh(job.path)
        if "samples" in job.parts:
            samples, facts = sample_shape(mesh, config, entropy)
            files[f"samples/{job.id}.npz"] = sample_bytes(samples)
            row |= {
                name: f"{value:.5f}" if isinstance(value, float) else value
                for name, value in facts.items()
            }
        if "views" in job.parts:
            pictures, left_out = picture_files(job.pictures)
            if not pictures and views is not None:
                pictures = view_files(mesh, views, np.random.default_rng([entropy, 1]))
            row["reason"] = "; ".join(left_out)
            files |= {f"views/{job.id}/{name}": content for name, content in pictures.items()}
    except MeshError as e:
        row, files = {"status": "refused", "reason": str(e)}, {}
    return SampleResult(row | {"seconds": f"{time.perf_counter() - start:.3f}"}, files)
