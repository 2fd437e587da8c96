"""Typed configuration: dataclasses hold every default once, YAML files and `key=value` overrides
only change values.

`load(VQVAEConfig, "configs/vqvae3d.yaml", ["train.batch_size=4"])` returns a checked dataclass; an
unknown key, a value of the wrong type or a contradiction is a ValueError that names it. This module
imports no torch, so it can be read anywhere.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from tar3d.layouts import build_layout
from tar3d.paths import find_local
from tar3d.upgrade import upgrade_config, upgrade_override

T = TypeVar("T")
ACTIVATION_CHECKPOINTING = ("none", "cheap", "blocks")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    _require(value in allowed, f"{name} is {value!r}, allowed are {', '.join(allowed)}")


def _at_least(least: int, config: object, section: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= least, f"{section}{name} must be at least {least}, got {value}")


@dataclass(kw_only=True)
class PointSamplingConfig:
    """What is drawn from one mesh. Noise scales are standard deviations in units of the cube [-1,
    1]^3."""

    surface_points: int = 81_920
    volume_points: int = 80_000
    near_points: int = 80_000  # half at each noise scale
    near_sigmas: list[float] = field(default_factory=lambda: [0.02, 0.005])
    # of the near points: where planes mistake one part for another (tar3d/mesh/points.py)
    crossing_share: float = 0.0
    # thinner walls and sheets are made that thick, to be seen at all; 0 leaves them as they are
    min_thickness: float = 0.015

    def __post_init__(self) -> None:
        _at_least(1, self, "", "surface_points", "volume_points", "near_points")
        _require(
            0 <= self.crossing_share <= 1,
            f"crossing_share is a share of the near points, got {self.crossing_share}",
        )
        _require(
            0 <= self.min_thickness <= 0.5,
            f"min_thickness must be in [0, 0.5], got {self.min_thickness}",
        )
        _require(
            len(self.near_sigmas) > 0 and min(self.near_sigmas) > 0,
            f"near_sigmas must be positive, got {self.near_sigmas}",
        )


@dataclass(kw_only=True)
class ViewConfig:
    """Rendered condition views: cameras on a sphere that look at the origin. Angles in degrees."""

    count: int = 4
    size: int = 128
    background: str = "transparent"  # or "white"
    azimuth: list[float] = field(
        default_factory=lambda: [-60.0, 60.0]
    )  # 0 looks from +Z; positive towards +X
    elevation: list[float] = field(default_factory=lambda: [5.0, 35.0])
    distance: float = 5.5  # the whole cube fits: distance sin(field_of_view / 2) >= 0.95 sqrt 3
    field_of_view: float = 35.0

    def __post_init__(self) -> None:
        _one_of("views.background", self.background, ("transparent", "white"))
        _require(
            self.count >= 0 and self.size >= 16,
            f"views need count >= 0 and size >= 16, got {self.count} and {self.size}",
        )
        for name in ("azimuth", "elevation"):
            low_high = getattr(self, name)
            _require(
                len(low_high) == 2 and low_high[0] <= low_high[1],
                f"{name} must be [low, high], got {low_high}",
            )
        _require(
            self.distance > 2.0,
            f"camera distance must exceed 2 (the cube's half diagonal is 1.73), got {self.distance}",
        )
        _require(
            0 < self.field_of_view < 180,
            f"field_of_view must be between 0 and 180 degrees, got {self.field_of_view}",
        )


@dataclass(kw_only=True)
class ToyConfig:
    """What the procedural set is drawn with (`tar3d.data.toy`)."""

    views: ViewConfig = field(default_factory=ViewConfig)


@dataclass(kw_only=True)
class PrepareConfig(PointSamplingConfig):
    """What `tar3d.data.make_samples` makes of each mesh: its samples, and views of those without
    pictures."""

    views: ViewConfig = field(default_factory=ViewConfig)

    @property
    def samples(self) -> PointSamplingConfig:
        return PointSamplingConfig(
            **{f.name: getattr(self, f.name) for f in dataclasses.fields(PointSamplingConfig)}
        )


@dataclass(kw_only=True)
class TokenizerConfig:
    """The 3D VQ-VAE. The defaults are the paper's (arXiv 2412.16919, section 4.1)."""

    grid_size: int = 32  # R; T = 3 R^2 tokens
    width: int = 768
    num_heads: int = 12
    num_frequencies: int = 8
    encoder: str = "cross_attention"  # a name in ENCODERS of tar3d/tokenizer/vqvae.py
    quantizer: str = "ema"  # a name in its QUANTIZERS
    encoder_layers: int = 8
    point_width: int = 128  # hidden width of plane_pool's per-point network
    codebook_size: int = 16_384
    code_dim: int = 8
    decoder_layers: int = 6
    plane_channels: int = 32
    upsample_stages: int = 3  # each doubles the planes: R 2^stages is their final side
    occupancy_width: int = 128
    occupancy_layers: int = 4

    def __post_init__(self) -> None:
        _at_least(
            1,
            self,
            "tokenizer.",
            "grid_size",
            "width",
            "num_heads",
            "point_width",
            "code_dim",
            "plane_channels",
            "upsample_stages",
            "occupancy_width",
            "occupancy_layers",
        )
        _at_least(0, self, "tokenizer.", "num_frequencies", "encoder_layers", "decoder_layers")
        _at_least(2, self, "tokenizer.", "codebook_size")
        _require(
            self.width % self.num_heads == 0,
            f"tokenizer.width {self.width} is not divisible by num_heads {self.num_heads}",
        )

    @property
    def num_tokens(self) -> int:
        return 3 * self.grid_size**2


