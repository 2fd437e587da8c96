"""Work spread over processes, with limits of time and memory for each job.

    for job, result in parallel(function, jobs, workers=8, seconds=300, gigabytes=12): ...

A job that exceeds a limit or crashes is lost alone. Jobs are drawn as processes come free, so there
may be any number of them. `tar3d.parallel.ray_cluster` does the same on many machines.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

T = TypeVar("T")
R = TypeVar("R")

PENDING = object()  # stands for a result that is not ready
_NO_JOB = object()
# message of a process before it begins a job; any other one is a pickled (result, exception)
_BEGUN = b""
_NO_MEMORY = 77  # exit code of a process that met its memory limit
_STARTS = 3  # processes that end before they begin a job, until that is an error
# Windows waits for 63 processes at most, and some of those are Python's own
WINDOWS_WORKERS = 60
# seconds after a time limit at which a process ends itself, if its parent is gone
_GRACE = 10


@dataclass(frozen=True)
class JobFailure:
    """Stands for the result of a job whose process crashed or was ended.

    `reason` continues a message that begins with the job's name and ": ".
    """

    reason: str


def parallel(
    function: Callable[[T], R],
    jobs: Iterable[T],
    workers: int,
    *,
    seconds: float | None = None,
    gigabytes: float | None = None,
) -> Generator[tuple[T, R | JobFailure], None, None]:
    """Each job and its result, in the order in which they are ready.

    A job may take `seconds`, and `gigabytes` of memory beyond what a process has when it starts
    (on Linux only). A job that takes more, or whose process crashes, gives a `JobFailure`; an
    exception of a job is raised here. One worker without limits runs in this process, which saves
    the start of another.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    check_limits(seconds, gigabytes)
    if sys.platform == "win32" and workers > WINDOWS_WORKERS:
        warnings.warn(
            f"{WINDOWS_WORKERS} processes work, not {workers}: Windows waits for no more",
            stacklevel=2,
        )
        workers = WINDOWS_WORKERS
    if workers == 1 and seconds is None and gigabytes is None:
        return ((job, function(job)) for job in jobs)
    return _in_processes(function, jobs, workers, seconds, gigabytes)


def results(function: Callable[[T], R], jobs: Iterable[T], workers: int) -> Iterator[R]:
    """The results of `parallel` for jobs that need no limits; a RuntimeError if one crashes."""
    for job, result in parallel(function, jobs, workers):
        if isinstance(result, JobFailure):
            raise RuntimeError(f"{job}: {result.reason}")
        yield result


def check_limits(seconds: float | None, gigabytes: float | None) -> None:
    """Raises ValueError for limits that are not positive and finite; None is no limit."""
    for name, value in (("seconds", seconds), ("gigabytes", gigabytes)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value}")


def _in_processes(
    function: Callable[[T], R],
    jobs: Iterable[T],
    workers: int,
    seconds: float | None,
    gigabytes: float | None,
) -> Generator[tuple[T, R | JobFailure], None, None]:
    jobs = iter(jobs)
    idle: list[Worker] = []
    busy: list[Worker] = []
    finished: list[tuple[T, R | JobFailure]] = []
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
            # after the next jobs are given out, so that no process waits for the use of results
            yield from finished
            if not busy:
                return
            _wait(busy)
            outcomes = [(w, w.outcome()) for w in busy]
            finished = [
                (cast("T", w.job), cast("R | JobFailure", outcome))
                for w, outcome in outcomes
                if outcome is not PENDING
            ]
            idle += [w for w, outcome in outcomes if outcome is not PENDING]
            busy = [w for w, outcome in outcomes if outcome is PENDING]


