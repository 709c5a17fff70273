"""Questions with one answer each and a function that grades it, like single-turn tasks of `verifiers`, but with several tries.

`data` is a file of JSON lines. `reward` is `module:function`; like a reward function there it names the arguments that it wants out of
`prompt` and `completion` (lists of messages), `answer`, `info`, `task` and `state`, beside those `reply` (the text alone) and `row`,
and may be asynchronous. It returns a number, or a number and a text that the agent reads before its next try. A `ValueError` is its
complaint about the answer: no reward, and the agent reads the message. Any other error costs the attempt. The state is the
conversation so far, so a rollback grades nothing again.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from leafe.digest import canonical, digest, seed_for
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.rows import blank, read_row
from leafe.envs.seeds import SPLITS, for_too_few, split_named
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.imports import import_here
from leafe.records import Observation, Task

GIVEN = ("prompt", "completion", "answer", "info", "task", "state", "reply", "row")
LONGEST_COMPLAINT = 500  # characters of an error's message, which may quote the whole answer


class SingleTurn(Environment):
    """`question` and `answer` name the fields of a line; a question may be text or a list of messages.

    A line's own `split` decides where it belongs; of those without one eight of ten are for training, by their content. A reward of
    `success_reward` ends the episode; `horizon` is how many tries there are.
    """

    name = "single-turn"
    about = "questions from JSON lines (data=PATH), graded by a function of yours (reward=module:function)"
    fidelity = Fidelity.SNAPSHOT
    placement = Placement.THREAD  # graders may take long
    free_text = True
    actions_help = "Anything you write is your answer."

    def __init__(
        self,
        *,
        data: str,
        reward: str,
        question: str = "question",
        answer: str = "answer",
        horizon: int = 4,
        success_reward: float = 1.0,
    ) -> None:
        if horizon < 1:
            raise UserError(f"single-turn wants a horizon of at least 1 try; found {horizon}")
        self._data, self._fields = Path(data).expanduser(), (question, answer)
        if not self._data.is_file():
            raise UserError(f"single-turn finds no file {data}; give one of JSON lines, data=PATH")
        self._horizon, self._success_reward = horizon, success_reward
        self._grade = _grader(reward)
        self._row: Mapping[str, Any] = {}
        self._final: Observation | None = None

    def tasks(self, split: str, count: int, seed: int = 0) -> Sequence[Task]:
        """Lines of a split in a seeded order. Raises `UserError` when there are too few of them."""
        split = split_named(split)
        if split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        every = list(self._rows())
        rows = list({digest(row): row for row in every if _split_of(row) == split}.values())
        if len(rows) < count:
            held = {_split_of(row) for row in every}
            strange = sorted(held - set(SPLITS))
            others = f" and lines of other splits, {', '.join(strange)!s:.80}" if strange else ""
            raise UserError(
                f"single-turn: wanted {count} tasks of split {split!r}, found {len(rows)}{others} in {self._data};"
                f" {for_too_few(split, [other for other in SPLITS if other in held])}"
            )
        drawn = random.Random(seed_for(self.name, split, seed)).sample(rows, count)
        return [Task(f"single-turn-{digest(row)}", self.name, self._question(row), self._horizon, row) for row in drawn]

    def _rows(self) -> Iterator[dict[str, Any]]:
        with open(self._data, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if blank(line):
                    continue
                where = f"{self._data} line {number} holds no question"
                row = read_row(line, f"{where}: it")
                if not self._question(row).strip():
                    mend = (
                        f"every line wants to be a JSON object with a field {self._fields[0]!r}; name another with question=FIELD"
                    )
                    raise CorruptFile(f"{where}: {mend}")
                try:
                    canonical(row).encode()
                except ValueError as error:
                    raise CorruptFile(f"{where}: its text cannot be written to a file ({error}); fix that line") from None
                yield row

    def _question(self, row: Mapping[str, Any]) -> str:
        found = row.get(self._fields[0])
        messages = found if isinstance(found, list) else []
        texts = [str(message.get("content", "")) for message in messages if isinstance(message, dict)]
        return found if isinstance(found, str) else "\n\n".join(texts)

    def reset(self, task: Task) -> Observation:
        """Shows the question."""
        self._row, self._final = task.payload, None
        return Observation(self._question(self._row))

    def step(self, action: str) -> Observation:
        """Grades an answer. After a right one the last observation is repeated."""
        if self._final is not None:
            return self._final
        value, words = self._graded(action)
        success = value >= self._success_reward
        text = words.strip() or ("That is right." if success else f"That is not right. Reward: {value:g}.")
        observation = Observation(text, success, success, value)
        self._final = observation if success else None
        return observation

    def _graded(self, reply: str) -> tuple[float, str]:
        """The reward of an answer and the text for the agent."""
        offered = self._offered(reply)
        try:
            found = self._grade(offered)
            if inspect.isawaitable(found):
                found = asyncio.run(_awaited(found))
        except ValueError as error:
            return 0.0, str(error)[:LONGEST_COMPLAINT]
        return _reward_and_text(found)

    def _offered(self, reply: str) -> dict[str, Any]:
        """The arguments that the reward function may name, copied each time: it must not change the task."""
        row = json.loads(canonical(self._row))
        asked = row.get(self._fields[0])
        offered = {
            "prompt": asked if isinstance(asked, list) else [{"role": "user", "content": asked}],
            "completion": [{"role": "assistant", "content": reply}],
            "answer": row.get(self._fields[1]),
            "info": row.get("info", {}),
            "task": row.get("task", ""),
        }
        return {**offered, "state": dict(offered), "reply": reply, "row": row}

    def snapshot(self) -> Any:
        """The question and whether it is answered, immutable."""
        return self._row, self._final

    def restore(self, snapshot: Any) -> None:
        """Returns to a snapshot."""
        self._row, self._final = snapshot

    def example_actions(self) -> Sequence[str]:
        """The line's answer, where there is one, and a wrong one."""
        answer = self._row.get(self._fields[1])
        return [*([str(answer)] if answer is not None else []), "I do not know.", "0"]


