"""Trains the GPT that predicts a shape's tokens from an image, a text, either or nothing, on token
shards (it never reads points or meshes).

    python train_gpt.py --gpt-type i23d --gpt-model GPT-tiny
    python train_gpt.py --gpt-type t23d --gpt-model GPT-B --global-batch-size 4 --data DATA --vq-ckpt outputs/vqvae/model
    torchrun --nproc_per_node=4 train_gpt.py --gpt-type i23d --gpt-model GPT-L --data DATA --vq-ckpt MODEL

--gpt-type says what the GPT is told: i23d an image, t23d a text, uncond nothing, any one of the two or nothing (one model for all
three). DATA is a data set folder with samples, and views or captions (docs/data.md); its tokens are made when they are missing.
Tokens that were made from given embeddings (make_tokens --embeddings) are taken as they are, and the encoder's weights are not
needed. Without --data, a procedural set is made in data/toy. The run folder gets model/ (read by run.py --model), train.csv,
validation.csv, speed.csv (items/s, MFU, waiting for data), TensorBoard files and generation previews.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import default_collate

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.condition.conditioner import Encoder, Source, rows_of
from tar3d.condition.encoders import GivenEmbeddings
from tar3d.conditional_gpt import (
    TEXT_TOKENIZER,
    ConditionalGPT,
    gpt_folder,
    gpt_type_of,
    load_gpt_text_tokenizer,
)
from tar3d.config import CONDITIONS, GPT_SIZES, GPT_TYPES, GPTRunConfig, SamplingConfig
from tar3d.contracts import PLANES, Condition
from tar3d.data.datasets.sampler import JoinedOrder, TrainingOrder, spread
from tar3d.data.datasets.tokens import TokenDataset
from tar3d.data.defaults import DEFAULT_FOLDER, default_data
from tar3d.data.formats.views import mesh_pictures
from tar3d.data.tokens.make_tokens import TokenMaker, encoders_of, told_of
from tar3d.gpt.code_predictor import PREDICTOR_PARAMETERS
from tar3d.gpt.condition_nll import condition_nll, of_others
from tar3d.gpt.loss import cross_entropy
from tar3d.layouts.triplane import NUM_PLANES, to_planes
from tar3d.mesh.render import contact_sheet, picture
from tar3d.pipeline import Pipeline
from tar3d.runtime import positive_int, start_fabric, uncompiled
from tar3d.training.dry_run import dry_run
from tar3d.training.faults import report
from tar3d.training.run import Run, prepare_folder
from tar3d.training.start import add_run_arguments, print_verdict, training_loader
from tar3d.upgrade import upgrade_flags

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from tar3d.tokenizer.vqvae import VQVAE

SHIPPED_TOKENIZER = "pretrained/tiny/tokenizer"
VALIDATION_BATCH = 16
OVERFIT_BAR = 0.99  # share of tokens
MAP_SIZE = 192
CODE_PREDICTOR = SamplingConfig(
    temperature=0.0, code_predictor_scale=1e6
)  # the code nearest to the predicted codes, whatever the layers say
PREDICTOR_SHAPE = (
    "code_predictor_local",
    "code_predictor_hidden",
)  # values of the config that decide the shapes of its guess:
PREDICTOR_PARTS = tuple(f"gpt.{name}" for name in PREDICTOR_PARAMETERS)
PREDICTOR_STAGE_PARTS = (
    "conditioner.",
    *PREDICTOR_PARTS,
)  # that `train.stage=code_predictor` trains, and "layers" leaves as they are
# What the prefix goes through besides the encoders.
PREFIX_PARTS = (
    "conditioner.project.",
    "gpt.condition_mlp.",
    "gpt.null_prefix",
    "gpt.code_predictor.",
)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpt-type",
        choices=list(GPT_TYPES),
        default="i23d",
        help="what the GPT is told of a shape: i23d an image, t23d a text, uncond nothing, any one of these "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--gpt-model",
        choices=list(GPT_SIZES),
        default="GPT-tiny",
        help="size by name (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        help="config file (default: configs/gpt_<type>_tiny.yaml for GPT-tiny, else configs/gpt_<type>.yaml)",
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
        default=SHIPPED_TOKENIZER,
        metavar="MODEL",
        help="the tokenizer's model directory or Hub id (default: %(default)s)",
    )
    parser.add_argument(
        "--global-batch-size",
        type=int,
        help="rows per optimizer step over all devices (default: the config's)",
    )
    parser.add_argument(
        "--init-code-predictor",
        metavar="MODEL",
        help="start from the encoders and the code predictor of a GPT of any size, as train.stage=code_predictor trains them; "
        "everything else begins anew, or with --init's weights",
    )
    add_run_arguments(parser, "outputs/gpt")
    return parser.parse_intermixed_args(upgrade_flags(argv))


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        vqvae = checkpoint.load_tokenizer(args.vq_ckpt)
        config = read_config(args, vqvae)
        fabric = start_fabric(
            args.gpus, args.num_nodes, config.train.precision, shard=config.train.strategy == "fsdp"
        )
        state = None if args.dry_run else prepare_folder(fabric, args.out, args.resume, config)
        with fabric.rank_zero_first():
            data = args.data or default_data(args.toy_shapes)
            encoders = new_encoders(config, data, args.init_code_predictor or args.init)
            if told := told_of(data, encoders, config, fabric.device):
                TokenMaker(data, vqvae, told, fabric.device).run()
        begin = partial(
            train,
            fabric=fabric,
            data=data,
            vqvae=vqvae,
            vq_source=args.vq_ckpt,
            encoders=encoders,
            init=args.init,
            init_code_predictor=args.init_code_predictor,
        )
        if args.dry_run:
            dry_run(begin, config, fabric)
        elif args.overfit:
            config.gpt.condition_dropout = config.train.token_noise = config.train.word_dropout = (
                config.train.ema
            ) = 0.0
            metrics = begin(
                config, out=args.out, state=state, wandb=args.wandb, overfit=args.overfit
            )
            return print_verdict(
                "share of the tokens it was trained on that it generates again",
                metrics["regenerated"],
                OVERFIT_BAR,
            )
        else:
            begin(config, out=args.out, state=state, wandb=args.wandb)
    except Exception as e:
        return report(e)
    return 0


def read_config(args: argparse.Namespace, vqvae: VQVAE) -> GPTRunConfig:
    """The config file for the named size and the tokenizer given, with the overrides on top."""
    path = (
        args.config
        or f"configs/gpt_{args.gpt_type}{'_tiny' if args.gpt_model == 'GPT-tiny' else ''}.yaml"
    )
    overrides = list(args.overrides)
    if args.global_batch_size is not None:
        overrides.insert(0, f"train.global_batch_size={args.global_batch_size}")
    config = configuration.load_gpt_run(
        path, args.gpt_model, vqvae.config, overrides, args.gpt_type
    )
    check_tokenizer(config, vqvae)
    return config


def new_encoders(config: GPTRunConfig, data: Path, init: str | None = None) -> dict[str, Encoder]:
    """The encoders of a run, untrained ones from its seed, as the GPT that is made next; with the
    words of the model `init`."""
    torch.manual_seed(
        config.train.seed
    )  # initial weights only: everything random later has its own generator
    return encoders_of(config, data, load_gpt_text_tokenizer(init) if init else None)


def init_from(model: ConditionalGPT, init: str, fabric: Fabric) -> None:
    """The weights of a GPT to be trained further. An encoder that it does not have begins anew;
    where none is the same, or the embeddings have another shape, so does the way of the embeddings
    into the GPT, and the code predictor. A code predictor of another shape begins anew by itself."""
    mine, theirs = model.config, checkpoint.read_config(init, GPTRunConfig)
    same_shape = all(
        getattr(mine.gpt, name) == getattr(theirs.gpt, name)
        for name in ("condition_tokens", "condition_width")
    )
    kept = [
        kind
        for kind in mine.conditions
        if kind in theirs.conditions
        and same_shape
        and getattr(mine, f"{kind}_encoder") == getattr(theirs, f"{kind}_encoder")
    ]
    anew = tuple(f"conditioner.trained.{kind}." for kind in CONDITIONS if kind not in kept)
    said = [f"the {kind} encoder" for kind in mine.conditions if kind not in kept]
    if not kept and (mine.conditions or not same_shape):
        anew += PREFIX_PARTS
        said.append("condition_mlp, null_prefix and code predictor")
    elif mine.gpt.code_predictor_dim != theirs.gpt.code_predictor_dim:
        anew += ("gpt.code_predictor.",)
        said += ["the code predictor"] if mine.gpt.code_predictor_dim else []
    elif mine.gpt.code_predictor_dim and any(
        getattr(mine.gpt, name) != getattr(theirs.gpt, name) for name in PREDICTOR_SHAPE
    ):
        anew += PREDICTOR_PARTS
        said.append("the predicted codes")
    checkpoint.load_weights(model, init, anew)
    if said:
        fabric.print(f"--init {init} has others of these, which begin anew: {', '.join(said)}")


def init_code_predictor_from(model: ConditionalGPT, init: str) -> None:
    """The encoders and the code predictor of another GPT, which may have any layers."""
    theirs = checkpoint.read_config(init, GPTRunConfig)
    for name in ("code_predictor_dim", *PREDICTOR_SHAPE, "token_order"):
        mine, given = getattr(model.config.gpt, name), getattr(theirs.gpt, name)
        if mine != given:
            raise ValueError(
                f"--init-code-predictor {init} has gpt.{name} {given}, but this GPT {mine}: write gpt.{name}={given}"
            )
    checkpoint.load_weights(model, init, only=PREDICTOR_STAGE_PARTS)


class GPTObjective(torch.nn.Module):
    """What a step trains: the model, and if it has a code predictor, that the code predictor guesses the
    tokenizer's `codes` (V, K); or with `stage` "code_predictor" that and nothing else, with "layers" all
    but the encoders and that guess. What is not trained is frozen."""

    def __init__(self, model: ConditionalGPT, codes: torch.Tensor, stage: str = "gpt") -> None:
        super().__init__()
        self.model, self.stage = model, stage
        self.register_buffer("codes", codes, persistent=False)
        if stage != "gpt":
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(
                    name.startswith(PREDICTOR_STAGE_PARTS) == (stage == "code_predictor")
                )

    def forward(
        self, tokens: torch.Tensor, inputs: torch.Tensor, source: Source, dropped: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The losses of what is trained. "nll": nats a token of the first B rows of tokens (B + b,
        T) from `inputs` (B, T - 1); "code_distance": 1 - cosine of the predicted codes to the true codes, over all
        rows."""
        condition, gpt, B = self.model.condition(source, len(tokens)), self.model.gpt, len(inputs)
        inputs = torch.cat([inputs, tokens[:B, -1:]], dim=1)  # whole, to be ordered, then cut
        tokens, losses = gpt.to_model_order(tokens), {}
        if self.stage != "code_predictor":
            hidden = gpt.hidden(
                gpt.to_model_order(inputs)[:, :-1],
                Condition(condition.embeddings[:B], condition.mask[:B], condition.full),
                dropped,
            )
            losses["nll"] = cross_entropy(hidden, gpt.head.weight, tokens[:B])
        if gpt.code_predictor is not None and self.stage != "transformer":
            losses["code_distance"] = self.code_distance(condition, tokens)
        return losses

    def code_distance(self, condition: Condition, tokens: torch.Tensor) -> torch.Tensor:
        """1 - cosine of the guessed codes to those of tokens (B, T) in the GPT's order, mean over
        all."""
        predicted = self.model.gpt.code_predictor(condition.embeddings, condition.mask)  # (B, T, K)
        return 1 - F.cosine_similarity(predicted, self.codes[tokens], dim=-1).mean()

    def flops(self, rows: int, further: int) -> int:
        """Of a step over `rows` rows and `further` ones for the code predictor: forward and twice that
        backward."""
        gpt, conditioner = self.model.gpt, self.model.conditioner
        told = sum(encoder.flops() for encoder in conditioner.trained.values()) * (rows + further)
        told //= max(1, len(conditioner.kinds))
        layers = rows * gpt.flops(gpt.config.condition_tokens, gpt.config.num_tokens)
        return {
            "code_predictor": 3 * told,
            "transformer": told + 3 * layers,
            "gpt": 3 * (told + layers),
        }[self.stage]


