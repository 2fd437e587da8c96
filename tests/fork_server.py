"""Processes that cost no imports: a server imports the scripts once and forks a child for each.

A child is a process like any other: it can be killed, signalled and limited, and ends as `python`
would end it. The server has one thread, as what is forked must.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "train_gpt",
    "train_vqvae",
    "tar3d.training.dry_run",
    "tar3d.training.gpt_init",
    "tar3d.training.gpt_reports",
    "tar3d.training.loader",
    "tar3d.training.run_folder",
    "tar3d.training.vqvae_init",
    "tar3d.training.vqvae_reports",
    "lightning_fabric",
    "tar3d.data.prepare.make_samples",
    "huggingface_hub.serialization",
    "torch.distributed.fsdp",
    "torch.utils.tensorboard",
    "transformers",
)


class Process:
    """A forked child, to be used like subprocess.Popen; its stderr goes to stdout."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        self.pid, self.returncode = pid, None
        self.stdout, self._status = os.fdopen(output, "r"), status

    def poll(self) -> int | None:
        return self._result(0)

    def _result(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(os.read(self._status, 100))
            os.close(self._status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self._result(timeout) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it printed, once it and all that write to its output have ended."""
        end, printed, output = time.monotonic() + (timeout or 1e9), [], self.stdout.fileno()
        while not printed or printed[-1]:
            if not select.select([output], [], [], max(0, end - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            printed.append(os.read(output, 1 << 16))
        self.wait(max(0, end - time.monotonic()))
        self.stdout.close()
        return b"".join(printed).decode(), None

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


@functools.cache
def _server() -> socket.socket:
    """The socket of the server of this process of tests; it ends when the socket is closed."""
    here, there = socket.socketpair()
    server = subprocess.Popen(
        [sys.executable, __file__, str(there.fileno())],
        cwd=ROOT,
        pass_fds=[there.fileno()],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    there.close()
    atexit.register(lambda: (here.close(), server.wait()))
    return here


def fork(command: list[str], **environment: str) -> Process:
    """`python *command` in the checkout, in a session of its own and with one thread."""
    output, writes = os.pipe()
    status, reports = os.pipe()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    request = json.dumps([command, environment]).encode()
    size = len(request).to_bytes(8)
    socket.send_fds(_server(), [size], [writes, reports])
    _server().sendall(request)
    os.close(writes)
    os.close(reports)
    return Process(int(os.read(status, 8)), output, status)


def _serve(requests: socket.socket) -> list[str]:
    """Forks until the socket is closed; returns in the children alone, with their command."""
    reads, wakes = os.pipe2(os.O_NONBLOCK)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    while True:
        ready = select.select([requests, reads], [], [])[0]
        if reads in ready:
            os.read(reads, 1000)
        for pid, reports in list(running.items()):
            # It stays a zombie, whose group can still be signalled: as one that nobody waited for.
            end = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if end:
                code = end.si_status if end.si_code == os.CLD_EXITED else -end.si_status
                os.write(reports, str(code).encode())
                os.close(running.pop(pid))
        if requests not in ready:
            continue
        size, received, *_ = socket.recv_fds(requests, 8, 2)
        if not size:
            _end(running)
        output, reports = received
        request = requests.recv(int.from_bytes(size), socket.MSG_WAITALL)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for fd in (requests.detach(), reads, wakes, reports, *running.values()):
                os.close(fd)
            return _become(output, *json.loads(request))
        os.write(reports, f"{pid:8d}".encode())
        os.close(output)
        running[pid] = reports


def _end(running: dict[int, int]) -> None:
    for pid in running:
        os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    sys.exit()


def _become(output: int, command: list[str], environment: dict[str, str]) -> list[str]:
    os.setsid()
    for fd in (1, 2):
        os.dup2(output, fd)
    os.close(output)
    os.environ.clear()
    os.environ.update(environment)
    sys.orig_argv = [sys.executable, *command]
    return command


def _run(command: list[str]) -> None:
    match command:
        case "-c", code, *_:
            sys.argv = ["-c", *command[2:]]
            exec(code, {"__name__": "__main__"})
        case "-m", name, *_:
            sys.argv = command[1:]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        case _:
            sys.argv = command
            runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    for imported in IMPORTED:
        importlib.import_module(imported)
    torch = importlib.import_module("torch")
    # measured once, for all trainings
    importlib.import_module("tar3d.throughput").find_peak(torch.device("cpu"), torch.float32)
    _run(_serve(socket.socket(fileno=int(sys.argv[1]))))
