"""GRPO and its relatives: groups of attempts, compared with one another by outcome, learned from step by step (arXiv 2402.03300).

    measure base -> [sample groups -> one optimiser step or several -> take the new weights] x steps -> measure

The budget is that of `explore`: turns a training task times tasks. As many steps are planned as it holds if every attempt is as long as it
can be, and training ends when what is left would not hold one more group; turns of groups that teach nothing count. The loss is on every
token that the policy sampled and on no other, `leafe.training.loss.ClippedRatio`; `advantage` chooses among `leafe.training.advantages`.
A killed run goes on from the learner's state and the journal of the step that it was in: the same batches, the same weights.

Where this differs from the paper:
1. An attempt of many turns is one sequence, whose tokens share one advantage.
2. The reward is success, or the environment's own reward (`reward`); there is no reward model.
3. Groups that are all right or all wrong are left out, and with `dynamic` others are sampled in their place (DAPO, arXiv 2503.14476).
4. Attempts that our plumbing broke are left out of their group.
5. The divergence from the reference is off unless `kl` is set, as in most later work.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from leafe.chat import Scene, bare_messages
from leafe.digest import digest
from leafe.errors import UserError
from leafe.evaluation.evaluate import attempt
from leafe.forest.driver import Rollout, drive
from leafe.forest.journal import Journal
from leafe.jsonl import Appender, read_lines, write_bytes_atomically
from leafe.methods.base import Made, Method, Policy, Settings, Stage, check_one_process
from leafe.records import BROKEN, Example, Target, Task, Tree
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.training.advantages import Advantage, advantages, teaches

if TYPE_CHECKING:
    from leafe.engines.base import Engine
    from leafe.lab import Lab
    from leafe.training.learner import Learner, StepReport

ARM = "grpo"
STEPS, STEPS_SCHEMA = "steps.jsonl", "leafe.grpo-steps/1"
NOTHING = "no group had attempts that succeeded and attempts that failed, so there was nothing to learn from; it is the base"


class GrpoSettings(Settings):
    """`groups` tasks a step, `size` attempts a group, `passes` optimiser steps on each batch.

    `low` and `high` are how far the ratio may go before it is clipped, `kl` the weight of the divergence from the model that training
    starts from. `normalise` is over what the loss is a mean (`targets`, `sequence`, or a number of tokens), `k` is that of `pkpo`.
    """

    groups: int = Field(8, ge=1)
    size: int = Field(8, ge=2)
    passes: int = Field(1, ge=1)
    advantage: Advantage = "grpo"
    k: int = Field(4, ge=1)
    reward: Literal["success", "reward"] = "success"
    dynamic: bool = True
    low: float = Field(0.2, gt=0)
    high: float = Field(0.2, gt=0)
    kl: float = Field(0.0, ge=0)
    normalise: Literal["targets", "sequence"] | int = "sequence"

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.advantage == "pkpo" and self.k >= self.size:
            raise ValueError(f"k: wanted less than the {self.size} attempts of a group, found {self.k}")
        return self


class Grpo(Method):
    """Outcome-driven reinforcement learning, with the budget that LEAFE explores with."""

    name = "grpo"
    summary = "groups of attempts compared by outcome, learned from on the way (GRPO, Dr. GRPO, RLOO, MaxRL, PKPO)"
    Settings = GrpoSettings

    def stages(self, lab: Lab, run: RunDirectory, settings: GrpoSettings) -> Iterable[Stage]:
        """As in the drawing above. Raises `UserError` where the budget holds no step."""
        training = _Training(lab, run, settings)
        yield lab.measure(run, "base", Policy(lab.base))
        yield Stage(f"train {ARM}", training.work, verb="train")
        yield lab.measure(run, ARM, lab.trained(run, ARM), needs=(f"train {ARM}",))

    def check(self, config: RunConfig, settings: GrpoSettings) -> None:
        """Raises `UserError` where log-probabilities or new weights cannot be had, or all attempts at a task would be the same."""
        if config.engine.kind != "transformers":
            raise UserError(
                f"method grpo gives the engine new weights at every step, which engine.kind={config.engine.kind} does not take;"
                " type engine.kind=transformers"
            )
        check_one_process(self.name, config)
        draw = config.sampling.act
        if draw.temperature == 0:
            raise UserError("method grpo compares different attempts at a task, and at temperature 0 they are all the same; type"
                            " sampling.act.temperature=1")  # fmt: skip
        if settings.kl and draw.temperature != 1:
            raise UserError("grpo.kl wants sampling.act.temperature=1, at which the reference is scored; type that, or grpo.kl=0")


@dataclass
class _Batch:
    """The groups of one step: rewards differ in each, and `examples` hold every sampled token with its advantage."""

    examples: list[Example]
    groups: int = 0
    empty: int = 0
    turns: int = 0
    successes: int = 0
    attempts: int = 0
    position: int = 0  # in the order of tasks, where the next step goes on


class _Training:
    """The stage: sampling and learning in turn. Its files lie in the run's folder `grpo` until the model is whole."""

    def __init__(self, lab: Lab, run: RunDirectory, settings: GrpoSettings) -> None:
        self.lab, self.run, self.settings, self.experiment = lab, run, settings, lab.experiment
        self.tasks = self.experiment.tasks("train")
        self.folder = run.path / ARM
        self.reference: Engine | None = None
        self.budget = self.experiment.config.explore.turns * len(self.tasks)
        longest = max(task.horizon for task in self.tasks)
        self.longest_group = settings.size * longest
        self.steps = self.budget // (settings.groups * self.longest_group)
        if not self.steps:
            needed = settings.groups * self.longest_group
            raise UserError(
                f"the budget of {len(self.tasks)} tasks x {self.budget // len(self.tasks)} turns = {self.budget} does not hold one step of"
                f" {settings.groups} groups x {settings.size} attempts x {longest} turns = {needed}; type"
                f" explore.turns={-(-needed // len(self.tasks))}, or smaller grpo.groups and grpo.size"
            )

    def work(self) -> Made:
        """Trains to the end of the budget, from where a killed run was."""
        self.run.check(self.experiment.base)
        out, kept = self.run.checkpoint(ARM), self.run.path / f"{ARM}-steps.jsonl"
        over = self.folder.with_name(f"{ARM}.over")
        shutil.rmtree(over, ignore_errors=True)
        if self.folder.exists() or not (out.exists() and kept.exists()):
            self.folder.mkdir(exist_ok=True)
            learner = self._trained()
            shutil.rmtree(out, ignore_errors=True)  # of a run that was killed before its folder was over
            learner.save(out)
            write_bytes_atomically(kept, (self.folder / STEPS).read_bytes())
            self.folder.rename(over)  # at once, so that a run that is killed while it is emptied does not train again
            shutil.rmtree(over)
        lines = _last_words(kept)
        totals = {name: sum(line[name] for line in lines) for name in ("turns", "attempts", "successes", "groups", "empty")}
        losses = [line["loss"] for line in lines if "loss" in line]
        told: dict[str, Any] = {"loss": round(losses[-1], 4)} if losses else {"note": NOTHING}
        if not losses:
            self.experiment.progress.say(f"train {ARM}: {NOTHING}")
        return Made({"steps": len(losses) * self.settings.passes, **totals, **told}, [out, kept])

    def _trained(self) -> Learner:
        """The learner at the end of its steps."""
        self.experiment.free()
        wanted = self.settings
        learner = self.lab.clipping_learner(
            self.folder / "learner",
            ARM,
            steps=self.steps * wanted.passes,
            low=wanted.low,
            high=wanted.high,
            kl=wanted.kl,
            normalise=wanted.normalise,
        )
        with Appender(self.folder / STEPS, STEPS_SCHEMA):
            pass  # the file is there even if nothing is learned
        self.experiment.with_engine(self.experiment.base, lambda engine: self._with_reference(engine, learner))
        return learner

    async def _with_reference(self, engine: Engine, learner: Learner) -> None:
        """Trains, with a second engine on the base where the divergence from it counts."""
        if not self.settings.kl:
            await self._train(engine, learner)
            return

        async def work(reference: Engine) -> None:
            self.reference = reference
            await self._train(engine, learner)

        await self.experiment.awith_engine(self.experiment.base, work)

    async def _referenced(self, examples: list[Example]) -> list[Example]:
        """The examples with the log-probabilities that the reference gives to their targets."""
        reference = self.reference
        if reference is None:
            return examples

        async def scored(example: Example) -> Example:
            scores = await reference.score(example.messages, example.target_ids)
            pairs = zip(example.targets, scores.logprobs, strict=True)
            return replace(example, targets=tuple(replace(target, reference=min(0.0, value)) for target, value in pairs))

        return list(await asyncio.gather(*(scored(example) for example in examples)))

    async def _train(self, engine: Engine, learner: Learner) -> None:
        spent = sum(line["turns"] for line in self._lines())
        with self.experiment.progress.stage(f"train {ARM}", self.budget, "turns") as gauge:
            gauge.advance(spent)
            while learner.done < learner.steps:
                step, behind = divmod(learner.done, self.settings.passes)
                lines = self._lines()[:step]
                spent = sum(line["turns"] for line in lines)
                position = lines[-1]["position"] if lines else 0
                if learner.done:
                    await self._hand_over(engine, learner)
                batch = await self._sample(engine, step, position, self.budget - spent)
                gauge.advance(batch.turns)
                if not batch.examples:
                    self._note(step, batch)
                    break  # the budget is spent, or no group of a whole round over the tasks teaches anything
                examples = await self._referenced(batch.examples)
                for number in range(behind, self.settings.passes):
                    report = learner.step(examples)
                    figures = {"loss": report.loss, "success_share": batch.successes / batch.attempts, **report.figures}
                    self.experiment.tracker.log(f"train {ARM}", report.step, figures)
                    if number == 0:
                        self._note(step, batch, report)
                    learner.state(self.folder / "learner")
                self._journal(step).unlink(missing_ok=True)

    async def _hand_over(self, engine: Engine, learner: Learner) -> None:
        """The learner's weights to the engine, by a folder that the next hand-over replaces."""
        weights = self.folder / "weights"
        shutil.rmtree(weights, ignore_errors=True)
        learner.save(weights)
        await engine.load(weights)

    async def _sample(self, engine: Engine, step: int, position: int, left: int) -> _Batch:
        """The groups of a step, from `position` in the order of tasks, with at most `left` turns."""
        batch, wanted = _Batch([], position=position), self.settings
        journal = Journal(self._journal(step))
        try:
            while batch.groups < wanted.groups and batch.position < position + max(wanted.groups, len(self.tasks)):
                count = min(wanted.groups - batch.groups, (left - batch.turns) // self.longest_group)
                if count < 1 or (batch.groups + batch.empty and not wanted.dynamic):
                    break
                chosen = [self._task(batch.position + number) for number in range(count)]
                for task, trees in zip(
                    chosen, await self._attempts(engine, journal, step, position=batch.position, tasks=chosen), strict=True
                ):
                    self._take(batch, step, task, trees)
                batch.position += count
        finally:
            journal.close()
        return batch

    def _task(self, place: int) -> Task:
        """The tasks in an order of their own each time that all were drawn."""
        number, within = divmod(place, len(self.tasks))
        order = list(range(len(self.tasks)))
        random.Random(self.lab.seed(ARM, "order", number)).shuffle(order)
        return self.tasks[order[within]]

    async def _attempts(
        self, engine: Engine, journal: Journal, step: int, *, position: int, tasks: Sequence[Task]
    ) -> list[list[Tree]]:
        """`size` attempts at each task, all at once. The same task may stand there twice, in two rounds of the order."""
        rules = self.experiment.rules(self.lab.seed(ARM, step))
        rollouts = [
            Rollout(f"{position + number}/{sample}", task, attempt(task, (position + number) * self.settings.size + sample, rules))
            for number, task in enumerate(tasks)
            for sample in range(self.settings.size)
        ]
        done: dict[str, Tree] = {}
        async with aclosing(
            drive(rollouts, self.experiment.runtime(engine, journal=journal), concurrency=engine.concurrency)
        ) as finished:
            async for rollout, tree in finished:
                done[rollout.key] = tree
        return [[done[f"{position + number}/{sample}"] for sample in range(self.settings.size)] for number in range(len(tasks))]

    def _take(self, batch: _Batch, step: int, task: Task, trees: Sequence[Tree]) -> None:
        """Adds a group to a batch, with its examples where its rewards differ."""
        whole = [(sample, tree) for sample, tree in enumerate(trees) if tree.attempts[0].stop not in BROKEN]
        batch.turns += sum(tree.spend.turns for tree in trees)
        batch.attempts += len(trees)
        batch.successes += sum(tree.attempts[0].success for tree in trees)
        rewards = [self._reward(tree) for _, tree in whole]
        if len(whole) < 2 or not teaches(rewards):
            batch.empty += 1
            return
        batch.groups += 1
        k = min(self.settings.k, len(whole) - 1)
        place = f"{step}-{batch.groups + batch.empty}"
        for (sample, tree), advantage in zip(whole, advantages(rewards, self.settings.advantage, k=k), strict=True):
            batch.examples += self._examples(place, task, sample, tree, advantage=advantage)

    def _reward(self, tree: Tree) -> float:
        played = tree.attempts[0]
        return float(played.success) if self.settings.reward == "success" else played.reward

    def _examples(self, place: str, task: Task, sample: int, tree: Tree, *, advantage: float) -> Iterable[Example]:
        """Every turn of an attempt, its sampled tokens as targets."""
        for turn in tree.turns:
            said = turn.completion
            if not said.token_ids:
                continue
            if len(said.logprobs) != len(said.token_ids):
                raise UserError("method grpo wants the log-probability of every sampled token, and the engine gave none; type"
                                " engine.kind=transformers")  # fmt: skip
            yield Example(
                id=digest(ARM, place, sample, turn.id),
                kind=ARM,
                task=task.id,
                attempt=sample,
                origin=turn.id,
                messages=bare_messages(
                    Scene(self.lab.prompts, task, tree.root_of(turn)), tree.trajectory(turn.parent), turn.shortening
                ),
                target=said.text,
                target_ids=said.token_ids,
                weight=advantage,
                group=place,
                targets=tuple(
                    Target(one, logprob=min(0.0, value)) for one, value in zip(said.token_ids, said.logprobs, strict=True)
                ),
            )

    def _journal(self, step: int) -> Path:
        return self.folder / f"step-{step + 1}.journal.jsonl"

    def _lines(self) -> list[dict[str, Any]]:
        return _last_words(self.folder / STEPS)

    def _note(self, step: int, batch: _Batch, report: StepReport | None = None) -> None:
        """Keeps what a step was, before the learner's state says that it is taken; without a report nothing could be learned."""
        line = {
            "step": step + 1,
            **{name: getattr(batch, name) for name in ("groups", "empty", "turns", "attempts", "successes", "position")},
        }
        if report is not None:
            line |= {"loss": report.loss, "gradient_norm": report.gradient_norm, "learning_rate": report.learning_rate}
            line |= report.figures
        with Appender(self.folder / STEPS, STEPS_SCHEMA) as lines:
            lines.append(line)


def _last_words(path: Path) -> list[dict[str, Any]]:
    """What each step was. A step whose learner was killed before it said so stands there twice, and the last word counts."""
    found = {line["step"]: line for line in read_lines(path, STEPS_SCHEMA)} if path.exists() else {}
    return [found[number] for number in sorted(found)]
