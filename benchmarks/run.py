"""Times the stages of the project and prints JSON; a readable table goes to stderr:

    python -m benchmarks.run
    python -m benchmarks.run --device cuda --repeats 10 --out benchmarks/results/NAME.json

Every case runs in a process of its own, so its peak memory is its own. A case that fails or exceeds the limit is listed
with the reason, the rest goes on, and the exit status is 1. No time is compared with anything. The weights are random,
which changes no time but that of marching cubes (see benchmarks/stages.py). OMP_NUM_THREADS sets the threads. All cases
take about 7 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks import evaluation, stages
from benchmarks.measure import SIZES, Case, measure
from tar3d.runtime import choose_device, describe_machine, positive_int

SUITES: dict[str, tuple[Case, ...]] = {"stages": stages.CASES, "evaluation": evaluation.CASES}  # a further one: a file, a line
ROOT = Path(__file__).resolve().parents[1]
CASE_LIMIT = 600.0  # seconds


def run_suite(suite: str, size: str, device: torch.device, *, repeats: int | None = None, only: str = "",
              limit: float = CASE_LIMIT, progress: Callable[[str], None] | None = None) -> dict[str, object]:
    """Measures the cases of a suite whose id contains `only`; the result is what is written as JSON.

    `progress` gets one line as each case starts. A case that failed has "error" instead of figures.
    """
    cases = select_cases(suite, size, device, only)
    records = []
    for number, case in enumerate(cases, start=1):
        if progress:
            progress(f"{number}/{len(cases)} {suite} {case.id}")
        records.append(_measure_apart(suite, case, device, repeats, limit))
    return {"suite": suite, "size": size, "device": str(device), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "threads": torch.get_num_threads(), "weights": "random", **describe_machine(device), "arguments": sys.argv[1:],
            "cases": records}


def select_cases(suite: str, size: str, device: torch.device, only: str = "") -> list[Case]:
    if suite not in SUITES:
        raise ValueError(f"there is no suite {suite!r}; there are {', '.join(SUITES)}")
    sizes = SIZES if size == "all" else (size,)
    cases = [c for c in SUITES[suite] if c.size in sizes and device.type in c.devices and only in c.id]
    if not cases:
        raise ValueError(f"suite {suite} has no case of size {size} for {device.type} whose name contains {only!r}; "
                         f"it has {', '.join(c.id for c in SUITES[suite])}")
    return cases


def _measure_apart(suite: str, case: Case, device: torch.device, repeats: int | None, limit: float) -> dict[str, object]:
    command = [sys.executable, "-m", "benchmarks.run", "--suite", suite, "--case", case.id, "--device", str(device)]
    if repeats is not None:
        command += ["--repeats", str(repeats)]
    start = time.perf_counter()
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"case": case.id, "error": f"stopped after {limit:.0f} s"}
    if result.returncode:
        reason = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        return {"case": case.id, "error": reason[-1]}
    return json.loads(result.stdout) | {"process_seconds": round(time.perf_counter() - start, 2)}


def table(report: dict) -> str:
    """The report for people, in lines of at most about 130 characters."""
    lines = [f"{report['suite']}: {report['machine']}, {report['device']}, {report['threads']} threads, torch {report['torch']}, "
             f"commit {report['commit']}, {report['date']}, {report['weights']} weights",
             f"{'case':<28}{'median s':>10}{'min s':>10}{'rate':>18}{'ms/item':>10}{'MiB':>8}{'GPU MiB':>9}  {'dtype':<10} batch"]
    for r in report["cases"]:
        if "error" in r:
            lines.append(f"{r['case']:<28}failed: {r['error']}")
            continue
        gpu = "" if r["peak_gpu_mib"] is None else f"{r['peak_gpu_mib']:.0f}"
        resident = "" if r["peak_resident_mib"] is None else f"{r['peak_resident_mib']:.0f}"
        rate = f"{r['per_second']:.3g} {r['unit']}/s"
        lines.append(f"{r['case']:<28}{r['median_seconds']:>10.3f}{r['min_seconds']:>10.3f}{rate:>18}{r['ms_per_item']:>10.2f}{resident:>8}"
                     f"{gpu:>9}  {r['dtype']:<10} {r['settings'].get('batch', '')}")
    reduced = [f"  {r['case']}: {r['reduced']}" for r in report["cases"] if r.get("reduced")]
    return "\n".join([*lines, *(["reduced:", *reduced] if reduced else [])])


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=list(SUITES), default="stages", help="default: %(default)s")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all",
                        help="the shipped configs, those of the paper, or both (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains TEXT, as in tiny/encode")
    parser.add_argument("--repeats", type=positive_int, help="timed calls of each case (default: the case's own, 1 to 10)")
    parser.add_argument("--limit", type=float, default=CASE_LIMIT,
                        help="seconds after which a case is given up (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file")
    parser.add_argument("--case", metavar="ID", help="measure this one case in the present process and print its record alone")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    try:
        device = choose_device(args.device)
        if args.case:
            case = next((c for c in select_cases(args.suite, "all", device, args.case) if c.id == args.case), None)
            if case is None:
                raise ValueError(f"--case takes a whole name, as in tiny/encode, got {args.case!r}")
            print(json.dumps(measure(case, device, args.repeats)))
            return 0
        report = run_suite(args.suite, args.size, device, repeats=args.repeats, only=args.only, limit=args.limit,
                           progress=lambda line: print(line, file=sys.stderr, flush=True))
    except ValueError as e:
        print(e, file=sys.stderr)
        return 2
    text = json.dumps(report, indent=1)
    print(text)
    print(table(report), file=sys.stderr)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n", encoding="utf-8")
    return 1 if any("error" in r for r in report["cases"]) else 0


if __name__ == "__main__":
    sys.exit(main())
