"""The work of `tar3d.parallel.processes.parallel` on many machines, by Ray (https://docs.ray.io,
Apache-2.0).

Each job is a task. A task is given to another worker when its own is lost with its machine; the
limits hold inside it, as each Ray worker has a process of its own for the jobs. The machines need
this project and its packages, and the meshes and the driver's folder at the same paths as on the
driver's machine.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import socket
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from tar3d.parallel.processes import JobFailure, Worker, check_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import ModuleType

T = TypeVar("T")
R = TypeVar("R")

LOCAL = "local"  # the address that starts a cluster of this machine alone
TRIES = 4  # of a task whose worker is lost
_LOCAL_STORE = (
    256 << 20
)  # bytes for results on their way to the driver; Ray writes what is more to disk
_ANSWERS_WITHIN = 10  # seconds
# tasks that are with the cluster for each of its cores: one that runs, and one that waits
_PER_CORE = 2


def parallel_on_ray(
    function: Callable[[T], R],
    jobs: Iterable[T],
    address: str,
    workers: int | None = None,
    *,
    seconds: float | None = None,
    gigabytes: float | None = None,
) -> Iterator[tuple[T, R | JobFailure]]:
    """As `parallel`, on the cluster at `address`; at most `workers` jobs at a time, None for as
    many as it has cores.

    Raises ValueError where Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError as e:
        raise ValueError(
            "Ray is not installed: python -m pip install 'ray==2.60.0', on every machine of the cluster"
        ) from e
    check_limits(seconds, gigabytes)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    return _on_ray(ray, function, jobs, address, workers, seconds, gigabytes)


def _on_ray(
    ray: ModuleType,
    function: Callable[[T], R],
    jobs: Iterable[T],
    address: str,
    workers: int | None,
    seconds: float | None,
    gigabytes: float | None,
) -> Iterator[tuple[T, R | JobFailure]]:
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == LOCAL:
        os.environ.setdefault(
            "RAY_USAGE_STATS_ENABLED", "0"
        )  # a cluster that we start reports to nobody
        ray.init(
            LOCAL,
            num_cpus=workers,
            include_dashboard=False,
            object_store_memory=_LOCAL_STORE,
            **quiet,
        )
    else:
        try:
            host, _, port = address.rpartition(":")
            if port.isdigit():  # Ray would try for minutes
                socket.create_connection(
                    (host.removeprefix("ray://"), int(port)), _ANSWERS_WITHIN
                ).close()
            ray.init(address, **quiet)
        except OSError as e:
            raise ValueError(
                f"no Ray cluster answers at {address} ({e}): start one with `ray start --head`, or use "
                f"--ray {LOCAL} for this machine alone"
            ) from e
    lost = (
        ray.exceptions.WorkerCrashedError,
        ray.exceptions.NodeDiedError,
        ray.exceptions.OutOfMemoryError,
        ray.exceptions.ObjectLostError,
    )
    try:
        task = ray.remote(num_cpus=1, max_retries=TRIES - 1)(_task)
        jobs, running = iter(jobs), {}
        while True:
            most = workers or _PER_CORE * max(1, int(ray.cluster_resources().get("CPU", 0)))
            for job in islice(jobs, max(0, most - len(running))):
                running[
                    task.remote(job, pickle.dumps(function), seconds, gigabytes, os.getcwd())
                ] = job
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


def _task(
    job: T, function: bytes, seconds: float | None, gigabytes: float | None, folder: str
) -> R | JobFailure:
    return _worker(function, seconds, gigabytes, folder).run(job)


@functools.lru_cache(1)
def _worker(function: bytes, seconds: float | None, gigabytes: float | None, folder: str) -> Worker:
    """Of this Ray worker; kept from task to task, because it takes a second to start."""
    return Worker(functools.partial(_in_folder, pickle.loads(function), folder), seconds, gigabytes)


def _in_folder(function: Callable[[T], R], folder: str, job: T) -> R:
    """Paths of jobs may be relative to the folder of the driver."""
    if not os.path.isdir(folder):
        raise ValueError(
            f"the machine {socket.gethostname()} has no folder {folder}, from which the run was started: all "
            "machines of the cluster must see it and the meshes at the same paths"
        )
    os.chdir(folder)
    return function(job)
