"""What a step of the GPT training minimises, and which parameters each `train.stage` trains.

| train.stage      | trains                          | loss terms                    |
|------------------|---------------------------------|-------------------------------|
| `gpt`            | everything                      | nll, code_distance, occupancy |
| `code_predictor` | encoders, network of the codes  | code_distance, occupancy      |
| `transformer`    | all but these                   | nll                           |

"nll" is the negative log-likelihood in nats a token. With `train.target_codes` above 1,
"soft_nll", the cross-entropy with soft targets, is minimised in its place, and "nll" is still that
of the tokens, reported alone, so that figures compare. "code_distance"
(train.code_predictor_weight) is 1 - cosine between the codes that the code predictor
(gpt.code_predictor_dim; without one there is no such term) predicts from the condition and the true
ones. "occupancy" (train.occupancy_weight) compares what the two decode to
(`tar3d.training.occupancy_loss`). A new loss term is one more entry of `GPTObjective.forward` and
of `loss_weights`.

Letters: B rows, b more rows for the code predictor, T tokens, V codes, K their coordinates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tar3d.config.checks import nearest
from tar3d.contracts import Condition
from tar3d.gpt.code_predictor import PREDICTOR_PARAMETERS
from tar3d.gpt.loss import cross_entropy, soft_cross_entropy
from tar3d.gpt.soft_targets import nearest_codes, sample_tokens, soft_targets
from tar3d.training.occupancy_loss import OccupancyLoss

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.condition.base import ImageEncoder, TextEncoder
    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.conditional_gpt import ConditionalGPT
    from tar3d.config import GPTRunConfig, GPTTrainConfig
    from tar3d.tokenizer.vqvae import VQVAE

# How the names of the parameters of ConditionalGPT begin that make the predicted codes from a
# prefix, and of all that the stage "code_predictor" trains.
PREDICTED_CODES = tuple(f"gpt.{name}" for name in PREDICTOR_PARAMETERS)
CODE_PREDICTOR_STAGE = ("conditioner.", *PREDICTED_CODES)


def is_trained(name: str, stage: str) -> bool:
    """Whether a stage trains the parameter `name` of a ConditionalGPT."""
    return stage == "gpt" or name.startswith(CODE_PREDICTOR_STAGE) == (stage == "code_predictor")


def loss_weights(config: GPTTrainConfig) -> dict[str, float]:
    """The weight of each loss term."""
    return {
        "nll": 1.0 if config.target_codes == 1 else 0.0,
        "soft_nll": 1.0,
        "code_distance": config.code_predictor_weight,
        "occupancy": config.occupancy_weight,
    }


class GPTObjective(torch.nn.Module):
    """The model with the losses of its stage; freezes the parameters that the stage does not train.

    `codes` (V, K) are the tokenizer's; without an `occupancy_loss` there is no such term.
    """

    codes: Tensor
    candidates: Tensor | None  # (V, C), of soft targets

    def __init__(
        self,
        model: ConditionalGPT,
        codes: Tensor,
        config: GPTTrainConfig,
        occupancy_loss: OccupancyLoss | None = None,
    ) -> None:
        super().__init__()
        self.model, self.stage, self.weights = model, config.stage, loss_weights(config)
        self.temperature = config.target_temperature
        self.samples_itself = config.token_noise > 0 and config.token_noise_kind == "own"
        candidates = nearest_codes(codes, config.target_codes) if config.target_codes > 1 else None
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("candidates", candidates, persistent=False)
        self.occupancy_loss, self.occupancy_every = occupancy_loss, config.occupancy_every
        for name, parameter in model.named_parameters():
            if not is_trained(name, self.stage):
                parameter.requires_grad_(False)

    def forward(
        self,
        tokens: Tensor,
        inputs: Tensor,
        condition_inputs: ConditionInputs,
        dropped: Tensor,
        turns: Sequence[int] | None = None,
        shift: Tensor | None = None,
        *,
        latents: Tensor | None = None,
        draws: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The loss terms of the stage, scalars by name.

        "nll" is taken over the first B rows of `tokens` (B + b, T), predicted from `inputs`
        (B, T - 1), with the null prefix where `dropped` (B,); "code_distance" over all rows,
        "occupancy" over one in `train.occupancy_every` of each modality, at points that `shift`
        (3,) moves. `turns` are the rows' numbers in the step, which say which of several
        modalities each has (`Conditioner.forward`). `latents` (B, T, K) are those of soft
        targets, `draws` (B, T - 1) as `TokenNoise` makes them.
        """
        gpt, B = self.model.gpt, len(inputs)
        condition = self.model.condition(condition_inputs, len(tokens), turns)
        inputs = torch.cat([inputs, tokens[:B, -1:]], dim=1)  # whole, to be ordered, then cut
        inputs, tokens = gpt.to_model_order(inputs)[:, :-1], gpt.to_model_order(tokens)
        losses: dict[str, Tensor] = {}
        if self.stage != "code_predictor":
            prefix = Condition(condition.embeddings[:B], condition.mask[:B], condition.full)
            dropped = dropped.to(tokens.device, non_blocking=True)
            if draws is not None and self.samples_itself:
                inputs = self._with_samples(inputs, draws, prefix, dropped)
            losses |= self._layer_losses(gpt.hidden(inputs, prefix, dropped), tokens[:B], latents)
        if gpt.code_predictor is not None and self.stage != "transformer":
            predicted = gpt.code_predictor(condition.embeddings, condition.mask)  # (B + b, T, K)
            losses["code_distance"] = self.code_distance(predicted, tokens)
            if self.occupancy_loss is not None:
                losses["occupancy"] = self.occupancy(predicted, tokens, turns, shift)
        return losses

    def _layer_losses(
        self, hidden: Tensor, tokens: Tensor, latents: Tensor | None
    ) -> dict[str, Tensor]:
        """The loss terms of hidden states (B, T, D) and tokens (B, T), both in GPT order."""
        gpt = self.model.gpt
        if self.candidates is None:
            return {"nll": cross_entropy(hidden, gpt.head.weight, tokens)}
        assert latents is not None
        latents = gpt.to_model_order(latents)
        targets = soft_targets(tokens, latents, self.codes, self.candidates, self.temperature)
        soft_nll, nll = soft_cross_entropy(hidden, gpt.head.weight, targets)
        return {"soft_nll": soft_nll, "nll": nll}

    @torch.no_grad()
    def _with_samples(
        self, inputs: Tensor, draws: Tensor, prefix: Condition, dropped: Tensor
    ) -> Tensor:
        """`inputs` (B, T - 1) in GPT order, replaced by samples of the GPT where `draws` say so.

        Each is drawn from what the GPT predicts at its place after the true tokens (scheduled
        sampling in parallel, arXiv 1906.04331).
        """
        gpt = self.model.gpt
        draws = gpt.to_model_order(F.pad(draws, (0, 1), value=-1.0))[:, :-1]
        kind = inputs.device.type
        # Autocast would keep the weights that it casts here, and their gradient would be lost.
        with torch.autocast(
            kind,
            torch.get_autocast_dtype(kind),
            enabled=torch.is_autocast_enabled(kind),
            cache_enabled=False,
        ):
            hidden = gpt.hidden(inputs, prefix, dropped)[:, :-1]
            samples = sample_tokens(hidden, gpt.head.weight, draws)
        return torch.where(draws < 0, inputs, samples)

    def code_distance(self, predicted: Tensor, tokens: Tensor) -> Tensor:
        """1 - cosine of predicted codes (B, T, K) and those of tokens (B, T), both in GPT order."""
        return 1 - F.cosine_similarity(predicted, self.codes[tokens], dim=-1).mean()

    def occupancy(
        self,
        predicted: Tensor,
        tokens: Tensor,
        turns: Sequence[int] | None,
        shift: Tensor | None,
    ) -> Tensor:
        """The mean of `OccupancyLoss` over the rows that it is taken of, a scalar.

        The number in the step decides which these are, so that every split of a step into passes
        has the same ones; a pass without any has a loss of 0.
        """
        assert self.occupancy_loss is not None
        modalities = max(1, len(self.model.conditioner.modalities))
        numbers = range(len(tokens)) if turns is None else turns
        chosen = [
            row
            for row, number in enumerate(numbers)
            if number // modalities % self.occupancy_every == 0
        ]
        if not chosen:
            return predicted.new_zeros(())
        to_raster = self.model.gpt.to_raster_order
        shift = torch.zeros(3) if shift is None else shift
        by_row = self.occupancy_loss(
            to_raster(predicted[chosen]), to_raster(self.codes[tokens[chosen]]), shift
        )
        return by_row.sum() * self.occupancy_every / len(tokens)

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the loss terms, of which the gradient is taken."""
        terms = [self.weights[name] * loss for name, loss in losses.items()]
        return sum(terms[1:], terms[0])

    def flops(self, rows: int, predictor_rows: int) -> int:
        """Operations of a step on one device: forward, and twice that backward.

        Samples of the GPT itself take the forward pass of the layers once more.
        """
        gpt, conditioner = self.model.gpt, self.model.conditioner
        encoders = sum(
            cast("ImageEncoder | TextEncoder", encoder).flops()
            for encoder in conditioner.trained.values()
        )
        # Modalities take turns in the rows, so each encoder sees its share of them.
        encoders = encoders * (rows + predictor_rows) // max(1, len(conditioner.modalities))
        prefix, predictor = gpt.config.condition_tokens, 0  # operations of the predictor for a row
        if gpt.code_predictor is not None:
            predictor = 2 * gpt.code_predictor.multiplications(prefix, 0)
        layers = rows * (gpt.flops(prefix, gpt.config.num_tokens) - predictor)
        passes = 4 if self.samples_itself else 3
        told = encoders + (rows + predictor_rows) * predictor
        fields = 0
        if self.occupancy_loss is not None:
            fields = (rows + predictor_rows) * self.occupancy_loss.flops() // self.occupancy_every
        return {
            "code_predictor": 3 * told + fields,
            "transformer": told + passes * layers,
            "gpt": 3 * told + passes * layers + fields,
        }[self.stage]


def new_objective(model: ConditionalGPT, vqvae: VQVAE, config: GPTTrainConfig) -> GPTObjective:
    """The objective of a training on the tokens of `vqvae`."""
    loss = OccupancyLoss(vqvae, config.occupancy_points) if config.occupancy_weight else None
    return GPTObjective(model, vqvae.quantizer.codebook.clone(), config, loss)


def draw_dropped_rows(model: ConditionalGPT, rows: int, generator: torch.Generator) -> Tensor:
    """(B,) bool, True for rows that train the null prefix; all rows of a GPT without conditions."""
    dropped = model.gpt.drop_rows(rows, generator)
    return dropped if model.conditioner.modalities else torch.ones_like(dropped)


def draw_shift(config: GPTTrainConfig, generator: torch.Generator) -> Tensor | None:
    """The `shift` (3,) of a step's points, None where no field is compared."""
    return torch.rand(3, generator=generator) if config.occupancy_weight else None


