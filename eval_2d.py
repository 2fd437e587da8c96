"""Scores pictures against true pictures, and says exactly what was measured:

    python eval_2d.py                                          the shipped model on unseen procedural shapes, with baselines
    python eval_2d.py --pred DIR --gt DIR --out OUT            meshes, paired by id, seen by 20 fixed cameras
    python eval_2d.py --pred-images DIR --gt-images DIR        pictures: one an id, or a sub-folder of pictures an id
    python eval_2d.py ... --captions captions.csv              also how well the prediction's pictures fit a text
    python eval_2d.py ... --lpips-path lpips_alex.pth --clip-path MODEL

PSNR, SSIM, LPIPS and CLIP, over the whole picture and over its foreground, of shaded renders and of
normal maps; FID and KID of CLIP features. The weights of LPIPS and CLIP are not shipped: a score
whose network cannot be had is null, and one sentence says how to get it. OUT gets report.md,
summary.json, rows.csv (a row a pair) and views.png. A pair that cannot be scored is listed with the
reason, the rest goes on, and the exit status is 1. docs/evaluation.md explains every score.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d.config import GPT_TYPES, EvalProtocol
from tar3d.data.defaults import DEFAULT_FOLDER, default_library, default_test
from tar3d.data.formats.captions import read_captions
from tar3d.data.formats.dataset_folder import read_categories
from tar3d.evaluation.generations import TITLES, evaluate_model
from tar3d.evaluation.pairs import PROTOCOLS, Pair, load_protocol, pairs_by_id, protocol_names
from tar3d.evaluation.report import print_failures
from tar3d.evaluation.views import (
    BACKGROUNDS,
    CLIP_SCORES,
    FILTERS,
    SET_SCORES,
    TEXT_SCORES,
    Folders,
    Networks,
    Renders,
    Source,
    picture_pairs,
    read_cameras,
    score_sets,
)
from tar3d.evaluation.views_report import picture_sheet, write_report
from tar3d.metrics.clip import DEFAULT_CLIP, Clip
from tar3d.metrics.images import SSIM_WINDOW
from tar3d.metrics.lpips import GET_LPIPS, load_lpips
from tar3d.pipeline import Pipeline
from tar3d.runtime import choose_device, command_line, describe_machine, positive_int

if TYPE_CHECKING:
    import torch

CAMERAS = PROTOCOLS / "cameras.json"
# What each way of working takes, and its defaults: an option of another way is refused, not ignored
OF_A_MODEL = {
    "model": "pretrained/tiny",
    "gpt_type": "i23d",
    "test": None,
    "train": None,
    "shapes": 100,
    "resolution": 128,
    "batch": 10,
}
OF_RENDERS = {"cameras": CAMERAS, "protocol": "tar3d"}
RENDER_SIZE = 224


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given = parser.add_argument_group("meshes or pictures that are there")
    given.add_argument("--pred", type=Path, help="folder of predicted meshes")
    given.add_argument("--gt", type=Path, help="folder of true meshes, or a data set folder")
    given.add_argument(
        "--pred-images",
        type=Path,
        help="folder of predicted pictures, or of sub-folders of pictures",
    )
    given.add_argument("--gt-images", type=Path, help="folder of true pictures, of the same names")
    model = parser.add_argument_group("a model")
    model.add_argument(
        "--model", help=f"model directory or Hub id (default: {OF_A_MODEL['model']})"
    )
    model.add_argument(
        "--gpt-type",
        choices=[name for name, kinds in GPT_TYPES.items() if len(kinds) == 1],
        help=f"what the model is told: i23d an image, t23d a text (default: {OF_A_MODEL['gpt_type']})",
    )
    model.add_argument(
        "--test",
        type=Path,
        help="data set folder with unseen shapes (default: 100 procedural ones, seed 1)",
    )
    model.add_argument(
        "--train",
        type=Path,
        help=f"data set the model was trained on (default: {DEFAULT_FOLDER}, procedural)",
    )
    model.add_argument(
        "--shapes",
        type=positive_int,
        help=f"how many, drawn with the seed (default: {OF_A_MODEL['shapes']})",
    )
    model.add_argument(
        "--resolution",
        type=positive_int,
        help=f"extraction cells along an axis (default: {OF_A_MODEL['resolution']})",
    )
    model.add_argument(
        "--batch",
        type=positive_int,
        help=f"shapes generated at once (default: {OF_A_MODEL['batch']})",
    )
    pictures = parser.add_argument_group("pictures")
    pictures.add_argument(
        "--cameras",
        type=Path,
        help="JSON list of cameras (default: the 20 of configs/eval/cameras.json)",
    )
    pictures.add_argument(
        "--protocol",
        help=f"whose frame renders have: {protocol_names()}, or a file (default: tar3d)",
    )
    pictures.add_argument(
        "--size",
        type=positive_int,
        help=f"side in pixels (default: renders {RENDER_SIZE}, picture files stay as they are)",
    )
    pictures.add_argument(
        "--filter", choices=sorted(FILTERS), help="how --size resizes picture files; no default"
    )
    pictures.add_argument(
        "--background", choices=sorted(BACKGROUNDS), default="white", help="default: %(default)s"
    )
    networks = parser.add_argument_group("networks")
    networks.add_argument(
        "--lpips-path",
        type=Path,
        help="file or folder of LPIPS weights, AlexNet or VGG (default: none)",
    )
    networks.add_argument(
        "--clip-path",
        default=DEFAULT_CLIP,
        help="directory or Hub id of a CLIP model (default: %(default)s)",
    )
    networks.add_argument(
        "--captions",
        type=Path,
        help="CSV with the columns id, caption: also score text against picture",
    )
    networks.add_argument("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/eval_2d"),
        help="folder of the report (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive_int,
        default=os.cpu_count(),
        help="processes (default: all cores)",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        check_choice(args)
        return evaluate(args)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2


def check_choice(args: argparse.Namespace) -> None:
    """Refuses contradictions and options that would change nothing, and fills in the defaults of
    the others."""
    for a, b in (("pred", "gt"), ("pred_images", "gt_images")):
        missing = [name for name in (a, b) if getattr(args, name) is None]
        if len(missing) == 1:
            raise ValueError(
                f"{_flag(missing[0])} is missing: {_flag(a)} and {_flag(b)} are two folders"
            )
    if args.pred and args.pred_images:
        raise ValueError("--pred compares meshes and --pred-images pictures: give one of the two")
    if args.pred or args.pred_images:
        _refuse(args, OF_A_MODEL, "generates from a model", "--pred or --pred-images")
    if args.pred_images:
        _refuse(args, OF_RENDERS, "belongs to renders of meshes", "--pred-images")
        if (args.size is None) != (args.filter is None):
            raise ValueError(
                "--size and --filter belong together: picture files are resized only with a filter that you name, "
                f"because it changes scores; the filters are {', '.join(sorted(FILTERS))}"
            )
    elif args.filter:
        raise ValueError(
            "--filter resizes picture files (--pred-images); meshes are rendered at --size, nothing is resized"
        )
    for name, default in (OF_A_MODEL | OF_RENDERS).items():
        if getattr(args, name) is None:
            setattr(args, name, default)
    if not args.pred_images:
        args.size = args.size or RENDER_SIZE
    if args.size is not None and args.size < SSIM_WINDOW:
        raise ValueError(
            f"--size is {args.size}, but SSIM needs at least {SSIM_WINDOW} pixels a side"
        )


def _refuse(args: argparse.Namespace, names: dict, what: str, other: str) -> None:
    given = [_flag(name) for name in names if getattr(args, name) is not None]
    if given:
        raise ValueError(
            f"{given[0]} {what}, so it would change nothing with {other}: leave it out"
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def evaluate(args: argparse.Namespace) -> int:
    start = time.perf_counter()
    device = choose_device(args.device)
    protocol, background = EvalProtocol(), BACKGROUNDS[args.background]
    settings: dict = {"background": f"{args.background} {background}"}
    source: Source
    if args.pred_images:
        source = Folders(background, args.size, args.filter)
        settings |= {
            "size": args.size or "as the files are",
            "filter": args.filter or "none, nothing is resized",
        }
    else:
        protocol, cameras = load_protocol(args.protocol, []), read_cameras(args.cameras)
        source = Renders(cameras, args.size, background, protocol.frame)
        settings |= {
            "cameras": str(args.cameras),
            "views": len(cameras),
            "size": args.size,
            "filter": "none, rendered at this size",
            "protocol": args.protocol,
            "frame": protocol.frame,
        }
    captions = (
        {i: of_one[0] for i, of_one in read_captions(args.captions).items()}
        if args.captions
        else None
    )
    lpips, clip, left_out = load_networks(args, source.maps, device)
    for item in left_out:
        print_left_out(item)

    sets, titles, about = find_pairs(args, protocol, device)
    networks, more, cut = Networks(lpips, clip), [], None
    if captions is not None:
        networks, more, cut = with_captions(
            networks, captions, args.captions, [pair.id for pair in next(iter(sets.values()))]
        )
    for item in more:
        print_left_out(item)
    rows, set_scores = score_sets(sets, source, networks, args.workers)

    settings |= {
        "lpips": lpips and lpips.identity,
        "clip": clip and clip.identity,
        "clip_map": source.maps[0],
        "captions": args.captions and str(args.captions),
        "captions_cut": cut,
    }
    about = {
        "command": command_line(),
        "date": str(date.today()),
        "seconds": round(time.perf_counter() - start, 1),
        **describe_machine(device),
        **about,
    }
    print(
        write_report(
            args.out,
            rows,
            set_scores,
            source.maps,
            protocol.seed,
            settings,
            about,
            left_out=left_out + more,
            titles=titles,
        )
    )
    main_set = next(iter(sets))
    sheet = picture_sheet(rows[main_set], sets[main_set], source)
    if sheet:
        sheet.save(args.out / "views.png")
    return finish(rows, args.out)


def find_pairs(
    args: argparse.Namespace, protocol: EvalProtocol, device: torch.device
) -> tuple[dict[str, list[Pair]], dict[str, str], dict]:
    """Pairs by set, the sets' titles, and what the report says about where they come from."""
    if args.pred_images:
        return {"prediction": picture_pairs(args.pred_images, args.gt_images)}, {}, {}
    if args.pred:
        return {"prediction": pairs_by_id(args.pred, args.gt, read_categories(args.gt))}, {}, {}
    test, train = args.test or default_test(args.shapes), args.train or default_library()
    pipeline = Pipeline.load(args.model, args.gpt_type, device=device)
    (kind,) = GPT_TYPES[args.gpt_type]
    made = evaluate_model(
        pipeline,
        kind,
        test,
        train,
        args.out,
        shapes=args.shapes,
        resolution=args.resolution,
        batch=args.batch,
        seed=protocol.seed,
    )
    return (
        made.pairs,
        TITLES[kind],
        {
            "model": args.model,
            "gpt_type": args.gpt_type,
            "test": str(test),
            "train": str(train),
            "resolution": args.resolution,
            "sampling": vars(pipeline.sampling([kind])),
            "views_in_training": made.told.views_in_training,
        },
    )


