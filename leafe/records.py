"""The domain: frozen records. `encode` and `decode`, which convert them to JSON and back, can be imported from here too.

A turn is stored once. A tree is turns with a parent; an attempt is a trajectory from its leaf to the root; an example is a trajectory plus
a target. Every message says whether the policy sampled it, and loss masks come from that, never from roles. Turns count from 1:
turn `t` is the action taken in the state after `t - 1` actions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from math import isfinite
from typing import Any, Literal

from leafe.encoding import OMITTED
from leafe.encoding import decode as decode
from leafe.encoding import encode as encode


class StopReason(StrEnum):
    """Why an attempt ended. Endings by the environment and endings by a limit of ours never share a name."""

    SUCCESS = "success"
    FAILURE = "failure"  # the environment ended the episode without success
    TURN_LIMIT = "turn_limit"  # the task's horizon
    TOKEN_LIMIT = "token_limit"  # the model's context is full
    BUDGET = "budget"  # the task's interaction budget is used up
    ONE_STEP = "one_step"  # only the result of one action was wanted
    PARSE_ERROR = "parse_error"  # too many replies in a row that hold no action
    ROLLED_BACK = "rolled_back"  # abandoned for an earlier turn, from which another attempt goes on
    REPLAY_DIVERGED = "replay_diverged"
    ENVIRONMENT_ERROR = "environment_error"
    STEP_TIMEOUT = "step_timeout"  # the environment took longer than environment.timeout
    CANCELLED = "cancelled"


# Endings caused by our infrastructure and not by the policy. They are counted and never reflected or trained on.
BROKEN = frozenset({StopReason.REPLAY_DIVERGED, StopReason.ENVIRONMENT_ERROR, StopReason.STEP_TIMEOUT, StopReason.CANCELLED})
UNJUDGED = BROKEN | {StopReason.BUDGET}  # and those that the budget of their task cut: what they would have come to is not known


@dataclass(frozen=True, slots=True)
class Task:
    """One problem: `payload` is what the environment needs to set it up, JSON only; `horizon` is in turns."""

    id: str
    env: str
    instruction: str
    horizon: int
    payload: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """The environment's answer. `done` is its own ending, `success` its verdict; `info` is JSON and never shown to a policy."""

    text: str
    done: bool = False
    success: bool = False
    reward: float = 0.0
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message. `sampled` is true when the policy wrote it."""

    role: Literal["system", "user", "assistant"]
    content: str
    sampled: bool = False


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is drawn: natural-log temperature scaling, nucleus mass, and the most tokens to draw.

    A completion that writes the same `max_repeats` times in a row is ended there (`engines/repetition.py`); 0 lets it go on.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 16
    max_repeats: int = field(default=0, metadata=OMITTED)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to the policy. `seed` alone decides the draw; `purpose` is for counting and for what the prompt was made for.

    `begun` is the beginning of the reply, which the completion continues and does not contain.
    """

    messages: tuple[Message, ...]
    sampling: Sampling
    seed: int
    purpose: Literal["act", "reflect"] = "act"
    begun: str = field(default="", metadata=OMITTED)


Finish = Literal["stop", "length", "repetition", "closed", "context"]


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion that an engine drew. `token_ids` are the sampled ids, the end token included, with one log-probability each.

    `finish` is `stop` (the model ended), `length` (`max_tokens`), `repetition` (`max_repeats`) or `context` (the prompt left no room;
    nothing was drawn). A reply that was given an end is `closed`; not all of its text was sampled, so it has no ids.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    finish: Finish = "stop"
    prompt_tokens: int = 0
    counted: int = 0  # tokens drawn, as counted by a server that does not return them

    @property
    def drawn(self) -> int:
        """How many tokens were drawn."""
        return self.counted or len(self.token_ids)


@dataclass(frozen=True, slots=True)
class Experience:
    """The content of a reflection: the turn that went wrong (`1 ..`) and what to do instead, in words."""

    turn: int
    text: str


