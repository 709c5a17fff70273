"""The lessons of the bundled model, each as one packed row, whatever the world.

A `Teacher` knows a world's solver and yields `Lesson`s: an episode played badly on purpose, good reflections on it, and the play that
follows their advice. A lesson becomes one trie: the episode is the trunk, each reflection and each advised
continuation is a branch, and every prompt is rendered by `leafe.chat`, as it will be when the model is used. Acting is taught towards
a distribution (how often a careless player takes each action), reflecting and following towards a single answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from leafe.chat import Prompts, fill, turn_text
from leafe.distillation.pack import PackedRow, Trie
from leafe.records import Experience, Task
from leafe.replies import render_reflection


@dataclass(frozen=True, slots=True)
class Move:
    """One turn of a lesson: the player's habits (action to probability), the action taken, the observation after it.

    `plan` is the best continuation from there, in the words of an experience; empty where nothing helps any more. `advice` is an
    experience from an earlier attempt in the prompt of this turn, empty where there is none.
    """

    habits: Mapping[str, float]
    action: str
    observation: str
    plan: str = ""
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Lookback:
    """A reflection after `after_turn` turns; `followed` are the moves from the named turn on with the advice in the prompt."""

    after_turn: int
    ended: bool
    experience: Experience | None
    followed: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class Lesson:
    """One episode with everything taught on it."""

    task: Task
    start: str
    moves: tuple[Move, ...]
    lookbacks: tuple[Lookback, ...]


class Teacher(Protocol):
    """Makes lessons of a world."""

    def lessons(self, seed: int) -> Iterator[Lesson]:
        """An endless stream, a function of the seed."""
        ...


@dataclass(frozen=True)
class Stage:
    """A part of the training: `share` of all steps on episodes of at most `longest` turns, a share `jumbled` of them jumbled.

    The teacher decides what a jumbled episode is, and whether there are any.
    """

    share: float
    longest: int
    jumbled: float = 0.0


@dataclass(frozen=True)
class Curriculum:
    """A world that can be taught: the environment whose prompts are used, the stages, and the teacher of each."""

    prompts: str
    stages: tuple[Stage, ...]
    teacher: Callable[[Stage], Teacher]

    def about(self) -> dict[str, object]:
        """A checkpoint's description of the curriculum that it was trained by."""
        return {"prompts": self.prompts, "stages": [asdict(stage) for stage in self.stages]}


@dataclass(frozen=True, slots=True)
class Weights:
    """The weight of each kind of loss term. The method depends on reflections, so they outweigh acting."""

    act: float = 1.0
    reflect: float = 2.0
    recall: float = 2.0
    follow: float = 1.0
    drill: float = 2.0
    end: float = 0.1


# A question that only lessons ask, at every turn: it teaches the best move on a board for a few tokens; a reflection takes an episode.
DRILL = "\nBest?"


