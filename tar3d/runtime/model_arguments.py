"""Command-line arguments that the scripts which use a trained model share."""

from __future__ import annotations

import argparse

from tar3d.paths import local_model
from tar3d.runtime.arguments import PRECISIONS

SHIPPED_MODEL = "pretrained/tiny"


def model_source(text: str) -> str:
    """The argparse type of a model directory or Hub id; a path that leads nowhere is refused."""
    try:
        local_model(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e)) from e
    return text


def add_model_argument(parser: argparse._ActionsContainer, contents: str, *aliases: str) -> None:
    """Adds --model; `contents` says which folders the model directory holds."""
    parser.add_argument(
        "--model",
        *aliases,
        dest="model",
        type=model_source,
        default=SHIPPED_MODEL,
        help=f"model directory or Hub id (hf://owner/name) {contents} (default: %(default)s)",
    )


def add_encoder_arguments(parser: argparse._ActionsContainer) -> None:
    """Adds --image-encoder and --text-encoder, which `encoder_folders` reads."""
    for modality in ("image", "text"):
        parser.add_argument(
            f"--{modality}-encoder",
            metavar="FOLDER",
            help=f"where the frozen {modality} encoder of the GPT is, folder or Hub id (default: "
            "where it was in the training)",
        )


def encoder_folders(args: argparse.Namespace) -> dict[str, str | None]:
    """The folder of each modality's frozen encoder, None where none is given."""
    return {"image": args.image_encoder, "text": args.text_encoder}


def add_machine_arguments(parser: argparse._ActionsContainer, *, precision: bool = True) -> None:
    """Adds --device, --low-vram and, unless `precision` is False, --precision."""
    parser.add_argument("--device", help="cpu, cuda, cuda:N or mps (default: cuda if there is one)")
    parser.add_argument(
        "--low-vram",
        action="store_true",
        help="fits small GPUs: a model is on the GPU only while it works, and feature planes are "
        "float16; slower, with the same tokens",
    )
    if precision:
        parser.add_argument(
            "--precision",
            choices=PRECISIONS,
            default="auto",
            help="of matrix products; auto is bf16-mixed on GPUs that have it (RTX 30 and later), "
            "else 32-true; 16-mixed is for older GPUs (default: %(default)s)",
        )
