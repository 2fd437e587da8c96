"""Generates meshes from images, from texts, or unconditionally:

    python run.py --gpt-type i23d
    python run.py --gpt-type i23d --input FILE|DIR --save-path OUT --seed 1 --cfg-scale 2
    python run.py --gpt-type t23d --prompt "a tall round table with three legs" "a sofa with round arms"
    python run.py --gpt-type t23d --prompt PROMPTS.txt --turntable
    python run.py --gpt-type uncond --num-samples 8

Each shape gives OUT/<name>.glb (closed, Y up), <name>.png (the condition beside the result),
<name>.json (all settings, times) and, with the flags below, <name>.gif (the shape turning) and
tokens/<name>.tokens.npz, from which infer_vqvae.py makes the mesh again, for instance with finer
cells. The same seed gives the same mesh whatever else is generated with it, one after the other or
together (--batch-size; on a CPU the tokens were equal for every N that was tried, 1 to 8). An image
or text that cannot be used is listed with the reason, the rest goes on, and the exit status is 1.
"""  # noqa: E501 (a command stands on one line)

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
from typing import TYPE_CHECKING

from tar3d.condition.image import find_images, load_image
from tar3d.config import (
    ANY,
    DECODING_BACKENDS,
    GPT_TYPES,
    SamplingConfig,
    add_sampling_flags,
    sampling_from_flags,
)
from tar3d.config.flags import torch_seed_number
from tar3d.contracts import LogitsNotFinite
from tar3d.data.formats.token_file import FOLDER, SUFFIX
from tar3d.folders import is_reserved, length_problem, name_problem, printable, probe_output
from tar3d.io import write_json
from tar3d.mesh.export import FORMATS, save_mesh
from tar3d.mesh.render import contact_sheet, render_previews, save_turntable
from tar3d.mesh.simplify import LEAST_FACES, simplify
from tar3d.paths import find_local
from tar3d.runtime import (
    add_encoder_arguments,
    add_machine_arguments,
    add_model_argument,
    cell_count,
    choose_device,
    command,
    command_parser,
    encoder_folders,
    extraction_bar,
    model_source,
    peak_memory,
    positive_int,
    print_line,
    progress_bar,
)
from tar3d.upgrade import upgrade_flags

if TYPE_CHECKING:
    from tar3d.contracts import Mesh
    from tar3d.pipeline import GeneratedShape, Pipeline
    from tar3d.prepared_conditions import PreparedCondition

SAMPLE_IMAGE = Path("assets/sample_image.png")
PREVIEW_SIZE = 256
PREVIEW_AZIMUTHS = {"generated": 30.0, "from behind": 150.0}
MAX_NAME_BYTES = 80  # longest file name made from a prompt


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add_condition_arguments(parser.add_argument_group("what to generate from"))
    models = parser.add_argument_group("model")
    add_model_argument(models, "with tokenizer/ and gpt_<type>/")
    add_encoder_arguments(models)
    models.add_argument(
        "--vq-ckpt",
        type=model_source,
        metavar="MODEL",
        help="model directory of another tokenizer than --model has",
    )
    models.add_argument(
        "--gpt-ckpt",
        type=model_source,
        metavar="MODEL",
        help="model directory of another GPT than --model has",
    )
    sampling = parser.add_argument_group("sampling (defaults: the settings saved with the model)")
    sampling.add_argument(
        "--seed",
        type=torch_seed_number,
        default=0,
        help="another seed gives another shape (default: 0)",
    )
    sampling.add_argument(
        "--num-samples",
        type=positive_int,
        default=1,
        help="shapes per image or text, with seeds SEED, SEED + 1, ... (default: 1)",
    )
    add_sampling_flags(sampling)
    add_output_arguments(parser.add_argument_group("output"))
    machine = parser.add_argument_group("machine")
    add_machine_arguments(machine)
    machine.add_argument(
        "--batch-size",
        type=positive_int,
        default=1,
        metavar="N",
        help="samples the tokens of N shapes together: more shapes a second (default: 1)",
    )
    machine.add_argument(
        "--decoding",
        choices=DECODING_BACKENDS,
        default="auto",
        help="implementation of a decoding step; auto takes the fastest one (default: auto)",
    )
    args = parser.parse_args(upgrade_flags(argv))
    args.gpt_type = args.gpt_type or ("t23d" if args.prompt else "i23d")
    if problem := contradiction(args):
        parser.error(problem)
    return args


