"""Image, text, either or nothing: each type of GPT trained, saved, run and evaluated as its users
would."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_files import rows
from safetensors.torch import load_file
from script_runs import GPT, VQVAE

import eval_2d
import eval_3d
import run
import train_gpt
from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.conditional_gpt import ConditionalGPT, load_gpt
from tar3d.config import GPT_TYPES, GPTRunConfig, VQVAEConfig
from tar3d.data.formats.dataset_folder import read_splits
from tar3d.data.tokens.make_tokens import encoders_of
from tar3d.pipeline import Pipeline
from tar3d.tokenizer.vqvae import VQVAE as Tokenizer

TEXT = [
    "text_encoder.model=trained",
    "text_encoder.max_tokens=10",
    "text_encoder.vocabulary=32",
    "text_encoder.width=16",
    "text_encoder.num_layers=1",
    "text_encoder.num_heads=2",
    "train.word_dropout=0.2",
]
SMALL = [
    o for o in GPT if not o.startswith(("image_encoder", "train.steps", "train.validate_every"))
]
IMAGE = [o for o in GPT if o.startswith("image_encoder")]
OF_TYPE = {
    "i23d": IMAGE,
    "t23d": [*TEXT, "gpt.condition_tokens=10"],
    "uncond": ["gpt.condition_tokens=1"],
    "any": [*IMAGE, *TEXT],
}
STEPS = ["train.steps=2", "train.validate_every=2"]
FAST = ["points=200", "iou_points=200", "near_points=200"]


@pytest.fixture(scope="module")
def data(samples, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("conditions") / "set"
    shutil.copytree(samples, folder)
    ids = sorted(i for split in read_splits(folder).values() for i in split)
    (folder / "splits.json").write_text(
        json.dumps({"train": ids[:3], "val": ids[3:5], "test": ids[5:]})
    )
    lines = [f"{i},a {i.split('.')[0].replace('_', ' ')} of a kind" for i in ids] + [
        f"{ids[0]},a kind of thing"
    ]
    (folder / "captions.csv").write_text("\n".join(["id,caption", *lines]) + "\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """Untrained, with a field that is inside everywhere: always the cube."""
    config = configuration.load(VQVAEConfig, None, VQVAE)
    torch.manual_seed(0)
    model = Tokenizer(config.tokenizer)
    with torch.no_grad():
        model.occupancy.logit.bias.fill_(1000.0)
    return checkpoint.save_model(
        tmp_path_factory.mktemp("full") / "tokenizer", model, config, {}, ""
    )


@pytest.fixture(scope="module")
def models(data, tokenizer, tmp_path_factory) -> Path:
    """A run folder for each type, named after it; the set's tokens serve all of them."""
    root = tmp_path_factory.mktemp("runs")
    for name in GPT_TYPES:
        assert train(root / name, name, data, tokenizer) == 0
    return root


def train(out: Path, gpt_type: str, data: Path, tokenizer: Path, *more: str) -> int:
    empty = out.parent / "empty.yaml"
    empty.write_text("train: {seed: 0}\n")
    return train_gpt.main(
        [
            "--gpt-type",
            gpt_type,
            "--config",
            str(empty),
            "--data",
            str(data),
            "--vq-ckpt",
            str(tokenizer),
            "--out",
            str(out),
            *SMALL,
            *OF_TYPE[gpt_type],
            *STEPS,
            *more,
        ]
    )


