"""A job costs itself alone, whatever it does to its process."""

import functools
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tar3d.parallel.processes import JobFailure, Worker, parallel, results

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux alone")


def square(x: int) -> int:
    return x * x


def process_id(_: int) -> int:
    return os.getpid()


def test_windows_gets_no_more_processes_than_it_can_wait_for(monkeypatch):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setattr(
        "tar3d.parallel.processes._in_processes", lambda f, jobs, workers, *_: workers
    )
    with pytest.warns(UserWarning, match="60 processes work, not 96"):
        assert parallel(square, [], 96) == 60


def explode(job: str) -> str:
    match job:
        case "sleep":
            time.sleep(600)
        case "allocate":
            return str(
                len([np.empty(1 << 24) for _ in range(20)])
            )  # 128 MB each, untouched: it is quick
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "allocate in C":
            import mmap

            mmap.mmap(-1, 1 << 32, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return job.upper()


def fail(job: int) -> int:
    if job == 3:
        raise KeyError("three")
    return job


class Unstartable:
    """Ends every process that is sent it."""

    def __reduce__(self):
        return os._exit, (5,)

    def __call__(self, job):
        return job


REASONS = {
    "sleep": "it took longer than 4 s",
    "allocate": "it needs more than 1 GB of memory",
    "exit": "its process ended with exit status 3",
    "abort": "its process was ended by SIGABRT",
    "kill": "its process was ended by SIGKILL, probably for want of memory",
}


@needs_linux
@pytest.mark.parametrize(
    "workers, jobs",
    [
        (1, ["a", "abort", "b", "allocate", "c"]),
        (3, ["a", "sleep", "b", "allocate", "c", "exit", "abort", "d", "kill", "e", "f"]),
    ],
)
def test_a_bomb_costs_itself_alone(workers, jobs):
    done = dict(parallel(explode, jobs, workers, seconds=4, gigabytes=1))
    assert done == {j: JobFailure(REASONS[j]) if j in REASONS else j.upper() for j in jobs}
    assert not multiprocessing.active_children()


@needs_linux
def test_memory_is_limited_outside_of_numpy_too():
    ((_, result),) = parallel(fail_as_lost, ["allocate in C"], 1, gigabytes=1)
    assert result == "Cannot allocate memory"


def fail_as_lost(job: str) -> str:
    try:
        return explode(job)
    except OSError as e:
        return e.strerror


@pytest.mark.parametrize("limits", [{}, {"seconds": 100}])
def test_every_job_has_its_result(limits):
    assert dict(parallel(square, iter(range(20)), 2, **limits)) == {i: i * i for i in range(20)}
    assert sorted(results(square, range(5), 2)) == [0, 1, 4, 9, 16]
    assert list(parallel(square, [], 2, **limits)) == []


def test_jobs_are_drawn_as_processes_come_free():
    drawn = itertools.count()
    jobs = (next(drawn) for _ in itertools.repeat(None))  # without end
    stream = parallel(square, jobs, 2)
    assert len([next(stream) for _ in range(10)]) == 10
    assert next(drawn) <= 10 + 2 + 2  # what is done, what runs, what is ready to be handed over
    stream.close()
    assert not multiprocessing.active_children()


def test_a_process_does_many_jobs_and_is_this_one_only_without_limits():
    assert dict(parallel(process_id, range(3), 1)) == dict.fromkeys(range(3), os.getpid())
    ids = set(dict(parallel(process_id, range(6), 2)).values())
    assert len(ids) <= 2 and os.getpid() not in ids
    ((_, other),) = parallel(process_id, [0], 1, seconds=100)
    assert other != os.getpid()


@pytest.mark.parametrize("limits", [{}, {"seconds": 100}])
def test_an_exception_is_raised_here(limits):
    with pytest.raises(KeyError, match="three") as error:
        list(parallel(fail, range(10), 1, **limits))
    assert not limits or "in fail" in error.value.__notes__[0]  # where it happened
    assert not multiprocessing.active_children()


def test_a_lost_job_is_an_error_where_none_is_expected():
    with pytest.raises(RuntimeError, match="exit: its process ended with exit status 3"):
        list(results(explode, ["exit"], 2))


@pytest.mark.parametrize("function, jobs", [(Unstartable(), [1]), (square, [Unstartable()])])
def test_processes_that_never_begin_are_not_started_forever(function, jobs):
    with pytest.raises(
        RuntimeError, match="3 processes ended before they could begin.*exit status 5"
    ):
        list(parallel(function, jobs, 1, seconds=100))


def test_a_process_that_ended_between_jobs_is_replaced():
    worker = Worker(process_id)
    first = worker.run(0)
    assert worker.run(1) == first
    os.kill(first, signal.SIGKILL)
    assert worker.run(2) not in (first, os.getpid())
    worker.close()


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"seconds": 0}, {"gigabytes": -1}, {"seconds": float("nan")}]
)
def test_wrong_limits_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        parallel(square, [1], **{"workers": 1} | wrong)


def touch_and_sleep(job: int, folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(1)


@needs_linux
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_processes_end_with_the_run(tmp_path, how):
    """After a kill as soon as their job is done: a process notices that nobody is there to take the
    result."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        import functools, pathlib, signal, sys
        sys.path[:0] = {sys.path!r}
        from test_worker_processes import parallel, touch_and_sleep
        # a shell ignores it for what it starts with &
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if __name__ == "__main__":
            folder = pathlib.Path({str(tmp_path / "ids")!r})
            list(parallel(functools.partial(touch_and_sleep, folder=folder), range(100), 2))
    """)
    )
    (tmp_path / "ids").mkdir()
    run = subprocess.Popen(
        [sys.executable, script], start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: len(list((tmp_path / "ids").iterdir())) == 2)
        os.killpg(run.pid, how) if how == signal.SIGINT else run.send_signal(
            how
        )  # as a terminal does, to all
        run.wait(10)
        wait_for(
            lambda: not any(Path("/proc", p.name).exists() for p in (tmp_path / "ids").iterdir())
        )
    finally:
        run.kill()


def wait_for(condition, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def test_partial_functions_travel():
    assert dict(parallel(functools.partial(pow, 2), [3, 4], 2)) == {3: 8, 4: 16}
