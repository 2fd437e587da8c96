"""Files, states and command lines with the names of earlier versions keep working."""

import pytest
import torch
import yaml
from safetensors import safe_open

from tar3d.checkpoint import read_config
from tar3d.config import (
    GPTRunConfig,
    SamplingConfig,
    VQVAEConfig,
    load,
    save,
    to_mapping,
    with_defaults,
)
from tar3d.paths import shipped
from tar3d.upgrade import (
    CONFIG_KEYS,
    FLAGS,
    upgrade_config,
    upgrade_flags,
    upgrade_overrides,
    upgrade_parameters,
    upgrade_state_config,
)

OLD = """
gpt: {linear: delta, rope_prefix: zero, sketch_dim: 8, sketch_hidden: 16, sketch_local: 4}
image_encoder: {source: owner/dino}
text_encoder: {source: owner/t5}
optim: {hidden_matrices: adamw}
sampling: {sketch_scale: 2.0}
train: {recompute: cheap, sketch_rows: 3, sketch_weight: 0.5, stage: sketch}
"""
NEW = """
gpt:
  linear_attention: delta
  prefix_rope: zero
  code_predictor_dim: 8
  code_predictor_hidden: 16
  code_predictor_local: 4
image_encoder: {model: owner/dino}
text_encoder: {model: owner/t5}
optim: {optimizer: adamw}
sampling: {code_predictor_scale: 2.0}
train:
  activation_checkpointing: cheap
  code_predictor_rows: 3
  code_predictor_weight: 0.5
  stage: code_predictor
"""


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "old.yaml"
    path.write_text(OLD)
    return path


def test_the_example_holds_every_old_key():
    held = {f"{s}.{key}" for s, fields in yaml.safe_load(OLD).items() for key in fields}
    assert set(CONFIG_KEYS) <= held


def test_an_old_config_file_says_the_same_as_a_new_one(old, tmp_path):
    (tmp_path / "new.yaml").write_text(NEW)
    config = load(GPTRunConfig, old)
    assert config == load(GPTRunConfig, tmp_path / "new.yaml") != GPTRunConfig()
    save(config, tmp_path / "saved.yaml")
    assert "sketch" not in (tmp_path / "saved.yaml").read_text()
    assert load(GPTRunConfig, tmp_path / "saved.yaml") == config


def test_a_new_override_wins_over_an_old_key_in_the_file_and_the_other_way_round(old, tmp_path):
    assert load(GPTRunConfig, old, ["gpt.code_predictor_dim=4"]).gpt.code_predictor_dim == 4
    (tmp_path / "new.yaml").write_text(NEW)
    changed = load(GPTRunConfig, tmp_path / "new.yaml", ["gpt.sketch_dim=4", "train.stage=sketch"])
    assert (changed.gpt.code_predictor_dim, changed.train.stage) == (4, "code_predictor")


def test_old_overrides_and_values():
    given = [
        "train.stage=layers",
        "train.recompute=blocks",
        "image_encoder.source=a=b",
        "gpt.width=8",
        "train.stage",  # is refused later, by its own name
    ]
    assert upgrade_overrides(given) == [
        "train.stage=transformer",
        "train.activation_checkpointing=blocks",
        "image_encoder.model=a=b",
        "gpt.width=8",
        "train.stage",
    ]
    with pytest.raises(ValueError, match="optim.hidden_matrices is the old name of optim.optimi"):
        upgrade_overrides(["optim.optimizer=muon", "optim.hidden_matrices=adamw"])


def test_a_key_under_both_names_is_refused(tmp_path):
    (tmp_path / "both.yaml").write_text("gpt: {sketch_dim: 8, code_predictor_dim: 8}\n")
    message = "both.yaml: gpt.sketch_dim is the old name of gpt.code_predictor_dim: give one"
    with pytest.raises(ValueError, match=message):
        load(GPTRunConfig, tmp_path / "both.yaml")


def test_what_is_upgraded_is_left_as_it_was():
    values = {"gpt": {"linear": "gated"}, "conditions": ["image"]}
    assert upgrade_config(values)["gpt"] == {"linear_attention": "gated"}
    assert values == {"gpt": {"linear": "gated"}, "conditions": ["image"]}
    assert with_defaults(SamplingConfig, {"top_k": 3}, "here")["top_k"] == 3


def test_the_shipped_gpt_has_old_names_in_config_and_weights():
    folder = shipped("pretrained/tiny/gpt_any")
    assert "sketch_dim" in (folder / "config.yaml").read_text()
    assert load(GPTRunConfig, folder / "config.yaml").gpt.code_predictor_dim > 0
    names = set()
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            names |= set(file.keys())
    assert any(name.startswith("gpt.sketch.") for name in names)
    assert not any("sketch" in name for name in upgrade_parameters(dict.fromkeys(names)))


def test_old_weights_have_todays_names():
    a, b = torch.zeros(1), torch.ones(1)
    state = {"gpt.sketch.guess.0.weight": a, "model.gpt.sketch.local.weight": b, "gpt.head": b}
    assert upgrade_parameters(state) == {
        "gpt.code_predictor.mlp.0.weight": a,
        "model.gpt.code_predictor.local.weight": b,
        "gpt.head": b,
    }


def test_old_flags(monkeypatch):
    line = ["--sketch-scale", "3", "--init-sketch=DIR=x", "--judge", "J", "--top-k", "--sketch"]
    assert upgrade_flags(line) == [
        "--code-predictor-scale",
        "3",
        "--init-code-predictor=DIR=x",
        "--evaluator",
        "J",
        "--top-k",
        "--sketch",
    ]
    monkeypatch.setattr("sys.argv", ["run.py", *FLAGS])
    assert upgrade_flags(None) == list(FLAGS.values())


@pytest.mark.parametrize("trained, meant", [(4096, 8192), (81_920, 81_920)])
def test_an_old_tokenizer_counts_points_as_it_did(trained, meant, tmp_path):
    """A config without `density_points` means one number in a model, and another in a state."""
    values = {"tokenizer": {"width": 8, "num_heads": 2}, "train": {"surface_points": trained}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "model.safetensors").touch()
    assert read_config(tmp_path, VQVAEConfig).tokenizer.density_points == meant
    assert upgrade_state_config(values)["tokenizer"]["density_points"] == trained
    config = load(VQVAEConfig, tmp_path / "config.yaml", ["tokenizer.density_points=100"])
    save(config, tmp_path / "config.yaml")
    assert read_config(tmp_path, VQVAEConfig) == config
    assert upgrade_state_config(to_mapping(config)) == to_mapping(config)
