"""Times the stages of the project and prints JSON; a readable table goes to stderr.

    python -m benchmarks.run
    python -m benchmarks.run --device cuda --repeats 10 --out benchmarks/results/NAME.json

Every case runs in a process of its own, so its peak memory is its own. The variants of a case run
in one process, in turn. A case that fails or exceeds the limit is listed with the reason, the rest
goes on, and the exit status is 1. The weights are random, which changes no time but that of
marching cubes (see benchmarks/suites/stages.py). OMP_NUM_THREADS sets the threads. docs/speed.md
says how long the suites take.
"""

from __future__ import annotations

import importlib
import json
import shlex
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import SIZES, speedup_text
from tar3d.runtime import choose_device, command, command_parser, describe_machine, positive_int

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    import torch

    from benchmarks.measure import Case

# Each is a module of benchmarks/suites with its CASES, the most valuable first, that is loaded when
# it is asked for: suites need different packages.
SUITES = (
    "stages",
    "evaluation",
    "decode",
    "attention",
    "train",
    "tokenizer",
    "extract",
    "data",
    "step_times",
)
OLD_SUITES = {"tokenize": "tokenizer", "arms": "step_times"}
WEIGHTS = {"extract": "shipped (tiny) and random (full)"}  # of a suite; of the others random
ROOT = Path(__file__).resolve().parents[1]
CASE_LIMIT = 600.0  # seconds
LEAST_SECONDS = 5.0  # of a budget that must be left for another case to start


