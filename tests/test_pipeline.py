"""What a pipeline does with a model that was made elsewhere."""

import re
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image

from tar3d import checkpoint, config
from tar3d.condition.image import ImageError
from tar3d.conditional_gpt import ConditionalGPT
from tar3d.config import GPTRunConfig
from tar3d.contracts import Mesh
from tar3d.layouts.triplane import TriplaneLayout
from tar3d.pipeline import MESHERS, Pipeline
from tar3d.placement import Placement

TINY = Path(__file__).resolve().parent.parent / "pretrained" / "tiny"
SHIPPED = TINY / "gpt_any"
BOX = Mesh(trimesh.creation.box().vertices, trimesh.creation.box().faces)


@pytest.mark.parametrize(
    "linear, full", [("fla", "flash_attn"), ("lightning_attn", "flash_attn"), ("reference", "sdpa")]
)
def test_a_model_is_loaded_whatever_attention_backends_it_was_trained_with(tmp_path, linear, full):
    trained = checkpoint.read_config(SHIPPED, GPTRunConfig)
    trained.gpt.linear_backend, trained.gpt.attention_backend = linear, full
    folder = tmp_path / "gpt"
    shutil.copytree(SHIPPED, folder)
    config.save(trained, folder / checkpoint.CONFIG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline = Pipeline.load(vqvae=TINY / checkpoint.TOKENIZER, gpt=folder)
    assert {block.attention.attend.name for block in pipeline.model.gpt.blocks} == {"auto"}
    assert isinstance(pipeline.model, ConditionalGPT)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)]
)
def test_a_pipeline_samples_in_the_precision_that_it_is_given(precision, dtype):
    pipeline = Pipeline.load(TINY, "uncond", precision=precision)
    assert pipeline.engine.dtype == dtype and pipeline.engine._head.dtype == dtype
    (shape,) = pipeline.generate({}, seeds=[0], resolution=16)
    assert pipeline.record(shape, 0, pipeline.sampling([]), 16)["precision"] == precision
    (exact,) = Pipeline.load(TINY, "uncond").generate({}, seeds=[0], resolution=16)
    assert (shape.tokens == exact.tokens)[:20].float().mean() > 0.5
    assert not torch.equal(shape.tokens, exact.tokens)


def test_a_pipeline_takes_by_default_what_auto_is_on_its_device(monkeypatch):
    monkeypatch.setattr(
        "tar3d.pipeline.inference_precision",
        lambda name, device: {"auto": "bf16-mixed"}[name] if device.type == "cpu" else name,
    )
    pipeline = Pipeline.load(TINY, "uncond")
    assert (pipeline.precision, pipeline.engine.dtype) == ("bf16-mixed", torch.bfloat16)


@pytest.mark.parametrize("name, waits", [("cuda:1", ["cuda:1"]), ("cpu", [])])
def test_times_wait_for_the_device_in_use_and_not_for_the_current_one(monkeypatch, name, waits):
    found = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: found.append(str(device)))
    seconds = {"decode": 1.0}
    with Placement(torch.device(name)).timed(seconds, "decode"):
        assert not found
    assert found == waits and 1.0 < seconds["decode"] < 100