def load_networks(args: argparse.Namespace, maps: tuple[str, ...], device: torch.device) -> tuple:
    """LPIPS, CLIP (None where it cannot be had), and what is left out for that."""
    lpips, clip, left_out = None, None, []
    lpips_scores = [f"{name}_lpips{end}" for name in maps for end in ("", "_fg")]
    if args.lpips_path is None:
        left_out.append(
            {"scores": lpips_scores, "reason": f"there are no LPIPS weights; {GET_LPIPS}"}
        )
    else:
        try:
            lpips = load_lpips(args.lpips_path, device)
        except ValueError as e:
            left_out.append({"scores": lpips_scores, "reason": str(e)})
    try:
        clip = Clip.load(args.clip_path, device)
    except ValueError as e:
        scores = [*CLIP_SCORES, *(TEXT_SCORES if args.captions else ()), *SET_SCORES]
        left_out.append({"scores": scores, "reason": str(e)})
    return lpips, clip, left_out


def with_captions(
    networks: Networks, captions: dict[str, str], path: Path, ids: list[str]
) -> tuple[Networks, list[dict], int | None]:
    """Networks with the features of the captions, what is left out, and how many captions were cut
    to what CLIP reads."""
    wanted = {i: captions[i] for i in ids if i in captions}
    if not wanted:
        raise ValueError(f"{path} has no caption for any of the {len(ids)} ids, e.g. {ids[0]!r}")
    if networks.clip is None:
        return Networks(networks.lpips, None, {}), [], None
    left_out = []
    lacking = [i for i in ids if i not in captions]
    if lacking:
        left_out.append(
            {
                "scores": list(TEXT_SCORES),
                "reason": f"{path} has no caption for {len(lacking)} of {len(ids)} ids, "
                f"e.g. {lacking[0]!r}; their text scores are null",
            }
        )
    try:
        texts, cut = networks.clip.text_features(wanted, networks.clip.load_tokenizer())
    except ValueError as e:
        return (
            Networks(networks.lpips, networks.clip, {}),
            [{"scores": list(TEXT_SCORES), "reason": str(e)}],
            None,
        )
    return Networks(networks.lpips, networks.clip, texts), left_out, len(cut)


def print_left_out(item: dict) -> None:
    print(f"left out: {', '.join(item['scores'])}: {item['reason']}", file=sys.stderr)


def finish(sets: dict[str, list[dict]], out: Path) -> int:
    print(f"report.md, summary.json, rows.csv and views.png in {out}")
    return print_failures(
        [
            (f"{name}: {row['id']}", row["reason"])
            for name, rows in sets.items()
            for row in rows
            if row["status"] != "ok"
        ],
        out,
    )


if __name__ == "__main__":
    sys.exit(main())