@dataclass(frozen=True, slots=True)
class Shortening:
    """The parts that a prompt left out: the thoughts of the first `thoughts` turns, the observations of the first `observations`.

    The observation of a turn is the environment's answer to it. The task, the first observation and every action stay.
    """

    thoughts: int = 0
    observations: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """One action and its observation. `experience` is the advice in the prompt of this very turn, if any.

    `parsed` is false when the reply held no action. The environment then received the reply's text as it was, or, where the prompts have
    a message for that, nothing at all: `stepped` is false and the observation is that message. `shortening` is what the turn's own prompt
    left out.
    """

    id: str
    parent: str | None
    index: int
    attempt: int
    action: str
    parsed: bool
    completion: Completion
    observation: Observation
    experience: str | None = None
    stepped: bool = True
    shortening: Shortening = Shortening()


def taken(trajectory: Sequence[Turn]) -> tuple[Turn, ...]:
    """The turns of a trajectory whose actions the environment received; they alone lead back to its state."""
    return tuple(turn for turn in trajectory if turn.stepped)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at the task, from the root or from a branching turn of an earlier attempt.

    `parent` and `turn` are the attempt that was reflected on and the turn it was rolled back to; both are None for a try from the
    root. `leaf` is the last turn of the trajectory, which for an attempt that took no turn is the branching point's own history. `root` is
    its own first observation where that is not the tree's root, which only happens where nothing can be rolled back. `by` names
    who chose its actions.
    """

    index: int
    depth: int
    stop: StopReason
    success: bool
    reward: float
    leaf: str | None
    parent: int | None = None
    turn: int | None = None
    experience: str | None = None
    error: str | None = None
    root: Observation | None = None
    by: Literal["policy", "environment"] = field(default="policy", metadata=OMITTED)


@dataclass(frozen=True, slots=True)
class Reflection:
    """The policy's replies to a reflection on an attempt after `after_turn` turns, and the experience if one of them parsed."""

    attempt: int
    after_turn: int
    replies: tuple[Completion, ...]
    experience: Experience | None = None
    error: str | None = None

    @property
    def no_room(self) -> bool:
        """Whether the model's context left no room to reflect, even over the shortest history: not the policy's fault."""
        return bool(self.replies) and self.replies[-1].finish == "context"

    @property
    def unread(self) -> bool:
        """Whether the policy answered and no answer could be read."""
        return self.error is not None and not self.no_room


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a task's exploration. `turns` is what the budget counts; the rest is counted apart.

    `expert_steps` were taken by an environment's expert. `discarded` replies were drawn where a new action was wanted, and held none.
    `question_tokens` are those of the prompts that asked for reflections, `reflection_tokens` those of the replies.
    """

    turns: int = 0
    prompt_tokens: int = 0
    sampled_tokens: int = 0
    replayed_steps: int = 0
    rollbacks: int = 0
    reflections: int = 0
    reflection_tokens: int = 0
    expert_steps: int = field(default=0, metadata=OMITTED)
    discarded: int = field(default=0, metadata=OMITTED)
    question_tokens: int = field(default=0, metadata=OMITTED)

    def __add__(self, other: Usage) -> Usage:
        """The sum of both costs."""
        return Usage(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(Usage)})

    @property
    def figures(self) -> dict[str, int]:
        """The cost as a stage reports it: turns and tokens of acting always, the rest where it is not 0."""
        always = {"turns": self.turns, "prompt_tokens": self.prompt_tokens, "sampled_tokens": self.sampled_tokens}
        counted = ("reflection_tokens", "replayed_steps", "rollbacks", "expert_steps", "discarded")
        rest = {name: getattr(self, name) for name in counted}
        return always | {name: amount for name, amount in rest.items() if amount}


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything that was tried on one task. `method` names the explorer: `tree`, `independent`, `refine` or `retry`."""

    task: Task
    method: str
    root: Observation
    turns: tuple[Turn, ...]
    attempts: tuple[Attempt, ...]
    reflections: tuple[Reflection, ...]
    spend: Usage

    def trajectory(self, leaf: str | None) -> tuple[Turn, ...]:
        """The turns from the root to `leaf`, both ends included."""
        by_id = {turn.id: turn for turn in self.turns}
        path: list[Turn] = []
        while leaf is not None:
            path.append(by_id[leaf])
            leaf = by_id[leaf].parent
        return tuple(reversed(path))

    def within(self, turns: int) -> Tree:
        """The same tree with only those attempts that had ended when it had taken so many turns; the turns all stay."""
        taken, kept = Counter(turn.attempt for turn in self.turns), []
        for attempt in self.attempts:  # which take their turns one after the other
            turns -= taken[attempt.index]
            if turns < 0:
                break
            kept.append(attempt)
        return replace(self, attempts=tuple(kept))

    def branch_turns(self) -> Iterator[tuple[Attempt, Turn]]:
        """Each attempt that started at a rollback, with the revised turn it took there."""
        first = {turn.attempt: turn for turn in reversed(self.turns)}
        for attempt in self.attempts:
            if attempt.turn is not None and attempt.index in first:
                yield attempt, first[attempt.index]

    def revisions(self) -> Iterator[tuple[Attempt, tuple[Turn, ...]]]:
        """Each attempt that read an experience, with the turns at which it did: the first after a rollback, else all of its own."""
        for attempt in self.attempts:
            own = tuple(turn for turn in self.turns if turn.attempt == attempt.index)
            if attempt.experience is not None and own:
                yield attempt, own if attempt.turn is None else own[:1]

    def root_of(self, turn: Turn) -> Observation:
        """The first observation of a turn's history."""
        return self.attempts[turn.attempt].root or self.root


