"""Trains the GPT that predicts a shape's tokens from an image, a text, either or nothing.

    python train_gpt.py --gpt-type i23d --gpt-model GPT-tiny
    python train_gpt.py --gpt-type t23d --gpt-model GPT-B --data DATA --vq-ckpt outputs/vqvae/model
    torchrun --nproc_per_node=4 train_gpt.py --gpt-model GPT-L --data DATA --vq-ckpt MODEL

--gpt-type says what the GPT is conditioned on: i23d an image, t23d a text, uncond nothing, any one
of the two or nothing (one model for all three). DATA is a data set folder with samples, and views
or captions (docs/data.md); its token shards are made when they are missing, and the training reads
these alone, never points or meshes. Shards made from given embeddings (make_tokens --embeddings)
are taken as they are, without the encoder's weights. Without --data, a procedural set is made in
data/toy.

The run folder gets model/ (read by run.py --model), train.csv, validation.csv, speed.csv (items/s,
MFU, waiting for data), TensorBoard files and generation previews.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import GPT_SIZES, GPT_TYPES, GPTRunConfig
from tar3d.data.defaults import DEFAULT_FOLDER, default_data
from tar3d.paths import shipped
from tar3d.runtime import command, command_parser, model_source, positive_int
from tar3d.training.arguments import (
    add_run_arguments,
    chosen_trackers,
    print_overfit_result,
    start_processes,
)
from tar3d.upgrade import upgrade_flags

if TYPE_CHECKING:
    import argparse

    from lightning_fabric import Fabric

    from tar3d.tokenizer.vqvae import VQVAE
    from tar3d.training.gpt_data import Inputs
    from tar3d.training.gpt_objective import GPTObjective
    from tar3d.training.gpt_reports import GPTReports
    from tar3d.training.run import Run

SHIPPED_TOKENIZER = "pretrained/tiny/tokenizer"
LEAST_OVERFIT_SHARE = 0.99


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--gpt-type",
        choices=list(GPT_TYPES),
        default="i23d",
        help="what the GPT is conditioned on: i23d an image, t23d a text, uncond nothing, any one "
        "of these (default: %(default)s)",
    )
    parser.add_argument(
        "--gpt-model",
        choices=list(GPT_SIZES),
        default="GPT-tiny",
        help="size by name (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        help="config file (default: configs/gpt_<type>_tiny.yaml for GPT-tiny, else "
        "configs/gpt_<type>.yaml)",
    )
    parser.add_argument(
        "--data", type=Path, help=f"data set folder (default: a procedural set in {DEFAULT_FOLDER})"
    )
    parser.add_argument(
        "--toy-shapes",
        type=positive_int,
        default=2000,
        help="size of the procedural set (default: %(default)s)",
    )
    parser.add_argument(
        "--vq-ckpt",
        type=model_source,
        metavar="MODEL",
        help=f"the tokenizer's model directory or Hub id (default: {SHIPPED_TOKENIZER})",
    )
    parser.add_argument(
        "--global-batch-size",
        type=int,
        help="rows per optimizer step over all devices (default: the config's)",
    )
    parser.add_argument(
        "--init-code-predictor",
        metavar="MODEL",
        help="start from the encoders and the code predictor of a GPT of any size, as "
        "train.stage=code_predictor trains them; everything else starts from scratch, or with the "
        "weights of --init",
    )
    add_run_arguments(parser, "outputs/gpt")
    return parser.parse_intermixed_args(upgrade_flags(argv))


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    from tar3d import checkpoint  # loads torch, which --help does without
    from tar3d.training.dry_run import dry_run, scratch_folder
    from tar3d.training.errors import print_error
    from tar3d.training.gpt_data import Inputs, gpt_facts, make_tokens, new_encoders
    from tar3d.training.gpt_init import check_tokenizer
    from tar3d.training.resume import check_resumed
    from tar3d.training.run_folder import prepare_folder

    try:
        vq_ckpt = args.vq_ckpt or shipped(SHIPPED_TOKENIZER)
        vqvae = checkpoint.load_tokenizer(vq_ckpt)
        config = read_config(args, vqvae)
        check_tokenizer(config, vqvae)
        fabric = start_processes(args, config.train)
        if note := configuration.size_note(config.gpt, args.gpt_model):
            fabric.print(note)
        if note := config.optim.warmup_note(config.train.steps):
            fabric.print(note)
        state = None if args.dry_run else prepare_folder(fabric, args.out, args.resume)
        with scratch_folder(fabric, args.dry_run) as scratch:
            with fabric.rank_zero_first():
                data = args.data or default_data(args.toy_shapes, scratch=scratch)
                encoders = new_encoders(config, data, args.init_code_predictor or args.init)
                check_resumed(state, config, gpt_facts(encoders, args.overfit))
                resumed = state is not None
                tokens = make_tokens(
                    config, data, vqvae, encoders, fabric, resumed=resumed, scratch=scratch
                )
            init = args.init, args.init_code_predictor
            inputs = Inputs(data, vqvae, vq_ckpt, encoders, *init, tokens, args.dry_run)
            begin = partial(train, fabric=fabric, inputs=inputs)
            if scratch is not None:
                dry_run(begin, config, ["steps"], fabric, scratch)
                return 0
        fabric.print(f"run folder {args.out}")
        if state is not None and args.init:
            fabric.print("--init has no effect on a resumed run: its weights are the state's")
        trackers = chosen_trackers(args)
        metrics = begin(config, args.out, state=state, trackers=trackers, overfit=args.overfit)
        if args.overfit:
            metric = "share of the tokens it was trained on that it generates again"
            return print_overfit_result(metric, metrics["regenerated"], LEAST_OVERFIT_SHARE)
    except Exception as e:  # noqa: BLE001 - raised again unless it is an expected one
        return print_error(e)
    return 0


def read_config(args: argparse.Namespace, vqvae: VQVAE) -> GPTRunConfig:
    """The config file for the named size and the tokenizer, with the overrides on top."""
    size = "_tiny" if args.gpt_model == "GPT-tiny" else ""
    path = args.config or shipped(f"configs/gpt_{args.gpt_type}{size}.yaml")
    changes = list(args.overrides)
    if args.global_batch_size is not None:
        if any(change.startswith("train.global_batch_size=") for change in changes):
            raise ValueError("--global-batch-size and train.global_batch_size are one: give one")
        changes.insert(0, f"train.global_batch_size={args.global_batch_size}")
    config = configuration.load_gpt_run(path, args.gpt_model, vqvae.config, changes, args.gpt_type)
    if args.overfit:
        config.gpt.condition_dropout = config.train.ema = 0.0
        config.train.token_noise = config.train.word_dropout = config.train.image_changes = 0.0
        config.train.token_noise_kind = "uniform"
    return config


def train(
    config: GPTRunConfig,
    out: Path,
    fabric: Fabric,
    inputs: Inputs,
    *,
    state: Path | None = None,
    trackers: dict[str, str] | None = None,
    overfit: int | None = None,
) -> dict[str, float]:
    """Runs a training, or continues a saved `state`; returns the last validation's metrics.

    With `overfit` it is trained and validated on that many shapes, and "regenerated" is the share
    of their tokens that the model generates.
    """
    import torch

    from tar3d.optim import groups, schedule
    from tar3d.training import gpt_data, gpt_init, gpt_objective, gpt_reports, loader
    from tar3d.training.run import Run

    t, vqvae = config.train, inputs.vqvae

    # Data
    # `train.token_noise` enters here: other tokens in the inputs of a row, never in its targets.
    dataset, validation = gpt_data.read_tokens(config, inputs, overfit)

    # Model
    init = inputs.init, inputs.init_code_predictor
    model = gpt_init.new_model(config, vqvae, inputs.encoders, *init, fabric)
    objective = gpt_objective.new_objective(model, vqvae, t)
    random = torch.Generator().manual_seed(t.seed)  # every process takes its rows of each draw
    generators, shard = {"dropout": random}, t.strategy == "fsdp"
    run = Run(
        "GPT", out, fabric, objective, config, generators=generators, shard=shard, trackers=trackers
    )

    # Optimizers, and the batches of the steps that are left
    run.optimizers = groups.new_optimizers(objective, config.optim)
    run.restore(state, gpt_data.gpt_facts(inputs.encoders, overfit, dataset, validation))
    order = gpt_data.row_order(config, len(dataset), run.step, fabric)
    batches = loader.training_loader(dataset, order, t.num_workers, fabric)
    reports = gpt_reports.GPTReports(out, config, fabric, vqvae, validation, inputs.data)
    rows = t.global_batch_size // fabric.world_size
    predictor_rows = t.code_predictor_rows // fabric.world_size
    own_rows = slice(fabric.global_rank * rows, (fabric.global_rank + 1) * rows)
    gpt_reports.print_start(run, [dataset, validation], reports, rows, predictor_rows)

    # Loop
    metrics: dict[str, float] = {}
    tokens, flops = rows * config.gpt.num_tokens, objective.flops(rows, predictor_rows)
    with run.session(order, dataset.ids.__getitem__, unit="tokens", items=tokens, flops=flops):
        for batch in run.meter.batches(batches):
            factor = schedule.learning_rate_factor(run.step, t.steps, config.optim)
            schedule.set_learning_rates(run.optimizers, factor)

            # Every process draws the same numbers for all rows of the step, and takes its own rows.
            dropped = gpt_objective.draw_dropped_rows(model, t.global_batch_size, random)[own_rows]
            shift = gpt_objective.draw_shift(t, random)
            for part in run.micro_batches(rows):
                # A batch ends with rows for the code predictor alone; each pass gets its share.
                given = gpt_objective.inputs_of_pass(batch, part, rows, fabric.global_rank)
                losses = run.model(**given, dropped=dropped[part], shift=shift)
                run.backward(objective.total(losses), losses)
            values = run.step_values(run.clip_gradients())
            if run.check_finite(values):  # if not, the run ends here, or skips the step
                run.optimizer_step()
                run.update_average()
            run.finish_step(values)

            if run.is_due(t.validate_every):
                metrics = validate(run, reports, inputs, len(dataset))
            stop = run.received_signal()
            if stop or run.is_due(t.save_every):
                run.save()
            run.stop_on(stop)
    gpt_reports.print_end(run, reports, inputs.dry)
    if overfit:
        metrics["regenerated"] = reports.regenerated_share(run.eval_model().model)
    return metrics


def validate(
    run: Run[GPTObjective], reports: GPTReports, inputs: Inputs, training_shapes: int
) -> dict[str, float]:
    """Validates, previews, and saves the model if it is the best so far; returns the metrics."""
    metrics: dict[str, float] = {}
    with run.untimed():
        objective = run.eval_model()
        if run.fabric.is_global_zero:
            metrics = reports.validate(objective, run.step)
            run.log_validation(metrics, reports.preview(objective, run.step))
            if run.is_best(-metrics[reports.deciding_metric]):  # the lower, the better
                record = run.model_record(metrics, training_shapes)
                reports.save_model(objective.model, record, inputs.vq_ckpt)
    return metrics


if __name__ == "__main__":
    sys.exit(main())
