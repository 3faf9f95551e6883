"""A line of bounded length before the one thread that computes; where the line is empty, it prepares."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future
import contextlib
import dataclasses
import queue
import threading
import time
from typing import Any

from jaxmoe.serve.errors import ApiError


class Gone(Exception):  # noqa: N818  nothing failed: nobody waits for the result
    """Whoever asked has left."""


@dataclasses.dataclass
class Job:
    """What is to be computed; `gone` is set when nobody waits for it any more."""

    work: Callable[["Job"], Any]
    gone: threading.Event = dataclasses.field(default_factory=threading.Event)
    result: Future = dataclasses.field(default_factory=Future)
    queued: float = dataclasses.field(default_factory=time.monotonic)
    waited_s: float = 0.0
    took_s: float = 0.0

    def leave(self) -> None:
        """Nobody waits: it is not begun, or ends at the next `check`."""
        self.gone.set()
        if self.result.cancel():
            self.work = lambda _: None  # its recording need not stay in memory until its turn comes

    def check(self) -> None:
        """Raises Gone where nobody waits."""
        if self.gone.is_set():
            raise Gone


Steps = Iterator[tuple[str, Callable[[], Any]]]  # what is being prepared, and its doing


class Worker:
    """A thread that does one job at a time, in their order; `line` more may wait."""

    def __init__(self, line: int) -> None:
        self.places, self.taken = line + 1, 0
        self.stopping = False
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock, self._last_s = threading.Lock(), 1.0
        self._running: Job | None = None

    def start(self, steps: Steps, say: Callable[[str, BaseException | None], None]) -> None:
        """Begins to prepare, step by step, with jobs in between as they come.

        say: is told each step; "" at the end, with the error where one failed.
        """
        self._thread = threading.Thread(target=self._run, args=(steps, say), name="worker", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place in the line, taken before a recording is read: memory holds no more of them than there are places.

        Raises:
          ApiError: 503, if there is none.
        """
        with self._lock:
            if self.taken >= self.places:
                after = {"Retry-After": str(max(1, round(self._last_s * self.taken)))}
                message = f"{self.taken} requests are before this one, expected fewer than {self.places}; ask again."
                raise ApiError(503, message, code="busy", headers=after)
            self.taken += 1
        try:
            yield
        finally:
            with self._lock:
                self.taken -= 1

    def submit(self, work: Callable[[Job], Any]) -> Job:
        job = Job(work)
        self._jobs.put(job)
        return job

    def stop(self, wait_s: float) -> bool:
        """Ends the thread after the part of a job it is at; whether it has ended."""
        self.stopping = True
        self._jobs.put(None)
        if (running := self._running) is not None:
            running.gone.set()
        self._thread.join(wait_s)
        return not self._thread.is_alive()

    def _run(self, steps: Steps, say: Callable[[str, BaseException | None], None]) -> None:
        try:
            for name, step in steps:
                self._work(until_empty=True)
                if self.stopping:
                    return
                say(name, None)
                step()
            say("", None)
        except Exception as error:
            say("", error)
        self._work(until_empty=False)

    def _work(self, until_empty: bool) -> None:
        while not self.stopping:
            try:
                job = self._jobs.get(block=not until_empty)
            except queue.Empty:
                return
            if job is not None and job.result.set_running_or_notify_cancel():
                self._do(job)
            del job  # a recording is not kept while the next is waited for

    def _do(self, job: Job) -> None:
        self._running, began = job, time.monotonic()
        job.waited_s = began - job.queued
        try:
            result, error = job.work(job), None
        except Exception as e:  # of whatever kind: the next job has nothing to do with it
            result, error = None, e
        job.took_s = self._last_s = time.monotonic() - began
        self._running = None
        if error is not None:
            job.result.set_exception(error)
        else:
            job.result.set_result(result)