@dataclass(kw_only=True)
class OptimConfig:
    """Muon for hidden matrices, AdamW for the rest; the two rates are independent and both follow
    one schedule."""

    optimizer: str = "muon"  # or "adamw", for comparison: AdamW for everything, at adamw_lr
    muon_lr: float = 1e-3
    adamw_lr: float = 1e-3
    weight_decay: float = 0.05  # matrices only; vectors, norms and embeddings are not decayed
    beta1: float = 0.9
    beta2: float = 0.95
    muon_momentum: float = 0.95
    warmup_steps: int = 100
    schedule: str = "cosine"  # after the warm-up; or "wsd": a plateau, then a decay
    decay_fraction: float = 0.2  # of all steps: wsd's decay
    final_lr_fraction: float = 0.05  # of the peak, reached at the last step
    grad_clip: float = 1.0  # largest global gradient norm; 0 switches clipping off

    def __post_init__(self) -> None:
        for name in ("muon_lr", "adamw_lr"):
            _require(
                getattr(self, name) > 0, f"optim.{name} must be positive, got {getattr(self, name)}"
            )
        _one_of("optim.optimizer", self.optimizer, ("muon", "adamw"))
        _one_of("optim.schedule", self.schedule, ("cosine", "wsd"))
        _require(
            0 < self.decay_fraction <= 1,
            f"optim.decay_fraction must be in (0, 1], got {self.decay_fraction}",
        )
        _at_least(0, self, "optim.", "weight_decay", "warmup_steps", "grad_clip")


@dataclass(kw_only=True)
class ImageEncoderConfig:
    """Picture -> (P, E) embeddings. `model` "trained" is a small ViT trained along with the GPT;
    anything else is a Hub id or local directory that `transformers` loads and that stays frozen."""

    model: str = "facebook/dino-vitb16"
    image_size: int = 224
    foreground_fill: float = 0.85  # share of the square that the longer side of the object takes
    patch_size: int = 8  # the fields below are for "trained" only
    width: int = 192
    num_layers: int = 4
    num_heads: int = 4

    def __post_init__(self) -> None:
        _require(
            len(self.model) > 0,
            'image_encoder.model is empty: give "trained", a local directory or a Hub id',
        )
        _require(
            self.image_size > 0, f"image_encoder.image_size must be positive, got {self.image_size}"
        )
        _require(
            0 < self.foreground_fill <= 1,
            f"image_encoder.foreground_fill must be in (0, 1], got {self.foreground_fill}",
        )
        if self.model == "trained":
            _require(
                self.patch_size > 0 and self.image_size % self.patch_size == 0,
                f"image_encoder.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}",
            )
            _require(
                self.num_heads > 0 and self.width % self.num_heads == 0,
                f"image_encoder.width {self.width} is not divisible by num_heads {self.num_heads}",
            )
            _require(
                self.num_layers >= 0,
                f"image_encoder.num_layers must be >= 0, got {self.num_layers}",
            )


