"""The reports of a GPT training: validation metrics, previews, and the model directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import default_collate

from tar3d import checkpoint
from tar3d.condition.conditioner import rows_of
from tar3d.condition.given import GivenEmbeddings
from tar3d.conditional_gpt import TEXT_TOKENIZER, gpt_folder, gpt_type_of
from tar3d.config import SamplingConfig
from tar3d.contracts import PLANES
from tar3d.data.datasets.spread import spread
from tar3d.data.formats.views import mesh_images
from tar3d.gpt.condition_nll import condition_nll, of_others
from tar3d.layouts.triplane import NUM_PLANES, to_planes
from tar3d.mesh.render import contact_sheet, render_preview
from tar3d.pipeline import Pipeline
from tar3d.runtime import uncompiled
from tar3d.training.dry_run import VALIDATION_ROWS
from tar3d.training.gpt_objective import rows_of_pass

if TYPE_CHECKING:
    from pathlib import Path

    from lightning_fabric import Fabric

    from tar3d.condition.base import TextEncoder
    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.conditional_gpt import ConditionalGPT
    from tar3d.config import GPTRunConfig
    from tar3d.data.datasets.tokens import TokenDataset
    from tar3d.tokenizer.vqvae import VQVAE
    from tar3d.training.gpt_objective import GPTObjective
    from tar3d.training.run import Run

MAP_SIZE = 192  # pixels of a side of an NLL map
PREVIEW_RESOLUTION = 64
# The code nearest to the predicted one, whatever the layers say.
PREDICTED_CODES_ALONE = SamplingConfig(temperature=0.0, code_predictor_scale=1e6)


class GPTReports:
    """Validates a model, previews what it generates, and saves it, in the run folder `out`.

    `validation` are the shapes to validate on, with the tokens that `vqvae` made of `data`.
    """

    def __init__(
        self,
        out: Path,
        config: GPTRunConfig,
        fabric: Fabric,
        vqvae: VQVAE,
        validation: TokenDataset,
        data: Path,
    ) -> None:
        self.out, self.config, self.fabric, self.vqvae = out, config, fabric, vqvae
        t = config.train
        self.rows = validation_rows(validation, t.validation_shapes)
        # Never more at a time than the training takes: a validation then needs no more memory.
        self.batch = min(
            VALIDATION_ROWS,
            t.micro_batch_size or max(1, t.global_batch_size // fabric.world_size),
        )
        previewed = spread(len(validation), t.preview_shapes)
        self.preview_rows = [validation.row(i) for i in previewed]
        self.truths = mesh_images(data, [validation.ids[i] for i in previewed])
        self.deciding_metric = "code_distance" if t.stage == "code_predictor" else "nll"
        self.model_folder = out / "model" / gpt_folder(gpt_type_of(config.conditions))

    def validate(self, objective: GPTObjective, step: int) -> dict[str, float]:
        """The metrics of a model; `deciding_metric` chooses the best one, lower being better.

        Writes a map of the NLL too, nll_<step>.png, where the layers are trained.
        """
        with uncompiled():
            if objective.stage == "code_predictor":
                return validate_code_predictor(objective, self.rows, self.fabric, self.batch)
            metrics, by_position = validate(objective.model, self.rows, self.fabric, self.batch)
            nll_map(by_position, self.config).save(self.out / f"nll_{step:07d}.png")
            return metrics

    def preview(self, objective: GPTObjective, step: int) -> Path:
        """Writes preview_<step>.png, one row a shape: its true mesh, and what is generated.

        It generates from each condition of the shape, or from none; by the code predictor alone
        where that alone is trained. An empty field, as in the first steps, stays blank.
        """
        path = self.out / f"preview_{step:07d}.png"
        model = objective.model
        modalities = model.conditioner.modalities
        sampling = PREDICTED_CODES_ALONE if objective.stage == "code_predictor" else None
        sheet = []
        with uncompiled():
            pipeline = Pipeline(self.vqvae, model, self.fabric.device)
            for index, (truth, row) in enumerate(zip(self.truths, self.preview_rows, strict=True)):
                conditions = [{m: row["condition"][m][None]} for m in modalities] or [{}]
                shapes = [
                    pipeline.generate(c, [index], resolution=PREVIEW_RESOLUTION, sampling=sampling)
                    for c in conditions
                ]
                sheet.append([truth, *(render_preview(shape[0].mesh) for shape in shapes)])
            model.train()
        if sheet:
            titles = ["truth", *(f"from its {m}" for m in modalities)]
            contact_sheet(sheet, titles if modalities else ["another", "generated"]).save(path)
        return path

    def save_model(self, model: ConditionalGPT, record: dict, tokenizer: str | Path) -> None:
        """Writes the model directory, and beside it a copy of the tokenizer's.

        A text encoder that is trained along has its text tokenizer there too.
        """
        t = self.config.train
        checkpoint.save_model(
            self.model_folder,
            model,
            self.config,
            record,
            model_card(record, gpt_type_of(self.config.conditions), needed_encoders(model)),
            dtype=getattr(torch, t.weights_dtype),
            largest_file=t.weights_file_mb * 10**6,
        )
        if "text" in model.conditioner.trained:
            encoder = cast("TextEncoder", model.conditioner.encoder("text"))
            encoder.text_tokenizer.tokenizer.save_pretrained(self.model_folder / TEXT_TOKENIZER)
        checkpoint.copy_model(
            checkpoint.find_tokenizer(tokenizer), self.out / "model" / checkpoint.TOKENIZER
        )

    def regenerated_share(self, model: ConditionalGPT) -> float:
        """Share of the validation tokens that greedy sampling generates from the conditions."""
        pipeline = Pipeline(self.vqvae, model, self.fabric.device)
        greedy, tokens = SamplingConfig(temperature=0.0), self.rows["tokens"]
        generated = [
            pipeline.tokens(rows_of(self.rows["condition"], slice(i, i + 1)), [0], greedy)
            .ids[0]
            .cpu()
            for i in range(len(tokens))
        ]
        return float((torch.stack(generated) == tokens).float().mean())


def validation_rows(dataset: TokenDataset, count: int) -> dict:
    """A batch of `count` validation shapes, each with its first view and caption."""
    return default_collate([dataset.row(i) for i in spread(len(dataset), count)])


def validate(
    model: ConditionalGPT, rows: dict, fabric: Fabric, batch: int
) -> tuple[dict[str, float], torch.Tensor]:
    """NLL in nats a token under the right, a shuffled and the null condition, and by position.

    "nll" and what it is split into (by plane, of the first 8 positions, by quarter of the sequence)
    is under the right condition. With several modalities "nll" and "nll_shuffled" are means over
    them, and each has its own. With a single row there is no "nll_shuffled". `batch` rows go
    through the model together. The second result is the NLL of every position (T,).
    """
    modalities = model.conditioner.modalities
    with fabric.autocast():
        by_modality = {
            m: condition_nll(model, rows["tokens"], {m: rows["condition"][m]}, batch)
            for m in modalities
        } or {"": condition_nll(model, rows["tokens"], {}, batch)}
    right = torch.stack([nll.get("right", nll["null"]) for nll in by_modality.values()]).mean(
        0
    )  # (N, T)
    metrics = {"nll": float(right.mean())}
    has_others = len(right) > 1
    if modalities:
        if has_others:
            shuffled = torch.stack([nll["shuffled"] for nll in by_modality.values()])
            metrics["nll_shuffled"] = float(shuffled.mean())
        metrics["nll_null"] = float(next(iter(by_modality.values()))["null"].mean())
    if len(by_modality) > 1:
        for m, nll in by_modality.items():
            metrics[f"nll_{m}"] = float(nll["right"].mean())
            if has_others:
                metrics[f"nll_{m}_shuffled"] = float(nll["shuffled"].mean())
    for index, plane in enumerate(PLANES):
        metrics[f"nll_{plane}"] = float(right[:, index::NUM_PLANES].mean())
    metrics["nll_first8"] = float(right[:, :8].mean())
    for index, quarter in enumerate(right.tensor_split(4, dim=1), start=1):
        metrics[f"nll_quarter{index}"] = float(quarter.mean())
    return metrics, right.mean(0)


@torch.no_grad()
def validate_code_predictor(
    objective: GPTObjective, rows: dict, fabric: Fabric, batch: int
) -> dict[str, float]:
    """The distance of the predicted codes to the true ones, 1 - cosine.

    "shuffled" is that from another shape's condition; a single row has none. Both are means over
    the modalities; where there are several, each has its own too. `batch` rows go through the model
    together.
    """
    model = objective.model.eval()
    predictor = model.gpt.code_predictor
    assert predictor is not None
    count, right, shuffled = len(rows["tokens"]), {}, []
    tokens = model.gpt.to_model_order(rows["tokens"].to(fabric.device))

    def distance(inputs: ConditionInputs) -> float:
        total = 0.0
        for start in range(0, count, batch):
            part = slice(start, start + batch)
            own = {m: values[part].to(fabric.device) for m, values in inputs.items()}
            condition = model.condition(own, len(tokens[part]))
            predicted = predictor(condition.embeddings, condition.mask)
            total += float(objective.code_distance(predicted, tokens[part])) * len(tokens[part])
        return total / count

    with fabric.autocast():
        for m in model.conditioner.modalities:
            own = {m: rows["condition"][m]}
            right[m] = distance(own)
            if count > 1:
                shuffled.append(distance(of_others(own)))
    model.train()
    metrics = {"code_distance": float(np.mean(list(right.values())))}
    if shuffled:
        metrics["code_distance_shuffled"] = float(np.mean(shuffled))
    if len(right) > 1:
        metrics |= {f"code_distance_{m}": value for m, value in right.items()}
    return metrics


def nll_map(by_position: torch.Tensor, config: GPTRunConfig) -> Image.Image:
    """The NLL of every position (T,) as an image of each plane.

    White is 0, black that of a random guess (ln V).
    """
    planes = to_planes(by_position[None], config.gpt.grid_size)[0]
    shade = (255 * (1 - planes / np.log(config.gpt.codebook_size)).clamp(0, 1)).byte().numpy()
    size = (MAP_SIZE, MAP_SIZE)
    maps = [
        np.asarray(Image.fromarray(plane).convert("RGB").resize(size, Image.Resampling.NEAREST))
        for plane in shade
    ]
    titles = [
        f"{name}: NLL {float(plane.mean()):.3f} nats"
        for name, plane in zip(PLANES, planes, strict=True)
    ]
    return contact_sheet([maps], titles)


def needed_encoders(model: ConditionalGPT) -> str:
    """What a user must know of a model that was trained on embeddings given to it, or ""."""
    encoders = [model.conditioner.encoder(m) for m in model.conditioner.modalities]
    names = " and ".join(e.source for e in encoders if isinstance(e, GivenEmbeddings))
    return f" (needs {names}, whose embeddings were given to this training)" if names else ""


TASKS = {
    "i23d": "image to 3D",
    "t23d": "text to 3D",
    "uncond": "3D from nothing",
    "any": "image or text to 3D, or from nothing",
}
INPUT_FLAGS = {"i23d": " --input PICTURE", "t23d": ' --prompt "TEXT"', "uncond": " --num-samples 8"}


def model_card(record: dict, gpt_type: str, needed: str) -> str:
    """README.md of a trained GPT."""
    made = (
        f"Trained by this repository: `{record['command']}` (step {record['step']}, "
        f"{record['hours']:.2f} h, {record['machine']}, commit\n"
        f"{record['commit']}, {record['date']})."
    )
    if "nll" not in record:
        other = record.get("code_distance_shuffled")
        distance = f"{record['code_distance']:.4f}"
        if other is not None:
            distance += f"; from\nanother shape's condition {other:.4f}"
        return f"""# The code predictor of a GPT, {TASKS[gpt_type]}

