"""Configuration: every default in one place, every key checked, every key used."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import math
from pathlib import Path
from typing import get_type_hints

import pytest

from tar3d import config as configuration
from tar3d.config import (
    GPT_SIZES,
    EvalProtocol,
    GPTConfig,
    GPTRunConfig,
    GPTTrainConfig,
    ImageEncoderConfig,
    OptimConfig,
    PointSamplingConfig,
    PrepareConfig,
    SamplingConfig,
    TokenizerConfig,
    ViewConfig,
    VQVAEConfig,
    VQVAETrainConfig,
    add_config_flags,
    add_sampling_flags,
    config_from_flags,
    from_mapping,
    gpt_config,
    help_texts,
    load,
    load_gpt_run,
    sampling_from_flags,
    save,
    size_note,
    to_mapping,
    with_defaults,
)
from tar3d.config.flags import described
from tar3d.training.trackers import TRACKERS

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("*.py"))
CODE = sorted((ROOT / "tar3d").rglob("*.py")) + SCRIPTS
RUN_CONFIGS = {"vqvae": VQVAEConfig, "gpt": GPTRunConfig}  # by how the file's name starts


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=relative)
def test_every_shipped_file_loads(path):
    named = next((cls for prefix, cls in RUN_CONFIGS.items() if path.name.startswith(prefix)), None)
    cls = EvalProtocol if path.parent.name == "eval" else named
    assert isinstance(load(cls, path), cls)


def test_save_and_load_are_inverse(tmp_path):
    config = load(
        VQVAEConfig,
        None,
        ["tokenizer.grid_size=8", "optim.muon_lr=0.02", "train.precision=32-true"],
    )
    save(config, tmp_path / "config.yaml")
    assert load(VQVAEConfig, tmp_path / "config.yaml") == config
    assert to_mapping(config)["tokenizer"]["grid_size"] == 8


def test_overrides_win_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("train: {batch_size: 3, seed: 5}\n")
    config = load(VQVAEConfig, tmp_path / "a.yaml", ["train.batch_size=7"])
    assert (config.train.batch_size, config.train.seed) == (7, 5)
    assert load(PointSamplingConfig, None, ["near_sigmas=[0.1,0.2]"]).near_sigmas == [0.1, 0.2]


def test_what_is_prepared_has_flat_sample_keys_and_nested_views():
    config = load(PrepareConfig, None, ["near_points=7", "views.size=32", "views.azimuth=[-10,10]"])
    assert config.samples == PointSamplingConfig(near_points=7) and config.views == ViewConfig(
        size=32, azimuth=[-10.0, 10.0]
    )


def test_values_of_an_earlier_version_are_completed():
    assert with_defaults(ViewConfig, {"count": 2}, "settings.json") == to_mapping(
        ViewConfig(count=2)
    )
    with pytest.raises(ValueError, match=r"settings\.json.*colour"):
        with_defaults(ViewConfig, {"colour": "red"}, "settings.json")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["train.batchsize=4"], "no key 'train.batchsize'; did you mean train.batch_size"),
        (["foo.bar=1"], "no key 'foo'; keys of the configuration are tokenizer, optim, train"),
        (["train.batch_size=four"], "train.batch_size must be a whole number, got 'four'"),
        (["train.batch_size=1.5"], "train.batch_size must be a whole number, got 1.5"),
        (["train.batch_size="], "train.batch_size must be a whole number, got None"),
        (["train.batch_size.x=3"], "train.batch_size is one value and has no keys of its own"),
        (["train=3"], "train is a section of keys, got 3: .* as in train.seed=VALUE"),
        (["train.compile=maybe"], "train.compile must be auto, true or false, got 'maybe'"),
        (["train.compile=1"], "train.compile must be auto, true or false, got 1"),
        (["train.deterministic=-1"], "train.deterministic must be true or false, got -1"),
        (["train.activation_checkpointing=all"], "allowed are auto, none, cheap, blocks"),
        (["train.augment.scale=[1,.inf]"], "with 0 < low <= high"),
        (["train.augment.scale=2"], r"train.augment.scale must be a list, as in \[a,b\], got 2"),
        (["train.augment.scale=[1"], "is not readable"),
        (["train.recompute=cheap", "train.activation_checkpointing=none"], "give one of the two"),
        (["batch_size"], "'batch_size' is not an override"),
        (["--train.batch_size=4"], "not an override"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(overrides, message):
    with pytest.raises(ValueError, match=message):
        load(VQVAEConfig, None, overrides)


def test_a_run_shorter_than_its_warm_up_is_told_so():
    assert "never reaches the peak" in OptimConfig(warmup_steps=2).warmup_note(1)
    assert OptimConfig(warmup_steps=2).warmup_note(2) == ""


def test_unknown_key_in_a_file_names_the_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("tokenizer: {gridsize: 8}\n")
    with pytest.raises(ValueError, match=r"mine\.yaml.*gridsize"):
        load(VQVAEConfig, tmp_path / "mine.yaml")


@pytest.mark.parametrize("text", ["train: [1, 2\n", "- 1\n- 2\n", "just words\n"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"broken\.yaml"):
        load(VQVAEConfig, tmp_path / "broken.yaml")


def test_an_empty_file_means_the_defaults(tmp_path):
    (tmp_path / "empty.yaml").write_text("")
    assert load(VQVAEConfig, tmp_path / "empty.yaml") == VQVAEConfig()


def test_missing_file_is_named():
    with pytest.raises(ValueError, match=r"configs/none\.yaml does not exist"):
        load(VQVAEConfig, "configs/none.yaml")


INF, NAN = math.inf, math.nan
CONTRADICTIONS = [
    (PointSamplingConfig, {"surface_points": 0}),
    (PointSamplingConfig, {"near_sigmas": []}),
    (PointSamplingConfig, {"near_sigmas": [0.1, -0.1]}),
    (ViewConfig, {"size": 8}),
    (ViewConfig, {"azimuth": [10.0]}),
    (ViewConfig, {"elevation": [30.0, 5.0]}),
    (ViewConfig, {"distance": 1.0}),
    (ViewConfig, {"background": "black"}),
    (ViewConfig, {"field_of_view": 0.0}),
    (ViewConfig, {"field_of_view": 180.0}),
    (TokenizerConfig, {"width": 100, "num_heads": 3}),
    (TokenizerConfig, {"num_heads": 0}),
    (TokenizerConfig, {"codebook_size": 1}),
    (TokenizerConfig, {"grid_size": 0}),
    (TokenizerConfig, {"upsample_stages": 0}),
    (TokenizerConfig, {"occupancy_layers": 0}),
    (OptimConfig, {"muon_lr": 0.0}),
    (OptimConfig, {"adamw_lr": -1.0}),
    *[(OptimConfig, {"muon_lr": rate}) for rate in (-1.0, NAN, INF)],
    *[(OptimConfig, {"adamw_lr": rate}) for rate in (0.0, NAN, INF)],
    *[(OptimConfig, {"weight_decay": decay}) for decay in (-0.1, NAN, INF, 1001.0)],
    *[
        (OptimConfig, {name: value})
        for name in ("beta1", "beta2", "muon_momentum")
        for value in (-0.1, 1.0, NAN)
    ],
    *[(OptimConfig, {"final_lr_fraction": share}) for share in (-0.1, 1.1, NAN)],
    *[(OptimConfig, {"decay_fraction": share}) for share in (0.0, NAN)],
    *[(OptimConfig, {"grad_clip": norm}) for norm in (-1.0, NAN)],
    (OptimConfig, {"warmup_steps": -1}),
    (ImageEncoderConfig, {"model": ""}),
    (ImageEncoderConfig, {"model": "trained", "image_size": 60}),
    (ImageEncoderConfig, {"foreground_fill": 1.5}),
    (GPTConfig, {"rope": "none"}),
    (GPTConfig, {"layer_pattern": "LLX"}),
    (GPTConfig, {"condition_dropout": 1.0}),
    (GPTConfig, {"width": 10, "num_heads": 2}),
    (GPTConfig, {"num_heads": 0}),
    (GPTConfig, {"chunk_size": 0}),
    (GPTConfig, {"linear_backend": "cuda"}),
    (GPTConfig, {"attention_backend": "chunked"}),
    (GPTConfig, {"linear_attention": ""}),
    (GPTConfig, {"layout": "words"}),
    *[(SamplingConfig, {"temperature": value}) for value in (-1.0, 1e-45, NAN, INF)],
    *[(SamplingConfig, {"cfg_scale": scale}) for scale in (-1.0, NAN, INF)],
    *[(SamplingConfig, {"code_predictor_scale": scale}) for scale in (-1.0, NAN, INF)],
    *[(SamplingConfig, {"top_p": value}) for value in (0.0, NAN, INF)],
    *[(SamplingConfig, {"min_p": value}) for value in (1.0, NAN, INF)],
    (SamplingConfig, {"top_k": -1}),
    (VQVAETrainConfig, {"batch_size": 0}),
    (VQVAETrainConfig, {"validate_every": 0}),
    (VQVAETrainConfig, {"codebook_steps": 0}),
    (VQVAETrainConfig, {"autoencoder_steps": -1}),
    (VQVAETrainConfig, {"validation_shapes": 0}),
    *[(VQVAETrainConfig, {"ema": decay}) for decay in (-0.1, 1.0, NAN)],
    *[(VQVAETrainConfig, {"commitment_weight": weight}) for weight in (-0.1, NAN, INF)],
    (VQVAETrainConfig, {"consistency_weight": -0.1}),
    (VQVAETrainConfig, {"consistency_weight": 0.1, "stage": "decoder"}),
    (VQVAETrainConfig, {"replaced_rows": 0.1, "stage": "ae"}),
    (VQVAETrainConfig, {"replaced_rows": 1.1}),
    (VQVAETrainConfig, {"replaced_by": 0}),
    (TokenizerConfig, {"pool_factor": 3}),
    (EvalProtocol, {"frame": "mine"}),
    (EvalProtocol, {"points": 0}),
    (EvalProtocol, {"thresholds": []}),
    (EvalProtocol, {"thresholds": [0.0]}),
    (EvalProtocol, {"near_sigma": 0.0}),
    *[(EvalProtocol, {"seed": seed}) for seed in (-1, 2**64)],
    *[(GPTTrainConfig, {"seed": seed}) for seed in (-1, 2**64)],
    *[(GPTTrainConfig, {"token_noise": share}) for share in (-0.1, 1.1, NAN)],
    (GPTTrainConfig, {"steps": 0}),
    (GPTTrainConfig, {"save_every": 0}),
    (GPTTrainConfig, {"micro_batch_size": -1}),
]


@pytest.mark.parametrize(
    "cls, values", CONTRADICTIONS, ids=lambda v: v.__name__ if isinstance(v, type) else ",".join(v)
)
def test_contradictions_are_refused(cls, values):
    with pytest.raises(ValueError, match="|".join(values)):
        cls(**values)
    with pytest.raises(ValueError, match="|".join(values)):  # the same through a file
        from_mapping(cls, values, "here")


@pytest.mark.parametrize("cls", [VQVAETrainConfig, GPTTrainConfig])
def test_no_number_of_a_training_is_taken_that_it_cannot_have(cls):
    types = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        wrong = {int: [-1], float: [-1.0, NAN, INF], bool: [-1, 2]}.get(types[field.name], [])
        for value in wrong:
            with pytest.raises(ValueError, match=f"train.{field.name}|^here: {field.name} must be"):
                from_mapping(cls, {field.name: value}, "here")


def test_sizes_by_name():
    assert all(gpt_config(name).num_layers == layers for name, (layers, _, _) in GPT_SIZES.items())
    assert gpt_config("GPT-B", grid_size=16).grid_size == 16
    with pytest.raises(ValueError, match="GPT-Z.*GPT-B"):
        gpt_config("GPT-Z")
    with pytest.raises(ValueError, match="gridsize: no such field"):
        gpt_config("GPT-B", gridsize=16)


# precedence: the named size, the file, overrides --------------------------------------------------


@pytest.fixture
def sized(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("gpt: {width: 384, num_layers: 8, num_heads: 6, grid_size: 4}\n")
    return path


def test_a_size_in_the_file_wins_over_the_name(sized):
    gpt = load_gpt_run(sized, "GPT-tiny", TokenizerConfig(grid_size=8)).gpt
    assert (gpt.num_layers, gpt.width, gpt.num_heads, gpt.grid_size) == (8, 384, 6, 4)
    assert size_note(gpt, "GPT-tiny") == (
        "not the size GPT-tiny: config file or overrides set gpt.num_layers 8 instead of 6, "
        "gpt.width 384 instead of 192, gpt.num_heads 6 instead of 3"
    )


def test_the_command_line_wins_over_the_file(sized):
    gpt = load_gpt_run(sized, "GPT-tiny", TokenizerConfig(), ["gpt.width=192"]).gpt
    assert (gpt.num_layers, gpt.width, gpt.num_heads) == (8, 192, 6)


def test_the_name_decides_what_the_file_leaves_open():
    config = load_gpt_run("configs/gpt_i23d.yaml", "GPT-L", TokenizerConfig(grid_size=8))
    assert (config.gpt.num_layers, config.gpt.width) == (24, 1024)
    assert config.gpt.grid_size == 8 and size_note(config.gpt, "GPT-L") is None


# flags made from a dataclass ----------------------------------------------------------------------


def test_sampling_flags_change_what_they_name():
    parser = argparse.ArgumentParser()
    add_sampling_flags(parser.add_argument_group("sampling"))
    base = SamplingConfig(cfg_scale=3.0, temperature=0.5)
    flags = ["--temperature", "0", "--top-k", "5", "--code-predictor-scale", "2"]
    assert sampling_from_flags(parser.parse_args([]), base) == base
    assert sampling_from_flags(parser.parse_args(flags), base) == SamplingConfig(
        cfg_scale=3.0, temperature=0.0, top_k=5, code_predictor_scale=2.0
    )
    with pytest.raises(ValueError, match="top_p must be in"):
        sampling_from_flags(parser.parse_args(["--top-p", "2"]), base)
    with pytest.raises(SystemExit):
        parser.parse_args(["--top-k", "1.5"])


def test_every_sampling_setting_has_a_flag_with_its_old_spelling():
    parser = argparse.ArgumentParser()
    add_sampling_flags(parser)
    assert {"--temperature", "--top-k", "--top-p", "--min-p", "--cfg-scale"} < set(
        parser._option_string_actions
    )
    assert set(help_texts(SamplingConfig)) == {f.name for f in dataclasses.fields(SamplingConfig)}


@dataclasses.dataclass(kw_only=True)
class MoreSampling(SamplingConfig):
    typical_p: float = described(1.0, "draw from the typical tokens; 1 is off")
    greedy_first: bool = described(False, "no draw for the first token")
    internal: int = 3


def test_a_new_described_field_is_a_flag_without_any_other_change():
    parser = argparse.ArgumentParser()
    add_config_flags(parser, MoreSampling)
    args = parser.parse_args(["--typical-p", "0.5", "--greedy-first"])
    changed = config_from_flags(args, MoreSampling(internal=4))
    assert changed == MoreSampling(typical_p=0.5, greedy_first=True, internal=4)
    assert "--typical-p TYPICAL_P" in parser.format_help() and "internal" not in vars(args)


# every key and every flag is read -----------------------------------------------------------------


def config_classes() -> list[type]:
    return [
        v
        for v in vars(configuration).values()
        if dataclasses.is_dataclass(v) and v.__module__.startswith(configuration.__name__)
    ]


class Reads(ast.NodeVisitor):
    """Names of attributes that code loads, outside the checks in `__post_init__`, which use no
    value."""

    def __init__(self) -> None:
        self.attributes: set[str] = set()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name != "__post_init__":
            self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self.attributes.add(node.attr)
        self.generic_visit(node)


def attributes_read(paths: list[Path]) -> set[str]:
    reads = Reads()
    for path in paths:
        reads.visit(ast.parse(path.read_text(encoding="utf-8")))
    return reads.attributes


@pytest.mark.parametrize("cls", config_classes(), ids=lambda c: c.__name__)
def test_every_config_key_is_read_somewhere(cls):
    dead = {f.name for f in dataclasses.fields(cls)} - attributes_read(CODE)
    assert not dead, f"{cls.__name__} has keys that change nothing: {sorted(dead)}"


def flags_of(path: Path) -> set[str]:
    """Destinations of the `add_argument` calls in a file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == "add_argument"
        ):
            given = {
                k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)
            }
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
            if not names:
                continue  # made from a dataclass, whose fields are walked above
            choices = next((k.value for k in node.keywords if k.arg == "choices"), None)
            if isinstance(choices, ast.List) and len(choices.elts) == 1:
                continue  # argparse has already decided it
            dest = {"dest": given["dest"]} if "dest" in given else {}
            found.add(argparse.ArgumentParser(add_help=False).add_argument(*names, **dest).dest)
    return found


