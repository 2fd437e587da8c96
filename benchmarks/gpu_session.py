"""Tries and measures everything that needs a GPU within a few minutes.

    python -m benchmarks.gpu_session --warm-cache CACHE                 beforehand, on any machine
    python -m benchmarks.gpu_session --out DIR [--cache CACHE] [--minutes 12]
    python -m benchmarks.gpu_session --rehearse --out DIR               the same order on a CPU

The parts of `benchmarks.session_parts` run one after another, each in its own slice of the time;
time that a part does not use goes to the later ones. A part that fails, hangs or lacks a package is
cut and listed, and the rest goes on; the exit status is then 1. DIR gets four files, written again
after each part: summary.md (versions, what is missing and why, tables, what failed), results.json
(the reports of all suites), log.txt (what tests and scripts printed) and sample.png (what run.py
made of the sample image).

--warm-cache compiles the decoding kernels for the GPU of --capability, without one; --cache takes
them from there, where the versions of Triton and Python are the same, and the summary says how many
were compiled again. --rehearse runs scripts and suites at their smallest and collects the tests,
without a limit of time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from benchmarks.run import table
from benchmarks.session_parts import FIGURES, PARTS, ROOT, Part, missing_figures, missing_packages
from tar3d.io import write_json
from tar3d.runtime import choose_device, command, command_parser, commit, describe_machine

if TYPE_CHECKING:
    import argparse

    import torch

PACKAGES = ("triton", "flash-linear-attention", "fla-core", "lightning-attn", "flash-attn")
SUMMARY_SECONDS = 3.0  # kept for the summary
# Largest share of a suite's time for one case: one that hangs leaves something to the others.
CASE_SHARE = 0.4
# Time for a suite to write down what it left out after its own budget, and for a part to end that
# is interrupted.
GRACE_SECONDS = 4.0


@dataclass(frozen=True)
class Session:
    """Where and how the parts run: files of `work` are deleted at the end.

    `cache` is a folder of kernels compiled beforehand, `running` the processes of parts.
    """

    out: Path
    work: Path
    device: str
    commit: str
    rehearse: bool
    cache: Path | None = None
    running: list[subprocess.Popen] = field(default_factory=list)

    @property
    def kernels(self) -> Path:
        """The folder in which Triton keeps the kernels of this session, if it has a `cache`."""
        return self.work / "triton"


@dataclass(frozen=True)
class Outcome:
    """The result of a part.

    `status` is the exit status of its command, None if it was stopped; `complaint` is its stderr.
    """

    command: list[str]
    status: int | None
    seconds: float
    complaint: str


def run_part(part: Part, session: Session, seconds: float | None) -> Outcome:
    """Runs a part for at most so many seconds, without a limit where that is None."""
    arguments = _arguments(part, session, seconds)
    limit = None if seconds is None else max(seconds - GRACE_SECONDS, 0.1)
    environment = dict(os.environ)
    if session.cache is not None:
        environment["TRITON_CACHE_DIR"] = str(session.kernels)
    start = time.perf_counter()
    with _log(part, session).open("a", encoding="utf-8") as log:
        log.write(f"\n==== {part.name}: {shlex.join(['python', *arguments])}\n")
        log.flush()
        # Its own process group: what it has started ends with it.
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL if part.kind == "suite" else log,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        session.running.append(process)
        try:
            complaint = process.communicate(timeout=limit)[1]
            status = process.returncode
        except subprocess.TimeoutExpired:
            complaint, status = _stop(process), None
        _kill(process)
        log.write(complaint)
    return Outcome(["python", *arguments], status, time.perf_counter() - start, complaint.strip())


def _log(part: Part, session: Session) -> Path:
    """Where a part writes what it prints; a part that runs beside others has its own file."""
    return session.work / f"{part.name}.log" if part.beside else session.out / "log.txt"


def _arguments(part: Part, session: Session, seconds: float | None) -> list[str]:
    """The arguments of Python for a part, which leaves its report in the folder `work`."""
    report = _report(session, part)
    if part.kind == "tests":
        # A rehearsal collects them: without a GPU each is skipped, after its fixtures. On a GPU
        # they compile side by side.
        how = ["-n0", "--collect-only", "-q"] if session.rehearse else ["-n8", "--dist", "load"]
        options = ["-v", "-p", "no:cacheprovider", "--continue-on-collection-errors", *how]
        return ["-m", "pytest", "-m", "gpu", *options, *part.arguments, f"--junitxml={report}"]
    if part.kind == "script":
        given = [*part.arguments, *(part.small if session.rehearse else ())]
        places = {"work": session.work, "data": session.work / "data", "device": session.device}
        return [argument.format(**places) for argument in given]
    small = ["--size", "tiny", "--repeats", "1"] if session.rehearse else []
    limits = []
    if seconds is not None:
        budget = max(seconds - 2 * GRACE_SECONDS, 1)
        limits = ["--budget", f"{budget:.0f}", "--limit", f"{CASE_SHARE * budget:.0f}"]
    return [
        *("-m", "benchmarks.run", "--suite", *part.arguments, "--device", session.device),
        *(*limits, "--commit", session.commit, "--out", str(report), *small),
    ]


def _stop(process: subprocess.Popen) -> str:
    """Interrupts a part, which lets pytest write its report, and kills it if that is not enough."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        return process.communicate(timeout=GRACE_SECONDS)[1]
    except subprocess.TimeoutExpired:
        _kill(process)
        return process.communicate()[1]


