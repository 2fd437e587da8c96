"""The stand-in for a frozen encoder whose embeddings are given instead of computed here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from tar3d.config import ImageEncoderConfig, TextEncoderConfig

if TYPE_CHECKING:
    from tar3d.contracts import Condition


class GivenEmbeddings(nn.Module):
    """Stands for the frozen encoder that `config.model` names, whose weights are then not needed.

    Its embeddings, `num_tokens` x `width` or fewer, come with the data set. How they were made is
    not known; the identity says as much.

    Raises ValueError when the config names no frozen encoder.
    """

    prefix = "embeddings given: "  # begins the identity
    weights = ""  # not known

    def __init__(
        self, config: ImageEncoderConfig | TextEncoderConfig, num_tokens: int, width: int
    ) -> None:
        super().__init__()
        field = "image_encoder" if isinstance(config, ImageEncoderConfig) else "text_encoder"
        if config.model == "trained":
            raise ValueError(
                "embeddings that are given are those of a frozen encoder, but "
                f"{field}.model is 'trained': name the encoder that made them, as in "
                f"{field}.model={type(config)().model}"
            )
        self.num_tokens, self.width, self.frozen = num_tokens, width, True
        self.source = config.model
        self.identity = f"{self.prefix}{config.model}, {num_tokens} x {width}"

    def forward(self, inputs: Tensor) -> Condition:
        raise ValueError(
            f"the embeddings of {self.source} were given, so that it was not loaded: it cannot "
            f"encode inputs of shape {tuple(inputs.shape)}"
        )