def add_condition_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpt-type",
        choices=[name for name in GPT_TYPES if name != ANY],
        help="i23d generates from an image, t23d from a text, uncond from nothing (default: t23d "
        "with --prompt, else i23d)",
    )
    conditions = group.add_mutually_exclusive_group()
    conditions.add_argument(
        "--input", type=Path, help=f"image, or folder of images (default: {SAMPLE_IMAGE})"
    )
    conditions.add_argument(
        "--prompt", nargs="+", metavar="TEXT|FILE.txt", help="texts, or files with one a line"
    )


def add_output_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--save-path",
        type=Path,
        default=Path("outputs/generate"),
        help="output folder (default: %(default)s)",
    )
    group.add_argument(
        "--format", choices=[f[1:] for f in FORMATS], default="glb", help="default: %(default)s"
    )
    group.add_argument(
        "--resolution",
        type=cell_count,
        default=128,
        help="extraction cells along each axis: more show finer detail, in larger files (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--faces",
        type=int,
        metavar="N",
        help="at most N faces, by collapsing edges, for games and browsers; the mesh stays closed",
    )
    group.add_argument(
        "--size",
        type=float,
        metavar="S",
        help="longest side of the mesh in the file's unit, as in --format stl --size 80 for a "
        "print of 80 mm (default: the normalized frame's, about 1.9)",
    )
    group.add_argument(
        "--up",
        choices=["y", "z"],
        default="y",
        help="the axis that points up; CAD and printing programs expect z (default: y)",
    )
    group.add_argument(
        "--preview",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="an image of the condition beside the result (default: yes)",
    )
    group.add_argument("--turntable", action="store_true", help="also the shape turning, as a GIF")
    group.add_argument(
        "--save-tokens",
        action="store_true",
        help=f"also OUT/{FOLDER}/<name>{SUFFIX}: infer_vqvae.py makes the mesh from it again, at "
        "any resolution",
    )


def contradiction(args: argparse.Namespace) -> str | None:
    """The sentence for arguments that do not fit together; None if they do."""
    for option, gpt_type in (("prompt", "t23d"), ("input", "i23d")):
        if getattr(args, option) and args.gpt_type != gpt_type:
            return f"--{option} is for --gpt-type {gpt_type}, not {args.gpt_type}"
    if args.faces is not None and args.faces < LEAST_FACES:
        return f"--faces {args.faces}: a closed mesh has {LEAST_FACES} or more"
    if args.size is not None and not 0 < args.size < float("inf"):
        return f"--size {args.size:g}: the longest side must be positive"
    if args.prompt and not any(text.strip() for text in args.prompt):
        return '--prompt is empty: write what to generate, as in --prompt "a chair with arms"'
    if args.gpt_type == "t23d" and not args.prompt:
        return "--gpt-type t23d needs --prompt: one or more texts, or files with a text a line"
    return None


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    start = time.perf_counter()
    from tar3d.pipeline import Pipeline  # torch, which --help does without

    try:
        probe_output(args.save_path, "--save-path")
        jobs = list_jobs(args)
        device = choose_device(args.device, args.low_vram)
        pipeline = Pipeline.load(
            args.model,
            args.gpt_type,
            vqvae=args.vq_ckpt,
            gpt=args.gpt_ckpt,
            encoders=encoder_folders(args),
            device=device,
            precision=args.precision,
            decoding=args.decoding,
            low_vram=args.low_vram,
        )
        sampling = sampling_from_flags(args, pipeline.sampling(GPT_TYPES[args.gpt_type]))
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    print(
        f"models loaded in {time.perf_counter() - start:.1f} s on {device}, precision "
        f"{pipeline.precision}; {len(jobs)} shape{'s' * (len(jobs) > 1)} to make, {sampling}"
    )
    if args.num_samples > 1 and (sampling.temperature == 0 or sampling.top_k == 1):
        print(
            f"the {args.num_samples} samples of a condition will be identical: with --temperature "
            "0 or --top-k 1 the likeliest token is taken, whatever the seed",
            file=sys.stderr,
        )
    failed = 0
    with progress_bar(total=len(jobs), unit="shape", disable=len(jobs) == 1) as bar:
        for first in range(0, len(jobs), args.batch_size):
            batch = jobs[first : first + args.batch_size]
            for name, problem in generate_files(pipeline, batch, sampling, args):
                failed += 1
                print_line(f"failed: {name}: {problem}", sys.stderr)
            bar.update(len(batch))
    print(
        f"{len(jobs) - failed} of {len(jobs)} shapes in {args.save_path}; "
        f"{time.perf_counter() - start:.1f} s in all, peak memory {peak_memory(device)}"
    )
    return 1 if failed else 0


