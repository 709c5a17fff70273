"""A growing tree: its turns, attempts and reflections, and their costs.

The rules set the budgets; the builder counts. The budget is in turns of the policy and, optionally, in tokens; replayed steps and
reflections are counted apart. Everything here is a function of the rules and of the results that were fed in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from leafe.chat import Prompts, Scene
from leafe.digest import digest, seed_for
from leafe.history import History
from leafe.records import Ask, Attempt, Completion, Message, Observation, Reflection, Sampling, Task, Tree, Turn, Usage
from leafe.replies import text_for_world


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules for exploring one task.

    `turns` and `tokens` are budgets a task (0 tokens: no such budget); `reflect_every` is K of the paper (0: only at the end);
    `patience` is how many replies in a row may hold no action before the attempt is given up; `history` is the part of its history that
    an attempt's prompts contain. Without `can_roll_back` a reset may show something else each time, and experiences become feedback to
    fresh attempts. With `new_luck` a branch draws the world's randomness anew from its first step on. The first prompt of every attempt
    contains `notes`, then what `recall` returns for the task and its first observation, then the lessons of earlier attempts. After
    `stop_when_solved` successes no further attempt starts (0: no such limit). `memory` is how many experiences a verbal retry reads.
    `closing` are the tokens for the answer of a reply that was cut before it (0: it stays cut). With `free_text` every text is an action
    in the world, which is given what a reply says beside its thoughts where no action can be read.
    """

    prompts: Prompts
    seed: int
    turns: int
    act: Sampling = Sampling()
    reflect: Sampling = Sampling(max_tokens=64)
    tokens: int = 0
    max_attempts: int = 8
    max_depth: int = 4
    reflect_every: int = 0
    reflect_on_failure: bool = True
    patience: int = 4
    can_roll_back: bool = True
    history: History = History()
    new_luck: bool = False
    notes: tuple[str, ...] = ()
    recall: Callable[[Task, Observation], tuple[str, ...]] | None = None
    stop_when_solved: int = 0
    memory: int = 3
    closing: int = 0
    free_text: bool = False