class Worker:
    """A process that does one job after the other, and is replaced when one of them ends it.

    After `give`, ask for the `outcome` whenever `connection` is readable or `deadline` (of
    time.monotonic) has passed.
    """

    connection: Connection
    deadline: float
    job: object

    def __init__(
        self, function: Callable, seconds: float | None = None, gigabytes: float | None = None
    ) -> None:
        self._function, self._seconds, self._gigabytes = function, seconds, gigabytes
        self._process: multiprocessing.process.BaseProcess | None = None

    def give(self, job: object) -> None:
        """Starts a job, and the process if there is none."""
        self.job, self._starts = job, 0
        self._send()

    def run(self, job: object) -> object:
        """Does a job; returns its result, or `JobFailure`."""
        self.give(job)
        while (outcome := self.outcome()) is PENDING:
            _wait([self])
        return outcome

    def outcome(self) -> object:
        """The result of the job, `JobFailure`, or `PENDING`. Raises the exception of the job."""
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
            # a fork of a process in which threads run can hang
            context = multiprocessing.get_context("spawn")
            self.connection, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve,
                args=(theirs, self._function, self._seconds, self._gigabytes),
                daemon=True,
            )
            self._process.start()
            theirs.close()
        # the start of a process does not count as time of its job
        self._begun, self.deadline = False, math.inf
        with contextlib.suppress(OSError):  # it ended meanwhile: `outcome` will notice
            self.connection.send(self.job)

    def _ended(self) -> object:
        """The outcome of a job whose process has ended: a failure, or the job is given again."""
        assert self._process is not None
        self._process.join(_GRACE)
        code = self._process.exitcode
        self.close()
        if self._begun:
            return JobFailure(self._reason(code))
        self._starts += 1
        if self._starts == _STARTS:
            raise RuntimeError(
                f"{_STARTS} processes ended before they could begin with {self.job}, "
                f"the last one with exit status {code}; what they printed says why"
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
        # the process ended itself before this one, which did not run meanwhile, could
        if hasattr(signal, "SIGALRM") and code == -signal.SIGALRM:
            return f"it took longer than {self._seconds:g} s"
        if code is not None and code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"its process was ended by {name}" + (
                ", probably for want of memory" if name == "SIGKILL" else ""
            )
        return f"its process ended with exit status {code}"


def _wait(workers: list[Worker]) -> None:
    """Waits until one of the workers may have an outcome, at most a minute."""
    left = min(w.deadline for w in workers) - time.monotonic()
    wait([w.connection for w in workers], min(max(left, 0.0), 60.0))


def _serve(
    connection: Connection, function: Callable, seconds: float | None, gigabytes: float | None
) -> None:
    """The loop of a `Worker`'s process, until its parent is gone."""
    # Ctrl-C reaches all processes at once, and the parent ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # if the machine runs out of memory, a worker is ended before the run is
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="utf-8")
    # libigl would start a thread a core in each process
    os.environ.setdefault("IGL_NUM_THREADS", "1")
    if gigabytes is not None:
        _limit_memory(gigabytes)
    with contextlib.suppress(EOFError, OSError):
        while True:
            job = connection.recv()
            connection.send_bytes(_BEGUN)
            connection.send_bytes(_done(function, job, seconds))


def _done(function: Callable, job: object, seconds: float | None) -> bytes:
    """Does a job; returns the pickled (result, exception), one of which is None."""
    alarm = getattr(signal, "setitimer", None)
    if alarm and seconds is not None:
        alarm(signal.ITIMER_REAL, seconds + _GRACE)  # ends the process, whatever it is in
    try:
        return pickle.dumps((function(job), None))
    except MemoryError:
        os._exit(_NO_MEMORY)  # code that was refused memory may have left anything half done
    except Exception as e:  # noqa: BLE001  raised again in the parent
        e.add_note(f"in a worker process:\n{traceback.format_exc()}")
        return pickle.dumps((None, e))
    finally:
        if alarm and seconds is not None:
            alarm(signal.ITIMER_REAL, 0)


def _limit_memory(gigabytes: float) -> None:
    """Limits the private memory that this process may allocate from now on (Linux only).

    Address space is not limited: libraries reserve gigabytes of it that they never use.
    """
    try:
        import resource

        status = Path("/proc/self/status").read_text(encoding="utf-8")
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