ROUNDING = 1e-3  # by how much rounded probabilities may sum to more than one


@dataclass(frozen=True, slots=True)
class Target:
    """One target token of an example, and the values that losses beyond plain cross-entropy read.

    `weight` is multiplied by the example's. `logprob` is the natural log-probability that the sampling policy gave the token, `reference`
    that of a reference policy. `top` is a teacher's distribution over the next token, `((id, probability), ...)`, and may leave out a rest.
    Raises `ValueError` for values that are no such numbers.
    """

    id: int
    weight: float = field(default=1.0, metadata=OMITTED)
    logprob: float | None = field(default=None, metadata=OMITTED)
    reference: float | None = field(default=None, metadata=OMITTED)
    top: tuple[tuple[int, float], ...] = field(default=(), metadata=OMITTED)

    def __post_init__(self) -> None:
        wrong: tuple[str, object] = ("" if isfinite(self.weight) else "a finite weight", self.weight)
        for name, value in {"logprob": self.logprob, "reference": self.reference}.items():
            if value is not None and not (isfinite(value) and value <= ROUNDING):
                wrong = f"{name} as a natural log-probability, at most 0", value
        shares = [share for _, share in self.top]
        numbers = all(token >= 0 and share >= 0 for token, share in self.top) and len(dict(self.top)) == len(shares)
        if self.top and not (numbers and 0 < sum(shares) <= 1 + ROUNDING):
            wrong = "top as probabilities of different ids, above 0 and at most 1 together", self.top
        if wrong[0]:
            raise ValueError(f"target {self.id}: wanted {wrong[0]}, found {wrong[1]!r:.80}")


@dataclass(frozen=True, slots=True)
class Example:
    """One training example: an experience-free prompt, and the sampled ids that the loss is taken on.

    `origin` is the turn's id, `attempt` the attempt that sampled it; with `task` they lead back to the forest. Examples of a task with the
    same `group` are compared with one another, as the attempts at one prompt or the two sides of a preference, and go into one optimiser
    step; those of one attempt in it are one sequence. `targets` describe each target id; without them all are plain. Raises `ValueError`
    where the ids of both differ.
    """

    id: str
    kind: str
    task: str
    attempt: int
    origin: str
    messages: tuple[Message, ...]
    target: str
    target_ids: tuple[int, ...]
    weight: float = 1.0
    group: str = field(default="", metadata=OMITTED)
    targets: tuple[Target, ...] = field(default=(), metadata=OMITTED)

    def __post_init__(self) -> None:
        ids = tuple(target.id for target in self.targets)
        if self.targets and ids != self.target_ids:
            raise ValueError(f"example {self.id}: wanted targets with the ids {self.target_ids!r:.80}, found {ids!r:.80}")

    @property
    def counts(self) -> bool:
        """Whether any of it has a weight, without which nothing is learned from it."""
        return self.weight != 0 and (not self.targets or any(target.weight != 0 for target in self.targets))