@dataclass(kw_only=True)
class TextEncoderConfig:
    """Caption -> (L, E) embeddings, L the caption's own number of tokens. `model` "trained" is a
    small transformer trained along with the GPT, whose words are those of the training captions;
    anything else is a Hub id or local directory that `transformers` loads and that stays frozen."""

    model: str = "google/flan-t5-xl"
    max_tokens: int = 120  # longer captions are cut, and the user is told
    dtype: str = "bfloat16"  # of a frozen encoder; or float32. T5's activations overflow float16
    # the fields below are for "trained" only: rows of its table, the commonest words first
    vocabulary: int = 1024
    width: int = 192
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        _require(
            len(self.model) > 0,
            'text_encoder.model is empty: give "trained", a local directory or a Hub id',
        )
        _one_of("text_encoder.dtype", self.dtype, ("bfloat16", "float32"))
        _at_least(1, self, "text_encoder.", "max_tokens", "width", "num_heads")
        _at_least(0, self, "text_encoder.", "num_layers")
        _at_least(8, self, "text_encoder.", "vocabulary")
        _require(
            self.width % self.num_heads == 0,
            f"text_encoder.width {self.width} is not divisible by num_heads {self.num_heads}",
        )


@dataclass(kw_only=True)
class GPTConfig:
    """The hybrid GPT. Sizes by name: `gpt_config("GPT-B", ...)`."""

    num_layers: int = 12
    width: int = 768
    num_heads: int = 12
    grid_size: int = 32
    codebook_size: int = 16_384
    condition_tokens: int = 197  # P, the longest prefix
    condition_width: int = 768  # E
    # probability that a training row sees the learned null prefix (guidance)
    condition_dropout: float = 0.1
    layout: str = "triplane"  # what a sequence is made of: tar3d/layouts
    layer_pattern: str = "LLLF"  # repeated over depth: L linear attention, F full attention
    # or 3: the layers see the three plane tokens of a cell as one position
    tokens_per_step: int = 1
    # or "planes", one plane after the other, for comparison: tar3d/layouts/triplane.py
    token_order: str = "cells"
    rope: str = "rotation"  # or, for comparison, "paper_sum" or "sequence": tar3d/gpt/rope.py
    # how the prefix is rotated; or "zero", as in TAR3D, for comparison
    prefix_rope: str = "identity"
    # width of the codes that are guessed from the condition for every position; 0: none, as in the
    # paper
    code_predictor_dim: int = 0
    # numbers of each position of the prefix that the code predictor sees, beside their mean; 0: the mean
    # alone
    code_predictor_local: int = 0
    code_predictor_hidden: int = 0  # width of its hidden layer; 0: twice condition_width
    rope_base: float = 10_000.0
    # learned row, column and plane embeddings beside TriPE; the paper has none
    absolute_positions: bool = True
    # what computes the two kinds of attention, a choice of the machine: tar3d/gpt/backends.py
    linear_backend: str = "auto"
    attention_backend: str = "auto"
    chunk_size: int = 64  # of the chunked form
    # or, for comparison, "gated" or "delta", whose decay depends on the data:
    # tar3d/gpt/layers
    linear_attention: str = "lightning"
    # sigmoid output gate of the linear layers: one more width x width matrix in each
    linear_gate: bool = True

    def __post_init__(self) -> None:
        build_layout(self)  # raises for options that the layout does not have
        _one_of("gpt.rope", self.rope, ("rotation", "paper_sum", "sequence"))
        _one_of("gpt.prefix_rope", self.prefix_rope, ("identity", "zero"))
        # Which names there are is known where their table is: tar3d/gpt/layers.
        _require(self.linear_attention != "", "gpt.linear_attention must name a layer, got ''")
        _one_of(
            "gpt.linear_backend",
            self.linear_backend,
            ("auto", "chunked", "reference", "fla", "lightning_attn"),
        )
        _one_of(
            "gpt.attention_backend",
            self.attention_backend,
            ("auto", "sdpa", "flash_attn", "xformers"),
        )
        _at_least(
            1,
            self,
            "gpt.",
            "num_layers",
            "width",
            "num_heads",
            "grid_size",
            "codebook_size",
            "condition_tokens",
            "condition_width",
            "chunk_size",
        )
        _at_least(
            0, self, "gpt.", "code_predictor_dim", "code_predictor_local", "code_predictor_hidden"
        )
        _require(
            self.width % self.num_heads == 0,
            f"gpt.width {self.width} is not divisible by num_heads {self.num_heads}",
        )
        _require(
            len(self.layer_pattern) > 0 and set(self.layer_pattern) <= {"L", "F"},
            f"gpt.layer_pattern may hold L and F only, got {self.layer_pattern!r}",
        )
        _require(
            0.0 <= self.condition_dropout < 1.0,
            f"gpt.condition_dropout must be in [0, 1), got {self.condition_dropout}",
        )
        _require(
            self.head_dim % 2 == 0 and self.head_dim >= 6,
            f"gpt.width / num_heads is {self.head_dim}; rotary positions need an even number of at least 6",
        )

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def num_tokens(self) -> int:
        return build_layout(self).num_tokens

    @property
    def num_steps(self) -> int:
        """Positions that the layers see after the prefix."""
        return build_layout(self).num_steps


