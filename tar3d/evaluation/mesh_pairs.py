"""Predicted and true meshes on disk -> pairs by id -> one row of scores a pair.

A pair that cannot be scored has a row with status "failed" and the reason; it is never skipped. A
row depends on its pair and the protocol alone, so the number of workers and the order of the files
change nothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import EvalProtocol
from tar3d.data.formats.tables import read_checked_rows
from tar3d.data.prepare.mesh_list import read_mesh_list
from tar3d.evaluation.arguments import PROTOCOLS, protocol_names
from tar3d.mesh.load import load_mesh
from tar3d.metrics.align import alignment
from tar3d.metrics.geometry import (
    compare_meshes,
    floor_scores,
    in_frame,
    mesh_facts,
    size_note,
    surface_cloud,
    transformed,
)
from tar3d.metrics.registry import is_lower_better
from tar3d.parallel.processes import results
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    import numpy as np

    from tar3d.contracts import Mesh

CSV_COLUMNS = ("id", "pred", "truth")
# Columns of a row that are no scores.
PAIR_COLUMNS = ("id", "category", "status", "reason", "note", "pred", "truth")
SET_POINTS = 2048  # points a shape in set scores, as in PointFlow


def load_protocol(name: str, overrides: list[str]) -> EvalProtocol:
    """A protocol by its name or file, with `key=value` overrides.

    Raises ValueError where there is no such protocol, and for a headline score of which nothing
    says which of two values is better.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else PROTOCOLS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"--protocol {name}: there is no such protocol or file; there are {protocol_names()}"
        )
    protocol = configuration.load(EvalProtocol, path, overrides)
    for score in protocol.headline:
        is_lower_better(score)  # refuses a name that cannot be ranked before hours of work
    return protocol


@dataclass(frozen=True)
class Pair:
    """A prediction and its truth; a file that is missing is None, and `reason` says why."""

    id: str
    pred: Path | None
    truth: Path | None
    category: str = ""
    reason: str = ""

    def row(self) -> dict[str, str]:
        """The columns PAIR_COLUMNS of a row of scores."""
        return {
            "id": self.id,
            "category": self.category,
            "status": "ok",
            "reason": "",
            "note": "",
            "pred": str(self.pred or ""),
            "truth": str(self.truth or ""),
        }

    def files(self) -> tuple[Path, Path]:
        """Prediction and truth. Raises ValueError with the reason where one of them is missing."""
        if self.reason or self.pred is None or self.truth is None:
            raise ValueError(self.reason or f"{self.id} lacks a file")
        return self.pred, self.truth


def pairs_by_id(pred: Path, truth: Path, categories: dict[str, str]) -> list[Pair]:
    """Pairs of two folders by id, which is the path without suffix.

    An id that only one of the folders has is a pair with a reason, and so is a file that cannot be
    used. Raises ValueError where they have no id in common.
    """
    (predicted, unusable), (true, unusable_true) = meshes_by_id(pred), meshes_by_id(truth)
    if not predicted.keys() & true.keys():
        raise ValueError(
            f"no id of {pred} is one of {truth}: ids are file names without suffix, e.g. "
            f"{min(predicted)!r} and {min(true)!r}; a CSV with the columns "
            f"{', '.join(CSV_COLUMNS)} pairs any files"
        )
    missing = {
        True: f"{pred} holds no prediction for it",
        False: f"{truth} holds no true mesh for it",
    }
    return [
        Pair(
            i,
            predicted.get(i),
            true.get(i),
            categories.get(i, ""),
            "" if i in predicted and i in true else missing[i in true],
        )
        for i in sorted(predicted.keys() | true.keys())
    ] + [Pair(name, None, None, "", why) for name, why in (*unusable, *unusable_true)]


def meshes_by_id(folder: Path) -> tuple[dict[str, Path], list[tuple[str, str]]]:
    """The meshes of a folder by id, and (name, reason) of what cannot be used.

    Warnings count the files that are left out.
    """
    listed = read_mesh_list(folder)
    for note in listed.notes:
        warnings.warn(note, stacklevel=2)
    unusable = [(f"{folder}: {name}", reason) for name, (_, reason) in listed.refused.items()]
    return listed.meshes, unusable


