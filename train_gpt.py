"""Trains the GPT that predicts a shape's tokens from an image, on token shards (it never reads points or meshes).

    python train_gpt.py --gpt-type i23d --gpt-model GPT-tiny
    python train_gpt.py --gpt-type i23d --gpt-model GPT-B --global-batch-size 4 --data DATA --vq-ckpt outputs/vqvae/model
    torchrun --nproc_per_node=4 train_gpt.py --gpt-type i23d --gpt-model GPT-L --data DATA --vq-ckpt MODEL

DATA is a data set folder with samples and views (docs/data.md); its tokens are made when they are missing. Tokens that were made
from given embeddings (make_tokens --embeddings) are taken as they are, and the image encoder's weights are not needed. Without
--data, a procedural set is made in data/toy. The run folder gets model/ (read by run.py --model), train.csv,
validation.csv, speed.csv (items/s, MFU, waiting for data), TensorBoard files and generation previews.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.condition.encoders import GivenEmbeddings
from tar3d.config import GPT_SIZES, GPTRunConfig, SamplingConfig
from tar3d.contracts import Condition
from tar3d.data.default import DEFAULT_FOLDER, default_data
from tar3d.data.make_tokens import TokenMaker
from tar3d.data.order import JoinedOrder, TrainingOrder, spread
from tar3d.data.tokens import TokenDataset, read_stamp
from tar3d.data.views import mesh_pictures
from tar3d.gpt.evaluate import condition_nll
from tar3d.gpt.loss import cross_entropy
from tar3d.mesh.render import contact_sheet, picture
from tar3d.pipeline import GPT_I23D, I23D, Pipeline
from tar3d.runtime import positive_int, start_fabric, uncompiled
from tar3d.token_order import NUM_PLANES
from tar3d.tokenizer.vqvae import VQVAE
from tar3d.training.dry_run import dry_run
from tar3d.training.faults import report
from tar3d.training.run import Run, prepare_folder
from tar3d.training.start import add_run_arguments, training_loader, verdict

SHIPPED_TOKENIZER = "pretrained/tiny/tokenizer"
VALIDATION_BATCH = 16
OVERFIT_BAR = 0.99  # share of tokens
# What depends on the image encoder.
CONDITION_PARTS = ("trained_encoder.", "gpt.condition_mlp.", "gpt.null_prefix", "gpt.sketch.")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt-type", choices=["i23d"], default="i23d", help="what the GPT is conditioned on: i23d, an image")
    parser.add_argument("--gpt-model", choices=list(GPT_SIZES), default="GPT-tiny", help="size by name (default: %(default)s)")
    parser.add_argument("--config",
                        help="config file (default: configs/gpt_i23d_tiny.yaml for GPT-tiny, else configs/gpt_i23d.yaml)")
    parser.add_argument("--data", type=Path, help=f"data set folder (default: a procedural set in {DEFAULT_FOLDER})")
    parser.add_argument("--toy-shapes", type=positive_int, default=2000, help="size of the procedural set (default: %(default)s)")
    parser.add_argument("--vq-ckpt", default=SHIPPED_TOKENIZER, metavar="MODEL",
                        help="the tokenizer's model directory or Hub id (default: %(default)s)")
    parser.add_argument("--global-batch-size", type=int, help="rows per optimizer step over all devices (default: the config's)")
    add_run_arguments(parser, "outputs/gpt")
    return parser.parse_intermixed_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        vqvae = checkpoint.load_tokenizer(args.vq_ckpt)
        config = read_config(args, vqvae)
        fabric = start_fabric(args.gpus, args.num_nodes, config.train.precision, shard=config.train.strategy == "fsdp")
        state = None if args.dry_run else prepare_folder(fabric, args.out, args.resume, config)
        with fabric.rank_zero_first():
            data = args.data or default_data(args.toy_shapes)
            if not given_encoder(data, config):
                TokenMaker(data, vqvae, config.image_encoder, fabric.device).run()
        begin = partial(train, fabric=fabric, data=data, vqvae=vqvae, vq_source=args.vq_ckpt, init=args.init)
        if args.dry_run:
            dry_run(begin, config, fabric)
        elif args.overfit:
            config.gpt.condition_dropout = config.train.token_noise = config.train.ema = 0.0
            metrics = begin(config, out=args.out, state=state, wandb=args.wandb, overfit=args.overfit)
            return verdict("share of the tokens it was trained on that it generates again", metrics["regenerated"], OVERFIT_BAR)
        else:
            begin(config, out=args.out, state=state, wandb=args.wandb)
    except Exception as e:
        return report(e)
    return 0


def read_config(args: argparse.Namespace, vqvae: VQVAE) -> GPTRunConfig:
    """The config file for the named size and the tokenizer given, with the overrides on top."""
    path = args.config or ("configs/gpt_i23d_tiny.yaml" if args.gpt_model == "GPT-tiny" else "configs/gpt_i23d.yaml")
    overrides = list(args.overrides)
    if args.global_batch_size is not None:
        overrides.insert(0, f"train.global_batch_size={args.global_batch_size}")
    config = configuration.load_gpt_run(path, args.gpt_model, vqvae.config, overrides)
    check_tokenizer(config, vqvae)
    return config


def given_encoder(data: Path, config: GPTRunConfig) -> GivenEmbeddings | None:
    """What stands for the image encoder where the tokens of `data` were made from given embeddings; None where they were not."""
    tokens = data / "tokens"
    if not (tokens / "stamp.json").is_file() or not read_stamp(tokens).get("encoder", "").startswith(GivenEmbeddings.prefix):
        return None
    return GivenEmbeddings(config.image_encoder, config.gpt.condition_tokens, config.gpt.condition_width)


def fill_from(i23d: I23D, init: str, fabric: Fabric) -> None:
    """The weights of a GPT to be trained further. With another image encoder, or with other embeddings, those parts that depend
    on them begin anew: the encoder, the way of its embeddings into the GPT, and the sketch."""
    mine, theirs = ((c.image_encoder, c.gpt.condition_tokens, c.gpt.condition_width)
                    for c in (i23d.config, checkpoint.read_config(init, GPTRunConfig)))
    anew = () if mine == theirs else CONDITION_PARTS
    checkpoint.load_weights(i23d, init, anew)
    if anew:
        fabric.print(f"--init {init} has another condition: encoder, condition_mlp, null_prefix and sketch begin anew")


class Trainee(torch.nn.Module):
    """What a step trains: the model, and if it has a sketch, that the sketch guesses the tokenizer's `codes` (V, K)."""

    def __init__(self, i23d: I23D, codes: torch.Tensor) -> None:
        super().__init__()
        self.i23d = i23d
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, tokens: torch.Tensor, inputs: torch.Tensor, source: torch.Tensor,
                dropped: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """NLL in nats a token of the first B rows of tokens (B + b, T) from `inputs` (B, T - 1), and the sketch's loss over all
        rows: 1 - cosine to the true codes, zero without a sketch."""
        condition, gpt, B = self.i23d.condition(source), self.i23d.gpt, len(inputs)
        hidden = gpt.hidden(inputs, Condition(condition.embeddings[:B], condition.mask[:B], condition.full), dropped)
        nll = cross_entropy(hidden, gpt.head.weight, tokens[:B])
        if gpt.sketch is None:
            return nll, nll.new_zeros(())
        guess = gpt.sketch(condition.embeddings, condition.mask)  # (B + b, T, K)
        return nll, 1 - F.cosine_similarity(guess.float(), self.codes[tokens], dim=-1).mean()

    def flops(self, rows: int, further: int) -> int:
        """Of a step over `rows` rows and `further` ones for the sketch: forward and twice that backward."""
        gpt, encoder = self.i23d.gpt, self.i23d.encoder
        pictures = 0 if encoder.frozen else (rows + further) * encoder.flops()
        return 3 * (rows * gpt.flops(gpt.config.condition_tokens, gpt.config.num_tokens) + pictures)