class Writer:
    """Turns lessons into packed rows with one tokenizer and one set of prompts."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompts: Prompts, weights: Weights = Weights()) -> None:
        self._tokenizer, self._prompts, self._weights = tokenizer, prompts, weights
        self._cache: dict[str, list[int]] = {}
        self._end: int = tokenizer.encode("<|end|>", add_special_tokens=False)[0]

    def row(self, lesson: Lesson) -> PackedRow:
        """The lesson as one row."""
        trie = Trie()
        opened = self._open_turns(trie, lesson)
        for number, move in enumerate(lesson.moves):
            node = trie.extend(self._advised(trie, opened[number], move), self._ids("<|end|><|assistant|>"))
            self._act(trie, node, move, self._weights.act)
            if move.plan:
                self._answer(trie, opened[number], DRILL, move.plan, weight=self._weights.drill)
        for after_turn, ended in {(lookback.after_turn, lookback.ended): None for lookback in lesson.lookbacks}:
            self._recall(trie, self._asked(trie, opened[after_turn], after_turn, ended), lesson, after_turn)
        for lookback in lesson.lookbacks:
            self._reflect(trie, opened[lookback.after_turn], lesson, lookback)
            if lookback.experience is not None and lookback.followed:
                self._follow(trie, opened[lookback.experience.turn - 1], lesson, lookback)
        return trie.row()

    @staticmethod
    def corpus(prompts: Prompts, lessons: Iterable[Lesson]) -> Iterator[str]:
        """The lessons' plain texts, for learning the tokenizer's merges."""
        for lesson in lessons:
            observation = lesson.start
            for number, move in enumerate(lesson.moves, start=1):
                yield turn_text(prompts, lesson.task, number, observation)
                yield move.action
                observation = move.observation
            for lookback in lesson.lookbacks:
                yield (
                    prompts.reflect_end
                    + prompts.reflect
                    + prompts.experience
                    + render_reflection(prompts.form, lookback.experience)
                )

    def _open_turns(self, trie: Trie, lesson: Lesson) -> list[int]:
        """The node right after each turn's observation, before its message ends: turn 1 at index 0, one more after the last move."""
        if self._prompts.system:
            raise ValueError("the bundled model's prompts have no system message")
        node, observation, opened = 0, lesson.start, []
        for number in range(len(lesson.moves) + 1):
            node = trie.extend(
                node, self._ids("<|user|>") + self._ids(turn_text(self._prompts, lesson.task, number + 1, observation))
            )
            opened.append(node)
            if number < len(lesson.moves):
                move = lesson.moves[number]
                node = trie.extend(self._advised(trie, node, move), self._ids("<|end|><|assistant|>"))
                node = trie.extend(node, [*self._ids(move.action), self._end])
                observation = move.observation
        return opened

    def _advised(self, trie: Trie, node: int, move: Move) -> int:
        """The node after the advice that the move was made with, if any."""
        return trie.extend(node, self._ids(fill(self._prompts.experience, experience=move.advice))) if move.advice else node

    def _act(self, trie: Trie, node: int, move: Move, weight: float) -> None:
        taken = tuple(self._ids(move.action))
        known = {tuple(self._ids(action)): share for action, share in move.habits.items()}
        shared = Counter(ids[:length] for ids in known for length in range(1, len(ids)))
        for ids, share in known.items():
            inner = node
            for length, token in enumerate(ids, start=1):
                trie.target(inner, token, weight * share)
                if shared[ids[:length]] < 2 and ids[:length] != taken[:length]:
                    break  # the rest is no choice any more, and is taught where the action is taken
                inner = trie.extend(inner, [token])
        trie.target(trie.extend(node, self._ids(move.action)), self._end, self._weights.end)

    def _asked(self, trie: Trie, node: int, after_turn: int, ended: bool) -> int:
        """The node at which the answer to a reflection prompt begins."""
        question = fill(self._prompts.reflect_end if ended else self._prompts.reflect, turn=after_turn)
        return trie.extend(node, self._ids(question) + self._ids("<|end|><|assistant|>"))

    def _reflect(self, trie: Trie, node: int, lesson: Lesson, lookback: Lookback) -> None:
        node = self._asked(trie, node, lookback.after_turn, lookback.ended)
        if lookback.experience is not None:
            header, observation = self._recalled(lesson, lookback.experience.turn)
            node = self._say(trie, node, header, self._weights.reflect)
            node = self._say(trie, node, observation, self._weights.recall)
        answer = [*self._ids(render_reflection(self._prompts.form, lookback.experience)), self._end]
        self._say(trie, node, answer, self._weights.reflect)

    def _recall(self, trie: Trie, node: int, lesson: Lesson, after_turn: int) -> None:
        """Every turn so far copied, with its number given: fetching an old turn is the hardest thing to learn here."""
        for turn in range(1, after_turn + 1):
            header, observation = self._recalled(lesson, turn)
            self._say(trie, trie.extend(node, header), observation, self._weights.recall)

    def _recalled(self, lesson: Lesson, turn: int) -> tuple[list[int], list[int]]:
        """A turn's number and its observation, word for word: the policy copies that before it judges."""
        observation = lesson.start if turn == 1 else lesson.moves[turn - 2].observation
        text = fill(self._prompts.turn, turn=turn, observation=observation, horizon=lesson.task.horizon) + "\n"
        ids, header = self._ids(text), self._ids(text[: text.index(observation)])
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, header, strict=False)))
        return ids[:shared], ids[shared:]  # the header's last blank may belong to the first word of the observation

    def _answer(self, trie: Trie, node: int, question: str, text: str, *, weight: float) -> None:
        node = trie.extend(node, self._ids(question) + self._ids("<|end|><|assistant|>"))
        self._say(trie, node, [*self._ids(text), self._end], weight)

    @staticmethod
    def _say(trie: Trie, node: int, ids: Sequence[int], weight: float) -> int:
        """Targets along a path of its own; the node at its end."""
        for token in ids:
            trie.target(node, token, weight)
            node = trie.extend(node, [token])
        return node

    def _follow(self, trie: Trie, node: int, lesson: Lesson, lookback: Lookback) -> None:
        assert lookback.experience is not None
        node = trie.extend(node, self._ids(fill(self._prompts.experience, experience=lookback.experience.text)))
        for offset, move in enumerate(lookback.followed):
            node = trie.extend(node, self._ids("<|end|><|assistant|>"))
            self._act(trie, node, move, self._weights.follow)
            if offset + 1 < len(lookback.followed):
                text = turn_text(self._prompts, lesson.task, lookback.experience.turn + offset + 1, move.observation)
                node = trie.extend(node, [*self._ids(move.action), self._end, *self._ids("<|user|>"), *self._ids(text)])

    def _ids(self, text: str) -> list[int]:
        """Token ids of a piece that begins and ends where the tokenizer always cuts."""
        if text not in self._cache:
            if len(self._cache) > 50_000:
                self._cache.clear()
            self._cache[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._cache[text]


def batches(rows: Iterator[PackedRow], tokens: int) -> Iterator[Sequence[PackedRow]]:
    """Groups of rows whose padded size stays under `tokens`."""
    group: list[PackedRow] = []
    longest = 0
    for row in rows:
        longest_now = max(longest, len(row.ids))
        if group and longest_now * (len(group) + 1) > tokens:
            yield group
            group, longest_now = [], len(row.ids)
        group.append(row)
        longest = longest_now
    if group:
        yield group
