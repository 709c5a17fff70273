"""Failures and interrupts of trainings in several processes: they end all of them, with what the person reads."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from launched import PATIENT, REFUSALS, fails, ignored, seven, tells, waits
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from leafe.errors import CorruptFile, UserError
from leafe.records import Example, Message
from leafe.settings import TrainSettings
from leafe.training.follow import Leader, follow
from leafe.training.launch import in_processes
from leafe.training.sft import fine_tune, help_training

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


@pytest.mark.parametrize(
    ("rank", "name"),
    [
        (1, "a sentence"),
        pytest.param(0, "an unknown name", marks=pytest.mark.slow),
        pytest.param(1, "a missing library", marks=pytest.mark.slow),
    ],
)
def test_a_refusal_in_one_process_ends_the_others_and_is_raised_once(rank: int, name: str, tmp_path: Path, capfd: Any) -> None:
    wanted = REFUSALS[name]()
    with pytest.raises(type(wanted)) as refused:
        in_processes(2, partial(fails, rank=rank, name=name, folder=tmp_path), ignored)
    assert type(refused.value) is type(wanted) and str(refused.value) == str(wanted)
    assert not (tmp_path / "waited").exists() and len(list(tmp_path.glob(f"begun-{rank}-*"))) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_another_failure_ends_the_others_and_is_raised_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ChildFailedError, match="RuntimeError: a fault of ours"):
        in_processes(2, partial(fails, rank=1, name="a fault of ours", folder=tmp_path), ignored)
    assert not (tmp_path / "waited").exists() and len(list(tmp_path.glob("begun-1-*"))) == 1  # it is not tried again


@pytest.mark.slow
def test_signals_do_after_a_training_what_they_did_before() -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    assert in_processes(2, seven, ignored) == 7
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.fixture
def heard() -> Iterator[None]:
    """An interrupt is not ignored, as it is where a shell has started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_a_training_ends_it_in_order(number: signal.Signals, heard: None) -> None:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    sent: list[float] = []

    def told(done: int, total: int) -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt):
        in_processes(2, waits, told)
    assert time.monotonic() - sent[0] < PATIENT
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


@pytest.mark.slow
def test_an_interrupt_whose_exception_is_lost_ends_a_training_too(heard: None) -> None:
    def loses(number: int, frame: object) -> None:  # as a finalizer does
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(PATIENT)

    before = signal.signal(signal.SIGUSR1, loses)
    try:
        with pytest.raises(KeyboardInterrupt):
            in_processes(2, waits, lambda done, total: os.kill(os.getpid(), signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.slow
def test_a_hangup_that_is_ignored_stays_ignored_during_a_training() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def told(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGHUP)

    try:
        assert in_processes(2, tells, told) == 7
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables by which two processes of a launcher find each other."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def refuses(job: str) -> None:
    """Refuses a job whose name says so."""
    if job == "too large":
        raise UserError(f"{job} does not fit")


def test_a_refusal_that_only_a_follower_has_ends_it(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Leader() as first:
        monkeypatch.setenv("RANK", "1")
        first.tell("too large")
        with pytest.raises(UserError, match="too large does not fit"):
            follow(refuses, grace=0.2)


def test_a_follower_is_refused_a_training_as_the_first_process_is(
    two: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{")
    example = Example("e", "rehearsal", "t", 0, "turn", (Message("user", "go"),), "left", (1,))
    with Leader():
        with pytest.raises(CorruptFile, match="cannot be loaded"):
            fine_tune(tmp_path, [example], tmp_path / "out", TrainSettings(), seed=1)
        monkeypatch.setenv("RANK", "1")
        with pytest.raises(CorruptFile, match="cannot be loaded"):
            follow(help_training, grace=0.2)


def test_a_refusal_that_the_first_process_has_too_is_reported_by_it(two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with Leader() as first:
        monkeypatch.setenv("RANK", "1")
        other = threading.Thread(target=follow, args=(refuses,))
        other.start()
        first.tell("too large")
        first.tell("small")
    other.join(30)
    assert not other.is_alive()
