"""Scores images against true images, and says exactly what was measured.

    python eval_2d.py                                    the shipped model on unseen shapes
    python eval_2d.py --pred DIR --gt DIR --out OUT      meshes, paired by id, seen by 20 cameras
    python eval_2d.py --pred-images DIR --gt-images DIR  images: one an id, or a sub-folder an id
    python eval_2d.py ... --captions captions.csv        also how well the images fit a text
    python eval_2d.py ... --lpips-path lpips_alex.pth --clip-path MODEL

PSNR, SSIM, LPIPS and CLIP, over the whole image and over its foreground, of shaded renders and of
normal maps; FID and KID of CLIP features. The weights of LPIPS and CLIP are not shipped: a score
whose network cannot be had is null, and one sentence says how to get it. OUT gets report.md,
summary.json, rows.csv (a row a pair) and views.png. A pair that cannot be scored is listed with the
reason, the rest goes on, and the exit status is 1. docs/evaluation.md explains every score.
"""

from __future__ import annotations

import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.config import DEFAULT_CLIP, GPT_TYPES, EvalProtocol
from tar3d.data.defaults import LIBRARY_NOTE, default_library, default_test
from tar3d.data.formats.captions import read_captions
from tar3d.data.formats.dataset_folder import read_categories
from tar3d.evaluation.arguments import (
    BACKGROUNDS,
    FILTERS,
    MODEL_DEFAULTS,
    PROTOCOLS,
    add_model_arguments,
    add_output_arguments,
    fill_in,
    protocol_names,
)
from tar3d.folders import probe_output
from tar3d.metrics.images import SSIM_WINDOW
from tar3d.paths import find_local
from tar3d.runtime import (
    choose_device,
    command,
    command_line,
    command_parser,
    describe_machine,
    encoder_folders,
    positive_int,
)

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import torch

    from tar3d.evaluation.image_pairs import ImageProvider
    from tar3d.evaluation.image_scores import Omission
    from tar3d.evaluation.mesh_pairs import Pair

CAMERAS = PROTOCOLS / "cameras.json"
# Defaults of renders; with image files such an option is refused, not ignored.
RENDER_DEFAULTS: dict = {"cameras": CAMERAS, "protocol": "tar3d"}
RENDER_SIZE = 224


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    add = parser.add_argument_group("meshes or images that are there").add_argument
    add("--pred", type=Path, help="folder of predicted meshes")
    add("--gt", type=Path, help="folder of true meshes, or a data set folder")
    add("--pred-images", type=Path, help="folder of predicted images, or of sub-folders of images")
    add("--gt-images", type=Path, help="folder of true images, of the same names")
    one_modality = [name for name, modalities in GPT_TYPES.items() if len(modalities) == 1]
    add_model_arguments(parser.add_argument_group("a model"), one_modality)
    add_image_arguments(parser.add_argument_group("images").add_argument)
    add = parser.add_argument_group("networks").add_argument
    add(
        "--lpips-path",
        type=Path,
        help="file or folder of LPIPS weights, AlexNet or VGG (default: none)",
    )
    add(
        "--clip-path",
        default=DEFAULT_CLIP,
        help="directory or Hub id of a CLIP model (default: %(default)s)",
    )
    add(
        "--captions",
        type=Path,
        help="CSV with the columns id, caption: also score text against image",
    )
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add_output_arguments(parser, "outputs/eval_2d")
    return parser.parse_args(argv)


