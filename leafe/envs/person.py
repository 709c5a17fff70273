"""A person playing an environment: lines in, lines out, so that a terminal, a test or a chat window can drive it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from leafe.envs.base import Environment, Fidelity
from leafe.envs.world import World
from leafe.errors import EpisodeError
from leafe.records import Task


def person_plays(environment: Environment, task: Task, lines: Iterable[str]) -> Iterator[str]:
    """Plays one task with the actions in `lines`; `back N` rolls back to turn N, an empty line leaves.

    An action is a line, or where it may have several, the lines up to a full stop alone or to the end of the fence that it begins with.
    Yields the text to show after each action.
    """
    world = World(environment)
    help_text = f"{environment.actions_help} " if environment.actions_help else ""
    help_text += "A line with a full stop alone ends what you write. " if environment.several_lines else ""
    back = "" if world.fidelity is Fidelity.NONE else "`back N` goes back to turn N, "
    yield f"{task.instruction} {task.horizon} turns. {help_text}{back}an empty line leaves."
    yield f"\n1. {world.reset(task).text}"
    for typed in _typed(iter(lines), several=environment.several_lines):
        if not typed:
            return
        over = "That is the end, without success." if world.observation.done else "No turns are left."
        if _turn_named(typed) is None and (world.observation.done or world.turn > task.horizon):
            yield over
            continue
        try:
            shown = _answer(world, typed)
            yield f"\n{world.turn}. {shown}"
        except ValueError as error:
            yield str(error)
            continue
        except EpisodeError as error:  # the state of the world is unknown
            yield f"The game is over: {error}"
            return
        if world.observation.success:
            taken = world.turn - 1
            yield f"Solved in {taken} turn{'s' if taken > 1 else ''}."
            return
        if world.observation.done:
            yield "That is the end, without success."


def _typed(lines: Iterator[str], *, several: bool) -> Iterator[str]:
    """The text typed at each turn."""
    for line in lines:
        first = line.strip()
        if not several or not first or _turn_named(first) is not None:
            yield first
            continue
        mark = first[:3] if first.startswith(("```", "~~~")) else "."
        written = [line.rstrip("\r\n")]
        for further in lines:
            if further.strip() == mark:
                break
            written.append(further.rstrip("\r\n"))
        yield "\n".join([*written, mark] if mark != "." else written)


def _turn_named(typed: str) -> int | None:
    word, _, number = typed.partition(" ")
    return int(number) if word == "back" and number.isdecimal() else None


def _answer(world: World, typed: str) -> str:
    turn = _turn_named(typed)
    if turn is not None and world.fidelity is Fidelity.NONE:
        raise ValueError(f"{world.environment.name} cannot go back.")
    return (world.step(typed) if turn is None else world.rollback(turn)).text
