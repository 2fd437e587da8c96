"""Training states survive kills and damage: there is always a good one, and it is known which."""

from __future__ import annotations

import json
import resource
import signal
import time
from types import SimpleNamespace

import pytest
import torch
from fork_server import fork

from tar3d.training import state as states
from tar3d.training.run_folder import prepare_folder
from tar3d.training.state import (
    SaveError,
    check_state,
    load_state,
    newest_state,
    restore,
    save_state,
    saved_steps,
)


def test_a_state_comes_back_as_it_was(tmp_path):
    generator = torch.Generator().manual_seed(3)
    path = save_state(
        tmp_path / "deep",
        7,
        {"tensor": torch.arange(3), "random": generator.get_state()},
        {"why": "a test"},
    )
    state = load_state(path)
    assert torch.equal(state["tensor"], torch.arange(3)) and torch.equal(
        state["random"], generator.get_state()
    )
    assert newest_state(tmp_path / "deep") == (path, [])
    record = json.loads(path.with_suffix(".json").read_text())
    assert (record["step"], record["bytes"], record["why"]) == (7, path.stat().st_size, "a test")


def test_two_states_are_kept_and_later_ones_of_a_run_given_up_go(tmp_path):
    for step in (2, 4, 6, 8):
        save_state(tmp_path, step, {"step": step})
    assert saved_steps(tmp_path) == [6, 8]
    save_state(tmp_path, 7, {"step": 7})  # the run was resumed from step 6
    assert saved_steps(tmp_path) == [6, 7]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"0000000{s}.{e}" for s in (6, 7) for e in ("json", "pt")
    ]


def flip_bit(path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(share * (len(content) - 1))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99, 1.0])
@pytest.mark.parametrize("suffix", [".pt", ".json"])
def test_a_flipped_bit_is_found_and_the_state_before_is_taken(tmp_path, share, suffix):
    good = save_state(tmp_path, 1, {"weights": torch.randn(100)})
    bad = save_state(tmp_path, 2, {"weights": torch.randn(100)})
    flip_bit(bad.with_suffix(suffix), share)
    path, passed = newest_state(tmp_path)
    assert path == good or (
        suffix == ".json" and not passed
    )  # a bit of a .json that says nothing about the state
    if path == good:
        assert len(passed) == 1 and "00000002" in passed[0] and "damaged" in passed[0]
        if suffix == ".pt":
            with pytest.raises(ValueError, match="00000002.pt is damaged"):
                check_state(bad)


@pytest.mark.parametrize("by_name", [False, True])
def test_the_first_process_reads_a_state_once_for_its_checksum_and_the_others_trust_it(
    tmp_path, monkeypatch, by_name
):
    path = save_state(tmp_path / "states", 1, {"weights": torch.randn(100)})
    resume, digest, digests = str(path) if by_name else "auto", states.hashlib.file_digest, []
    monkeypatch.setattr(
        states.hashlib, "file_digest", lambda *given: digests.append(given) or digest(*given)
    )
    for first in (True, False):
        fabric = SimpleNamespace(is_global_zero=first, broadcast=lambda found: found or path)
        load_state(prepare_folder(fabric, tmp_path, resume))
        assert len(digests) == 1
    flip_bit(path, 0.5)
    with pytest.raises(ValueError, match="00000001.pt is damaged"):
        prepare_folder(SimpleNamespace(is_global_zero=True), tmp_path, resume)


def test_when_all_are_damaged_that_is_said(tmp_path):
    for step in (1, 2):
        flip_bit(save_state(tmp_path, step, {"weights": torch.randn(100)}), 0.5)
    with pytest.raises(
        ValueError, match="no state in .* is good: .*00000002.pt is damaged.*00000001.pt is damaged"
    ):
        newest_state(tmp_path)


def test_where_nothing_was_saved_there_is_nothing(tmp_path):
    assert newest_state(tmp_path / "none") == (None, [])
    with pytest.raises(ValueError, match="no training state at"):
        load_state(tmp_path / "state.pt")


def test_a_full_disk_leaves_the_states_as_they_were(tmp_path):
    """The system refuses to write more than so many bytes to a file, which is the same to a
    program."""
    save_state(tmp_path, 1, {"step": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(
            SaveError,
            match="step 2 could not be written .*File too large.*last good state is that of step "
            "1. Free space",
        ):
            save_state(tmp_path, 2, {"weights": torch.randn(1_000_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert load_state(newest_state(tmp_path)[0]) == {"step": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000001.json", "00000001.pt"]


SAVING = """
import sys, torch
from tar3d.training.state import save_state
weights = torch.zeros(500_000)
for step in range(1, 10_000):
    save_state(sys.argv[1], step, {"weights": weights + step, "step": step})
    print(step, flush=True)
"""


def test_killed_at_any_moment_of_a_save_no_state_is_lost(tmp_path):
    """One process saves without a pause and is killed again and again, somewhere within a save of
    some milliseconds."""
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        process = fork(["-c", SAVING, str(folder)])
        said = int(process.stdout.readline())
        time.sleep(0.013 * attempt)
        process.kill()
        said = max([said, *map(int, process.stdout.read().split())])
        process.wait()
        path, passed = newest_state(folder)
        state = load_state(path)
        assert not passed and state["step"] >= said
        assert torch.equal(state["weights"], torch.full((500_000,), float(state["step"])))


class Malicious:
    def __reduce__(self):
        return (print, ("code from a checkpoint ran",))


def test_a_state_that_would_run_code_is_refused(tmp_path, capsys):
    torch.save({"step": Malicious()}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(tmp_path / "state.pt")
    path = save_state(tmp_path / "states", 3, {"step": Malicious()})  # with a checksum that fits
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(path)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"no zip at all", b"PK\x03\x04 half a zip"])
def test_what_is_no_state_is_refused(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable training state"):
        load_state(tmp_path / "state.pt")


def test_restore_refuses_another_model():
    small, large = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    state = {
        "model": small.state_dict(),
        "optimizers": [torch.optim.AdamW(small.parameters()).state_dict()],
    }
    restore(state, torch.nn.Linear(2, 3), [torch.optim.AdamW(small.parameters())])
    with pytest.raises(ValueError, match="another model or optimizer"):
        restore(state, large, [torch.optim.AdamW(large.parameters())])
    with pytest.raises(ValueError, match="another model or optimizer"):
        restore(state, torch.nn.Linear(2, 3), [])


def test_parts_of_killed_saves_are_cleared_away(tmp_path):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "00000005.pt.part").write_bytes(b"half")
    (tmp_path / "00000005.pt").write_bytes(b"whole, but its .json was never written")
    save_state(tmp_path, 6, {"step": 6})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000006.json", "00000006.pt"]
    assert states.KEPT == 2
