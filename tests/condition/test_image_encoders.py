"""Image encoders: shapes, frozenness, pixel statistics, identities and errors, with tiny random
models made here."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from tar3d.condition.given import GivenEmbeddings
from tar3d.condition.image_encoders import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    FrozenTransformer,
    TrainedViT,
    build_image_encoder,
)
from tar3d.config import ImageEncoderConfig
from tar3d.optim.groups import routes

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
TRAINED = ImageEncoderConfig(
    model="trained", image_size=32, patch_size=8, width=48, num_layers=2, num_heads=3
)


def pixels(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    )


def clip() -> CLIPModel:
    text = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "vocab_size": 50,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=TINY, projection_dim=16))


MODELS = {
    "vit": lambda: ViTModel(ViTConfig(**TINY), add_pooling_layer=False),
    "classifier": lambda: ViTForImageClassification(ViTConfig(**TINY)),
    "dinov2": lambda: Dinov2Model(Dinov2Config(**TINY)),
    "clip": clip,
    "clip_vision": lambda: CLIPVisionModel(CLIPVisionConfig(**TINY)),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """One saved random model of each kind."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    for name, make in MODELS.items():
        make().save_pretrained(root / name)
    return root


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def frozen(path, size: int = 32, **values) -> FrozenTransformer:
    encoder = build_image_encoder(ImageEncoderConfig(model=str(path), image_size=size, **values))
    assert isinstance(encoder, FrozenTransformer)
    return encoder


@pytest.mark.parametrize("name", MODELS)
def test_frozen_encoders_give_the_last_hidden_state(directories, name):
    encoder = frozen(directories / name)
    condition = encoder(pixels())
    assert (encoder.num_tokens, encoder.width, encoder.frozen) == (17, 32, True)
    assert condition.embeddings.shape == (2, 17, 32) and condition.mask.all()
    model = AutoModel.from_pretrained(directories / name).eval()
    values = pixels().permute(0, 3, 1, 2).float() / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    values = values / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.no_grad():
        expected = getattr(model, "vision_model", model)(pixel_values=values).last_hidden_state
    torch.testing.assert_close(condition.embeddings, expected)


@pytest.mark.parametrize("name", MODELS)
def test_frozen_encoders_take_other_sizes(directories, name):
    assert frozen(directories / name, size=48).num_tokens == 37


def test_frozen_encoder_never_trains(directories):
    encoder = frozen(directories / "vit").train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder(pixels()).embeddings.requires_grad


def test_frozen_features_ignore_autocast_and_batch(directories):
    encoder = frozen(directories / "dinov2")
    plain = encoder(pixels()).embeddings
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(encoder(pixels()).embeddings, plain, rtol=0, atol=0)
    torch.testing.assert_close(encoder(pixels()[1:]).embeddings, plain[1:])


@pytest.mark.parametrize(
    "values, mean, std",
    [
        (
            {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
            (0.5, 0.4, 0.3),
            (0.2, 0.3, 0.4),
        ),
        ({"do_normalize": False, "image_mean": [0.5, 0.5, 0.5]}, (0, 0, 0), (1, 1, 1)),
        ({"do_resize": True}, IMAGENET_MEAN, IMAGENET_STD),
    ],
)
def test_pixel_statistics_come_from_the_directory(directories, tmp_path, values, mean, std):
    copy = shutil.copytree(directories / "vit", tmp_path / "copy")
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    encoder = frozen(copy)
    torch.testing.assert_close(encoder.mean.flatten(), torch.tensor(mean, dtype=torch.float32))
    torch.testing.assert_close(encoder.std.flatten(), torch.tensor(std, dtype=torch.float32))


@pytest.mark.parametrize(
    "values", [{"image_mean": [0.5]}, {"image_std": [0.2] * 4}, {"image_std": [0.2, 0.2, 0.0]}]
)
def test_broken_pixel_statistics_are_refused(directories, tmp_path, values):
    copy = shutil.copytree(directories / "vit", tmp_path / "copy")
    (copy / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="preprocessor_config.json.*three numbers"):
        frozen(copy)


def test_identity_follows_what_changes_the_features_and_not_the_path(directories, tmp_path):
    copy = shutil.copytree(directories / "classifier", tmp_path / "elsewhere")
    here = frozen(directories / "classifier").identity  # its random, unused pooler must not enter
    assert frozen(copy).identity == here
    others = {here, frozen(directories / "vit").identity}
    others |= {frozen(copy, size=48).identity, frozen(copy, foreground_fill=0.5).identity}
    for values in ({"image_mean": [0.5] * 3}, {"image_std": [0.5] * 3}):
        (copy / "preprocessor_config.json").write_text(json.dumps(values))
        others.add(frozen(copy).identity)
    assert len(others) == 6


@pytest.mark.parametrize(
    "source", ["no-such-owner/no-such-model", "/no/such/directory", "./models/absent"]
)
def test_missing_models_are_explained(source, offline):
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE") as error:
        frozen(source)
    assert (
        source in str(error.value) and "Hub id" in str(error.value) and "\n" not in str(error.value)
    )


@pytest.mark.parametrize("source", ["pretrained/absent", "a/b/c", "hf://no-owner"])
def test_a_local_path_is_not_looked_up_on_the_hub(source, monkeypatch):
    def ask(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(AutoModel, "from_pretrained", ask)
    with pytest.raises(ValueError, match=f"image encoder '{source}' was not found .* Remedy"):
        frozen(source)


def test_a_hub_id_can_be_said_outright(monkeypatch, tmp_path):
    from tar3d.condition.pretrained import resolve

    monkeypatch.chdir(tmp_path)
    assert resolve("hf://pretrained/tiny") == "pretrained/tiny"
    assert resolve("t5-small") == "t5-small" and resolve("owner/name") == "owner/name"
    (tmp_path / "pretrained" / "tiny").mkdir(parents=True)
    with pytest.raises(ValueError, match="folder pretrained/tiny hides the Hub id"):
        resolve("hf://pretrained/tiny")


def test_unfit_directories_are_refused(directories, tmp_path):
    with pytest.raises(ValueError, match="local directory"):
        frozen(tmp_path)
    deeper = shutil.copytree(directories / "vit", tmp_path / "deeper")
    values = json.loads((deeper / "config.json").read_text())
    (deeper / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="lacks .* weights"):
        frozen(deeper)
    wider = shutil.copytree(directories / "vit", tmp_path / "wider")
    (wider / "config.json").write_text(json.dumps(values | {"intermediate_size": 128}))
    with pytest.raises(ValueError, match="cannot be loaded"):
        frozen(wider)
    with pytest.raises(ValueError, match="multiple of the patch size 8"):
        frozen(directories / "vit", size=36)


def test_text_models_are_refused(tmp_path):
    from transformers import BertConfig, BertModel

    bert = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=50,
    )
    BertModel(bert).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="choose a vision transformer"):
        frozen(tmp_path)


