"""What identifies a training, and what a resumed one may change.

Every state holds an `identity`: the configuration, and *facts* on what the training learns from
(hashes of its data, its encoders, `--overfit`). A state resumes only where these are the same,
except for the configuration keys that `ON_RESUME` lets change: their new values hold from the next
step on. States of earlier versions have no identity and resume unchecked.

| may change                                 | identifies the run                                  |
|--------------------------------------------|-----------------------------------------------------|
| rates, decay, momentum, schedule, clipping | the kind of optimizer                               |
| number of steps, batch sizes, loss weights | seed, stage, moving average, validation shapes      |
| noise, dropout, augmentation               | shape and function of the models, preprocessing     |
| speed, memory, devices, precision          | tokenizer, encoders, words, data and its splits     |
| how often to validate, save and log        | `--overfit`                                         |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tar3d import config as configuration
from tar3d.training.state import load_state
from tar3d.upgrade import upgrade_state_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tar3d.config import GPTRunConfig, VQVAEConfig

MAY_CHANGE, IDENTIFIES = "may change", "identifies the run"
MOST_NAMED = 5  # differences in a message


def _keys(rule: str, section: str, names: str) -> dict[str, str]:
    """A rule for several keys of a section; names are separated by spaces."""
    return {f"{section}.{name}": rule for name in names.split()}


# Configuration key of either training -> its rule. A new key needs a line here.
ON_RESUME: dict[str, str] = {
    "conditions": IDENTIFIES,
    "nouns": MAY_CHANGE,
    "tokenizer_fingerprint": IDENTIFIES,
    "image_encoder_weights": IDENTIFIES,
    "text_encoder_weights": IDENTIFIES,
    **_keys(
        IDENTIFIES,
        "tokenizer",
        "grid_size width num_heads num_frequencies encoder quantizer fsq_levels "
        "encoder_layers point_width pool_factor density_points codebook_size code_dim "
        "decoder_layers plane_channels upsample_stages occupancy_width occupancy_layers",
    ),
    **_keys(
        IDENTIFIES,
        "gpt",
        "num_layers width num_heads grid_size codebook_size condition_tokens condition_width "
        "layout layer_pattern cross_attention tokens_per_step token_order rope prefix_rope "
        "code_predictor_dim code_predictor_local code_predictor_hidden rope_base "
        "absolute_positions linear_attention "
        "linear_gate",
    ),
    **_keys(
        MAY_CHANGE,
        "gpt",
        "condition_dropout linear_backend attention_backend residual_dtype chunk_size",
    ),
    # A frozen encoder may move to another folder: its weights are compared, not its place.
    **_keys(MAY_CHANGE, "image_encoder", "model"),
    **_keys(
        IDENTIFIES,
        "image_encoder",
        "image_size foreground_fill patch_size width num_layers num_heads",
    ),
    **_keys(MAY_CHANGE, "text_encoder", "model"),
    **_keys(IDENTIFIES, "text_encoder", "max_tokens dtype vocabulary width num_layers num_heads"),
    **_keys(IDENTIFIES, "optim", "optimizer"),
    **_keys(
        MAY_CHANGE,
        "optim",
        "muon_lr adamw_lr weight_decay beta1 beta2 muon_momentum warmup_steps schedule "
        "decay_fraction final_lr_fraction grad_clip",
    ),
    **_keys(IDENTIFIES, "train", "seed ema validation_shapes stage token_samplings"),
    **_keys(
        MAY_CHANGE,
        "train",
        "precision deterministic skip_nonfinite micro_batch_size compile activation_checkpointing "
        "num_workers validate_every preview_shapes save_every log_every strategy weights_dtype "
        "weights_file_mb",
    ),
    # The start of the codebook stays where it was once either has passed it (`_check_steps`).
    **_keys(MAY_CHANGE, "train", "steps autoencoder_steps codebook_steps"),
    **_keys(
        MAY_CHANGE,
        "train",
        "batch_size global_batch_size surface_points volume_points near_points near_weight "
        "commitment_weight consistency_weight replaced_rows replaced_codes replaced_by token_noise "
        "token_noise_kind target_codes target_temperature image_changes "
        "code_predictor_weight word_dropout code_predictor_rows occupancy_weight occupancy_every "
        "occupancy_points",
    ),
    **_keys(MAY_CHANGE, "train.augment", "scale rotate mirror"),
    **_keys(MAY_CHANGE, "sampling", "temperature top_k top_p min_p cfg_scale code_predictor_scale"),
}


def new_identity(config: VQVAEConfig | GPTRunConfig, facts: dict[str, str]) -> dict[str, dict]:
    """The identity of a training, as its states hold it."""
    return {"config": configuration.to_mapping(config), "facts": facts}


def check_resumed(
    path: Path | None, config: VQVAEConfig | GPTRunConfig, facts: dict[str, str]
) -> None:
    """Raises ValueError where the state in the file `path` is not of this training.

    For what is known before the data is read, which may take long; `check_state_identity` has the
    rest. No effect where `path` is None.
    """
    if path is not None:
        check_state_identity(load_state(path, lazily=True), config, facts, path)


def check_state_identity(
    state: dict, config: VQVAEConfig | GPTRunConfig, facts: dict[str, str], path: Path
) -> tuple[dict, str]:
    """Compares the state in the file `path` with the training that resumes it.

    Returns what run.json notes of the resume ("step", and "changed": the configuration keys that
    have other values from now on, each with its old and new one), and a line for the user. Raises
    ValueError where it is another training, and where no step is left to it.
    """
    step, identity = state.get("step", 0), state.get("identity")
    if config.train.steps < step:
        raise ValueError(
            f"{path} is of step {step}, but the training has {config.train.steps} steps now: give "
            "it more, or resume an earlier state"
        )
    if identity is None:
        return {"step": step, "changed": {}}, (
            f"{path} is of an earlier version, which noted neither configuration nor data: that "
            "this is the same training could not be checked, and the values given now hold"
        )
    saved_values = upgrade_state_config(identity["config"])
    before = configuration.with_defaults(type(config), saved_values, str(path))
    values = dict(leaves(before))
    changed = {
        key: [values.get(key), value]
        for key, value in leaves(configuration.to_mapping(config))
        if values.get(key) != value
    }
    wrong = {k: v for k, v in changed.items() if ON_RESUME.get(k, IDENTIFIES) == IDENTIFIES}
    for name, fact in facts.items():
        if (saved := identity["facts"].get(name, fact)) != fact:
            wrong[name] = [saved, fact]
    if wrong:
        named = [f"{k} is {old} there and {new} now" for k, (old, new) in wrong.items()]
        more = f"; and {len(wrong) - MOST_NAMED} more" if len(wrong) > MOST_NAMED else ""
        raise ValueError(
            f"{path} is of another training: {'; '.join(named[:MOST_NAMED])}{more}. Resume with "
            "what that run was started with (run.json in its folder has command and configuration),"
            " or start a new run with another --out; --init MODEL lets it begin with the weights "
            "of a model"
        )
    _check_codebook_start(before["train"], config, step)
    news = ", ".join(f"{key} {new} instead of {old}" for key, (old, new) in changed.items())
    line = f"resumes at step {step} with {news or 'all as before'}"
    return {"step": step, "changed": changed}, line


def _check_codebook_start(before: dict, config: VQVAEConfig | GPTRunConfig, step: int) -> None:
    """Raises ValueError where the codebook of a tokenizer would start twice, or never."""
    key = "autoencoder_steps"
    if isinstance(config, configuration.VQVAEConfig) and config.train.stage == "both":
        old, new = before[key], config.train.autoencoder_steps
        if old != new and min(old, new) < step:
            raise ValueError(
                f"train.{key} is {new}, but this run is at step {step} and its codebook was to "
                f"start after {old}: write train.{key}={old}, or start a new run with another --out"
            )


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted keys of nested values, with their values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
