"""The reports of a tokenizer training: validation metrics, previews, the model directory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from tar3d import checkpoint
from tar3d.data.datasets.shapes import ShapeDataset
from tar3d.data.datasets.spread import spread
from tar3d.data.formats.samples import to_samples
from tar3d.data.formats.token_shards import hash_texts
from tar3d.data.formats.views import mesh_images
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.render import contact_sheet, render_preview
from tar3d.pipeline import reconstruct
from tar3d.runtime import uncompiled
from tar3d.tokenizer.loss import intersection_over_union
from tar3d.tokenizer.quantizer import codebook_usage

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric

    from tar3d.config import VQVAEConfig
    from tar3d.data.datasets.shapes import MixedShapes
    from tar3d.tokenizer.vqvae import VQVAE
    from tar3d.training.run import Run

VALIDATION_POINTS = 8192  # stored query points of each kind that a validation IoU is taken over
PREVIEW_RESOLUTION = 64

Shapes = list[tuple[str, dict[str, torch.Tensor]]]  # id and arrays of each shape


class VQVAEReports:
    """Validates a tokenizer, previews what it reconstructs, and saves it, in the run folder `out`.

    `data` are the data set folders; of their validation shapes, or with `overfit` of so many
    training shapes of each, the numbers in the configuration are taken.
    """

    def __init__(
        self,
        out: Path,
        config: VQVAEConfig,
        fabric: Fabric,
        data: list[Path],
        overfit: int | None = None,
    ) -> None:
        self.out, self.config, self.fabric = out, config, fabric
        t = config.train
        split = "train" if overfit else "val"
        count = overfit or _ceil(t.validation_shapes, len(data))
        self.sets = [validation_set(folder, split, count) for folder in data]
        self.shapes = {
            folder: validation_shapes(part) for folder, part in zip(data, self.sets, strict=True)
        }
        self.previewed: Shapes = []
        self.truths: list[np.ndarray] = []
        for folder, shapes in self.shapes.items():
            some = [shapes[i] for i in spread(len(shapes), _ceil(t.preview_shapes, len(data)))]
            self.previewed += some
            self.truths += mesh_images(folder, [shape_id for shape_id, _ in some])

    def validate(self, model: VQVAE, quantize: bool) -> dict[str, float]:
        """IoU and use of the codebook, as `validate` gives them."""
        with uncompiled():
            return validate(model, self.shapes, self.fabric, quantize)

    def preview(self, model: VQVAE, step: int, quantize: bool) -> Path:
        """Writes preview_<step>.png, one row a shape: its true mesh, and the reconstruction.

        A mesh is blank where it is not known, or where the field is empty, as in the first steps.
        """
        path = self.out / f"preview_{step:07d}.png"
        model.eval()
        rows = []
        for truth, (_, arrays) in zip(self.truths, self.previewed, strict=True):
            try:
                with uncompiled(), self.fabric.autocast():
                    rebuilt, _ = reconstruct(
                        model, arrays["surface"].numpy(), PREVIEW_RESOLUTION, quantize=quantize
                    )
            except EmptyFieldError:
                rebuilt = None
            rows.append([truth, render_preview(rebuilt)])
        model.train()
        if rows:
            contact_sheet(rows, ["truth", "rebuilt"]).save(path)
        return path

    def save_model(self, model: VQVAE, record: dict) -> None:
        """Writes the model directory."""
        checkpoint.save_model(self.out / "model", model, self.config, record, model_card(record))


def vqvae_facts(dataset: MixedShapes, reports: VQVAEReports, overfit: int | None) -> dict[str, str]:
    """What identifies a tokenizer training beside its configuration."""
    validation = hash_texts(sets.content_hash() for sets in reports.sets)
    count = sum(map(len, reports.sets))
    return {
        "--overfit": str(overfit or "not given"),
        "the training data": f"{len(dataset)} shapes ({dataset.content_hash()})",
        "the validation data": f"{count} shapes ({validation})",
    }


def _ceil(count: int, parts: int) -> int:
    return -(-count // parts)


def validation_set(folder: Path, split: str, count: int) -> ShapeDataset:
    """`count` shapes of a split."""
    return ShapeDataset(
        folder, split, surface_points=1, volume_points=1, near_points=1, seed=0, limit=count
    )


def validation_shapes(dataset: ShapeDataset) -> Shapes:
    """The shapes with all surface points and a fixed part of the query points."""
    result = []
    for shape_id in dataset.ids:
        arrays = dataset.reader.arrays(
            shape_id, lambda kind, _: slice(None if kind == "surface" else VALIDATION_POINTS)
        )
        samples = to_samples(arrays, dataset.reader.where(shape_id))
        names = ("surface", "points", "inside", "is_near")
        result.append((shape_id, {k: torch.from_numpy(getattr(samples, k)) for k in names}))
    return result


@torch.no_grad()
def validate(
    model: VQVAE, folders: dict[Path, Shapes], fabric: Fabric, quantize: bool
) -> dict[str, float]:
    """IoU on volume and on near-surface points, and how much of the codebook is in use.

    With several folders the IoU, by which the best model is chosen, is the mean of the folders'
    means, and each folder has its own under its name.
    """
    model.eval()
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    means = {}
    for folder, shapes in folders.items():
        ious = []
        for _, arrays in shapes:
            batch = {k: v[None].to(fabric.device) for k, v in arrays.items()}
            with fabric.autocast():
                output = model(batch["surface"], batch["points"], quantize)
            ious.append(
                [
                    float(intersection_over_union(output.logits, batch["inside"], points))
                    for points in (~batch["is_near"], batch["is_near"])
                ]
            )
            if output.ids is not None:
                counts += torch.bincount(output.ids.flatten().cpu(), minlength=len(counts))
        means[folder.name] = np.mean(ious, axis=0)
    model.train()
    usage, perplexity = codebook_usage(counts) if quantize else (0.0, 0.0)
    volume, near = np.mean(list(means.values()), axis=0)
    metrics = {
        "iou_volume": float(volume),
        "iou_near": float(near),
        "codebook_usage": usage,
        "perplexity": perplexity,
    }
    if len(means) > 1:
        for name, (volume, near) in means.items():
            metrics |= {f"iou_volume_{name}": float(volume), f"iou_near_{name}": float(near)}
    return metrics


def model_card(record: dict) -> str:
    """README.md of a trained tokenizer."""
    return (
        "# 3D VQ-VAE tokenizer\n\n"
        f"Trained by this repository: `{record['command']}` (step {record['step']}, "
        f"{record['hours']:.2f} h, {record['machine']}, commit\n"
        f"{record['commit']}, {record['date']}). Validation: volume IoU "
        f"{record['iou_volume']:.4f}, near-surface IoU\n"
        f"{record['iou_near']:.4f}, codebook usage {record['codebook_usage']:.3f}.\n"
        "Use: `python infer_vqvae.py --model DIR --input_file MESH`.\n"
    )


def step_flops(vqvae: VQVAE, config: VQVAEConfig) -> float:
    """Operations of a step for one shape: forward, and twice that backward where gradients go."""
    t = config.train
    encoder = vqvae.encoder.flops(t.surface_points)
    flops = 3 * vqvae.flops(t.surface_points, t.volume_points + t.near_points)
    if t.stage == "decoder":
        flops -= 2 * encoder  # it is frozen here
    return flops + (t.samplings - 1) * encoder


def print_start(run: Run[VQVAE], dataset: MixedShapes, reports: VQVAEReports) -> None:
    """Prints the sizes of a training."""
    t, fabric = reports.config.train, run.fabric
    parameters = sum(p.numel() for p in run.module.parameters())
    for left_out in filter(None, (part.left_out for part in (*dataset.parts, *reports.sets))):
        fabric.print(left_out)
    fabric.print(
        f"{parameters / 1e6:.2f} M parameters, {len(dataset)} training shapes, "
        f"{sum(map(len, reports.shapes.values()))} validation shapes, {t.steps - run.step} steps "
        f"of {t.batch_size} shapes on {fabric.world_size} x {fabric.device}"
    )


def final_metrics(
    run: Run[VQVAE], reports: VQVAEReports, metrics: dict[str, float], overfit: int | None
) -> dict[str, float]:
    """The metrics of the last validation; with `overfit` there are some in any case.

    A run that is resumed after its last step has had no validation, and of several processes the
    first one alone has.
    """
    if metrics or not overfit:
        return metrics
    return reports.validate(run.eval_model(), run.step > reports.config.train.first_codebook_step)


def print_end(run: Run[VQVAE], dry: bool) -> None:
    """Prints the result, and the command that uses it; nothing after a dry run."""
    if dry:
        return
    model = run.folder / "model"
    next_step = (
        f"go on with: --init {model} train.stage=vq"
        if run.config.train.stage == "ae"
        else f"reconstruct with: python infer_vqvae.py --model {model}"
    )
    run.fabric.print(f"best validation IoU {run.best:.4f}; model in {model}, {next_step}")