@dataclass(frozen=True)
class Job:
    """One shape to generate from the path of an image, a text, or None."""

    condition: Path | str | None
    target: Path  # the mesh file to write
    seed: int
    problem: str = ""  # the reason why it cannot be made

    @property
    def name(self) -> str:
        name = self.condition.name if isinstance(self.condition, Path) else self.target.stem
        return printable(name)


def list_jobs(args: argparse.Namespace) -> list[Job]:
    """The shapes to generate; ValueError for inputs that cannot be read at all."""
    named: list[tuple[str, Path | str | None]]
    problems: dict[Path | str | None, str] = {}
    if args.gpt_type == "i23d":
        images, problems = named_images(args.input, args.save_path)
        named = [*images]
    elif args.gpt_type == "t23d":
        prompts = read_prompts(args.prompt)
        named = [*zip(unique_names([file_name(p) for p in prompts]), prompts, strict=True)]
    else:
        named = [("shape", None)]
    single = args.num_samples == 1
    jobs = []
    for name, condition in named:
        for k in range(args.num_samples):
            stem = name if single else f"{name}_{k}"
            target = args.save_path / f"{stem}.{args.format}"
            problem = problems.get(condition) or length_problem(f"{stem}{SUFFIX}")
            jobs.append(Job(condition, target, args.seed + k, problem))
    return jobs


def named_images(
    source: Path | None, save_path: Path
) -> tuple[list[tuple[str, Path]], dict[Path | str | None, str]]:
    """The images of a file or folder with their output names, and the reasons of unusable ones.

    chair.png and chair.jpg keep their suffix, and Chair.png and chair.png get numbers. Prints what
    is left out of the folder.
    """
    found = find_images(find_local(source or SAMPLE_IMAGE))
    for note in found.notes():
        print(note, file=sys.stderr)
    paths = sorted([*found.files, *found.unusable])
    problems: dict[Path | str | None, str] = {p: why for p in paths if (why := name_problem(p))}
    problems |= dict(found.unusable.items())
    if save_path.resolve() in {p.parent.resolve() for p in paths}:
        raise ValueError(
            f"--save-path {save_path} holds the input, which could be overwritten: choose another "
            "folder"
        )
    stems = Counter(path.stem for path in paths)
    names = [p.stem if stems[p.stem] == 1 else f"{p.stem}_{p.suffix[1:]}" for p in paths]
    return [*zip(unique_names(names), paths, strict=True)], problems


