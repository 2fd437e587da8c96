"""Trains the tokenizer (3D VQ-VAE): first as an autoencoder, then with its codebook, in one run.

    python train_vqvae.py --base configs/vqvae3d_tiny.yaml
    python train_vqvae.py --base configs/vqvae3d.yaml --data DATA --gpus 0,1,2,3 train.batch_size=64
    python train_vqvae.py --data data/toy --data DATA:4 train.augment.scale=[0.75,1.25] train.augment.rotate=0.5
    torchrun --nproc_per_node=4 train_vqvae.py --base configs/vqvae3d.yaml --data DATA

DATA is a data set folder (docs/data.md), or one in ShapeNetV2's layout; without --data, a
procedural set is made in data/toy. Of several, DATA:N counts each shape N times. The run folder
gets model/ (read by infer_vqvae.py --model), train.csv, validation.csv, speed.csv (items/s, MFU,
waiting for data), TensorBoard files and reconstruction previews.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import AugmentConfig, VQVAEConfig
from tar3d.data.datasets.sampler import TrainingOrder, spread
from tar3d.data.datasets.shapes import MixedShapes, ShapeDataset
from tar3d.data.defaults import DEFAULT_FOLDER, default_data
from tar3d.data.formats.samples import to_samples
from tar3d.data.formats.views import mesh_images
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.render import contact_sheet, render_preview
from tar3d.pipeline import reconstruct
from tar3d.runtime import positive_int, start_fabric, uncompiled
from tar3d.tokenizer.loss import intersection_over_union, tokenizer_loss
from tar3d.tokenizer.quantizer import codebook_usage
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.dry_run import dry_run
from tar3d.training.faults import report
from tar3d.training.run import Run, prepare_folder
from tar3d.training.start import add_run_arguments, print_verdict, training_loader

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KMEANS_SHAPES = 512  # shapes whose latents start the codebook
OVERFIT_BAR = 0.95  # volume IoU
VALIDATION_POINTS = 8192  # stored query points of each kind that a validation IoU is taken over


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--base", default="configs/vqvae3d_tiny.yaml", help="config file (default: %(default)s)"
    )
    parser.add_argument(
        "--data",
        action="append",
        metavar="DATA[:N]",
        help="data set folder with samples, may be given several times; N: how often each of its shapes counts "
        f"(default: a procedural set in {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--toy-shapes",
        type=positive_int,
        default=2000,
        help="size of the procedural set (default: %(default)s)",
    )
    add_run_arguments(parser, "outputs/vqvae")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        config = configuration.load(VQVAEConfig, args.base, args.overrides)
        fabric = start_fabric(args.gpus, args.num_nodes, config.train.precision)
        state = None if args.dry_run else prepare_folder(fabric, args.out, args.resume, config)
        with fabric.rank_zero_first():
            data = folders(args.data) if args.data else {default_data(args.toy_shapes): 1}
        begin = partial(train, fabric=fabric, data=data, init=args.init)
        if args.dry_run:
            dry_run(begin, config, fabric)
        elif args.overfit:
            config.train.augment, config.train.ema = AugmentConfig(), 0.0
            metrics = begin(
                config, out=args.out, state=state, wandb=args.wandb, overfit=args.overfit
            )
            return print_verdict(
                "volume IoU of the shapes it was trained on", metrics["iou_volume"], OVERFIT_BAR
            )
        else:
            begin(config, out=args.out, state=state, wandb=args.wandb)
    except Exception as e:
        return report(e)
    return 0


def folders(given: list[str]) -> dict[Path, int]:
    """DATA or DATA:N -> how often each shape of a folder counts."""
    result = {}
    for text in given:
        folder, colon, times = text.rpartition(":")
        named = bool(colon) and times.isdigit()
        path = Path(folder if named else text)
        if path in result or (named and int(times) < 1):
            raise ValueError(
                f"--data {text}: give each folder once, with a number of at least 1 after the colon if any"
            )
        result[path] = int(times) if named else 1
    return result


def train(
    config: VQVAEConfig,
    out: Path,
    fabric: Fabric,
    data: dict[Path, int],
    *,
    state: Path | None = None,
    init: str | None = None,
    wandb: str | None = None,
    overfit: int | None = None,
) -> dict:
    """Runs a training, or goes on from a saved `state`, and returns the last validation's metrics.
    With `overfit` it has so many shapes of each set, and is validated on them."""
    t = config.train
    torch.manual_seed(t.seed)  # initial weights only: everything random later has its own generator
    vqvae = VQVAE(config.tokenizer)
    keeps_codebook = start_from(vqvae, init, t.stage)
    if t.stage == "decoder":
        vqvae.encoder.requires_grad_(False)
        vqvae.to_code.requires_grad_(False)
    codebook_random = torch.Generator().manual_seed(t.seed)
    run = Run(
        "tokenizer",
        out,
        fabric,
        vqvae,
        config,
        generators={"codebook": codebook_random},
        wandb=wandb,
    )
    run.restore(state)

    parts = [
        ShapeDataset(
            folder,
            "train",
            surface_points=t.surface_points,
            volume_points=t.volume_points,
            near_points=t.near_points,
            seed=t.seed,
            augment_as=t.augment,
            limit=overfit,
        )
        for folder in data
    ]
    dataset = MixedShapes(parts, list(data.values()))
    order = TrainingOrder(
        len(dataset),
        t.batch_size,
        seed=t.seed,
        start=run.step,
        stop=t.steps,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    loader = training_loader(dataset, order, t.num_workers, fabric)
    split, count = ("train", overfit) if overfit else ("val", -(-t.validation_shapes // len(data)))
    validation = {folder: validation_set(folder, split, count) for folder in data}
    shown, truths = [], []
    for folder, shapes in validation.items():
        some = [shapes[i] for i in spread(len(shapes), -(-t.preview_shapes // len(data)))]
        shown += some
        truths += mesh_images(folder, [shape_id for shape_id, _ in some])
    fabric.print(
        f"{sum(p.numel() for p in vqvae.parameters()) / 1e6:.2f} M parameters, {len(dataset)} training shapes, "
        f"{sum(map(len, validation.values()))} validation shapes, {t.steps - run.step} steps of {t.batch_size} shapes "
        f"on {fabric.world_size} x {fabric.device}, run folder {out}"
    )

    local, metrics = t.batch_size // fabric.world_size, {}
    flops = 3 * local * vqvae.flops(t.surface_points, t.volume_points + t.near_points)
    if t.stage == "decoder":
        flops -= 2 * local * vqvae.encoder.flops(t.surface_points)  # no gradients go through it
    for batch in run.batches(loader, order, dataset.name, unit="shapes", items=local, flops=flops):
        quantize = run.step >= t.first_codebook_step
        if quantize and run.step == t.first_codebook_step and not keeps_codebook:
            start_codebook(vqvae, dataset, fabric, codebook_random)
        values = train_step(run, batch, quantize)
        values["revived"] = 0
        if quantize and run.moved and t.stage != "decoder":
            values["revived"] = vqvae.quantizer.step(codebook_random, fabric.all_gather)
        vqvae.quantizer.discard_statistics()
        run.advance(values, "codebook " if quantize else "autoencoder ")

        if run.due(t.validate_every):
            with run.aside():
                model = run.shown()
                if fabric.is_global_zero:
                    quantized = run.step > t.first_codebook_step
                    with uncompiled():
                        metrics = validate(model, validation, fabric, quantized)
                        preview(
                            model,
                            truths,
                            shown,
                            fabric,
                            quantized,
                            out / f"preview_{run.step:07d}.png",
                        )
                    run.show(metrics, out / f"preview_{run.step:07d}.png")
                    if (quantized or t.stage == "ae") and run.is_best(metrics["iou_volume"]):
                        record = run.record(metrics, len(dataset))
                        checkpoint.save_model(
                            out / "model", model, config, record, model_card(record)
                        )
    fabric.print(
        f"best validation IoU {run.best:.4f}; model in {out / 'model'}, "
        + (
            f"go on with: --init {out / 'model'} train.stage=vq"
            if t.stage == "ae"
            else f"reconstruct with: python infer_vqvae.py --model {out / 'model'}"
        )
    )
    return metrics


def start_from(vqvae: VQVAE, init: str | None, stage: str) -> bool:
    """Fills the model from `init`, if there is one. Whether its codebook is to be kept: where the
    training is of stage "vq" or "decoder" and the model has one, as a tokenizer that is trained
    further on other shapes."""
    if init is None:
        if stage in ("vq", "decoder"):
            raise ValueError(
                f"train.stage={stage} goes on from a given model: give it with --init, or train one with "
                "train.stage=both"
            )
        return False
    checkpoint.load_weights(vqvae, init)
    has_codebook = checkpoint.read_config(init, VQVAEConfig).train.stage != "ae"
    if stage == "decoder" and not has_codebook:
        raise ValueError(
            f"train.stage=decoder needs a model with a codebook, but {init} is an autoencoder alone: give it one "
            "with train.stage=vq"
        )
    return stage in ("vq", "decoder") and has_codebook


def train_step(run: Run, batch: dict, quantize: bool) -> dict[str, float]:
    """One step of the optimizers, or none where the loss or the gradient is not finite
    (`Run.move`)."""
    t = run.config.train
    for rows in run.parts(len(batch["surface"])):
        part = {name: tensor[rows] for name, tensor in batch.items()}
        output = run.model(part["surface"], part["points"], quantize)
        loss = tokenizer_loss(
            output.logits,
            part["inside"],
            part["is_near"],
            output.commitment,
            near_weight=t.near_weight,
            commitment_weight=t.commitment_weight,
        )
        iou = intersection_over_union(
            output.logits.detach(), part["inside"], ~part["is_near"]
        ).mean()
        run.backward(
            loss.total,
            {
                "loss": loss.total,
                "volume": loss.volume,
                "near": loss.near,
                "commitment": loss.commitment,
                "iou_volume": iou,
            },
        )
    return run.move()


@torch.no_grad()
def start_codebook(
    model: VQVAE, dataset: ShapeDataset, fabric: Fabric, generator: torch.Generator
) -> None:
    """k-means over the autoencoder's latents; every process computes the same codebook from the
    same shapes. Too few of them for a latent for each code (--overfit) are drawn several times,
    with other points of their surfaces."""
    chosen, config = spread(len(dataset), KMEANS_SHAPES), model.config
    times = -(-config.codebook_size // (len(chosen) * config.num_tokens))
    draws = [(index + k * len(dataset), index) for k in range(times) for index in chosen]
    latents = []
    for draw in tqdm(
        draws, desc="k-means start of the codebook", disable=not fabric.is_global_zero, leave=False
    ):
        surface = dataset[draw]["surface"][None].to(fabric.device)
        with fabric.autocast():
            latents.append(model.encode(surface).flatten(0, -2))
    model.quantizer.init_from_latents(torch.cat(latents), generator)


def validation_set(data: Path, split: str, count: int) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """`count` shapes of a split with all their surface points and a fixed part of their query
    points."""
    dataset = ShapeDataset(
        data, split, surface_points=1, volume_points=1, near_points=1, seed=0, limit=count
    )
    result = []
    for shape_id in dataset.ids:
        arrays = dataset.reader.arrays(
            shape_id, lambda kind, stored: slice(None if kind == "surface" else VALIDATION_POINTS)
        )
        s = to_samples(arrays, dataset.reader.where(shape_id))
        result.append(
            (
                shape_id,
                {
                    k: torch.from_numpy(getattr(s, k))
                    for k in ("surface", "points", "inside", "is_near")
                },
            )
        )
    return result


@torch.no_grad()
def validate(
    model: VQVAE, validation: dict[Path, list], fabric: Fabric, quantize: bool
) -> dict[str, float]:
    """IoU on volume and near-surface points apart, and how much of the codebook is in use. Of
    several folders the mean of their means, by which the best model is chosen, and each one's under
    its name."""
    model.eval()
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    means = {}
    for folder, shapes in validation.items():
        ious = []
        for _, arrays in shapes:
            batch = {k: v[None].to(fabric.device) for k, v in arrays.items()}
            with fabric.autocast():
                output = model(batch["surface"], batch["points"], quantize)
            ious.append(
                [
                    float(intersection_over_union(output.logits, batch["inside"], kind))
                    for kind in (~batch["is_near"], batch["is_near"])
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


def preview(
    model: VQVAE, truths: list[np.ndarray], shapes: list, fabric: Fabric, quantize: bool, path: Path
) -> None:
    """A picture with one row a truth: the true mesh (blank: not known), and what the tokenizer
    makes of it (blank: empty)."""
    model.eval()
    rows = []
    for truth, (_, arrays) in zip(truths, shapes, strict=True):
        try:
            with fabric.autocast():
                rebuilt, _ = reconstruct(
                    model, arrays["surface"].numpy(), resolution=64, quantize=quantize
                )
        except EmptyFieldError:  # normal in the first steps; training goes on
            rebuilt = None
        rows.append([truth, render_preview(rebuilt)])
    model.train()
    if rows:
        contact_sheet(rows, ["truth", "rebuilt"]).save(path)


def model_card(record: dict) -> str:
    """README.md of a trained tokenizer."""
    return f"""# 3D VQ-VAE tokenizer

Trained by this repository: `{record["command"]}` (step {record["step"]}, {record["hours"]:.2f} h, {record["machine"]}, commit
{record["commit"]}, {record["date"]}). Validation: volume IoU {record["iou_volume"]:.4f}, near-surface IoU
{record["iou_near"]:.4f}, codebook usage {record["codebook_usage"]:.3f}.
Use: `python infer_vqvae.py --model DIR --input_file MESH`.
"""


if __name__ == "__main__":
    sys.exit(main())
