"""Questions that a memory asks the policy, each with one retry that names what was wrong with the first reply.

The texts are files of a profile, as all prompts are. A question that a profile lacks is not asked. If the retry cannot be read
either, that is counted and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from leafe.chat import fill, question_messages
from leafe.digest import seed_for
from leafe.forest.builder import TreeBuilder
from leafe.forest.effects import Play
from leafe.forest.play import Played
from leafe.forest.reflect import NO_ROOM, TRIES, answer
from leafe.prompts import load_questions
from leafe.records import Ask, Completion, Message, Reflection, Sampling, Shortening
from leafe.replies import ParseFailure

if TYPE_CHECKING:
    from leafe.lab import Lab

Answer = TypeVar("Answer")
Reader = Callable[[str, bool], Answer]  # a reply's text and whether it is whole; raises `ParseFailure`
AGAIN = {"memory_again": {"problem"}}


@dataclass
class Asked:
    """The cost so far of questions that belong to no attempt."""

    questions: int = 0
    unread: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


@dataclass(frozen=True)
class Questions:
    """The questions of a method, in the texts of a profile. `seed` is for the answers to those that belong to no attempt."""

    texts: dict[str, str]
    sampling: Sampling
    seed: int
    asked: Asked

    @classmethod
    def of(cls, lab: Lab, places: dict[str, set[str]]) -> Questions:
        """The questions in a run's profile; `places` are the placeholders that each may use. Raises `UserError` for any other one."""
        config = lab.config
        texts = load_questions(config.prompts, lab.experiment.declared.name, {**places, **AGAIN})
        return cls(texts, config.sampling.reflect.sampling(), lab.seed("memory"), Asked())

    def __contains__(self, name: str) -> bool:
        return name in self.texts

    def text(self, name: str, values: Mapping[str, str | int], *, problem: str = "", also: str = "") -> str:
        """A question, with the text `also` behind it if the profile has it; in the retry with the problem of the first reply."""
        again = fill(self.texts["memory_again"], problem=problem) if problem and "memory_again" in self.texts else ""
        return fill(self.texts[name], **values) + self.texts.get(also, "") + again

    def about(
        self, builder: TreeBuilder, played: Played, name: str, *, read: Reader[Answer], also: str = ""
    ) -> Play[Answer | None]:
        """The answer to a question about a finished attempt, kept with its tree as a reflection; None if it cannot be read."""
        attempt, trajectory = played.attempt.index, played.trajectory
        shortening, replies = trajectory[-1].shortening, list[Completion]()
        found, error = None, ""
        outcome = "It reached its goal." if played.attempt.success else "It did not reach its goal."
        for _ in range(TRIES):
            asked = self.text(name, {"turn": len(trajectory), "outcome": outcome}, problem=error, also=also)

            def question(short: Shortening, asked: str = asked) -> tuple[Message, ...]:
                return question_messages(builder.scene, trajectory, asked, ended=True, notes=builder.notes, shortening=short)

            reply, shortening = yield from answer(builder, attempt, trajectory, question=question, shortening=shortening)
            replies.append(reply)
            if reply.finish == "context":
                error = NO_ROOM
                break
            try:
                found, error = read(reply.text, reply.finish != "length"), ""
                break
            except ParseFailure as failure:
                error = str(failure)
        builder.add_reflection(Reflection(attempt, len(trajectory), tuple(replies), None, error or None))
        return found

    def apart(self, key: str, name: str, *, read: Reader[Answer], **values: str | int) -> Play[Answer | None]:
        """The answer to a question that is about no attempt; `key` is unique to it. None if it cannot be read."""
        error = ""
        self.asked.questions += 1
        for number in range(TRIES):
            message = Message("user", self.text(name, values, problem=error).strip())
            reply: Completion = yield Ask((message,), self.sampling, seed_for(self.seed, key, number), "reflect")
            if reply.finish == "context":
                break
            self.asked.tokens += reply.drawn
            self.asked.prompt_tokens += reply.prompt_tokens
            try:
                return read(reply.text, reply.finish != "length")
            except ParseFailure as failure:
                error = str(failure)
        self.asked.unread += 1
        return None
