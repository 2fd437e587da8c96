"""The page in the browser, asked through its own interface: what it makes is what run.py makes, and
refusals are sentences."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
import trimesh
from PIL import Image

import demo
import run
from tar3d.config import GPT_TYPES, SamplingConfig, help_texts
from tar3d.pipeline import Pipeline

gradio = pytest.importorskip("gradio", exc_type=ImportError)
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"seed": 5, "resolution": 32, "faces": 0} | dict.fromkeys(help_texts(SamplingConfig))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Iterator[tuple]:
    """A client of a page with the shipped model, and the folder where its meshes stay."""
    from gradio_client import Client

    out = tmp_path_factory.mktemp("demo")
    args = demo.parse_arguments(["--model", str(ROOT / "pretrained/tiny"), "--out", str(out)])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        blocks = demo.build(demo.load_models(args), args.model, out)
        _, url, _ = blocks.launch(
            allowed_paths=[str(out)], share=False, prevent_thread_lock=True, quiet=True
        )
        try:
            yield Client(url, verbose=False), out
        finally:
            blocks.close()


def ask(page: tuple, gpt_type: str, *condition: object, **changed: object) -> tuple[Path, str]:
    file, line = page[0].predict(
        *condition, *(SETTINGS | changed).values(), api_name=f"/{gpt_type}"
    )
    return Path(file), line


def test_a_text_gives_the_mesh_that_the_script_gives(page, tmp_path):
    file, line = ask(page, "t23d", "a chair with arms", code_predictor_scale=20)
    flags = [
        "--model",
        str(ROOT / "pretrained/tiny"),
        "--prompt",
        "a chair with arms",
        "--seed",
        "5",
        "--resolution",
        "32",
        "--code-predictor-scale",
        "20",
        "--no-preview",
        "--save-path",
        str(tmp_path),
    ]
    assert run.main(flags) == 0
    assert file.read_bytes() == (tmp_path / "a_chair_with_arms.glb").read_bytes()
    kept = page[1] / Path(line.partition(":")[0]).name
    record, expected = (
        json.loads(path.read_text())
        for path in (kept.with_suffix(".json"), tmp_path / "a_chair_with_arms.json")
    )
    assert kept.read_bytes() == file.read_bytes() and "768 tokens" in line and "seed 5" in line
    settings = record.keys() - {
        "model",
        "seconds",
    }  # all of those stand in the script's record, too
    assert settings > {"prompt", "seed", "sampling", "precision", "low_vram", "faces", "commit"}
    assert {k: record[k] for k in settings} == {k: expected[k] for k in settings}


def test_a_picture_and_nothing_give_closed_meshes(page):
    from gradio_client import handle_file

    file, line = ask(page, "i23d", handle_file(ROOT / "assets" / "sample_image.png"), faces=500)
    mesh = trimesh.load(file, force="mesh")
    assert mesh.is_watertight and len(mesh.faces) <= 500
    kept = page[1] / Path(line.partition(":")[0]).name
    with (
        Image.open(kept.with_suffix(".png")) as given,
        Image.open(ROOT / "assets" / "sample_image.png") as asked,
    ):
        assert given.convert("RGBA").tobytes() == asked.convert("RGBA").tobytes()
    file, line = ask(page, "uncond", seed=None, faces=None)
    assert trimesh.load(file, force="mesh").is_watertight and "seed 0" in line


@pytest.mark.parametrize(
    "gpt_type, condition, changed, message",
    [
        ("t23d", "", {}, "write a text first"),
        ("i23d", None, {}, "choose an image first"),
        ("t23d", "a chair", {"faces": 2}, "a closed mesh has 4 or more"),
        (
            "t23d",
            "a chair",
            {"temperature": -1},
            "temperature must be 0 .greedy. or in ",
        ),
    ],
)
def test_what_cannot_be_made_is_a_sentence(page, gpt_type, condition, changed, message):
    with pytest.raises(Exception, match=message):
        ask(page, gpt_type, condition, **changed)


def test_a_new_sampling_setting_is_a_box_on_the_page(monkeypatch, tmp_path):
    new = dataclasses.field(default=1.0, metadata={"help": "locally typical sampling; 1 is off"})
    wider = dataclasses.make_dataclass(
        "Wider", [("typical_p", float, new)], bases=(SamplingConfig,), kw_only=True
    )
    monkeypatch.setattr(demo, "SamplingConfig", wider)
    monkeypatch.setattr(Pipeline, "sampling", lambda self, modalities: wider())
    blocks = demo.build({"uncond": Pipeline.load(ROOT / "pretrained/tiny")}, "tiny", tmp_path)
    boxes = [b for b in blocks.blocks.values() if "locally typical" in str(getattr(b, "info", ""))]
    (call,) = [fn for fn in blocks.fns.values() if fn.api_name == "uncond"]
    assert [b.label for b in boxes] == ["Typical p"] and boxes[0] in call.inputs


def test_the_page_begins_with_the_models_own_settings(page):
    """Nothing is an empty number, which Gradio would draw as 0 and then send as 0."""
    config = json.load(urlopen(f"{page[0].src}config"))
    props = {component["id"]: component["props"] for component in config["components"]}
    pipeline = Pipeline.load(ROOT / "pretrained/tiny")
    for call in config["dependencies"]:
        if call["api_name"] in GPT_TYPES:
            own = pipeline.sampling(GPT_TYPES[call["api_name"]])
            sent = [props[box]["value"] for box in call["inputs"][1:]]
            assert sent == [0, 128, 0, *(getattr(own, name) for name in help_texts(SamplingConfig))]


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Chromium")
def test_a_browser_sends_what_its_boxes_show(page):
    playwright = pytest.importorskip("playwright.sync_api")
    sent: list[list] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page()
        tab.goto(page[0].src)
        tab.get_by_role("tab", name="Text").click()

        def generate() -> None:
            """Asks for an empty text, which the page refuses before it computes."""
            with tab.expect_request(lambda request: "queue/join" in request.url) as asked:
                tab.get_by_role("button", name="Generate").locator("visible=true").click()
            sent.append(asked.value.post_data_json["data"])
            tab.locator(".toast-close").click()  # of the refusal
            tab.locator(".toast-body").wait_for(state="detached")

        generate()
        tab.get_by_role("button", name="Sampling").locator("visible=true").click()
        generate()
        tab.get_by_label("Temperature").locator("visible=true").fill("")
        generate()
        browser.close()
    assert sent[0] == sent[1] == ["", 0, 128, 0, 1, 0, 1, 0, 1, 40]
    assert sent[2] == ["", 0, 128, 0, None, 0, 1, 0, 1, 40]


def test_models_of_one_type_each_get_a_tab_each(tmp_path, monkeypatch):
    loaded = []

    def load(model, gpt_type, **kwargs):
        if gpt_type not in ("t23d", "uncond"):
            raise ValueError(f"{model} has no {gpt_type}")
        loaded.append((gpt_type, kwargs["low_vram"]))
        return gpt_type

    monkeypatch.setattr(Pipeline, "load", load)
    monkeypatch.setattr(demo, "choose_device", lambda name, low_vram: torch.device("cuda"))
    args = demo.parse_arguments(["--model", str(tmp_path), "--low-vram"])
    assert demo.load_models(args) == {"t23d": "t23d", "uncond": "uncond"} and loaded == [
        ("t23d", True),
        ("uncond", True),
    ]


def test_refusals_before_anything_is_served(tmp_path, monkeypatch, capsys):
    assert demo.main(["--model", str(tmp_path)]) == 2
    assert "gpt_" in capsys.readouterr().err
    assert demo.main(["--low-vram", "--device", "cpu"]) == 2
    assert "there is no GPU memory to save" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    shutil.copytree(ROOT / "pretrained/tiny", tmp_path / "model")
    assert demo.main(["--model", str(tmp_path / "model")]) == 2
    assert "pip install -r requirements-demo.txt" in capsys.readouterr().err
