"""The variants of each ablation study of `benchmarks/ablate.py`.

A variant is a set of changes to configs/gpt_ablation.yaml. One that belongs to several studies is
trained once. Every variant gets its own learning rate, the best of `rates` at half the steps with a
seed that is not used again, and then the same steps, rows and seeds as the others, and the same
code predictor to begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

CONFIG, TOKENIZER_CONFIG = "configs/gpt_ablation.yaml", "configs/vqvae3d_small.yaml"
MODEL = ("gpt.num_layers=12", "gpt.width=96", "gpt.num_heads=2")
# Changes of configs/vqvae3d_small.yaml in every tokenizer that is trained for a study.
TOKENIZER = (
    "train.autoencoder_steps=480",
    "train.codebook_steps=320",
    "train.validate_every=800",
    "train.preview_shapes=0",
    "train.compile=true",
    "train.augment.scale=[1,1]",
    "train.augment.rotate=0",
    "train.augment.mirror=0",
)
# Changes of the recipe for the code predictor that every variant begins with.
CODE_PREDICTOR = (
    "train.stage=code_predictor",
    "train.steps=900",
    "train.global_batch_size=48",
    "optim.muon_lr=3e-3",
    "optim.adamw_lr=3e-3",
    "optim.warmup_steps=50",
)
MUON_RATES, ADAMW_RATES = (8e-3, 1.6e-2, 3.2e-2), (2e-3, 4e-3, 8e-3)
ADAMW_SHARE = 0.75  # adamw_lr over muon_lr, as in the shipped configs


@dataclass(frozen=True)
class Variant:
    """One way to do something, as `changes` of the recipe.

    `rates` are the learning rates that are tried, unless `rate_of` names the variant whose rate it
    takes; `share` is that of the steps. With `tokenizer`, changes of a tokenizer's recipe, a
    tokenizer is trained for the variant. Its GPT has then, as with `equal_cost`, as many steps as
    cost the same operations as all steps of the recipe on the shipped tokenizer's tokens.
    """

    name: str
    label: str
    changes: tuple[str, ...] = ()
    rates: tuple[float, ...] = MUON_RATES
    rate_of: str = ""
    share: float = 1.0
    tokenizer: tuple[str, ...] | None = None
    equal_cost: bool = False

    @property
    def token_changes(self) -> tuple[str, ...]:
        """The changes that decide which tokens the shipped tokenizer makes of a shape."""
        return tuple(c for c in self.changes if c.startswith("train.token_samplings="))

    @property
    def has_muon(self) -> bool:
        return "optim.optimizer=adamw" not in self.changes

    def rate_overrides(self, rate: float) -> tuple[str, ...]:
        if not self.has_muon:
            return (f"optim.adamw_lr={rate:g}",)
        return f"optim.muon_lr={rate:g}", f"optim.adamw_lr={ADAMW_SHARE * rate:g}"


@dataclass(frozen=True)
class AblationStudy:
    """Variants by name; the others are compared with the first."""

    name: str
    title: str
    variants: tuple[str, ...]

    @property
    def has_tokenizers(self) -> bool:
        return VARIANTS[self.variants[0]].tokenizer is not None


CANONICAL = "train.token_samplings=8"
SOFT = (CANONICAL, "train.target_codes=8")
NEIGHBOURS, OWN = "train.token_noise_kind=neighbours", "train.token_noise_kind=own"

VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("hybrid", "LLLF and the other defaults"),
        Variant("full", "F, full attention in all", ("gpt.layer_pattern=F",)),
        Variant("linear", "L, linear attention in all", ("gpt.layer_pattern=L",)),
        Variant("llf", "LLF, 4 full layers of 12", ("gpt.layer_pattern=LLF",), rate_of="hybrid"),
        Variant(
            "l7f", "LLLLLLLF, 1 full layer of 12", ("gpt.layer_pattern=LLLLLLLF",), rate_of="hybrid"
        ),
        Variant("adamw", "AdamW for everything", ("optim.optimizer=adamw",), ADAMW_RATES),
        Variant("muon_071", "Muon + AdamW, 1 / 1.4 of the steps", rate_of="hybrid", share=1 / 1.4),
        Variant("muon_050", "Muon + AdamW, half the steps", rate_of="hybrid", share=0.5),
        Variant("sequence", "1D rotary positions", ("gpt.rope=sequence",)),
        Variant(
            "paper_sum",
            "the paper's sum, zero prefix (TAR3D's code)",
            ("gpt.rope=paper_sum", "gpt.prefix_rope=zero"),
        ),
        Variant(
            "sum_identity",
            "the paper's sum, prefix by the identity",
            ("gpt.rope=paper_sum",),
            rate_of="paper_sum",
        ),
        Variant(
            "zero_prefix", "rotation, zero prefix", ("gpt.prefix_rope=zero",), rate_of="hybrid"
        ),
        Variant(
            "no_code_predictor",
            "no code predictor: only the prefix carries the image",
            ("gpt.code_predictor_dim=0", "train.stage=gpt", "sampling.code_predictor_scale=0"),
        ),
        Variant(
            "no_code_predictor_zero",
            "no code predictor, zero prefix",
            (
                "gpt.code_predictor_dim=0",
                "train.stage=gpt",
                "sampling.code_predictor_scale=0",
                "gpt.prefix_rope=zero",
            ),
            rate_of="no_code_predictor",
        ),
        Variant("planes", "plane after plane", ("gpt.token_order=planes",)),
        Variant("cells", "three tokens a step", ("gpt.tokens_per_step=3",)),
        *(
            Variant(
                f"r{side}_k{codes}",
                f"R {side}, {3 * side * side:,} tokens of {codes:,} codes",
                rate_of="hybrid",
                tokenizer=(
                    f"tokenizer.grid_size={side}",
                    f"tokenizer.codebook_size={codes}",
                    *more,
                ),
            )
            for side, codes, more in (
                (16, 4096, ()),
                (8, 4096, ("tokenizer.upsample_stages=4",)),
                (12, 4096, ()),
                (24, 4096, ()),
                (16, 1024, ()),
                (16, 16384, ()),
            )
        ),
        Variant("gated", "decay read from the data", ("gpt.linear_attention=gated",)),
        Variant("delta", "gated delta rule", ("gpt.linear_attention=delta",)),
        Variant("canonical", "tokens of 8 samplings, one-hot targets", (CANONICAL,)),
        Variant("soft", "soft targets of 8 codes", SOFT, rate_of="canonical"),
        Variant("neighbours", "noise of neighbours", (CANONICAL, NEIGHBOURS), rate_of="canonical"),
        Variant(
            "soft_neighbours",
            "soft targets, noise of neighbours",
            (*SOFT, NEIGHBOURS),
            rate_of="canonical",
        ),
        # Four passes of the layers a step in the place of three.
        Variant(
            "soft_own",
            "soft targets, noise of own samples, 3/4 of the steps",
            (*SOFT, OWN),
            rate_of="canonical",
            share=0.75,
        ),
        Variant(
            "soft_cross",
            "soft targets, cross-attention in every third block, equal cost",
            (*SOFT, "gpt.cross_attention=3"),
            rate_of="canonical",
            equal_cost=True,
        ),
    )
}

STUDIES = {
    study.name: study
    for study in (
        AblationStudy(
            "attention",
            "Hybrid, full and linear attention",
            ("hybrid", "full", "llf", "l7f", "linear"),
        ),
        AblationStudy(
            "optimizer", "Muon against AdamW", ("hybrid", "adamw", "muon_071", "muon_050")
        ),
        AblationStudy(
            "positions",
            "Rotary positions, and how the prefix is rotated",
            (
                "hybrid",
                "sequence",
                "sum_identity",
                "paper_sum",
                "zero_prefix",
                "no_code_predictor",
                "no_code_predictor_zero",
            ),
        ),
        AblationStudy(
            "order", "Order of the tokens, and tokens a step", ("hybrid", "planes", "cells")
        ),
        AblationStudy(
            "tokens",
            "Tokens a shape, and codes",
            ("r16_k4096", "r8_k4096", "r12_k4096", "r24_k4096", "r16_k1024", "r16_k16384"),
        ),
        AblationStudy(
            "linear",
            "Fixed decay, decay read from the data, and the delta rule",
            ("hybrid", "gated", "delta"),
        ),
        AblationStudy(
            "targets",
            "Soft targets, kinds of noise, and a second look at the image",
            ("canonical", "soft", "neighbours", "soft_neighbours", "soft_own", "soft_cross"),
        ),
    )
}