class Parsed(Exception):
    """Raised in the place of parsing; holds the parser."""


@pytest.fixture
def parser_of(monkeypatch):
    """The parser of a script, with all flags that the script and the package add to it."""

    def stop(self, *args, **kwargs):
        raise Parsed(self)

    def find(path: Path) -> argparse.ArgumentParser:
        script = importlib.import_module(path.stem)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        monkeypatch.setattr(argparse.ArgumentParser, "parse_known_intermixed_args", stop)
        with pytest.raises(Parsed) as caught:
            script.parse_arguments([])
        return caught.value.args[0]

    return find


def attributes_of_args(path: Path) -> set[str]:
    return {
        n.attr
        for n in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "args"
    }


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_every_flag_of_a_script_is_read(path, parser_of):
    """Flags that several scripts share, in every script that has them."""
    decided = ("help", "version")  # by argparse itself
    flags = {
        action.dest
        for action in parser_of(path)._actions
        if action.dest not in decided and not (action.choices and len(list(action.choices)) == 1)
    }
    read = attributes_of_args(path)
    if "sampling_from_flags(args" in path.read_text(encoding="utf-8"):
        read |= set(help_texts(SamplingConfig))
    if "chosen_trackers(args)" in path.read_text(encoding="utf-8"):
        read |= set(TRACKERS)
    if "encoder_folders(args)" in path.read_text(encoding="utf-8"):
        read |= {"image_encoder", "text_encoder"}
    if "start_processes(args" in path.read_text(encoding="utf-8"):
        read |= {"gpus", "num_nodes"}
    assert flags and flags <= read, f"{relative(path)} never reads {sorted(flags - read)}"


@pytest.mark.parametrize(
    "path",
    [p for p in CODE if flags_of(p) and "_args(" in p.read_text() and p not in SCRIPTS],
    ids=relative,
)
def test_every_flag_of_a_command_is_read(path):
    unread = flags_of(path) - attributes_of_args(path)
    assert not unread, f"{relative(path)} never reads {sorted(unread)}"


def test_the_walk_finds_the_flags(parser_of):
    assert {"gpus", "num_nodes"} <= flags_of(ROOT / "tar3d" / "runtime" / "arguments.py")
    dests = {action.dest for action in parser_of(ROOT / "train_gpt.py")._actions}
    assert {"gpus", "num_nodes", "resume", "overrides", "vq_ckpt"} <= dests
