"""The session for a GPU that is there for a few minutes: its order, its limits, its summary."""

import dataclasses
import json
import signal
import time
from types import SimpleNamespace

import pytest
import torch

from benchmarks import gpu_session
from benchmarks.run import select_cases
from benchmarks.session_parts import FIGURES, PARTS, ROOT, Part

SLEEP = ("-c", "import time; time.sleep(999)")


def test_a_gpu_session_rehearses_its_order(tmp_path, monkeypatch, capsys):
    """run.py and a collection of tests as they are; stand-ins for what takes long."""
    real, order = gpu_session.run_part, []

    def run_part(part: Part, session, seconds: float | None) -> gpu_session.Outcome:
        order.append(part.name)
        assert seconds is None, "a rehearsal has no limits"
        if part.name == "engine":
            part = dataclasses.replace(part, arguments=("tests/gpt/test_on_a_gpu.py",))
        if part.name in ("engine", "run"):
            return real(part, session, seconds)
        if part.kind == "suite":
            cases = [{"case": case} for name, case in FIGURES.values() if name == part.name]
            report = {"suite": part.name, "cases": cases}
            (session.work / f"{part.name}.json").write_text(json.dumps(report))
        return gpu_session.Outcome(["python", part.name], 0, 1.0, "")

    monkeypatch.setattr(gpu_session, "run_part", run_part)
    monkeypatch.setattr(gpu_session, "table", lambda report: f"the table of {report['suite']}")
    assert gpu_session.main(["--rehearse", "--commit", "abc", "--out", str(tmp_path)]) == 0
    beside = [part.name for part in PARTS if part.beside]
    others = [part.name for part in PARTS if not part.beside]
    assert [name for name in order if name not in beside] == others
    assert order.index("samples") < order.index("train_vqvae"), "scripts wait for their data"
    summary = (tmp_path / "summary.md").read_text()
    assert summary in capsys.readouterr().out
    assert "commit abc" in summary and f"## Figures: {len(FIGURES)} of {len(FIGURES)}" in summary
    assert "the table of decode" in summary and "0 failures" in summary
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["parts"]["run"]["status"] == 0 and set(results["suites"]) < set(others)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"summary.md", "results.json", "log.txt", "sample.png"}
    assert "test_graphs_are_captured_beside" in (tmp_path / "log.txt").read_text()


@pytest.mark.soak
def test_a_whole_rehearsal(tmp_path):
    assert gpu_session.main(["--rehearse", "--out", str(tmp_path)]) == 0


def test_a_gpu_session_asks_for_what_there_is():
    cuda = torch.device("cuda")
    for part, case in FIGURES.values():
        assert not case or case in [c.id for c in select_cases(part, "full", cuda)]
    for part in PARTS:
        if part.kind == "tests":
            assert all((ROOT / path).exists() for path in part.arguments)


def test_a_gpu_session_stops_a_part_and_goes_on(tmp_path, monkeypatch):
    hanging = Part("hanging", 1, "script", SLEEP)
    session = gpu_session.Session(tmp_path, tmp_path, "cpu", "abc", rehearse=False)
    monkeypatch.setattr(gpu_session, "GRACE_SECONDS", 0.1)
    outcome = gpu_session.run_part(hanging, session, 0.5)
    assert outcome.status is None and session.running[0].poll() is not None
    seen = []

    def run_part(part: Part, session, seconds: float) -> gpu_session.Outcome:
        seen.append((part.name, seconds))
        status = {"decode": 2, "engine": None}.get(part.name, 0)
        return gpu_session.Outcome(["python", part.name], status, 1.0, f"{part.name} is not there")

    kept = {"engine": 20, "decode": 50, "attention": 20, "stages": 10}
    parts = tuple(
        dataclasses.replace(part, share=kept[part.name]) for part in PARTS if part.name in kept
    )
    monkeypatch.setattr(gpu_session, "run_part", run_part)
    monkeypatch.setattr(gpu_session, "PARTS", parts)
    monkeypatch.setattr(gpu_session, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    flags = ["--device", "cpu", "--out", str(tmp_path), "--minutes"]
    assert gpu_session.main([*flags, "1.05"]) == 1
    assert [name for name, _ in seen] == list(kept)
    assert [seconds for _, seconds in seen] == pytest.approx([12, 37.5, 40, 60]), (
        "what is not used goes to the later ones"
    )
    summary = (tmp_path / "summary.md").read_text()
    assert "The last line of its errors: decode is not there" in summary
    assert "| engine | stopped: its time was over | 1 |" in summary
    assert "missing: a training step of GPT-L, MFU: the part train was not asked for" in summary
    assert "the suite decode left no report" in summary
    assert f"## Figures: 0 of {len(FIGURES)}" in summary
    seen.clear()
    assert gpu_session.main([*flags, "0.01"]) == 1 and not seen
    assert "Not run: engine, decode, attention, stages" in (tmp_path / "summary.md").read_text()


@pytest.mark.parametrize("minutes", ["0", "nan", "inf"])
def test_a_gpu_session_needs_a_time(tmp_path, capsys, minutes):
    with pytest.raises(SystemExit):
        gpu_session.main(["--device", "cpu", "--out", str(tmp_path), "--minutes", minutes])
    assert "write a number above 0" in capsys.readouterr().err


def test_a_gpu_session_that_is_ended_leaves_nothing_running(tmp_path, monkeypatch):
    hanging = Part("hanging", 1, "script", SLEEP, beside=True)
    session = gpu_session.Session(tmp_path, tmp_path, "cpu", "abc", rehearse=True)
    real = gpu_session.run_part

    def run_part(part: Part, session, seconds: float | None) -> gpu_session.Outcome:
        if part is hanging:
            return real(part, session, seconds)
        while not session.running:
            time.sleep(0.01)
        raise SystemExit(128 + signal.SIGTERM)

    monkeypatch.setattr(gpu_session, "run_part", run_part)
    with pytest.raises(SystemExit):
        gpu_session.run_session(session, [hanging, Part("ended", 1, "script", SLEEP)], [], None)
    assert session.running[0].returncode == -signal.SIGKILL


def test_a_gpu_session_says_at_once_what_is_not_installed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_session, "PARTS", ())
    monkeypatch.setattr(gpu_session, "missing_packages", lambda: ["embreex", "libigl"])
    gpu_session.main(["--device", "cpu", "--out", str(tmp_path)])
    assert "Not installed, of requirements.txt: embreex, libigl;" in capsys.readouterr().err
    assert (
        "Not installed, of requirements.txt: embreex, libigl"
        in (tmp_path / "summary.md").read_text()
    )
