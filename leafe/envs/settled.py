"""Normalises a user's environment class: plain text becomes enums, and coroutine methods become functions.

A coroutine runs on the instance's own event loop, on a thread of its own, so that what one call opened is there in the next. Such an
environment waits, so it is never called in line.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from enum import StrEnum
from math import ceil, isfinite
from numbers import Real
from typing import Any, TypeVar

from leafe.envs.alarm import ENDS_MORE
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.errors import EnvironmentFailure, LeafeError, UnknownName, UserError
from leafe.imports import told
from leafe.records import Task

Kind = TypeVar("Kind", bound=StrEnum)
World = TypeVar("World", bound=Environment)
METHODS = ("tasks", "reset", "step", "fewest_turns", "snapshot", "restore", "reseed", "expert", "example_actions", "close")


def settled(environment: World) -> World:
    """The environment, with enums for `fidelity` and `placement` and without coroutines. Raises `UserError` for an unknown name."""
    name = getattr(environment, "name", type(environment).__name__)
    for declared, kind in (("fidelity", Fidelity), ("placement", Placement)):
        value = getattr(environment, declared, None)
        if not isinstance(value, kind):
            _set(environment, declared, one_of(kind, value, of=f" of {name}"))
    if not isinstance(environment.instances, int) or environment.instances < 0:
        raise UserError(f"{name} wants instances as a whole number, 0 for any number; found {environment.instances!r}")
    if waiting := [method for method in METHODS if inspect.iscoroutinefunction(inspect.unwrap(getattr(environment, method)))]:
        _await(environment, waiting)
    return environment


def drawn(environment: Environment, split: str, count: int, seed: int) -> list[Task]:
    """Exactly `count` tasks of an environment, each with an id of its own. Raises `UserError` for anything else, and whatever it raises."""
    call = f"tasks({split!r}, {count}, {seed}) of {environment.name}"
    try:
        found: Any = environment.tasks(split, count, seed)
        tasks = list(found) if isinstance(found, Iterable) else None
    except (LeafeError, *ENDS_MORE):
        raise
    except BaseException as error:
        raise UserError(f"{call} raised {told(error)}") from error
    if tasks is None or not all(isinstance(task, Task) for task in tasks):
        raise UserError(f"{call} wants a list of leafe.records.Task; found {found!r:.120}")
    if len(tasks) != count:
        mend = "ask for fewer, as with tasks.train and tasks.test, or let it" if 0 < len(tasks) < count else "let it"
        raise UserError(f"{call} wants {count} tasks, found {len(tasks)}; {mend} give as many as it is asked for")
    if twice := [name for name, times in Counter(task.id for task in tasks).items() if times > 1]:
        raise UserError(
            f"{call} gave several tasks with the id {twice[0]!r}, and results are kept by id; give each an id of its own"
        )
    return tasks


def fewest_turns(environment: Environment, task: Task) -> int | None:
    """The fewest turns that a task is said to take, None if unknown. Raises `UserError` for no number, and for whatever it raises."""
    call, mend = f"fewest_turns of {environment.name}", "return None where the number is not known"
    try:
        least: Any = environment.fewest_turns(task)
    except (LeafeError, *ENDS_MORE):
        raise
    except BaseException as error:
        raise UserError(f"{call} raised {told(error)} for the task {task.id!r}; {mend}") from error
    readable = least is None or (isinstance(least, Real) and isfinite(least))
    if not readable:
        raise UserError(f"{call} gave {least!r:.80} for the task {task.id!r}; {mend}")
    turns: int | None = None if least is None else ceil(least)
    return turns


def let_go(environment: Environment) -> None:
    """Closes an environment that has done its work. A failure of that costs nothing and is left to `leafe check-env` to report."""
    try:
        environment.close()
    except ENDS_MORE:
        raise
    except BaseException:
        return


def one_of(kind: type[Kind], value: Any, *, of: str = "") -> Kind:
    """The member of an enum that a text names. Raises `UnknownName` with the closest one."""
    try:
        return kind(value)
    except ValueError:
        raise UnknownName(f"{kind.__name__.lower()}{of}", str(value), [one.value for one in kind]) from None


def _set(environment: Environment, name: str, value: Any) -> None:
    try:
        setattr(environment, name, value)
    except AttributeError:
        raise UserError(f"{environment.name} gives {name} by a property as {str(value)!r}; let it return {value!r:.40}") from None


def _await(environment: Environment, methods: list[str]) -> None:
    """Replaces coroutines by functions that wait for them."""
    loop = _Loop()
    close = loop.waiting(environment.close) if "close" in methods else environment.close

    def close_all() -> None:
        close()
        loop.close()

    for method in methods:
        setattr(environment, method, loop.waiting(getattr(environment, method)))
    environment.close = close_all  # type: ignore[method-assign]
    if environment.placement is Placement.INLINE:
        _set(environment, "placement", Placement.THREAD)


class _Loop:
    """An event loop on a thread of its own, started by the first call."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def waiting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """The method as a function that waits for its coroutine."""
        return lambda *arguments: asyncio.run_coroutine_threadsafe(_within(method(*arguments)), self._started()).result()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, daemon=True, name="leafe-world-loop").start()
        return self._loop

    def close(self) -> None:
        """Ends the thread; a later call starts another."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None


async def _within(work: Coroutine[Any, Any, Any]) -> Any:
    """The coroutine's result. An exception that would end the loop's thread, and so every later call, becomes a failure."""
    try:
        return await work
    except (SystemExit, KeyboardInterrupt) as error:
        raise EnvironmentFailure(f"{type(error).__name__} in a coroutine: {error}") from error
