"""Token shards: made once, made again when something is wrong with them, never mixed."""

import csv
import dataclasses
import json
import pickle
import shutil
import time
from functools import partial
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image

from tar3d import checkpoint
from tar3d.condition.image_encoders import build_image_encoder
from tar3d.condition.text_encoders import build_text_encoder
from tar3d.condition.text_tokenizer import END, PADDING, UNKNOWN_ID
from tar3d.config import ImageEncoderConfig, TextEncoderConfig, TokenizerConfig, VQVAEConfig
from tar3d.data.datasets.tokens import TokenDataset, drop_words
from tar3d.data.formats.dataset_folder import read_splits
from tar3d.data.formats.samples import load_samples, save_samples
from tar3d.data.formats.token_shards import read_stamp, sha256
from tar3d.data.formats.token_sources import stale_parts
from tar3d.data.make_tokens import main
from tar3d.data.tokens import token_maker
from tar3d.data.tokens.conditions import CaptionConditions, ViewConditions
from tar3d.data.tokens.make_tokens import caption_tokenizer
from tar3d.data.tokens.token_maker import TokenMaker
from tar3d.io import read_json
from tar3d.tokenizer.vqvae import VQVAE

ENCODER = ImageEncoderConfig(
    model="trained", image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2
)
TEXT = TextEncoderConfig(
    model="trained", max_tokens=9, vocabulary=16, width=8, num_layers=1, num_heads=2
)
TOKENIZER = TokenizerConfig(
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


def vqvae(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(TOKENIZER)


CPU = torch.device("cpu")


def maker(
    data, seed: int = 0, encoder: ImageEncoderConfig = ENCODER, captions: bool = False
) -> TokenMaker:
    readers = [ViewConditions(data, build_image_encoder(encoder), encoder, CPU)]
    if captions:
        readers.append(
            CaptionConditions(
                data, build_text_encoder(TEXT, caption_tokenizer(data, TEXT.vocabulary)), CPU
            )
        )
    return TokenMaker(data, vqvae(seed), readers, CPU)


@pytest.fixture
def data(samples, tmp_path, monkeypatch):
    """Own copy of the samples with splits of 4, 1 and 1 shapes, in shards of two."""
    monkeypatch.setattr(token_maker, "SHARD_SHAPES", 2)
    folder = tmp_path / "set"
    shutil.copytree(samples, folder)
    ids = sorted(chain(*read_splits(folder).values()))
    (folder / "splits.json").write_text(
        json.dumps({"train": ids[:4], "val": ids[4:5], "test": ids[5:]})
    )
    return folder


def dataset(data, split: str = "train", **wanted) -> TokenDataset:
    return TokenDataset(data, split, seed=0, expected_stamp=wanted, conditions=["image"])


def shards(data) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in (data / "tokens").glob("*/index.json")}


def test_rows_hold_the_tokens_and_views_of_their_shape(data):
    assert maker(data).run() == 6
    assert sorted(shards(data)) == ["test-00000", "train-00000", "train-00001", "val-00000"]
    rows, model = dataset(data), vqvae().eval()
    assert rows.ids == read_splits(data)["train"] and len(rows) == 4
    for index, shape_id in enumerate(rows.ids):
        surface = torch.from_numpy(load_samples(data / "samples" / f"{shape_id}.npz").surface)
        views = [rows.row(index, k) for k in range(2)]
        assert torch.equal(views[0]["tokens"], model.tokenize(surface[None]).ids[0])
        assert views[0]["tokens"].dtype == torch.int64 and views[0]["condition"]["image"].shape == (
            16,
            16,
            3,
        )
        pixels = [view["condition"]["image"] for view in views]
        assert pixels[0].dtype == torch.uint8 and not torch.equal(*pixels)


def test_position_and_seed_decide_the_view(data):
    maker(data).run()
    rows = dataset(data)
    drawn = [rows[(p, 1)]["condition"]["image"] for p in range(20)]
    assert all(torch.equal(a, rows[(p, 1)]["condition"]["image"]) for p, a in enumerate(drawn))
    firsts = [torch.equal(a, rows.row(1, 0)["condition"]["image"]) for a in drawn]
    assert 3 < sum(firsts) < 17


def test_changed_images_are_those_of_their_step(data):
    maker(data).run()
    read = partial(TokenDataset, data, "train", seed=0, expected_stamp={}, conditions=["image"])
    plain, changed = read(), read(image_changes=1.0)
    items = [(changed[k, 0], changed[k, 0], plain[k, 0]) for k in range(6)]
    images = [[row["condition"]["image"] for row in rows] for rows in items]
    assert all(torch.equal(first, again) for first, again, _ in images)
    assert any(not torch.equal(first, other) for first, _, other in images)
    assert all(torch.equal(rows[0]["inputs"], rows[2]["inputs"]) for rows in items)
    stamp = data / "tokens" / "stamp.json"
    stamp.write_text(stamp.read_text().replace("uint8 pixels", "float16 embeddings"))
    with pytest.raises(ValueError, match=r"image_changes=1 changes pixels.* float16 embeddings"):
        read(image_changes=1.0)


def test_shards_are_mapped_and_stay_on_disk_when_a_worker_gets_the_set(data):
    maker(data).run()
    rows = dataset(data)
    before = pickle.dumps(rows)
    for shard in (data / "tokens").glob(
        "train-*"
    ):  # what is sent does not grow with what is stored
        views = np.load(shard / "image.npy")
        np.save(
            shard / "image.npy",
            np.concatenate([views, np.zeros((2000, *views.shape[1:]), views.dtype)]),
        )
        (shard / "image.json").write_text(
            json.dumps(read_json(shard / "image.json") | {"sha256": sha256(shard / "image.npy")})
        )
    rows = dataset(data)
    assert len(pickle.dumps(rows)) == len(before)
    assert all(isinstance(a.base, np.memmap) for arrays in rows._arrays for a in arrays.values())
    again = pickle.loads(pickle.dumps(rows))
    for position in range(8):
        mine, theirs = rows[(position, position % 4)], again[(position, position % 4)]
        assert torch.equal(mine["tokens"], theirs["tokens"]) and torch.equal(
            mine["condition"]["image"], theirs["condition"]["image"]
        )


def test_an_interrupted_run_continues(data):
    maker(data).run()
    before = shards(data)
    tokens = np.load(data / "tokens" / "train-00001" / "tokens.npy")
    shutil.rmtree(data / "tokens" / "train-00001")
    assert maker(data).run() == 6
    assert {n for n, t in shards(data).items() if before[n] != t} == {"train-00001"}
    assert np.array_equal(np.load(data / "tokens" / "train-00001" / "tokens.npy"), tokens)


def test_pixels_serve_a_trained_encoder_of_any_size(data):
    maker(data).run()
    before = shards(data)
    wide = ImageEncoderConfig(
        model="trained", image_size=16, patch_size=4, width=16, num_layers=2, num_heads=4
    )
    maker(data, encoder=wide).run()
    assert shards(data) == before


def test_tokens_of_another_tokenizer_or_encoder_are_refused(data):
    maker(data).run()
    with pytest.raises(
        ValueError, match="was made with tokenizer .* instead of .*; delete that folder"
    ):
        maker(data, seed=1).run()
    larger = ImageEncoderConfig(
        model="trained", image_size=24, patch_size=8, width=8, num_layers=1, num_heads=2
    )
    with pytest.raises(
        ValueError, match="was made with image 'trained ViT, 16 px.* instead of 'trained ViT, 24 px"
    ):
        maker(data, encoder=larger).run()
    assert dataset(data, tokenizer=checkpoint.token_fingerprint(vqvae())).ids
    with pytest.raises(ValueError, match="was made with tokenizer .* but this training uses 'abc'"):
        dataset(data, tokenizer="abc")


def test_shards_follow_changed_splits(data):
    """A shape that is held out now must not stay in a training shard."""
    maker(data).run()
    splits = read_splits(data)
    held_out = splits["train"][2:]
    (data / "splits.json").write_text(
        json.dumps(
            {"train": splits["train"][:2], "val": splits["val"] + held_out, "test": splits["test"]}
        )
    )
    assert maker(data).run() == 6
    assert dataset(data).ids == splits["train"][:2] and not set(held_out) & set(dataset(data).ids)
    assert sorted(dataset(data, "val").ids) == sorted(splits["val"] + held_out)


def refused(data) -> dict[str, str]:
    with (data / "tokens" / "refused.csv").open(newline="") as f:
        return {row["id"]: row["reason"] for row in csv.DictReader(f)}


def test_a_bad_view_is_listed_every_time_until_it_is_repaired(data):
    train = read_splits(data)["train"]
    bad = data / "views" / train[1] / "0.png"
    good = bad.read_bytes()
    bad.write_bytes(good[:40])
    for path in (data / "views" / train[2]).iterdir():
        path.unlink()
    for _ in range(2):
        again = maker(data)
        assert again.run() == 4
        assert list(refused(data)) == [r["id"] for r in again.refused] == train[1:3]
        assert (
            str(bad) in refused(data)[train[1]] and "holds no .png view" in refused(data)[train[2]]
        )
        assert dataset(data).ids == [train[0], train[3]]
    bad.write_bytes(good)
    assert maker(data).run() == 5
    assert list(refused(data)) == [train[2]] and dataset(data).ids == [train[0], train[1], train[3]]


def test_command_line(data, tmp_path, capsys):
    checkpoint.save_model(tmp_path / "model", vqvae(), VQVAEConfig(tokenizer=TOKENIZER), {}, "")
    flags = [
        str(data),
        "--tokenizer",
        str(tmp_path / "model"),
        "image_encoder.model=trained",
        "image_encoder.image_size=16",
        "image_encoder.patch_size=8",
    ]
    assert main(flags) == 0
    assert "tokens of 6 shapes" in capsys.readouterr().out
    assert read_stamp(data / "tokens")["tokenizer"] == checkpoint.token_fingerprint(vqvae())
    (data / "views" / read_splits(data)["val"][0] / "1.png").write_bytes(b"no picture")
    shutil.rmtree(data / "tokens")
    assert main(flags) == 1
    (data / "tokens" / "stamp.json").unlink()
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2 and "no stamp.json" in capsys.readouterr().err


def test_a_split_without_tokens_is_refused(data):
    maker(data).run()
    shutil.rmtree(data / "tokens" / "val-00000")
    with pytest.raises(ValueError, match="holds no tokens of split 'val'"):
        dataset(data, "val")


def test_a_split_without_views_is_refused_by_what_it_lacks(data):
    shutil.rmtree(data / "views")
    assert maker(data).run() == 0
    lacking = "no shape of split 'train' has both tokens and image: add views/ to .*refused.csv"
    with pytest.raises(ValueError, match=lacking):
        dataset(data)


def test_ids_above_uint16_are_stored_whole(data):
    big = maker(data)
    big.vqvae.tokens_of = lambda latents: type("T", (), {"ids": torch.full((1, 12), 70_000)})
    big.vqvae.config.codebook_size = 100_000
    big.run()
    assert dataset(data)[(0, 0)]["tokens"].tolist() == [70_000] * 12


def test_tokens_are_of_the_mean_latents_of_the_samplings_that_the_points_allow(data):
    """200 points are three samplings of 60 or more, 100 are one, in their order."""
    ids = read_splits(data)["train"]
    path = data / "samples" / f"{ids[0]}.npz"
    few = load_samples(path)
    save_samples(dataclasses.replace(few, surface=few.surface[:100]), path)
    model = vqvae().eval()
    model.config = dataclasses.replace(TOKENIZER, density_points=60)
    readers = maker(data).readers
    made = TokenMaker(data, model, readers, CPU, samplings=4)
    made.run()
    found = read_json(data / "tokens" / "train-00000" / "index.json")
    assert found["ids"] == ids[:2] and found["samplings"] == [1, 3]
    assert "6 shapes got fewer than train.token_samplings=4" in made.notes[0]
    assert "make_samples surface_points=240 stores as many" in made.notes[0]
    rows = dataset(data, samplings=4)
    surface = [torch.from_numpy(load_samples(data / "samples" / f"{i}.npz").surface) for i in ids]
    assert torch.equal(rows.row(0)["tokens"], model.tokenize(surface[0][None]).ids[0])
    parts = made._samplings_of(ids[1])
    assert parts.shape == (3, 66, 6) and torch.equal(made._samplings_of(ids[1]), parts)
    assert len(torch.unique(parts.flatten(0, 1), dim=0)) == len(torch.unique(surface[1], dim=0)) - 2
    mean = model.encode(parts).mean(0, keepdim=True)
    assert torch.equal(rows.row(1)["tokens"], model.tokens_of(mean).ids[0])
    with pytest.raises(
        ValueError, match="samplings 4 instead of 1; .*or write train.token_samplings=4"
    ):
        maker(data).run()
    with pytest.raises(ValueError, match="made with samplings 4, but this training uses 1"):
        dataset(data, samplings=1)


def test_latents_are_those_that_the_tokens_are_nearest_to(data):
    maker(data).run()
    rows = TokenDataset(
        data, "train", seed=0, expected_stamp={}, conditions=["image"], latents=True
    )
    latents, tokens = rows[(0, 1)]["latents"], rows[(0, 1)]["tokens"]
    assert latents.dtype == torch.float16 and latents.shape == (12, 4)
    codes = vqvae().quantizer.codebook
    assert torch.equal((latents.float() @ codes.T).argmax(-1), tokens)
    assert "latents" not in dataset(data)[(0, 1)]
    shard = data / "tokens" / "train-00001"
    (shard / "latents.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="latents.npy is damaged"):
        TokenDataset(data, "train", seed=0, expected_stamp={}, conditions=["image"], latents=True)
    index = read_json(shard / "index.json")
    del index["latents"], index["samplings"]
    (shard / "index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="has no latents, .* or write train.target_codes=1"):
        TokenDataset(data, "train", seed=0, expected_stamp={}, conditions=["image"], latents=True)
    assert dataset(data, samplings=1).ids  # as shards of earlier versions are read


def test_frozen_encoder_stores_its_embeddings(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vit = transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        ),
        add_pooling_layer=False,
    )
    vit.save_pretrained(tmp_path / "vit")
    frozen = maker(data, encoder=ImageEncoderConfig(model=str(tmp_path / "vit"), image_size=16))
    frozen.run()
    source = dataset(data)[(0, 0)]["condition"]["image"]
    assert source.dtype == torch.float16 and source.shape == (5, 8)


def captioned(data) -> dict[str, list[str]]:
    """Captions for all but the second training shape, which is left without."""
    ids = sorted(chain(*read_splits(data).values()))
    captions = {
        i: [f"a mug number {k}", "a mug"] if k % 2 else [f"a thing number {k}"]
        for k, i in enumerate(ids)
    }
    captions.pop(read_splits(data)["train"][1])
    rows = [f"{i},{caption}" for i, of_one in captions.items() for caption in of_one]
    (data / "captions.csv").write_text("\n".join(["id,caption", *rows]) + "\n")
    return captions


def read_both(data, **more) -> TokenDataset:
    return TokenDataset(
        data,
        "train",
        seed=0,
        expected_stamp={},
        conditions=["image", "text"],
        caption_tokens=TEXT.max_tokens,
        **more,
    )


def test_captions_are_added_to_shards_that_have_views(data):
    captions = captioned(data)
    maker(data).run()
    before = {p: p.stat().st_mtime_ns for p in (data / "tokens").glob("*/*.npy")}
    with pytest.raises(
        ValueError,
        match="says nothing of the condition 'text': run python -m tar3d.data.make_tokens",
    ):
        read_both(data)
    again = maker(data, captions=True)
    assert again.run() == 5, "the shape without a caption is not one of them"
    assert [(r["id"], r["kind"]) for r in again.refused] == [
        (read_splits(data)["train"][1], "text")
    ]
    assert all(p.stat().st_mtime_ns == t for p, t in before.items()), (
        "nothing that was there is made again"
    )
    rows, words = read_both(data), again.readers[1].encoder.text_tokenizer
    assert rows.ids == [i for i in read_splits(data)["train"] if i in captions]
    assert dataset(data).ids == read_splits(data)["train"], (
        "an image-only training keeps the shape without a caption"
    )
    for index, shape_id in enumerate(rows.ids):
        for item, caption in enumerate(captions[shape_id]):
            source = rows.row(index, 1, item)["condition"]
            assert np.array_equal(source["text"], words.prepare(caption).ids) and source[
                "image"
            ].shape == (16, 16, 3)
    drawn = {
        tuple(rows[(p, rows.ids.index(i))]["condition"]["text"].tolist())
        for p in range(30)
        for i in rows.ids
        if len(captions[i]) == 2
    }
    assert len(drawn) == 2, "both captions of a shape are drawn; their numbers are unknown words"


def test_a_caption_that_comes_later_is_taken_in(data):
    captions = captioned(data)
    maker(data, captions=True).run()
    late = read_splits(data)["train"][1]
    with (data / "captions.csv").open("a") as f:
        f.write(f"{late},a mug\n")
    assert maker(data, captions=True).run() == 6 and late in read_both(data).ids
    place = read_both(data).ids.index(next(iter(captions)))
    words = build_text_encoder(TEXT, caption_tokenizer(data, TEXT.vocabulary)).text_tokenizer
    first = captions[read_both(data).ids[place]][0]
    assert np.array_equal(read_both(data).row(place)["condition"]["text"], words.prepare(first).ids)


def test_dropped_words_are_unknown_ones(data):
    captioned(data)
    maker(data, captions=True).run()
    rows, dropped = read_both(data), read_both(data, word_dropout=0.5)
    seen = [
        (rows[(p, 0)]["condition"]["text"], dropped[(p, 0)]["condition"]["text"]) for p in range(40)
    ]
    for a, b in seen:
        assert torch.equal((a == PADDING), (b == PADDING)) and bool(
            ((a == b) | (b == UNKNOWN_ID)).all()
        )
    changed = torch.stack(
        [(a != b)[: int((a != PADDING).sum()) - 1].float().mean() for a, b in seen]
    )
    assert 0.3 < changed.mean() < 0.7
    end = build_text_encoder(
        TEXT, caption_tokenizer(data, TEXT.vocabulary)
    ).text_tokenizer.tokenizer.convert_tokens_to_ids(END)
    assert all(int(b[int((b != PADDING).sum()) - 1]) == end for _, b in seen), "the end mark stays"
    only_end = torch.tensor([end, PADDING, PADDING])
    assert torch.equal(drop_words(only_end, 0.99, np.random.default_rng(0)), only_end)


def test_text_embeddings_keep_their_own_lengths(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    captioned(data)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=64, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "t5")
    caption_tokenizer(data, 32).save_pretrained(tmp_path / "t5")
    encoder = build_text_encoder(
        TextEncoderConfig(model=str(tmp_path / "t5"), max_tokens=9, dtype="float32")
    )
    TokenMaker(data, vqvae(), [CaptionConditions(data, encoder, CPU)], CPU).run()
    rows = TokenDataset(
        data,
        "train",
        seed=0,
        expected_stamp={"text": encoder.identity},
        conditions=["text"],
        caption_tokens=9,
    )
    text, words = (
        rows.row(0)["condition"]["text"],
        encoder.text_tokenizer.prepare(captioned(data)[rows.ids[0]][0]),
    )
    condition = encoder(torch.from_numpy(words.ids)[None])
    length = int(condition.mask.sum())
    assert text.dtype == torch.float16 and text.shape == (9, 8) and bool((text[length:] == 0).all())
    torch.testing.assert_close(
        text[:length].float(), condition.embeddings[0, :length], atol=2e-3, rtol=2e-3
    )


def test_tokens_of_an_earlier_version_are_refused(data):
    maker(data).run()
    stamp = read_stamp(data / "tokens")
    (data / "tokens" / "stamp.json").write_text(json.dumps(stamp | {"encoder": "a"}))
    with pytest.raises(ValueError, match="made by an earlier version; delete that folder"):
        maker(data).run()


def touched(data) -> set[str]:
    """Names of the arrays that are newer than the file `before` in the data set's folder."""
    since = (data / "before").stat().st_mtime_ns
    return {
        f"{p.parent.name}/{p.stem}"
        for p in (data / "tokens").glob("*/*.npy")
        if p.stat().st_mtime_ns > since
    }


def change_samples(data, shape_id: str) -> None:
    path = data / "samples" / f"{shape_id}.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["surface"][0, 0] += np.float16(0.01)
    np.savez(path, **arrays)


def change_view(data, shape_id: str) -> None:
    path = data / "views" / shape_id / "1.png"
    Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)


def change_caption(data, shape_id: str) -> None:
    path = data / "captions.csv"
    path.write_text(path.read_text().replace(f"{shape_id},a mug\n", f"{shape_id},mug a\n"))


CHANGES = [
    (change_samples, {"tokens", "latents"}, "samples"),
    (change_view, {"image"}, "views"),
    (change_caption, {"text"}, "captions"),
]


@pytest.mark.parametrize(("change", "parts", "source"), CHANGES)
def test_what_shards_are_made_of_is_followed(data, change, parts, source):
    captioned(data)
    maker(data, captions=True).run()
    assert list(stale_parts(data)) == []
    time.sleep(0.01)
    (data / "before").touch()
    time.sleep(0.01)
    change(data, read_splits(data)["train"][3])
    ((path, sentence),) = stale_parts(data)
    assert path.parent.name == "train-00001" and f"the {source} of its shapes" in sentence
    again = maker(data, captions=True)
    again.run()
    assert touched(data) == {f"train-00001/{part}" for part in parts}
    assert again.notes == [
        f"made again, as what they are made of has changed: train-00001 ({source}) in "
        f"{data / 'tokens'}"
    ]
    assert list(stale_parts(data)) == [] and maker(data, captions=True).run() == 5


def test_a_copy_is_not_stale_and_shards_without_hashes_say_so(data, tmp_path):
    maker(data).run()
    copy = shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile)
    again = maker(copy)
    again.run()
    assert list(stale_parts(copy)) == [] and again.notes == []
    for path in (copy / "tokens").glob("train-*/*.json"):
        path.write_text(json.dumps({k: v for k, v in read_json(path).items() if k != "sources"}))
    again = maker(copy)
    again.run()
    assert len(again.notes) == 1 and "2 shards in" in again.notes[0]
    assert "could not be checked; delete that folder" in again.notes[0]
    change_samples(copy, read_splits(copy)["train"][0])
    assert [path.parent.name for path, _ in stale_parts(copy)] == ["train-00000"]


def test_shapes_that_are_left_out_are_counted_with_the_reason(data):
    captioned(data)
    maker(data, captions=True).run()
    assert dataset(data).left_out == ""
    left_out = "1 of 4 shapes of split 'train' are left out: 1 have no usable captions ("
    assert read_both(data).left_out.startswith(left_out)


def test_a_folder_without_samples_stays_as_it_was(tmp_path):
    (tmp_path / "splits.json").write_text('{"train": [], "val": [], "test": []}')
    with pytest.raises(ValueError, match="holds no samples"):
        TokenMaker(tmp_path, vqvae(), [], CPU).run()
    assert [p.name for p in tmp_path.iterdir()] == ["splits.json"]