def add_image_arguments(add: Callable[..., argparse.Action]) -> None:
    add(
        "--cameras",
        type=Path,
        help="JSON list of cameras (default: the 20 of configs/eval/cameras.json)",
    )
    add(
        "--protocol",
        help=f"protocol whose frame is rendered: {protocol_names()}, or a file (default: tar3d)",
    )
    add(
        "--size",
        type=positive_int,
        help=f"side in pixels (default: renders {RENDER_SIZE}, image files stay as they are)",
    )
    add("--filter", choices=sorted(FILTERS), help="how --size resizes image files; no default")
    add("--background", choices=sorted(BACKGROUNDS), default="white", help="default: %(default)s")


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        check_arguments(args)
        probe_output(args.out, "--out")
        return evaluate(args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2


def check_arguments(args: argparse.Namespace) -> None:
    """Fills in the defaults.

    Raises ValueError for contradictions, and for options that would change nothing.
    """
    for a, b in (("pred", "gt"), ("pred_images", "gt_images")):
        missing = [name for name in (a, b) if getattr(args, name) is None]
        if len(missing) == 1:
            raise ValueError(
                f"{_flag(missing[0])} is missing: {_flag(a)} and {_flag(b)} are two folders"
            )
    if args.pred and args.pred_images:
        raise ValueError("--pred compares meshes and --pred-images images: give one of the two")
    if args.pred or args.pred_images:
        _refuse(args, MODEL_DEFAULTS, "generates from a model", "--pred or --pred-images")
    if args.pred_images:
        _refuse(args, RENDER_DEFAULTS, "belongs to renders of meshes", "--pred-images")
        if (args.size is None) != (args.filter is None):
            raise ValueError(
                "--size and --filter belong together: image files are resized only with a filter "
                "that you name, because it changes scores; the filters are "
                f"{', '.join(sorted(FILTERS))}"
            )
    elif args.filter:
        raise ValueError(
            "--filter resizes image files (--pred-images); meshes are rendered at --size, nothing "
            "is resized"
        )
    fill_in(args, MODEL_DEFAULTS | RENDER_DEFAULTS)
    if not args.pred_images:
        args.size = args.size or RENDER_SIZE
    if args.size is not None and args.size < SSIM_WINDOW:
        raise ValueError(
            f"--size is {args.size}, but SSIM needs at least {SSIM_WINDOW} pixels a side"
        )


def _refuse(args: argparse.Namespace, names: dict, what: str, other: str) -> None:
    flags = [_flag(name) for name in names if getattr(args, name) is not None]
    if flags:
        raise ValueError(
            f"{flags[0]} {what}, so it would change nothing with {other}: leave it out"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def evaluate(args: argparse.Namespace) -> int:
    from tar3d.evaluation.image_report import ImageScores, draw_image_sheet, write_image_report
    from tar3d.evaluation.image_scores import add_captions, load_networks, score_sets

    start, device = time.perf_counter(), choose_device(args.device)
    provider, protocol, settings = find_images(args)
    captions = read_captions(args.captions) if args.captions else {}
    networks, omissions = load_networks(
        args.lpips_path,
        args.clip_path,
        provider.maps,
        device,
        with_texts=args.captions is not None,
    )
    print_omissions(omissions)
    sets, titles, about_model = find_pairs(args, protocol, device)
    main_set, pairs = next(iter(sets.items()))
    captions_cut = None
    if args.captions:
        first_captions = {i: of_one[0] for i, of_one in captions.items()}
        ids = [pair.id for pair in pairs]
        networks, more, captions_cut = add_captions(networks, first_captions, args.captions, ids)
        print_omissions(more)
        omissions += more
    rows, set_scores = score_sets(sets, provider, networks, args.workers)

    settings |= {
        "lpips": networks.lpips and networks.lpips.identity,
        "clip": networks.clip and networks.clip.identity,
        "clip_map": provider.maps[0],
        "captions": args.captions and str(args.captions),
        "captions_cut": captions_cut,
    }
    about = {
        "command": command_line(),
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - start, 1),
        **describe_machine(device),
        **about_model,
    }
    scores = ImageScores(rows, set_scores, titles, provider.maps, protocol.seed, omissions)
    print(write_image_report(args.out, scores, settings, about))
    sheet = draw_image_sheet(rows[main_set], pairs, provider)
    if sheet:
        sheet.save(args.out / "views.png")
    return finish(rows, args.out)


def print_omissions(omissions: list[Omission]) -> None:
    for item in omissions:
        print(f"left out: {', '.join(item.scores)}: {item.reason}", file=sys.stderr)


def find_images(args: argparse.Namespace) -> tuple[ImageProvider, EvalProtocol, dict]:
    """Where the images of a pair come from, and the settings that the report states."""
    from tar3d.evaluation.image_pairs import ImageFolders, RenderedImages, read_cameras
    from tar3d.evaluation.mesh_pairs import load_protocol

    background = BACKGROUNDS[args.background]
    settings: dict = {"background": f"{args.background} {background}"}
    if args.pred_images:
        settings |= {
            "size": args.size or "as the files are",
            "filter": args.filter or "none, nothing is resized",
        }
        return ImageFolders(background, args.size, args.filter), EvalProtocol(), settings
    protocol, cameras = load_protocol(args.protocol, []), read_cameras(find_local(args.cameras))
    settings |= {
        "cameras": str(args.cameras),
        "views": len(cameras),
        "size": args.size,
        "filter": "none, rendered at this size",
        "protocol": args.protocol,
        "frame": protocol.frame,
    }
    return RenderedImages(cameras, args.size, background, protocol.frame), protocol, settings


def find_pairs(
    args: argparse.Namespace, protocol: EvalProtocol, device: torch.device
) -> tuple[dict[str, list[Pair]], dict[str, str], dict]:
    """Pairs by set, the sets' titles, and what the report says about where they come from."""
    from tar3d.evaluation.generations import TITLES, GenerationSettings, evaluate_model
    from tar3d.evaluation.image_pairs import image_pairs
    from tar3d.evaluation.mesh_pairs import pairs_by_id
    from tar3d.evaluation.unseen_shapes import EvalData
    from tar3d.pipeline import Pipeline

    if args.pred_images:
        return {"prediction": image_pairs(args.pred_images, args.gt_images)}, {}, {}
    if args.pred:
        return {"prediction": pairs_by_id(args.pred, args.gt, read_categories(args.gt))}, {}, {}
    data = EvalData(args.test or default_test(args.shapes), args.train or default_library())
    encoders = encoder_folders(args)
    pipeline = Pipeline.load(args.model, args.gpt_type, encoders=encoders, device=device)
    (modality,) = GPT_TYPES[args.gpt_type]
    settings = GenerationSettings(args.shapes, args.resolution, args.batch, protocol.seed)
    generations = evaluate_model(pipeline, modality, data, args.out, settings)
    if not args.train:
        print(LIBRARY_NOTE, file=sys.stderr)
    about = {
        "model": args.model,
        "gpt_type": args.gpt_type,
        "test": str(data.test),
        **({} if args.train else {"baselines": LIBRARY_NOTE}),
        "train": str(data.train),
        "resolution": args.resolution,
        "precision": pipeline.precision,
        "sampling": vars(pipeline.sampling([modality])),
        "views_in_training": generations.inputs.views_in_training,
    }
    return generations.pairs, TITLES[modality], about


def finish(sets: dict[str, list[dict]], out: Path) -> int:
    """Says where the report is and what failed; returns the exit code."""
    from tar3d.evaluation.mesh_report import print_failures

    print(f"report.md, summary.json, rows.csv and views.png in {out}")
    failed = [
        (f"{name}: {row['id']}", row["reason"])
        for name, rows in sets.items()
        for row in rows
        if row["status"] != "ok"
    ]
    return print_failures(failed, out)


if __name__ == "__main__":
    sys.exit(main())