@pytest.mark.parametrize("gpt_type", GPT_TYPES)
def test_each_type_trains_and_says_how_to_use_it(models, gpt_type):
    out, folder = models / gpt_type, models / gpt_type / "model" / f"gpt_{gpt_type}"
    assert (
        configuration.load(GPTRunConfig, folder / "config.yaml").conditions == GPT_TYPES[gpt_type]
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    own = {
        "i23d": {"nll_shuffled", "nll_null"},
        "t23d": {"nll_shuffled", "nll_null"},
        "uncond": set(),
        "any": {
            "nll_shuffled",
            "nll_null",
            "nll_image",
            "nll_image_shuffled",
            "nll_text",
            "nll_text_shuffled",
        },
    }[gpt_type]
    assert {
        k for k in metrics if k.startswith(("nll_image", "nll_text", "nll_shuffled", "nll_null"))
    } == own
    readme = (folder / "README.md").read_text()
    usage = {
        "i23d": "--input PICTURE",
        "t23d": '--prompt "TEXT"',
        "uncond": "uncond",
        "any": "or from nothing",
    }
    assert usage[gpt_type] in readme
    assert (folder / "words" / "tokenizer.json").is_file() == ("text" in GPT_TYPES[gpt_type])
    for name, columns in (("preview", 1 + max(1, len(GPT_TYPES[gpt_type]))), ("nll", 3)):
        with Image.open(out / f"{name}_0000002.png") as picture:
            assert picture.width >= columns * 190
    assert len((out / "train.csv").read_text().splitlines()) == 3


def test_a_gpt_without_conditions_makes_the_tokens_that_are_missing(data, tokenizer, tmp_path):
    own = tmp_path / "set"
    shutil.copytree(data, own, ignore=shutil.ignore_patterns("tokens", "views", "captions.csv"))
    few = ["train.steps=1", "train.preview_shapes=0"]
    assert train(tmp_path / "run", "uncond", own, tokenizer, *few) == 0
    made = sorted((own / "tokens").glob("*/tokens.npy"))
    assert len(made) == 3
    shutil.rmtree(own / "samples")  # finished shards are all that another training reads
    assert train(tmp_path / "again", "uncond", own, tokenizer, *few) == 0
    assert sorted((own / "tokens").glob("*/tokens.npy")) == made


def test_a_saved_model_speaks_its_own_words(models, data):
    folder = models / "t23d" / "model" / "gpt_t23d"
    loaded = load_gpt(folder)
    config = checkpoint.read_config(folder, GPTRunConfig)
    mine = encoders_of(config, data)["text"].text_tokenizer
    assert loaded.conditioner.encoder("text").text_tokenizer.identity == mine.identity
    known = load_file(folder / "model.safetensors")
    assert all(torch.equal(known[name], value) for name, value in loaded.state_dict().items())


def test_training_goes_on_from_a_model_of_another_type(models, data, tokenizer, tmp_path, capsys):
    """An image encoder that is the same is taken over; with it the way into the GPT."""
    init = models / "i23d" / "model" / "gpt_i23d"
    still = ["optim.muon_lr=1e-9", "optim.adamw_lr=1e-9", "train.preview_shapes=0"]
    assert train(tmp_path / "any", "any", data, tokenizer, "--init", str(init), *still) == 0
    assert "which start from scratch: the text encoder" in capsys.readouterr().out
    given, found = (
        load_file(f / "model.safetensors") for f in (init, tmp_path / "any" / "model" / "gpt_any")
    )
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in given.items())
    assert {name.split(".")[2] for name in found if name not in given} == {"text"}
    assert train(tmp_path / "free", "uncond", data, tokenizer, "--init", str(init), *still) == 0
    freely = load_file(tmp_path / "free" / "model" / "gpt_uncond" / "model.safetensors")
    assert torch.allclose(
        freely["gpt.blocks.0.mlp.up.weight"], given["gpt.blocks.0.mlp.up.weight"], atol=1e-6
    )
    assert freely["gpt.null_prefix"].shape == (1, 16)


def test_words_of_a_model_to_go_on_from_are_kept(models, data, tokenizer, tmp_path):
    own, init = tmp_path / "set", models / "t23d" / "model" / "gpt_t23d"
    shutil.copytree(data, own)
    with (own / "captions.csv").open("a") as f:
        f.writelines(
            f"{i},an entirely different word of a kind\n" for i in read_splits(own)["train"]
        )
    assert (
        train(
            tmp_path / "run", "t23d", own, tokenizer, "--init", str(init), "train.preview_shapes=0"
        )
        == 0
    )
    old, new = (
        load_gpt(folder).conditioner.encoder("text").text_tokenizer
        for folder in (init, tmp_path / "run" / "model" / "gpt_t23d")
    )
    assert old.identity == new.identity


def test_conditions_take_turns_only_where_rows_divide(data, tokenizer, tmp_path, capsys):
    odd = ("train.global_batch_size=3", "train.micro_batch_size=0")
    assert train(tmp_path / "odd", "any", data, tokenizer, *odd) == 2
    message = "2 conditions cannot take turns: write train.global_batch_size=2 or 4"
    assert message in capsys.readouterr().err


def test_accumulation_leaves_a_step_of_several_conditions_as_it_is(data, tokenizer, tmp_path):
    """Also where a forward pass has an odd number of the rows of the code predictor."""
    predictor = ["gpt.code_predictor_dim=4", "train.code_predictor_weight=1"]
    found = []
    for micro in (8, 4, 2):
        batch = ["train.global_batch_size=8", f"train.micro_batch_size={micro}"]
        more = [*predictor, "train.code_predictor_rows=4", "train.validation_shapes=1"]
        assert train(tmp_path / str(micro), "any", data, tokenizer, *batch, *more) == 0
        log = rows(tmp_path / str(micro) / "train.csv")
        columns = ("nll", "code_distance", "gradient_norm")
        found.append([float(row[name]) for row in log for name in columns])
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert found[2] == pytest.approx(found[0], rel=1e-3)


def generate(models: Path, gpt_type: str, out: Path, *flags: str) -> int:
    return run.main(
        [
            "--model",
            str(models / gpt_type / "model"),
            "--save-path",
            str(out),
            "--resolution",
            "8",
            *flags,
        ]
    )


