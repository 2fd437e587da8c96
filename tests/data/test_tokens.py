"""Token shards: made once, made again when something is wrong with them, never mixed."""

import csv
import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from tar3d import checkpoint
from tar3d.config import ImageEncoderConfig, TokenizerConfig, VQVAEConfig
from tar3d.data import make_tokens
from tar3d.data.folder import read_splits
from tar3d.data.make_tokens import TokenMaker
from tar3d.data.shapes import load_samples
from tar3d.data.tokens import TokenDataset, read_stamp, sha256
from tar3d.tokenizer.vqvae import VQVAE

ENCODER = ImageEncoderConfig(source="trained", image_size=16, patch_size=8, width=8, num_layers=1, num_heads=2)
TOKENIZER = TokenizerConfig(grid_size=2, width=8, num_heads=2, num_frequencies=2, encoder="plane_pool", encoder_layers=0,
                            point_width=8, codebook_size=16, code_dim=4, decoder_layers=0, plane_channels=4, upsample_stages=1,
                            occupancy_width=8, occupancy_layers=2)


def vqvae(seed: int = 0) -> VQVAE:
    torch.manual_seed(seed)
    return VQVAE(TOKENIZER)


def maker(data, seed: int = 0, encoder: ImageEncoderConfig = ENCODER) -> TokenMaker:
    return TokenMaker(data, vqvae(seed), encoder, torch.device("cpu"))


@pytest.fixture
def data(samples, tmp_path, monkeypatch):
    """Own copy of the samples with splits of 4, 1 and 1 shapes, in shards of two."""
    monkeypatch.setattr(make_tokens, "SHARD_SHAPES", 2)
    folder = tmp_path / "set"
    shutil.copytree(samples, folder)
    ids = sorted(sum(read_splits(folder).values(), []))
    (folder / "splits.json").write_text(json.dumps({"train": ids[:4], "val": ids[4:5], "test": ids[5:]}))
    return folder


def dataset(data, split: str = "train", **wanted) -> TokenDataset:
    return TokenDataset(data, split, seed=0, wanted=wanted)


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
        assert views[0]["tokens"].dtype == torch.int64 and views[0]["source"].shape == (16, 16, 3)
        assert views[0]["source"].dtype == torch.uint8 and not torch.equal(views[0]["source"], views[1]["source"])


def test_position_and_seed_decide_the_view(data):
    maker(data).run()
    rows = dataset(data)
    drawn = [rows[(p, 1)]["source"] for p in range(20)]
    assert all(torch.equal(a, rows[(p, 1)]["source"]) for p, a in enumerate(drawn))
    firsts = [torch.equal(a, rows.row(1, 0)["source"]) for a in drawn]
    assert 3 < sum(firsts) < 17


def test_shards_are_mapped_and_stay_on_disk_when_a_worker_gets_the_set(data):
    maker(data).run()
    rows = dataset(data)
    before = pickle.dumps(rows)
    for shard in (data / "tokens").glob("train-*"):  # what is sent does not grow with what is stored
        source = np.load(shard / "source.npy")
        np.save(shard / "source.npy", np.concatenate([source, np.zeros((2000, *source.shape[1:]), source.dtype)]))
        index = json.loads((shard / "index.json").read_text())
        index["sha256"]["source.npy"] = sha256(shard / "source.npy")
        (shard / "index.json").write_text(json.dumps(index))
    rows = dataset(data)
    assert len(pickle.dumps(rows)) == len(before)
    assert all(isinstance(a.base, np.memmap) for arrays in rows._arrays for a in arrays)
    again = pickle.loads(pickle.dumps(rows))
    for position in range(8):
        mine, theirs = rows[(position, position % 4)], again[(position, position % 4)]
        assert all(torch.equal(mine[name], theirs[name]) for name in ("tokens", "source"))


def test_an_interrupted_run_continues(data):
    maker(data).run()
    before = shards(data)
    tokens = np.load(data / "tokens" / "train-00001" / "tokens.npy")
    shutil.rmtree(data / "tokens" / "train-00001")
    assert maker(data).run() == 6
    assert {n for n, t in shards(data).items() if before[n] != t} == {"train-00001"}
    assert np.array_equal(np.load(data / "tokens" / "train-00001" / "tokens.npy"), tokens)


