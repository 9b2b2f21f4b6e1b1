"""Processes that run one function call each at a time, so that the death of one loses no other's result."""

import contextlib
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from sgenas.errors import ProcessError, load_extra, one_line, require

_STARTING = threading.Lock()


class Executor(Protocol):
    """Anything that runs a function elsewhere: ``concurrent.futures``, dask's ``Client``, `RayExecutor`."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Any:
        """Starts ``function(*arguments)``; the future returned has a method ``result()``."""
        ...


class WorkerProcesses:
    """An executor of processes that start at the first call and stay.

    Unlike ``ProcessPoolExecutor``, the death of a process fails its own call only; the next call starts another.
    The processes end with this one, even if it is killed.

    Args:
        workers: Number of processes.
        timeout: Seconds after which a call fails and its process is killed; None for no limit.
    """

    def __init__(self, workers: int, timeout: float | None = None) -> None:
        self._threads, self._timeout = ThreadPoolExecutor(workers), timeout
        self._all = [_Worker() for _ in range(workers)]
        # last in, first out: a few calls do not start all processes
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for worker in self._all:
            self._idle.put(worker)
        weakref.finalize(self, _kill, self._all)

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Queues the call. The future raises ProcessError if its process dies or exceeds the timeout."""
        return self._threads.submit(self._run, function, arguments)

    def _run(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        worker = self._idle.get()
        try:
            return worker.call(pickle.dumps((function, arguments)), self._timeout)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Kills the processes and drops the queued calls."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        _kill(self._all)


def _kill(workers: "list[_Worker]") -> None:
    for worker in workers:
        worker.kill()


class _Worker:
    def __init__(self) -> None:
        self._process: Any = None
        self._connection: Connection | None = None

    def call(self, message: bytes, timeout: float | None) -> Any:
        connection = self._connection or self._start()
        try:
            connection.send_bytes(message)
            if not connection.poll(timeout):
                self.kill()
                raise ProcessError(f"took longer than the timeout of {timeout:g} s and was killed")
            good, answer = pickle.loads(connection.recv_bytes())
        except (EOFError, OSError):
            raise ProcessError(f"died: its process ended with {self._exit_status()}") from None
        if not good:
            raise ProcessError(answer)
        return answer

    def _start(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("spawn")
        # not a daemon, since daemons may have no processes of their own (the workers of a DataLoader)
        with _STARTING:
            self._process = context.Process(target=_serve, args=(theirs,), name="sgenas training", daemon=False)
            self._process.start()
        theirs.close()
        try:
            ours.recv_bytes()
        except (EOFError, OSError):
            raise ProcessError(
                f"could not start: its process ended with {self._exit_status()} (a script must run its main part "
                "under `if __name__ == '__main__':`)"
            ) from None
        self._connection = ours
        return ours

    def _exit_status(self) -> str:
        process = self._process
        if process is not None:
            process.join(5)
        code = None if process is None else process.exitcode
        self.kill()
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-code).name
        return f"status {code}"

    def kill(self) -> None:
        process, connection, self._process, self._connection = self._process, self._connection, None, None
        if process is not None and process.is_alive():
            process.kill()
            process.join(5)
        if connection is not None:
            connection.close()


def _serve(connection: Connection) -> None:
    """What a process does: calls, until the other end closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection.send_bytes(b"ready")
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            function, arguments = pickle.loads(message)
            answer = pickle.dumps((True, function(*arguments)))
        except Exception as error:
            answer = pickle.dumps((False, f"raised {type(error).__name__}: {one_line(error)}"))
        connection.send_bytes(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


class RayExecutor:
    """An executor on a Ray cluster (extra ``ray``). Connect first: ``ray.init(address)``.

    Args:
        num_cpus: CPU cores per call.
        num_gpus: GPUs per call.
    """

    def __init__(self, num_cpus: float = 1, num_gpus: float = 0) -> None:
        require(num_cpus >= 0, "RayExecutor.num_cpus", ">= 0", num_cpus)
        require(num_gpus >= 0, "RayExecutor.num_gpus", ">= 0", num_gpus)
        # Ray reports its use to its makers unless it is told not to
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        self._ray = load_extra("ray", "ray", "executor")
        self._options = {"num_cpus": num_cpus, "num_gpus": num_gpus}
        self._remote: dict[Callable[..., Any], Any] = {}

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Starts a task."""
        if function not in self._remote:
            self._remote[function] = self._ray.remote(**self._options)(function)
        return self._remote[function].remote(*arguments).future()
