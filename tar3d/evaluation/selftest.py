"""The self-test of eval_3d.py: the whole script on shapes whose scores arithmetic tells."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import trimesh

from tar3d.contracts import Mesh
from tar3d.data.formats.tables import read_rows
from tar3d.mesh.export import save_mesh

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import EvalProtocol

THRESHOLD = 0.02  # F-score threshold that is checked
QUARTER_TURN = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])


class Check(NamedTuple):
    """A score that was found, and what arithmetic says."""

    name: str
    value: float
    expected: float
    tolerance: float

    @property
    def passes(self) -> bool:
        return abs(self.value - self.expected) <= self.tolerance


def selftest(evaluate: Callable[[list[str]], int], flags: list[str], protocol: EvalProtocol) -> int:
    """Runs `evaluate`, the main function of eval_3d.py, on analytic shapes and prints every check.

    `flags` are those of the call that go on to it: the protocol, its values, the workers. Returns
    the exit code: 1 if a check fails.
    """
    thresholds = sorted({THRESHOLD, *protocol.thresholds})
    flags = [*flags, "frame=source", f"thresholds={thresholds}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for side, meshes in zip(("pred", "gt"), selftest_shapes(), strict=True):
            for shape_id, mesh in meshes.items():
                save_mesh(mesh, folder / side / f"{shape_id}.ply")
        pred, gt = str(folder / "pred"), str(folder / "gt")
        paired = ["--pred", pred, "--gt", gt, "--out", str(folder / "paired")]
        sets = ["--pred", pred, "--gt", pred, "--out", str(folder / "sets"), "--unpaired"]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exit_code = evaluate([*paired, "--align", "rot24+icp", *flags])
            evaluate([*sets, *flags])
        rows = {row["id"]: row for _, row in read_rows(folder / "paired" / "rows.csv", "id")}
        summary = json.loads((folder / "sets" / "summary.json").read_text(encoding="utf-8"))
    return print_checks([*checks_of_pairs(rows, exit_code), *checks_of_sets(summary["scores"])])


def print_checks(checks: list[Check]) -> int:
    """Prints a line a check and the verdict; returns the exit code."""
    for check in checks:
        print(
            f"{'ok   ' if check.passes else 'WRONG'} {check.name:<38} {check.value:.6f}, "
            f"expected {check.expected:.6f} +- {check.tolerance:g}"
        )
    good = sum(check.passes for check in checks)
    print(f"{'PASS' if good == len(checks) else 'FAIL'}: {good} of {len(checks)} checks")
    return 0 if good == len(checks) else 1


def selftest_shapes() -> tuple[dict[str, Mesh], dict[str, Mesh]]:
    """Predictions and truths by id; "absent" has no prediction.

    They are in the unit of the truths, which span -1 to 1.
    """
    cube = _box((-1, -1, -1), (1, 1, 1))
    low, high = (-1.0, -0.6, -0.3), (1.0, 0.6, 0.3)
    truths = {
        "same": _ball(1.0),
        "larger": _ball(1.0),
        "moved": cube,
        "half": cube,
        "turned": _box(low, high),
        "absent": cube,
    }
    preds = {
        "same": _ball(1.0),
        "larger": _ball(1.05),
        "moved": _box((-0.9, -1, -1), (1.1, 1, 1)),
        "half": _box((-1, -1, -1), (0, 1, 1)),
        "turned": _box(low, high, QUARTER_TURN),
    }
    return preds, truths


def _box(
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    turn: np.ndarray | None = None,
) -> Mesh:
    box = trimesh.creation.box(bounds=(low, high))
    return Mesh(box.vertices if turn is None else box.vertices @ turn.T, box.faces)


def _ball(radius: float) -> Mesh:
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    return Mesh(sphere.vertices, sphere.faces)


# Expected for half a cube: points on the cut count as wrong except near its rim, and of the
# missing half only a rim is found.
PRECISION, RECALL = (12 + 4 - 1.96**2) / 16, (12 + 8 * 0.02) / 24
# id, score, what arithmetic says, tolerance (for sampling and the sphere's facets)
EXPECTED = [
    ("same", "surface_chamfer", 0.0, 1e-6),
    ("same", "surface_fscore@0.02", 1.0, 0.0),
    ("same", "iou", 1.0, 0.0),
    ("same", "iou_near", 1.0, 0.0),
    ("same", "surface_normal_consistency", 1.0, 1e-6),
    ("same", "pred_closed", 1.0, 0.0),
    ("larger", "surface_chamfer", 0.05, 1e-3),
    ("larger", "surface_chamfer_sum", 0.1, 2e-3),
    ("larger", "surface_chamfer_squared", 0.0025, 1e-4),
    ("larger", "surface_chamfer_squared_sum", 0.005, 2e-4),
    ("larger", "surface_hausdorff", 0.05, 1e-3),
    ("larger", "surface_fscore@0.02", 0.0, 0.0),
    ("larger", "chamfer", 0.05, 0.01),
    ("larger", "normal_consistency", 1.0, 0.01),
    ("larger", "iou", 1.05**-3, 0.02),
    ("moved", "iou", 1.9 / 2.1, 0.01),
    ("moved", "surface_hausdorff", 0.1, 1e-6),
    ("moved", "aligned_surface_chamfer", 0.0, 0.01),
    ("half", "surface_precision@0.02", PRECISION, 0.02),
    ("half", "surface_recall@0.02", RECALL, 0.02),
    ("half", "surface_fscore@0.02", 2 * PRECISION * RECALL / (PRECISION + RECALL), 0.02),
    ("half", "iou", 0.5, 0.02),
    ("half", "surface_hausdorff", 1.0, 0.02),
    ("turned", "aligned_surface_chamfer", 0.0, 0.01),
    ("turned", "aligned_iou", 1.0, 0.03),
]


def checks_of_pairs(rows: dict[str, dict[str, str]], exit_code: int) -> list[Check]:
    """The checks of rows.csv: EXPECTED, the floor, and the pair that has no prediction."""
    same = rows["same"]
    return [
        *(
            Check(f"{shape_id} {score}", float(rows[shape_id][score]), expected, tolerance)
            for shape_id, score, expected, tolerance in EXPECTED
        ),
        Check("same chamfer is its floor", float(same["chamfer"]), float(same["floor_chamfer"]), 0),
        Check("absent has failed", float(rows["absent"]["status"] == "failed"), 1.0, 0.0),
        Check("exit status", float(exit_code), 1.0, 0.0),
    ]


def checks_of_sets(scores: dict[str, float]) -> list[Check]:
    """The checks of a set that is compared with itself."""
    return [
        Check("a set against itself: coverage", scores["coverage"], 1.0, 0.0),
        Check("... mmd", scores["mmd"], 0.0, 1e-12),
        Check("... one_nn_accuracy", scores["one_nn_accuracy"], 0.0, 0.0),
    ]
