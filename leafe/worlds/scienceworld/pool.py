"""Simulators that environments share: a bounded number of processes, however many environments live.

A simulator takes seconds to start and holds some 300 MB, so a released one is reused. Where there are more environments than
simulators, the one that was used last is taken from its environment, whose next turn is likely the farthest off; when that environment
comes back, it gets another and has to restore its episode in it. A simulator is held for the length of one call and no holder asks for
a second one, so none waits for ever. A simulator that failed in a call is never used again.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from leafe.errors import UserError
from leafe.hardware import available_memory
from leafe.worlds.scienceworld.java import Options

MIB = 2**20
BESIDE_HEAP = 96  # MiB that a process takes beside its heap, measured


class Member(Protocol):
    """A simulator as the pool uses it."""

    @property
    def alive(self) -> bool:
        """Whether it can be used."""

    def close(self) -> None:
        """Ends it."""

    def disown(self) -> None:
        """Disconnects from it in a process that was forked off."""


One = TypeVar("One", bound=Member)


@dataclass(eq=False)
class _Seat(Generic[One]):
    """A simulator with the environment that uses it; `used` orders the seats by their last use."""

    options: Options
    simulator: One | None = None
    tenant: object | None = None
    busy: bool = True
    used: int = 0


class Pool(Generic[One]):
    """Lends simulators that `start` makes, where `free` bytes of memory suffice. One pool serves a whole process."""

    def __init__(self, start: Callable[[Options], One], free: Callable[[], int | None] = available_memory) -> None:
        self._start, self._free = start, free
        self._seats: list[_Seat[One]] = []
        self._changed = threading.Condition()
        self._clock = 0
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def __len__(self) -> int:
        """How many simulators there are."""
        return len(self._seats)

    @contextmanager
    def lent(self, tenant: object, options: Options, most: int) -> Iterator[tuple[One, bool]]:
        """A simulator for the length of a `with`, and whether it is still as this tenant left it.

        Raises `UserError` when there is none and no memory for one. Whatever is raised inside ends the simulator.
        """
        seat = self._seat(tenant, options, most)
        simulator, mine = seat.simulator, seat.tenant is tenant
        assert simulator is not None
        seat.tenant = tenant
        try:
            yield simulator, mine
        except BaseException:
            self._drop(seat)
            raise
        self._free_up(seat)

    def leave(self, tenant: object) -> None:
        """Ends a tenant's use. Once there is no tenant, one simulator is kept and the others end."""
        with self._changed:
            for seat in self._seats:
                if seat.tenant is tenant:
                    seat.tenant = None
            idle = not any(seat.busy or seat.tenant is not None for seat in self._seats)
            unused = self._seats[1:] if idle else []
            self._seats = [seat for seat in self._seats if seat not in unused]
        for seat in unused:
            self._drop(seat)

    def close(self) -> None:
        """Ends every simulator."""
        for seat in list(self._seats):
            self._drop(seat)

    def _seat(self, tenant: object, options: Options, most: int) -> _Seat[One]:
        with self._changed:
            while True:
                seat = self._existing(tenant, options)
                if seat is None and self._may_start(options, most):
                    seat = _Seat(options)
                    self._seats.append(seat)
                seat = seat or self._used_last(options)
                if seat is not None:
                    seat.busy = True
                    break
                self._changed.wait()
        if seat.simulator is None:
            try:
                seat.simulator = self._start(options)  # takes a second or more, so others are let in meanwhile
            except BaseException:
                self._drop(seat)
                raise
        return seat

    def _existing(self, tenant: object, options: Options) -> _Seat[One] | None:
        """The tenant's own seat, else a free one."""
        for seat in list(self._seats):
            if not seat.busy and not (seat.simulator and seat.simulator.alive):
                self._drop(seat)
        usable = [seat for seat in self._seats if not seat.busy and seat.options == options]
        own = next((seat for seat in usable if seat.tenant is tenant), None)
        return own or next((seat for seat in usable if seat.tenant is None), None)

    def _used_last(self, options: Options) -> _Seat[One] | None:
        # Episodes take turns, so the one used longest ago would be taken from its environment just before it is needed.
        usable = [seat for seat in self._seats if not seat.busy and seat.options == options]
        return max(usable, key=lambda seat: seat.used, default=None)

    def _may_start(self, options: Options, most: int) -> bool:
        kin = [seat for seat in self._seats if seat.options == options]
        if len(kin) >= most:
            return False
        wanted, free = (options.heap + BESIDE_HEAP) * MIB, self._free()
        if free is None or free >= wanted:
            return True
        if kin:
            return False
        raise UserError(
            f"a ScienceWorld simulator wants {wanted // MIB} MiB of free memory and {free // MIB} MiB are free; close other programs, or "
            f"lower its argument heap (now {options.heap} MiB)"
        )

    def _free_up(self, seat: _Seat[One]) -> None:
        with self._changed:
            self._clock += 1
            seat.busy, seat.used = False, self._clock
            self._changed.notify()

    def _drop(self, seat: _Seat[One]) -> None:
        with self._changed:
            if seat in self._seats:
                self._seats.remove(seat)
            self._changed.notify()
        if seat.simulator:
            seat.simulator.close()

    def _forget(self) -> None:
        """In a process that was forked off: the simulators are the parent's, and so is the holder of the lock."""
        self._changed = threading.Condition()
        for seat in self._seats:
            if seat.simulator:
                seat.simulator.disown()
        self._seats = []
