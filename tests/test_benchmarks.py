"""The benchmarks: a case runs in its own process and gives a whole record."""

import json

import pytest

from benchmarks.run import SUITES, main, table


def test_a_case_gives_json_and_a_table(tmp_path, capsys):
    out = tmp_path / "results" / "one.json"
    status = main(["--only", "tiny/decode", "--repeats", "2", "--out", str(out)])
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert status == 0 and json.loads(out.read_text()) == report
    assert {"suite", "date", "threads", "arguments", "machine", "torch", "python", "commit", "weights"} <= set(report)
    (record,) = report["cases"]
    assert (record["case"], record["dtype"], record["unit"]) == ("tiny/decode", "float32", "shapes") and record["threads"] >= 1
    assert len(record["seconds"]) == record["repeats"] == 2 and record["warmup"] >= 1
    assert record["min_seconds"] <= record["median_seconds"] <= max(record["seconds"])
    assert record["per_second"] == pytest.approx(record["items"] / record["median_seconds"])
    assert 50 < record["peak_resident_mib"] < 20_000 and record["peak_gpu_mib"] is None
    assert "1/1 stages tiny/decode" in printed.err and table(report) in printed.err


def test_a_failing_case_is_listed_and_the_rest_goes_on(capsys):
    status = main(["--only", "tiny/encode", "--limit", "0.01"])
    (record,) = json.loads(capsys.readouterr().out)["cases"]
    assert status == 1 and record == {"case": "tiny/encode", "error": "stopped after 0 s"}


def test_wrong_arguments_say_what_there_is(capsys):
    assert main(["--only", "tiny/knit"]) == 2
    assert "tiny/encode" in capsys.readouterr().err


@pytest.mark.parametrize("suite", SUITES)
def test_case_names_are_unique(suite):
    names = [case.id for case in SUITES[suite]]
    assert len(names) == len(set(names))