{made} The GPT itself is not trained: go on with `python train_gpt.py --init-code-predictor DIR`.
Distance of the predicted codes to the true ones, 1 - cosine: {distance}.
"""
    others = {
        "nll_shuffled": "under another\nshape's condition",
        "nll_null": "without a condition",
    }
    figures = [f"{record[name]:.4f} {text}" for name, text in others.items() if name in record]
    compared = f"; {', '.join(figures)}" if figures else ""
    use = "t23d" if gpt_type == "any" else gpt_type
    return f"""# Hybrid GPT, {TASKS[gpt_type]}

{made} Validation NLL {record["nll"]:.4f} nats a token{compared}.
Use: `python run.py --gpt-type {use} --model DIR{INPUT_FLAGS[use]}`{needed}.
"""


def print_start(
    run: Run[GPTObjective], sets: list[TokenDataset], reports: GPTReports, rows: int, predictor: int
) -> None:
    """Prints sizes; a step has `rows` on each device, and `predictor` rows for the codes alone.

    `sets` are the shapes to train and to validate on.
    """
    fabric, config = run.fabric, reports.config
    micro = rows_of_pass(config, rows, predictor)
    parameters = sum(p.numel() for p in run.module.model.parameters())
    for left_out in filter(None, (part.left_out for part in sets)):
        fabric.print(left_out)
    fabric.print(
        f"{parameters / 1e6:.2f} M parameters, {len(sets[0])} training shapes, "
        f"{len(reports.rows['tokens'])} validation shapes, {config.train.steps - run.step} steps "
        f"of {rows // micro} x {micro} rows on {fabric.world_size} x {fabric.device}, "
        f"ln V = {np.log(config.gpt.codebook_size):.3f} nats"
    )


def print_end(run: Run[GPTObjective], reports: GPTReports, dry: bool) -> None:
    """Prints the result, and the command that uses it; nothing after a dry run."""
    if dry:
        return
    model = run.folder / "model"
    run.fabric.print(
        f"best validation distance {-run.best:.4f}; go on with: --init-code-predictor "
        f"{reports.model_folder}"
        if run.module.stage == "code_predictor"
        else f"best validation NLL {-run.best:.4f}; model in {model}, generate with: "
        f"python run.py --model {model}{needed_encoders(run.module.model)}"
    )