CONDITIONS = ("image", "text")
# What a GPT is conditioned on, by the name that --gpt-type gives it.
GPT_TYPES: dict[str, list[str]] = {
    "i23d": ["image"],
    "t23d": ["text"],
    "uncond": [],
    "any": ["image", "text"],
}

# (layers, width, heads), as named in LlamaGen (arXiv 2406.06525, table 1) and TAR3D
GPT_SIZES: dict[str, tuple[int, int, int]] = {
    "GPT-tiny": (6, 192, 3),
    "GPT-B": (12, 768, 12),
    "GPT-L": (24, 1024, 16),
    "GPT-XL": (36, 1280, 20),
    "GPT-XXL": (48, 1536, 24),
    "GPT-XXXL": (48, 2560, 40),
    "GPT-1B": (22, 2048, 32),
    "GPT-3B": (24, 3200, 32),
    "GPT-7B": (32, 4096, 32),
}


def gpt_config(name: str, **changes: object) -> GPTConfig:
    """The configuration of a named size; `changes` sets any other field, as in gpt_config("GPT-B",
    grid_size=16)."""
    _one_of("GPT size", name, tuple(GPT_SIZES))
    fields = {f.name for f in dataclasses.fields(GPTConfig)}
    unknown = sorted(set(changes) - fields)
    _require(
        not unknown,
        f"{', '.join(unknown)}: no such field of GPTConfig; it has {', '.join(sorted(fields))}",
    )
    num_layers, width, num_heads = GPT_SIZES[name]
    return GPTConfig(
        **{"num_layers": num_layers, "width": width, "num_heads": num_heads, **changes}
    )


