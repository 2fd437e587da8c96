"""Whether shapes are what their captions asked for: attributes measured from their geometry, and
what the evaluator says of them.

Each set of a `Generations` is held against the same captions, also those sets that were made
without them: the truth and its reconstruction are the bounds, the shapes made from other captions
the floor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from tar3d.evaluation.attributes import ATTRIBUTES, score
from tar3d.evaluation.evaluator import measured, surface
from tar3d.mesh.load import load_mesh
from tar3d.metrics.summary import aggregate, cell, markdown_table

if TYPE_CHECKING:
    from pathlib import Path

    from tar3d.contracts import Mesh
    from tar3d.evaluation.evaluator_network import Evaluator
    from tar3d.evaluation.generations import Generations

TRUTH = "truth"
NAMES = ("legs", "top", "arms")


def text_scores(evaluator: Evaluator, made: Generations, seed: int) -> dict[str, dict]:
    """For each set and the truth: `attributes`, an aggregate over all that the captions state, and
    by name; `category`, the share that the evaluator takes for the truth's; and the evaluator's `r@1` and
    `r@5`. Shapes of categories that the evaluator does not know are left out of what it says, and
    counted ("evaluated")."""
    captions = made.told.captions
    sets = {TRUTH: [(pair.truth, pair.category) for pair in made.pairs["generation"]]}
    sets |= {
        name: [(pair.pred, pair.category) for pair in pairs] for name, pairs in made.pairs.items()
    }
    known = [
        k for k, (_, category) in enumerate(sets[TRUTH]) if category in evaluator.config.categories
    ]
    scores = {}
    for name, shapes in tqdm(sets.items(), unit="set", desc="attributes"):
        meshes = [_read(path) for path, _ in shapes]
        right: dict[str, list[float]] = {attribute: [] for attribute in NAMES}
        for mesh, (_, category), caption in zip(meshes, shapes, captions, strict=True):
            for attribute, met in (
                score(mesh, caption, category) if category in ATTRIBUTES else {}
            ).items():
                right[attribute].append(float(met))
        every = [value for values in right.values() for value in values]
        of_evaluator = {}
        if known:
            surfaces = [None if meshes[k] is None else surface(meshes[k], seed) for k in known]
            of_evaluator = measured(
                evaluator, surfaces, [captions[k] for k in known], [shapes[k][1] for k in known]
            )
        scores[name] = {
            "attributes": aggregate(every, seed),
            **{a: aggregate(values, seed) for a, values in right.items()},
            "evaluated": len(known),
            **{k: of_evaluator[k] for k in ("category", "r@1", "r@5") if of_evaluator},
        }
    return scores


def _read(path: Path | None) -> Mesh | None:
    return None if path is None else load_mesh(path)


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
            *(f"{values[k]:.3f}" if k in values else "none" for k in ("category", "r@1", "r@5")),
        ]
        for name, values in scores.items()
    ]
    return [
        "",
        "## Are they what the captions say?",
        "",
        f"Attributes are measured from geometry where the captions state them ({counts}); the category, and the caption "
        f"among those of all, are the evaluator's word on {truth['evaluated']} shapes (docs/evaluation.md).",
        "",
        *markdown_table(["set", "attributes", *NAMES, "category", "R@1", "R@5"], rows),
    ]