def read_prompts(texts: list[str]) -> list[str]:
    """The texts, with the lines of its file in place of each that ends in .txt."""
    prompts: list[str] = []
    for text in texts:
        if not text.endswith(".txt"):
            # Under an ASCII locale Python has kept the bytes that it could not decode.
            prompts.append(text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
            continue
        try:
            content = Path(text).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as e:
            raise ValueError(f"--prompt {text} cannot be read as a text file in UTF-8 ({e})") from e
        lines = [line.strip() for line in content.splitlines()]
        if not any(lines):
            raise ValueError(f"--prompt {text} holds no text: write one prompt a line")
        prompts += filter(None, lines)
    return prompts


def file_name(prompt: str) -> str:
    """A name that any file system takes: the prompt's words, in any script, joined by _.

    Under a locale whose file names lack a character, as ASCII does, it is left out.
    """
    known = prompt.encode(sys.getfilesystemencoding(), "ignore").decode(sys.getfilesystemencoding())
    encoded = "_".join(re.findall(r"\w+", known)).encode()[:MAX_NAME_BYTES]
    name = encoded.decode(errors="ignore").strip("_") or "prompt"
    return f"{name}_" if is_reserved(name) else name


def unique_names(names: list[str]) -> list[str]:
    """The same names, with repeated ones numbered from the second on.

    Names that differ in case alone are one name to Windows and macOS.
    """
    taken, used, result = {name.casefold() for name in names}, set[str](), []
    for name in names:
        if name.casefold() in used:
            name = next(f"{name}_{k}" for k in count(2) if f"{name}_{k}".casefold() not in taken)
        taken.add(name.casefold())
        used.add(name.casefold())
        result.append(name)
    return result


def generate_files(
    pipeline: Pipeline, jobs: list[Job], sampling: SamplingConfig, args: argparse.Namespace
) -> list[tuple[str, str]]:
    """Writes the files of one batch; returns the names of the jobs that failed, and why."""
    from tar3d.prepared_conditions import PreparedConditions

    ready: list[Job] = []
    conditions = PreparedConditions([])
    failed = []
    for job in jobs:
        try:
            condition = prepare_job(pipeline, job, PREVIEW_SIZE if args.preview else None)
        except ValueError as e:
            failed.append((job.name, str(e)))
            continue
        if condition.warning:
            print_line(f"{job.name}: {condition.warning}", sys.stderr)
        ready.append(job)
        conditions.rows.append(condition)
    if not ready:
        return failed
    name = ready[0].name + (f" and {len(ready) - 1} more" if len(ready) > 1 else "")
    total = len(ready) * pipeline.num_tokens
    with (
        progress_bar(total=total, unit="token", desc=name, leave=False) as bar,
        extraction_bar("surface") as surface_bar,
    ):
        try:
            shapes = pipeline.generate(
                conditions.inputs,
                [job.seed for job in ready],
                sampling=sampling,
                resolution=args.resolution,
                progress=lambda done, _: bar.update(done * len(ready) - bar.n),
                extraction_progress=surface_bar,
            )
        except LogitsNotFinite as e:
            return failed + [(job.name, str(e)) for job in ready]
    for job, condition, shape in zip(ready, conditions.rows, shapes, strict=True):
        if shape.mesh is None:
            failed.append((job.name, shape.problem))
        else:
            mesh, notes = save_mesh_files(shape.mesh, job, condition, args)
            if args.save_tokens:
                folder, stem = job.target.parent, job.target.stem
                path = pipeline.token_files.save(folder, stem, shape.tokens, sampled=True)
                notes.append(f"tokens {path}")
            settings = pipeline.record(shape, job.seed, sampling, args.resolution)
            write_record(job, condition, mesh, settings, args)
            print_shape(job, mesh, shape, notes)
    return failed


def prepare_job(pipeline: Pipeline, job: Job, preview_size: int | None) -> PreparedCondition:
    """The condition of a job; ValueError for one that cannot be used."""
    if job.problem:
        raise ValueError(job.problem)
    if not isinstance(job.condition, Path):
        return pipeline.prepare([job.condition], preview_size=preview_size, warn=False).rows[0]
    image = load_image(job.condition)
    (row,) = pipeline.prepare([image], preview_size=preview_size, warn=False).rows
    return dataclasses.replace(row, record={"input": str(job.condition), **row.record})


def save_mesh_files(
    mesh: Mesh, job: Job, condition: PreparedCondition, args: argparse.Namespace
) -> tuple[Mesh, list[str]]:
    """Writes mesh, preview and turntable; returns the mesh as written, and notes for the user."""
    target, notes = job.target, []
    if args.faces is not None:
        mesh = simplify(mesh, args.faces)
        if len(mesh.faces) > args.faces:
            least = f"{len(mesh.faces):,}"
            notes.append(f"fewer than {least} faces would close its holes or lose pieces")
    save_mesh(mesh, target, up=args.up, size=args.size)
    if args.preview:
        views = render_previews(mesh, PREVIEW_SIZE, PREVIEW_AZIMUTHS.values())
        row, titles = (
            [*condition.previews.values(), *views],
            [*condition.previews, *PREVIEW_AZIMUTHS],
        )
        contact_sheet([row], titles).save(target.with_suffix(".png"))
        notes.append(f"preview {target.with_suffix('.png')}")
    if args.turntable:
        save_turntable(mesh, target.with_suffix(".gif"))
        notes.append(f"turntable {target.with_suffix('.gif')}")
    return mesh, notes


def write_record(
    job: Job, condition: PreparedCondition, mesh: Mesh, settings: dict, args: argparse.Namespace
) -> None:
    """Writes everything that a shape was made with, and its times, as JSON beside the mesh."""
    record = {
        "gpt_type": args.gpt_type,
        **condition.record,
        "model": args.model,
        "vq_ckpt": args.vq_ckpt,
        "gpt_ckpt": args.gpt_ckpt,
        "batch_size": args.batch_size,
        "up": args.up,
        "size": args.size,
        "faces": len(mesh.faces),
        **settings,
    }
    write_json(job.target.with_suffix(".json"), record)


def print_shape(job: Job, mesh: Mesh, shape: GeneratedShape, notes: list[str]) -> None:
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in shape.seconds.items())
    size = f"{len(shape.tokens)} tokens, {len(mesh.faces):,} faces, seed {job.seed}"
    print_line("; ".join([f"{job.target}: {size}", times, *notes]))


if __name__ == "__main__":
    sys.exit(main())
