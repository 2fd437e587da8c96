"""Pixels -> `Condition`: the image encoders of the GPT behind one interface.

    TrainedViT         a small vision transformer that is trained along with the GPT
    FrozenTransformer  a pretrained one (DINO, DINOv2, ViT, CLIP, ...), never trained

Both take the uint8 pixels of `tar3d.condition.image.preprocess` and normalise them inside, so that
no caller can do it differently. Needs no torchvision.

An encoder of your own is one file with a subclass of `tar3d.condition.base.ImageEncoder`, and one
line in `IMAGE_ENCODERS`; `image_encoder.model` then chooses it by name.

Letters: B batch, S image side, P prefix length, E width, H heads.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from tar3d.condition.base import ImageEncoder
from tar3d.condition.pretrained import load_pretrained, resolve, weights_hash
from tar3d.condition.transformer import ViTBlock, init_transformer, transformer_flops

if TYPE_CHECKING:
    from collections.abc import Callable

    from tar3d.config import ImageEncoderConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class TrainedViT(ImageEncoder):
    """A pre-norm ViT (arXiv 2010.11929) without a class token.

    P = (S / patch_size)^2, row by row; E = `config.width`.
    """

    # It embeds pixels: like any embedding, it is no hidden matrix for Muon.
    adamw_parameters = ("patch_embedding",)

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        size, patch, width = config.image_size, config.patch_size, config.width
        self.num_tokens, self.width = (size // patch) ** 2, width
        self.image_size, self.frozen = size, False
        self.identity = f"trained ViT, {size} px, {describe_preprocessing(config)}"
        self.patch_size = patch
        self.patch_embedding = nn.Linear(3 * patch * patch, width, bias=False)
        self.position_embedding = nn.Embedding(self.num_tokens, width)
        self.blocks = nn.ModuleList(
            ViTBlock(width, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        init_transformer(self, len(self.blocks))

    def flops(self) -> int:
        """FLOPs for one image: matrices at each position and attention."""
        return transformer_flops(self, self.num_tokens, self.width, len(self.blocks))

    def embed(self, pixels: Tensor) -> Tensor:
        values = pixels.to(self.patch_embedding.weight.dtype) / 127.5 - 1.0
        patches = rearrange(
            values, "b (r p) (c q) k -> b (r c) (p q k)", p=self.patch_size, q=self.patch_size
        )
        x = self.patch_embedding(patches) + self.position_embedding.weight  # (B, P, E)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class FrozenTransformer(ImageEncoder):
    """The last hidden state of a pretrained vision model that `transformers` knows.

    For example facebook/dino-vitb16, 197 x 768 at 224 px: class token, then 14 x 14 patches.

    Always in eval mode, without gradients, in float32 even under autocast, so that live and cached
    features agree. Mean and std come from the directory's preprocessor_config.json, else they are
    ImageNet's; its resizing and cropping are not used. The identity holds a hash of the weights
    instead of the path: a copy elsewhere is the same encoder.

    Raises ValueError when the model cannot be found or loaded completely, or does not take S x S
    images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        from transformers import AutoModel

        model, missing = load_pretrained(AutoModel, config.model, torch.float32, "image encoder")
        # The image half of CLIP and its kin.
        model = cast("nn.Module", getattr(model, "vision_model", model))
        self.model = model.requires_grad_(False)
        self.image_size, self.frozen = config.image_size, True
        self._check_patch_size(config)
        mean, std = _pixel_statistics(config.model)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.interpolates = (
            "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
        )
        self.train(False)
        size = config.image_size
        try:
            probe = self.embed(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        except (AttributeError, TypeError, RuntimeError, ValueError) as e:
            raise ValueError(
                f"image encoder {config.model!r} does not turn {size} px images into a sequence "
                f"of embeddings ({e}); choose a vision transformer such as facebook/dino-vitb16"
            ) from e
        self.num_tokens, self.width = probe.shape[1:]
        self.weights = weights_hash(model, missing)
        self.identity = (
            f"{type(model).__name__}, weights {self.weights}, {size} px, "
            f"mean {_numbers(mean)}, std {_numbers(std)}, {describe_preprocessing(config)}, float32"
        )

    def _check_patch_size(self, config: ImageEncoderConfig) -> None:
        patch = getattr(self.model.config, "patch_size", None)
        if isinstance(patch, int) and config.image_size % patch:
            raise ValueError(
                f"image_size {config.image_size} is not a multiple of the patch size {patch} of "
                f"{config.model!r}, which would cut off the image's edge"
            )

    def train(self, mode: bool = True) -> FrozenTransformer:  # noqa: ARG002 (nn.Module's signature)
        """Stays in eval mode whatever `mode` says: dropout would only add noise."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            values = (
                rearrange(pixels, "b h w k -> b k h w").float() / 255.0 - self.mean
            ) / self.std
            options = {"interpolate_pos_encoding": True} if self.interpolates else {}
            return self.model(pixel_values=values, **options).last_hidden_state


# Encoders that `image_encoder.model` chooses by name; any other name is a pretrained model.
IMAGE_ENCODERS: dict[str, Callable[[ImageEncoderConfig], ImageEncoder]] = {
    "trained": TrainedViT,
}


def build_image_encoder(config: ImageEncoderConfig) -> ImageEncoder:
    """The encoder that `config.model` names: one in `IMAGE_ENCODERS`, or a pretrained one."""
    return IMAGE_ENCODERS.get(config.model, FrozenTransformer)(config)


def describe_preprocessing(config: ImageEncoderConfig) -> str:
    """The text by which identities name the preprocessing of `tar3d.condition.image`."""
    return f"object {config.foreground_fill:g} of a white square, bicubic"


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:.4g}" for v in values)


def _pixel_statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel (mean, std) of pixels in [0, 1]."""
    from transformers.utils import cached_file

    name = "preprocessor_config.json"
    path = cached_file(
        resolve(source),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return IMAGENET_MEAN, IMAGENET_STD
    values: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    if values.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean = tuple(values.get("image_mean", IMAGENET_MEAN))
    std = tuple(values.get("image_std", IMAGENET_STD))
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"{path}: image_mean and image_std must be three numbers, std positive, got {mean} "
            f"and {std}"
        )
    return mean, std
