"""Trains the tokenizer (3D VQ-VAE): first as an autoencoder, then with its codebook, in one run.

    python train_vqvae.py --base configs/vqvae3d_tiny.yaml
    python train_vqvae.py --base configs/vqvae3d.yaml --data DATA --gpus 0,1,2,3 train.batch_size=64
    python train_vqvae.py --data data/toy --data DATA:4 train.augment.scale=[0.75,1.25]
    torchrun --nproc_per_node=4 train_vqvae.py --base configs/vqvae3d.yaml --data DATA

DATA is a data set folder (docs/data.md), or one in ShapeNetV2's layout; without --data, a
procedural set is made in data/toy. Of several, DATA:N counts each shape N times. The run folder
gets model/ (read by infer_vqvae.py --model), train.csv, validation.csv, speed.csv (items/s, MFU,
waiting for data), TensorBoard files and reconstruction previews.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import AugmentConfig, VQVAEConfig, VQVAETrainConfig
from tar3d.data.defaults import DEFAULT_FOLDER, default_data
from tar3d.paths import shipped
from tar3d.runtime import command, command_parser, positive_int
from tar3d.training.arguments import (
    add_run_arguments,
    chosen_trackers,
    print_overfit_result,
    start_processes,
)

if TYPE_CHECKING:
    import argparse

    import torch
    from lightning_fabric import Fabric

    from tar3d.data.datasets.shapes import MixedShapes
    from tar3d.tokenizer.vqvae import VQVAE
    from tar3d.training.run import Run
    from tar3d.training.vqvae_reports import VQVAEReports

DEFAULT_CONFIG = "configs/vqvae3d_tiny.yaml"
LEAST_OVERFIT_IOU = 0.95
# The fields of the configuration that count the steps of each phase of a stage.
PHASES = {
    "both": ("autoencoder_steps", "codebook_steps"),
    "ae": ("autoencoder_steps",),
    "vq": ("codebook_steps",),
    "decoder": ("codebook_steps",),
}


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--base", metavar="CONFIG", help=f"config file (default: {DEFAULT_CONFIG})")
    parser.add_argument(
        "--data",
        action="append",
        metavar="DATA[:N]",
        help="data set folder with samples, may be given several times; N: how often each of its "
        f"shapes counts (default: a procedural set in {DEFAULT_FOLDER})",
    )
    parser.add_argument(
        "--toy-shapes",
        type=positive_int,
        default=2000,
        help="size of the procedural set (default: %(default)s)",
    )
    add_run_arguments(parser, "outputs/vqvae")
    return parser.parse_intermixed_args(argv)


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    from tar3d.training.dry_run import (  # loads torch, which --help does without
        dry_run,
        scratch_folder,
    )
    from tar3d.training.errors import print_error
    from tar3d.training.run_folder import prepare_folder

    try:
        config = configuration.load(
            VQVAEConfig, args.base or shipped(DEFAULT_CONFIG), args.overrides
        )
        fabric = start_processes(args, config.train)
        if note := config.optim.warmup_note(config.train.steps):
            fabric.print(note)
        if args.overfit:
            config.train.augment, config.train.ema = AugmentConfig(), 0.0
        state = None if args.dry_run else prepare_folder(fabric, args.out, args.resume)
        with scratch_folder(fabric, args.dry_run) as scratch:
            with fabric.rank_zero_first():
                data = (
                    data_folders(args.data)
                    if args.data
                    else {default_data(args.toy_shapes, scratch=scratch): 1}
                )
            begin = partial(train, fabric=fabric, data=data, init=args.init, dry=args.dry_run)
            if scratch is not None:
                names = PHASES[config.train.stage]
                phases = [name for name in names if getattr(config.train, name)]
                dry_run(begin, config, phases, fabric, scratch)
                return 0
        fabric.print(f"run folder {args.out}")
        if state is not None and args.init:
            fabric.print("--init has no effect on a resumed run: its weights are the state's")
        metrics = begin(
            config, args.out, state=state, trackers=chosen_trackers(args), overfit=args.overfit
        )
        if args.overfit:
            metric = "volume IoU of the shapes it was trained on"
            return print_overfit_result(metric, metrics["iou_volume"], LEAST_OVERFIT_IOU)
    except Exception as e:  # noqa: BLE001 - raised again unless it is an expected one
        return print_error(e)
    return 0


def data_folders(arguments: list[str]) -> dict[Path, int]:
    """DATA or DATA:N of each --data -> folder and how often each of its shapes counts."""
    result: dict[Path, int] = {}
    for text in arguments:
        folder, colon, times = text.rpartition(":")
        has_count = bool(colon) and times.isdigit()
        path = Path(folder if has_count else text)
        if path in result or (has_count and int(times) < 1):
            raise ValueError(
                f"--data {text}: give each folder once, with a number of at least 1 after the "
                "colon if any"
            )
        result[path] = int(times) if has_count else 1
    return result


def training_set(config: VQVAEConfig, data: dict[Path, int], limit: int | None) -> MixedShapes:
    """The training shapes of all folders, of each at most `limit`."""
    from tar3d.data.datasets.shapes import MixedShapes, ShapeDataset

    t = config.train
    parts = [
        ShapeDataset(
            folder,
            "train",
            surface_points=t.surface_points,
            volume_points=t.volume_points,
            near_points=t.near_points,
            seed=t.seed,
            augment_as=t.augment,
            limit=limit,
            samplings=t.samplings,
        )
        for folder in data
    ]
    return MixedShapes(parts, list(data.values()))


def train(  # noqa: PLR0913  what a training is made of, by keyword
    config: VQVAEConfig,
    out: Path,
    fabric: Fabric,
    data: dict[Path, int],
    *,
    state: Path | None = None,
    init: str | None = None,
    trackers: dict[str, str] | None = None,
    overfit: int | None = None,
    dry: bool = False,
) -> dict[str, float]:
    """Runs a training, or continues a saved `state`; returns the last validation's metrics.

    With `overfit` it is trained and validated on that many training shapes of each folder.
    """
    import torch

    from tar3d.optim import groups, schedule
    from tar3d.tokenizer.vqvae import VQVAE
    from tar3d.training import loader, vqvae_init, vqvae_reports
    from tar3d.training.run import Run

    t = config.train

    # Data
    dataset = training_set(config, data, overfit)
    reports = vqvae_reports.VQVAEReports(out, config, fabric, list(data), overfit)

    # Model
    torch.manual_seed(t.seed)  # initial weights only: everything random later has its own generator
    vqvae = VQVAE(vqvae_init.tokenizer_config(config, init, state))
    keeps_codebook = vqvae_init.init_from(vqvae, init, t.stage)
    random = torch.Generator().manual_seed(t.seed)
    generators = {"codebook": random}
    losses_of = partial(forward, t=t, replace=vqvae_init.replacement(t, random))
    run = Run("tokenizer", out, fabric, vqvae, config, generators=generators, trackers=trackers)

    # Optimizers, and the batches of the steps that are left
    run.optimizers = groups.new_optimizers(vqvae, config.optim)
    run.restore(state, vqvae_reports.vqvae_facts(dataset, reports, overfit))
    order = loader.training_order(len(dataset), t.batch_size, t.seed, run.step, t.steps, fabric)
    batches = loader.training_loader(dataset, order, t.num_workers, fabric)
    vqvae_reports.print_start(run, dataset, reports)

    # Loop
    rows = t.batch_size // fabric.world_size
    flops = rows * vqvae_reports.step_flops(vqvae, config)
    metrics: dict[str, float] = {}
    with run.session(order, dataset.name, unit="shapes", items=rows, flops=flops):
        for batch in run.meter.batches(batches):
            factor = schedule.learning_rate_factor(run.step, t.steps, config.optim)
            schedule.set_learning_rates(run.optimizers, factor)
            quantize = run.step >= t.first_codebook_step
            if quantize and run.step == t.first_codebook_step and not keeps_codebook:
                vqvae_init.start_codebook(vqvae, dataset, fabric, random)

            for part in run.micro_batches(rows):
                losses = losses_of(run.model, {k: v[part] for k, v in batch.items()}, quantize)
                run.backward(losses["loss"], losses)
            values = run.step_values(run.clip_gradients())
            revived = 0
            if run.check_finite(values):  # if not, the run ends here, or skips the step
                run.optimizer_step()
                if quantize and t.stage != "decoder":
                    # EMA update of the codebook: no gradients, codes follow their latents.
                    revived = vqvae.quantizer.step(random, run.all_gather)
                run.update_average()
            vqvae.quantizer.discard_statistics()
            phase = "codebook " if quantize else "autoencoder "
            run.finish_step(values, phase, {"revived": revived})

            if run.is_due(t.validate_every):
                metrics = validate(run, reports, len(dataset))
            stop = run.received_signal()
            if stop or run.is_due(t.save_every):
                run.save()
            run.stop_on(stop)
    vqvae_reports.print_end(run, dry)
    return vqvae_reports.final_metrics(run, reports, metrics, overfit)


def forward(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    quantize: bool,
    t: VQVAETrainConfig,
    replace: partial[torch.Tensor] | None,
) -> dict[str, torch.Tensor]:
    """The losses of a micro batch, of which "loss" is minimised, and its volume IoU."""
    from tar3d.tokenizer.loss import intersection_over_union, tokenizer_loss

    surface, *other = batch["surface"].chunk(t.samplings, dim=1)
    output = model(surface, batch["points"], quantize, *other, replace=replace)
    loss = tokenizer_loss(
        output.logits,
        batch["inside"],
        batch["is_near"],
        output.commitment,
        near_weight=t.near_weight,
        commitment_weight=t.commitment_weight,
    )
    if other:
        loss.total = loss.total + t.consistency_weight * output.consistency
    iou = intersection_over_union(output.logits.detach(), batch["inside"], ~batch["is_near"])
    return {
        "loss": loss.total,
        "volume": loss.volume,
        "near": loss.near,
        "commitment": loss.commitment,
        "iou_volume": iou.mean(),
        **({"consistency": output.consistency} if other else {}),
    }


def validate(run: Run[VQVAE], reports: VQVAEReports, training_shapes: int) -> dict[str, float]:
    """Validates, previews, and saves the model if it is the best so far; returns the metrics."""
    t, metrics = reports.config.train, {}
    with run.untimed():
        model = run.eval_model()
        if run.fabric.is_global_zero:
            quantized = run.step > t.first_codebook_step
            metrics = reports.validate(model, quantized)
            run.log_validation(metrics, reports.preview(model, run.step, quantized))
            if (quantized or t.stage == "ae") and run.is_best(metrics["iou_volume"]):
                reports.save_model(model, run.model_record(metrics, training_shapes))
    return metrics


if __name__ == "__main__":
    sys.exit(main())
