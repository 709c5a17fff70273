"""What came to nothing is counted and told, an end names its cause and no setting that is on already, a world that breaks stops a stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from players import PLACES, Breaking, erratic, steady

from leafe.config import parse
from leafe.distillation.causes import why_no_example
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import EngineError, UserError
from leafe.evaluation.outcomes import read_outcomes
from leafe.experiment import Experiment, ForestSpec, explore_tasks
from leafe.forest.faults import Faults, alarms, fault_cells, faults_of, loud
from leafe.forest.first_wave import forget_failures
from leafe.forest.store import read_forest
from leafe.lab import measure_base
from leafe.progress import Silent
from leafe.records import (
    Attempt,
    Completion,
    Experience,
    Observation,
    Reflection,
    Shortening,
    StopReason,
    Task,
    Tree,
    Turn,
    Usage,
)
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.worlds.fakes import Lookup

RECIPE = """
name: trial
model: DIR
environment: {name: lookup, args: {places: 3, horizon: 2}}
prompts: full
history: {keep: all}
sampling: {act: {max_tokens: 16}, reflect: {max_tokens: 48}}
tasks: {train: 12, test: 12}
explore: {turns: 6, max_attempts: 3}
evaluate: {samples: 2, resamples: 10}
"""


def config(*overrides: str) -> RunConfig:
    return parse(RECIPE, "trial", overrides)


def turn(index: int, *, attempt: int = 0, parsed: bool = True, finish: str = "stop", shortening: Shortening = Shortening()) -> Turn:
    reply = Completion("open place1", (1,), (0.0,), finish=finish)  # type: ignore[arg-type]
    parent = None if index == 1 else f"{attempt}/{index - 1}"
    seen = Observation("Empty.")
    return Turn(f"{attempt}/{index}", parent, index, attempt, "open place1", parsed, reply, seen, shortening=shortening)


def ended(stop: StopReason, index: int = 0, *, error: str | None = None, leaf: str | None = None) -> Attempt:
    return Attempt(index, 0, stop, stop is StopReason.SUCCESS, float(stop is StopReason.SUCCESS), leaf, error=error)


def tree(
    turns: tuple[Turn, ...] = (), attempts: tuple[Attempt, ...] = (ended(StopReason.TURN_LIMIT),), *reflections: Reflection
) -> Tree:
    task = Task("a", "lookup", "Find the key.", 4)
    return Tree(task, "tree", Observation("Places."), turns, attempts, reflections, Usage(len(turns)))


CUT, STOPPED, FULL = Completion("<think>", finish="length"), Completion("hm"), Completion("", finish="context")
UNREAD = Reflection(0, 2, (STOPPED, STOPPED), None, "it names no turn")
UNREAD_CUT = Reflection(0, 2, (STOPPED, CUT), None, "it names no turn")
NO_ROOM = Reflection(0, 2, (FULL,), None, "no room")
NOTHING = Reflection(0, 2, (STOPPED,))
READ = Reflection(0, 2, (STOPPED,), Experience(1, "look in place2"))


def test_each_share_is_counted_over_what_it_is_a_share_of() -> None:
    turns = (
        turn(1, parsed=False, finish="length"),
        turn(2, finish="length"),
        turn(3, parsed=False, shortening=Shortening(observations=1)),
        turn(4, shortening=Shortening(thoughts=2)),
        turn(5, finish="repetition"),
        *(turn(number, finish="closed") for number in (6, 7, 8)),
        *(turn(number) for number in (9, 10)),
    )
    attempts = (
        ended(StopReason.TOKEN_LIMIT),
        ended(StopReason.ENVIRONMENT_ERROR, 1, error="EnvironmentFailure: lookup: LookupError: no key"),
        ended(StopReason.ENVIRONMENT_ERROR, 2, error="EnvironmentFailure: lookup: LookupError: no key"),
        ended(StopReason.REPLAY_DIVERGED, 3, error="ReplayDiverged: elsewhere"),
    )
    found = faults_of([tree(turns, attempts, UNREAD, UNREAD_CUT, NO_ROOM, NOTHING), tree((), (), READ)])
    assert found == Faults(
        replies=10,
        no_action=0.2,
        cut=0.2,
        closed=0.3,
        repeated=0.1,
        shortened=0.2,
        attempts=4,
        out_of_room=0.25,
        broken=0.75,
        error="lookup: LookupError: no key",
        reflections=5,
        unread=0.4,
        unread_cut=0.2,
        no_room=0.2,
        errors={"EnvironmentFailure": 2, "ReplayDiverged": 1},
    )
    assert fault_cells(found) == ("20.0", "20.0", "30.0", "10.0", "20.0", "25.0", "75.0", "40.0", "20.0")


def test_what_was_not_counted_is_a_dash_and_raises_no_alarm() -> None:
    assert faults_of([]) == Faults()
    assert set(fault_cells(Faults())) == {"-"} and not alarms(Faults(), config()) and not list(loud(Faults()))


def test_an_error_is_told_on_one_line_without_what_a_terminal_would_obey() -> None:
    attempt = ended(StopReason.ENVIRONMENT_ERROR, error="EnvironmentFailure: lookup: OSError: \x1b[31mgone\n\ud800" + "x" * 500)
    error = faults_of([tree((), (attempt,))]).error
    assert error is not None and error.startswith("lookup: OSError: \ufffd[31mgone \ufffdxxx") and len(error) == 200


def test_what_is_not_all_is_never_called_all_of_it() -> None:
    (sentence,) = alarms(Faults(replies=1000, cut=0.999), config())
    assert sentence.startswith("99 % of replies were cut")


@pytest.mark.parametrize(
    ("faults", "sentence"),
    [
        (Faults(no_action=0.96, cut=0.91), "96 % of replies held no action; 91 % of replies were cut at sampling.act.max_tokens=16: "),
        (Faults(no_action=1.0, cut=1.0), "no reply held an action; every reply was cut at sampling.act.max_tokens=16: raise it"),
        (Faults(no_action=0.6, cut=0.1), "60 % of replies held no action: read some on the page, and what prompts=full asks for"),
        (Faults(cut=0.6), "60 % of replies were cut at sampling.act.max_tokens=16: raise it"),
        (Faults(unread=1.0, unread_cut=0.9), "no reflection could be read; 90 % of reflections were cut at sampling.reflect.max_tokens=48"),
        (Faults(broken=1.0, error="it hurts"), "every attempt broke, most often by `it hurts`; type: leafe check-env lookup places=3"),
    ],
)  # fmt: skip
def test_a_high_share_is_a_sentence_with_the_setting_to_change(faults: Faults, sentence: str) -> None:
    (found,) = alarms(faults, config())
    assert found.startswith(sentence)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["engine.max_context=512"], "in engine.max_context=512: raise it or set history.keep=fit"),
        (["engine.max_context=512", "history.keep=fit"], "in engine.max_context=512: raise it"),
        ([], "in the context of the model: set history.keep=fit"),
        (["history.keep=fit"], "in the context of the model: ask for shorter replies than sampling.act.max_tokens="),
    ],
)
def test_a_full_context_names_only_what_is_not_on_already(overrides: list[str], sentence: str) -> None:
    attempts, reflections = alarms(Faults(out_of_room=0.8, no_room=1.0), config(*overrides))
    assert attempts.startswith(f"80 % of attempts ran out of room {sentence}")
    assert reflections.startswith(f"every reflection found no room {sentence}")
    assert ("history.keep=fit" in attempts) == ("history.keep=fit" not in overrides)


def test_a_share_of_half_is_still_no_alarm() -> None:
    half = Faults(no_action=0.5, cut=0.5, out_of_room=0.5, broken=0.04, unread=0.5, no_room=0.5)
    assert not alarms(half, config()) and not list(loud(half))


def test_a_twentieth_of_broken_attempts_is_told_with_their_number() -> None:
    few, some = (Faults(attempts=40, broken=count / 40, error="it hurts") for count in (1, 2))
    assert not alarms(few, config())
    (sentence,) = alarms(some, config())
    assert sentence.startswith(
        "2 of 40 attempts (5 %) broke and count as failures, most often by `it hurts`; type: leafe check-env lookup"
    )


BRANCHED = (
    ended(StopReason.TURN_LIMIT, leaf="0/1"),
    Attempt(1, 1, StopReason.TURN_LIMIT, False, 0.0, "1/1", 0, 1, "look in place2"),
)


@pytest.mark.parametrize(
    ("forest", "overrides", "cause"),
    [
        (tree((), ()), [], "no attempt was made"),
        (tree((turn(1, parsed=False, finish="length"),)), [], "no reply held an action; every reply was cut at sampling.act.max_tokens=16"),
        (tree((turn(1, parsed=False), turn(2, parsed=False))), ["distill.qualify=any"], "no reply held an action: read some on the page"),
        (tree((turn(1),), (ended(StopReason.TOKEN_LIMIT),)), [], "every attempt ran out of room"),
        (
            tree((), (ended(StopReason.ENVIRONMENT_ERROR, error="EnvironmentFailure: lookup: LookupError: no key"),)),
            [],
            "the world broke in every attempt, most often by `lookup: LookupError: no key`; type: leafe check-env lookup",
        ),
        (tree((turn(1),), (ended(StopReason.TURN_LIMIT),), UNREAD), [], "no attempt succeeded; no reflection could be read"),
        (tree((turn(1),), (ended(StopReason.TURN_LIMIT),), NO_ROOM), [], "no attempt succeeded; every reflection found no room"),
        (
            tree((turn(1),), (ended(StopReason.TURN_LIMIT),), NOTHING, UNREAD),
            [],
            "no attempt succeeded; 1 of 2 reflections found nothing to do better, the other 1 could not be read",
        ),
        (tree((turn(1),), (ended(StopReason.TURN_LIMIT),), READ), [], "no attempt succeeded; the budget ended before a branch was begun"),
        (tree((turn(1),)), ["explore.max_depth=0"], "no attempt succeeded; explore.max_depth=0 leaves no branch to reflect for: raise it"),
        (tree((turn(1),), (ended(StopReason.BUDGET),)), [], "no attempt succeeded; no attempt was reflected on; 1 of 1 ended by budget"),
        (
            tree((turn(1), turn(1, attempt=1)), BRANCHED, READ),
            [],
            "no attempt succeeded; no branch improved on its parent: explore with a larger budget, as explore.turns=12, or set distill.qua",
        ),
        (
            tree((turn(1), turn(1, attempt=1)), BRANCHED, READ),
            ["distill.qualify=any"],
            "no attempt succeeded; no branch began with an action that was not in its advice word for word",
        ),
        (
            tree((turn(1),), (ended(StopReason.SUCCESS, leaf="0/1"),)),
            ["distill.success_share=0.0"],
            "distill.success_share=0 rehearses none of the 1 successes: raise it; no attempt was reflected on",
        ),
    ],
)  # fmt: skip
def test_a_forest_without_examples_names_its_cause(forest: Tree, overrides: list[str], cause: str) -> None:
    found = why_no_example([forest], config(*overrides))
    assert found.startswith(cause)
    assert "qualify=any" not in found or "distill.qualify=any" not in overrides


class Doorless(Lookup):
    """Cannot be set up until somebody mends it; `bad` says for which tasks."""

    def __init__(self, bad: Callable[[Task], bool] = lambda task: True, **settings: int) -> None:
        super().__init__(**settings)
        self._bad = bad

    def reset(self, task: Task) -> Observation:
        if self._bad(task):
            raise LookupError("no such door")
        return super().reset(task)


def experiment(make: Callable[[], Environment], *overrides: str, fail_after: int | None = None) -> Experiment:
    def engine(folder: Path) -> ScriptedEngine:
        return ScriptedEngine(erratic(PLACES), fail_after=fail_after, concurrency=12)

    return Experiment(config("prompts=terse", *overrides), Path("none"), engine, make, Silent())


def spec(folder: Path) -> ForestSpec:
    return ForestSpec("tree", 5, Path("none"), folder / "forest.jsonl", folder / "journal.jsonl")


BROKE = r"every attempt so far \(.*\) broke, most often by `lookup: LookupError: no such door`; none of them is kept: .*check-env lookup"


def test_an_exploration_whose_world_breaks_at_once_stops_and_goes_on_when_the_world_is_mended(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=BROKE):
            explore_tasks(experiment(Doorless), "explore", spec(tmp_path))
    assert list(read_forest(tmp_path / "forest.jsonl")) == []
    mended = explore_tasks(experiment(Lookup), "explore", spec(tmp_path))
    (tmp_path / "other").mkdir()
    assert mended == explore_tasks(experiment(Lookup), "explore", spec(tmp_path / "other"))
    assert len(mended) == 12 and not any(attempt.error for one in mended for attempt in one.attempts)


def test_a_few_bad_tasks_among_good_ones_stop_nothing_though_they_end_first(tmp_path: Path) -> None:
    tasks = experiment(Lookup).tasks("train")
    bad = {task.id for task in tasks[1:]}
    trees = explore_tasks(experiment(lambda: Doorless(lambda task: task.id in bad)), "explore", spec(tmp_path))
    broken = [one for one in trees if all(attempt.stop is StopReason.ENVIRONMENT_ERROR for attempt in one.attempts)]
    assert len(broken) == 11 and len(list(read_forest(tmp_path / "forest.jsonl"))) == 12


def test_an_exploration_that_was_fine_before_is_not_stopped_by_a_bad_rest(tmp_path: Path) -> None:
    with pytest.raises(EngineError):
        explore_tasks(experiment(Lookup, fail_after=60), "explore", spec(tmp_path))
    done = len(list(read_forest(tmp_path / "forest.jsonl")))
    assert 0 < done < 12
    assert len(explore_tasks(experiment(Doorless), "explore", spec(tmp_path))) == 12


def test_only_tasks_that_the_world_failed_are_forgotten(tmp_path: Path) -> None:
    explore_tasks(experiment(lambda: Breaking(odds=0.05)), "explore", spec(tmp_path))
    before = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    failed = {line["key"] for line in before if "error" in line}
    forget_failures(tmp_path / "journal.jsonl")
    after = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    assert 0 < len(failed) < 12 and after == [line for line in before if line.get("key") not in failed]


def test_a_measurement_whose_world_breaks_at_once_stops_and_keeps_no_failure(tmp_path: Path) -> None:
    here = experiment(Doorless)
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        with pytest.raises(UserError, match=BROKE):
            measure_base(here, run)
        assert read_outcomes(run.evaluation("base")) == () and not run.stages
        measure_base(experiment(Lookup), run)
        assert len(read_outcomes(run.evaluation("base"))) == 24 and run.stages["evaluate base"]["attempts"] == 24


def test_a_stage_says_at_once_what_makes_its_figures_mean_little(tmp_path: Path) -> None:
    class Heard(Silent):
        """Remembers what is said."""

        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    heard = Heard()
    here = replace(experiment(Lookup), progress=heard, load_engine=lambda folder: ScriptedEngine(steady("no\nidea", "hm")))
    with RunDirectory.open(tmp_path / "run", here.config) as run:
        measure_base(here, run)
    assert heard.lines == ["evaluate base: no reply held an action: prompts=terse is for the bundled models; set prompts=full"]
