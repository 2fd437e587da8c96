"""Work spread over processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def parallel(function: Callable[[T], R], jobs: Iterable[T], workers: int) -> Iterator[R]:
    """The results of `function` over `jobs`, in the order in which they are ready; in this process if `workers` is 1.

    Processes are spawned, not forked: a fork of a process in which torch already runs threads can hang.
    """
    if workers == 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(function, job) for job in jobs]):
            yield future.result()
