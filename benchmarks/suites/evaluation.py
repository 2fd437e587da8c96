"""The evaluation suite: the cost of scoring one pair in one process.

    point_scores     Chamfer, F-score, normal consistency of two clouds of 16,000 points
    all_scores       those of a pair of 50,000-face meshes: sampled, exact, IoU and floor
    render_20        20 views at 224 px of a 50,000-face mesh, colour, normals and mask

eval_3d.py runs one process a core. Nothing here runs a network, so the device does not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import trimesh

from benchmarks.measure import Case, Work
from tar3d.config import EvalProtocol
from tar3d.contracts import Mesh
from tar3d.mesh.cameras import orbit
from tar3d.mesh.render import Renderer
from tar3d.metrics.geometry import compare_meshes, floor_scores, point_scores, surface_cloud

if TYPE_CHECKING:
    import torch

PROTOCOL = EvalProtocol()
FACES, VIEWS, VIEW_SIZE = 50_000, 20, 224


def torus(minor: float) -> Mesh:
    """A torus of about FACES faces that fills the cube."""
    shape = trimesh.creation.torus(
        0.95 - minor, minor, major_sections=250, minor_sections=FACES // 500
    )
    return Mesh(shape.vertices, shape.faces)


def points(_device: torch.device) -> Work:
    pred, truth = (
        surface_cloud(torus(minor), PROTOCOL.points, seed) for seed, minor in enumerate((0.3, 0.32))
    )
    return Work(
        lambda: {"chamfer": point_scores(pred, truth, PROTOCOL.thresholds)["chamfer"]},
        1,
        "float64",
        {"points": PROTOCOL.points},
    )


def everything(_device: torch.device) -> Work:
    pred, truth = torus(0.3), torus(0.32)

    def call() -> dict[str, float | int]:
        return {
            "scores": len(compare_meshes(pred, truth, PROTOCOL) | floor_scores(truth, PROTOCOL))
        }

    return Work(
        call,
        1,
        "float64",
        {"points": PROTOCOL.points, "faces": len(truth.faces), "iou_points": PROTOCOL.iou_points},
    )


def views(_device: torch.device) -> Work:
    mesh = torus(0.3)
    cameras = [
        orbit(azimuth, 20.0, 5.5, 35.0) for azimuth in np.linspace(0, 360, VIEWS, endpoint=False)
    ]

    def call() -> dict[str, float | int]:
        renderer = Renderer(mesh)
        return {
            "foreground": float(
                np.mean([renderer.render(camera, VIEW_SIZE).mask.mean() for camera in cameras])
            )
        }

    return Work(call, VIEWS, "float32", {"faces": len(mesh.faces), "size": VIEW_SIZE})


CASES = (
    Case("point_scores", "full", "pairs", points, repeats=10),
    Case("all_scores", "full", "pairs", everything, repeats=5),
    Case("render_20", "full", "views", views, repeats=5),
)
