"""The trainings on public data as it is: ShapeNetV2 in its own layout, ULIP's embeddings without
the encoder that made them."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from script_runs import GPT, VQVAE, base
from shapenet_files import write_shapenet

import run
import train_gpt
import train_vqvae
from tar3d.condition import image_encoders
from tar3d.data.datasets.tokens import TokenDataset
from tar3d.data.formats.token_shards import read_stamp
from tar3d.data.make_tokens import main
from tar3d.evaluation.unseen_shapes import EvalData, choose_shapes

LISTS = {
    "0001": {"train": ["a", "b"], "val": ["c"], "test": ["d"]},
    "0002": {"train": ["a", "b"], "val": ["e"], "test": []},
}
TRAIN, HELD_OUT = ["0001_a", "0001_b", "0002_a", "0002_b"], ["0001_c", "0002_e", "0001_d"]
FAST = ["train.steps=2", "train.validate_every=2", "train.save_every=2"]
# The encoder that has made the embeddings; nothing of it is on this disk.
GIVEN = [
    "image_encoder.model=owner/dino-vitb16",
    "gpt.condition_tokens=5",
    "gpt.condition_width=12",
]
SIZES = [
    o
    for o in GPT
    if o.split("=")[0] not in ("image_encoder.model", "gpt.condition_tokens", "gpt.condition_width")
]


@pytest.fixture(scope="module")
def shapenet(tmp_path_factory) -> Path:
    """Small, with two views of each shape, and embeddings of all but one of a split."""
    folder = write_shapenet(tmp_path_factory.mktemp("public") / "set", LISTS)
    rng = np.random.default_rng(1)
    (folder / "dino").mkdir()
    for shape_id in TRAIN + HELD_OUT:
        (folder / "views" / shape_id).mkdir(parents=True)
        for k in range(2):
            pixels = np.full((32, 32, 3), 255, np.uint8)
            pixels[8:24, 6 + k : 20] = rng.integers(0, 200, 3)
            Image.fromarray(pixels).save(folder / "views" / shape_id / f"{k}.png")
        if shape_id != "0001_b":
            np.savez(
                folder / "dino" / f"{shape_id}.npz",
                **{f"view_{k}": rng.normal(size=(1, 5, 12)) for k in range(3)},
            )
    return folder


@pytest.fixture(scope="module")
def tokenizer(shapenet, tmp_path_factory) -> Path:
    """Trained on it through the command line."""
    out = tmp_path_factory.mktemp("tokenizer")
    flags = ["--base", base(out), "--data", str(shapenet), "--out", str(out / "run"), *VQVAE]
    assert train_vqvae.main(flags) == 0
    return out / "run" / "model"


def rows(path: Path) -> list[dict]:
    with path.open(newline="") as f:
        return list(csv.DictReader(f))


def test_the_tokenizer_trains_on_shapenet(tokenizer):
    log = rows(tokenizer.parent / "train.csv")
    assert [int(r["step"]) for r in log] == [1, 2, 3, 4, 5, 6] and all(
        float(r["loss"]) > 0 for r in log
    )
    with Image.open(tokenizer.parent / "preview_0000006.png") as sheet:
        truth = np.asarray(sheet)[24:, 8:190]
    assert (truth == 255).all(), "there is no mesh to be drawn"


def test_the_gpt_trains_on_shapenet_and_views(shapenet, tokenizer, tmp_path):
    data = tmp_path / "set"
    data.mkdir()
    for name in ("ShapeNetV2_point", "surface", "views"):
        (data / name).symlink_to(shapenet / name)
    flags = [
        "--config",
        base(tmp_path),
        "--data",
        str(data),
        "--vq-ckpt",
        str(tokenizer),
        "--out",
        str(tmp_path / "run"),
    ]
    assert train_gpt.main([*flags, *GPT, *FAST]) == 0
    tokens = TokenDataset(data, "train", seed=0, expected_stamp={}, conditions=["image"])
    assert tokens.ids == TRAIN and TokenDataset(
        data, "test", seed=0, expected_stamp={}, conditions=["image"]
    ).ids == ["0001_d"]
    assert len(rows(tmp_path / "run" / "train.csv")) == 2
    assert choose_shapes(EvalData(data, data), "image", 5, 0) == ["0001_d"]


@pytest.fixture
def given(shapenet, tmp_path, monkeypatch) -> Path:
    """A set without pictures, on a machine on which any encoder would be missed."""
    data = tmp_path / "set"
    data.mkdir()
    for name in ("ShapeNetV2_point", "surface"):
        (data / name).symlink_to(shapenet / name)

    def load(kind: type, source: str, dtype: object, name: str):
        raise ValueError(f"{name} {source!r} was not found")

    monkeypatch.setattr(image_encoders, "load_pretrained", load)
    return data


def test_the_gpt_trains_from_given_embeddings_without_their_encoder(
    shapenet, tokenizer, given, tmp_path, capsys
):
    flags = [
        str(given),
        "--tokenizer",
        str(tokenizer),
        "--config",
        base(tmp_path),
        "--embeddings",
        str(shapenet / "dino"),
    ]
    assert main([*flags, *GIVEN]) == 1, "one shape has no embeddings"
    (refused,) = rows(given / "tokens" / "refused.csv")
    assert refused["id"] == "0001_b" and "0001_b.npz is not there" in refused["reason"]
    stamp = read_stamp(given / "tokens")
    assert (
        stamp["image"] == "embeddings given: owner/dino-vitb16, 5 x 12"
        and stamp["image items"] == "float16 embeddings"
    )
    stored = TokenDataset(given, "train", seed=0, expected_stamp={}, conditions=["image"])
    assert stored.ids == [i for i in TRAIN if i != "0001_b"]
    with np.load(shapenet / "dino" / "0002_a.npz") as archive:
        for k in range(3):
            assert np.array_equal(
                stored.row(1, k)["condition"]["image"], archive[f"view_{k}"][0].astype(np.float16)
            )

    out = tmp_path / "run"
    flags = [
        "--config",
        base(tmp_path),
        "--data",
        str(given),
        "--vq-ckpt",
        str(tokenizer),
        *SIZES,
        *FAST,
        "--out",
    ]
    assert train_gpt.main([*flags, str(out), *GIVEN]) == 0
    assert len(rows(out / "train.csv")) == 2 and (out / "preview_0000002.png").is_file()
    needed = "needs owner/dino-vitb16, whose embeddings were given"
    assert (
        needed in capsys.readouterr().out
        and needed in (out / "model" / "gpt_i23d" / "README.md").read_text()
    )
    assert (
        run.main(["--model", str(out / "model"), "--save-path", str(tmp_path / "generated")]) == 2
    )
    assert "image encoder 'owner/dino-vitb16' was not found" in capsys.readouterr().err

    assert (
        train_gpt.main([*flags, str(tmp_path / "b"), *GIVEN, "image_encoder.model=owner/other"])
        == 2
    )
    assert (
        f"was made with image '{stamp['image']}', but this training uses" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            ["gpt.condition_tokens=6"],
            "view_0 is 5 x 12, but gpt.condition_tokens x gpt.condition_width is 6 x 12: write ",
        ),
        (
            ["image_encoder.model=trained"],
            "are those of a frozen encoder, but image_encoder.model is 'trained'",
        ),
        (["--embeddings", "none"], "none is not a folder of embeddings"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(
    shapenet, tokenizer, given, tmp_path, capsys, changes, message
):
    flags = [
        str(given),
        "--tokenizer",
        str(tokenizer),
        "--config",
        base(tmp_path),
        "--embeddings",
        str(shapenet / "dino"),
    ]
    with pytest.raises(SystemExit) as stop:
        main([*flags, *GIVEN, *changes])
    assert stop.value.code == 2 and message in capsys.readouterr().err