@dataclass
class TreeBuilder:
    """The mutable side of one task's exploration."""

    task: Task
    rules: Rules
    root: Observation | None = None  # the observation of the first reset, and of every other one if rollback is promised
    shown: Observation | None = None  # the observation of the present attempt's reset
    spend: Usage = Usage()
    turns: list[Turn] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    reflections: list[Reflection] = field(default_factory=list)
    _asks: int = 0
    _scene: Scene | None = None
    _recalled: tuple[Scene, Rules, tuple[str, ...]] | None = None

    @property
    def scene(self) -> Scene:
        """The scene that prompts are rendered from, once the task was reset."""
        shown = self.shown or Observation("")
        if self._scene is None or self._scene.root is not shown or self._scene.prompts is not self.rules.prompts:
            self._scene = Scene(self.rules.prompts, self.task, shown)
        return self._scene

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes in the prompt of every attempt at this task."""
        scene, rules = self.scene, self.rules
        if rules.recall is None:
            return rules.notes
        if self._recalled is None or self._recalled[0] is not scene or self._recalled[1] is not rules:
            self._recalled = (scene, rules, rules.recall(self.task, scene.root))
        return (*rules.notes, *self._recalled[2])

    def exhausted(self) -> bool:
        """Whether the task's budget leaves no further turn."""
        return self.spend.turns >= self.rules.turns or self.out_of_tokens()

    def out_of_tokens(self) -> bool:
        """Whether the policy has written as much as the task's budget allows."""
        tokens = self.spend.sampled_tokens + self.spend.reflection_tokens
        return bool(self.rules.tokens and tokens >= self.rules.tokens)

    def may_start(self) -> bool:
        """Whether another attempt may begin."""
        return not self.exhausted() and len(self.attempts) < self.rules.max_attempts and not self.solved()

    def solved(self) -> bool:
        """Whether the task was solved as often as the rules want it."""
        enough = self.rules.stop_when_solved
        return bool(enough) and sum(attempt.success for attempt in self.attempts) >= enough

    def ask_to_act(self, attempt: int, messages: tuple[Message, ...]) -> Ask:
        """A request for the next action of an attempt, with its own seed."""
        return Ask(messages, self.rules.act, self._seed(attempt), "act")

    def ask_to_reflect(self, attempt: int, messages: tuple[Message, ...]) -> Ask:
        """A request for a reflection on an attempt, with its own seed."""
        return Ask(messages, self.rules.reflect, self._seed(attempt), "reflect")

    def luck(self, start: Start, own: Sequence[Turn]) -> int | None:
        """The new seed of the world's randomness for the step after an attempt's `own` turns; None if it continues unchanged."""
        branches = self.rules.new_luck and start.branches and not any(turn.stepped for turn in own)
        return self._luck_of(len(self.attempts)) if branches else None

    def lucks(self, trajectory: Sequence[Turn]) -> tuple[int | None, ...]:
        """The new seeds of the world's randomness of a trajectory's steps, empty if there were none."""
        if not self.rules.new_luck:
            return ()
        before = (None, *(turn.attempt for turn in trajectory))
        first = [turn.attempt != earlier for turn, earlier in zip(trajectory, before, strict=False)]
        branch = [self.attempts[turn.attempt].turn is not None for turn in trajectory]
        return tuple(
            self._luck_of(turn.attempt) if new and own else None for turn, new, own in zip(trajectory, first, branch, strict=True)
        )

    def _luck_of(self, attempt: int) -> int:
        return seed_for(self.rules.seed, self.task.id, attempt, "luck")

    def _seed(self, attempt: int) -> int:
        self._asks += 1
        return seed_for(self.rules.seed, self.task.id, attempt, self._asks)

    def add_completion(self, completion: Completion) -> None:
        """Counts an action's tokens, which are spent even if the environment then breaks and no turn is kept."""
        self._pay(prompt_tokens=completion.prompt_tokens, sampled_tokens=completion.drawn)

    def add_turn(self, turn: Turn) -> None:
        """Keeps a turn that the policy took and counts it."""
        self.turns.append(turn)
        self._pay(turns=1)

    def add_expert_turn(self, turn: Turn) -> None:
        """Keeps a turn that the environment's expert took, which costs the policy nothing."""
        self.turns.append(turn)
        self._pay(expert_steps=1)

    def add_discarded(self) -> None:
        """Counts a reply without the new action that was wanted."""
        self._pay(discarded=1)

    def add_reflection(self, reflection: Reflection) -> None:
        """Keeps a reflection and counts the tokens of all its replies and of the prompts that were answered."""
        self.reflections.append(reflection)
        replies = reflection.replies
        self._pay(
            reflections=1,
            reflection_tokens=sum(reply.drawn for reply in replies),
            question_tokens=sum(reply.prompt_tokens for reply in replies if reply.finish != "context"),
        )

    def add_rollback(self) -> None:
        """Counts a requested rollback, whether it will succeed or not."""
        self._pay(rollbacks=1)

    def add_replayed(self, steps: int) -> None:
        """Counts the environment steps that a rollback replayed."""
        self._pay(replayed_steps=steps)

    def _pay(self, **amounts: int) -> None:
        self.spend = replace(self.spend, **{name: getattr(self.spend, name) + amount for name, amount in amounts.items()})

    def turn_id(self, attempt: int, index: int) -> str:
        """The id of a turn: its task, its attempt and its index."""
        return digest(self.task.id, attempt, index)

    def tree(self, method: str) -> Tree:
        """The tree so far, frozen."""
        root = self.root or Observation("")
        return Tree(self.task, method, root, tuple(self.turns), tuple(self.attempts), tuple(self.reflections), self.spend)


@dataclass(frozen=True, slots=True)
class Start:
    """The start of an attempt: after `trajectory`, with `advice` in its first prompt or `feedback` in all of them.

    With a `parent` and neither of them it goes back to a turn of its parent without any advice.
    """

    trajectory: tuple[Turn, ...] = ()
    depth: int = 0
    parent: int | None = None
    advice: str | None = None
    feedback: tuple[str, ...] = ()

    @property
    def branches(self) -> bool:
        """Whether the attempt begins at a rollback."""
        return self.advice is not None or (self.parent is not None and not self.feedback)


def last_id(trajectory: Sequence[Turn]) -> str | None:
    """The id that a trajectory ends at, None at the root."""
    return trajectory[-1].id if trajectory else None


def unread(completion: Completion, *, free_text: bool = False) -> str:
    """The text for the environment if a reply holds no action: the reply itself, on one line, or with `free_text` what it says."""
    return text_for_world(completion.text) if free_text else " ".join(completion.text.split())[:500]