def _kill(process: subprocess.Popen) -> None:
    """Kills a part and what it has started, also where it has ended itself."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _report(session: Session, part: Part) -> Path:
    return session.work / f"{part.name}.{'xml' if part.kind == 'tests' else 'json'}"


def suite_reports(session: Session) -> dict[str, dict]:
    """The reports of the suites that have run so far."""
    paths = {part.name: _report(session, part) for part in PARTS if part.kind == "suite"}
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in paths.items()
        if path.is_file()
    }


def write_results(
    session: Session, head: list[str], outcomes: dict[str, Outcome], waiting: list[str]
) -> str:
    """Writes the files of results and returns the text of summary.md."""
    reports = suite_reports(session)
    done = {name for name, outcome in outcomes.items() if outcome.status == 0}
    missing = missing_figures(reports, done, {*outcomes, *waiting})
    lines = [
        *head,
        "",
        *_kernels(session),
        f"## Figures: {len(FIGURES) - len(missing)} of {len(FIGURES)}",
        "",
        *(f"- missing: {figure}: {why}" for figure, why in missing.items()),
        "",
        *_overview(outcomes, session),
    ]
    for part in PARTS:
        if part.name in outcomes:
            lines += _section(part, outcomes[part.name], session, reports)
    if waiting:
        lines += [f"Not run: {', '.join(waiting)}", ""]
    summary = "\n".join(lines)
    (session.out / "summary.md").write_text(summary, encoding="utf-8")
    parts = {
        name: {"command": o.command, "status": o.status, "seconds": round(o.seconds, 1)}
        for name, o in outcomes.items()
    }
    write_json(session.out / "results.json", {"parts": parts, "suites": reports})
    if (picture := session.work / "run" / "sample_image.png").is_file():
        shutil.copyfile(picture, session.out / "sample.png")
    return summary


def _kernels(session: Session) -> list[str]:
    """A line on the decoding kernels that the cache has served, if there is one."""
    if session.cache is None:
        return []
    from benchmarks.kernel_cache import kernels_in

    before = kernels_in(session.cache)
    more = kernels_in(session.kernels) - before
    return [f"Decoding kernels: {len(before)} made beforehand, {len(more)} compiled here.", ""]


def _overview(outcomes: dict[str, Outcome], session: Session) -> list[str]:
    done = [(part, outcomes[part.name]) for part in PARTS if part.name in outcomes]
    rows = [f"| {p.name} | {_result(p, o, session)} | {o.seconds:.0f} |" for p, o in done]
    return ["| part | result | seconds |", "|---|---|---|", *rows, ""]


def _result(part: Part, outcome: Outcome, session: Session) -> str:
    if outcome.status is None:
        return "stopped: its time was over"
    if outcome.status:
        return f"exit status {outcome.status}"
    return "collected, not run" if part.kind == "tests" and session.rehearse else "as it should"


def _section(part: Part, outcome: Outcome, session: Session, reports: dict[str, dict]) -> list[str]:
    lines = [
        f"## {part.name}",
        "",
        f"`{shlex.join(outcome.command)}`: {_result(part, outcome, session)}, "
        f"{outcome.seconds:.0f} s",
        "",
    ]
    report = _report(session, part)
    if part.name in reports:
        return [*lines, "```", table(reports[part.name]), "```", ""]
    if part.kind == "tests" and report.is_file():
        return lines + _tests(report)
    if outcome.status == 0:
        return lines
    last_line = (outcome.complaint.splitlines() or ["none"])[-1]
    return [*lines, f"The last line of its errors: {last_line}", ""]


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
        *(["**Every test was skipped.**"] if 0 < counts["tests"] == counts["skipped"] else []),
        "",
        *failed,
        *([""] if failed else []),
    ]


def _one_line(message: str) -> str:
    return " ".join(message.split())[:200]


def _head(device: torch.device, code: str, argv: list[str], missing: str) -> list[str]:
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
        *(["", missing] if missing else []),
    ]


def parse_arguments(argv: list[str]) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument(
        "--minutes", type=float, default=12.0, help="for everything (default: %(default)s)"
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[part.name for part in PARTS],
        help="run only these; scripts take what earlier ones have made (default: all)",
    )
    parser.add_argument("--device", help="cuda, cuda:N or cpu (default: cuda, or cpu to rehearse)")
    parser.add_argument(
        "--rehearse", action="store_true", help="the smallest sizes, on any machine"
    )
    parser.add_argument("--warm-cache", type=Path, metavar="CACHE", help="compile kernels and stop")
    parser.add_argument("--cache", type=Path, help="folder that --warm-cache has filled")
    parser.add_argument(
        "--capability",
        type=int,
        default=90,
        help="compute capability of the GPU to compile for, times 10 (default: 90, Hopper)",
    )
    parser.add_argument(
        "--commit", help="of the code, where git cannot tell (default: what git says)"
    )
    args = parser.parse_args(argv)
    if (args.out is None) == (args.warm_cache is None):
        parser.error("give --out DIR to run a session, or --warm-cache CACHE to compile kernels")
    if not 0 < args.minutes < math.inf:
        parser.error(f"--minutes is {args.minutes:g}: write a number above 0, such as 12")
    return args


@command
def main(argv: list[str] | None = None) -> int:
    start = time.perf_counter()
    argv = sys.argv[1:] if argv is None else argv
    args = parse_arguments(argv)
    if args.warm_cache is not None:
        return warm_cache(args.warm_cache, args.capability)
    name = args.device or ("cpu" if args.rehearse else "cuda")
    try:
        device = choose_device(name)
        if args.cache is not None and not args.cache.is_dir():
            raise ValueError(
                f"--cache is {args.cache}, which is no folder: fill it by --warm-cache"
            )
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    missing = ", ".join(missing_packages())
    if missing:
        missing = f"Not installed, of requirements.txt: {missing}"
        print(f"{missing}; what needs them will fail", file=sys.stderr, flush=True)
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "log.txt").write_text("", encoding="utf-8")
    signal.signal(signal.SIGTERM, lambda signum, _frame: sys.exit(128 + signum))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        code = args.commit or commit()
        session = Session(out, Path(work), name, code, args.rehearse, args.cache)
        if args.cache is not None:
            from benchmarks.kernel_cache import put_in_place

            put_in_place(args.cache, session.kernels)
        head = _head(device, session.commit, argv, missing)
        deadline = None if args.rehearse else start + 60 * args.minutes - SUMMARY_SECONDS
        parts = [part for part in PARTS if args.parts is None or part.name in args.parts]
        return run_session(session, parts, head, deadline)


def warm_cache(cache: Path, capability: int) -> int:
    """Compiles the decoding kernels into the folder `cache`; returns the exit status."""
    try:
        from benchmarks.kernel_cache import compile_all

        compile_all(cache, capability)
    except (ImportError, ValueError) as e:
        print(e, file=sys.stderr)
        return 2
    return 0


def run_session(
    session: Session, parts: list[Part], head: list[str], deadline: float | None
) -> int:
    """Runs the parts until the `deadline`, a time of `perf_counter`; returns the exit status."""
    outcomes: dict[str, Outcome] = {}
    beside = [part for part in parts if part.beside]
    rest = [part for part in parts if not part.beside]
    over = threading.Event()

    def run_beside(part: Part) -> None:
        seconds = None
        if deadline is not None:
            seconds = min(part.share, deadline - time.perf_counter())
        if not over.is_set() and (seconds is None or seconds > 0):
            outcomes[part.name] = run_part(part, session, seconds)

    def write() -> str:
        waiting = [part.name for part in parts if part.name not in outcomes]
        return write_results(session, head, dict(outcomes), waiting)

    with ThreadPoolExecutor(1) as thread:
        waited_for = [(part.has_data, thread.submit(run_beside, part)) for part in beside]
        try:
            for number, part in enumerate(rest):
                if part.has_data:
                    for made in (future for has_data, future in waited_for if has_data):
                        made.result()
                seconds = None
                if deadline is not None:
                    left = deadline - time.perf_counter()
                    seconds = left * part.share / sum(p.share for p in rest[number:])
                if seconds is None or seconds > 0:
                    limit = "" if seconds is None else f": at most {seconds:.0f} s"
                    print(f"{part.name}{limit}", file=sys.stderr, flush=True)
                    outcomes[part.name] = run_part(part, session, seconds)
                write()
            for _, future in waited_for:
                future.result()
        finally:
            over.set()
            for process in session.running:
                if process.poll() is None:
                    _kill(process)
    _append_logs(session, beside)
    print(write())
    done = len(outcomes) == len(parts) and all(o.status == 0 for o in outcomes.values())
    return 0 if done else 1


def _append_logs(session: Session, beside: list[Part]) -> None:
    """Adds to log.txt what parts have printed that ran beside others."""
    with (session.out / "log.txt").open("a", encoding="utf-8") as log:
        for part in beside:
            path = _log(part, session)
            log.write(path.read_text(encoding="utf-8") if path.is_file() else "")


if __name__ == "__main__":
    sys.exit(main())