def test_prompts_become_meshes_pictures_and_records(models, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a box of a kind\n\n  ein ball 🪑  \n", encoding="utf-8")
    assert (
        generate(
            models,
            "t23d",
            tmp_path / "out",
            "--prompt",
            "a ball of a kind",
            str(prompts),
            "",
            "ein Stuhl",
            "a ball of a kind",
        )
        == 1
    )
    names = ["a_ball_of_a_kind", "a_box_of_a_kind", "ein_ball", "a_ball_of_a_kind_2"]
    assert sorted(p.stem for p in (tmp_path / "out").glob("*.glb")) == sorted(names)
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".glb", ".png", ".json"}
    record = json.loads((tmp_path / "out" / "ein_ball.json").read_text(encoding="utf-8"))
    assert (
        record["prompt"] == "ein ball 🪑"
        and "does not know are passed over: ein, 🪑" in record["note"]
    )
    output = capsys.readouterr()
    assert (
        "4 of 6 shapes" in output.out
        and "ein_ball: words that this model does not know" in output.err
    )
    assert "failed: prompt: the text is empty, say what to generate" in output.err
    assert "failed: ein_Stuhl: the model knows no word of 'ein Stuhl': use words of" in output.err


def test_samples_that_will_be_identical_are_told_and_all_are_counted(models, tmp_path, capsys):
    flags = ["--num-samples", "2", "--temperature", "0", "--no-preview", "--gpt-type", "uncond"]
    assert generate(models, "uncond", tmp_path, *flags) == 0
    error = capsys.readouterr().err
    assert "the 2 samples of a condition will be identical" in error
    assert "2/2 [" in error and "\r" not in error
    one, other = (path.read_bytes() for path in sorted(tmp_path.glob("*.glb")))
    assert one == other


def test_a_text_and_its_seed_decide_the_tokens_whatever_else_is_made(models, tmp_path, monkeypatch):
    drawn, make = [], Pipeline.generate

    def recorded(self, *args, **kwargs):
        results = make(self, *args, **kwargs)
        drawn.append([r.tokens.tolist() for r in results])
        return results

    monkeypatch.setattr(Pipeline, "generate", recorded)
    flags = ["--temperature", "2"]
    generate(
        models, "t23d", tmp_path / "a", "--prompt", "a box", "a ball of a kind", "a ring", *flags
    )
    generate(models, "t23d", tmp_path / "b", "--prompt", "a ball of a kind", *flags)
    generate(
        models,
        "t23d",
        tmp_path / "c",
        "--prompt",
        "a box",
        "a ball of a kind",
        "a ring",
        "--batch-size",
        "3",
        *flags,
    )
    assert drawn[1] == drawn[3] and drawn[4][1] == drawn[1][0], (
        "captions of other lengths in its batch change nothing"
    )


