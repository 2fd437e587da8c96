"""Trains the tokenizer (3D VQ-VAE): first as an autoencoder, then with its codebook, in one run.

    python train_vqvae.py --base configs/vqvae3d_tiny.yaml
    python train_vqvae.py --base configs/vqvae3d.yaml --data DATA --gpus 0,1,2,3 train.batch_size=64
    python train_vqvae.py --data data/toy --data DATA:4 train.augment.scale=[0.75,1.25] train.augment.rotate=0.5
    torchrun --nproc_per_node=4 train_vqvae.py --base configs/vqvae3d.yaml --data DATA

DATA is a data set folder (docs/data.md), or one in ShapeNetV2's layout; without --data, a procedural set is made in data/toy. Of
several, DATA:N counts each shape N times. The run folder gets
model/ (read by infer_vqvae.py --model), train.csv, validation.csv,
speed.csv (items/s, MFU, waiting for data), TensorBoard files and reconstruction previews.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from tqdm import tqdm

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.config import VQVAEConfig
from tar3d.data.default import DEFAULT_FOLDER, default_data
from tar3d.data.order import TrainingOrder, spread
from tar3d.data.shapes import MixedShapes, ShapeDataset, to_samples
from tar3d.data.views import mesh_pictures
from tar3d.mesh.extract import EmptyFieldError
from tar3d.mesh.render import contact_sheet, picture
from tar3d.optim.groups import build_optimizers, routing_table
from tar3d.optim.schedule import learning_rate_factor, set_learning_rates
from tar3d.pipeline import reconstruct
from tar3d.runtime import (
    COMPUTE_DTYPES,
    RunLog,
    add_device_arguments,
    check_finite,
    command_line,
    describe_machine,
    peak_memory,
    positive_int,
    prepare_blocks,
    prepare_run_folder,
    resolve_precision,
    start_fabric,
    training_loader,
    uncompiled,
)
from tar3d.throughput import Meter, find_peak
from tar3d.tokenizer.loss import intersection_over_union, tokenizer_loss
from tar3d.tokenizer.quantize import codebook_usage
from tar3d.tokenizer.vqvae import VQVAE

KMEANS_SHAPES = 512  # shapes whose latents start the codebook
VALIDATION_POINTS = 8192  # stored query points of each kind that a validation IoU is taken over


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="configs/vqvae3d_tiny.yaml", help="config file (default: %(default)s)")
    parser.add_argument("--data", action="append", metavar="DATA[:N]",
                        help="data set folder with samples, may be given several times; N: how often each of its shapes counts "
                        f"(default: a procedural set in {DEFAULT_FOLDER})")
    parser.add_argument("--toy-shapes", type=positive_int, default=2000, help="size of the procedural set (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("outputs/vqvae"), help="run folder (default: %(default)s)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="continue the run in --out")
    start.add_argument("--init", metavar="MODEL", help="start from the weights of a model directory or Hub id")
    add_device_arguments(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in train.batch_size=8")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        config = configuration.load(VQVAEConfig, args.base, args.overrides)
        fabric = start_fabric(args.gpus, args.num_nodes, config.train.precision)
        with fabric.rank_zero_first():
            prepare_run_folder(args.out, args.resume, configuration.to_mapping(config))
            data = folders(args.data) if args.data else {default_data(args.toy_shapes): 1}
        train(config, fabric, data, args.out, resume=args.resume, init=args.init)
    except (ValueError, FloatingPointError) as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def folders(given: list[str]) -> dict[Path, int]:
    """DATA or DATA:N -> how often each shape of a folder counts."""
    result = {}
    for text in given:
        folder, colon, times = text.rpartition(":")
        named = bool(colon) and times.isdigit()
        path = Path(folder if named else text)
        if path in result or (named and int(times) < 1):
            raise ValueError(f"--data {text}: give each folder once, with a number of at least 1 after the colon if any")
        result[path] = int(times) if named else 1
    return result


def train(config: VQVAEConfig, fabric: Fabric, data: dict[Path, int], out: Path, *, resume: bool = False,
          init: str | None = None) -> dict:
    """Runs (or continues) a training and returns the last validation's metrics."""
    t = config.train
    total = t.autoencoder_steps + t.codebook_steps

    # model, optimizers
    torch.manual_seed(t.seed)  # initial weights only: everything random later has its own generator
    bare = VQVAE(config.tokenizer)
    if init:
        checkpoint.load_weights(bare, init)
    optimizers = [o for o in build_optimizers(bare, config.optim) if o is not None]
    fabric.print(routing_table(bare, config.optim))
    prepare_blocks(bare, t.recompute, t.compile)
    model, *optimizers = fabric.setup(bare, *optimizers)

    # loop state: everything that a resumed run needs; the data order is a function of (seed, step)
    step, best_iou, seconds = 0, -1.0, 0.0
    codebook_random = torch.Generator().manual_seed(t.seed)
    if resume:
        state = checkpoint.load_state(out / "state.pt")
        step, best_iou, seconds = state["step"], state["best_iou"], state["seconds"]
        checkpoint.restore(state, bare, optimizers)
        codebook_random.set_state(state["codebook_random"])

    # data
    parts = [ShapeDataset(folder, "train", surface_points=t.surface_points, volume_points=t.volume_points,
                          near_points=t.near_points, seed=t.seed, augment_as=t.augment) for folder in data]
    dataset = MixedShapes(parts, list(data.values()))
    order = TrainingOrder(len(dataset), t.batch_size, seed=t.seed, start=step, stop=total, rank=fabric.global_rank,
                          world=fabric.world_size)
    loader = training_loader(dataset, order, t.num_workers, fabric)
    validation = {folder: validation_set(folder, -(-t.validation_shapes // len(data))) for folder in data}
    shown, truths = [], []
    for folder, shapes in validation.items():
        some = [shapes[i] for i in spread(len(shapes), -(-t.preview_shapes // len(data)))]
        shown += some
        truths += mesh_pictures(folder, [shape_id for shape_id, _ in some])
    parameters = sum(p.numel() for p in bare.parameters())
    fabric.print(f"{parameters / 1e6:.2f} M parameters, {len(dataset)} training shapes, "
                 f"{sum(map(len, validation.values()))} validation shapes, "
                 f"{total - step} steps of {t.batch_size} shapes on {fabric.world_size} x {fabric.device}, run folder {out}")

    log = RunLog(out, step) if fabric.is_global_zero else None
    local = t.batch_size // fabric.world_size
    meter = Meter(step, total, items=local, unit="shapes",
                  flops=3 * local * bare.flops(t.surface_points, t.volume_points + t.near_points),
                  peak=find_peak(fabric.device, COMPUTE_DTYPES[resolve_precision(t.precision, fabric.device.type)]))
    fabric.print(f"{meter.flops / 1e9:,.1f} model GFLOP a step and device; MFU is of {meter.peak.source}")
    bar = tqdm(total=total, initial=step, desc="tokenizer", disable=not fabric.is_global_zero)
    began, metrics = time.perf_counter() - seconds, {}

    def save() -> None:
        checkpoint.save_state(out / "state.pt", {
            "step": step, "best_iou": best_iou, "seconds": time.perf_counter() - began, "model": bare.state_dict(),
            "optimizers": [o.state_dict() for o in optimizers], "codebook_random": codebook_random.get_state()})

    for batch in meter.batches(loader):
        quantize = step >= t.autoencoder_steps
        if quantize and step == t.autoencoder_steps:
            start_codebook(bare, dataset, fabric, codebook_random)
        set_learning_rates(optimizers,
                           learning_rate_factor(step, total, config.optim.warmup_steps, config.optim.final_lr_fraction))
        values = train_step(model, optimizers, batch, config, fabric, quantize, step)
        if quantize:
            values["revived"] = bare.quantizer.step(codebook_random, lambda tensor: fabric.all_reduce(tensor, reduce_op="sum"))
        else:
            values["revived"] = 0
        step += 1
        bar.update()

        if log and (step % t.log_every == 0 or step == total):
            speed = meter.read(step)
            log.write("train", step, values)
            log.write("speed", step, speed)
            bar.set_postfix_str(f"{'codebook' if quantize else 'autoencoder'} loss {values['loss']:.4f}, {meter.line(speed)}")
        meter.pause()
        if step % t.validate_every == 0 or step == total:
            if fabric.is_global_zero:
                quantized = step > t.autoencoder_steps
                with uncompiled():
                    metrics = validate(bare, validation, fabric, quantized)
                    preview(bare, truths, shown, fabric, quantized, out / f"preview_{step:07d}.png")
                log.write("validation", step, metrics)
                scores = ", ".join(f"{k} {v:.4g}" for k, v in metrics.items())
                bar.write(f"step {step}: {scores}; {meter.progress(step)}, {peak_memory(fabric.device)}")
                if quantized and metrics["iou_volume"] > best_iou:
                    best_iou = metrics["iou_volume"]
                    record = {**metrics, "step": step, "hours": (time.perf_counter() - began) / 3600, "date": str(date.today()),
                              "command": command_line(), "training_shapes": len(dataset), **describe_machine(fabric.device)}
                    checkpoint.save_model(out / "model", bare, config, record, model_card(record))
            fabric.barrier()
        if (step % t.save_every == 0 or step == total) and fabric.is_global_zero:
            save()
        meter.resume()
    bar.close()
    if log:
        log.close()
        fabric.print(f"best validation IoU {best_iou:.4f}; model in {out / 'model'}, "
                     f"reconstruct with: python infer_vqvae.py --model {out / 'model'}")
    return metrics


def train_step(model, optimizers, batch: dict, config: VQVAEConfig, fabric: Fabric, quantize: bool,
               step: int) -> dict[str, float]:
    """One optimizer step; FloatingPointError before the optimizers move when the loss or the gradient is not finite."""
    output = model(batch["surface"], batch["points"], quantize)
    loss = tokenizer_loss(output.logits, batch["inside"], batch["is_near"], output.commitment,
                          near_weight=config.train.near_weight, commitment_weight=config.train.commitment_weight)
    fabric.backward(loss.total)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.grad_clip or float("inf"))
    iou = intersection_over_union(output.logits.detach(), batch["inside"], ~batch["is_near"]).mean()
    # The one place where the CPU waits for the device: before the optimizers move, and for all numbers at once.
    numbers = torch.stack([loss.total, loss.volume, loss.near, loss.commitment, iou, norm]).tolist()
    values = dict(zip(("loss", "volume", "near", "commitment", "iou_volume", "gradient_norm"), numbers, strict=True))
    check_finite(step, values["loss"], values["gradient_norm"])
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return values | {"lr": optimizers[0].param_groups[0]["lr"]}


@torch.no_grad()
def start_codebook(model: VQVAE, dataset: ShapeDataset, fabric: Fabric, generator: torch.Generator) -> None:
    """k-means over the autoencoder's latents; every process computes the same codebook from the same shapes."""
    chosen = spread(len(dataset), KMEANS_SHAPES)
    latents = []
    for index in tqdm(chosen, desc="k-means start of the codebook", disable=not fabric.is_global_zero, leave=False):
        surface = dataset[(index, index)]["surface"][None].to(fabric.device)
        with fabric.autocast():
            latents.append(model.encode(surface).flatten(0, -2))
    model.quantizer.start_from(torch.cat(latents), generator)


def validation_set(data: Path, count: int) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """`count` validation shapes with all their surface points and a fixed part of their query points."""
    dataset = ShapeDataset(data, "val", surface_points=1, volume_points=1, near_points=1, seed=0)
    result = []
    for shape_id in (dataset.ids[i] for i in spread(len(dataset), count)):
        arrays = dataset.source.arrays(shape_id, lambda kind, stored: slice(None if kind == "surface" else VALIDATION_POINTS))
        s = to_samples(arrays, dataset.source.where(shape_id))
        result.append((shape_id, {k: torch.from_numpy(getattr(s, k)) for k in ("surface", "points", "inside", "is_near")}))
    return result


@torch.no_grad()
def validate(model: VQVAE, validation: dict[Path, list], fabric: Fabric, quantize: bool) -> dict[str, float]:
    """IoU on volume and near-surface points apart, and how much of the codebook is in use. Of several folders the mean of their
    means, by which the best model is chosen, and each one's under its name."""
    model.eval()
    counts = torch.zeros(model.config.codebook_size, dtype=torch.int64)
    means = {}
    for folder, shapes in validation.items():
        ious = []
        for _, arrays in shapes:
            batch = {k: v[None].to(fabric.device) for k, v in arrays.items()}
            with fabric.autocast():
                output = model(batch["surface"], batch["points"], quantize)
            ious.append([float(intersection_over_union(output.logits, batch["inside"], kind))
                         for kind in (~batch["is_near"], batch["is_near"])])
            if output.ids is not None:
                counts += torch.bincount(output.ids.flatten().cpu(), minlength=len(counts))
        means[folder.name] = np.mean(ious, axis=0)
    model.train()
    usage, perplexity = codebook_usage(counts) if quantize else (0.0, 0.0)
    volume, near = np.mean(list(means.values()), axis=0)
    metrics = {"iou_volume": float(volume), "iou_near": float(near), "codebook_usage": usage, "perplexity": perplexity}
    if len(means) > 1:
        for name, (volume, near) in means.items():
            metrics |= {f"iou_volume_{name}": float(volume), f"iou_near_{name}": float(near)}
    return metrics


def preview(model: VQVAE, truths: list[np.ndarray], shapes: list, fabric: Fabric, quantize: bool, path: Path) -> None:
    """A picture with one row a truth: the true mesh (blank: not known), and what the tokenizer makes of it (blank: empty)."""
    model.eval()
    rows = []
    for truth, (_, arrays) in zip(truths, shapes, strict=True):
        try:
            with fabric.autocast():
                rebuilt, _ = reconstruct(model, arrays["surface"].numpy(), resolution=64, quantize=quantize)
        except EmptyFieldError:  # normal in the first steps; training goes on
            rebuilt = None
        rows.append([truth, picture(rebuilt)])
    model.train()
    if rows:
        contact_sheet(rows, ["truth", "rebuilt"]).save(path)


def model_card(record: dict) -> str:
    """README.md of a trained tokenizer."""
    return f"""# 3D VQ-VAE tokenizer

Trained by this repository: `{record['command']}` (step {record['step']}, {record['hours']:.2f} h, {record['machine']}, commit
{record['commit']}, {record['date']}). Validation: volume IoU {record['iou_volume']:.4f}, near-surface IoU
{record['iou_near']:.4f}, codebook usage {record['codebook_usage']:.3f}.
Use: `python infer_vqvae.py --model DIR --input_file MESH`.
"""


if __name__ == "__main__":
    sys.exit(main())
