"""Predicted and true meshes on disk -> pairs by id -> one row of scores a pair.

A pair that cannot be scored has a row with status "failed" and the reason; it is never skipped. A
row depends on its pair and the protocol alone, so the number of workers and the order of the files
change nothing.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tar3d import config as configuration
from tar3d.config import EvalProtocol
from tar3d.data.prepare.mesh_list import mesh_ids
from tar3d.mesh.load import load_mesh
from tar3d.metrics.align import alignment
from tar3d.metrics.geometry import (
    compare_meshes,
    floor_scores,
    in_frame,
    mesh_facts,
    surface_cloud,
    transformed,
)
from tar3d.metrics.registry import is_lower_better
from tar3d.parallel.processes import results

if TYPE_CHECKING:
    from tar3d.contracts import Mesh

CSV_COLUMNS = ("id", "pred", "truth")
ABOUT = (
    "id",
    "category",
    "status",
    "reason",
    "pred",
    "truth",
)  # columns of a row that are no scores
PROTOCOLS = Path(__file__).resolve().parents[2] / "configs" / "eval"
SET_POINTS = 2048  # points a shape in set scores, as in PointFlow


def protocol_names() -> str:
    return ", ".join(sorted(path.stem for path in PROTOCOLS.glob("*.yaml")))


def load_protocol(name: str, overrides: list[str]) -> EvalProtocol:
    """A protocol by its name or file, with `key=value` overrides."""
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
        """The columns ABOUT of a row of scores."""
        return {
            "id": self.id,
            "category": self.category,
            "status": "ok",
            "reason": "",
            "pred": str(self.pred or ""),
            "truth": str(self.truth or ""),
        }


def pairs_by_id(pred: Path, truth: Path, categories: dict[str, str]) -> list[Pair]:
    """Pairs of two folders by id (path without suffix); an id that only one of them has is a pair
    with a reason."""
    predicted, true = mesh_ids(pred), mesh_ids(truth)
    if not predicted.keys() & true.keys():
        raise ValueError(
            f"no id of {pred} is one of {truth}: ids are file names without suffix, e.g. "
            f"{min(predicted)!r} and {min(true)!r}; a CSV with the columns {', '.join(CSV_COLUMNS)} pairs any files"
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
    ]


def pairs_by_csv(path: Path) -> list[Pair]:
    """Pairs that a CSV with the columns id, pred and truth lists; its paths are relative to it."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    with open(path, encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    lacking = [name for name in CSV_COLUMNS if not rows or name not in rows[0]]
    if lacking:
        raise ValueError(
            f"{path} lists no pairs: it needs a header with {', '.join(CSV_COLUMNS)}, and a row for each pair"
        )
    repeated = sorted(i for i, count in Counter(row["id"] for row in rows).items() if count > 1)
    if repeated:
        raise ValueError(f"{path} has more than one row with the id {repeated[0]!r}")
    return [Pair(r["id"], path.parent / r["pred"], path.parent / r["truth"]) for r in rows]


def score_pairs(
    pairs: list[Pair], protocol: EvalProtocol, align: str, workers: int, title: str = "pairs"
) -> list[dict]:
    """One row a pair, in the order of `pairs`; memory does not grow with their number."""
    job = partial(score_pair, protocol=protocol, align=align)
    workers = min(workers, max(1, len(pairs) // 4))  # a process takes a second to start
    rows = {
        row["id"]: row
        for row in tqdm(results(job, pairs, workers), total=len(pairs), unit="pair", desc=title)
    }
    return [rows[pair.id] for pair in pairs]


def score_pair(pair: Pair, *, protocol: EvalProtocol, align: str) -> dict:
    """ABOUT, and the scores of `tar3d.metrics.geometry`; after an alignment once more,
    named aligned_*."""
    row = pair.row()
    try:
        if pair.reason:
            raise ValueError(pair.reason)
        pred, truth = read_pair(pair, protocol)
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
    return in_frame(load_mesh(pair.pred), load_mesh(pair.truth), protocol.frame)


def set_cloud(path: Path, protocol: EvalProtocol) -> tuple[Path, object]:
    """A mesh file -> (path, (SET_POINTS, 3) points in the frame of the protocol, or the reason why
    not)."""
    try:
        mesh = load_mesh(path)
        return path, surface_cloud(
            in_frame(mesh, mesh, protocol.frame)[0], SET_POINTS, (protocol.seed, 5)
        )[:, :3]
    except ValueError as e:
        return path, str(e)


def set_clouds(
    paths: dict[str, Path], protocol: EvalProtocol, workers: int
) -> tuple[dict[str, object], dict[str, str]]:
    """Point clouds of mesh files by id, and the reasons of those that cannot be used."""
    job = partial(set_cloud, protocol=protocol)
    done = dict(
        tqdm(
            results(job, paths.values(), min(workers, max(1, len(paths) // 16))),
            total=len(paths),
            unit="mesh",
            desc="points",
        )
    )
    clouds = {i: done[p] for i, p in paths.items() if not isinstance(done[p], str)}
    return clouds, {i: done[p] for i, p in paths.items() if isinstance(done[p], str)}
