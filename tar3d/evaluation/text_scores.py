"""Scores of shapes against their captions, measured by geometry and by the evaluator.

Each set of a `Generations` is scored against the same captions, also the sets that were made
without them: the truth and its reconstruction are the upper bounds, the shapes made from other
captions the lower one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tar3d.evaluation.attributes import ATTRIBUTES, score
from tar3d.evaluation.evaluator import score_shapes, surface
from tar3d.mesh.load import load_mesh
from tar3d.metrics.summary import aggregate, cell, markdown_table
from tar3d.runtime import progress_bar

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    import numpy as np

    from tar3d.contracts import Mesh
    from tar3d.evaluation.evaluator_network import Evaluator
    from tar3d.evaluation.generations import Generations

TRUTH = "truth"
NAMES = ("legs", "top", "arms")
EVALUATOR_SCORES = ("category", "r@1", "r@5")


def text_scores(evaluator: Evaluator, generations: Generations, seed: int) -> dict[str, dict]:
    """Scores of each set and of the truth.

    `attributes` aggregates over all that the captions state, and there is an aggregate of each
    attribute by name; `category` is the share of shapes that the evaluator assigns to the category
    of the truth, and `r@1` and `r@5` are its retrieval. Shapes of categories that the evaluator
    does not know are left out of these three: "evaluated" counts the others.
    """
    captions = generations.inputs.captions or []
    pairs = generations.pairs
    categories = [pair.category for pair in pairs["generation"]]
    paths = {TRUTH: [pair.truth for pair in pairs["generation"]]}
    paths |= {name: [pair.pred for pair in of_set] for name, of_set in pairs.items()}
    known = [k for k, name in enumerate(categories) if name in evaluator.config.categories]
    scores = {}
    for name, of_set in progress_bar(paths.items(), unit="set", desc="attributes"):
        meshes = [_read(path) for path in of_set]
        by_shape = attributes_met(meshes, captions, categories)
        met = {a: [found[a] for found in by_shape if a in found] for a in NAMES}
        evaluated: dict[str, float] = {}
        if known:
            evaluated = score_shapes(
                evaluator,
                [_surface(meshes[k], seed) for k in known],
                [captions[k] for k in known],
                [categories[k] for k in known],
            )
        scores[name] = {
            "attributes": aggregate([value for values in met.values() for value in values], seed),
            **{attribute: aggregate(values, seed) for attribute, values in met.items()},
            "evaluated": len(known),
            **{k: evaluated[k] for k in EVALUATOR_SCORES if evaluated},
        }
    return scores


def attributes_met(
    meshes: Iterable[Mesh | None], captions: Sequence[str], categories: Sequence[str]
) -> list[dict[str, bool]]:
    """For each shape the attributes that its caption states, and whether it has them.

    Shapes of categories without attributes have none.
    """
    return [
        score(mesh, caption, category) if category in ATTRIBUTES else {}
        for mesh, caption, category in zip(meshes, captions, categories, strict=True)
    ]


def _read(path: Path | None) -> Mesh | None:
    return None if path is None else load_mesh(path)


def _surface(mesh: Mesh | None, seed: int) -> np.ndarray | None:
    return None if mesh is None else surface(mesh, seed)


def text_report(scores: dict[str, dict], titles: dict[str, str]) -> list[str]:
    """Lines of the report's section."""
    titles = {TRUTH: "the truth itself", **titles}
    truth = scores[TRUTH]
    counts = ", ".join(f"{truth[name]['count']} times {name}" for name in NAMES)
    rows = [
        [
            titles[name],
            cell(values["attributes"]),
            *(cell(values[a]) for a in NAMES),
            *(f"{values[k]:.3f}" if k in values else "none" for k in EVALUATOR_SCORES),
        ]
        for name, values in scores.items()
    ]
    return [
        "",
        "## Are they what the captions say?",
        "",
        f"Attributes are measured from geometry where the captions state them ({counts}). The "
        "category, and the retrieval of the caption among those of all, are the evaluator's on "
        f"{truth['evaluated']} shapes (docs/evaluation.md).",
        "",
        *markdown_table(["set", "attributes", *NAMES, "category", "R@1", "R@5"], rows),
    ]
