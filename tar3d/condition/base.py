"""The interfaces of the image encoders and the text encoders of the GPT.

Encoders of your own import them from here, because the files with the tables (`IMAGE_ENCODERS` in
`tar3d.condition.image_encoders`, `TEXT_ENCODERS` in `tar3d.condition.text_encoders`) import them.

Letters: B batch, S image side, P prefix length, L tokens of the longest caption, E width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tar3d.condition.text_tokenizer import PADDING, TextTokenizer
from tar3d.contracts import Condition


class ImageEncoder(nn.Module):
    """(B, S, S, 3) uint8 -> `Condition` of P = `num_tokens` embeddings of E = `width`, all valid.

    A subclass sets the attributes below and implements `embed`, and `flops` if it is trained. The
    weights of a `frozen` one are not saved with the GPT, and its embeddings are cached. `identity`
    stamps the cache: the embeddings of a frozen encoder; of one that changes while it trains the
    preprocessed pixels, which are the same whatever its patches and layers are.
    """

    num_tokens: int
    width: int
    image_size: int
    frozen: bool
    identity: str
    weights = ""  # hash of the weights of a frozen encoder

    def forward(self, pixels: Tensor) -> Condition:
        size = self.image_size
        if (
            pixels.ndim != 4
            or tuple(pixels.shape[1:]) != (size, size, 3)
            or pixels.dtype != torch.uint8
        ):
            raise ValueError(
                f"the image encoder takes (B, {size}, {size}, 3) uint8 pixels as "
                "tar3d.condition.image.preprocess gives them, got "
                f"{tuple(pixels.shape)} {pixels.dtype}"
            )
        return Condition.of(self.embed(pixels))

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, S, S, 3) uint8 -> (B, P, E)."""
        raise NotImplementedError

    def flops(self) -> int:
        """FLOPs of `embed` for one image, a multiply-add counted as two.

        Asked of an encoder that is trained, never of a frozen one.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is trained, and a training reports its speed in FLOPs: give it "
            "a method flops(), which returns those of one image"
        )


class TextEncoder(nn.Module):
    """(B, L) token ids -> `Condition` of L embeddings of E = `width`, valid where a token is.

    A subclass sets the attributes below and implements `embed`, and `flops` if it is trained. The
    weights of a `frozen` one are not saved with the GPT, and its embeddings are cached. `identity`
    stamps the cache: the ids of a trained encoder, the embeddings of a frozen one. With
    `trains_tokenizer` it is given a tokenizer that was trained on the captions of the data set,
    which is saved with the GPT.
    """

    text_tokenizer: TextTokenizer
    width: int
    frozen: bool
    identity: str
    weights = ""  # hash of the weights of a frozen encoder
    trains_tokenizer = False

    @property
    def num_tokens(self) -> int:
        """The most tokens that a caption may have."""
        return self.text_tokenizer.max_tokens

    def forward(self, ids: Tensor) -> Condition:
        if ids.ndim != 2 or ids.is_floating_point():
            raise ValueError(
                "the text encoder takes (B, L) token ids as TextTokenizer.prepare gives them, got "
                f"{tuple(ids.shape)} {ids.dtype}"
            )
        mask = ids != PADDING
        return Condition(self.embed(ids.clamp_min(0).long(), mask), mask)

    def embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L) int64 and (B, L) bool -> (B, L, E); arbitrary where the mask is False."""
        raise NotImplementedError

    def flops(self) -> int:
        """FLOPs of `embed` for one caption of the greatest length, a multiply-add counted as two.

        Asked of an encoder that is trained, never of a frozen one.
        """
        raise NotImplementedError(
            f"{type(self).__name__} is trained, and a training reports its speed in FLOPs: give it "
            "a method flops(), which returns those of one caption of the greatest length"
        )