def check_tokenizer(config: GPTRunConfig, vqvae: VQVAE) -> None:
    """The GPT's vocabulary and grid must be the tokenizer's; records whose codes it learns."""
    for name in ("grid_size", "codebook_size"):
        mine, theirs = getattr(config.gpt, name), getattr(vqvae.config, name)
        if mine != theirs:
            raise ValueError(
                f"gpt.{name} is {mine}, but the tokenizer's is {theirs}: "
                f"write gpt.{name}={theirs}, or choose another --vq-ckpt"
            )
    config.tokenizer_fingerprint = checkpoint.token_fingerprint(vqvae)


def train(
    config: GPTRunConfig,
    out: Path,
    fabric: Fabric,
    data: Path,
    vqvae: VQVAE,
    vq_source: str,
    encoders: dict[str, Encoder],
    *,
    state: Path | None = None,
    init: str | None = None,
    init_code_predictor: str | None = None,
    wandb: str | None = None,
    overfit: int | None = None,
) -> dict:
    """Runs a training, or goes on from a saved `state`, and returns the last validation's metrics.
    With `overfit` it has so many shapes, is validated on them, and the metrics say what share of
    their tokens it generates ("regenerated")."""
    t = config.train
    model = new_model(config, vqvae, encoders, init, init_code_predictor, fabric)
    dropout_random = torch.Generator().manual_seed(
        t.seed
    )  # the same on every process, which takes its rows of each draw
    run = Run(
        "GPT",
        out,
        fabric,
        GPTObjective(model, vqvae.quantizer.codebook.clone(), t.stage),
        config,
        generators={"dropout": dropout_random},
        wandb=wandb,
    )
    run.restore(state)

    told = {kind: model.conditioner.encoder(kind) for kind in config.conditions}
    wanted = {"tokenizer": config.tokenizer_fingerprint} | {
        kind: encoder.identity for kind, encoder in told.items()
    }
    read = partial(
        TokenDataset,
        data,
        seed=t.seed,
        wanted=wanted,
        conditions=config.conditions,
        limit=overfit,
        caption_tokens=config.text_encoder.max_tokens,
    )
    dataset = read("train", token_noise=t.token_noise, word_dropout=t.word_dropout)
    validation = read("train" if overfit else "val")
    order = JoinedOrder(
        *(
            TrainingOrder(
                len(dataset),
                rows,
                seed=seed,
                start=run.step,
                stop=t.steps,
                rank=fabric.global_rank,
                world=fabric.world_size,
            )
            for rows, seed in ((t.global_batch_size, t.seed), (t.code_predictor_rows, t.seed + 1))
        )
    )
    loader = training_loader(dataset, order, t.num_workers, fabric)
    held_out = validation_rows(validation, t.validation_shapes)
    shown = spread(len(validation), t.preview_shapes)
    truths = mesh_pictures(data, [validation.ids[i] for i in shown])
    local, further = (
        t.global_batch_size // fabric.world_size,
        t.code_predictor_rows // fabric.world_size,
    )
    micro = check_rows(config, local, further)
    given = [encoder for encoder in told.values() if isinstance(encoder, GivenEmbeddings)]
    fabric.print(
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(dataset)} training shapes, "
        f"{len(held_out['tokens'])} validation shapes, {t.steps - run.step} steps of {local // micro} x {micro} rows on "
        f"{fabric.world_size} x {fabric.device}, ln V = {np.log(config.gpt.codebook_size):.3f} nats, run folder {out}"
    )

    metrics, folder = {}, out / "model" / gpt_folder(gpt_type_of(config.conditions))
    for batch in run.batches(
        loader,
        order,
        dataset.ids.__getitem__,
        unit="tokens",
        items=local * config.gpt.num_tokens,
        flops=run.bare.flops(local, further),
    ):
        dropped = drop_rows(model, t.global_batch_size, dropout_random)[
            fabric.global_rank * local :
        ][:local]
        run.advance(train_step(run, batch, dropped))

        if run.due(t.validate_every):
            with run.aside():
                objective = run.shown()
                if fabric.is_global_zero:
                    with uncompiled():
                        if t.stage == "code_predictor":
                            metrics = validate_code_predictor(objective, held_out, fabric)
                        else:
                            metrics, by_position = validate(objective.model, held_out, fabric)
                            nll_picture(by_position, config).save(out / f"nll_{run.step:07d}.png")
                        preview(
                            objective,
                            vqvae,
                            truths,
                            [validation.row(i) for i in shown],
                            fabric,
                            out / f"preview_{run.step:07d}.png",
                        )
                    run.show(metrics, out / f"preview_{run.step:07d}.png")
                    if run.is_best(-next(iter(metrics.values()))):
                        save_gpt(
                            folder,
                            objective.model,
                            config,
                            run.record(metrics, len(dataset)),
                            given,
                        )
                        checkpoint.copy_model(
                            checkpoint.find_tokenizer(vq_source),
                            out / "model" / checkpoint.TOKENIZER,
                        )
    if t.stage == "code_predictor":
        fabric.print(
            f"best validation distance {-run.best:.4f}; go on with: --init-code-predictor {folder}"
        )
    else:
        fabric.print(
            f"best validation NLL {-run.best:.4f}; model in {out / 'model'}, "
            f"generate with: python run.py --model {out / 'model'}{needs(given)}"
        )
    if overfit:
        metrics["regenerated"] = regenerated(run.shown().model, vqvae, held_out, fabric)
    return metrics