def test_tokens_of_another_tokenizer_or_encoder_are_refused(data):
    maker(data).run()
    with pytest.raises(ValueError, match="was made with tokenizer .* instead of .*; delete that folder"):
        maker(data, seed=1).run()
    larger = ImageEncoderConfig(source="trained", image_size=24, patch_size=8, width=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="was made with encoder 'trained ViT, 16 px.* instead of 'trained ViT, 24 px"):
        maker(data, encoder=larger).run()
    assert dataset(data, tokenizer=checkpoint.fingerprint(vqvae())).ids
    with pytest.raises(ValueError, match="was made with tokenizer .* but this training uses 'abc'"):
        dataset(data, tokenizer="abc")


def test_shards_follow_changed_splits(data):
    """A shape that is held out now must not stay in a training shard."""
    maker(data).run()
    splits = read_splits(data)
    held_out = splits["train"][2:]
    (data / "splits.json").write_text(json.dumps({"train": splits["train"][:2], "val": splits["val"] + held_out,
                                                  "test": splits["test"]}))
    assert maker(data).run() == 6
    assert dataset(data).ids == splits["train"][:2] and not set(held_out) & set(dataset(data).ids)
    assert sorted(dataset(data, "val").ids) == sorted(splits["val"] + held_out)


def refused(data) -> dict[str, str]:
    with open(data / "tokens" / "refused.csv", newline="") as f:
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
        assert str(bad) in refused(data)[train[1]] and "holds no .png view" in refused(data)[train[2]]
        assert dataset(data).ids == [train[0], train[3]]
    bad.write_bytes(good)
    assert maker(data).run() == 5
    assert list(refused(data)) == [train[2]] and dataset(data).ids == [train[0], train[1], train[3]]


def test_command_line(data, tmp_path, capsys):
    checkpoint.save_model(tmp_path / "model", vqvae(), VQVAEConfig(tokenizer=TOKENIZER), {}, "")
    flags = [str(data), "--tokenizer", str(tmp_path / "model"), "image_encoder.source=trained", "image_encoder.image_size=16",
             "image_encoder.patch_size=8"]
    assert make_tokens.main(flags) == 0
    assert "tokens of 6 shapes" in capsys.readouterr().out
    assert read_stamp(data / "tokens")["tokenizer"] == checkpoint.fingerprint(vqvae())
    (data / "views" / read_splits(data)["val"][0] / "1.png").write_bytes(b"no picture")
    shutil.rmtree(data / "tokens")
    assert make_tokens.main(flags) == 1
    (data / "tokens" / "stamp.json").unlink()
    with pytest.raises(SystemExit) as stop:
        make_tokens.main(flags)
    assert stop.value.code == 2 and "no stamp.json" in capsys.readouterr().err


def test_a_split_without_tokens_is_refused(data):
    maker(data).run()
    shutil.rmtree(data / "tokens" / "val-00000")
    with pytest.raises(ValueError, match="holds no tokens of split 'val'"):
        dataset(data, "val")


def test_ids_above_uint16_are_stored_whole(data):
    big = maker(data)
    big.vqvae.tokenize = lambda surface: type("T", (), {"ids": torch.full((1, 12), 70_000)})
    big.vqvae.config.codebook_size = 100_000
    big.run()
    assert dataset(data)[(0, 0)]["tokens"].tolist() == [70_000] * 12


def test_frozen_encoder_stores_its_embeddings(data, tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vit = transformers.ViTModel(transformers.ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                                                       intermediate_size=16,
                                                       image_size=16, patch_size=8), add_pooling_layer=False)
    vit.save_pretrained(tmp_path / "vit")
    frozen = maker(data, encoder=ImageEncoderConfig(source=str(tmp_path / "vit"), image_size=16))
    frozen.run()
    source = dataset(data)[(0, 0)]["source"]
    assert source.dtype == torch.float16 and source.shape == (5, 8)
