"""Generates meshes from pictures:

    python run.py --gpt-type i23d
    python run.py --gpt-type i23d --input FILE|DIR --save-path OUT --seed 1 --cfg-scale 2

Each picture gives OUT/<name>.glb (closed, Y up), <name>.png (input, what the encoder saw, and the result) and <name>.json
(all settings, times). The same seed gives the same mesh whatever else is in the folder. A picture that cannot be used
is listed with the reason, the rest goes on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from tar3d.condition.image import ImageError, Prepared, list_images, load_image, preprocess
from tar3d.config import SamplingConfig
from tar3d.gpt.engine import BACKENDS
from tar3d.mesh.export import FORMATS, save_mesh
from tar3d.mesh.render import contact_sheet, picture
from tar3d.pipeline import Generated, Pipeline
from tar3d.runtime import (
    PRECISIONS,
    check_low_vram,
    choose_device,
    describe_machine,
    extraction_bar,
    peak_memory,
    positive_int,
    resolve_precision,
)

PREVIEW_SIZE = 256


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt-type", choices=["i23d"], default="i23d", help="what the GPT is conditioned on: i23d, an image")
    parser.add_argument("--input", type=Path, default=Path("assets/sample_image.png"),
                        help="picture, or folder of pictures (default: %(default)s)")
    parser.add_argument("--save-path", type=Path, default=Path("outputs/generate"), help="output folder (default: %(default)s)")
    models = parser.add_argument_group("models")
    models.add_argument("--model", default="pretrained/tiny",
                        help="directory or Hub id with tokenizer/ and gpt_i23d/ (default: %(default)s)")
    models.add_argument("--vq-ckpt", metavar="MODEL", help="the tokenizer's model directory, instead of the one in --model")
    models.add_argument("--gpt-ckpt", metavar="MODEL", help="the GPT's model directory, instead of the one in --model")
    models.add_argument("--precision", choices=PRECISIONS, default="32-true", help="default: %(default)s")
    models.add_argument("--low-vram", action="store_true",
                        help="for small GPUs: models are on the GPU only while they work, feature planes are float16; slower")
    models.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    sampling = parser.add_argument_group("sampling (defaults: those saved with the model)")
    sampling.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    sampling.add_argument("--num-samples", type=positive_int, default=1,
                          help="shapes per picture, with seeds SEED, SEED + 1, ... (default: %(default)s)")
    sampling.add_argument("--cfg-scale", type=float, help="guidance; 1 is none")
    sampling.add_argument("--sketch-scale", type=float, help="how much the sketch of the picture is heeded; 0 is off")
    sampling.add_argument("--temperature", type=float, help="0 is greedy")
    sampling.add_argument("--top-k", type=int, help="0 is off")
    sampling.add_argument("--top-p", type=float, help="1 is off")
    sampling.add_argument("--min-p", type=float, help="0 is off")
    speed = parser.add_argument_group("speed")
    speed.add_argument("--batch-size", type=positive_int, default=1, metavar="N",
                       help="shapes whose tokens are sampled together: more shapes a second. Arithmetic rounds differently with "
                            "another N, so a seed repeats exactly with the same N (default: %(default)s)")
    speed.add_argument("--decoding", choices=BACKENDS, default="auto", help="who computes a decoded token (default: %(default)s)")
    output = parser.add_argument_group("output")
    output.add_argument("--resolution", type=positive_int, default=128,
                        help="extraction cells along each axis (default: %(default)s)")
    output.add_argument("--format", choices=[f[1:] for f in FORMATS], default="glb", help="default: %(default)s")
    output.add_argument("--up", choices=["y", "z"], default="y", help="the axis that points up (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    start = time.perf_counter()
    try:
        device = choose_device(args.device)
        if args.low_vram:
            check_low_vram(device)
        pipeline = Pipeline.load(args.model, vqvae=args.vq_ckpt, gpt=args.gpt_ckpt, device=device,
                                 precision=resolve_precision(args.precision, device.type), decoding=args.decoding,
                                 low_vram=args.low_vram)
        sampling = sampling_settings(pipeline.sampling, args)
        paths = list_images(args.input)
        if args.save_path.resolve() in {p.parent.resolve() for p in paths}:
            raise ValueError(f"--save-path {args.save_path} holds the input, which could be overwritten: choose another folder")
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    print(f"models loaded in {time.perf_counter() - start:.1f} s on {device}; {len(paths)} picture{'s' * (len(paths) > 1)}, "
          f"{sampling}")
    jobs, failed = list_jobs(paths, args), 0
    for first in range(0, len(jobs), args.batch_size):
        for path, problem in generate_files(pipeline, jobs[first : first + args.batch_size], sampling, args):
            failed += 1
            print(f"failed: {path.name}: {problem}", file=sys.stderr)
    print(f"{len(jobs) - failed} of {len(jobs)} shapes in {args.save_path}; "
          f"{time.perf_counter() - start:.1f} s in all, peak memory {peak_memory(device)}")
    return 1 if failed else 0


@dataclass(frozen=True)
class Job:
    """One shape to make: its picture, the mesh file to write, and its seed."""

    path: Path
    target: Path
    seed: int


def list_jobs(paths: list[Path], args: argparse.Namespace) -> list[Job]:
    stems, jobs = Counter(path.stem for path in paths), []
    for path in paths:
        stem = path.stem if stems[path.stem] == 1 else f"{path.stem}_{path.suffix[1:]}"  # chair.png beside chair.jpg
        for k in range(args.num_samples):
            name = stem if args.num_samples == 1 else f"{stem}_{k}"
            jobs.append(Job(path, args.save_path / f"{name}.{args.format}", args.seed + k))
    return jobs


def sampling_settings(saved: SamplingConfig, args: argparse.Namespace) -> SamplingConfig:
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(SamplingConfig)}
    return dataclasses.replace(saved, **{name: value for name, value in given.items() if value is not None})


def generate_files(pipeline: Pipeline, jobs: list[Job], sampling: SamplingConfig,
                   args: argparse.Namespace) -> list[tuple[Path, str]]:
    """One batch: mesh, preview and settings of each job; returns what failed, and why."""
    ready, failed = [], []
    for job in jobs:
        try:
            image = load_image(job.path)
            prepared = preprocess(image, pipeline.i23d.config.image_encoder)
        except ImageError as e:
            failed.append((job.path, str(e)))
            continue
        if prepared.warning:
            print(f"{job.path.name}: {prepared.warning}", file=sys.stderr)
        ready.append((job, image, prepared))
    if not ready:
        return failed
    total = len(ready) * pipeline.i23d.gpt.config.num_tokens
    name = ready[0][0].path.name + (f" and {len(ready) - 1} more" if len(ready) > 1 else "")
    with tqdm(total=total, unit="token", desc=name, leave=False) as bar, extraction_bar("surface") as surface:
        results = pipeline.generate(
            torch.from_numpy(np.stack([prepared.pixels for _, _, prepared in ready])), [job.seed for job, _, _ in ready],
            sampling=sampling, resolution=args.resolution, progress=lambda done, _: bar.update(done * len(ready) - bar.n),
            extraction_progress=surface)
    for (job, image, prepared), result in zip(ready, results, strict=True):
        if result.mesh is None:
            failed.append((job.path, result.problem))
        else:
            save(pipeline, job, image, prepared, result, sampling, args)
    return failed


def save(pipeline: Pipeline, job: Job, image: Image.Image, prepared: Prepared, result: Generated, sampling: SamplingConfig,
         args: argparse.Namespace) -> None:
    """Mesh, preview and settings of one shape; prints what was made."""
    target = job.target
    save_mesh(result.mesh, target, up=args.up)
    preview(image, prepared, result, target.with_suffix(".png"))
    record = {"input": str(job.path), "seed": job.seed, "sampling": dataclasses.asdict(sampling), "resolution": args.resolution,
              "up": args.up, "model": args.model, "vq_ckpt": args.vq_ckpt, "gpt_ckpt": args.gpt_ckpt,
              "precision": pipeline.precision, "decoding": pipeline.backend, "low_vram": args.low_vram,
              "batch_size": args.batch_size,
              "seconds": result.seconds, "faces": len(result.mesh.faces), "foreground": prepared.foreground,
              **describe_machine(pipeline.device)}
    target.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in result.seconds.items())
    print(f"{target}: {len(result.tokens)} tokens, {len(result.mesh.faces):,} faces, seed {job.seed}; {times}; "
          f"preview {target.with_suffix('.png')}")


def preview(image: Image.Image, prepared: Prepared, result: Generated, path: Path) -> None:
    """Input, what the encoder saw, and the result from two sides."""
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    given = np.asarray(ImageOps.pad(white.convert("RGB"), (PREVIEW_SIZE, PREVIEW_SIZE), color="white"))
    seen = np.asarray(Image.fromarray(prepared.pixels).resize((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.NEAREST))
    views = [picture(result.mesh, PREVIEW_SIZE, azimuth) for azimuth in (30.0, 150.0)]
    contact_sheet([[given, seen, *views]], ["input", "seen by the encoder", "generated", "from behind"]).save(path)


if __name__ == "__main__":
    sys.exit(main())
