"""Work spread over processes. A job that takes too long, needs too much memory or crashes costs
itself alone.

    for job, result in parallel(function, jobs, workers=8, seconds=300, gigabytes=12): ...

Jobs are drawn as processes come free, so there may be any number of them. `tar3d.parallel.ray_cluster` does
the same on many machines.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

PENDING = object()  # in place of a result that is not there yet
_NO_JOB = object()
# what a process says before it begins a job; anything else is a pickled (result, exception)
_BEGUN = b""
_NO_MEMORY = 77  # exit status of a process that met its memory limit
_STARTS = 3  # processes that may end before they begin a job until that is taken for an error
# seconds after which a process that should have been ended ends itself: its parent is gone
_GRACE = 10


@dataclass(frozen=True)
class JobFailure:
    """In place of a result: the process ended, or was ended, before it gave one. `reason` continues
    the job's name and ": "."""

    reason: str


def parallel(
    function: Callable[[T], R],
    jobs: Iterable[T],
    workers: int,
    *,
    seconds: float | None = None,
    gigabytes: float | None = None,
) -> Iterator[tuple[T, R | JobFailure]]:
    """Each job and its result, in the order in which they are ready.

    A job may take `seconds`, and `gigabytes` of memory beyond what a process has when it starts
    (Linux alone can limit that). `JobFailure` comes in place of the result of a job that takes more, or
    whose process crashes; an exception is raised here. With one worker and without limits all
    happens in this process: there is nothing to wait for until one has started.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    check_limits(seconds, gigabytes)
    if workers == 1 and seconds is None and gigabytes is None:
        return ((job, function(job)) for job in jobs)
    return _in_processes(function, jobs, workers, seconds, gigabytes)


def results(function: Callable[[T], R], jobs: Iterable[T], workers: int) -> Iterator[R]:
    """As `parallel`, for jobs that need no limits and are not expected to crash: a RuntimeError if
    one does."""
    for job, result in parallel(function, jobs, workers):
        if isinstance(result, JobFailure):
            raise RuntimeError(f"{job}: {result.reason}")
        yield result


def check_limits(seconds: float | None, gigabytes: float | None) -> None:
    for name, value in (("seconds", seconds), ("gigabytes", gigabytes)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")


def _in_processes(
    function: Callable[[T], R],
    jobs: Iterable[T],
    workers: int,
    seconds: float | None,
    gigabytes: float | None,
) -> Iterator[tuple[T, R | JobFailure]]:
    jobs = iter(jobs)
    idle, busy, finished = [], [], []
    with contextlib.ExitStack() as stack:
        while True:
            while len(busy) < workers and (job := next(jobs, _NO_JOB)) is not _NO_JOB:
                worker = (
                    idle.pop()
                    if idle
                    else stack.enter_context(
                        contextlib.closing(Worker(function, seconds, gigabytes))
                    )
                )
                worker.give(job)
                busy.append(worker)
            yield from finished  # only now, so that no process waits for what is done with results
            if not busy:
                return
            _wait(busy)
            outcomes = [(w, w.outcome()) for w in busy]
            finished = [(w.job, outcome) for w, outcome in outcomes if outcome is not PENDING]
            idle += [w for w, outcome in outcomes if outcome is not PENDING]
            busy = [w for w, outcome in outcomes if outcome is PENDING]


class Worker:
    """A process that does one job after the other, and is replaced when one of them ends it.

    `give` it a job; when `connection` is readable or `deadline` (by time.monotonic) has passed,
    there may be an `outcome`.
    """

    def __init__(
        self, function: Callable, seconds: float | None = None, gigabytes: float | None = None
    ) -> None:
        self._function, self._seconds, self._gigabytes = function, seconds, gigabytes
        self._process: multiprocessing.process.BaseProcess | None = None

    def give(self, job: object) -> None:
        self.job, self._starts = job, 0
        self._send()

    def run(self, job: object) -> object:
        """The result of the job, or `JobFailure`."""
        self.give(job)
        while (outcome := self.outcome()) is PENDING:
            _wait([self])
        return outcome

    def outcome(self) -> object:
        """The result of its job, `JobFailure`, or `PENDING`. Raises what the job raised."""
        message = _BEGUN
        try:
            while message == _BEGUN and self.connection.poll():
                message = self.connection.recv_bytes()
                if message == _BEGUN:
                    self._begun = True
                    self.deadline = time.monotonic() + (self._seconds or math.inf)
        except (EOFError, OSError):
            return self._ended()
        if message != _BEGUN:
            result, error = pickle.loads(message)
            if error is not None:
                raise error
            return result
        if time.monotonic() < self.deadline:
            return PENDING
        self.close()
        return JobFailure(f"it took longer than {self._seconds:g} s")

    def close(self) -> None:
        """Ends the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self.connection.close()
            self._process = None

    def _send(self) -> None:
        if self._process is None:
            context = multiprocessing.get_context(
                "spawn"
            )  # a fork of a process in which threads already run can hang
            self.connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve,
                args=(theirs, self._function, self._seconds, self._gigabytes),
                daemon=True,
            )
            self._process.start()
            theirs.close()
        self._begun, self.deadline = (
            False,
            math.inf,
        )  # the start of a process is not part of its job
        with contextlib.suppress(OSError):  # it ended meanwhile: `outcome` will find out
            self.connection.send(self.job)

    def _ended(self) -> object:
        self._process.join(_GRACE)
        code = self._process.exitcode
        self.close()
        if self._begun:
            return JobFailure(self._reason(code))
        self._starts += 1
        if self._starts == _STARTS:
            raise RuntimeError(
                f"{_STARTS} processes ended before they could begin with {self.job}, the last one with exit "
                f"status {code}; what they printed says why"
            )
        self._send()
        return PENDING

    def _reason(self, code: int | None) -> str:
        if code == _NO_MEMORY:
            return (
                "it needs more memory than there is"
                if self._gigabytes is None
                else f"it needs more than {self._gigabytes:g} GB of memory"
            )
        if (
            hasattr(signal, "SIGALRM") and code == -signal.SIGALRM
        ):  # its own clock was first: this process did not run meanwhile
            return f"it took longer than {self._seconds:g} s"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"its process was ended by {name}" + (
                ", probably for want of memory" if name == "SIGKILL" else ""
            )
        return f"its process ended with exit status {code}"


