"""The evaluator: it learns, sees what it should and nothing else, and its scores are what they are
called."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tar3d.contracts import ShapeSamples
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.samples import save_samples
from tar3d.data.toy.shapes import generate
from tar3d.evaluation import evaluator as evaluating
from tar3d.evaluation.attributes import ATTRIBUTES
from tar3d.evaluation.evaluator import (
    CaptionedShapes,
    load_evaluator,
    ranks,
    retrieval,
    score_shapes,
    surface,
    train,
)
from tar3d.evaluation.evaluator_network import Evaluator, EvaluatorConfig, terms_of, vocabulary
from tar3d.io import write_csv, write_json
from tar3d.mesh.load import MeshError

SHIPPED = Path(__file__).resolve().parents[2] / "pretrained" / "tiny" / "evaluator"
TINY = {
    "width": 32,
    "pooled": 48,
    "embedding": 16,
    "points": 128,
    "batch_size": 12,
    "warmup": 5,
    "rarest_term": 1,
}
FEW = ["a mug with one handle", "a round table", "a boat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A data set of twelve procedural shapes, two captions each."""
    root = tmp_path_factory.mktemp("toy")
    shapes = [generate(i, seed=5) for i in range(12)]
    rng = np.random.default_rng(0)
    for k, shape in enumerate(shapes):
        nothing = np.zeros(4, dtype=bool)
        samples = ShapeSamples(
            surface(shape.mesh, k, 600),
            rng.uniform(-1, 1, (4, 3)).astype(np.float32),
            nothing,
            nothing,
        )
        save_samples(samples, root / "samples" / f"{shape.id}.npz")
    write_csv(
        root / "captions.csv",
        ["id", "caption"],
        [{"id": s.id, "caption": c} for s in shapes for c in (s.captions[0], f"a {s.category}")],
    )
    write_csv(
        root / "manifest.csv",
        ["id", "category"],
        [{"id": s.id, "category": s.category} for s in shapes],
    )
    ids = [s.id for s in shapes]
    write_json(root / "splits.json", {"train": ids, "val": ids[:0], "test": ids[:0]})
    return root


class FixedEvaluator:
    """An evaluator with fixed embeddings: a shape's stand in its first point, a caption's in a
    table."""

    def __init__(self, captions: dict[str, list[float]]) -> None:
        self.table = captions

    def embed_shapes(self, points: torch.Tensor) -> torch.Tensor:
        return points[:, 0, :2]

    def embed_captions(self, captions: list[str]) -> torch.Tensor:
        return torch.tensor([self.table[c] for c in captions])


def shape_at(*vector: float) -> np.ndarray:
    return np.array([[*vector, 0, 0, 0, 0]])


def test_a_handful_of_shapes_is_learnt_by_heart(folder):
    shapes = CaptionedShapes(folder, ["train"])
    evaluator = train(shapes, EvaluatorConfig(**TINY, steps=150, learning_rate=5e-3))
    scores = score_shapes(
        evaluator, shapes.evaluation_points(), [c[0] for c in shapes.captions], shapes.categories
    )
    assert scores["category"] == 1 and scores["r@1"] == 1 and scores["captions"] == 12
    assert (
        score_shapes(evaluator, [None] * 12, [c[0] for c in shapes.captions], shapes.categories)[
            "category"
        ]
        == 0
    )


