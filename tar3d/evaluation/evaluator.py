"""The evaluator: a small network that tells a surface's category and how well a caption fits it.

Train it on the training split of a data set folder with samples, captions.csv and manifest.csv,
measured on "val"; or measure it on all shapes of a set, their reconstructions, and shuffled
captions:

    python -m tar3d.evaluation.evaluator data/toy --out outputs/evaluator
    python -m tar3d.evaluation.evaluator data/test --evaluator outputs/evaluator \\
        --tokenizer pretrained/tiny

From Python:

    evaluator = load_evaluator("pretrained/tiny/evaluator")
    points = np.stack([surface(mesh, seed=0) for mesh in meshes])              (B, 2048, 6)
    evaluator.categories_of(torch.from_numpy(points)), retrieval(evaluator, points, captions)
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tar3d import config as configuration
from tar3d.checkpoint import load_tokenizer, load_weights, read_config, save_model
from tar3d.config.flags import seed_number
from tar3d.data.formats.captions import captions_of
from tar3d.data.formats.dataset_folder import SPLITS
from tar3d.data.formats.samples import open_samples
from tar3d.evaluation.evaluator_network import Evaluator, EvaluatorConfig, vocabulary
from tar3d.folders import probe_output
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.points import sample_surface
from tar3d.pipeline import reconstruct
from tar3d.runtime import cell_count, command, command_parser, describe_machine, progress_bar
from tar3d.upgrade import upgrade_evaluator_folder, upgrade_flags

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from tar3d.contracts import Mesh

POINTS = 2048  # drawn from a surface to evaluate it
POINTS_IN_MEMORY = 4096  # per training shape
TIE = 1e-6  # cosines that are closer than this are equal
README = """# Evaluator of shapes and captions

