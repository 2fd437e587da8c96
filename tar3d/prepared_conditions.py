"""Images and texts -> what the encoders take, with what a user should see of it.

The one way in for conditions: `Pipeline.prepare` of every script and of Python ends here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps

from tar3d.condition.image import to_rgba
from tar3d.mesh.render import text_image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tar3d.condition.conditioner import ConditionInputs
    from tar3d.conditional_gpt import ConditionalGPT

UNCONDITIONAL = ""  # the modality of a row without a condition


@dataclass(frozen=True)
class PreparedCondition:
    """One image, text or nothing, as the encoder of its `modality` takes it.

    `previews` are images (S, S, 3) uint8 by title, `record` belongs in the file of settings beside
    the mesh, and `warning` is what the model cannot make use of.
    """

    modality: str = UNCONDITIONAL
    encoder_input: np.ndarray | None = None
    previews: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None


@dataclass(frozen=True)
class PreparedConditions:
    """The conditions of B rows, all of one modality."""

    rows: list[PreparedCondition]

    @property
    def inputs(self) -> ConditionInputs:
        """Modality -> (B, ...), as `Pipeline.generate` takes it; empty without a condition."""
        arrays = [row.encoder_input for row in self.rows if row.encoder_input is not None]
        return {self.rows[0].modality: torch.from_numpy(np.stack(arrays))} if arrays else {}


def prepare_conditions(
    model: ConditionalGPT,
    conditions: Sequence[Image.Image | str | None],
    preview_size: int | None = None,
    *,
    any_text: bool = False,
) -> PreparedConditions:
    """Images, texts, or None for unconditional rows; without `preview_size` there are no previews.

    With `any_text` a text may say nothing that the model knows, as captions of a test set may.
    Raises ValueError for a mixture, for what cannot be used (an image without an object:
    ImageError), and for a modality that the model was not trained on.
    """
    modalities = {_modality(condition) for condition in conditions}
    if isinstance(conditions, str) or len(modalities) != 1 or "unknown" in modalities:
        raise ValueError(
            "conditions are a list of images (PIL.Image), a list of texts or a list of None, with "
            f"one a row; got {conditions!r}"
        )
    if not any_text:
        for text in conditions:
            if isinstance(text, str):
                _refuse_unknown(model, text)
    return PreparedConditions([_prepare(model, one, preview_size) for one in conditions])


def _refuse_unknown(model: ConditionalGPT, text: str) -> None:
    """Raises ValueError for a text that says nothing that the model knows."""
    nouns = model.config.nouns
    makes = f": this model makes {', '.join(nouns)}" if nouns else ""
    if not text.strip():
        raise ValueError(f"the text is empty, say what to generate{makes}")
    if not model.prepare_text(text).is_known:
        hint = makes or ": use words of the captions that it was trained on"
        raise ValueError(f"the model knows no word of {text!r}{hint}")
    if nouns and not set(re.findall(r"\w+", text.lower())) & set(nouns):
        raise ValueError(f"{text!r} names nothing that the model knows{makes}")


def _modality(condition: object) -> str:
    if condition is None:
        return UNCONDITIONAL
    if isinstance(condition, str):
        return "text"
    return "image" if isinstance(condition, Image.Image) else "unknown"


def _prepare(
    model: ConditionalGPT, condition: Image.Image | str | None, preview_size: int | None
) -> PreparedCondition:
    if condition is None:
        return PreparedCondition()
    if isinstance(condition, str):
        text = model.prepare_text(condition)
        previews = {"prompt": text_image(condition, preview_size)} if preview_size else {}
        record = {"prompt": condition, "note": text.warning}
        return PreparedCondition("text", text.ids, previews, record, text.warning)
    image = model.prepare_image(condition)
    previews = _image_previews(condition, image.pixels, preview_size) if preview_size else {}
    record = {"foreground": image.foreground}
    return PreparedCondition("image", image.pixels, previews, record, image.warning)


def _image_previews(image: Image.Image, pixels: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The image on white, and the pixels that the encoder sees."""
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(to_rgba(image))
    whole = ImageOps.pad(white.convert("RGB"), (size, size), color="white")
    seen = Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)
    return {"input": np.asarray(whole), "seen by the encoder": np.asarray(seen)}