@dataclass(kw_only=True)
class SamplingConfig:
    """How the next token is drawn. A filter is off at its default; temperature 0 is greedy and
    ignores the seed."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    cfg_scale: float = 1.0  # logits = null + cfg_scale (conditional - null); 1 is conditional only
    # adds code_predictor_scale cos(code predictor, code) to the logits: a GPT with a code predictor heeds its picture more
    code_predictor_scale: float = 0.0

    def __post_init__(self) -> None:
        _require(self.temperature >= 0, f"temperature must be >= 0, got {self.temperature}")
        _require(self.top_k >= 0, f"top_k must be >= 0 (0 is off), got {self.top_k}")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        _require(0 <= self.min_p < 1, f"min_p must be in [0, 1), got {self.min_p}")
        _require(self.cfg_scale >= 0, f"cfg_scale must be >= 0, got {self.cfg_scale}")
        _require(
            self.code_predictor_scale >= 0,
            f"code_predictor_scale must be >= 0 (0 is off), got {self.code_predictor_scale}",
        )


@dataclass(kw_only=True)
class AugmentConfig:
    """How a training shape of the tokenizer is changed, anew whenever it is drawn
    (`tar3d/data/datasets/augment.py`). Default: not."""

    scale: list[float] = field(
        default_factory=lambda: [1.0, 1.0]
    )  # each axis by a factor uniform in [low, high]
    # probability of any angle about the up axis; else, unless it is 0, a quarter turn
    rotate: float = 0.0
    mirror: float = 0.0  # probability of x -> -x

    def __post_init__(self) -> None:
        _require(
            len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1],
            f"train.augment.scale must be [low, high] with 0 < low <= high, got {self.scale}",
        )
        for name in ("rotate", "mirror"):
            _require(
                0 <= getattr(self, name) <= 1,
                f"train.augment.{name} is a probability, got {getattr(self, name)}",
            )

    @property
    def active(self) -> bool:
        return self != AugmentConfig()


@dataclass(kw_only=True)
class TrainConfig:
    """What both trainings are told."""

    seed: int = 0
    # bf16-mixed where the hardware has it, else 32-true; 16-mixed for GPUs without bfloat16
    precision: str = "auto"
    # decay a step of the moving average of the weights that is validated and kept; 0: the weights
    # themselves
    ema: float = 0.0
    deterministic: bool = False  # the same bits on a GPU too, slower; a CPU always gives them
    # so many steps whose loss or gradient is not finite are passed over before the run stops
    skip_nonfinite: int = 0
    # rows that go through the model together on one device; 0: all of a step's (no accumulation)
    micro_batch_size: int = 0
    # torch.compile each block: about a minute at the start, then faster steps
    compile: bool = False
    # activation checkpointing: "cheap" works out again all but matrix products, "blocks" everything
    activation_checkpointing: str = "none"
    num_workers: int = 4
    validate_every: int = 2000
    validation_shapes: int = 64
    preview_shapes: int = 4
    save_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        _one_of(
            "train.activation_checkpointing",
            self.activation_checkpointing,
            ACTIVATION_CHECKPOINTING,
        )
        _require(
            0 <= self.ema < 1, f"train.ema is the decay of an average, in [0, 1), got {self.ema}"
        )
        _at_least(
            1, self, "train.", "validate_every", "validation_shapes", "save_every", "log_every"
        )
        _at_least(
            0,
            self,
            "train.",
            "seed",
            "skip_nonfinite",
            "micro_batch_size",
            "num_workers",
            "preview_shapes",
        )


@dataclass(kw_only=True)
class VQVAETrainConfig(TrainConfig):
    # or "ae": without the codebook only; or from --init "vq": with it only; "decoder": tokens stay
    # the same
    stage: str = "both"
    autoencoder_steps: int = 100_000  # first, without the codebook
    codebook_steps: int = 100_000
    batch_size: int = 16  # shapes per optimizer step over all devices
    surface_points: int = 81_920  # per shape and step, of those stored
    volume_points: int = 1024
    near_points: int = 1024
    near_weight: float = 0.1
    commitment_weight: float = 0.25
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("train.stage", self.stage, ("both", "ae", "vq", "decoder"))
        _require(
            self.stage != "ae" or self.autoencoder_steps > 0,
            "train.stage is ae, but train.autoencoder_steps is 0",
        )
        _at_least(1, self, "train.", "codebook_steps", "batch_size", "surface_points")
        _at_least(
            0,
            self,
            "train.",
            "autoencoder_steps",
            "volume_points",
            "near_points",
            "near_weight",
            "commitment_weight",
        )
        _require(
            self.volume_points + self.near_points > 0,
            "train.volume_points and train.near_points are both 0: nothing is learnt",
        )

    @property
    def first_codebook_step(self) -> int:
        """The step from which on latents are quantized; `steps` if none are."""
        return 0 if self.stage in ("vq", "decoder") else self.autoencoder_steps

    @property
    def steps(self) -> int:
        return self.first_codebook_step + (0 if self.stage == "ae" else self.codebook_steps)


@dataclass(kw_only=True)
class VQVAEConfig:
    """Everything `train_vqvae.py` needs; saved beside the weights."""

    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: VQVAETrainConfig = field(default_factory=VQVAETrainConfig)


@dataclass(kw_only=True)
class GPTTrainConfig(TrainConfig):
    # or "code_predictor": encoders and code predictor alone, which costs little; "layers": the rest, on these as
    # they are
    stage: str = "gpt"
    steps: int = 400_000
    global_batch_size: int = 64  # rows per optimizer step over all devices and accumulation steps
    # of several processes: each holds all; or "fsdp": its part, for sizes that need it
    strategy: str = "ddp"
    weights_dtype: str = "float32"  # of the model directory; float16 halves it
    weights_file_mb: int = 5000  # largest file of it: larger weights are split
    # largest share of a row's input tokens replaced by random ones; each row draws its own below it
    token_noise: float = 0.0
    code_predictor_weight: float = (
        0.0  # of the loss between the code predictor (gpt.code_predictor_dim) and the true codes
    )
    # probability that a word is shown as an unknown one, for a text encoder that is trained
    word_dropout: float = 0.0
    # further rows of each step, over all devices, that only the image encoder and the code predictor see:
    # cheap
    code_predictor_rows: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("train.stage", self.stage, ("gpt", "code_predictor", "transformer"))
        _require(
            self.stage != "transformer"
            or not (self.code_predictor_weight or self.code_predictor_rows),
            f"train.stage=transformer leaves the code predictor as it is, but train.code_predictor_weight {self.code_predictor_weight:g} and "
            f"train.code_predictor_rows {self.code_predictor_rows} train it: write 0 for both",
        )
        _one_of("train.strategy", self.strategy, ("ddp", "fsdp"))
        _one_of("train.weights_dtype", self.weights_dtype, ("float32", "float16"))
        _at_least(1, self, "train.", "steps", "global_batch_size", "weights_file_mb")
        _at_least(0, self, "train.", "code_predictor_weight", "code_predictor_rows", "token_noise")
        _require(
            0 <= self.word_dropout < 1,
            f"train.word_dropout is a probability below 1, got {self.word_dropout}",
        )


@dataclass(kw_only=True)
class GPTRunConfig:
    """Everything `train_gpt.py` needs; saved beside the weights."""

    conditions: list[str] = field(
        default_factory=lambda: ["image"]
    )  # what the GPT is told, one of them at a time
    gpt: GPTConfig = field(default_factory=GPTConfig)
    image_encoder: ImageEncoderConfig = field(default_factory=ImageEncoderConfig)
    text_encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: GPTTrainConfig = field(default_factory=GPTTrainConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tokenizer_fingerprint: str = ""  # written by training: the tokenizer whose codes the GPT speaks

    def __post_init__(self) -> None:
        for kind in self.conditions:
            _one_of("conditions", kind, CONDITIONS)
        _require(
            len(set(self.conditions)) == len(self.conditions),
            f"conditions has an entry twice: {', '.join(self.conditions)}",
        )
        _require(
            self.train.stage == "gpt"
            or (self.gpt.code_predictor_dim > 0 and len(self.conditions) > 0),
            f"train.stage is {self.train.stage}, but the GPT has no code predictor (gpt.code_predictor_dim {self.gpt.code_predictor_dim}, "
            f"conditions {', '.join(self.conditions) or 'none'}): set gpt.code_predictor_dim to the tokenizer's code_dim, and "
            "choose a --gpt-type that is told something",
        )
        _require(
            self.gpt.code_predictor_dim > 0
            or not (self.train.code_predictor_rows or self.train.code_predictor_weight),
            f"train.code_predictor_rows {self.train.code_predictor_rows} and train.code_predictor_weight {self.train.code_predictor_weight:g} train a "
            "code predictor, but gpt.code_predictor_dim is 0: set it to the tokenizer's code_dim, or the two to 0",
        )


@dataclass(kw_only=True)
class EvalProtocol:
    """How a predicted mesh is compared with the true one (`tar3d/metrics`); the defaults are those
    of configs/eval/tar3d.yaml.

    In the frames "truth" and "each" the unit is half the longest side of a bounding box: the shape
    spans -1 to 1.
    """

    source: str = "TAR3D, arXiv 2412.16919"  # whose convention this is
    # both meshes moved and scaled by the true one's box; or "each": by its own box; or "source": as
    # given
    frame: str = "truth"
    points: int = 16_000  # drawn from each surface
    thresholds: list[float] = field(
        default_factory=lambda: [0.01, 0.02, 0.05]
    )  # of precision, recall and F-score
    iou_points: int = 30_000  # uniform in the box that holds both meshes
    near_points: int = 30_000  # on the true surface, moved by Gaussian noise
    near_sigma: float = 0.02  # of that noise, per axis
    headline: list[str] = field(
        default_factory=lambda: ["chamfer", "fscore@0.02"]
    )  # the scores that tables show first
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("frame", self.frame, ("truth", "each", "source"))
        _at_least(1, self, "", "points", "iou_points", "near_points")
        _at_least(0, self, "", "seed")
        _require(self.near_sigma > 0, f"near_sigma must be positive, got {self.near_sigma}")
        _require(
            len(self.thresholds) > 0 and all(tau > 0 for tau in self.thresholds),
            f"thresholds must be one or more positive numbers, got {self.thresholds}",
        )


def from_mapping(cls: type[T], values: dict, origin: str) -> T:
    """Builds the dataclass `cls` from nested plain values; `origin` names their source in
    errors."""
    try:
        merged = OmegaConf.merge(
            OmegaConf.structured(cls), OmegaConf.create(upgrade_config(values))
        )
        return OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError) as e:
        reason = str(e).splitlines()[0]
        raise ValueError(
            f"{origin}: {reason}. The keys and their types are listed in tar3d/config.py"
        ) from e


def load(
    cls: type[T],
    path: str | Path | None,
    overrides: list[str] | tuple[str, ...] = (),
    base: dict | None = None,
) -> T:
    """Reads `path` (None: defaults only), applies `key=value` overrides, and returns a checked
    `cls`.

    `base` holds nested values that replace defaults and give way to the file and the overrides.
    """
    values = OmegaConf.create({})
    if path is not None:
        path = find_local(path)
        if not path.is_file():
            raise ValueError(f"config file {path} does not exist")
        values = _read(path)
    for item in overrides:
        _require(
            "=" in item and not item.startswith("-"),
            f"{item!r} is not an override of the form key=value, as in train.batch_size=4",
        )
    values = OmegaConf.merge(
        base or {}, values, OmegaConf.from_dotlist([upgrade_override(item) for item in overrides])
    )
    return from_mapping(cls, OmegaConf.to_container(values), str(path) if path else "overrides")


def load_gpt_run(
    path: str | Path,
    model: str,
    tokenizer: TokenizerConfig,
    overrides: list[str] | tuple[str, ...] = (),
    gpt_type: str = "i23d",
) -> GPTRunConfig:
    """The run that `path` describes for a GPT of the named size and type; token grid and vocabulary
    are the tokenizer's unless given."""
    size = gpt_config(model)
    named = [
        f"gpt.{field}={getattr(size, field)}" for field in ("num_layers", "width", "num_heads")
    ]
    spoken = {"grid_size": tokenizer.grid_size, "codebook_size": tokenizer.codebook_size}
    return load(
        GPTRunConfig,
        path,
        [*named, *overrides],
        base={"gpt": spoken, "conditions": GPT_TYPES[gpt_type]},
    )


def _read(path: Path) -> DictConfig:
    try:
        values = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not a readable YAML file: {' '.join(str(e).split())}") from e
    _require(
        isinstance(values, DictConfig),
        f'{path} must hold keys and values, as in "train: {{batch_size: 4}}"',
    )
    return values


def with_defaults(cls: type, values: dict, origin: str) -> dict:
    """Values that an earlier version saved, with the defaults of keys that it did not know yet:
    those mean "as before"."""
    return to_mapping(from_mapping(cls, values, origin))


def to_mapping(config: object) -> dict:
    """The nested plain values of a config dataclass."""
    return dataclasses.asdict(config)


def save(config: object, path: str | Path) -> None:
    OmegaConf.save(OmegaConf.create(to_mapping(config)), Path(path))
