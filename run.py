"""Generates meshes from pictures, from texts, or from nothing:

    python run.py --gpt-type i23d
    python run.py --gpt-type i23d --input FILE|DIR --save-path OUT --seed 1 --cfg-scale 2
    python run.py --gpt-type t23d --prompt "a tall round table with three legs" "a sofa with round arms"
    python run.py --gpt-type t23d --prompt PROMPTS.txt --turntable
    python run.py --gpt-type uncond --num-samples 8

Each shape gives OUT/<name>.glb (closed, Y up), <name>.png (what was asked for, and the result),
<name>.json (all settings, times) and, if asked for, <name>.gif (the shape turning) and
tokens/<name>.tokens.npz, of which infer_vqvae.py makes the mesh again, with finer cells for
instance. The same seed gives the same mesh whatever else is made with it. A picture that cannot be
used is listed with the reason, the rest goes on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from tar3d.condition.image import ImageError, list_images, load_image, preprocess
from tar3d.conditional_gpt import ANY
from tar3d.config import GPT_TYPES, SamplingConfig
from tar3d.data.formats.token_file import FOLDER, SUFFIX
from tar3d.gpt.packed import BACKENDS
from tar3d.io import write_json
from tar3d.mesh.export import FORMATS, save_mesh
from tar3d.mesh.render import contact_sheet, picture, save_turntable, text_picture
from tar3d.mesh.simplify import LEAST_FACES, simplify
from tar3d.pipeline import GeneratedShape, Pipeline
from tar3d.runtime import (
    PRECISIONS,
    choose_device,
    extraction_bar,
    peak_memory,
    positive_int,
    resolve_precision,
)
from tar3d.upgrade import upgrade_flags

SAMPLE = Path("assets/sample_image.png")
PREVIEW_SIZE = 256
LONGEST_NAME = 80  # bytes of a prompt that name its files


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--gpt-type",
        choices=[name for name in GPT_TYPES if name != ANY],
        help="what the GPT is told: i23d an image, t23d a text, uncond nothing (default: by what is given)",
    )
    told = parser.add_mutually_exclusive_group()
    told.add_argument(
        "--input", type=Path, help=f"picture, or folder of pictures (default: {SAMPLE})"
    )
    told.add_argument(
        "--prompt", nargs="+", metavar="TEXT|FILE.txt", help="texts, or files with one a line"
    )
    parser.add_argument(
        "--save-path",
        type=Path,
        default=Path("outputs/generate"),
        help="output folder (default: %(default)s)",
    )
    models = parser.add_argument_group("models")
    models.add_argument(
        "--model",
        default="pretrained/tiny",
        help="directory or Hub id with tokenizer/ and gpt_<type>/ (default: %(default)s)",
    )
    models.add_argument(
        "--vq-ckpt",
        metavar="MODEL",
        help="the tokenizer's model directory, instead of the one in --model",
    )
    models.add_argument(
        "--gpt-ckpt",
        metavar="MODEL",
        help="the GPT's model directory, instead of the one in --model",
    )
    models.add_argument(
        "--precision", choices=PRECISIONS, default="32-true", help="default: %(default)s"
    )
    models.add_argument(
        "--low-vram",
        action="store_true",
        help="for small GPUs: models are on the GPU only while they work, feature planes are float16; slower",
    )
    models.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    sampling = parser.add_argument_group("sampling (defaults: those saved with the model)")
    sampling.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    sampling.add_argument(
        "--num-samples",
        type=positive_int,
        default=1,
        help="shapes per picture or text, with seeds SEED, SEED + 1, ... (default: %(default)s)",
    )
    sampling.add_argument("--cfg-scale", type=float, help="guidance; 1 is none")
    sampling.add_argument(
        "--code-predictor-scale",
        type=float,
        help="how much the code predictor of what is told is heeded; 0 is off",
    )
    sampling.add_argument("--temperature", type=float, help="0 is greedy")
    sampling.add_argument("--top-k", type=int, help="0 is off")
    sampling.add_argument("--top-p", type=float, help="1 is off")
    sampling.add_argument("--min-p", type=float, help="0 is off")
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--batch-size",
        type=positive_int,
        default=1,
        metavar="N",
        help="shapes whose tokens are sampled together: more shapes a second. Arithmetic rounds differently with "
        "another N, so a seed repeats exactly with the same N (default: %(default)s)",
    )
    speed.add_argument(
        "--decoding",
        choices=BACKENDS,
        default="auto",
        help="who computes a decoded token (default: %(default)s)",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--resolution",
        type=positive_int,
        default=128,
        help="extraction cells along each axis (default: %(default)s)",
    )
    output.add_argument(
        "--faces",
        type=int,
        metavar="N",
        help="at most so many, by collapsing edges; the mesh stays closed",
    )
    output.add_argument(
        "--size",
        type=float,
        metavar="S",
        help="longest side of the mesh in the file's unit, as in --format stl --size 80 for 80 mm (default: the "
        "normalized frame's, about 1.9)",
    )
    output.add_argument(
        "--format", choices=[f[1:] for f in FORMATS], default="glb", help="default: %(default)s"
    )
    output.add_argument(
        "--save-tokens",
        action="store_true",
        help=f"also the tokens, OUT/{FOLDER}/<name>{SUFFIX}, for infer_vqvae.py",
    )
    output.add_argument(
        "--preview",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="a picture of what was asked for and of the result (default: yes)",
    )
    output.add_argument("--turntable", action="store_true", help="also the shape turning, as a GIF")
    output.add_argument(
        "--up",
        choices=["y", "z"],
        default="y",
        help="the axis that points up (default: %(default)s)",
    )
    args = parser.parse_args(upgrade_flags(argv))
    args.gpt_type = args.gpt_type or ("t23d" if args.prompt else "i23d")
    for option, belongs_to in (("prompt", "t23d"), ("input", "i23d")):
        if getattr(args, option) and args.gpt_type != belongs_to:
            parser.error(f"--{option} is for --gpt-type {belongs_to}, not {args.gpt_type}")
    if args.faces is not None and args.faces < LEAST_FACES:
        parser.error(f"--faces {args.faces}: a closed mesh has {LEAST_FACES} or more")
    if args.size is not None and not 0 < args.size < float("inf"):
        parser.error(f"--size {args.size:g}: the longest side must be positive")
    if args.gpt_type == "t23d" and not args.prompt:
        parser.error(
            "--gpt-type t23d needs --prompt: one or more texts, or files with a text a line"
        )
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    start = time.perf_counter()
    try:
        device = choose_device(args.device, args.low_vram)
        pipeline = Pipeline.load(
            args.model,
            args.gpt_type,
            vqvae=args.vq_ckpt,
            gpt=args.gpt_ckpt,
            device=device,
            precision=resolve_precision(args.precision, device.type),
            decoding=args.decoding,
            low_vram=args.low_vram,
        )
        for kind in GPT_TYPES[args.gpt_type]:
            pipeline.model.conditioner.encoder(kind)  # or the model does not know it
        sampling = sampling_settings(pipeline.sampling(GPT_TYPES[args.gpt_type]), args)
        jobs = list_jobs(args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    print(
        f"models loaded in {time.perf_counter() - start:.1f} s on {device}; {len(jobs)} shape{'s' * (len(jobs) > 1)} to make, "
        f"{sampling}"
    )
    failed = 0
    for first in range(0, len(jobs), args.batch_size):
        for name, problem in generate_files(
            pipeline, jobs[first : first + args.batch_size], sampling, args
        ):
            failed += 1
            print(f"failed: {name}: {problem}", file=sys.stderr)
    print(
        f"{len(jobs) - failed} of {len(jobs)} shapes in {args.save_path}; "
        f"{time.perf_counter() - start:.1f} s in all, peak memory {peak_memory(device)}"
    )
    return 1 if failed else 0


@dataclass(frozen=True)
class Job:
    """One shape to make: of a picture's path, of a text, or of nothing; the mesh file to write, and
    its seed."""

    told: Path | str | None
    target: Path
    seed: int

    @property
    def name(self) -> str:
        return self.told.name if isinstance(self.told, Path) else self.target.stem


def list_jobs(args: argparse.Namespace) -> list[Job]:
    if args.gpt_type == "i23d":
        told, names = _pictures(args)
    elif args.gpt_type == "t23d":
        told = read_prompts(args.prompt)
        names = unique([_file_name(prompt) for prompt in told])
    else:
        told, names = [None], ["shape"]
    single = args.num_samples == 1
    return [
        Job(
            one,
            args.save_path / f"{name if single else f'{name}_{k}'}.{args.format}",
            args.seed + k,
        )
        for one, name in zip(told, names, strict=True)
        for k in range(args.num_samples)
    ]


def _pictures(args: argparse.Namespace) -> tuple[list[Path], list[str]]:
    paths = list_images(args.input or SAMPLE)
    if args.save_path.resolve() in {p.parent.resolve() for p in paths}:
        raise ValueError(
            f"--save-path {args.save_path} holds the input, which could be overwritten: choose another folder"
        )
    stems = Counter(path.stem for path in paths)
    return paths, [
        p.stem if stems[p.stem] == 1 else f"{p.stem}_{p.suffix[1:]}" for p in paths
    ]  # chair.png beside chair.jpg


def read_prompts(given: list[str]) -> list[str]:
    """The texts given, and the lines of those that name a .txt file."""
    prompts: list[str] = []
    for one in given:
        if not one.endswith(".txt"):
            prompts.append(one)
            continue
        try:
            lines = [
                line.strip() for line in Path(one).read_text(encoding="utf-8-sig").splitlines()
            ]
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"--prompt {one} cannot be read as a text file in UTF-8 ({e})") from e
        if not any(lines):
            raise ValueError(f"--prompt {one} holds no text: write one prompt a line")
        prompts += filter(None, lines)
    return prompts


def _file_name(prompt: str) -> str:
    """A name that any file system takes: words of any script, joined by _."""
    name = (
        "_".join(re.findall(r"\w+", prompt))
        .encode()[:LONGEST_NAME]
        .decode(errors="ignore")
        .strip("_")
    )
    return name or "prompt"


def unique(names: list[str]) -> list[str]:
    """The same names, those that stand twice numbered from the second on."""
    taken, result = set(names), []
    for name in names:
        free = (
            name
            if name not in result
            else next(f"{name}_{k}" for k in count(2) if f"{name}_{k}" not in taken)
        )
        taken.add(free)
        result.append(free)
    return result


def sampling_settings(saved: SamplingConfig, args: argparse.Namespace) -> SamplingConfig:
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(SamplingConfig)}
    return dataclasses.replace(
        saved, **{name: value for name, value in given.items() if value is not None}
    )


def generate_files(
    pipeline: Pipeline, jobs: list[Job], sampling: SamplingConfig, args: argparse.Namespace
) -> list[tuple[str, str]]:
    """One batch: mesh, preview and settings of each job; returns what failed, and why."""
    ready, failed = [], []
    for job in jobs:
        try:
            prepared = prepare(pipeline, job)
        except ImageError as e:
            failed.append((job.name, str(e)))
            continue
        if prepared.warning:
            print(f"{job.name}: {prepared.warning}", file=sys.stderr)
        ready.append((job, prepared))
    if not ready:
        return failed
    total = len(ready) * pipeline.model.gpt.config.num_tokens
    name = ready[0][0].name + (f" and {len(ready) - 1} more" if len(ready) > 1 else "")
    source = {
        kind: torch.from_numpy(np.stack([prepared.rows for _, prepared in ready]))
        for kind in GPT_TYPES[args.gpt_type]
    }
    with (
        tqdm(total=total, unit="token", desc=name, leave=False) as bar,
        extraction_bar("surface") as surface,
    ):
        results = pipeline.generate(
            source,
            [job.seed for job, _ in ready],
            sampling=sampling,
            resolution=args.resolution,
            progress=lambda done, _: bar.update(done * len(ready) - bar.n),
            extraction_progress=surface,
        )
    for (job, prepared), result in zip(ready, results, strict=True):
        if result.mesh is None:
            failed.append((job.name, result.problem))
        else:
            save(pipeline, job, prepared, result, sampling, args)
    return failed


@dataclass(frozen=True)
class Ready:
    """What a job is told as the encoder takes it (a row), how that looks, what is recorded, and
    what the user should know."""

    rows: np.ndarray | None = None
    pictures: tuple[np.ndarray, ...] = ()
    titles: tuple[str, ...] = ()
    record: dict = dataclasses.field(default_factory=dict)
    warning: str | None = None


def prepare(pipeline: Pipeline, job: Job) -> Ready:
    if job.told is None:
        return Ready()
    if isinstance(job.told, str):
        text = pipeline.model.prepare_text(job.told)
        return Ready(
            text.ids,
            (text_picture(job.told, PREVIEW_SIZE),),
            ("prompt",),
            {"prompt": job.told, "note": text.warning},
            text.warning,
        )
    image = load_image(job.told)
    prepared = preprocess(image, pipeline.model.config.image_encoder)
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    given = np.asarray(
        ImageOps.pad(white.convert("RGB"), (PREVIEW_SIZE, PREVIEW_SIZE), color="white")
    )
    seen = np.asarray(
        Image.fromarray(prepared.pixels).resize(
            (PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.NEAREST
        )
    )
    return Ready(
        prepared.pixels,
        (given, seen),
        ("input", "seen by the encoder"),
        {"input": str(job.told), "foreground": prepared.foreground},
        prepared.warning,
    )


def save(
    pipeline: Pipeline,
    job: Job,
    ready: Ready,
    result: GeneratedShape,
    sampling: SamplingConfig,
    args: argparse.Namespace,
) -> None:
    """Mesh, pictures and settings of one shape; prints what was made."""
    target, mesh, made = job.target, result.mesh, []
    if args.faces is not None:
        mesh = simplify(mesh, args.faces)
        if len(mesh.faces) > args.faces:
            made.append(
                f"fewer than {len(mesh.faces):,} faces would close its holes or lose pieces"
            )
    save_mesh(mesh, target, up=args.up, size=args.size)
    if args.preview:
        views = [picture(mesh, PREVIEW_SIZE, azimuth) for azimuth in (30.0, 150.0)]
        contact_sheet(
            [[*ready.pictures, *views]], [*ready.titles, "generated", "from behind"]
        ).save(target.with_suffix(".png"))
        made.append(f"preview {target.with_suffix('.png')}")
    if args.turntable:
        save_turntable(mesh, target.with_suffix(".gif"))
        made.append(f"turntable {target.with_suffix('.gif')}")
    if args.save_tokens:
        made.append(
            f"tokens {pipeline.token_files.save(target.parent, target.stem, result.tokens, sampled=True)}"
        )
    record = {
        "gpt_type": args.gpt_type,
        **ready.record,
        "model": args.model,
        "vq_ckpt": args.vq_ckpt,
        "gpt_ckpt": args.gpt_ckpt,
        "batch_size": args.batch_size,
        "up": args.up,
        "size": args.size,
        "faces": len(mesh.faces),
        **pipeline.record(result, job.seed, sampling, args.resolution),
    }
    write_json(target.with_suffix(".json"), record)
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.seconds.items())
    print(
        "; ".join(
            [
                f"{target}: {len(result.tokens)} tokens, {len(mesh.faces):,} faces, seed {job.seed}",
                times,
                *made,
            ]
        )
    )


if __name__ == "__main__":
    sys.exit(main())
