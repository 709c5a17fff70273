"""The loop of every on-policy method, which learns from its own attempts.

    [sample groups -> one optimiser step or several -> take the new weights] x steps

The budget is that of `explore`: turns a training task times tasks. Unless `steps` is set, as many steps are planned as it holds if every
attempt is as long as it can be; training ends when the rest would not hold one more group. Turns of groups that teach nothing count, and
others are sampled until one teaches. A killed run continues from the learner's state and the journal of its last step, with the same
batches and the same weights, as far as the engine draws the same for the same weights.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leafe.distillation.store import read_examples, write_examples
from leafe.engines.scoring import with_references
from leafe.errors import UserError
from leafe.forest.builder import Rules
from leafe.forest.driver import Rollout, drive
from leafe.forest.faults import Faults, by_class, check_command, share
from leafe.forest.first_wave import WAVE, all_broke, forget_failures
from leafe.forest.journal import Journal
from leafe.jsonl import Appender, read_lines, write_bytes_atomically, write_lines
from leafe.on_policy.groups import Groups, OnPolicySettings
from leafe.records import BROKEN, Example, Task, Tree, Turn
from leafe.run import RunDirectory
from leafe.stages import Made, Policy, Stage

if TYPE_CHECKING:
    from leafe.engines.base import Engine
    from leafe.lab import Lab
    from leafe.training.learner import Learner, StepReport

STEPS = "steps.jsonl"
NOTHING = "no group taught anything, so there was nothing to learn from; the arm is the model that training starts from"
IDLE = "no attempt at any task took a turn"
FINISHED = {"length": "cut", "closed": "closed", "repetition": "repeated"}
FAULTS = ("no_action", *FINISHED.values())
TRACKED = ("attempts", "successes", "turns", "examples", "loss", "gradient_norm", "learning_rate")  # by `report_to`
COUNTED = (
    "turns",
    "prompt_tokens",
    "sampled_tokens",
    "replayed_steps",
    "rollbacks",
    "reflection_tokens",
    "question_tokens",
)  # of `Usage`


def on_policy_stages(lab: Lab, run: RunDirectory, settings: OnPolicySettings, groups: Groups) -> Iterable[Stage]:
    """Measuring the base, training, measuring the arm. Raises `UserError` if the budget holds no step."""
    training = _Training(lab, run, settings, groups)
    yield lab.measure(run, "base", Policy(lab.base))
    yield Stage(training.name, training.work, verb="train")
    yield lab.measure(run, groups.arm, lab.trained(run, groups.arm), needs=(training.name,))


@dataclass
class _Batch:
    """The groups of one step, and their examples."""

    examples: list[Example]
    position: int = 0  # in the order of tasks, at which the next step continues
    groups: int = 0
    empty: int = 0
    attempts: int = 0
    successes: int = 0
    spend: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTED, 0))
    faults: Counter[str] = field(default_factory=Counter)  # turns by fault
    broken: int = 0
    errors: Counter[str] = field(default_factory=Counter)  # broken attempts by class
    idle: int = 0  # groups since the last in which a turn was taken
    lost: list[list[str]] = field(
        default_factory=list
    )  # groups since the last that did not break whole, by the errors of their attempts

    def pay(self, trees: Sequence[Tree]) -> None:
        """Counts the cost of a group, and what went wrong in it."""
        attempts = [attempt for tree in trees for attempt in tree.attempts]
        self.attempts += len(attempts)
        self.successes += sum(attempt.success for attempt in attempts)
        errors = [attempt.error or attempt.stop.value for attempt in attempts if attempt.stop in BROKEN]
        self.broken += len(errors)
        self.lost = [*self.lost, errors] if len(errors) == len(attempts) else []
        self.errors.update(by_class((attempt.stop, attempt.error) for attempt in attempts))
        self.faults.update(name for tree in trees for turn in tree.turns for name in _faults_of(turn))
        self.idle = 0 if any(tree.spend.turns for tree in trees) else self.idle + 1
        for name in COUNTED:
            self.spend[name] += sum(getattr(tree.spend, name) for tree in trees)

    def told(self) -> dict[str, Any]:
        """The figures of the batch; those of faults if there were any."""
        counts = {name: getattr(self, name) for name in ("groups", "empty", "attempts", "successes", "position")}
        broken = {"broken": self.broken, "errors": dict(sorted(self.errors.items()))} if self.broken else {}
        return {**counts, "examples": sum(map(_teaches, self.examples)), **self.spend, **self.faults, **broken}


def _faults_of(turn: Turn) -> list[str]:
    """The faults of a turn's reply, by the names that `Faults` has for them."""
    ending = FINISHED.get(turn.completion.finish)
    return [*(["no_action"] if not turn.parsed else []), *([ending] if ending else [])]


