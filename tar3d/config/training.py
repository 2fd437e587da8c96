"""The training of the tokenizer and of the GPT."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tar3d.config.checks import at_least, check_seed, one_of, require, share

AUTO = "auto"
ACTIVATION_CHECKPOINTING = ("none", "cheap", "blocks")
TOKEN_NOISE_KINDS = ("uniform", "neighbours", "own")


@dataclass(kw_only=True)
class AugmentConfig:
    """Random changes of a training shape of the tokenizer, drawn each time that it is read.

    None by default. Applied by `tar3d/data/datasets/augment.py`.
    """

    # Each axis is scaled by a factor uniform in [low, high].
    scale: list[float] = field(default_factory=lambda: [1.0, 1.0])
    # Probability of a turn by any angle about the up axis; otherwise, unless this is 0, the shape
    # makes a quarter turn.
    rotate: float = 0.0
    # Probability of x -> -x.
    mirror: float = 0.0

    def __post_init__(self) -> None:
        require(
            len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] < math.inf,
            f"train.augment.scale must be [low, high] with 0 < low <= high, got {self.scale}",
        )
        for name in ("rotate", "mirror"):
            probability = getattr(self, name)
            require(
                0 <= probability <= 1,
                f"train.augment.{name} is a probability, got {probability}",
            )

    @property
    def active(self) -> bool:
        """Whether any of the changes is on."""
        return self != AugmentConfig()


@dataclass(kw_only=True)
class TrainConfig:
    """Settings that the trainings of tokenizer and GPT have in common."""

    seed: int = 0
    # "auto" is bf16-mixed where the hardware has it, else 32-true; 16-mixed is for GPUs without
    # bfloat16.
    precision: str = "auto"
    # Decay per step of the moving average of the weights that is validated and saved; 0: the
    # weights themselves.
    ema: float = 0.0
    # The same bits on a GPU too, which is slower; a CPU always gives them.
    deterministic: bool = False
    # Number of steps with a loss or gradient that is not finite that are skipped before the run
    # stops.
    skip_nonfinite: int = 0
    # Rows that go through the model together on one device; 0: all rows of a step, without
    # gradient accumulation.
    micro_batch_size: int = 0
    # torch.compile each block: about a minute at the start, then faster steps. "auto": on CUDA.
    compile: bool | str = AUTO
    # "none"; "cheap" recomputes all but matrix products; "blocks" recomputes everything. "auto": on
    # CUDA the least of them that fits in the free memory; on a CPU "cheap" for large models, else
    # "none". No number depends on it.
    activation_checkpointing: str = AUTO
    num_workers: int = 4
    validate_every: int = 2000
    validation_shapes: int = 64
    preview_shapes: int = 4
    save_every: int = 1000
    log_every: int = 50

    def __post_init__(self) -> None:
        one_of(
            "train.activation_checkpointing",
            self.activation_checkpointing,
            (AUTO, *ACTIVATION_CHECKPOINTING),
        )
        require(
            isinstance(self.compile, bool) or self.compile == AUTO,
            f"train.compile must be auto, true or false, got {self.compile!r}",
        )
        require(
            0 <= self.ema < 1, f"train.ema is the decay of an average, in [0, 1), got {self.ema}"
        )
        check_seed("train.seed", self.seed)
        at_least(
            1, self, "train.", "validate_every", "validation_shapes", "save_every", "log_every"
        )
        at_least(
            0,
            self,
            "train.",
            "skip_nonfinite",
            "micro_batch_size",
            "num_workers",
            "preview_shapes",
        )


@dataclass(kw_only=True)
class VQVAETrainConfig(TrainConfig):
    """The training of the tokenizer."""

    # "both" trains an autoencoder, then the codebook with it; "ae" trains without the codebook;
    # "vq" continues with it (--init); "decoder" trains the decoder alone, so that tokens stay the
    # same (--init).
    stage: str = "both"
    # Steps without the codebook, which come first.
    autoencoder_steps: int = 100_000
    codebook_steps: int = 100_000
    # Shapes per optimizer step over all devices.
    batch_size: int = 16
    # Per shape and step, drawn from those stored.
    surface_points: int = 81_920
    volume_points: int = 1024
    near_points: int = 1024
    near_weight: float = 0.1
    # Of a squared distance that is summed over tokenizer.code_dim coordinates. Where others take
    # the mean over them (VQGAN, LlamaGen), 0.25 with 8 coordinates is their 2.0.
    commitment_weight: float = 0.25
    # Of the share of the latents' variance that comes from the points drawn, measured by a second
    # sampling of each shape: above 0 a step draws twice as many surface points.
    consistency_weight: float = 0.0
    # Share of the shapes of a step whose decoder gets plausible wrong codes: a share
    # `replaced_codes` of them replaced by one of their `replaced_by` nearest codes.
    replaced_rows: float = 0.0
    replaced_codes: float = 0.5
    replaced_by: int = 16
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("train.stage", self.stage, ("both", "ae", "vq", "decoder"))
        require(
            self.stage != "ae" or self.autoencoder_steps > 0,
            "train.stage is ae, but train.autoencoder_steps is 0",
        )
        at_least(1, self, "train.", "codebook_steps", "batch_size", "surface_points", "replaced_by")
        share(self, "train.", "replaced_rows", "replaced_codes")
        at_least(
            0,
            self,
            "train.",
            "autoencoder_steps",
            "volume_points",
            "near_points",
            "near_weight",
            "commitment_weight",
            "consistency_weight",
        )
        require(
            self.volume_points + self.near_points > 0,
            "train.volume_points and train.near_points are both 0: nothing is learnt",
        )
        self._check_stage()

    def _check_stage(self) -> None:
        """Refuses settings of what the stage does not have."""
        if self.stage == "decoder":
            require(
                not self.consistency_weight,
                f"train.consistency_weight is {self.consistency_weight:g}, but train.stage=decoder "
                "leaves the encoder as it is: write train.consistency_weight=0",
            )
        if self.stage == "ae":
            require(
                not self.replaced_rows,
                f"train.replaced_rows is {self.replaced_rows:g}, but train.stage=ae has no codes: "
                "write train.replaced_rows=0",
            )

    @property
    def samplings(self) -> int:
        """Samplings of a shape's surface that a step sees."""
        return 2 if self.consistency_weight else 1

    @property
    def first_codebook_step(self) -> int:
        """The step from which on latents are quantized; `steps` if none are."""
        return 0 if self.stage in ("vq", "decoder") else self.autoencoder_steps

    @property
    def steps(self) -> int:
        """All steps of the run."""
        return self.first_codebook_step + (0 if self.stage == "ae" else self.codebook_steps)


