"""A page for the browser that makes meshes of pictures, of texts, or of nothing, and shows them
turning:

    python -m pip install -r requirements-demo.txt
    python demo.py                                  then open http://127.0.0.1:7860
    python demo.py --model MODEL --host 0.0.0.0     for others on the network too: anybody who reaches it may use it

Every mesh stays in --out as <time>_<seed>.glb, with its settings as .json and the picture it is of
as .png beside it. One shape is made at a time; the others wait.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import warnings
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tar3d.condition.image import load_image
from tar3d.conditional_gpt import ANY
from tar3d.config import GPT_TYPES
from tar3d.io import write_json
from tar3d.mesh.export import save_mesh
from tar3d.mesh.simplify import LEAST_FACES, simplify
from tar3d.pipeline import Pipeline
from tar3d.runtime import PRECISIONS, choose_device, positive_int, resolve_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    import gradio

TABS = {"i23d": "Picture", "t23d": "Text", "uncond": "Nothing"}
EXAMPLES = {
    "i23d": [["assets/sample_image.png"]],
    "t23d": [
        ["a tall round table with three legs"],
        ["a chair with arms"],
        ["a plane with four engines"],
    ],
}
TUNED = {
    "temperature": "0 is greedy",
    "cfg_scale": "guidance; 1 is none",
    "code_predictor_scale": "how much the code predictor is heeded",
}
MAX_SEED = 2**31 - 1


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="pretrained/tiny",
        help="directory or Hub id with tokenizer/ and gpt_<type>/ (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/demo"),
        help="where meshes stay (default: %(default)s)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="32-true", help="default: %(default)s"
    )
    parser.add_argument(
        "--low-vram",
        action="store_true",
        help="for small GPUs: models are on the GPU only while they work, feature planes are float16; slower",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: %(default)s, this machine alone"
    )
    parser.add_argument("--port", type=positive_int, default=7860, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        page = build(load_models(args), args.model, args.out)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    try:
        page.launch(
            server_name=args.host, server_port=args.port, allowed_paths=[str(args.out)], share=False
        )
    except OSError as e:
        print(
            f"cannot serve at {args.host}, port {args.port} ({e}): give another --port",
            file=sys.stderr,
        )
        return 2
    return 0


def load_models(args: argparse.Namespace) -> dict[str, Pipeline]:
    """By type, those that the directory has; a GPT of the type "any" once for all."""
    device = choose_device(args.device, args.low_vram)
    load = partial(
        Pipeline.load,
        args.model,
        device=device,
        precision=resolve_precision(args.precision, device.type),
        low_vram=args.low_vram,
    )
    found, reasons = {}, []
    for gpt_type in (ANY, *TABS):
        try:
            pipeline = load(gpt_type=gpt_type)
        except ValueError as e:
            reasons.append(str(e))
            continue
        if gpt_type == ANY:
            return dict.fromkeys(TABS, pipeline)
        found[gpt_type] = pipeline
    if not found:
        raise ValueError(reasons[-1])
    return found


def make(
    pipeline: Pipeline,
    gpt_type: str,
    model: str,
    out: Path,
    told: str | None,
    seed: int,
    resolution: int,
    faces: int,
    changed: dict[str, float],
    progress: Callable[[float, str], None],
) -> tuple[Path, str]:
    """One shape -> its file, and a line on it. `told` is the path of a picture, or a text; `faces`
    0 for all; `changed` are sampling settings. Raises ValueError for what cannot be made."""
    start = time.perf_counter()
    if gpt_type != "uncond" and not told:
        raise ValueError(
            f"nothing is given: {'choose a picture' if gpt_type == 'i23d' else 'write a text'} first"
        )
    if faces and faces < LEAST_FACES:
        raise ValueError(f"{faces} faces: a closed mesh has {LEAST_FACES} or more, 0 keeps all")
    shown = load_image(Path(told)) if gpt_type == "i23d" else told
    source = {} if gpt_type == "uncond" else pipeline.prepare([shown]).inputs
    sampling = dataclasses.replace(pipeline.sampling(GPT_TYPES[gpt_type]), **changed)
    (result,) = pipeline.generate(
        source,
        [seed],
        sampling=sampling,
        resolution=resolution,
        progress=lambda done, total: progress(0.8 * done / total, "tokens"),
        extraction_progress=lambda done, total: progress(0.8 + 0.2 * done / total, "surface"),
    )
    if result.mesh is None:
        raise ValueError(result.problem)
    mesh = simplify(result.mesh, faces) if faces else result.mesh
    path = save_mesh(mesh, out / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}_{seed}.glb")
    record = {
        "gpt_type": gpt_type,
        "prompt": told if gpt_type == "t23d" else None,
        "model": model,
        "faces": len(mesh.faces),
        **pipeline.record(result, seed, sampling, resolution),
    }
    if gpt_type == "i23d":
        shown.save(path.with_suffix(".png"))
    write_json(path.with_suffix(".json"), record)
    return path, (
        f"{path}: {len(result.tokens):,} tokens, {len(mesh.faces):,} faces, seed {seed}, "
        f"{time.perf_counter() - start:.1f} s"
    )


def build(pipelines: dict[str, Pipeline], model: str, out: Path) -> gradio.Blocks:
    """The page, with a tab for each type of GPT; raises ValueError where Gradio is not
    installed."""
    try:
        import gradio as gr
    except ImportError as e:
        raise ValueError(
            f"the page needs Gradio ({e}): python -m pip install -r requirements-demo.txt"
        ) from e

    bar = gr.Progress()

    def answer(
        gpt_type: str,
        told: Any,
        seed: int | None,
        resolution: int,
        faces: int | None,
        temperature: float | None,
        cfg_scale: float | None,
        code_predictor_scale: float | None,
        progress: gr.Progress = bar,
    ) -> tuple[str, str]:
        seed, faces = seed or 0, faces or 0  # None where somebody has emptied the box
        tuned = zip(TUNED, (temperature, cfg_scale, code_predictor_scale), strict=True)
        changed = {name: value for name, value in tuned if value is not None}
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", UserWarning)
                path, line = make(
                    pipelines[gpt_type],
                    gpt_type,
                    model,
                    out,
                    told,
                    seed,
                    resolution,
                    faces,
                    changed,
                    lambda share, part: progress(share, desc=part),
                )
        except ValueError as e:
            raise gr.Error(str(e), print_exception=False) from e
        for warning in said:
            gr.Warning(str(warning.message))
        return str(path), line

    with gr.Blocks(title="TAR3D-efficient", analytics_enabled=False) as page:
        gr.Markdown(f"# TAR3D-efficient\n`{model}`: a mesh by predicting part tokens.")
        with gr.Row():
            with gr.Column():
                asked = {gpt_type: _tab(gr, gpt_type) for gpt_type in pipelines}
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
                resolution = gr.Slider(32, 512, 128, step=32, label="Cells along each axis")
                with gr.Accordion("More", open=False):
                    faces = gr.Number(0, label="Faces at most (0: all)", precision=0, minimum=0)
                    tuned = [
                        gr.Number(None, label=f"{name} ({what}); empty: the model's own")
                        for name, what in TUNED.items()
                    ]
            with gr.Column():
                shown = gr.Model3D(
                    label="Mesh",
                    clear_color=(1.0, 1.0, 1.0, 1.0),
                    height=480,
                    camera_position=(60, 70, None),
                )
                line = gr.Textbox(label="Made", interactive=False)
        for gpt_type, (told, button) in asked.items():
            button.click(
                partial(answer, gpt_type),
                [told, seed, resolution, faces, *tuned],
                [shown, line],
                api_name=gpt_type,
                concurrency_id="models",
                concurrency_limit=1,
            )
    return page


def _tab(gr: Any, gpt_type: str) -> tuple[Any, Any]:
    """What is asked for in the tab of a type, and its button."""
    with gr.Tab(TABS[gpt_type]):
        if gpt_type == "i23d":
            told = gr.Image(type="filepath", image_mode=None, label="Picture of one object")
        elif gpt_type == "t23d":
            told = gr.Textbox(label="Text", lines=2)
        else:
            told = gr.State(None)
        if gpt_type in EXAMPLES:
            gr.Examples(EXAMPLES[gpt_type], told, label="Examples")
        return told, gr.Button("Generate", variant="primary")


if __name__ == "__main__":
    sys.exit(main())