def _teaches(example: Example) -> bool:
    """Whether an example has a gradient."""
    return example.weight != 0 and any(target.weight for target in example.targets)


def _shares(lines: Sequence[Mapping[str, Any]]) -> Faults:
    """The faults of all steps, from their records."""

    def total(name: str) -> int:
        return sum(line.get(name, 0) for line in lines)

    errors: Counter[str] = sum((Counter(line.get("errors", {})) for line in lines), Counter())
    replies, attempts = total("turns"), total("attempts")
    return Faults(
        replies=replies,
        attempts=attempts,
        broken=share(total("broken"), attempts),
        error=max(errors, key=lambda name: errors[name], default=None),
        errors=errors,
        no_action=share(total("no_action"), replies),
        cut=share(total("cut"), replies),
        closed=share(total("closed"), replies),
        repeated=share(total("repeated"), replies),
    )


class _Training:
    """The stage: sampling and learning in turn. Its files are in a folder of the run, named as the arm, until the model is complete."""

    def __init__(self, lab: Lab, run: RunDirectory, settings: OnPolicySettings, groups: Groups) -> None:
        self.lab, self.run, self.settings, self.groups, self.experiment = lab, run, settings, groups, lab.experiment
        self.arm, self.name = groups.arm, f"train {groups.arm}"
        self.schema = f"leafe.{self.arm}-steps/1"
        self.tasks = self.experiment.tasks("train")
        self.folder = run.path / self.arm
        self.reference: Engine | None = None
        self.budget = self.experiment.config.explore.turns * len(self.tasks)
        self.longest_group = groups.most_turns(max(task.horizon for task in self.tasks))
        needed = settings.groups * self.longest_group
        if self.budget < needed:
            raise UserError(
                f"the budget of {len(self.tasks)} tasks x {self.budget // len(self.tasks)} turns = {self.budget} does not hold one step of"
                f" {settings.groups} groups of up to {self.longest_group} turns = {needed}; type"
                f" explore.turns={-(-needed // len(self.tasks))}, or make {self.arm}.groups or the groups smaller"
            )
        self.steps = settings.steps or self.budget // needed
        if self.name not in run.stages:
            lab.start(settings.start)  # refused now if it is no model

    def work(self) -> Made:
        """Trains to the end of the budget, from the point at which a killed run ended."""
        self.run.check(self.experiment.base)
        out, kept = self.run.checkpoint(self.arm), self.run.path / f"{self.arm}-steps.jsonl"
        over = self.folder.with_name(f"{self.arm}.over")
        shutil.rmtree(over, ignore_errors=True)
        if self.folder.exists() or not (out.exists() and kept.exists()):
            self.folder.mkdir(exist_ok=True)
            learner = self._trained()
            shutil.rmtree(out, ignore_errors=True)  # left by a run that was killed before its folder was removed
            learner.save(out)
            write_bytes_atomically(kept, (self.folder / STEPS).read_bytes())
            self.folder.rename(over)  # atomic, so that a run killed while the folder is emptied does not train again
            shutil.rmtree(over)
        lines = self._last_words(kept)
        names = ("examples", "groups", "empty", "attempts", "successes", *COUNTED)
        totals = {name: sum(line.get(name, 0) for line in lines) for name in names}
        losses = [line["loss"] for line in lines if "loss" in line]
        told: dict[str, Any] = {"loss": round(losses[-1], 4)} if losses else {}
        faults = {name: number for name in (*FAULTS, "broken") if (number := sum(line.get(name, 0) for line in lines))}
        if note := "" if losses else NOTHING if totals["turns"] else f"{IDLE}; {NOTHING}":
            told["note"] = note
            self.experiment.progress.say(f"{self.name}: {note}")
        self.experiment.sound_alarms(self.name, _shares(lines))
        return Made({"steps": len(losses) * self.settings.passes, **totals, **faults, **told}, [out, kept])

    def _trained(self) -> Learner:
        """The learner at the end of its steps."""
        self.experiment.free()
        wanted, start = self.settings, self.lab.start(self.settings.start)
        learner = self.lab.clipping_learner(
            self.folder / "learner",
            self.arm,
            start,
            steps=self.steps * wanted.passes,
            low=wanted.low,
            high=wanted.high,
            kl=wanted.kl,
            entropy=wanted.entropy,
            normalise=wanted.normalise,
        )
        with Appender(self.folder / STEPS, self.schema):
            pass  # the file exists even if nothing is learned
        self.experiment.with_engine(start, lambda engine: self._with_reference(engine, learner), here=True)
        return learner

    async def _with_reference(self, engine: Engine, learner: Learner) -> None:
        """Trains; if the divergence counts, with a second engine on the model that training starts from."""
        if not self.settings.kl:
            await self._train(engine, learner)
            return

        async def work(reference: Engine) -> None:
            self.reference = reference
            await self._train(engine, learner)

        await self.experiment.awith_engine(learner.checkpoint, work, here=True)

    async def _referenced(self, examples: list[Example]) -> list[Example]:
        """The examples with the log-probabilities of their targets under the reference."""
        return await with_references(self.reference, examples) if self.reference else examples

    async def _train(self, engine: Engine, learner: Learner) -> None:
        passes = self.settings.passes
        self._forget_after(*divmod(learner.done, passes))
        with self.experiment.progress.stage(self.name, self.budget, "turns") as gauge:
            gauge.advance(sum(line["turns"] for line in self._lines()))
            while learner.done < learner.steps:
                step, behind = divmod(learner.done, passes)
                batch = self._begun(step) if behind else None
                if batch is None:
                    batch = await self._fresh(engine, learner, step)
                    gauge.advance(batch.spend["turns"])
                if not batch.examples:
                    self._note(step, batch)
                    break  # the budget is spent, or no attempt takes a turn
                for number in range(behind, passes):
                    report = learner.step(batch.examples)
                    if number == 0:
                        self._note(step, batch, report)
                    if self._keeps(learner, step):
                        learner.state(self.folder / "learner")
                for path in (self._journal(step), self._examples(step)):
                    path.unlink(missing_ok=True)

    def _forget_after(self, step: int, behind: int) -> None:
        """Removes what a killed run made after the learner's state was kept: other weights would have made it."""
        lines = self._lines()
        kept = [line for line in lines if line["step"] <= step + bool(behind)]
        if len(kept) < len(lines):
            write_lines(self.folder / STEPS, self.schema, kept)
        for path in self.folder.glob("step-*.jsonl"):
            if int(path.name.removeprefix("step-").partition(".")[0]) > step + 1:
                path.unlink()

    def _keeps(self, learner: Learner, step: int) -> bool:
        """Whether the state is kept now: by default after every pass, since a batch that was partly learned from cannot be drawn again."""
        every, over = self.experiment.config.train.save_every, learner.done % self.settings.passes == 0
        return not every or learner.done == learner.steps or (over and (step + 1) % every == 0)

    def _begun(self, step: int) -> _Batch | None:
        """The kept batch of a step of which a killed run took some passes: the new weights would score it differently."""
        path = self._examples(step)
        return _Batch(list(read_examples(path))) if path.exists() else None

    async def _fresh(self, engine: Engine, learner: Learner, step: int) -> _Batch:
        """A batch sampled from the learner's weights, within the rest of the budget."""
        lines = self._lines()[:step]
        left = self.budget - sum(line["turns"] for line in lines)
        if learner.done:
            await self._hand_over(engine, learner)
        batch = await self._sample(engine, step, lines[-1]["position"] if lines else 0, left)
        batch.examples = await self._referenced(batch.examples)
        if self.settings.passes > 1:
            write_examples(self._examples(step), batch.examples)
        return batch

    async def _hand_over(self, engine: Engine, learner: Learner) -> None:
        """Gives the engine the learner's weights: at once where it is in this process, else through a folder that the next one replaces."""
        if take := getattr(engine, "take", None):
            await take(learner.weights())
            return
        weights = self.folder / "weights"
        shutil.rmtree(weights, ignore_errors=True)
        learner.save(weights)
        await engine.load(weights)

    async def _sample(self, engine: Engine, step: int, position: int, left: int) -> _Batch:
        """The groups of a step, from `position` in the order of tasks, with at most `left` turns."""
        batch, path = _Batch([], position), self._journal(step)
        rules = self.experiment.rules(self.lab.seed(self.arm, step))
        journal, most = Journal(path), min(WAVE, len(self.tasks))
        try:
            while len(batch.lost) < most and (count := self._more(batch, batch.position - position, left)):
                drawn = [(number, self._task(number)) for number in range(batch.position, batch.position + count)]
                played = await self._played(engine, journal, {number: self._plays(number, task, rules) for number, task in drawn})
                taught = await asyncio.gather(
                    *(self.groups.learn(f"{step}-{number}", played[number], engine) for number, _ in drawn)
                )
                for (number, _), examples in zip(drawn, taught, strict=True):
                    batch.pay(played[number])
                    batch.groups += bool(examples)
                    batch.empty += not examples
                    batch.examples += examples
                batch.position += count
        finally:
            journal.close()
        if len(batch.lost) >= most:
            forget_failures(path)
            raise all_broke([error for group in batch.lost for error in group], check_command(self.experiment.config))
        return batch

    def _more(self, batch: _Batch, drawn: int, left: int) -> int:
        """How many groups to draw for a batch of which so many were drawn; while none teaches, others are drawn even if not `dynamic`."""
        wanted = self.settings
        enough = max(wanted.groups, self.groups.rounds * len(self.tasks)) if wanted.dynamic else wanted.groups
        if batch.idle >= max(WAVE, len(self.tasks)):
            return 0
        fit = (left - batch.spend["turns"]) // self.longest_group
        return max(0, min(wanted.groups - batch.groups, fit, enough - drawn if batch.groups else fit))

    def _plays(self, number: int, task: Task, rules: Rules) -> list[Rollout[Tree]]:
        plays = self.groups.plays(number, task, rules)
        return [Rollout(f"{number}/{sample}", task, play) for sample, play in enumerate(plays)]

    async def _played(self, engine: Engine, journal: Journal, rollouts: dict[int, list[Rollout[Tree]]]) -> dict[int, list[Tree]]:
        """Plays all groups concurrently. The same task may occur twice, in two rounds of the order."""
        done: dict[str, Tree] = {}
        every = [rollout for group in rollouts.values() for rollout in group]
        runtime = self.experiment.runtime(engine, journal=journal)
        async with aclosing(drive(every, runtime, concurrency=engine.concurrency)) as finished:
            async for rollout, tree in finished:
                done[rollout.key] = tree
        return {number: [done[rollout.key] for rollout in group] for number, group in rollouts.items()}

    def _task(self, place: int) -> Task:
        """The task at a place of the order, which is drawn anew each time that all tasks were drawn."""
        number, within = divmod(place, len(self.tasks))
        order = list(range(len(self.tasks)))
        random.Random(self.lab.seed(self.arm, "order", number)).shuffle(order)
        return self.tasks[order[within]]

    def _journal(self, step: int) -> Path:
        return self.folder / f"step-{step + 1}.journal.jsonl"

    def _examples(self, step: int) -> Path:
        return self.folder / f"step-{step + 1}.examples.jsonl"

    def _lines(self) -> list[dict[str, Any]]:
        return self._last_words(self.folder / STEPS)

    def _last_words(self, path: Path) -> list[dict[str, Any]]:
        """The record of each step. If the learner was killed before it kept its state, a step has two records, and the last one counts."""
        found = {line["step"]: line for line in read_lines(path, self.schema)} if path.exists() else {}
        return [found[number] for number in sorted(found)]

    def _note(self, step: int, batch: _Batch, report: StepReport | None = None) -> None:
        """Keeps the record of a step before the learner's state counts it; without a report nothing could be learned."""
        line: dict[str, Any] = {"step": step + 1, **batch.told()}
        if report is not None:
            line |= {"loss": report.loss, "gradient_norm": report.gradient_norm, "learning_rate": report.learning_rate}
            line |= report.figures
            tracked = {name: line[name] for name in (*TRACKED, *report.figures)}
            self.experiment.tracker.log(self.name, step + 1, tracked)
        with Appender(self.folder / STEPS, self.schema) as lines:
            lines.append(line)
