"""A page for the browser that makes meshes from images or texts, and shows them turning:

    python -m pip install -r requirements-demo.txt
    python demo.py                                then open http://127.0.0.1:7860
    python demo.py --model MODEL --host 0.0.0.0   also for others: anybody who reaches it may use it

Every mesh stays in --out as <time>_<seed>.glb, with its settings as .json and the image it was made
from as .png beside it. One shape is made at a time; the others wait.
"""

from __future__ import annotations

import dataclasses
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from tar3d.condition.image import load_image
from tar3d.config import ANY, GPT_TYPES, SamplingConfig, help_texts
from tar3d.folders import probe_output
from tar3d.io import write_json
from tar3d.mesh.export import save_mesh
from tar3d.mesh.simplify import LEAST_FACES, simplify
from tar3d.paths import shipped
from tar3d.runtime import (
    add_encoder_arguments,
    add_machine_arguments,
    add_model_argument,
    choose_device,
    command,
    command_parser,
    encoder_folders,
    positive_int,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import gradio

    from tar3d.pipeline import Pipeline

TABS = {"i23d": "Image", "t23d": "Text", "uncond": "Unconditional"}
MISSING = {"i23d": "choose an image", "t23d": "write a text"}
EXAMPLE_IMAGE = "assets/sample_image.png"
EXAMPLE_TEXTS = (
    "a tall round table with three legs",
    "a chair with arms",
    "a plane with four engines",
)
MAX_SEED = 2**31 - 1
TOKENS_SHARE = 0.8  # share of the progress bar; extraction has the rest


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_model_argument(parser, "with tokenizer/ and gpt_<type>/")
    add_encoder_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/demo"),
        help="where meshes stay (default: %(default)s)",
    )
    add_machine_arguments(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="default: %(default)s, this machine alone"
    )
    parser.add_argument("--port", type=positive_int, default=7860, help="default: %(default)s")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        probe_output(args.out, "--out")
        page = build(load_models(args), args.model, args.out)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    try:
        _, url, _ = page.launch(
            server_name=args.host,
            server_port=args.port,
            allowed_paths=[str(args.out)],
            share=False,
            show_error=True,  # of any kind, in the page
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as e:
        print(
            f"cannot serve at {args.host}, port {args.port} ({e}): give another --port",
            file=sys.stderr,
        )
        return 2
    print(f"open {url} in a browser; Ctrl-C ends the page")
    threading.Event().wait()  # requests are answered by other threads
    return 0


def load_models(args: argparse.Namespace) -> dict[str, Pipeline]:
    """The pipelines that the model directory has, by type; a GPT of the type "any" serves all."""
    from tar3d.pipeline import Pipeline  # torch, which --help does without

    device = choose_device(args.device, args.low_vram)
    load = partial(
        Pipeline.load,
        args.model,
        device=device,
        precision=args.precision,
        low_vram=args.low_vram,
    )
    found, reasons = {}, []
    for gpt_type in (ANY, *TABS):
        try:
            folders = encoder_folders(args)
            encoders = {modality: folders[modality] for modality in GPT_TYPES[gpt_type]}
            pipeline = load(gpt_type=gpt_type, encoders=encoders)
        except ValueError as e:
            reasons.append(str(e))
            continue
        if gpt_type == ANY:
            return dict.fromkeys(TABS, pipeline)
        found[gpt_type] = pipeline
    if not found:
        raise ValueError(reasons[-1])
    return found


@dataclass(frozen=True)
class Request:
    """The inputs of one request."""

    gpt_type: str
    condition: str | None = None  # path of an image, or a text
    seed: int = 0
    resolution: int = 128
    faces: int = 0  # at most; 0 keeps all
    sampling: dict[str, Any] = field(default_factory=dict)  # settings other than the model's own


def make(
    pipeline: Pipeline,
    request: Request,
    model: str,
    out: Path,
    progress: Callable[[float, str], None],
    warn: Callable[[str], None],
) -> tuple[Path, str]:
    """Generates one shape; returns its file, and a line on it.

    `progress` is called with the share that is done and the name of the step. Raises ValueError
    for what cannot be made.
    """
    start = time.perf_counter()
    gpt_type, seed = request.gpt_type, request.seed
    if gpt_type in MISSING and not request.condition:
        raise ValueError(f"there is no condition: {MISSING[gpt_type]} first")
    if request.faces and request.faces < LEAST_FACES:
        raise ValueError(
            f"{request.faces} faces: a closed mesh has {LEAST_FACES} or more, 0 keeps all"
        )
    image = load_image(request.condition) if gpt_type == "i23d" and request.condition else None
    conditions = pipeline.prepare([image or request.condition], warn=False)
    for text in filter(None, (row.warning for row in conditions.rows)):
        warn(text)
    sampling = dataclasses.replace(pipeline.sampling(GPT_TYPES[gpt_type]), **request.sampling)
    (shape,) = pipeline.generate(
        conditions.inputs,
        [seed],
        sampling=sampling,
        resolution=request.resolution,
        progress=lambda done, total: progress(TOKENS_SHARE * done / total, "tokens"),
        extraction_progress=lambda done, total: progress(
            TOKENS_SHARE + (1 - TOKENS_SHARE) * done / total, "surface"
        ),
    )
    if shape.mesh is None:
        raise ValueError(shape.problem)
    mesh = simplify(shape.mesh, request.faces) if request.faces else shape.mesh
    path = save_mesh(mesh, out / f"{datetime.now().strftime('%Y%m%d-%H%M%S-%f')}_{seed}.glb")
    if image is not None:
        image.save(path.with_suffix(".png"))
    record = {
        "gpt_type": gpt_type,
        "prompt": request.condition if gpt_type == "t23d" else None,
        "model": model,
        "faces": len(mesh.faces),
        **pipeline.record(shape, seed, sampling, request.resolution),
    }
    write_json(path.with_suffix(".json"), record)
    return path, (
        f"{path}: {len(shape.tokens):,} tokens, {len(mesh.faces):,} faces, seed {seed}, "
        f"{time.perf_counter() - start:.1f} s"
    )


def build(pipelines: dict[str, Pipeline], model: str, out: Path) -> gradio.Blocks:
    """The page, with a tab for each type of GPT; ValueError where Gradio is not installed."""
    try:
        import gradio as gr
    except ImportError as e:
        raise ValueError(
            f"the page needs Gradio ({e}): python -m pip install -r requirements-demo.txt"
        ) from e

    bar = gr.Progress()

    def answer(
        gpt_type: str,
        condition: str | None,
        seed: int | None,
        resolution: int,
        faces: int | None,
        progress: gr.Progress = bar,
        *sampling: float | None,
    ) -> tuple[str, str]:
        """Values come in the order of the boxes; None is a box that was emptied."""
        changed = {
            name: value
            for name, value in zip(help_texts(SamplingConfig), sampling, strict=True)
            if value is not None
        }
        request = Request(gpt_type, condition, seed or 0, resolution, faces or 0, changed)
        try:
            path, line = make(
                pipelines[gpt_type],
                request,
                model,
                out,
                lambda share, step: progress(share, desc=step),
                gr.Warning,
            )
        except ValueError as e:
            raise gr.Error(str(e), print_exception=False) from e
        return str(path), line

    with gr.Blocks(title="TAR3D-efficient", analytics_enabled=False) as page:
        gr.Markdown(f"# TAR3D-efficient\n`{model}`: a mesh by predicting part tokens.")
        with gr.Row():
            with gr.Column():
                tabs = {name: _tab(gr, name, pipeline) for name, pipeline in pipelines.items()}
                settings = _settings(gr)
            with gr.Column():
                mesh = gr.Model3D(
                    label="Mesh",
                    clear_color=(1.0, 1.0, 1.0, 1.0),
                    height=480,
                    camera_position=(60, 70, None),
                )
                line = gr.Textbox(label="Result", interactive=False)
        for gpt_type, (condition, button, sampling) in tabs.items():
            button.click(
                partial(answer, gpt_type),
                [condition, *settings, *sampling],
                [mesh, line],
                api_name=gpt_type,
                concurrency_id="models",
                concurrency_limit=1,
            )
    return page


def _tab(gr: Any, gpt_type: str, pipeline: Pipeline) -> tuple[Any, Any, list[Any]]:
    """The box for the condition of a type, the button that generates, and the sampling settings."""
    with gr.Tab(TABS[gpt_type]):
        if gpt_type == "i23d":
            condition = gr.Image(type="filepath", image_mode=None, label="Image of one object")
            # The file as it came: what cannot be read is a sentence of `load_image`.
            condition.preprocess = lambda payload: payload and payload.path
            gr.Examples([[str(shipped(EXAMPLE_IMAGE))]], condition, label="Examples")
        elif gpt_type == "t23d":
            condition = gr.Textbox(label="Text", lines=2)
            gr.Examples([[text] for text in EXAMPLE_TEXTS], condition, label="Examples")
        else:
            condition = gr.State(None)
        button = gr.Button("Generate", variant="primary")
        with gr.Accordion("Sampling", open=False):
            sampling = _sampling_boxes(gr, pipeline.sampling(GPT_TYPES[gpt_type]))
        return condition, button, sampling


def _settings(gr: Any) -> list[Any]:
    """Boxes for seed, cells and faces, which all tabs share."""
    return [
        gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED),
        gr.Slider(32, 512, 128, step=32, label="Cells along each axis"),
        gr.Number(0, label="Faces at most (0: all)", precision=0, minimum=0),
    ]


def _sampling_boxes(gr: Any, own: SamplingConfig) -> list[Any]:
    """A box for each field of `SamplingConfig` with a help; it begins with the model's own value.

    None of them is empty: Gradio draws an empty number as 0, and then sends 0.
    """
    types = get_type_hints(SamplingConfig)
    return [
        gr.Number(
            getattr(own, name),
            label=name.replace("_", " ").capitalize(),
            info=f"{text}; the model's own: {getattr(own, name):g}",
            precision=0 if types[name] is int else None,
        )
        for name, text in help_texts(SamplingConfig).items()
    ]


if __name__ == "__main__":
    sys.exit(main())
