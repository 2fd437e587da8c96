"""What a GPT is told of a shape -> its prefix.

A source holds what is told, by kind: {"image": (B, S, S, 3) uint8 pixels} or {"text": (B, L) token
ids}, as the encoders take them, or in their place the embeddings that a frozen encoder made of
them, (B, P, E), zero where a caption has ended. With nothing in it, the GPT generates what it
likes.

Letters: B batch, K kinds given, P prefix length, E width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tar3d.condition.encoders import GivenEmbeddings, ImageEncoder, build_image_encoder
from tar3d.condition.text import TextEncoder, build_text_encoder
from tar3d.contracts import Condition

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tar3d.config import GPTRunConfig

Encoder = ImageEncoder | TextEncoder | GivenEmbeddings
Source = dict[str, Tensor]


def build_encoder(
    config: GPTRunConfig, kind: str, words: PreTrainedTokenizerBase | None = None
) -> Encoder:
    """The encoder that a config names for one of its conditions; `words` as for
    `build_text_encoder`."""
    return (
        build_image_encoder(config.image_encoder)
        if kind == "image"
        else build_text_encoder(config.text_encoder, words)
    )


def rows_of(source: Source, rows: slice) -> Source:
    return {kind: shown[rows] for kind, shown in source.items()}


class Conditioner(nn.Module):
    """One encoder for each kind. A frozen one is not among the weights: its name in the config is.
    Of several, those of another width get a linear map to `width`.

    Raises ValueError when what they give does not fit a prefix of `num_tokens` x `width`.
    """

    def __init__(self, encoders: dict[str, Encoder], num_tokens: int, width: int) -> None:
        super().__init__()
        self.trained = nn.ModuleDict(
            {kind: encoder for kind, encoder in encoders.items() if not encoder.frozen}
        )
        # In a plain dict: neither weights nor optimizers see it.
        self._frozen = {kind: encoder for kind, encoder in encoders.items() if encoder.frozen}
        self.kinds = tuple(encoders)
        self.project = nn.ModuleDict()
        if len(encoders) > 1:
            self.project.update(
                {
                    kind: nn.Linear(encoder.width, width, bias=False)
                    for kind, encoder in encoders.items()
                    if encoder.width != width
                }
            )
        given = {
            kind: (encoder.num_tokens, width if kind in self.project else encoder.width)
            for kind, encoder in encoders.items()
        }
        longest = max((tokens for tokens, _ in given.values()), default=num_tokens)
        if longest != num_tokens or any(found != width for _, found in given.values()):
            said = " and ".join(
                f"the {kind} encoder gives {tokens} x {found} embeddings"
                for kind, (tokens, found) in given.items()
            )
            raise ValueError(
                f"{said}, but gpt.condition_tokens x gpt.condition_width is {num_tokens} x {width}: write "
                f"gpt.condition_tokens={longest} gpt.condition_width={max(found for _, found in given.values())}"
            )

    def encoder(self, kind: str) -> Encoder:
        """Raises ValueError for a kind that this model was not made for."""
        if kind not in self.kinds:
            raise ValueError(
                f"this GPT was not trained on the condition {kind!r}, but on "
                f"{' or '.join(self.kinds) or 'none at all'}: choose another --gpt-type or another model"
            )
        return self._frozen[kind] if kind in self._frozen else self.trained[kind]

    def forward(self, source: Source) -> Condition:
        """The prefixes of B rows. Of several kinds, row b is told the (b mod K)-th: each gets its
        share of a batch."""
        parts = [
            self._part(kind, shown[k :: len(source)])
            for k, (kind, shown) in enumerate(source.items())
        ]
        if len(parts) == 1:
            return parts[0]
        longest = max(part.mask.shape[1] for part in parts)
        padding = [longest - part.mask.shape[1] for part in parts]
        embeddings = torch.cat(
            [
                F.pad(part.embeddings.float(), (0, 0, 0, p))
                for part, p in zip(parts, padding, strict=True)
            ]
        )
        mask = torch.cat([F.pad(part.mask, (0, p)) for part, p in zip(parts, padding, strict=True)])
        rows = torch.arange(len(mask), device=mask.device)
        order = torch.cat([rows[k :: len(parts)] for k in range(len(parts))]).argsort()
        return Condition(
            embeddings[order], mask[order], all(part.full for part in parts) and not any(padding)
        )

    def _part(self, kind: str, shown: Tensor) -> Condition:
        encoder = self.encoder(kind)
        if shown.is_floating_point():
            part = (
                Condition.of(shown.float())
                if kind == "image"
                else Condition(shown.float(), (shown != 0).any(-1))
            )
        else:
            part = encoder.to(shown.device)(shown)
        return (
            Condition(self.project[kind](part.embeddings), part.mask, part.full)
            if kind in self.project
            else part
        )