def test_low_vram_keeps_on_the_device_what_works_and_nothing_else(monkeypatch):
    """Two batches: the same tokens as without, each part moved there and back around its work, a
    new engine each time."""
    pixels = {
        "image": torch.randint(
            256, (2, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    }
    plain = Pipeline.load(TINY).generate(pixels, seeds=[3, 4], resolution=24)
    pipeline = Pipeline.load(TINY, low_vram=True)
    assert pipeline.engine is None
    names = {
        pipeline.model.conditioner.encoder("image"): "image encoder",
        pipeline.model.gpt: "gpt",
        pipeline.vqvae.quantizer: "codebook",
        pipeline.vqvae.decoder: "decoder",
        pipeline.vqvae.occupancy: "occupancy",
    }
    there, seen, to = set(), [], torch.nn.Module.to

    def record(self, device):
        if self in names:
            name = names[self]
            there.add(name) if device.index is not None else there.discard(name)
            if not seen or seen[-1] != there:
                seen.append(set(there))
        return to(self, device)

    monkeypatch.setattr(torch.nn.Module, "to", record)
    monkeypatch.setattr(pipeline, "placement", Placement(torch.device("cpu", 0), low_vram=True))
    for _ in range(2):
        seen.clear()
        results = pipeline.generate(pixels, seeds=[3, 4], resolution=24)
        shape = [{"codebook"}, {"codebook", "decoder"}, {"decoder"}, set(), {"occupancy"}, set()]
        assert seen == [{"image encoder"}, set(), {"gpt"}, set(), *shape, *shape]
        for result, expected in zip(results, plain, strict=True):
            assert (result.tokens == expected.tokens).all() and abs(
                len(result.mesh.faces) / len(expected.mesh.faces) - 1
            ) < 0.05
    assert pipeline.engine is None and pipeline.backend == "plain"


def test_of_nothing_there_is_nothing_to_heed():
    pipeline = Pipeline.load(TINY, "uncond")
    assert pipeline.sampling(["text"]).code_predictor_scale > 0
    assert (pipeline.sampling([]).code_predictor_scale, pipeline.sampling([]).cfg_scale) == (
        0.0,
        1.0,
    )
    free = pipeline.generate({}, seeds=[0, 1, 2], resolution=24)
    assert len({tuple(shape.tokens.tolist()) for shape in free}) == 3
    assert sum(shape.mesh is not None for shape in free) >= 2


def test_conditions_are_images_or_texts_as_the_encoders_take_them():
    pipeline = Pipeline.load(TINY)
    image = Image.open(TINY.parent.parent / "assets" / "sample_image.png")
    pixels = pipeline.prepare([image, image]).inputs["image"]
    assert (
        pixels.shape == (2, 64, 64, 3)
        and pixels.dtype == torch.uint8
        and (pixels[0] == pixels[1]).all()
    )
    ids = pipeline.prepare(["a chair", "a round table with four legs"]).inputs["text"]
    assert len(ids) == 2 and (ids[0] != ids[1]).any()
    with pytest.warns(UserWarning, match="does not know.*zeppelin"):
        pipeline.prepare(["a chair in a zeppelin"])
    for refused in (
        "a chair",
        [],
        [image, "a chair"],
        [None, "a chair"],
        [TINY],
        [pixels[0].numpy()],
    ):
        with pytest.raises(ValueError, match=r"a list of images \(PIL.Image\), a list of texts"):
            pipeline.prepare(refused)
    with pytest.raises(ImageError, match="single colour"):
        pipeline.prepare([Image.new("RGB", (8, 8), "red")])
    assert pipeline.prepare([None, None]).inputs == {}


def test_what_was_prepared_can_be_seen_and_recorded(recwarn):
    pipeline = Pipeline.load(TINY)
    image = Image.open(TINY.parent.parent / "assets" / "sample_image.png")
    (row,) = pipeline.prepare([image], preview_size=48).rows
    assert list(row.previews) == ["input", "seen by the encoder"] and row.warning is None
    assert all(p.shape == (48, 48, 3) and p.dtype == np.uint8 for p in row.previews.values())
    (row,) = pipeline.prepare(["a zeppelin"], warn=False, any_text=True).rows
    assert "zeppelin" in row.warning and not row.previews and not recwarn.list
    assert row.record == {"prompt": "a zeppelin", "note": row.warning}


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "the text is empty, say what to generate: this model makes bed, boat"),
        ("  \n", "the text is empty"),
        ("ein Stuhl", "the model knows no word of 'ein Stuhl': this model makes bed"),
        ("!?", "the model knows no word of"),
        ("a zeppelin", "'a zeppelin' names nothing that the model knows: this model makes bed"),
        ("tall and round", "'tall and round' names nothing"),
    ],
)
def test_texts_that_say_nothing_are_refused(text, message):
    pipeline = Pipeline.load(TINY)
    assert pipeline.prepare(["A Chair."]).inputs
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline.prepare(["a chair", text])


def test_a_layout_that_no_mesher_reads_is_refused(monkeypatch):
    monkeypatch.setattr(TriplaneLayout, "mesher", "faces")
    with pytest.raises(ValueError, match="no mesher 'faces' reads tokens .* allowed are vqvae"):
        Pipeline.load(TINY)
    monkeypatch.setitem(MESHERS, "faces", lambda *arguments: BOX)
    (shape,) = Pipeline.load(TINY).generate({}, seeds=[0], resolution=24)
    assert np.array_equal(shape.mesh.faces, BOX.faces)
