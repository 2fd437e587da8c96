"""Turns samples, and the views or captions of the shapes, into token shards for the GPT:

    python -m tar3d.data.make_tokens DATA --tokenizer pretrained/tiny \\
        --config configs/gpt_i23d_tiny.yaml
    python -m tar3d.data.make_tokens DATA --tokenizer MODEL --gpt-type t23d \\
        --config configs/gpt_t23d.yaml
    python -m tar3d.data.make_tokens DATA --tokenizer MODEL --config configs/gpt_i23d.yaml \\
        --embeddings ULIP/dino_feats/Shapenet

With train.token_samplings=K the stored surface points of a shape are divided into K samplings, and
its tokens are the codes nearest to the mean of their latents, which change less when the surface is
sampled again. Each sampling has as many points as the tokenizer was trained for, or more: shapes
with too few for K get fewer samplings, and a line says so.

A frozen encoder runs once, and its float16 embeddings are stored. For an encoder that is trained
along with the GPT its input is stored: prepared pixels, or token ids of the text tokenizer. With
--embeddings or --caption-embeddings, the embeddings of a folder (tar3d/data/formats/ulip.py) are
stored instead, and the weights of the frozen encoder that the config names are not needed.

The shards carry a stamp of the tokenizer and encoders, and hashes of the samples, views and
captions that they are made of. Shards of another tokenizer or encoder are refused, never mixed;
where samples, views or captions have changed, shards are made again; conditions of another modality
are added to them. An interrupted run continues with the first missing file. Shapes without usable
views or captions are listed in tokens/refused.csv with the reason, all others are made, and the
exit code is 1.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tar3d import config as configuration
from tar3d.config import GPT_TYPES, GPTRunConfig
from tar3d.data.formats.samples import SAMPLE_READERS, SampleFolder
from tar3d.folders import probe_output
from tar3d.runtime import command, command_parser, model_source

if TYPE_CHECKING:
    import argparse


def parse_arguments(argv: list[str] | None) -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    """The parsed command line, and the parser for errors that are found later."""
    parser = command_parser(__doc__, prog="python -m tar3d.data.make_tokens")
    parser.add_argument(
        "data",
        type=Path,
        help="data set folder whose shapes are turned into tokens, in one of the layouts: "
        f"{'; '.join([*(reader.name for reader in SAMPLE_READERS), SampleFolder.name])}",
    )
    parser.add_argument(
        "--tokenizer",
        type=model_source,
        required=True,
        metavar="MODEL",
        help="model directory or Hub id of the tokenizer that makes the tokens",
    )
    parser.add_argument(
        "--gpt-type",
        choices=list(GPT_TYPES),
        default="i23d",
        help="what the GPT will be conditioned on (default: %(default)s)",
    )
    parser.add_argument(
        "--config",
        default="configs/gpt_i23d_tiny.yaml",
        help="the GPT's config, which names the encoders (default: %(default)s)",
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        metavar="FOLDER",
        help="store the image embeddings <id>.npz of this folder, so that the frozen image encoder "
        "that the config names need not be loaded or run",
    )
    parser.add_argument(
        "--caption-embeddings",
        type=Path,
        metavar="FOLDER",
        help="the same for caption embeddings and the frozen text encoder",
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="config values, as in image_encoder.image_size=64",
    )
    return parser.parse_intermixed_args(argv), parser


@command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns the exit code, 1 if shapes were refused."""
    args, parser = parse_arguments(argv)
    import torch

    from tar3d import checkpoint
    from tar3d.data.tokens.make_tokens import all_readers
    from tar3d.data.tokens.token_maker import REPORT, TokenMaker

    try:
        config = configuration.load(
            GPTRunConfig, args.config, args.overrides, base={"conditions": GPT_TYPES[args.gpt_type]}
        )
        probe_output(args.data / "tokens", "the folder")
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folders = {"image": args.embeddings, "text": args.caption_embeddings}
        readers = all_readers(args.data, folders, config, device)
        maker = TokenMaker(
            args.data,
            checkpoint.load_tokenizer(args.tokenizer),
            readers,
            device,
            samplings=config.train.token_samplings,
        )
        done = maker.run()
    except ValueError as e:
        parser.exit(2, f"{e}\n")
    for note in maker.notes:
        print(note)
    print(
        f"tokens of {done} shapes in {args.data / 'tokens'}; "
        f"{len(maker.refused)} refused ({args.data / 'tokens' / REPORT})"
    )
    return 1 if maker.refused else 0


if __name__ == "__main__":
    sys.exit(main())
