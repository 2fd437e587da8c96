"""LPIPS against plain loops and CLIP against transformers' own preparation, on tiny random models
saved here."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_networks import lpips_weights, save_tiny_clip

from tar3d.metrics.clip import Clip
from tar3d.metrics.lpips import LPIPS, STACKS, load_lpips
from tar3d.metrics.perceptual import cosine, crop_to

CPU = torch.device("cpu")


def picture(seed: int, side: int = 36) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


# ---- LPIPS in loops


def plain_convolution(x, weight, bias, stride, padding):
    """(C, h, w) -> (D, h', w'), ReLU included."""
    x, kernel = np.pad(x, ((0, 0), (padding, padding), (padding, padding))), weight.shape[-1]
    size = [(n - kernel) // stride + 1 for n in x.shape[1:]]
    y = np.zeros((len(weight), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            patch = x[:, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            y[:, i, j] = (weight * patch).sum((1, 2, 3)) + bias
    return y.clip(0)


def plain_pool(x, kernel, stride):
    size = [(n - kernel) // stride + 1 for n in x.shape[1:]]
    y = np.zeros((len(x), *size))
    for i in range(size[0]):
        for j in range(size[1]):
            y[:, i, j] = x[
                :, i * stride : i * stride + kernel, j * stride : j * stride + kernel
            ].max((1, 2))
    return y


def plain_upsample(x, side):
    """(h, w) -> (side, side), bilinear between pixel centres, edges repeated."""
    out = x
    for axis in (0, 1):
        n = x.shape[axis]
        place = ((np.arange(side) + 0.5) * n / side - 0.5).clip(0, n - 1)
        low = np.floor(place).astype(int)
        high, share = np.minimum(low + 1, n - 1), place - low
        share = share[:, None] if axis == 0 else share
        out = np.take(out, low, axis) * (1 - share) + np.take(out, high, axis) * share
    return out


def plain_lpips(net, weights, a, b, mask):
    stack, w = STACKS[net], {k: v.double().numpy() for k, v in weights.items()}
    shift, scale = np.array([-0.030, -0.088, -0.188]), np.array([0.458, 0.448, 0.450])
    x, y = (((p / 127.5 - 1 - shift) / scale).transpose(2, 0, 1) for p in (a, b))
    whole, local = 0.0, np.zeros(mask.shape)
    for k, stage in enumerate(stack.stages):
        if k in stack.pooled:
            x, y = plain_pool(x, *stack.pool), plain_pool(y, *stack.pool)
        for index, stride, padding in stage:
            x, y = (
                plain_convolution(
                    z, w[f"features.{index}.weight"], w[f"features.{index}.bias"], stride, padding
                )
                for z in (x, y)
            )
        f, g = (z / (np.sqrt((z**2).sum(0)) + 1e-10) for z in (x, y))
        layer = ((f - g) ** 2 * w[f"lin{k}.model.1.weight"][0]).sum(0)
        whole += layer.mean()
        local += plain_upsample(layer, len(mask))
    return whole, local[mask].mean()


@pytest.mark.parametrize("net, side", [("alex", 47), ("vgg", 20)])
def test_lpips_is_the_plain_formula(net, side):
    weights = lpips_weights(net)
    network, a, b = LPIPS(weights, CPU), picture(0, side), picture(1, side)
    mask = np.zeros((side, side), dtype=bool)
    mask[3:9, 2:15] = True
    assert network.net == net
    found = network.compare(a, b, mask)
    assert found == pytest.approx(plain_lpips(net, weights, a, b, mask), rel=1e-4)
    assert found == network.compare(b, a, mask)
    assert network.compare(a, a.copy(), mask) == (0.0, 0.0)
    assert found[0] > 0 and found[0] != found[1]


def test_layers_stand_where_torchvision_has_them():
    layout = {
        "vgg": "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M",
        "alex": "64 M 192 M 384 256 256 M",
    }
    for net, layers in layout.items():
        index, convolutions, before_pool = 0, [], []
        for layer in layers.split():
            convolutions += [index] if layer != "M" else []
            before_pool += [len(convolutions)] if layer == "M" else []
            index += 1 if layer == "M" else 2  # each convolution has its ReLU
        stages = STACKS[net].stages
        assert [i for stage in stages for i, _, _ in stage] == convolutions
        starts = np.cumsum([0, *map(len, stages)])
        assert [starts[k] for k in STACKS[net].pooled] == before_pool[
            :-1
        ]  # the last pool comes after all stages


@pytest.mark.parametrize("net", STACKS)
def test_smallest_picture(net):
    network, side = LPIPS(lpips_weights(net), CPU), STACKS[net].smallest
    mask = np.ones((side, side), dtype=bool)
    assert network.compare(picture(0, side), picture(1, side), mask)[0] > 0
    with pytest.raises(
        ValueError, match=f"at least {side} pixels a side, got {side - 1} x {side - 1}"
    ):
        network.compare(picture(0, side - 1), picture(1, side - 1), mask[1:, 1:])


def test_foreground_is_where_the_pictures_differ():
    network, a = LPIPS(lpips_weights("alex"), CPU), np.full((96, 96, 3), 200, dtype=np.uint8)
    b = a.copy()
    b[:24, :24] = picture(0, 24)
    corner, opposite = np.zeros((96, 96), dtype=bool), np.zeros((96, 96), dtype=bool)
    corner[:24, :24], opposite[-8:, -8:] = True, True
    whole, there = network.compare(b, a, corner)
    assert (
        there > 3 * whole > 9 * network.compare(b, a, opposite)[1]
    )  # which the deep layers still see


def lpips_names(weights: dict[str, torch.Tensor], net: str) -> dict[str, torch.Tensor]:
    """The state dict of the lpips package's LPIPS: slices, heads twice, scaling, under its own
    names."""
    slices = {
        f"features.{i}": f"net.slice{k + 1}.{i}"
        for k, stage in enumerate(STACKS[net].stages)
        for i, _, _ in stage
    }
    named = {
        name.replace(
            name.rsplit(".", 1)[0], slices.get(name.rsplit(".", 1)[0], name.rsplit(".", 1)[0])
        ): value
        for name, value in weights.items()
    }
    named |= {
        name.replace("lin", "lins.", 1): value.clone()
        for name, value in weights.items()
        if name.startswith("lin")
    }
    return named | {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}


def test_every_layout_of_files_gives_the_same_network(tmp_path):
    weights = lpips_weights("alex")
    torch.save(weights, tmp_path / "plain.pth")
    save_file(weights, tmp_path / "plain.safetensors")
    torch.save(lpips_names(weights, "alex"), tmp_path / "package.pth")
    folder = tmp_path / "two"
    folder.mkdir()
    features = {k: v for k, v in weights.items() if k.startswith("features")} | {
        "classifier.1.weight": torch.zeros(4, 4)
    }
    torch.save(features, folder / "alexnet-owt-7be5be79.pth")
    torch.save({k: v for k, v in weights.items() if k.startswith("lin")}, folder / "alex.pth")
    (folder / "README.md").write_text("two files")
    loaded = [
        load_lpips(tmp_path / name, CPU)
        for name in ("plain.pth", "plain.safetensors", "package.pth", "two")
    ]
    mask = np.ones((36, 36), dtype=bool)
    assert len({n.identity for n in loaded}) == 1 and loaded[0].identity.startswith(
        "LPIPS alex, weights "
    )
    assert len({n.compare(picture(0), picture(1), mask) for n in loaded}) == 1
    torch.save(lpips_weights("vgg"), tmp_path / "vgg.pth")
    assert load_lpips(tmp_path / "vgg.pth", CPU).net == "vgg"


def without(weights, name):
    return {k: v for k, v in weights.items() if k != name}


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda w: without(w, "features.8.bias"),
            r"lacks 1 of the 15 weights of LPIPS alex, e.g. features.8.bias",
        ),
        (lambda w: without(w, "features.0.weight"), "features of an AlexNet or a VGG16"),
        (
            lambda w: {k: v for k, v in w.items() if k.startswith("lin")},
            "features of an AlexNet or a VGG16",
        ),
        (
            lambda w: w | {"lin1.model.1.weight": torch.zeros(1, 9, 1, 1)},
            "heads are those of another network",
        ),
        (lambda w: w | {"features.3.weight": torch.zeros(4, 9, 5, 5)}, "but 3 channels come in"),
        (
            lambda w: w | {"features.6.bias": torch.full((5,), torch.nan)},
            "features.6.bias holds NaN",
        ),
        (lambda w: {"state": w}, "no plain table of tensors"),
    ],
)
def test_unfit_lpips_weights_say_what_is_wrong_and_how_to_get_them(tmp_path, change, message):
    torch.save(change(lpips_weights("alex")), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=message) as error:
        load_lpips(tmp_path / "w.pth", CPU)
    assert "--lpips-path" in str(error.value) and "\n" not in str(error.value)


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/tar3d-should-not-exist"),))


def test_files_that_are_no_weights_are_refused(tmp_path):
    torch.save({"x": Evil()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("evil.pth", "text.pth", "empty.safetensors"):
        with pytest.raises(ValueError, match="cannot be read as a file of weights"):
            load_lpips(tmp_path / name, CPU)
    assert not Path("/tmp/tar3d-should-not-exist").exists()
    with pytest.raises(ValueError, match="does not exist"):
        load_lpips(tmp_path / "none.pth", CPU)
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="holds no .safetensors"):
        load_lpips(tmp_path / "bare", CPU)


def test_a_folder_with_two_networks_is_refused(tmp_path):
    for seed in (0, 1):
        torch.save(lpips_weights("alex", seed), tmp_path / f"{seed}.pth")
    with pytest.raises(ValueError, match="also in another file .* with other values"):
        load_lpips(tmp_path, CPU)


# ---- CLIP


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def offline(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("height, width", [(32, 32), (64, 64), (50, 91), (91, 40), (20, 20)])
def test_pictures_are_prepared_as_transformers_does(clip_folder, height, width):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    clip = Clip.load(str(clip_folder), CPU)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    own = clip.prepare(pixels)
    assert own.shape == (32, 32, 3)
    expected = CLIPImageProcessorPil.from_pretrained(clip_folder)(
        Image.fromarray(pixels), return_tensors="np"
    )["pixel_values"][0]
    mine = ((own / 255 - clip.mean) / clip.std).transpose(2, 0, 1)
    np.testing.assert_allclose(mine, expected, atol=1e-5)


def test_features_are_the_models_and_do_not_depend_on_the_company(clip_folder):
    from transformers import CLIPModel

    clip = Clip.load(str(clip_folder), CPU)
    pixels = [picture(k, 32) for k in range(3)]
    found = clip.image_features(pixels)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    values = torch.tensor(
        np.stack([((p / 255 - clip.mean) / clip.std).transpose(2, 0, 1) for p in pixels])
    ).float()
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=values).pooler_output.numpy()
    assert found.shape == (3, 6)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(clip.image_features(pixels[1:2])[0], found[1], atol=1e-5)
    np.testing.assert_allclose(cosine(found, found), 1)
    np.testing.assert_allclose(cosine(found, -found[0])[0], -1)


def test_captions_are_embedded_one_by_one_and_cut_ones_are_told(clip_folder):
    clip = Clip.load(str(clip_folder), CPU)
    captions = {"x": "a red chair", "y": "a table", "z": "a red red red red red red red chair"}
    found, cut = clip.text_features(captions, clip.load_tokenizer())
    assert cut == ["z"] and {v.shape for v in found.values()} == {(6,)}
    again, _ = clip.text_features({"y": "a table"}, clip.load_tokenizer())
    np.testing.assert_array_equal(again["y"], found["y"])
    assert not np.allclose(found["x"], found["y"])
    ids = torch.tensor([[4, 0, 2, 1, 5]])
    expected = clip.model.get_text_features(input_ids=ids).pooler_output[0]
    np.testing.assert_allclose(found["x"], expected, atol=1e-5)


def test_identity_names_weights_size_and_filter(clip_folder, tmp_path):
    here = Clip.load(str(clip_folder), CPU).identity
    assert str(clip_folder) in here and "32 px, bicubic" in here
    other = Clip.load(str(save_tiny_clip(tmp_path, seed=1)), CPU).identity
    assert other.split("weights ")[1] != here.split("weights ")[1]


@pytest.mark.parametrize("source", ["no-such-owner/no-such-clip", "/no/such/folder"])
def test_a_missing_clip_says_how_to_get_one(source, offline):
    with pytest.raises(ValueError, match="not found here or on the Hub") as error:
        Clip.load(source, CPU)
    assert (
        source in str(error.value)
        and "--clip-path" in str(error.value)
        and "\n" not in str(error.value)
    )


def test_unfit_clip_folders_are_refused(clip_folder, tmp_path):
    from transformers import ViTConfig, ViTModel

    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 32,
        "patch_size": 8,
    }
    ViTModel(ViTConfig(**small)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="'vit' model, not CLIP"):
        Clip.load(str(tmp_path / "vit"), CPU)
    deeper = shutil.copytree(clip_folder, tmp_path / "deeper")
    values = json.loads((deeper / "config.json").read_text())
    values["vision_config"]["num_hidden_layers"] = 2
    (deeper / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="lacks .* of its weights"):
        Clip.load(str(deeper), CPU)
    truncated = shutil.copytree(clip_folder, tmp_path / "truncated")
    (truncated / "model.safetensors").write_bytes(
        (clip_folder / "model.safetensors").read_bytes()[:300]
    )
    with pytest.raises(ValueError, match="cannot be loaded"):
        Clip.load(str(truncated), CPU)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"image_std": [0.2, 0.2, 0]}, "three numbers"),
        ({"crop_size": 224}, "crop_size is 224, but the model .* takes 32 px"),
        ({"resample": 99}, "preprocessor_config.json.*99"),
        ("no JSON", "preprocessor_config.json"),
    ],
)
def test_broken_preparation_is_refused(clip_folder, tmp_path, values, message):
    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    (copy / "preprocessor_config.json").write_text(
        values if isinstance(values, str) else json.dumps(values)
    )
    with pytest.raises(ValueError, match=message):
        Clip.load(str(copy), CPU)


def test_preparation_defaults_to_openais_and_follows_the_file(clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    (copy / "preprocessor_config.json").write_text(json.dumps({"resample": 1}))
    clip = Clip.load(str(copy), CPU)
    assert clip.filter is Image.Resampling.LANCZOS and clip.mean[0] == 0.48145466
    (copy / "preprocessor_config.json").unlink()
    assert Clip.load(str(copy), CPU).filter is Image.Resampling.BICUBIC


def test_a_missing_tokenizer_is_one_sentence(clip_folder, tmp_path):
    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    for path in copy.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="tokenizer of CLIP .* cannot be loaded"):
        Clip.load(str(copy), CPU).load_tokenizer()


def test_crop_is_the_square_around_the_foreground():
    pixels = picture(0, 20)
    mask = np.zeros((20, 20), dtype=bool)
    mask[4:8, 5:15] = True
    square = crop_to(pixels, mask, (255, 255, 255))
    np.testing.assert_array_equal(square, pixels[1:11, 5:15])
    mask[:] = False
    mask[0:2, 3:13] = True  # the square leaves the picture above
    square = crop_to(pixels, mask, (1, 2, 3))
    assert square.shape == (10, 10, 3) and (square[:4] == (1, 2, 3)).all()
    np.testing.assert_array_equal(square[4:], pixels[0:6, 3:13])
    np.testing.assert_array_equal(crop_to(pixels, np.ones((20, 20), dtype=bool), (0, 0, 0)), pixels)