def check_tokenizer(config: GPTRunConfig, vqvae: VQVAE) -> None:
    """The GPT's vocabulary and grid must be the tokenizer's; records whose codes it learns."""
    for name in ("grid_size", "codebook_size"):
        mine, theirs = getattr(config.gpt, name), getattr(vqvae.config, name)
        if mine != theirs:
            raise ValueError(f"gpt.{name} is {mine}, but the tokenizer's is {theirs}: "
                             f"write gpt.{name}={theirs}, or choose another --vq-ckpt")
    config.tokenizer_fingerprint = checkpoint.fingerprint(vqvae)


def train(config: GPTRunConfig, out: Path, fabric: Fabric, data: Path, vqvae: VQVAE, vq_source: str, *,
          state: Path | None = None, init: str | None = None, wandb: str | None = None, overfit: int | None = None) -> dict:
    """Runs a training, or goes on from a saved `state`, and returns the last validation's metrics. With `overfit` it has so many
    shapes, is validated on them, and the metrics say what share of their tokens it generates ("regenerated")."""
    t = config.train
    torch.manual_seed(t.seed)  # initial weights only: everything random later has its own generator
    given = given_encoder(data, config)
    i23d = I23D(config, given)
    if init:
        fill_from(i23d, init, fabric)
    else:
        i23d.gpt.start_from_codes(vqvae.quantizer.codebook, torch.Generator().manual_seed(t.seed))
    if config.gpt.sketch_dim not in (0, vqvae.config.code_dim):
        raise ValueError(f"gpt.sketch_dim is {config.gpt.sketch_dim}, but the tokenizer's codes have {vqvae.config.code_dim} "
                         f"coordinates: write gpt.sketch_dim={vqvae.config.code_dim}, or 0 for none")
    dropout_random = torch.Generator().manual_seed(t.seed)  # the same on every process, which takes its rows of each draw
    run = Run("GPT", out, fabric, Trainee(i23d, vqvae.quantizer.codebook.clone()), config,
              generators={"dropout": dropout_random}, wandb=wandb)
    run.restore(state)

    wanted = {"tokenizer": config.tokenizer_fingerprint, "encoder": i23d.encoder.identity}
    dataset = TokenDataset(data, "train", seed=t.seed, wanted=wanted, token_noise=t.token_noise, limit=overfit)
    validation = TokenDataset(data, "train" if overfit else "val", seed=t.seed, wanted=wanted, limit=overfit)
    order = JoinedOrder(*(TrainingOrder(len(dataset), rows, seed=seed, start=run.step, stop=t.steps, rank=fabric.global_rank,
                                        world=fabric.world_size)
                          for rows, seed in ((t.global_batch_size, t.seed), (t.sketch_rows, t.seed + 1))))
    loader = training_loader(dataset, order, t.num_workers, fabric)
    held_out = validation_rows(validation, t.validation_shapes)
    shown = spread(len(validation), t.preview_shapes)
    truths = mesh_pictures(data, [validation.ids[i] for i in shown])
    local, further = t.global_batch_size // fabric.world_size, t.sketch_rows // fabric.world_size
    micro = t.micro_batch_size or local
    if further % max(1, local // micro):
        raise ValueError(f"train.sketch_rows {t.sketch_rows} do not divide over {fabric.world_size} x {local // micro} "
                         "forward passes")
    fabric.print(f"{sum(p.numel() for p in i23d.parameters()) / 1e6:.2f} M parameters, {len(dataset)} training shapes, "
                 f"{len(held_out['tokens'])} validation shapes, {t.steps - run.step} steps of {local // micro} x {micro} rows on "
                 f"{fabric.world_size} x {fabric.device}, ln V = {np.log(config.gpt.codebook_size):.3f} nats, run folder {out}")

    metrics = {}
    for batch in run.batches(loader, order, dataset.ids.__getitem__, unit="tokens", items=local * config.gpt.num_tokens,
                             flops=run.bare.flops(local, further)):
        dropped = i23d.gpt.drop_rows(t.global_batch_size, dropout_random)[fabric.global_rank * local :][:local]
        run.advance(train_step(run, batch, dropped))

        if run.due(t.validate_every):
            with run.aside():
                trainee = run.shown()
                if fabric.is_global_zero:
                    model = trainee.i23d
                    with uncompiled():
                        metrics = validate(model, held_out, fabric)
                        preview(model, vqvae, truths, [validation.row(i, 0) for i in shown], fabric,
                                out / f"preview_{run.step:07d}.png")
                    run.show(metrics, out / f"preview_{run.step:07d}.png")
                    if run.is_best(-metrics["nll"]):
                        record = run.record(metrics, len(dataset))
                        checkpoint.save_model(out / "model" / GPT_I23D, model, config, record, model_card(record, given),
                                              dtype=getattr(torch, t.weights_dtype))
                        copy_tokenizer(vq_source, out / "model" / checkpoint.TOKENIZER)
    fabric.print(f"best validation NLL {-run.best:.4f}; model in {out / 'model'}, "
                 f"generate with: python run.py --model {out / 'model'}{needs(given)}")
    if overfit:
        metrics["regenerated"] = regenerated(run.shown().i23d, vqvae, held_out, fabric)
    return metrics


def train_step(run: Run, batch: dict, dropped: torch.Tensor) -> dict[str, float]:
    """One step of the optimizers over the rows of `dropped`, some at a time, and with each part its share of the rows after
    them, which only the sketch sees; none where the loss or the gradient is not finite (`Run.move`)."""
    count = len(dropped)
    dropped = dropped.to(run.fabric.device, non_blocking=True)
    for rows in run.parts(count):
        share = (len(batch["tokens"]) - count) * (rows.stop - rows.start) // count
        start = count + rows.start // (rows.stop - rows.start) * share
        further = slice(start, start + share)
        tokens, source = (torch.cat([batch[name][rows], batch[name][further]]) for name in ("tokens", "source"))
        nll, sketch = run.model(tokens, batch["inputs"][rows], source, dropped[rows])
        run.backward(nll + run.config.train.sketch_weight * sketch, {"nll": nll, "sketch": sketch})
    return run.move()


def validation_rows(dataset: TokenDataset, count: int) -> dict[str, torch.Tensor]:
    """`count` validation shapes, each with its first view."""
    rows = [dataset.row(i, 0) for i in spread(len(dataset), count)]
    return {key: torch.stack([r[key] for r in rows]) for key in ("tokens", "source")}


def validate(model: I23D, rows: dict[str, torch.Tensor], fabric: Fabric) -> dict[str, float]:
    """NLL in nats per token under the right, a shuffled and the null condition; by plane, of the first 8 positions, and of each
    quarter of the sequence."""
    with fabric.autocast():
        nll = condition_nll(model, rows["tokens"], rows["source"], VALIDATION_BATCH)
    planes = {f"nll_{name}": float(nll["right"][:, p::NUM_PLANES].mean()) for p, name in enumerate(("xy", "xz", "yz"))}
    quarters = {f"nll_quarter{k}": float(part.mean()) for k, part in enumerate(nll["right"].tensor_split(4, dim=1), start=1)}
    return {"nll": float(nll["right"].mean()), "nll_shuffled": float(nll["shuffled"].mean()),
            "nll_null": float(nll["null"].mean()), **planes, "nll_first8": float(nll["right"][:, :8].mean()), **quarters}


def regenerated(model: I23D, vqvae: VQVAE, rows: dict[str, torch.Tensor], fabric: Fabric) -> float:
    """Share of the tokens of `rows` that are generated, the likeliest each time, from their pictures alone."""
    pipeline = Pipeline(vqvae, model, fabric.device)
    found = [pipeline.tokens(source[None], [0], SamplingConfig(temperature=0.0)).ids[0].cpu() for source in rows["source"]]
    return float((torch.stack(found) == rows["tokens"]).float().mean())


def preview(model: I23D, vqvae: VQVAE, truths: list[np.ndarray], rows: list[dict], fabric: Fabric, path: Path) -> None:
    """A picture with one row a truth: the true mesh, and what is generated from its first view."""
    pipeline = Pipeline(vqvae, model, fabric.device)
    sheet = []
    for index, (truth, row) in enumerate(zip(truths, rows, strict=True)):
        mesh = pipeline.generate(row["source"][None], seeds=[index], resolution=64)[0].mesh
        sheet.append([truth, picture(mesh)])  # an empty field is normal in the first steps
    model.train()
    if sheet:
        contact_sheet(sheet, ["truth", "generated"]).save(path)


def copy_tokenizer(source: str, target: Path) -> None:
    """The run's model directory works alone: it holds the tokenizer its GPT was trained with."""
    found = checkpoint.find_tokenizer(source)
    target.mkdir(parents=True, exist_ok=True)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS, checkpoint.README):
        if (found / name).is_file():
            shutil.copyfile(found / name, target / name)


def needs(given: GivenEmbeddings | None) -> str:
    """What a user of the model has to know whose training has not seen its image encoder."""
    return f" (needs the image encoder {given.source}, whose embeddings were given to this training)" if given else ""


def model_card(record: dict, given: GivenEmbeddings | None) -> str:
    """README.md of a trained GPT."""
    return f"""# Hybrid GPT, image to 3D

Trained by this repository: `{record['command']}` (step {record['step']}, {record['hours']:.2f} h, {record['machine']}, commit
{record['commit']}, {record['date']}). Validation NLL {record['nll']:.4f} nats a token; {record['nll_shuffled']:.4f} under another
shape's picture, {record['nll_null']:.4f} without one. Use: `python run.py --model DIR --input PICTURE`{needs(given)}.
"""


if __name__ == "__main__":
    sys.exit(main())
