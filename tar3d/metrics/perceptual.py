"""How alike two pictures look to a network: LPIPS (arXiv 1801.03924) and CLIP (arXiv 2103.00020).

Neither network is shipped. `load_lpips` reads files that you bring, `Clip.load` a directory or a
Hub id; what cannot be had is a ValueError of one sentence that says what is missing and how to get
it. The pixels' way into a network is written out here, because a resize filter alone changes
scores. Needs no torchvision. Every picture goes through LPIPS by itself, and through CLIP with the
others of its shape, so scores do not depend on what else is scored.

Letters: H, W height and width of a picture, K pictures, S side of CLIP's picture, E its features, C
channels.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

DEFAULT_CLIP = "openai/clip-vit-base-patch32"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GET_LPIPS = (
    'get them once, on any machine with pip install lpips torchvision: python -c "import lpips, torch; '
    "torch.save(lpips.LPIPS(net='alex').state_dict(), 'lpips_alex.pth')\"; then give --lpips-path lpips_alex.pth"
)
GET_CLIP = (
    "download it once with a network (huggingface_hub keeps it in its cache), or give --clip-path a directory with "
    "config.json, model.safetensors, preprocessor_config.json and the tokenizer's files"
)
PERCEPTUAL_FORMULAS = {
    "lpips": "sum over five layers of mean_pixels sum_c w_c (f_c - g_c)^2, features f, g of unit length in each pixel; lower is "
    "better. Zhang et al., 1801.03924, version 0.1",
    "clip_image": "cosine of the CLIP features of the predicted and the true picture, in [-1, 1]",
    "clip_text": "cosine of the CLIP features of the predicted picture and of the caption, in [-1, 1], not times 100",
}

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_CLIP_AT_ONCE = 64
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]


@dataclass(frozen=True)
class Stack:
    """The convolutions of a feature network in five stages, as (index in torchvision's `features`,
    stride, padding); a stage in `pooled` starts with a max pool of (kernel, stride) `pool`.
    `smallest` is the least side of a picture, in pixels."""

    stages: tuple[tuple[tuple[int, int, int], ...], ...]
    pooled: tuple[int, ...]
    pool: tuple[int, int]
    smallest: int


STACKS = {
    "alex": Stack(
        (((0, 4, 2),), ((3, 1, 2),), ((6, 1, 1),), ((8, 1, 1),), ((10, 1, 1),)), (1, 2), (3, 2), 31
    ),
    "vgg": Stack(
        tuple(
            tuple((i, 1, 1) for i in stage)
            for stage in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
        ),
        (1, 2, 3, 4),
        (2, 2),
        16,
    ),
}
_FIRST_KERNEL = {11: "alex", 3: "vgg"}  # what tells the two apart


class LPIPS:
    """`weights` by torchvision's names of the features (features.0.weight, ...) and the lpips
    package's of the heads (lin0.model.1.weight, ...). Widths are those of the weights. Raises
    ValueError when they make no network."""

    def __init__(self, weights: dict[str, Tensor], device: torch.device) -> None:
        first = weights.get("features.0.weight")
        self.net = _FIRST_KERNEL.get(
            first.shape[-1] if first is not None and first.ndim == 4 else 0, ""
        )
        if not self.net:
            raise ValueError(
                "it does not hold the features of an AlexNet or a VGG16 (features.0.weight of 11 x 11 or 3 x 3)"
            )
        self._stack = STACKS[self.net]
        convolutions = [
            f"features.{index}" for stage in self._stack.stages for index, _, _ in stage
        ]
        heads = [f"lin{k}.model.1.weight" for k in range(len(self._stack.stages))]
        names = [f"{name}.{part}" for name in convolutions for part in ("weight", "bias")] + heads
        missing = [name for name in names if name not in weights]
        if missing:
            raise ValueError(
                f"it lacks {len(missing)} of the {len(names)} weights of LPIPS {self.net}, e.g. {missing[0]}"
            )
        self._weights = {name: weights[name].to(device, torch.float32) for name in names}
        self._check_shapes()
        bad = [name for name, value in self._weights.items() if not bool(value.isfinite().all())]
        if bad:
            raise ValueError(f"its {bad[0]} holds NaN or infinite values")
        self.device = device
        self.identity = f"LPIPS {self.net}, weights {_digest(self._weights)}"
        self._shift, self._scale = (
            torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_LPIPS_SHIFT, _LPIPS_SCALE)
        )

    def _check_shapes(self) -> None:
        channels = 3
        for k, stage in enumerate(self._stack.stages):
            for index, _, _ in stage:
                shape = tuple(self._weights[f"features.{index}.weight"].shape)
                if len(shape) != 4 or shape[1] != channels:
                    raise ValueError(
                        f"its features.{index}.weight has the shape {shape}, but {channels} channels come in"
                    )
                channels = shape[0]
            head = tuple(self._weights[f"lin{k}.model.1.weight"].shape)
            if head != (1, channels, 1, 1):
                raise ValueError(
                    f"its lin{k}.model.1.weight has the shape {head}, but the {self.net} features before it need "
                    f"{(1, channels, 1, 1)}: the heads are those of another network"
                )

    @torch.inference_mode()
    def compare(
        self, pred: np.ndarray, truth: np.ndarray, foreground: np.ndarray
    ) -> tuple[float, float]:
        """LPIPS of two (H, W, 3) uint8 pictures, and the mean of its map over `foreground` (H, W)
        bool.

        The map is the sum of the layers' maps, each upsampled to (H, W) (bilinear), as the lpips
        package's spatial=True.
        """
        if min(pred.shape[:2]) < self._stack.smallest:
            raise ValueError(
                f"LPIPS with {self.net} needs pictures of at least {self._stack.smallest} pixels a side, got "
                f"{pred.shape[1]} x {pred.shape[0]}"
            )
        pairs = zip(self.features(pred), self.features(truth), strict=True)
        layers = [
            ((_unit(f) - _unit(g)) ** 2 * self._weights[f"lin{k}.model.1.weight"]).sum(
                1, keepdim=True
            )  # (1, 1, h, w)
            for k, (f, g) in enumerate(pairs)
        ]
        whole = sum(float(layer.double().mean()) for layer in layers)
        size = pred.shape[:2]
        local = sum(
            F.interpolate(layer, size=size, mode="bilinear", align_corners=False)
            for layer in layers
        )[0, 0]
        return whole, float(local[torch.from_numpy(foreground).to(self.device)].double().mean())

    def features(self, picture: np.ndarray) -> list[Tensor]:
        """What the five stages make of a (H, W, 3) uint8 picture: (1, C, h, w) each, after the
        ReLU."""
        x = (
            torch.from_numpy(np.ascontiguousarray(picture))
            .to(self.device)
            .permute(2, 0, 1)[None]
            .float()
            / 127.5
            - 1
        )
        x = (x - self._shift) / self._scale
        found = []
        with _full_precision():
            for k, stage in enumerate(self._stack.stages):
                if k in self._stack.pooled:
                    x = F.max_pool2d(x, *self._stack.pool)
                for index, stride, padding in stage:
                    weight, bias = (
                        self._weights[f"features.{index}.{part}"] for part in ("weight", "bias")
                    )
                    x = F.relu(F.conv2d(x, weight, bias, stride, padding))
                found.append(x)
        return found


def _full_precision() -> AbstractContextManager:
    """A GPU would otherwise round convolutions to TF32, and choose their algorithm anew in each
    run."""
    return torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(path: Path, device: torch.device) -> LPIPS:
    """LPIPS from a file, or from all weight files of a folder: a whole state dict of lpips.LPIPS,
    or torchvision's AlexNet (or VGG16) and the lpips package's heads in two files. Safetensors, or
    .pth read without running code from it."""
    files = (
        sorted(p for p in path.iterdir() if p.suffix in _WEIGHT_SUFFIXES)
        if path.is_dir()
        else [path]
    )
    if not files or not all(p.is_file() for p in files):
        kinds = ", ".join(_WEIGHT_SUFFIXES)
        raise ValueError(
            f"LPIPS weights: {path} {f'holds no {kinds} file' if path.is_dir() else 'does not exist'}; {GET_LPIPS}"
        )
    weights: dict[str, Tensor] = {}
    for file in files:
        for name, value in _read_weights(file).items():
            name = _canonical(name)
            if name in weights and not (
                weights[name].shape == value.shape and torch.equal(weights[name], value)
            ):
                raise ValueError(
                    f"LPIPS weights: {name} of {file} is also in another file of {path}, with other values: leave "
                    "the files of one network there"
                )
            if name:
                weights[name] = value
    try:
        return LPIPS(weights, device)
    except ValueError as e:
        raise ValueError(f"LPIPS weights: {path} cannot be used: {e}; {GET_LPIPS}") from e


def _canonical(name: str) -> str:
    """torchvision's and the heads' own names for those of the lpips package (net.slice2.3.weight);
    "" for what is not needed."""
    found = re.fullmatch(r"(?:net\.slice\d+|features)\.(\d+)\.(weight|bias)", name)
    if found:
        return f"features.{found[1]}.{found[2]}"
    return name if re.fullmatch(r"lin\d+\.model\.1\.weight", name) else ""


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        values = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(
            f"LPIPS weights: {file} cannot be read as a file of weights ({reason}); {GET_LPIPS}"
        ) from e
    if not isinstance(values, dict) or not all(isinstance(v, Tensor) for v in values.values()):
        raise ValueError(
            f"LPIPS weights: {file} holds no plain table of tensors; save a state_dict(), {GET_LPIPS}"
        )
    return values


def _digest(weights: dict[str, Tensor]) -> str:
    """First 16 hex digits of the SHA-256 over names, shapes and values."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class Clip:
    """A CLIP model of `transformers`, in float32. Pictures are resized so that the shorter side is
    `side` (Pillow's `filter`, antialiased), cropped to the middle square, and normalised with
    `mean` and `std`, all as the model's preprocessor_config.json says."""

    source: str
    model: torch.nn.Module
    side: int
    filter: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    identity: str

    @classmethod
    def load(cls, source: str, device: torch.device) -> Clip:
        """A directory, or a Hub id that is downloaded if it is not in the cache."""
        from transformers import AutoConfig, CLIPModel

        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type != "clip":
                raise ValueError(f"it is a {config.model_type!r} model, not CLIP")
            model, report = CLIPModel.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            if report["missing_keys"]:
                raise ValueError(
                    f"it lacks {len(report['missing_keys'])} of its weights, e.g. {min(report['missing_keys'])}"
                )
            bad = [
                name for name, value in model.named_parameters() if not bool(value.isfinite().all())
            ]
            if bad:
                raise ValueError(f"its {bad[0]} holds NaN or infinite values")
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as e:
            raise ValueError(
                f"CLIP {source!r} was not found here or on the Hub, or cannot be loaded ({_first_line(e)}); "
                f"{GET_CLIP}"
            ) from e
        side = model.config.vision_config.image_size
        size_filter, mean, std = _preparation(source, side)
        model = model.to(device).eval().requires_grad_(False)
        identity = f"CLIP {source}, weights {_digest(model.state_dict())}, {side} px, {size_filter.name.lower()}"
        return cls(source, model, side, size_filter, mean, std, device, identity)

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> (S, S, 3) uint8."""
        image = Image.fromarray(picture)
        width, height = image.size
        short = min(width, height)
        if short != self.side:
            image = image.resize(
                (width * self.side // short, height * self.side // short), self.filter
            )
        left, top = ((length - self.side) // 2 for length in image.size)
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    @torch.inference_mode()
    def image_features(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """(H, W, 3) uint8 each -> (K, E) float32, as the model projects them: not yet of unit
        length."""
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        parts = []
        for start in range(0, len(pictures), _CLIP_AT_ONCE):
            prepared = np.stack(
                [self.prepare(p) for p in pictures[start : start + _CLIP_AT_ONCE]]
            )  # (k, S, S, 3)
            pixels = torch.from_numpy(prepared).to(self.device).permute(0, 3, 1, 2).float() / 255
            with _full_precision():
                features = self.model.get_image_features(
                    pixel_values=(pixels - mean) / std
                ).pooler_output  # (k, E)
            parts.append(features.float().cpu().numpy())
        return np.concatenate(parts)

    def load_tokenizer(self) -> object:
        from transformers import AutoTokenizer
        from transformers.utils import cached_file

        quiet = {
            "_raise_exceptions_for_missing_entries": False,
            "_raise_exceptions_for_connection_errors": False,
        }
        try:
            # without its files, AutoTokenizer makes an empty one that turns every word into the
            # same token
            if not any(
                cached_file(self.source, name, **quiet) for name in ("tokenizer.json", "vocab.json")
            ):
                raise ValueError("there is neither tokenizer.json nor vocab.json")
            return AutoTokenizer.from_pretrained(self.source)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as e:
            raise ValueError(
                f"the tokenizer of CLIP {self.source!r} cannot be loaded ({_first_line(e)}); {GET_CLIP}"
            ) from e

    @torch.inference_mode()
    def text_features(
        self, captions: dict[str, str], tokenizer: object
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Captions by id -> features (E,) float32 by id, one at a time; and the ids of those longer
        than the model reads, which are cut."""
        longest = self.model.config.text_config.max_position_embeddings
        found, cut = {}, []
        for key, caption in captions.items():
            tokens = tokenizer(
                caption,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
                return_overflowing_tokens=False,
            )
            if len(tokenizer(caption)["input_ids"]) > longest:
                cut.append(key)
            features = self.model.get_text_features(
                input_ids=tokens["input_ids"].to(self.device),
                attention_mask=tokens["attention_mask"].to(self.device),
            )
            found[key] = features.pooler_output[0].float().cpu().numpy()
        return found, cut


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (K,) of the rows of `a` (K, E) and `b` (K, E) or (E,)."""
    a, b = (
        v.astype(np.float64) / np.linalg.norm(v.astype(np.float64), axis=-1, keepdims=True)
        for v in (a, b)
    )
    return (a * b).sum(-1)


def crop_to(
    picture: np.ndarray, foreground: np.ndarray, background: tuple[int, int, int]
) -> np.ndarray:
    """The square around the True pixels of `foreground` (H, W), cut from `picture` (H, W, 3); what
    lies outside the picture is `background`."""
    rows, columns = np.flatnonzero(foreground.any(1)), np.flatnonzero(foreground.any(0))
    height, width = rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]
    side = max(height, width)
    top, left = rows[0] - (side - height) // 2, columns[0] - (side - width) // 2
    square = np.empty((side, side, 3), dtype=np.uint8)
    square[:] = background
    low, high = np.maximum((top, left), 0), np.minimum((top + side, left + side), picture.shape[:2])
    square[low[0] - top : high[0] - top, low[1] - left : high[1] - left] = picture[
        low[0] : high[0], low[1] : high[1]
    ]
    return square


def _preparation(
    source: str, side: int
) -> tuple[Image.Resampling, tuple[float, ...], tuple[float, ...]]:
    """Resize filter, mean and std of preprocessor_config.json; OpenAI's where it says nothing."""
    from transformers.utils import cached_file

    name = "preprocessor_config.json"
    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
        size_filter = Image.Resampling(values.get("resample", Image.Resampling.BICUBIC))
    except ValueError as e:
        raise ValueError(f"{path} cannot be used: {e}") from e
    mean, std = (
        tuple(values.get(key, default))
        for key, default in (("image_mean", CLIP_MEAN), ("image_std", CLIP_STD))
    )
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(
            f"{path}: image_mean and image_std must be three numbers, std positive, got {mean} and {std}"
        )
    asked = values.get("crop_size", side)
    sides = set(asked.values()) if isinstance(asked, dict) else {asked}
    if sides != {side}:
        raise ValueError(
            f"{path}: crop_size is {asked}, but the model of {source!r} takes {side} px: the files do not belong "
            "together"
        )
    return size_filter, mean, std


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
