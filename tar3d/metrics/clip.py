"""CLIP (Radford et al., arXiv 2103.00020) features of images and captions, by `transformers`.

An image goes through the network with the others of its shape, so its features do not depend on
what else is scored. Letters: H, W height and width of an image, K images, S side of the image that
CLIP takes, E its features.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError

from tar3d.metrics.networks import first_line, full_precision, weights_digest

if TYPE_CHECKING:
    from collections.abc import Sequence


CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GET_CLIP = (
    "download it once with a network (huggingface_hub keeps it in its cache), or give --clip-path "
    "a directory with config.json, model.safetensors, preprocessor_config.json and the tokenizer's "
    "files"
)

_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class Clip:
    """A CLIP model of `transformers`, in float32.

    Images are resized so that the shorter side is `side` (Pillow's `filter`, antialiased), cropped
    to the middle square, and normalised with `mean` and `std`, all as the model's
    preprocessor_config.json says. `identity` names model, weights and preparation in reports.
    """

    source: str
    model: Any  # transformers' CLIPModel
    side: int
    filter: Image.Resampling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    device: torch.device
    identity: str

    @classmethod
    def load(cls, source: str, device: torch.device) -> Clip:
        """Loads a directory, or a Hub id, which is downloaded if it is not in the cache.

        Raises ValueError, with the remedy, for a model that cannot be had or used.
        """
        from transformers import AutoConfig, CLIPModel

        try:
            config = AutoConfig.from_pretrained(source)
            if config.model_type != "clip":
                raise ValueError(f"it is a {config.model_type!r} model, not CLIP")
            loaded: Any = CLIPModel.from_pretrained(
                source, dtype=torch.float32, output_loading_info=True
            )
            model, report = loaded
            if report["missing_keys"]:
                missing = report["missing_keys"]
                raise ValueError(f"it lacks {len(missing)} of its weights, e.g. {min(missing)}")
            bad = [
                name for name, value in model.named_parameters() if not bool(value.isfinite().all())
            ]
            if bad:
                raise ValueError(f"its {bad[0]} holds NaN or infinite values")
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as e:
            raise ValueError(
                f"CLIP {source!r} was not found here or on the Hub, or cannot be loaded "
                f"({first_line(e)}); {GET_CLIP}"
            ) from e
        side = model.config.vision_config.image_size
        size_filter, mean, std = _preparation(source, side)
        model = model.to(device).eval().requires_grad_(False)
        digest, filter_name = weights_digest(model.state_dict()), size_filter.name.lower()
        identity = f"CLIP {source}, weights {digest}, {side} px, {filter_name}"
        return cls(source, model, side, size_filter, mean, std, device, identity)

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (H, W, 3) uint8 -> (S, S, 3) uint8, resized and cropped."""
        image = Image.fromarray(pixels)
        width, height = image.size
        short = min(width, height)
        if short != self.side:
            image = image.resize(
                (width * self.side // short, height * self.side // short), self.filter
            )
        left, top = ((length - self.side) // 2 for length in image.size)
        return np.asarray(image.crop((left, top, left + self.side, top + self.side)))

    @torch.inference_mode()
    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """K images (H, W, 3) uint8 -> features (K, E) float32, not of unit length."""
        mean, std = (
            torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std)
        )
        parts = []
        for start in range(0, len(images), _IMAGES_AT_ONCE):
            prepared = np.stack(
                [self.prepare(p) for p in images[start : start + _IMAGES_AT_ONCE]]
            )  # (k, S, S, 3)
            pixels = torch.from_numpy(prepared).to(self.device).permute(0, 3, 1, 2).float() / 255
            with full_precision():
                features = self.model.get_image_features(
                    pixel_values=(pixels - mean) / std
                ).pooler_output  # (k, E)
            parts.append(features.float().cpu().numpy())
        return np.concatenate(parts)

    def load_tokenizer(self) -> Any:
        """The tokenizer of the model's text encoder.

        Raises ValueError, with the remedy, where its files are missing.
        """
        from transformers import AutoTokenizer
        from transformers.utils import cached_file

        quiet: dict[str, Any] = {
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
                f"the tokenizer of CLIP {self.source!r} cannot be loaded ({first_line(e)}); "
                f"{GET_CLIP}"
            ) from e

    @torch.inference_mode()
    def text_features(
        self, captions: dict[str, str], tokenizer: Any
    ) -> tuple[dict[str, np.ndarray], list[str]]:
        """Captions by id -> features (E,) float32 by id, and the ids of captions that were cut.

        Each caption goes through the model by itself. A caption is cut where the model reads no
        more.
        """
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


def _preparation(
    source: str, side: int
) -> tuple[Image.Resampling, tuple[float, ...], tuple[float, ...]]:
    """Resize filter, mean and std of preprocessor_config.json, or OpenAI's where it has none."""
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
            f"{path}: image_mean and image_std must be three numbers, std positive, got {mean} and "
            f"{std}"
        )
    crop_size = values.get("crop_size", side)
    sides = set(crop_size.values()) if isinstance(crop_size, dict) else {crop_size}
    if sides != {side}:
        raise ValueError(
            f"{path}: crop_size is {crop_size}, but the model of {source!r} takes {side} px: the "
            "files do not belong together"
        )
    return size_filter, mean, std