def _wait(workers: list[Worker]) -> None:
    """Until one of them may have an outcome, or for a minute."""
    left = min(w.deadline for w in workers) - time.monotonic()
    wait([w.connection for w in workers], min(max(left, 0.0), 60.0))


def _serve(
    connection: Connection, function: Callable, seconds: float | None, gigabytes: float | None
) -> None:
    """What a `Worker`'s process does until its parent is gone."""
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes at once, and the parent ends its workers
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(
            "1000"
        )  # the machine's memory is used up: a worker goes, not the run
    os.environ.setdefault(
        "IGL_NUM_THREADS", "1"
    )  # libigl would start a thread a core in each process
    if gigabytes is not None:
        _limit_memory(gigabytes)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            connection.send_bytes(_BEGUN)
            connection.send_bytes(_done(function, job, seconds))


def _done(function: Callable, job: object, seconds: float | None) -> bytes:
    alarm = getattr(signal, "setitimer", None)
    if alarm and seconds is not None:
        alarm(signal.ITIMER_REAL, seconds + _GRACE)  # ends the process, whatever it is in
    try:
        return pickle.dumps((function(job), None))
    except MemoryError:
        os._exit(_NO_MEMORY)  # whoever was refused memory may be left in any state
    except Exception as e:
        e.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return pickle.dumps((None, e))
    finally:
        if alarm and seconds is not None:
            alarm(signal.ITIMER_REAL, 0)


def _limit_memory(gigabytes: float) -> None:
    """Private memory alone, which is what allocations give: address space is reserved by the
    gigabyte and never used."""
    try:
        import resource

        status = Path("/proc/self/status").read_text()
    except (ImportError, OSError):
        return  # not Linux
    used = (
        next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmData:"))
        * 1024
    )
    limit = used + int(gigabytes * 1e9)
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    if hard == resource.RLIM_INFINITY or limit < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