def pairs_by_csv(path: Path) -> list[Pair]:
    """Pairs that a CSV with the columns id, pred and truth lists; its paths are relative to it.

    A bad row is a pair with a reason. Raises ValueError where the file is missing, is no table with
    these columns, or has no rows.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    pairs: dict[str, Pair] = {}
    for row in read_checked_rows(path, *CSV_COLUMNS):
        pair_id, *files = (row.cells.get(name, "").strip() for name in CSV_COLUMNS)
        empty = [name for name in CSV_COLUMNS if not row.cells.get(name, "").strip()]
        problem = row.problem or (f"the {empty[0]} is empty" if empty else "")
        if not problem and pair_id in pairs:
            problem = f"an earlier row has the id {pair_id!r}, too"
        if problem:
            is_free = pair_id and pair_id not in pairs
            name = pair_id if is_free else f"{pair_id} (line {row.line})".lstrip()
            pairs[name] = Pair(name, None, None, "", f"{path}, line {row.line}: {problem}")
        else:
            pred, truth = (path.parent / file for file in files)
            pairs[pair_id] = Pair(pair_id, pred, truth)
    if not pairs:
        raise ValueError(
            f"{path} lists no pairs: below its header it needs a row with "
            f"{', '.join(CSV_COLUMNS)} for each pair"
        )
    return list(pairs.values())


def score_pairs(
    pairs: list[Pair], protocol: EvalProtocol, align: str, workers: int, title: str = "pairs"
) -> list[dict]:
    """One row a pair, in the order of `pairs`; memory does not grow with their number."""
    job = partial(score_pair, protocol=protocol, align=align)
    workers = min(workers, max(1, len(pairs) // 4))  # a process takes a second to start
    rows = {
        row["id"]: row
        for row in progress_bar(
            results(job, pairs, workers), total=len(pairs), unit="pair", desc=title
        )
    }
    return [rows[pair.id] for pair in pairs]


def score_pair(pair: Pair, *, protocol: EvalProtocol, align: str) -> dict:
    """PAIR_COLUMNS and the scores of one pair.

    After an alignment (`align` other than "none") its scores stand there once more, as aligned_*.
    """
    row = pair.row()
    try:
        pred, truth = read_pair(pair, protocol)
        row["note"] = size_note(pred, truth)
        scores = (
            compare_meshes(pred, truth, protocol) | floor_scores(truth, protocol) | mesh_facts(pred)
        )
        if align != "none":
            moved = transformed(pred, alignment(pred, truth, align, protocol.seed))
            aligned = compare_meshes(moved, truth, protocol)
            scores |= {f"aligned_{k}": v for k, v in aligned.items() if not k.endswith("_closed")}
    except ValueError as e:  # a mesh that cannot be used, or a score that is not defined
        return row | {"status": "failed", "reason": str(e)}
    return row | scores


def read_pair(pair: Pair, protocol: EvalProtocol) -> tuple[Mesh, Mesh]:
    """Prediction and truth in the frame of the protocol."""
    pred, truth = pair.files()
    return in_frame(load_mesh(pred), load_mesh(truth), protocol.frame)


def set_cloud(path: Path, protocol: EvalProtocol) -> tuple[Path, np.ndarray | str]:
    """A mesh file -> (path, cloud).

    The cloud is (SET_POINTS, 3) points in the frame of the protocol, or the reason why there are
    none.
    """
    try:
        mesh = load_mesh(path)
        return path, surface_cloud(
            in_frame(mesh, mesh, protocol.frame)[0], SET_POINTS, (protocol.seed, 5)
        )[:, :3]
    except ValueError as e:
        return path, str(e)


def set_clouds(
    paths: dict[str, Path], protocol: EvalProtocol, workers: int
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Point clouds of mesh files by id, and the reasons of those that cannot be used."""
    job = partial(set_cloud, protocol=protocol)
    found = dict(
        progress_bar(
            results(job, paths.values(), min(workers, max(1, len(paths) // 16))),
            total=len(paths),
            unit="mesh",
            desc="points",
        )
    )
    clouds, reasons = {}, {}
    for shape_id, path in paths.items():
        cloud = found[path]
        if isinstance(cloud, str):
            reasons[shape_id] = cloud
        else:
            clouds[shape_id] = cloud
    return clouds, reasons