def run_suite(
    suite: str,
    size: str,
    device: torch.device,
    *,
    repeats: int | None = None,
    only: str = "",
    limit: float = CASE_LIMIT,
    budget: float | None = None,
    save: Callable[[dict], None] | None = None,
) -> dict:
    """Measures the cases of a suite whose id contains `only`, and returns the report.

    Prints a line to stderr as each case starts; `save` gets the report so far as each ends. A case
    that failed has "error" instead of figures; one for which the `budget` in seconds was too short
    has "left_out".
    """
    import torch

    start = time.perf_counter()
    cases = select_cases(suite, size, device, only)
    report: dict = {
        "suite": suite,
        "size": size,
        "device": str(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "threads": torch.get_num_threads(),
        "weights": WEIGHTS.get(suite, "random"),
        **describe_machine(device),
        "command": shlex.join(["python", "-m", "benchmarks.run", *sys.argv[1:]]),
        "cases": [],
    }
    for number, case in enumerate(cases, start=1):
        left = None if budget is None else budget - (time.perf_counter() - start)
        if left is not None and left < LEAST_SECONDS:
            report["cases"].append(
                {"case": case.id, "left_out": f"the {budget:.0f} s for this suite were over"}
            )
            continue
        print(f"{number}/{len(cases)} {suite} {case.id}", file=sys.stderr, flush=True)
        if left is not None and left < limit:
            records = _measure_apart(suite, case, device, repeats, left)
            if "error" in records[0] and time.perf_counter() - start >= budget:
                records = [
                    {
                        "case": case.id,
                        "left_out": f"stopped when the {budget:.0f} s for this suite were over",
                    }
                ]
        else:
            records = _measure_apart(suite, case, device, repeats, limit)
        report["cases"] += records
        if save:
            save(report)
    return report


def suite_name(name: str) -> str:
    """A suite's name of today; reports and command lines may have an earlier one."""
    return OLD_SUITES.get(name, name)


def select_cases(suite: str, size: str, device: torch.device, only: str = "") -> list[Case]:
    """The cases of a suite of one size ("all": every size) whose id contains `only`.

    Raises ValueError where there is none, or the suite cannot be loaded.
    """
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")
    try:
        known = importlib.import_module(f"benchmarks.suites.{suite}").CASES
    except ImportError as e:
        raise ValueError(f"suite {suite} cannot be loaded here: {e}") from e
    sizes = SIZES if size == "all" else (size,)
    cases = [c for c in known if c.size in sizes and device.type in c.devices and only in c.id]
    if not cases:
        raise ValueError(
            f"suite {suite} has no case of size {size} for {device.type} whose name contains "
            f"{only!r}; it has {', '.join(c.id for c in known)}"
        )
    return cases


def _measure_apart(
    suite: str, case: Case, device: torch.device, repeats: int | None, limit: float
) -> list[dict[str, object]]:
    command = [
        sys.executable,
        "-m",
        "benchmarks.run",
        "--suite",
        suite,
        "--case",
        case.id,
        "--device",
        str(device),
    ]
    if repeats is not None:
        command += ["--repeats", str(repeats)]
    start = time.perf_counter()
    try:
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return [{"case": case.id, "error": f"stopped after {limit:.0f} s"}]
    if result.returncode:
        reason = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        return [{"case": case.id, "error": reason[-1]}]
    whole = {"process_seconds": round(time.perf_counter() - start, 2)}
    return [record | whole for record in json.loads(result.stdout)]


def table(report: dict) -> str:
    """The report for people, in lines of about 130 characters."""
    records = report["cases"]
    lines = [
        f"{report['suite']}: {report['machine']}, {report['device']}, {report['threads']} threads, "
        f"torch {report['torch']}, commit {report['commit']}, {report['date']}, "
        f"{report['weights']} weights",
        *_limits(records),
    ]
    width = max(len(_label(r)) for r in records) + 2
    lines.append(
        f"{'case':<{width}}{'median s':>9}{'rate':>20}{'ms/item':>9}{'of limit':>9}"
        f"{'speedup (min-max)':>19}{'MiB':>7}{'GPU MiB':>8}  {'dtype':<10} batch"
    )
    for r in records:
        if "error" in r or "left_out" in r:
            reason = f"failed: {r['error']}" if "error" in r else f"left out: {r['left_out']}"
            lines.append(f"{_label(r):<{width}}{reason}")
            continue
        resident, gpu = (
            "" if r[key] is None else f"{r[key]:.0f}"
            for key in ("peak_resident_mib", "peak_gpu_mib")
        )
        rate = f"{r['per_second']:{',.0f' if r['per_second'] >= 100 else '.3g'}} {r['unit']}/s"
        limit = f"{r['fraction']:.0%}" if "fraction" in r else ""
        lines.append(
            f"{_label(r):<{width}}{r['median_seconds']:>9.3g}{rate:>20}{r['ms_per_item']:>9.3g}"
            f"{limit:>9}{speedup_text(r):>19}{resident:>7}{gpu:>8}  {r['dtype']:<10} "
            f"{r['settings'].get('batch', '')}"
        )
    from benchmarks.measure import goal_lines

    reduced = [f"  {_label(r)}: {r['reduced']}" for r in records if r.get("reduced")]
    goals = [f"  {_label(r)}: {line}" for r in records for line in goal_lines(r)]
    return "\n".join(
        [
            *lines,
            *(["reduced:", *reduced] if reduced else []),
            *(["goals:", *goals] if goals else []),
        ]
    )


def _limits(records: list[dict]) -> list[str]:
    """A line a dtype: the ceilings that its cases saw, at the median."""
    lines = []
    for dtype in dict.fromkeys(r["dtype"] for r in records if "ceilings" in r):
        seen = [r["ceilings"] for r in records if "ceilings" in r and r["dtype"] == dtype]
        best = {key: statistics.median(c[key] for c in seen) / 1e9 for key in seen[0]}
        lines.append(
            f"limits ({dtype}): copy {best['copy_bytes_per_second']:.3g} GB/s, "
            f"sum {best['sum_bytes_per_second']:.3g} GB/s, "
            f"matrix-vector {best['product_bytes_per_second']:.3g} GB/s, "
            f"matrix product {best['flops_per_second']:.3g} GFLOP/s"
        )
    return lines


def _label(record: dict) -> str:
    return f"{record['case']} {record['variant']}" if record.get("variant") else record["case"]


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument(
        "--suite",
        type=suite_name,
        choices=SUITES,
        default="stages",
        help="what is timed (default: %(default)s)",
    )
    parser.add_argument(
        "--size",
        choices=[*SIZES, "all"],
        default="all",
        help="the tiny configs, those of the paper, or both (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)"
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help="only cases whose name contains TEXT, as in tiny/encode",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        help="timed calls of each case (default: the case's own, 1 to 10)",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=CASE_LIMIT,
        help="seconds after which a case is given up (default: %(default)s)",
    )
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="for the whole suite; cases without time are listed as left out (default: none)",
    )
    parser.add_argument(
        "--commit", help="of the code, where git cannot tell (default: what git says)"
    )
    parser.add_argument(
        "--out", type=Path, help="also write the JSON to this file, again after every case"
    )
    parser.add_argument(
        "--case",
        metavar="ID",
        help="measure this one case in the present process and print its records alone",
    )
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        device = choose_device(args.device)
        if args.case:
            cases = select_cases(args.suite, "all", device, args.case)
            from benchmarks.measure import measure

            case = next((c for c in cases if c.id == args.case), None)
            if case is None:
                raise ValueError(f"--case takes a whole name, as in tiny/encode, got {args.case!r}")
            print(json.dumps(measure(case, device, args.repeats)))
            return 0
        report = run_suite(
            args.suite,
            args.size,
            device,
            repeats=args.repeats,
            only=args.only,
            limit=args.limit,
            budget=args.budget,
            save=lambda report: _write(report, args),
        )
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    print(_write(report, args))
    print(table(report), file=sys.stderr)
    return 1 if any("error" in r for r in report["cases"]) else 0


def _write(report: dict, args: argparse.Namespace) -> str:
    if args.commit:
        report["commit"] = args.commit
    text = json.dumps(report, indent=1)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.exit(main())
