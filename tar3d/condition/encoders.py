"""Pixels -> `Condition`: the image encoders of the GPT behind one interface.

    TrainedViT         a small vision transformer that is trained along with the GPT
    FrozenTransformer  a pretrained one (DINO, DINOv2, ViT, CLIP, ...) from the Hub or a directory, never trained
    GivenEmbeddings    stands in for a frozen one whose embeddings somebody else has computed

The first two take the uint8 pixels of `tar3d.condition.image.preprocess` and normalise them inside,
so that no caller can do it differently. Needs no torchvision. Letters: B batch, S image side, P
prefix length, E width, H heads.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from tar3d.config import ImageEncoderConfig, TextEncoderConfig
from tar3d.contracts import Condition

TRAINED = "trained"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class ImageEncoder(nn.Module):
    """(B, S, S, 3) uint8 -> `Condition` of P = `num_tokens` embeddings of E = `width`, all valid.

    `identity` stamps what is cached: the embeddings of a `frozen` encoder; of one that changes
    while it trains the prepared pixels, which are the same whatever its patches and layers are.
    """

    num_tokens: int
    width: int
    image_size: int
    frozen: bool
    identity: str

    def forward(self, pixels: torch.Tensor) -> Condition:
        size = self.image_size
        if (
            pixels.ndim != 4
            or tuple(pixels.shape[1:]) != (size, size, 3)
            or pixels.dtype != torch.uint8
        ):
            raise ValueError(
                f"the image encoder takes (B, {size}, {size}, 3) uint8 pixels as tar3d.condition.image.preprocess "
                f"gives them, got {tuple(pixels.shape)} {pixels.dtype}"
            )
        return Condition.of(self.embed(pixels))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, S, S, 3) uint8 -> (B, P, E)."""
        raise NotImplementedError


def build_image_encoder(config: ImageEncoderConfig) -> ImageEncoder:
    """The encoder that `config.model` names: "trained", a local directory or a Hub id."""
    return TrainedViT(config) if config.model == TRAINED else FrozenTransformer(config)


class TrainedViT(ImageEncoder):
    """A pre-norm ViT (arXiv 2010.11929) without a class token: P = (S / patch_size)^2, row by row;
    E = `config.width`."""

    adamw_parameters = (
        "patch_embedding",
    )  # embeds pixels: like any embedding, it is no hidden matrix for Muon

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        size, patch, width = config.image_size, config.patch_size, config.width
        self.num_tokens, self.width, self.image_size, self.frozen = (
            (size // patch) ** 2,
            width,
            size,
            False,
        )
        self.identity = f"trained ViT, {size} px, {_preparation(config)}"
        self.patch_size = patch
        self.patch_embedding = nn.Linear(3 * patch * patch, width, bias=False)
        self.position_embedding = nn.Embedding(self.num_tokens, width)
        self.blocks = nn.ModuleList(
            ViTBlock(width, config.num_heads) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(width)
        init_transformer(self, len(self.blocks))

    def flops(self) -> int:
        """Operations for one picture: matrices at each position and attention, a multiplication and
        an addition being two."""
        return transformer_flops(self, self.num_tokens, self.width, len(self.blocks))

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        values = pixels.to(self.patch_embedding.weight.dtype) / 127.5 - 1.0
        patches = rearrange(
            values, "b (r p) (c q) k -> b (r c) (p q k)", p=self.patch_size, q=self.patch_size
        )
        x = self.patch_embedding(patches) + self.position_embedding.weight  # (B, P, E)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def init_transformer(module: nn.Module, num_layers: int) -> None:
    """Matrices and tables: truncated normal, std 0.02; those that end on the residual stream keep
    its scale at any depth."""
    residual_std = 0.02 / (2 * max(num_layers, 1)) ** 0.5
    for name, parameter in module.named_parameters():
        if parameter.ndim == 2:
            is_residual = name.endswith(("attention_out.weight", "mlp_out.weight"))
            nn.init.trunc_normal_(parameter, std=residual_std if is_residual else 0.02)


def transformer_flops(module: nn.Module, num_tokens: int, width: int, num_layers: int) -> int:
    """Operations of one forward over so many positions: matrices at each of them and attention, a
    multiplication and an addition being two."""
    matrices = sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))
    return 2 * num_tokens * (matrices + 2 * num_tokens * width * num_layers)


class ViTBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); q, k and v are separate matrices because Muon
    orthogonalises each."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, seen: torch.Tensor | None = None) -> torch.Tensor:
        """(B, P, E); `seen`, broadcast to (B, H, P, P) bool, says which positions a position may
        look at, None: all."""
        y = self.attention_norm(x)
        q, k, v = (
            rearrange(project(y), "b p (h e) -> b h p e", h=self.num_heads)
            for project in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)  # (B, H, P, E / H)
        x = x + self.attention_out(rearrange(y, "b h p e -> b p (h e)"))
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class FrozenTransformer(ImageEncoder):
    """The last hidden state of a pretrained vision model that `transformers` knows, e.g.
    facebook/dino-vitb16 (197 x 768 at 224 px: class token, then 14 x 14 patches).

    Always in eval mode, without gradients, in float32 even under autocast, so that live and cached
    features agree. Mean and std come from the directory's preprocessor_config.json, else they are
    ImageNet's; its resizing and cropping are not used. The identity holds a hash of the weights
    instead of the path: a copy elsewhere is the same encoder.

    Raises ValueError when the model cannot be found or loaded completely, or does not take S x S
    pictures.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        from transformers import AutoModel

        model, missing = load_pretrained(AutoModel, config.model, torch.float32, "image encoder")
        model = getattr(model, "vision_model", model)  # the picture half of CLIP and its kin
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
        try:
            probe = self.embed(
                torch.zeros(1, config.image_size, config.image_size, 3, dtype=torch.uint8)
            )
        except (AttributeError, TypeError, RuntimeError, ValueError) as e:
            raise ValueError(
                f"image encoder {config.model!r} does not turn {config.image_size} px pictures into a sequence of "
                f"embeddings ({e}); choose a vision transformer such as facebook/dino-vitb16"
            ) from e
        self.num_tokens, self.width = probe.shape[1:]
        self.identity = (
            f"{type(model).__name__}, weights {weights_hash(model, missing)}, {config.image_size} px, "
            f"mean {_numbers(mean)}, std {_numbers(std)}, {_preparation(config)}, float32"
        )

    def _check_patch_size(self, config: ImageEncoderConfig) -> None:
        patch = getattr(self.model.config, "patch_size", None)
        if isinstance(patch, int) and config.image_size % patch:
            raise ValueError(
                f"image_size {config.image_size} is not a multiple of the patch size {patch} of "
                f"{config.model!r}, which would cut off the picture's edge"
            )

    def train(self, mode: bool = True) -> FrozenTransformer:
        """Stays in eval mode whatever `mode` says: dropout in a frozen encoder would only add
        noise."""
        return super().train(False)

    @torch.no_grad()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pixels.device.type, enabled=False):
            values = (
                rearrange(pixels, "b h w k -> b k h w").float() / 255.0 - self.mean
            ) / self.std
            options = {"interpolate_pos_encoding": True} if self.interpolates else {}
            return self.model(pixel_values=values, **options).last_hidden_state


class GivenEmbeddings(nn.Module):
    """The place of the frozen encoder that `config.model` names, of images or of text, where its
    embeddings are given, P x E or fewer, so that its weights are not needed. What it was shown, and
    how, is not known: the identity says as much.

    Raises ValueError when the config names no frozen encoder."""

    prefix = "embeddings given: "  # of the identity

    def __init__(
        self, config: ImageEncoderConfig | TextEncoderConfig, num_tokens: int, width: int
    ) -> None:
        super().__init__()
        field = "image_encoder" if isinstance(config, ImageEncoderConfig) else "text_encoder"
        if config.model == TRAINED:
            raise ValueError(
                f"embeddings that are given are those of a frozen encoder, but {field}.model is {TRAINED!r}: "
                f"name the encoder that made them, as in {field}.model={type(config)().model}"
            )
        self.num_tokens, self.width, self.frozen, self.source = (
            num_tokens,
            width,
            True,
            config.model,
        )
        self.identity = f"{self.prefix}{config.model}, {num_tokens} x {width}"

    def forward(self, shown: torch.Tensor) -> Condition:
        raise ValueError(
            f"the embeddings of {self.source} were given, so that it was not loaded: it cannot be shown anything"
        )


def _preparation(config: ImageEncoderConfig) -> str:
    return f"object {config.foreground_fill:g} of a white square, bicubic"


def _numbers(values: tuple[float, ...]) -> str:
    return "/".join(f"{v:.4g}" for v in values)


def load_pretrained(
    kind: type, source: str, dtype: torch.dtype, name: str
) -> tuple[nn.Module, set[str]]:
    """-> (model, names of its parameters that the files do not hold, at most an unused pooler).
    `kind` is one of the Auto classes of `transformers`, `name` what errors call it: "image encoder"
    has its field image_encoder.model."""
    try:
        model, report = kind.from_pretrained(source, dtype=dtype, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as e:
        raise not_loaded(name, source, name, "config.json and model.safetensors", e) from e
    missing = set(report["missing_keys"])
    needed = sorted(key for key in missing if "pooler" not in key)
    if needed:
        raise ValueError(
            f"{name} {source!r} lacks {len(needed)} of its weights, e.g. {needed[0]}: the files and their "
            "config.json do not belong together"
        )
    return model, missing


def not_loaded(
    what: str, source: str | Path, name: str, files: str, error: Exception
) -> ValueError:
    """What is raised where `what` of the encoder `name` cannot be had from a local directory, which
    has `files`, or the Hub."""
    tried = (
        "as a local directory"
        if Path(source).is_dir()
        else "as a local directory (there is none) and as a Hub id"
    )
    return ValueError(
        f"{what} {str(source)!r} was not found or cannot be loaded; tried {tried}: {str(error).splitlines()[0]} "
        f"Remedy: give a directory with {files}, or download the model once with a network and then set "
        f"HF_HUB_OFFLINE=1; {name.replace(' ', '_')}.model=trained needs no download"
    )


def _pixel_statistics(source: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per-channel (mean, std) of pixels in [0, 1]."""
    from transformers.utils import cached_file

    name = "preprocessor_config.json"
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if path is None:
        return IMAGENET_MEAN, IMAGENET_STD
    values = json.loads(Path(path).read_text())
    if values.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    mean, std = (
        tuple(values.get(key, default))
        for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
    )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"{path}: image_mean and image_std must be three numbers, std positive, got {mean} and {std}"
        )
    return mean, std


def weights_hash(model: nn.Module, missing: set[str]) -> str:
    """First 16 hex digits of the SHA-256 over names, shapes and values, without what was not read
    from the files."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if not any(m == name or m.endswith("." + name) for m in missing):
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(
                value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()[:16]
