"""What a step of the GPT training minimises, and which parameters each `train.stage` trains.

| train.stage      | trains                          | loss                                        |
|------------------|---------------------------------|---------------------------------------------|
| `gpt`            | everything                      | nll + code_predictor_weight * code_distance |
| `code_predictor` | encoders, network of the codes  | code_predictor_weight * code_distance       |
| `transformer`    | all but these                   | nll                                         |

"nll" is the negative log-likelihood in nats a token. "code_distance" is the one loss term of the
code predictor (gpt.code_predictor_dim; without one there is no such term): 1 - cosine between the
codes that it predicts from the condition and the true ones. A new loss term is one more entry of
`GPTObjective.forward` and of `loss_weights`.

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
from tar3d.gpt.loss import cross_entropy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.condition.base import ImageEncoder, TextEncoder
    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.conditional_gpt import ConditionalGPT
    from tar3d.config import GPTRunConfig, GPTTrainConfig

# How the names of the parameters of ConditionalGPT begin that make the predicted codes from a
# prefix, and of all that the stage "code_predictor" trains.
PREDICTED_CODES = tuple(f"gpt.{name}" for name in PREDICTOR_PARAMETERS)
CODE_PREDICTOR_STAGE = ("conditioner.", *PREDICTED_CODES)


def is_trained(name: str, stage: str) -> bool:
    """Whether a stage trains the parameter `name` of a ConditionalGPT."""
    return stage == "gpt" or name.startswith(CODE_PREDICTOR_STAGE) == (stage == "code_predictor")


def loss_weights(config: GPTTrainConfig) -> dict[str, float]:
    """The weight of each loss term."""
    return {"nll": 1.0, "code_distance": config.code_predictor_weight}


class GPTObjective(torch.nn.Module):
    """The model with the losses of its stage; freezes the parameters that the stage does not train.

    `codes` (V, K) are the tokenizer's.
    """

    codes: Tensor

    def __init__(self, model: ConditionalGPT, codes: Tensor, config: GPTTrainConfig) -> None:
        super().__init__()
        self.model, self.stage, self.weights = model, config.stage, loss_weights(config)
        self.register_buffer("codes", codes, persistent=False)
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
    ) -> dict[str, Tensor]:
        """The loss terms of the stage, scalars by name.

        "nll" is taken over the first B rows of `tokens` (B + b, T), predicted from `inputs`
        (B, T - 1), with the null prefix where `dropped` (B,); "code_distance" over all rows.
        `turns` says which of several modalities each row has (`Conditioner.forward`).
        """
        gpt, B = self.model.gpt, len(inputs)
        condition = self.model.condition(condition_inputs, len(tokens), turns)
        inputs = torch.cat([inputs, tokens[:B, -1:]], dim=1)  # whole, to be ordered, then cut
        inputs, tokens = gpt.to_model_order(inputs)[:, :-1], gpt.to_model_order(tokens)
        losses = {}
        if self.stage != "code_predictor":
            prefix = Condition(condition.embeddings[:B], condition.mask[:B], condition.full)
            hidden = gpt.hidden(inputs, prefix, dropped)
            losses["nll"] = cross_entropy(hidden, gpt.head.weight, tokens[:B])
        if gpt.code_predictor is not None and self.stage != "transformer":
            losses["code_distance"] = self.code_distance(condition, tokens)
        return losses

    def code_distance(self, condition: Condition, tokens: Tensor) -> Tensor:
        """1 - cosine between predicted and true codes, the mean over tokens (B, T) in GPT order."""
        predictor = self.model.gpt.code_predictor
        assert predictor is not None
        predicted = predictor(condition.embeddings, condition.mask)  # (B, T, K)
        return 1 - F.cosine_similarity(predicted, self.codes[tokens], dim=-1).mean()

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the loss terms, of which the gradient is taken."""
        terms = [self.weights[name] * loss for name, loss in losses.items()]
        return sum(terms[1:], terms[0])

    def flops(self, rows: int, predictor_rows: int) -> int:
        """Operations of a step on one device: forward, and twice that backward."""
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
        told = encoders + (rows + predictor_rows) * predictor
        return {
            "code_predictor": 3 * told,
            "transformer": told + 3 * layers,
            "gpt": 3 * (told + layers),
        }[self.stage]


def draw_dropped_rows(model: ConditionalGPT, rows: int, generator: torch.Generator) -> Tensor:
    """(B,) bool, True for rows that train the null prefix; all rows of a GPT without conditions."""
    dropped = model.gpt.drop_rows(rows, generator)
    return dropped if model.conditioner.modalities else torch.ones_like(dropped)


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


def inputs_of_pass(
    batch: dict, rows: slice, count: int, rank: int
) -> tuple[Tensor, Tensor, ConditionInputs, list[int]]:
    """The tokens, inputs, condition inputs and turns of one forward pass of process `rank`.

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
    return both(batch["tokens"]), batch["inputs"][rows], condition_inputs, turns
