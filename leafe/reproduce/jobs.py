"""Several rows of a table at a time, each in a process of its own with its share of the machine's GPUs, cores and memory.

A row begins once the row that it starts from has ended. Work that two rows share is done by one of them while the other waits. On a
processor the number of jobs changes no result. All processes end with this one, however it ends, and the same command goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple

from transformers.utils.logging import disable_progress_bar

from leafe import lifeline
from leafe.engines.memory import free_bytes
from leafe.engines.serve_programs import PROGRAMS
from leafe.errors import EngineError, LeafeError, UserError
from leafe.experiment import Experiment
from leafe.hardware import own_cores
from leafe.progress import Gauge, Progress, Silent
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import Row
from leafe.reproduce.work import ENDS_THE_TABLE, Failure, carry_out_row
from leafe.settings import RunConfig
from leafe.training.machine import gpu_memories

VISIBLE = "CUDA_VISIBLE_DEVICES"
PATIENCE = 20.0  # seconds that a process has to end by itself once it is interrupted
GIB = 1 << 30
OpenBench = Callable[[RunConfig, Progress], Experiment]


class Share(NamedTuple):
    """What one of several jobs has of the machine: the names of its GPUs, None for no choice among them, and settings of execution."""

    gpus: tuple[str, ...] | None
    overrides: tuple[str, ...]


def shares(config: RunConfig, jobs: int, gpus: Sequence[str], *, cores: int, free: int) -> list[Share]:
    """The share of each of `jobs` in `gpus`, in `cores` and in `free` bytes of the memory in which keys and values lie.

    GPUs are dealt out evenly, and each has several jobs where there are fewer GPUs than jobs. Settings that were chosen stay as they are.
    Raises `UserError` where a share is less than a row needs.
    """
    engine, train = config.engine, config.train
    dealt = bool(gpus) and ":" not in engine.device  # a numbered one would be another's number
    each = max(1, len(gpus) // jobs) if dealt else 0
    needed = max(engine.tensor_parallel if engine.kind in PROGRAMS else 1, train.processes)
    if dealt and (needed > each or (engine.kind in PROGRAMS and jobs > len(gpus))):
        setting = "train.processes" if train.processes == needed > 1 else "engine.tensor_parallel"
        most = max(1, len(gpus) // needed)
        reason = f"{setting}={needed}" if needed > 1 else f"a server of engine.kind={engine.kind} takes a whole one"
        raise UserError(f"--jobs {jobs} shares out {len(gpus)} GPUs, and {reason}; wanted at most --jobs {most}")
    on_cpu = not gpus or engine.device == "cpu"
    beside = -(-jobs // len(gpus)) if dealt and not on_cpu else jobs  # jobs that share a GPU's memory, or the machine's
    overrides = [] if engine.threads else [f"engine.threads={max(1, cores // jobs)}"]
    if not engine.processes and (on_cpu or not dealt):
        overrides.append("engine.processes=1")
    if not engine.cache_gib and beside > 1:
        overrides.append(f"engine.cache_gib={free / GIB / 2 / beside:.3f}")
    names = [tuple(gpus[(number * each + one) % len(gpus)] for one in range(each)) if dealt else None for number in range(jobs)]
    return [Share(name, tuple(overrides)) for name in names]


def shares_here(config: RunConfig, jobs: int) -> list[Share]:
    """The share of each job in this machine. Raises `UserError`."""
    memories, (kind, _, number) = gpu_memories(), config.engine.device.partition(":")
    free = free_bytes()
    if memories and kind != "cpu":
        free = memories[int(number)] if number.isdecimal() and int(number) < len(memories) else min(memories)
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    gpus = named[: len(memories)] or [str(number) for number in range(len(memories))]
    return shares(config, jobs, gpus, cores=own_cores(), free=free)


def turns_on_a_gpu(given: Sequence[Share], variables: Mapping[str, str] = os.environ) -> str:
    """The advice for several jobs on one GPU; empty where each has its own, or where NVIDIA's multi-process service is running."""
    counts = Counter(share.gpus for share in given if share.gpus)
    pipe = Path(variables.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    if max(counts.values(), default=1) == 1 or (pipe / "control").exists():
        return ""
    return (
        f"{max(counts.values())} jobs take turns on a GPU; NVIDIA's multi-process service lets them use it at the same time:"
        " nvidia-cuda-mps-control -d starts it, before this command"
    )


def carry_out_side_by_side(
    plan: Plan,
    bench: OpenBench,
    progress: Progress,
    told: Callable[[list[Failure]], object] = lambda failures: None,
    *,
    given: Sequence[Share],
) -> list[Failure]:
    """Does what `work.carry_out` does, as many rows at a time as there are shares. `bench` has to be picklable."""
    if advice := turns_on_a_gpu(given):
        progress.say(advice)
    shop = _Shop(plan, bench, progress, told, list(given))
    try:
        with progress.stage(plan.table.name, len(plan.rows) * len(plan.asked.seeds), "rows") as gauge:
            shop.carry_out(gauge.advance)
    finally:
        shop.end()
    if shop.error:
        raise shop.error
    return shop.failures


@dataclass
class _Shop:
    """Rows that wait, rows under way and rows that have ended."""

    plan: Plan
    bench: OpenBench
    progress: Progress
    told: Callable[[list[Failure]], object]
    free: list[Share]
    failures: list[Failure] = field(default_factory=list)
    error: LeafeError | None = None

    def __post_init__(self) -> None:
        # Seeds side by side first: rows of one seed would wait for the work that they share.
        self.waiting = [(row, seed) for row in self.plan.rows for seed in self.plan.asked.seeds]
        self.jobs: dict[Connection, _Job] = {}
        self.ended: set[tuple[str, int]] = set()
        self.lost: dict[tuple[str, int], str] = {}

    def carry_out(self, advance: Callable[[], object]) -> None:
        """Starts and hears jobs until nothing is left; after an error none is started."""
        self._start_all(advance)
        while self.jobs:
            ready = wait([*self.jobs])
            for job in [job for pipe, job in self.jobs.items() if pipe in ready]:
                if not job.heard(self.progress):
                    self._end(job)
                    advance()
            self._start_all(advance)

    def _start_all(self, advance: Callable[[], object]) -> None:
        """Starts every row that can begin. In the order of the plan each comes after its start, so one pass settles them all."""
        for row, seed in list(self.waiting):
            start = (row.said.start, seed)
            if start in self.lost:
                self.waiting.remove((row, seed))
                self._fail(row, seed, f"it starts from {row.said.start}, which did not end: {self.lost[start]}")
                advance()
            elif row.said.start and start not in self.ended:
                continue
            elif (self.plan.path(row, seed) / "DONE").is_file():
                self.waiting.remove((row, seed))
                self._check_done(row, seed)
                advance()
            elif self.free:
                self.waiting.remove((row, seed))
                job = _Job(self.plan, row, seed, bench=self.bench, share=self.free.pop(0))
                self.jobs[job.pipe] = job
                job.start()
            if self.error:
                return

    def _check_done(self, row: Row, seed: int) -> None:
        """A finished row is only checked, which takes no process."""
        try:
            carry_out_row(self.plan, row, seed, bench=partial(_bench, self.bench, self.progress), progress=self.progress)
            self.ended.add((row.name, seed))
        except ENDS_THE_TABLE as error:
            self._stop(error)
        except UserError as error:
            self._fail(row, seed, str(error))

    def _stop(self, error: LeafeError) -> None:
        """Lets no row begin any more; those under way go on."""
        self.error = self.error or error
        self.waiting = []

    def _end(self, job: _Job) -> None:
        """Takes the result of a job that has ended."""
        del self.jobs[job.pipe]
        job.join()
        self.free.append(job.share)
        match job.result:
            case ("refused", text):
                self._fail(job.row, job.seed, job.row.advice(text))
            case ("done", text):
                self.ended.add((job.row.name, job.seed))
                if text:
                    self.progress.say(f"{job.name}: done after {text}")
            case (kind, text):
                self.progress.say(f"{job.name}: {text}")
                self._stop((UserError if kind == "ends" else EngineError)(f"{job.name}: {text}"))
        self.told(self.failures)

    def _fail(self, row: Row, seed: int, why: str) -> None:
        self.lost[row.name, seed] = why
        self.failures.append(Failure(row.name, seed, why))
        self.progress.say(f"{row.name}, seed {seed}: {why}")

    def end(self) -> None:
        """Interrupts the jobs that are under way and waits until they have ended; another interrupt ends them at once."""
        deadline = time.monotonic() + PATIENCE
        try:
            for job in self.jobs.values():
                job.interrupt()
            for job in self.jobs.values():
                job.join(max(0.0, deadline - time.monotonic()))
        finally:
            for job in self.jobs.values():
                job.join(0.0)


class _Job:
    """One row at one seed, in a process. `result` is its last word: `done`, `refused`, `ends` or `broken`, and a text."""

    def __init__(self, plan: Plan, row: Row, seed: int, *, bench: OpenBench, share: Share) -> None:
        self.row, self.seed, self.share, self.name = row, seed, share, f"{row.name}, seed {seed}"
        self.result: tuple[str, str] | None = None
        context = multiprocessing.get_context("spawn")
        self.pipe, self._far = context.Pipe(duplex=False)
        self._life = lifeline.connection()
        asked = replace(plan.asked, overrides=(*plan.asked.overrides, *share.overrides))
        self._process: BaseProcess = context.Process(
            target=_work,
            args=(Plan(plan.table, asked), row.name, seed, bench),
            kwargs={"pipe": self._far, "life": self._life},
            name=f"leafe-{row.name}-{seed}",
        )

    def start(self) -> None:
        """Starts the process."""
        # The pipe's far end is closed here, so that the pipe ends with the process, to which an interrupt gets through in `_work`.
        with self._life, self._far, _environment(self.share), _uninterrupted():
            self._process.start()

    def heard(self, progress: Progress) -> bool:
        """Takes a message of the process; returns whether there was one, and not its end."""
        try:
            kind, text = self.pipe.recv()
        except (EOFError, OSError):  # the latter in the middle of a message
            return False
        if kind == "say":
            progress.say(text if text.startswith(f"{self.name}: ") else f"{self.name}: {text}")
        else:
            self.result = kind, text
        return True

    def interrupt(self) -> None:
        """What Ctrl-C does, so that servers and worlds of the process are ended in order."""
        if self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGINT)

    def join(self, seconds: float = PATIENCE) -> None:
        """Waits for the end of the process, and ends it where it does not come in time."""
        if self._process.pid:
            self._process.join(seconds)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
        self.pipe.close()
        self.result = self.result or ("broken", f"its process ended with the status {self._process.exitcode}")