def _split_of(row: Mapping[str, Any]) -> str:
    draw = seed_for("single-turn-split", row) % 10
    return split_named(str(row.get("split") or "")) or ("train" if draw < 8 else "valid" if draw == 8 else "test")


def _grader(spec: str) -> Callable[[Mapping[str, Any]], Any]:
    """Wraps a reward function, which names the arguments that it wants, as a function of all of them. Raises `UserError`."""
    module, colon, name = spec.partition(":")
    try:
        found = getattr(import_here(module), name, None) if colon else None
    except (ImportError, ValueError) as error:
        raise UserError(f"cannot import {module!r} for the reward function {spec!r}: {error}; write module:function") from error
    if not callable(found):
        raise UserError(f"{spec!r} is no reward function; write module:function, as graders:exact")
    parameters = inspect.signature(found).parameters.values()
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    strange = [one.name for one in named if one.name not in GIVEN and one.default is one.empty]
    if strange:
        raise UnknownName(f"argument of the reward function {spec}", strange[0], GIVEN)
    everything = any(one.kind is one.VAR_KEYWORD for one in parameters)
    wanted = GIVEN if everything else tuple(one.name for one in named if one.name in GIVEN)
    return lambda offered: found(**{name: offered[name] for name in wanted})


def _reward_and_text(found: Any) -> tuple[float, str]:
    """The reward and the text in the result of a reward function."""
    if isinstance(found, Mapping):
        found = (found["reward"], str(found.get("feedback", "")))
    value, words = found if isinstance(found, tuple) else (found, "")
    if not math.isfinite(float(value)):
        raise ValueError(f"the reward is {value}")
    return float(value), str(words)


async def _awaited(found: Any) -> Any:
    return await found