def test_one_model_serves_for_picture_text_and_nothing(models, tmp_path):
    picture = np.full((40, 40, 3), 255, np.uint8)
    picture[10:30, 12:26] = 40
    Image.fromarray(picture).save(tmp_path / "thing.png")
    assert generate(models, "any", tmp_path / "out", "--input", str(tmp_path / "thing.png")) == 0
    assert generate(models, "any", tmp_path / "out", "--prompt", "a box") == 0
    freely = ["--gpt-type", "uncond", "--num-samples", "2", "--turntable", "--no-preview"]
    assert generate(models, "any", tmp_path / "out", *freely) == 0
    made = {p.name for p in (tmp_path / "out").iterdir()}
    of_picture, of_text = (
        {f"{name}.{e}" for e in ("glb", "png", "json")} for name in ("thing", "a_box")
    )
    assert made == of_picture | of_text | {
        f"shape_{k}.{e}" for k in (0, 1) for e in ("glb", "json", "gif")
    }
    with Image.open(tmp_path / "out" / "shape_0.gif") as turning:
        assert turning.n_frames > 10 and turning.info["loop"] == 0
        first = np.asarray(turning.convert("RGB"))
        turning.seek(turning.n_frames // 8)
        assert not np.array_equal(first, np.asarray(turning.convert("RGB")))


@pytest.mark.parametrize(
    "model, flags, status, message",
    [
        (
            "i23d",
            ["--prompt", "a box"],
            2,
            "lacks gpt_t23d/model.safetensors or gpt_any/model.safetensors; of models it holds",
        ),
        (
            "t23d",
            ["--gpt-type", "uncond"],
            2,
            "lacks gpt_uncond/model.safetensors or gpt_any/model.safetensors",
        ),
        (
            "t23d",
            ["--prompt", "nowhere.txt"],
            2,
            "--prompt nowhere.txt cannot be read as a text file",
        ),
        ("t23d", ["--prompt", "EMPTY.txt"], 2, "holds no text: write one prompt a line"),
        ("any", ["--gpt-type", "t23d"], "exit", "--gpt-type t23d needs --prompt"),
        ("any", ["--prompt", " ", ""], "exit", "--prompt is empty: write what to generate"),
        (
            "any",
            ["--gpt-type", "i23d", "--prompt", "a"],
            "exit",
            "--prompt is for --gpt-type t23d, not i23d",
        ),
        (
            "any",
            ["--gpt-type", "uncond", "--input", "a.png"],
            "exit",
            "--input is for --gpt-type i23d, not uncond",
        ),
        ("any", ["--input", "a.png", "--prompt", "a"], "exit", "not allowed with argument --input"),
    ],
)
def test_refusals(models, tmp_path, monkeypatch, capsys, model, flags, status, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY.txt").write_text("\n\n")
    if status == "exit":
        with pytest.raises(SystemExit) as stop:
            generate(models, model, tmp_path / "out", *flags)
        assert stop.value.code == 2
    else:
        assert generate(models, model, tmp_path / "out", *flags) == status
    assert message in capsys.readouterr().err


def test_a_gpt_of_another_type_given_apart_is_refused(models, tokenizer, tmp_path, capsys):
    flags = [
        "--vq-ckpt",
        str(tokenizer),
        "--gpt-ckpt",
        str(models / "i23d" / "model" / "gpt_i23d"),
        "--prompt",
        "a box",
    ]
    assert run.main(["--save-path", str(tmp_path), *flags]) == 2
    assert (
        "not trained on the condition 'text', but on image: choose another --gpt-type"
        in capsys.readouterr().err
    )


def test_long_names_of_any_script_are_cut_at_a_letter():
    assert run.unique_names(["a", "a", "a_2", "a"]) == ["a", "a_3", "a_2", "a_4"]
    name = run.file_name("椅子" * 60)
    assert 70 < len(name.encode()) <= run.MAX_NAME_BYTES and set(name) == set("椅子")
    assert run.file_name("../../etc: passwd?") == "etc_passwd" and run.file_name(" / ") == "prompt"


@pytest.mark.parametrize("gpt_type", ["i23d", "t23d"])
def test_evaluations_of_conditional_models(models, data, tmp_path, gpt_type):
    flags = [
        "--gpt-type",
        gpt_type,
        "--model",
        str(models / "any" / "model"),
        "--test",
        str(data),
        "--train",
        str(data),
        "--shapes",
        "2",
        "--resolution",
        "8",
        "--workers",
        "1",
    ]
    assert eval_3d.main([*flags, "--out", str(tmp_path / "3d"), *FAST]) == 0
    report, summary = (
        (tmp_path / "3d" / name).read_text() for name in ("report.md", "summary.json")
    )
    values = json.loads(summary)
    assert set(values["nll"]) == {"right", "null"}, "one shape has no other one's condition"
    if gpt_type == "t23d":
        assert "Are they what the captions say?" in report
        assert values["text"]["generation"]["evaluated"] == 0, "the evaluator does not know a box"
        assert not (tmp_path / "3d" / "shuffled").exists() and "another shape" not in report
    else:
        assert "training shape with the nearest view, pixels" in report and "right image" in report
    assert eval_2d.main([*flags[:-2], "--out", str(tmp_path / "2d")]) == 0
    assert "generated" in (tmp_path / "2d" / "report.md").read_text()


def test_shapes_from_nothing_are_held_against_unseen_ones_as_a_set(models, data, tmp_path):
    flags = [
        "--gpt-type",
        "uncond",
        "--model",
        str(models / "uncond" / "model"),
        "--test",
        str(data),
        "--train",
        str(data),
    ]
    assert (
        eval_3d.main(
            [
                *flags,
                "--shapes",
                "3",
                "--resolution",
                "8",
                "--workers",
                "1",
                "--out",
                str(tmp_path),
                *FAST,
            ]
        )
        == 0
    )
    scores = json.loads((tmp_path / "summary.json").read_text())["scores"]
    assert set(scores) == {"generated", "training"} and scores["generated"]["generated_shapes"] == 3
    assert 0 <= scores["generated"]["coverage"] <= 1 and (tmp_path / "grid.png").is_file()
    assert len(list((tmp_path / "generation").glob("*.glb"))) == 3


def test_an_unconditional_model_refuses_a_condition(models):
    model = load_gpt(models / "uncond" / "model" / "gpt_uncond")
    assert isinstance(model, ConditionalGPT) and model.condition({}, 3).embeddings.shape == (
        3,
        1,
        16,
    )
    with pytest.raises(ValueError, match="not trained on the condition 'text', but on none at all"):
        model.condition({"text": torch.zeros(1, 10, dtype=torch.int32)}, 1)