Trained by this repository: `{command}`
(step {step}, {hours} h, {machine}, commit {commit}, {date}).
Of {shapes} validation shapes it tells the category of {category:.1%}; of {captions} different
captions a shape's own is the first for {r1:.1%}, among the first five for {r5:.1%}. It knows the
categories and words of config.yaml and nothing else. Weights are stored as float16.
Use: `tar3d.evaluation.evaluator.load_evaluator(DIR)`; what its scores mean: `docs/evaluation.md`.
"""


def load_evaluator(folder: str | Path) -> Evaluator:
    """The evaluator of a model directory or a Hub id, in eval mode."""
    folder = upgrade_evaluator_folder(folder)
    evaluator = Evaluator(read_config(folder, EvaluatorConfig))
    load_weights(evaluator, folder)
    return evaluator.eval()


def surface(mesh: Mesh, seed: int, count: int = POINTS) -> np.ndarray:
    """`count` points uniform over a mesh in the project's frame, with unit normals.

    (count, 6) float32.
    """
    return sample_surface(mesh, count, np.random.default_rng(seed))


def retrieval(
    evaluator: Evaluator, surfaces: Sequence[np.ndarray | None], captions: Sequence[str]
) -> dict[str, float]:
    """The share of shapes whose own caption fits best, or is among the best five.

    This is the R-precision of Dream Fields (arXiv 2112.01455), with this evaluator in place of CLIP
    and surfaces in place of renders. `surfaces` are B times (N, 6), None for a shape that could not
    be made, which is a miss. Captions that are literally equal are one; a different one with an
    equal cosine counts against the shape, so that an evaluator that is blind scores 0.

    -> "r@1", "r@5" in [0, 1], and "captions", how many different ones there are: guessing scores
    min(k, captions) / captions.
    """
    place = ranks(evaluator, surfaces, captions)
    return {
        "r@1": float((place <= 1).mean()),
        "r@5": float((place <= 5).mean()),
        "captions": len(set(captions)),
    }


def ranks(
    evaluator: Evaluator, surfaces: Sequence[np.ndarray | None], captions: Sequence[str]
) -> np.ndarray:
    """The rank (B,) of each shape's own caption among the different ones, 1 the best.

    It is infinite for a shape that is None. Raises ValueError unless there is a caption a shape.
    """
    if len(surfaces) != len(captions) or len(captions) == 0:
        raise ValueError(
            f"retrieval needs a caption for each of one or more shapes, got {len(surfaces)} shapes "
            f"and {len(captions)} captions"
        )
    different = list(dict.fromkeys(captions))
    own = np.array([different.index(c) for c in captions])
    place = np.full(len(captions), np.inf)
    made, points = _stack(surfaces)
    if points is not None:
        cosine = (evaluator.embed_shapes(points) @ evaluator.embed_captions(different).T).numpy()
        mine = np.take_along_axis(cosine, own[made, None], axis=1)
        place[made] = (cosine >= mine - TIE).sum(1)  # its own among them
    return place


def _stack(surfaces: Sequence[np.ndarray | None]) -> tuple[list[int], torch.Tensor | None]:
    """The indices of the surfaces that are there, and their points (M, N, 6), None without any."""
    present = [(k, s) for k, s in enumerate(surfaces) if s is not None]
    if not present:
        return [], None
    points = np.stack([s for _, s in present]).astype(np.float32)
    return [k for k, _ in present], torch.from_numpy(points)


class CaptionedShapes:
    """The shapes of some splits of a data set that have samples, a caption and a category.

    POINTS_IN_MEMORY points of each are read. Raises ValueError where there is no such shape.
    """

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        self.samples, captions = open_samples(folder), captions_of(folder)
        categories = self.samples.categories()
        self.ids = [
            i
            for split in splits
            for i in self.samples.ids(split)
            if captions.get(i) and categories.get(i)
        ]
        if not self.ids:
            raise ValueError(
                f"{folder} has no shape in {' or '.join(splits)} with samples, a caption and a "
                f"category: {self.samples.advice}, and write captions.csv and manifest.csv"
            )
        self.captions = [captions[i] for i in self.ids]
        self.categories = [categories[i] for i in self.ids]
        rng = np.random.default_rng(0)
        self.surfaces = [
            self._read(i, rng) for i in progress_bar(self.ids, unit="shape", desc="surfaces")
        ]

    def _read(self, shape_id: str, rng: np.random.Generator) -> np.ndarray:
        points = self.samples.surface(shape_id)
        return points[rng.permutation(len(points))[:POINTS_IN_MEMORY]].astype(np.float16)

    def evaluation_points(self) -> list[np.ndarray]:
        """The points of each shape that are evaluated, (POINTS, 6) float32."""
        return [s[:POINTS].astype(np.float32) for s in self.surfaces]

    def first_captions(self) -> list[str]:
        """The first caption of each shape, which is the one that it is evaluated with."""
        return [captions[0] for captions in self.captions]


def train(shapes: CaptionedShapes, config: EvaluatorConfig) -> Evaluator:
    """Trains an evaluator of the categories and words of `shapes`.

    They are written into `config`. The same seed gives the same weights on the same machine.
    """
    config.categories = sorted(set(shapes.categories))
    config.terms = vocabulary(
        (c for captions in shapes.captions for c in captions), config.rarest_term
    )
    rng = np.random.default_rng(config.seed)
    number = {name: k for k, name in enumerate(config.categories)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        evaluator = Evaluator(config)
    optimizer = torch.optim.AdamW(
        evaluator.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(
            (step + 1) / config.warmup, (1 + math.cos(math.pi * step / config.steps)) / 2
        ),
    )
    order: list[int] = []
    with progress_bar(total=config.steps, unit="step", desc="evaluator") as bar:
        for step in range(config.steps):
            while len(order) < min(config.batch_size, len(shapes.ids)):
                order += rng.permutation(len(shapes.ids)).tolist()
            chosen, order = order[: config.batch_size], order[config.batch_size :]
            captions = [
                shapes.captions[k][int(rng.integers(len(shapes.captions[k])))] for k in chosen
            ]
            points = np.stack([augment(shapes.surfaces[k], config, rng) for k in chosen])
            loss = evaluator.loss(
                torch.from_numpy(points),
                captions,
                torch.tensor([number[shapes.categories[k]] for k in chosen]),
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.update()
            if step % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}")
    return evaluator.eval()


def augment(points: np.ndarray, config: EvaluatorConfig, rng: np.random.Generator) -> np.ndarray:
    """Some of the points (N, 6) with noise, which makes them like those of generated surfaces."""
    drawn = points[rng.integers(len(points), size=config.points)].astype(np.float32)
    sigma = config.noise * rng.random()
    drawn += rng.standard_normal(drawn.shape, dtype=np.float32) * np.repeat(
        [sigma, 10 * sigma], 3
    ).astype(np.float32)
    drawn[:, 3:] /= np.linalg.norm(drawn[:, 3:], axis=1, keepdims=True).clip(1e-6)
    return drawn


def score_shapes(
    evaluator: Evaluator,
    surfaces: Sequence[np.ndarray | None],
    captions: Sequence[str],
    categories: Sequence[str],
) -> dict[str, float]:
    """The share of shapes whose category the evaluator tells, and `retrieval`.

    A shape that is None has no category.
    """
    made, points = _stack(surfaces)
    predicted = [] if points is None else evaluator.categories_of(points)
    right = sum(name == categories[k] for name, k in zip(predicted, made, strict=True))
    return {
        "shapes": len(surfaces),
        "category": right / len(surfaces),
        **retrieval(evaluator, surfaces, captions),
    }


def score_data_set(
    evaluator: Evaluator,
    shapes: CaptionedShapes,
    tokenizer: Path | None,
    resolution: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """`score_shapes` of the true shapes, of their reconstructions and with shuffled captions.

    Reconstructions are there with a tokenizer; captions are shuffled among the true shapes.
    """
    captions, points = shapes.first_captions(), shapes.evaluation_points()
    result = {"truth": score_shapes(evaluator, points, captions, shapes.categories)}
    if tokenizer is not None:
        vqvae, rebuilt = load_tokenizer(tokenizer), list[np.ndarray | None]()
        for shape_id in progress_bar(shapes.ids, unit="shape", desc="reconstruct"):
            try:
                mesh = reconstruct(vqvae, shapes.samples.surface(shape_id), resolution)[0]
                rebuilt.append(surface(mesh, seed))
            except EmptyFieldError:
                rebuilt.append(None)
        result["reconstruction"] = score_shapes(evaluator, rebuilt, captions, shapes.categories)
    shuffled = [captions[k] for k in np.random.default_rng(seed).permutation(len(captions))]
    result["shuffled captions"] = score_shapes(evaluator, points, shuffled, shapes.categories)
    return result


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "data", type=Path, help="data set folder with samples, captions.csv and manifest.csv"
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--out", type=Path, help="train, and write this model directory")
    task.add_argument(
        "--evaluator", type=Path, help="measure the evaluator of this model directory"
    )
    parser.add_argument(
        "--split",
        nargs="+",
        choices=SPLITS,
        help="with --evaluator: splits to measure (default: all)",
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        help="with --evaluator: model directory whose reconstructions are measured as well",
    )
    parser.add_argument(
        "--resolution",
        type=cell_count,
        default=128,
        help="cells along each axis when extracting reconstructions (default: %(default)s)",
    )
    parser.add_argument("--seed", type=seed_number, default=0, help="default: %(default)s")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="settings of EvaluatorConfig, as in steps=500",
    )
    return parser.parse_intermixed_args(upgrade_flags(argv))


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        if args.evaluator:
            evaluator = load_evaluator(args.evaluator)
            shapes = CaptionedShapes(args.data, args.split or SPLITS)
            rows = score_data_set(evaluator, shapes, args.tokenizer, args.resolution, args.seed)
        else:
            probe_output(args.out, "--out")
            config = configuration.load(
                EvaluatorConfig, None, [*args.overrides, f"seed={args.seed}"]
            )
            flags = sys.argv[1:] if argv is None else argv
            command = shlex.join(["python", "-m", "tar3d.evaluation.evaluator", *flags])
            rows = {"val": _train_and_save(args.data, args.out, config, command)}
    except (ValueError, OSError) as e:
        print(e, file=sys.stderr)
        return 2
    for name, scores in rows.items():
        cells = [
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}"
            for key, value in scores.items()
        ]
        print(f"{name:<18}", *cells)
    return 0


def _train_and_save(
    data: Path, out: Path, config: EvaluatorConfig, command: str
) -> dict[str, float]:
    """Trains, saves a model directory, and returns the scores on the validation split."""
    start = time.perf_counter()
    evaluator = train(CaptionedShapes(data, ["train"]), config)
    hours = (time.perf_counter() - start) / 3600
    unseen = CaptionedShapes(data, ["val"])
    scores = score_shapes(
        evaluator, unseen.evaluation_points(), unseen.first_captions(), unseen.categories
    )
    record = {
        "command": command,
        "step": config.steps,
        "hours": round(hours, 3),
        "date": datetime.now(UTC).date().isoformat(),
        **describe_machine(torch.device("cpu")),
    }
    readme = README.format(**record, **scores, r1=scores["r@1"], r5=scores["r@5"])
    save_model(out, evaluator, config, {**record, "val": scores}, readme, torch.float16)
    return scores


if __name__ == "__main__":
    sys.exit(main())