@dataclass(kw_only=True)
class GPTTrainConfig(TrainConfig):
    """The training of the GPT."""

    # "gpt" trains everything; "code_predictor" the encoders and the code predictor alone, which
    # costs little; "transformer" the rest, and leaves encoders and code predictor as they are.
    stage: str = "gpt"
    steps: int = 400_000
    # Rows per optimizer step over all devices and accumulation steps.
    global_batch_size: int = 64
    # How several processes share the model: with "ddp" each holds all of it; with "fsdp" a part,
    # for sizes that need it.
    strategy: str = "ddp"
    # How the model directory stores weights; float16 halves it.
    weights_dtype: str = "float32"
    # Largest file of the model directory in MB; larger weights are split.
    weights_file_mb: int = 5000
    # Samplings of a surface whose mean latents decide the tokens of a shape; 1: all stored points
    # in one (tar3d/data/tokens/token_maker.py).
    token_samplings: int = 1
    # Largest share of a row's input tokens that are replaced; each row draws its own share below
    # it.
    token_noise: float = 0.0
    # What they are replaced by: "uniform", any code; "neighbours", one of the 15 codes nearest to
    # the true one; "own", what the GPT itself draws there after true tokens (one more forward pass
    # a step).
    token_noise_kind: str = "uniform"
    # Codes of a target: 1, the token alone; more, also the codes nearest to it, each with the share
    # that its distance to the shape's latent gives it.
    target_codes: int = 1
    # Of these shares, softmax(cosine / temperature). 0.006 is how much the cosines of two
    # neighbouring codes differ when a shape is sampled again (shipped tokenizer, 8,192 points).
    target_temperature: float = 0.006
    # Weight of the loss between the predicted codes (gpt.code_predictor_dim) and the true ones.
    code_predictor_weight: float = 0.0
    # Probability that a trained text encoder sees a word as an unknown one.
    word_dropout: float = 0.0
    # Probability, times that of each change, with which the images of a trained image encoder are
    # changed as cameras, files and cut-outs change them (tar3d/condition/image_changes.py).
    image_changes: float = 0.0
    # Additional rows of each step, over all devices, that only the image encoder and the code
    # predictor see, which is cheap.
    code_predictor_rows: int = 0
    # Weight of the loss between what the predicted codes and the true ones decode to; it is taken
    # of one row in `occupancy_every`, at `occupancy_points` points.
    occupancy_weight: float = 0.0
    occupancy_every: int = 8
    occupancy_points: int = 2048

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("train.stage", self.stage, ("gpt", "code_predictor", "transformer"))
        require(
            self.stage != "transformer"
            or not (
                self.code_predictor_weight or self.code_predictor_rows or self.occupancy_weight
            ),
            "train.stage=transformer leaves the code predictor as it is, but "
            f"train.code_predictor_weight {self.code_predictor_weight:g}, "
            f"train.code_predictor_rows {self.code_predictor_rows} and "
            f"train.occupancy_weight {self.occupancy_weight:g} train it: write 0 for all three",
        )
        one_of("train.token_noise_kind", self.token_noise_kind, TOKEN_NOISE_KINDS)
        require(
            self.token_noise > 0 or self.token_noise_kind == "uniform",
            f"train.token_noise_kind is {self.token_noise_kind}, but train.token_noise is 0, so no "
            "token is replaced: write a share, as in train.token_noise=0.2",
        )
        one_of("train.strategy", self.strategy, ("ddp", "fsdp"))
        one_of("train.weights_dtype", self.weights_dtype, ("float32", "float16"))
        at_least(1, self, "train.", "steps", "global_batch_size", "weights_file_mb")
        at_least(1, self, "train.", "token_samplings", "target_codes")
        at_least(1, self, "train.", "occupancy_every")
        at_least(2, self, "train.", "occupancy_points")
        at_least(
            0, self, "train.", "code_predictor_weight", "code_predictor_rows", "occupancy_weight"
        )
        share(self, "train.", "token_noise", "image_changes")
        require(
            0 < self.target_temperature < math.inf,
            f"train.target_temperature must be above 0, got {self.target_temperature}",
        )
        require(
            self.target_codes == 1 or self.stage != "code_predictor",
            f"train.target_codes {self.target_codes} is of the layers' loss, which "
            "train.stage=code_predictor does not have: write train.target_codes=1",
        )
        require(
            0 <= self.word_dropout < 1,
            f"train.word_dropout is a probability below 1, got {self.word_dropout}",
        )