@contextmanager
def _environment(share: Share) -> Iterator[None]:
    """Sets the variable by which a process that is started meanwhile sees its own GPUs alone."""
    before = os.environ.get(VISIBLE)
    try:
        if share.gpus is not None:
            os.environ[VISIBLE] = ",".join(share.gpus)
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Holds interrupts back, also in a process that is started meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Told(Silent):
    """Tells the parent which stages begin and what is said."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def stage(self, name: str, total: float, unit: str) -> Gauge:
        """A gauge that shows nothing, after its name was told."""
        self._pipe.send(("say", f"{name} ..."))
        return super().stage(name, total, unit)

    def say(self, text: str) -> None:
        """Tells a line."""
        self._pipe.send(("say", text))


def _work(plan: Plan, name: str, seed: int, bench: OpenBench, *, pipe: Connection, life: Connection) -> None:
    """The main function of a process. An interrupt from the keyboard reaches the parent alone, which passes it on once."""
    with suppress(OSError):
        os.setsid()
    lifeline.hold(life, group=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a command in the background may have inherited that it is ignored
    disable_progress_bar()
    progress, start = _Told(pipe), time.monotonic()
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        done = carry_out_row(plan, plan.table.row(name), seed, bench=partial(_bench, bench, progress), progress=progress)
        pipe.send(("done", _minutes(time.monotonic() - start) if done else ""))
    except KeyboardInterrupt:
        pipe.send(("broken", "it was interrupted"))
    except ENDS_THE_TABLE as error:
        pipe.send(("ends", str(error)))
    except UserError as error:
        pipe.send(("refused", str(error)))
    except LeafeError as error:
        pipe.send(("broken", str(error)))


def _bench(bench: OpenBench, progress: Progress, config: RunConfig) -> Experiment:
    return bench(config, progress)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
