"""Reports what this machine can do with the project: python -m tar3d.doctor

It prints versions, devices, which attention backends work and why others do not. It tries both
shipped models on every device, and checks that decoding token by token gives what the model
predicts. It counts which trainings fit the memory found, and computes the hours of each training on
some GPUs. The exit status is 1 if something that should work does not.
"""

from __future__ import annotations

import sys

from tar3d.runtime import command, command_parser, model_source

MODEL = "pretrained/tiny"


@command
def main(argv: list[str] | None = None) -> int:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--model",
        type=model_source,
        default=MODEL,
        help="model directory to try (default: the shipped one)",
    )
    args = parser.parse_args(argv)
    from tar3d.doctor_report import report

    return report(args.model)


if __name__ == "__main__":
    sys.exit(main())