def new_model(
    config: GPTRunConfig,
    vqvae: VQVAE,
    encoders: dict[str, Encoder],
    init: str | None,
    init_code_predictor: str | None,
    fabric: Fabric,
) -> ConditionalGPT:
    """What a training begins with: fresh weights, or those of `init`, and encoders and code predictor of
    `init_code_predictor`."""
    given, wanted = config.gpt.code_predictor_dim, vqvae.config.code_dim
    if given not in (0, wanted):
        raise ValueError(
            f"gpt.code_predictor_dim is {given}, but the tokenizer's codes have {wanted} coordinates: write "
            f"gpt.code_predictor_dim={wanted}, or 0 for none"
        )
    if config.train.stage == "transformer" and not (init or init_code_predictor):
        raise ValueError(
            "train.stage=transformer goes on from encoders and a code predictor that are trained: give them with --init-code-predictor, "
            "or train them with train.stage=code_predictor"
        )
    model = ConditionalGPT(config, encoders)
    if init:
        init_from(model, init, fabric)
    else:
        model.gpt.start_from_codes(
            vqvae.quantizer.codebook, torch.Generator().manual_seed(config.train.seed)
        )
    if init_code_predictor:
        init_code_predictor_from(model, init_code_predictor)
    return model


def check_rows(config: GPTRunConfig, local: int, further: int) -> int:
    """Rows of a forward pass, of this process's `local` rows a step; the conditions and its
    `further` rows for the code predictor must divide over them."""
    micro, kinds = config.train.micro_batch_size or local, len(config.conditions)
    if kinds and micro % kinds:
        raise ValueError(
            f"{micro} rows go through the model together, but {kinds} conditions take turns in them: set "
            f"train.global_batch_size or train.micro_batch_size so that they divide by {kinds}"
        )
    if further % max(1, local // micro):
        raise ValueError(
            f"train.code_predictor_rows gives a process {further} rows, which do not divide over its {local // micro} "
            "forward passes a step"
        )
    return micro


def train_step(run: Run, batch: dict, dropped: torch.Tensor) -> dict[str, float]:
    """One step of the optimizers over the rows of `dropped`, some at a time, and with each part its
    share of the rows after them, which only the code predictor sees; none where the loss or the gradient is
    not finite (`Run.move`)."""
    count = len(dropped)
    dropped = dropped.to(run.fabric.device, non_blocking=True)
    for rows in run.parts(count):
        share = (len(batch["tokens"]) - count) * (rows.stop - rows.start) // count
        start = count + rows.start // (rows.stop - rows.start) * share
        further = slice(start, start + share)
        tokens, source = (
            torch.cat([batch["tokens"][rows], batch["tokens"][further]]),
            {
                kind: torch.cat([shown[rows], shown[further]])
                for kind, shown in batch["source"].items()
            },
        )
        losses = run.model(tokens, batch["inputs"][rows], source, dropped[rows])
        weight = {
            "nll": 1.0,
            "code_distance": run.config.train.code_predictor_weight if "nll" in losses else 1.0,
        }
        run.backward(sum(weight[name] * loss for name, loss in losses.items()), losses)
    return run.move()


def drop_rows(model: ConditionalGPT, rows: int, generator: torch.Generator) -> torch.Tensor:
    """(B,) bool: the rows that are told nothing; all of a GPT that never is told anything."""
    dropped = model.gpt.drop_rows(rows, generator)
    return dropped if model.conditioner.kinds else torch.ones_like(dropped)


def validation_rows(dataset: TokenDataset, count: int) -> dict:
    """`count` validation shapes, each with its first view and caption."""
    return default_collate([dataset.row(i) for i in spread(len(dataset), count)])


def validate(
    model: ConditionalGPT, rows: dict, fabric: Fabric
) -> tuple[dict[str, float], torch.Tensor]:
    """NLL in nats per token under the right, a shuffled and the null condition; by plane, of the
    first 8 positions, and of each quarter of the sequence. Where several conditions may be told,
    "right" and "shuffled" are means over them, and each has its own. Also the NLL under the right
    one of every position (T,)."""
    with fabric.autocast():
        by_kind = {
            kind: condition_nll(
                model, rows["tokens"], {kind: rows["source"][kind]}, VALIDATION_BATCH
            )
            for kind in model.conditioner.kinds
        } or {"": condition_nll(model, rows["tokens"], {}, VALIDATION_BATCH)}
    right = torch.stack([nll.get("right", nll["null"]) for nll in by_kind.values()]).mean(
        0
    )  # (N, T)
    metrics = {"nll": float(right.mean())}
    if model.conditioner.kinds:
        metrics["nll_shuffled"] = float(
            torch.stack([nll["shuffled"] for nll in by_kind.values()]).mean()
        )
        metrics["nll_null"] = float(next(iter(by_kind.values()))["null"].mean())
    if len(by_kind) > 1:
        metrics |= {
            f"nll_{kind}{suffix}": float(nll[name].mean())
            for kind, nll in by_kind.items()
            for suffix, name in (("", "right"), ("_shuffled", "shuffled"))
        }
    metrics |= {
        f"nll_{name}": float(right[:, p::NUM_PLANES].mean()) for p, name in enumerate(PLANES)
    }
    metrics["nll_first8"] = float(right[:, :8].mean())
    metrics |= {
        f"nll_quarter{k}": float(part.mean())
        for k, part in enumerate(right.tensor_split(4, dim=1), start=1)
    }
    return metrics, right.mean(0)


@torch.no_grad()
def validate_code_predictor(
    objective: GPTObjective, rows: dict, fabric: Fabric
) -> dict[str, float]:
    """The code predictor's distance to the true codes, 1 - cosine: the mean over what may be told, and each
    by itself where there is more than one; and of another shape's condition, "shuffled"."""
    model, right, wrong = objective.model.eval(), {}, []
    with fabric.autocast():
        tokens = model.gpt.to_model_order(rows["tokens"].to(fabric.device))
        for kind in model.conditioner.kinds:
            told = {kind: rows["source"][kind].to(fabric.device)}
            right[kind] = float(objective.code_distance(model.condition(told, len(tokens)), tokens))
            wrong.append(
                float(
                    objective.code_distance(model.condition(of_others(told), len(tokens)), tokens)
                )
            )
    model.train()
    metrics = {
        "code_distance": float(np.mean(list(right.values()))),
        "code_distance_shuffled": float(np.mean(wrong)),
    }
    return metrics | (
        {f"code_distance_{kind}": value for kind, value in right.items()} if len(right) > 1 else {}
    )


def nll_picture(by_position: torch.Tensor, config: GPTRunConfig) -> Image.Image:
    """The NLL of every position (T,) as a map for each plane, row by row as the GPT goes: white is
    nothing, black a guess at random (ln V)."""
    planes = to_planes(by_position[None], config.gpt.grid_size)[0]
    shade = (255 * (1 - planes / np.log(config.gpt.codebook_size)).clamp(0, 1)).byte().numpy()
    maps = [
        np.asarray(
            Image.fromarray(plane)
            .convert("RGB")
            .resize((MAP_SIZE, MAP_SIZE), Image.Resampling.NEAREST)
        )
        for plane in shade
    ]
    return contact_sheet(
        [maps],
        [f"{name}: NLL {float(p.mean()):.3f} nats" for name, p in zip(PLANES, planes, strict=True)],
    )


def regenerated(model: ConditionalGPT, vqvae: VQVAE, rows: dict, fabric: Fabric) -> float:
    """Share of the tokens of `rows` that are generated, the likeliest each time, from what they are
    told alone."""
    pipeline = Pipeline(vqvae, model, fabric.device)
    found = [
        pipeline.tokens(
            rows_of(rows["source"], slice(i, i + 1)), [0], SamplingConfig(temperature=0.0)
        )
        .ids[0]
        .cpu()
        for i in range(len(rows["tokens"]))
    ]
    return float((torch.stack(found) == rows["tokens"]).float().mean())


def preview(
    objective: GPTObjective,
    vqvae: VQVAE,
    truths: list[np.ndarray],
    rows: list[dict],
    fabric: Fabric,
    path: Path,
) -> None:
    """A picture with one row a truth: the true mesh, and what is generated from its first view or
    caption, or from nothing; where the code predictor is trained alone, its guess."""
    model = objective.model
    pipeline, kinds = Pipeline(vqvae, model, fabric.device), model.conditioner.kinds
    sheet = []
    for index, (truth, row) in enumerate(zip(truths, rows, strict=True)):
        sources = [{kind: row["source"][kind][None]} for kind in kinds] or [{}]
        sampling = CODE_PREDICTOR if objective.stage == "code_predictor" else None
        meshes = [
            pipeline.generate(source, seeds=[index], resolution=64, sampling=sampling)[0].mesh
            for source in sources
        ]
        sheet.append(
            [truth, *(picture(mesh) for mesh in meshes)]
        )  # an empty field is normal in the first steps
    model.train()
    if sheet:
        contact_sheet(
            sheet,
            ["truth", *(f"from its {kind}" for kind in kinds)]
            if kinds
            else ["another", "generated"],
        ).save(path)


def save_gpt(
    folder: Path,
    model: ConditionalGPT,
    config: GPTRunConfig,
    record: dict,
    given: list[GivenEmbeddings],
) -> None:
    """The model directory, with the words of a text encoder that is trained along."""
    checkpoint.save_model(
        folder,
        model,
        config,
        record,
        model_card(record, gpt_type_of(config.conditions), given),
        dtype=getattr(torch, config.train.weights_dtype),
        largest_file=config.train.weights_file_mb * 10**6,
    )
    if "text" in model.conditioner.trained:
        model.conditioner.encoder("text").words.tokenizer.save_pretrained(folder / TEXT_TOKENIZER)


def needs(given: list[GivenEmbeddings]) -> str:
    """What a user of the model has to know whose training has not seen its encoders."""
    names = " and ".join(encoder.source for encoder in given)
    return f" (needs {names}, whose embeddings were given to this training)" if given else ""


TASKS = {
    "i23d": "image to 3D",
    "t23d": "text to 3D",
    "uncond": "3D from nothing",
    "any": "image or text to 3D, or from nothing",
}


def model_card(record: dict, gpt_type: str, given: list[GivenEmbeddings]) -> str:
    """README.md of a trained GPT."""
    if "nll" not in record:
        return f"""# The code predictor of a GPT, {TASKS[gpt_type]}

Trained by this repository: `{record["command"]}` (step {record["step"]}, {record["hours"]:.2f} h, {record["machine"]}, commit
{record["commit"]}, {record["date"]}). The GPT itself is not trained: go on with `python train_gpt.py --init-code-predictor DIR`.
Distance of the guessed codes to the true ones, 1 - cosine: {record["code_distance"]:.4f}; from another shape's condition
{record["code_distance_shuffled"]:.4f}.
"""
    compared = (
        f"; {record['nll_shuffled']:.4f} under another\nshape's condition, {record['nll_null']:.4f} without one"
        if "nll_shuffled" in record
        else ""
    )
    shown = "t23d" if gpt_type == "any" else gpt_type
    use = {"i23d": " --input PICTURE", "t23d": ' --prompt "TEXT"', "uncond": " --num-samples 8"}[
        shown
    ]
    return f"""# Hybrid GPT, {TASKS[gpt_type]}

Trained by this repository: `{record["command"]}` (step {record["step"]}, {record["hours"]:.2f} h, {record["machine"]}, commit
{record["commit"]}, {record["date"]}). Validation NLL {record["nll"]:.4f} nats a token{compared}.
Use: `python run.py --gpt-type {shown} --model DIR{use}`{needs(given)}.
"""


if __name__ == "__main__":
    sys.exit(main())