def test_the_same_seed_gives_the_same_weights(folder):
    shapes = CaptionedShapes(folder, ["train"])
    one, other = (train(shapes, EvaluatorConfig(**TINY, steps=3)).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_retrieval_counts_the_captions_that_fit_better():
    captions = ["east", "north", "between"]
    evaluator = FixedEvaluator({"east": [1.0, 0.0], "north": [0.0, 1.0], "between": [0.6, 0.8]})
    surfaces = [shape_at(1, 0), shape_at(1, 0), shape_at(0.6, 0.8)]
    assert ranks(evaluator, surfaces, captions).tolist() == [1, 3, 1]
    assert retrieval(evaluator, surfaces, captions) == {
        "r@1": pytest.approx(2 / 3),
        "r@5": 1.0,
        "captions": 3,
    }


def test_equal_captions_are_one_caption():
    evaluator = FixedEvaluator({"east": [1.0, 0.0], "north": [0.0, 1.0]})
    surfaces = [shape_at(1, 0), shape_at(0.9, 0.1), shape_at(0, 1)]
    assert ranks(evaluator, surfaces, ["east", "east", "north"]).tolist() == [1, 1, 1]


def test_ties_count_against_and_what_is_not_there_is_a_miss():
    blind = FixedEvaluator({c: [1.0, 0.0] for c in "abcdefgh"})
    assert ranks(blind, [shape_at(1, 0)] * 8, list("abcdefgh")).tolist() == [8] * 8
    evaluator = FixedEvaluator({"east": [1.0, 0.0], "north": [0.0, 1.0]})
    assert ranks(evaluator, [None, shape_at(0, 1)], ["east", "north"]).tolist() == [np.inf, 1]
    assert retrieval(evaluator, [None, None], ["east", "north"])["r@5"] == 0
    with pytest.raises(
        ValueError, match="a caption for each of one or more shapes, got 1 shapes and 2 captions"
    ):
        retrieval(evaluator, [None], ["east", "north"])


def test_saved_and_loaded_it_evaluates_alike(folder, tmp_path, capsys):
    tiny = [f"{name}={value}" for name, value in TINY.items()]
    splits = json.loads((folder / "splits.json").read_text())
    write_json(
        tmp_path / "splits.json",
        {"train": splits["train"][:9], "val": splits["train"][9:], "test": []},
    )
    for name in ("samples", "captions.csv", "manifest.csv"):
        (tmp_path / name).symlink_to(folder / name)
    assert (
        evaluating.main([str(tmp_path), "--out", str(tmp_path / "evaluator"), *tiny, "steps=5"])
        == 0
    )
    assert "val" in capsys.readouterr().out
    record = json.loads((tmp_path / "evaluator" / "metrics.json").read_text())
    assert (
        record["command"] in (tmp_path / "evaluator" / "README.md").read_text()
        and record["val"]["shapes"] == 3
    )
    evaluator, shapes = load_evaluator(tmp_path / "evaluator"), CaptionedShapes(tmp_path, ["train"])
    fresh = train(shapes, EvaluatorConfig(**TINY, steps=5))
    points = torch.from_numpy(np.stack(shapes.evaluation_points()))
    assert torch.allclose(evaluator.embed_shapes(points), fresh.embed_shapes(points), atol=0.01), (
        "but for float16"
    )
    assert evaluator.config.terms == fresh.config.terms
    assert evaluating.main([str(folder), "--evaluator", str(tmp_path / "evaluator")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "truth",
        "shuffled",
    ]


def test_an_evaluator_of_an_earlier_version_loads(tmp_path, monkeypatch):
    """Under its old folder's name, with the old names of parameters, and from any folder."""
    shutil.copytree(SHIPPED, tmp_path / "judge")
    names = set(load_file(SHIPPED / "model.safetensors"))
    assert {"each_point.0.weight", "of_bag.1.weight", "of_shape.weight"} <= names
    monkeypatch.chdir(tmp_path)
    old, new = load_evaluator(tmp_path / "evaluator"), load_evaluator("pretrained/tiny/evaluator")
    assert all(torch.equal(new.state_dict()[k], v) for k, v in old.state_dict().items())
    assert new.embed_captions(["a mug"]).norm().item() == pytest.approx(1)


def test_captions_of_unknown_words_have_a_place_too():
    evaluator = Evaluator(
        EvaluatorConfig(**TINY, categories=["mug", "boat"], terms=vocabulary(FEW, at_least=1))
    ).eval()
    embedded = evaluator.embed_captions(["", "qwertz 東京", "a boat", "A boat!", "a round boat"])
    assert torch.isfinite(embedded).all() and torch.allclose(embedded.norm(dim=-1), torch.ones(5))
    assert torch.equal(embedded[0], embedded[1]) and torch.equal(embedded[2], embedded[3])
    assert not torch.allclose(embedded[2], embedded[4])


def test_terms_are_words_and_their_pairs():
    assert terms_of("A T-tail, 2 wings") == [
        "a",
        "t-tail",
        "2",
        "wings",
        "a t-tail",
        "t-tail 2",
        "2 wings",
    ]
    assert vocabulary(["a boat", "a mug"], at_least=2) == ["a"]


def test_shapes_with_equal_captions_are_no_rivals():
    """Two shapes of one caption at the same place lose nothing; with different captions they do."""
    torch.manual_seed(0)
    evaluator = Evaluator(
        EvaluatorConfig(**TINY, categories=["mug"], terms=vocabulary(FEW, at_least=1))
    ).eval()
    points, category = torch.rand(1, 50, 6).expand(2, -1, -1), torch.zeros(2, dtype=torch.long)
    assert evaluator.loss(points, ["a boat", "a boat"], category).item() == pytest.approx(
        np.log(2), abs=1e-5
    )
    assert evaluator.loss(points, FEW[:2], category).item() > np.log(2)


def test_points_may_come_in_any_order_and_must_be_points():
    evaluator = Evaluator(EvaluatorConfig(**TINY, categories=["mug"], terms=["a"])).eval()
    points = torch.rand(2, 100, 6)
    assert torch.allclose(
        evaluator.embed_shapes(points),
        evaluator.embed_shapes(points[:, torch.randperm(100)]),
        atol=1e-5,
    )
    with pytest.raises(ValueError, match=r"points and normals \(B, N, 6\), got \(2, 100, 3\)"):
        evaluator.embed_shapes(points[..., :3])
    with pytest.raises(ValueError, match="steps of the evaluator must be at least 1, got 0"):
        EvaluatorConfig(steps=0)


def test_what_is_missing_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="captions.csv does not exist"):
        captions_of(tmp_path)
    with pytest.raises(ValueError, match="has no shape in val with samples"):
        CaptionedShapes(folder, ["val"])
    assert all(len(c) == 2 for c in captions_of(folder).values())
    flat = generate(0, 5).mesh
    with pytest.raises(MeshError, match="no surface area"):
        surface(type(flat)(flat.vertices * 0, flat.faces), 0)


def test_the_shipped_evaluator_knows_procedural_shapes():
    evaluator = load_evaluator(SHIPPED)
    shapes = [generate(i, seed=77) for i in range(24)]
    points = [surface(shape.mesh, seed=0) for shape in shapes]
    scores = score_shapes(
        evaluator, points, [s.captions[0] for s in shapes], [s.category for s in shapes]
    )
    assert scores["category"] >= 0.95 and scores["r@1"] >= 0.6 and scores["r@5"] >= 0.9
    turned = [shapes[k - 1].captions[0] for k in range(24)]
    assert retrieval(evaluator, points, turned)["r@1"] <= 0.2


def test_the_shipped_evaluator_reads_how_many_legs_a_caption_has():
    evaluator, other = load_evaluator(SHIPPED), {"three": "four", "four": "three"}
    shapes = [
        shape
        for shape in (generate(i, seed=78) for i in range(150))
        if shape.category in ATTRIBUTES and set(other) & set(shape.captions[0].split())
    ]
    points = torch.from_numpy(np.stack([surface(shape.mesh, seed=0) for shape in shapes]))
    true = [shape.captions[0] for shape in shapes]
    false = [" ".join(other.get(word, word) for word in caption.split()) for caption in true]
    gain = (
        evaluator.embed_shapes(points)
        * (evaluator.embed_captions(true) - evaluator.embed_captions(false))
    ).sum(-1)
    assert len(shapes) >= 10 and (gain > 0).float().mean() >= 0.9


def test_the_shipped_evaluator_says_how_it_was_made():
    record = json.loads((SHIPPED / "metrics.json").read_text())
    assert all(record[key] for key in ("command", "commit", "machine", "date", "hours", "step"))
    assert record["command"] in (SHIPPED / "README.md").read_text()
    assert sum(p.stat().st_size for p in SHIPPED.iterdir()) < 1_500_000