def test_given_embeddings_stand_for_an_encoder_that_is_not_there():
    given = GivenEmbeddings(
        ImageEncoderConfig(model="no-such-owner/no-such-model", image_size=32), 5, 12
    )
    assert given.identity == "embeddings given: no-such-owner/no-such-model, 5 x 12"
    assert (
        given.frozen and (given.num_tokens, given.width) == (5, 12) and not list(given.parameters())
    )
    with pytest.raises(ValueError, match="no-such-model were given, so that it was not loaded"):
        given(pixels())
    with pytest.raises(
        ValueError, match="those of a frozen encoder, but image_encoder.model is 'trained'"
    ):
        GivenEmbeddings(TRAINED, 5, 12)


def test_trained_vit_learns_and_keeps_its_promises():
    torch.manual_seed(0)
    encoder = build_image_encoder(TRAINED)
    assert isinstance(encoder, TrainedViT) and not encoder.frozen
    condition = encoder(pixels())
    assert (encoder.num_tokens, encoder.width) == (16, 48)
    assert condition.embeddings.shape == (2, 16, 48) and condition.mask.all()
    condition.embeddings.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    torch.testing.assert_close(encoder(pixels()[1:]).embeddings, condition.embeddings[1:])


def test_trained_vit_embeds_patches_row_by_row():
    encoder = TrainedViT(
        ImageEncoderConfig(
            model="trained", image_size=32, patch_size=8, width=48, num_layers=0, num_heads=3
        )
    )
    image = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    changed = image.clone()
    changed[0, 9, 17, 1] = 255  # row 1, column 2 of the patches
    moved = (encoder(image).embeddings != encoder(changed).embeddings).any(dim=2)[0]
    assert moved.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_trained_vit_attention_is_the_plain_formula():
    torch.manual_seed(0)
    block = TrainedViT(TRAINED).blocks[0].double()
    x = torch.randn(2, 5, 48, dtype=torch.float64)
    y = block.attention_norm(x)
    heads = []
    for h in range(3):
        q, k, v = (y @ getattr(block, name).weight[16 * h : 16 * h + 16].T for name in "qkv")
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 4, dim=-1) @ v)
    z = x + torch.cat(heads, dim=-1) @ block.attention_out.weight.T
    expected = (
        z
        + torch.nn.functional.gelu(block.mlp_norm(z) @ block.mlp_in.weight.T)
        @ block.mlp_out.weight.T
    )
    torch.testing.assert_close(block(x), expected)


def test_muon_gets_q_k_v_apart_and_no_embedding():
    kinds = {route.name: route.kind for route in routes(TrainedViT(TRAINED))}
    hidden = ("q", "k", "v", "attention_out", "mlp_in", "mlp_out")
    expected = {f"blocks.{i}.{name}.weight" for i in range(2) for name in hidden}
    assert {name for name, kind in kinds.items() if kind == "muon"} == expected


@pytest.mark.parametrize(
    "bad",
    [
        torch.zeros(2, 32, 32, 3),
        torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        torch.zeros(32, 32, 3, dtype=torch.uint8),
        torch.zeros(2, 16, 16, 3, dtype=torch.uint8),
    ],
)
def test_pixels_of_another_shape_or_type_are_refused(bad):
    with pytest.raises(ValueError, match="uint8 pixels"):
        TrainedViT(TRAINED)(bad)


@pytest.mark.parametrize(
    "values, word",
    [
        ({"image_size": 30}, "patch_size"),
        ({"width": 50, "num_heads": 3}, "num_heads"),
        ({"model": ""}, "model"),
        ({"foreground_fill": 0.0}, "foreground_fill"),
        ({"foreground_fill": 1.5}, "foreground_fill"),
    ],
)
def test_contradictory_configs_are_refused(values, word):
    with pytest.raises(ValueError, match=word):
        ImageEncoderConfig(**({"model": "trained", "image_size": 32} | values))
