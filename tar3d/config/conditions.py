"""The conditions of a GPT, and their encoders."""

from __future__ import annotations

from dataclasses import dataclass

from tar3d.config.checks import at_least, one_of, require

# Modalities of a condition.
CONDITIONS = ("image", "text")
# The modalities of a GPT, by the name that --gpt-type gives it.
GPT_TYPES: dict[str, list[str]] = {
    "i23d": ["image"],
    "t23d": ["text"],
    "uncond": [],
    "any": ["image", "text"],
}
ANY = "any"  # the type of a GPT that also serves as each of the other types


@dataclass(kw_only=True)
class ImageEncoderConfig:
    """Image -> (P, E) embeddings.

    `model` "trained" is a small ViT that is trained along with the GPT, any other name in
    `tar3d.condition.image_encoders.IMAGE_ENCODERS` is that encoder; anything else is a Hub id or a
    local directory that `transformers` loads and that stays frozen.
    """

    model: str = "facebook/dino-vitb16"
    image_size: int = 224
    # Share of the square that the longer side of the object takes.
    foreground_fill: float = 0.85
    # The fields below are for "trained" only.
    patch_size: int = 8
    width: int = 192
    num_layers: int = 4
    num_heads: int = 4

    def __post_init__(self) -> None:
        require(
            len(self.model) > 0,
            'image_encoder.model is empty: give "trained", a local directory or a Hub id',
        )
        require(
            self.image_size > 0, f"image_encoder.image_size must be positive, got {self.image_size}"
        )
        require(
            0 < self.foreground_fill <= 1,
            f"image_encoder.foreground_fill must be in (0, 1], got {self.foreground_fill}",
        )
        if self.model == "trained":
            require(
                self.patch_size > 0 and self.image_size % self.patch_size == 0,
                f"image_encoder.image_size {self.image_size} is not a multiple of patch_size "
                f"{self.patch_size}",
            )
            require(
                self.num_heads > 0 and self.width % self.num_heads == 0,
                f"image_encoder.width {self.width} is not divisible by num_heads {self.num_heads}",
            )
            require(
                self.num_layers >= 0,
                f"image_encoder.num_layers must be >= 0, got {self.num_layers}",
            )


@dataclass(kw_only=True)
class TextEncoderConfig:
    """Caption -> (L, E) embeddings, L the caption's own number of tokens.

    `model` "trained" is a small transformer that is trained along with the GPT, with a tokenizer
    made from the training captions; any other name in
    `tar3d.condition.text_encoders.TEXT_ENCODERS` is that encoder; anything else is a Hub id or a
    local directory that `transformers` loads and that stays frozen.
    """

    model: str = "google/flan-t5-xl"
    # Longer captions are cut, with a warning.
    max_tokens: int = 120
    # Precision of a frozen encoder: "bfloat16" or "float32". T5's activations overflow float16.
    dtype: str = "bfloat16"
    # The fields below are for "trained" only. The vocabulary holds the commonest words.
    vocabulary: int = 1024
    width: int = 192
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        require(
            len(self.model) > 0,
            'text_encoder.model is empty: give "trained", a local directory or a Hub id',
        )
        one_of("text_encoder.dtype", self.dtype, ("bfloat16", "float32"))
        at_least(1, self, "text_encoder.", "max_tokens", "width", "num_heads")
        at_least(0, self, "text_encoder.", "num_layers")
        at_least(8, self, "text_encoder.", "vocabulary")
        require(
            self.width % self.num_heads == 0,
            f"text_encoder.width {self.width} is not divisible by num_heads {self.num_heads}",
        )