def rows_of_pass(config: GPTRunConfig, rows: int, predictor_rows: int) -> int:
    """Rows of one forward pass, of this process's `rows` a step.

    All passes have as many rows, each of the modalities equally often in them, and as many of the
    `predictor_rows` that only the code predictor sees: then a step is the same however it is split.
    Raises ValueError where that cannot be.
    """
    t, modalities = config.train, max(1, len(config.conditions))
    micro = t.micro_batch_size or rows
    if rows % modalities:
        least = modalities * (t.global_batch_size // rows)  # times the number of processes
        allowed = list(range(least, t.global_batch_size + 2 * least, least))
        raise ValueError(
            f"train.global_batch_size {t.global_batch_size} gives each process {rows} of its rows, "
            f"in which {modalities} conditions cannot take turns: write "
            f"train.global_batch_size={nearest(t.global_batch_size, allowed)}"
        )
    reason = ""
    if rows % micro:
        reason = f"does not divide the {rows} rows of each device"
    elif micro % modalities:
        reason = f"makes forward passes in which {modalities} conditions cannot take turns"
    elif predictor_rows % (rows // micro):
        reason = (
            f"makes {rows // micro} forward passes a step, over which the {predictor_rows} rows of "
            "train.code_predictor_rows do not divide"
        )
    if reason:
        allowed = [
            n
            for n in range(modalities, rows + 1, modalities)
            if rows % n == 0 and predictor_rows % (rows // n) == 0
        ]
        raise ValueError(
            f"train.micro_batch_size {micro} {reason}: write "
            f"train.micro_batch_size={nearest(micro, allowed)}"
        )
    return micro


def inputs_of_pass(batch: dict, rows: slice, count: int, rank: int) -> dict:
    """The arguments of `GPTObjective.forward` in one pass of process `rank`, but for `dropped`.

    They are those of `rows` among the first `count` rows of the batch, and an equal share of the
    rows after them, which only the code predictor sees. The turn of a row is its number among the
    rows of its kind in the step of all processes, so that every split of a step gives each row the
    same modality.
    """
    micro, further = rows.stop - rows.start, len(batch["tokens"]) - count
    share = further * micro // count
    start = count + rows.start // micro * share
    more = slice(start, start + share)
    turns = [rank * count + row for row in range(rows.start, rows.stop)]
    turns += [rank * further + row - count for row in range(more.start, more.stop)]

    def both(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[rows], tensor[more]])

    condition_inputs = {modality: both(tensor) for modality, tensor in batch["condition"].items()}
    layers_alone = {k: batch[k][rows] for k in ("inputs", "latents", "draws") if k in batch}
    return {
        "tokens": both(batch["tokens"]),
        "condition_inputs": condition_inputs,
        "turns": turns,
        **layers_alone,
    }
