"""Conditions of several modalities -> the prefix of the GPT.

Condition inputs hold a tensor for each modality: {"image": (B, S, S, 3) uint8 pixels} or
{"text": (B, L) token ids}, as the encoders take them, or in their place the embeddings that a
frozen encoder made of them, (B, P, E), zero where a caption has ended. Without any, the GPT
generates unconditionally.

Letters: B batch, K modalities in the inputs, P prefix length, E width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.condition.base import ImageEncoder, TextEncoder
from tar3d.condition.given import GivenEmbeddings
from tar3d.condition.image_encoders import build_image_encoder
from tar3d.condition.text_encoders import build_text_encoder
from tar3d.contracts import Condition

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from tar3d.config import GPTRunConfig

Encoder = ImageEncoder | TextEncoder | GivenEmbeddings
ConditionInputs = dict[str, Tensor]


def build_encoder(
    config: GPTRunConfig, modality: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> Encoder:
    """The encoder that a config names for a modality; `tokenizer` as for `build_text_encoder`."""
    if modality == "image":
        return build_image_encoder(config.image_encoder)
    return build_text_encoder(config.text_encoder, tokenizer)


def rows_of(inputs: ConditionInputs, rows: slice) -> ConditionInputs:
    """The same inputs for some of the rows."""
    return {modality: values[rows] for modality, values in inputs.items()}


class Conditioner(nn.Module):
    """One encoder for each modality, and the map of their embeddings to one width.

    A frozen encoder is not among the weights: its name in the config is. Of several encoders, those
    of another width than `width` get a linear map to it.

    Raises ValueError when the embeddings do not fit a prefix of `num_tokens` x `width`.
    """

    def __init__(self, encoders: dict[str, Encoder], num_tokens: int, width: int) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(
            {modality: encoder for modality, encoder in encoders.items() if not encoder.frozen}
        )
        # In a plain dict: neither weights nor optimizers see it.
        self._frozen = {
            modality: encoder for modality, encoder in encoders.items() if encoder.frozen
        }
        self.modalities = tuple(encoders)
        self.project = nn.ModuleDict()
        if len(encoders) > 1:
            self.project.update(
                {
                    modality: nn.Linear(encoder.width, width, bias=False)
                    for modality, encoder in encoders.items()
                    if encoder.width != width
                }
            )
        self._check_prefix(encoders, num_tokens, width)

    def _check_prefix(self, encoders: dict[str, Encoder], num_tokens: int, width: int) -> None:
        shapes = {
            modality: (encoder.num_tokens, width if modality in self.project else encoder.width)
            for modality, encoder in encoders.items()
        }
        longest = max((tokens for tokens, _ in shapes.values()), default=num_tokens)
        if longest != num_tokens or any(found != width for _, found in shapes.values()):
            outputs = " and ".join(
                f"the {modality} encoder gives {tokens} x {found} embeddings"
                for modality, (tokens, found) in shapes.items()
            )
            raise ValueError(
                f"{outputs}, but gpt.condition_tokens x gpt.condition_width is "
                f"{num_tokens} x {width}: write gpt.condition_tokens={longest} "
                f"gpt.condition_width={max(found for _, found in shapes.values())}"
            )

    def encoder(self, modality: str) -> Encoder:
        """The encoder of a modality. Raises ValueError for one that this model was not made for."""
        if modality not in self.modalities:
            raise ValueError(
                f"this GPT was not trained on the condition {modality!r}, but on "
                f"{' or '.join(self.modalities) or 'none at all'}: choose another --gpt-type or "
                "another model"
            )
        if modality in self._frozen:
            return self._frozen[modality]
        return cast("Encoder", self.trained[modality])

    def forward(self, inputs: ConditionInputs, turns: Sequence[int] | None = None) -> Condition:
        """The prefixes of B rows.

        With several modalities, row b is conditioned on the (turns[b] mod K)-th: each gets its
        share of a batch. By default turns[b] is b; the rows of a part of a batch have the numbers
        that they have in the whole.
        """
        if len(inputs) == 1:
            return self._encode(*next(iter(inputs.items())))
        device, count = next((v.device, len(v)) for v in inputs.values())
        turn = torch.tensor(range(count) if turns is None else turns) % len(inputs)
        by_modality = [(turn == k).nonzero()[:, 0] for k in range(len(inputs))]
        # Sent without waiting for the device.
        *rows, order = (
            index.to(device, non_blocking=True)
            for index in (*by_modality, torch.cat(by_modality).argsort())
        )
        parts = [
            self._encode(modality, values[taken])
            for (modality, values), taken in zip(inputs.items(), rows, strict=True)
        ]
        longest = max(part.mask.shape[1] for part in parts)
        padding = [longest - part.mask.shape[1] for part in parts]
        embeddings = torch.cat(
            [
                F.pad(part.embeddings.float(), (0, 0, 0, p))
                for part, p in zip(parts, padding, strict=True)
            ]
        )
        mask = torch.cat([F.pad(part.mask, (0, p)) for part, p in zip(parts, padding, strict=True)])
        return Condition(
            embeddings[order], mask[order], all(part.full for part in parts) and not any(padding)
        )

    def _encode(self, modality: str, values: Tensor) -> Condition:
        """The prefixes of one modality, from what its encoder takes or from its embeddings."""
        encoder = self.encoder(modality)
        if not values.is_floating_point():
            part = encoder.to(values.device)(values)
        elif modality == "image":
            part = Condition.of(values.float())
        else:
            part = Condition(values.float(), (values != 0).any(-1))
        if modality not in self.project:
            return part
        return Condition(self.project[modality](part.embeddings), part.mask, part.full)
