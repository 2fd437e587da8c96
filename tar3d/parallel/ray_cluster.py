"""`tar3d.parallel.processes.parallel` on many machines, by Ray (https://docs.ray.io, Apache-2.0).

Each job is a Ray task. A task whose worker is lost with its machine goes to another worker. The
limits hold inside a task, because each Ray worker runs the jobs in a process of its own. All
machines need this project and its packages, and see the meshes and the driver's working folder at
the same paths as the driver's machine.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import socket
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from tar3d.parallel.processes import JobFailure, Worker, check_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from types import ModuleType

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"  # the address that starts a cluster of this machine alone
TRIES = 4  # times that a task is run while its workers are lost
_LOCAL_STORE = 256 << 20  # bytes for results on their way to the driver; Ray writes others to disk
_CONNECT_TIMEOUT = 10  # seconds
_PER_CORE = 2  # tasks for each core of the cluster: one that runs, and one that waits


def parallel_on_ray(
    function: Callable[[T], R],
    jobs: Iterable[T],
    address: str,
    workers: int | None = None,
    *,
    seconds: float | None = None,
    gigabytes: float | None = None,
) -> Generator[tuple[T, R | JobFailure], None, None]:
    """As `parallel`, on the cluster at `address`.

    At most `workers` jobs run at a time, None for as many as the cluster has cores. Raises
    ValueError where Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as e:
        raise ValueError(
            "Ray is not installed: python -m pip install 'ray==2.60.0', "
            "on every machine of the cluster"
        ) from e
    check_limits(seconds, gigabytes)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    limits = {"seconds": seconds, "gigabytes": gigabytes}
    return _on_ray(ray, function, jobs, address, workers, limits)


def _on_ray(
    ray: ModuleType,
    function: Callable[[T], R],
    jobs: Iterable[T],
    address: str,
    workers: int | None,
    limits: dict[str, float | None],
) -> Generator[tuple[T, R | JobFailure], None, None]:
    _connect(ray, address, workers)
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    )
    try:
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_task)
        jobs, running = iter(jobs), cast("dict[object, T]", {})
        while True:
            most = workers or _PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 0)))
            for job in islice(jobs, max(0, most - len(running))):
                reference = task.remote(job, pickle.dumps(function), str(Path.cwd()), **limits)
                running[reference] = job
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                job = running.pop(reference)
                try:
                    result = ray.get(reference)
                except lost as e:
                    result = JobFailure(
                        f"its worker or machine was lost {TRIES} times ({type(e).__name__})"
                    )
                yield job, result
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str, workers: int | None) -> None:
    """Starts a cluster of this machine, or connects to the one at `address`."""
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == LOCAL:
        # a cluster that is started here reports its use to nobody
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            LOCAL,
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=_LOCAL_STORE,
            **quiet,
        )
        return
    try:
        host, _, port = address.rpartition(":")
        if port.isdigit():  # Ray itself would try for minutes
            there = host.removeprefix("ray://"), int(port)
            socket.create_connection(there, _CONNECT_TIMEOUT).close()
        ray.init(address, **quiet)
    except OSError as e:
        raise ValueError(
            f"no Ray cluster answers at {address} ({e}): start one with `ray start --head`, "
            f"or use --ray {LOCAL} for this machine alone"
        ) from e


def _task(
    job: object, function: bytes, folder: str, seconds: float | None, gigabytes: float | None
) -> object:
    return _worker(function, folder, seconds, gigabytes).run(job)


@functools.lru_cache(1)
def _worker(function: bytes, folder: str, seconds: float | None, gigabytes: float | None) -> Worker:
    """The process of this Ray worker, kept from task to task: it takes a second to start."""
    return Worker(functools.partial(_in_folder, pickle.loads(function), folder), seconds, gigabytes)


def _in_folder(function: Callable[[T], R], folder: str, job: T) -> R:
    """Does a job in the working folder of the driver, which its paths may be relative to."""
    if not Path(folder).is_dir():
        raise ValueError(
            f"the machine {socket.gethostname()} has no folder {folder}, from which the run was "
            "started: all machines of the cluster must see it and the meshes at the same paths"
        )
    os.chdir(folder)
    return function(job)
