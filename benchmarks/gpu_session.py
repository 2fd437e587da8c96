"""Measures everything that needs a GPU within a few minutes: tests, then suites.

    python -m benchmarks.gpu_session --out DIR [--minutes 9]

It runs `pytest -m gpu` on TESTS, then the suites of PARTS, each in its own slice of the time; time
that a part does not use goes to the later ones. DIR gets tests.log, tests.xml, a JSON file a suite,
written again after every case, and summary.md with the tables, the versions, what failed and what
was left out for lack of time. A part that fails, or that lacks a package, is listed and the rest
goes on; the exit status is then 1. `--device cpu --quick` does the same on any machine, with the
smallest sizes.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from benchmarks.run import ROOT, suite_name, table
from tar3d.runtime import choose_device, command, command_parser, commit, describe_machine

if TYPE_CHECKING:
    import argparse

    import torch

# Share of the time, in the order in which they run.
PARTS = {
    "tests": 2,
    "train": 5,
    "decode": 5,
    "tokenizer": 3,
    "extract": 2,
    "attention": 2,
    "stages": 1,
    "data": 1,
}
TESTS = [
    "tests/gpt",
    "tests/optim",
    "tests/tokenizer/test_plane_pool.py",
    "tests/test_runtime.py",
    "tests/mesh/test_extract.py",
]
PACKAGES = (
    "triton",
    "flash-linear-attention",
    "fla-core",
    "lightning-attn",
    "flash-attn",
)
SUMMARY_SECONDS = 3.0  # kept for the summary
# Largest share of a suite's time for one case: one that hangs leaves something to the others.
CASE_SHARE = 0.4
# Time for a suite to write down what it left out after its own budget, and for a part to end that
# is interrupted.
GRACE_SECONDS = 4.0


@dataclass(frozen=True)
class Outcome:
    """The result of a part.

    `status` is the exit status of its command, None if it was stopped; `complaint` is its stderr.
    """

    command: list[str]
    status: int | None
    seconds: float
    complaint: str


def run_part(name: str, out: Path, device: str, quick: bool, code: str, seconds: float) -> Outcome:
    """Runs a part for at most so many seconds; the report of an earlier run in `out` is deleted."""
    target = _report(out, name)
    target.unlink(missing_ok=True)
    arguments = _arguments(name, target, device, quick, code, seconds)
    start = time.perf_counter()
    log_path = out / "tests.log" if name == "tests" else Path(os.devnull)
    with log_path.open("w", encoding="utf-8") as log:
        # Its own process group: what it has started ends with it.
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            complaint = process.communicate(timeout=max(seconds - GRACE_SECONDS, 0.1))[1]
            status = process.returncode
        except subprocess.TimeoutExpired:
            complaint, status = _stop(process), None
    return Outcome(["python", *arguments], status, time.perf_counter() - start, complaint.strip())


def _arguments(
    name: str, target: Path, device: str, quick: bool, code: str, seconds: float
) -> list[str]:
    """The arguments of the command of a part, which writes its report to `target`."""
    # Reports name the file as it was given.
    target = target.relative_to(ROOT) if target.is_relative_to(ROOT) else target
    if name == "tests":
        options = ["-n0", "-v", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        return ["-m", "pytest", "-m", "gpu", *options, *TESTS, f"--junitxml={target}"]
    budget = max(seconds - 2 * GRACE_SECONDS, 1)
    return [
        *("-m", "benchmarks.run", "--suite", name, "--device", device),
        *("--budget", f"{budget:.0f}", "--limit", f"{CASE_SHARE * budget:.0f}"),
        *("--commit", code, "--out", str(target)),
        *(("--size", "tiny", "--repeats", "1") if quick else ()),
    ]


def _stop(process: subprocess.Popen) -> str:
    """Interrupts a part, which lets pytest write its report, and kills it if that is not enough."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE_SECONDS)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[1]


def summarise(out: Path, head: list[str], outcomes: dict[str, Outcome], waiting: list[str]) -> str:
    """The text of summary.md, from the files in `out`: a section a part, and parts not run."""
    lines = [*head, ""]
    for name, outcome in outcomes.items():
        result = f"exit status {outcome.status}"
        if outcome.status is None:
            result = "stopped: its time was over"
        lines += [
            f"## {name}",
            "",
            f"`{shlex.join(outcome.command)}`: {result}, {outcome.seconds:.0f} s",
            "",
        ]
        report = _report(out, name)
        if report.is_file():
            lines += _tests(report) if name == "tests" else _suite(report)
        else:
            last_line = (outcome.complaint.splitlines() or ["none"])[-1]
            lines += [f"It left no report. The last line of its errors: {last_line}", ""]
    if waiting:
        lines += [f"Not run: {', '.join(waiting)}", ""]
    return "\n".join(lines)


def _report(out: Path, part: str) -> Path:
    return out / ("tests.xml" if part == "tests" else f"{part}.json")


def _suite(path: Path) -> list[str]:
    return ["```", table(json.loads(path.read_text(encoding="utf-8"))), "```", ""]


def _tests(path: Path) -> list[str]:
    suites = ElementTree.parse(path).getroot().iter("testsuite")
    counts = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    failed = []
    for suite in suites:
        for key in counts:
            counts[key] += int(suite.get(key, "0"))
        failed += [
            f"- {case.get('classname')}::{case.get('name')}: {_one_line(reason.get('message', ''))}"
            for case in suite.iter("testcase")
            for reason in case
            if reason.tag in ("failure", "error")
        ]
    return [
        ", ".join(f"{count} {key}" for key, count in counts.items()),
        "",
        *failed,
        *([""] if failed else []),
    ]


def _one_line(message: str) -> str:
    return " ".join(message.split())[:200]


def _head(device: torch.device, code: str, argv: list[str]) -> list[str]:
    import torch

    machine = describe_machine(device)
    versions = [
        f"torch {machine['torch']}",
        f"CUDA {torch.version.cuda}",
        f"Python {machine['python']}",
        platform.platform(),
    ]
    for package in PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    return [
        f"# Measured on {machine['machine']}",
        "",
        f"commit {code}, {datetime.now(UTC).isoformat(timespec='seconds')}, "
        f"`{shlex.join(['python', '-m', 'benchmarks.gpu_session', *argv])}`",
        "",
        ", ".join(versions),
    ]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        type=suite_name,
        choices=list(PARTS),
        default=list(PARTS),
        help="run only these (default: all)",
    )
    parser.add_argument(
        "--device", default="cuda", help="cuda, cuda:N or cpu (default: %(default)s)"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest sizes, one repeat")
    parser.add_argument(
        "--commit", help="of the code, where git cannot tell (default: what git says)"
    )
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> int:
    start = time.perf_counter()
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    try:
        device = choose_device(args.device)
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    out, code = args.out.resolve(), args.commit or commit()
    out.mkdir(parents=True, exist_ok=True)
    head = _head(device, code, argv)
    outcomes: dict[str, Outcome] = {}
    parts = [part for part in PARTS if part in args.parts]
    for number, part in enumerate(parts):
        left = 60 * args.minutes - SUMMARY_SECONDS - (time.perf_counter() - start)
        seconds = left * PARTS[part] / sum(PARTS[p] for p in parts[number:])
        if seconds > 0:
            print(f"{part}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
            outcomes[part] = run_part(part, out, args.device, args.quick, code, seconds)
        summary = summarise(out, head, outcomes, [p for p in parts if p not in outcomes])
        (out / "summary.md").write_text(summary, encoding="utf-8")
    print(summary)
    return 0 if len(outcomes) == len(parts) and all(o.status == 0 for o in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
