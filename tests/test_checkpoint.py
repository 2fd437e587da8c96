"""Model directories: strict, atomic, and clear about what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tar3d import checkpoint
from tar3d import config as configuration
from tar3d.checkpoint import (
    copy_model,
    find_bundle,
    find_model,
    find_tokenizer,
    fingerprint,
    load_tokenizer,
    load_weights,
    save_model,
)
from tar3d.condition.conditioner import build_encoder
from tar3d.conditional_gpt import ConditionalGPT, load_gpt
from tar3d.config import GPTRunConfig, TokenizerConfig, VQVAEConfig
from tar3d.evaluation.evaluator import load_evaluator
from tar3d.paths import shipped
from tar3d.tokenizer.vqvae import VQVAE

CONFIG = VQVAEConfig(
    tokenizer=TokenizerConfig(
        grid_size=2,
        width=8,
        num_heads=2,
        num_frequencies=2,
        encoder="plane_pool",
        encoder_layers=0,
        point_width=8,
        codebook_size=16,
        code_dim=4,
        decoder_layers=0,
        plane_channels=4,
        upsample_stages=1,
        occupancy_width=8,
        occupancy_layers=2,
    )
)


def model(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(CONFIG.tokenizer)


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "model", model(), CONFIG, {"iou": 0.5}, "# A model")


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(
        torch.equal(x, y)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_round_trip_from_the_directory_alone(folder):
    loaded = load_tokenizer(folder)
    assert same(loaded, model()) and loaded.config == CONFIG.tokenizer and not loaded.training
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md",
        "config.yaml",
        "metrics.json",
        "model.safetensors",
    ]
    assert json.loads((folder / "metrics.json").read_text()) == {"iou": 0.5}
    assert (folder / "README.md").read_text() == "# A model\n"


def test_weights_can_be_read_by_whoever_may_read_the_folder(tmp_path):
    for mode in (0o755, 0o700):
        (tmp_path / str(mode)).mkdir(mode=mode)
        (tmp_path / str(mode)).chmod(mode)
        saved = save_model(tmp_path / str(mode), model(), CONFIG, {}, "")
        assert (saved / "model.safetensors").stat().st_mode & 0o777 == mode & 0o666


def test_a_tokenizer_is_found_inside_a_directory_of_models(folder):
    bundle = folder.parent / "bundle"
    bundle.mkdir()
    folder.rename(bundle / "tokenizer")
    assert find_tokenizer(bundle) == find_tokenizer(bundle / "tokenizer") == bundle / "tokenizer"
    assert same(load_tokenizer(bundle), model())
    assert (
        find_bundle(bundle, ("tokenizer",))
        == find_bundle(bundle, ("other", "tokenizer"))
        == [bundle / "tokenizer"]
    )
    lacking = (
        "lacks gpt_t23d/model.safetensors or gpt_any/model.safetensors; of models it holds "
        "tokenizer: give a directory that holds tokenizer, gpt_t23d"
    )
    with pytest.raises(ValueError, match=lacking):
        find_bundle(bundle, ("tokenizer",), ("gpt_t23d", "gpt_any"))


def test_half_precision_loads_as_float32_with_the_same_fingerprint(tmp_path):
    folder = save_model(tmp_path / "half", model(), CONFIG, {}, "", dtype=torch.float16)
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float16}
    loaded = load_tokenizer(folder)
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert fingerprint(loaded) == fingerprint(model())


def test_fingerprint_tells_weights_codes_and_names_apart():
    original = model()
    changed, moved = model(), model()
    with torch.no_grad():
        changed.to_code.weight[0, 0] += 0.01
        moved.quantizer.codebook[3] *= -1
    renamed = torch.nn.ModuleDict({"model": model()})
    assert len({fingerprint(m) for m in (original, changed, moved, renamed, model(1))}) == 5
    assert fingerprint(original) == fingerprint(model())


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda t: t.pop("to_code.weight"), "to_code.weight is missing"),
        (lambda t: t.update(surplus=torch.zeros(1)), "surplus is not part of this model"),
        (
            lambda t: t.update({"to_code.bias": torch.zeros(5)}),
            r"to_code.bias is \(5,\), not \(4,\)",
        ),
        (lambda t: [t.pop(k) for k in list(t)[:5]], "is missing; .* and 2 more"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, edit, message):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    before = model(1)
    with pytest.raises(ValueError, match=message):
        load_weights(before, folder)
    assert same(before, model(1))  # nothing half loaded


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_damaged_weights_are_refused(folder, share):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(
        ValueError, match="model.safetensors cannot be read .* damaged or incomplete"
    ):
        load_tokenizer(folder)


def test_what_is_no_model_directory_says_what_it_lacks_and_holds(folder, tmp_path):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(
        ValueError,
        match="not a model directory: model.safetensors missing, it holds README.md, config.yaml, "
        "metrics.json, weights",
    ):
        find_model(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match="model.safetensors and config.yaml missing, it holds nothing"
    ):
        find_model(tmp_path / "empty")


@pytest.mark.parametrize("source", ["/no/such/model", "./none", "~/model", "none", "a/b/c"])
def test_a_path_that_leads_nowhere_is_not_looked_up_on_the_hub(source):
    with pytest.raises(
        ValueError, match="no model at .*: give a model directory .* or a Hub id like owner/name"
    ):
        find_model(source)


def test_hub_id_without_a_network_is_one_sentence(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ValueError,
        match="nobody/no-model is not a local folder, and was looked up on the Hub, which did not",
    ) as caught:
        load_tokenizer("nobody/no-model")
    assert "\n" not in str(caught.value) and "Error" not in str(caught.value)
    assert "it cannot be reached, nor is it in the local cache" in str(caught.value)


def test_an_unknown_key_in_the_saved_config_is_refused(folder):
    with (folder / "config.yaml").open("a") as f:
        f.write("colour: blue\n")
    with pytest.raises(ValueError, match="config.yaml.*colour"):
        load_tokenizer(folder)


def test_an_autoencoder_is_no_tokenizer(folder):
    config = checkpoint.read_config(folder, VQVAEConfig)
    config.train.stage, config.train.autoencoder_steps = "ae", 3
    configuration.save(config, folder / "config.yaml")
    with pytest.raises(
        ValueError,
        match="an autoencoder, whose codebook is not trained: continue it with .* train.stage=vq",
    ):
        load_tokenizer(folder)


def test_large_weights_are_split_and_come_back(tmp_path):
    small = save_model(tmp_path / "whole", model(), CONFIG, {}, "")
    most = (small / "model.safetensors").stat().st_size // 3
    folder = save_model(tmp_path / "split", model(), CONFIG, {}, "", largest_file=most)
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2 and files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert same(load_tokenizer(folder), model()) and find_model(folder) == folder
    copy_model(folder, tmp_path / "copy")
    assert same(load_tokenizer(tmp_path / "copy"), model())
    save_model(folder, model(), CONFIG, {}, "")
    assert [p.name for p in folder.glob("model*")] == ["model.safetensors"] and same(
        load_tokenizer(folder), model()
    )
    save_model(folder, model(), CONFIG, {}, "", largest_file=most)
    assert not (folder / "model.safetensors").exists() and same(load_tokenizer(folder), model())


def test_files_of_two_saves_and_missing_ones_are_noticed(tmp_path):
    other = model()
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    most = (
        save_model(tmp_path / "whole", other, CONFIG, {}, "") / "model.safetensors"
    ).stat().st_size // 2
    a, b = (
        save_model(tmp_path / name, m, CONFIG, {}, "", largest_file=most)
        for name, m in (("a", model()), ("b", other))
    )
    first = sorted(p.name for p in a.glob("*.safetensors"))[0]
    shutil.copyfile(b / first, a / first)
    with pytest.raises(
        ValueError,
        match=f"{first} belongs to other weights than .*index.json: a save was interrupted",
    ):
        load_tokenizer(a)
    (b / first).unlink()
    with pytest.raises(ValueError, match=f"{first} cannot be read"):
        load_tokenizer(b)
    (b / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="index.json cannot be read"):
        load_tokenizer(b)


@pytest.mark.parametrize(
    "load, folder, message",
    [
        (checkpoint.load_tokenizer, "gpt_any", "of a GPT .*, but that of a tokenizer .* is needed"),
        (load_gpt, "tokenizer", "of a tokenizer .*, but that of a GPT .* is needed"),
        (checkpoint.load_tokenizer, "evaluator", "of an evaluator, but that of a tokenizer"),
        (load_evaluator, "tokenizer", "of a tokenizer .*, but that of an evaluator is needed"),
    ],
)
def test_a_model_of_another_kind_is_named(load, folder, message):
    with pytest.raises(ValueError, match=message):
        load(shipped("pretrained/tiny") / folder)


def frozen_vit(folder: Path, seed: int) -> Path:
    """The folder of a small vision transformer."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
    )
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def test_a_frozen_encoder_that_has_moved_is_named_and_checked(tmp_path):
    place, moved = frozen_vit(tmp_path / "vit", 0), tmp_path / "moved"
    changes = [
        "gpt.num_layers=1",
        "gpt.width=16",
        "gpt.num_heads=2",
        "gpt.grid_size=2",
        "gpt.codebook_size=16",
        "gpt.condition_tokens=5",
        "gpt.condition_width=8",
        f"image_encoder.model={place}",
        "image_encoder.image_size=16",
    ]
    config = configuration.load(GPTRunConfig, None, changes)
    encoder = build_encoder(config, "image")
    config.image_encoder_weights = encoder.weights
    gpt = ConditionalGPT(config, {"image": encoder})
    folder = checkpoint.save_model(tmp_path / "gpt", gpt, config, {}, "")
    load_gpt(folder)
    place.rename(moved)
    with pytest.raises(ValueError, match="was not found.*name its folder with --image-encoder"):
        load_gpt(folder)
    assert load_gpt(folder, {"image": moved, "text": None}).encoder("image").weights
    other = frozen_vit(tmp_path / "other", 1)
    with pytest.raises(ValueError, match="but this GPT was trained with .* --image-encoder"):
        load_gpt(folder, {"image": other})
    with pytest.raises(ValueError, match="this GPT has no frozen text encoder"):
        load_gpt(folder, {"text": other})
