"""The work of measuring a policy as an arm of a run, which resumes after a kill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from leafe.digest import seed_for
from leafe.engines.base import Engine
from leafe.evaluation.evaluate import Watch, evaluate
from leafe.evaluation.outcomes import ArmOutcomes, Outcome, costs_of
from leafe.experiment import Experiment
from leafe.forest.explore import Explorer
from leafe.forest.faults import check_command
from leafe.forest.play import once
from leafe.proofs import done_once, measured
from leafe.run import RunDirectory
from leafe.shown import WATCHED
from leafe.stages import Made, Policy
from leafe.tracked import measuring

ROLLS_BACK = "it rolls back at test time, which plain attempts do not; turns that were taken back count"
MODEL, ENGINE = "model", "engine"  # where a measurement names the model, and the kind of engine that sampled it


def measure_stage(experiment: Experiment, run: RunDirectory, arm: str, policy: Policy, *, player: Explorer = once) -> Made:
    """Measures a policy on the held-out tasks as an arm; `player` takes each attempt.

    The result names the policy's model, as a folder of the run or another, unless it is the model that the run starts from.
    """
    made = _measured(experiment, run, arm, policy, player=player)
    figures = {name: value for name, value in made.figures.items() if name != MODEL}  # of a run that it was taken over from
    if policy.model != experiment.base:
        own = policy.model.is_relative_to(run.path)
        figures[MODEL] = (policy.model.relative_to(run.path) if own else policy.model.resolve()).as_posix()
    return replace(made, figures=figures)


@done_once(measured)
def _measured(experiment: Experiment, run: RunDirectory, arm: str, policy: Policy, *, player: Explorer) -> Made:
    stage = f"evaluate {arm}"
    experiment.keep_logs_of(run)
    if policy.model == experiment.base and not experiment.measures_here:
        experiment.keep_server(run)
    run.check(policy.model)
    tasks, samples = experiment.tasks("test"), experiment.config.evaluate.samples
    watched = experiment.config.evaluate.watched if player is once else 0
    transcripts = run.evaluation(arm, WATCHED) if watched else None
    watch = Watch(watched, experiment.can_roll_back and experiment.has_expert, transcripts)
    seed = seed_for(experiment.config.seed, "evaluate")
    rules = experiment.rules(seed, notes=policy.notes, prompts=policy.prompts, memory=policy.memory)

    async def work(engine: Engine) -> list[Outcome]:
        with experiment.progress.stage(stage, len(tasks) * samples, "attempts") as gauge:
            counted = measuring(experiment.tracker, stage, run.evaluation(arm), len(tasks) * samples)

            def told(one: Outcome) -> None:
                gauge.advance()
                counted(one)

            return await evaluate(
                tasks,
                rules,
                experiment.runtime(engine),
                run.evaluation(arm),
                samples=samples,
                mend=check_command(experiment.config),
                told=told,
                player=player,
                watch=watch,
            )

    outcomes = experiment.with_engine(policy.model, work, measures=True)
    experiment.sound_alarms(stage, ArmOutcomes(arm, tuple(outcomes)).faults)
    figures = {"successes": sum(outcome.success for outcome in outcomes), "attempts": len(outcomes)}
    costs: dict[str, Any] = {} if player is once else costs_of(outcomes)
    note = {"note": ROLLS_BACK} if costs.get("rollbacks") else {}
    files = [run.evaluation(arm), *([transcripts] if transcripts else [])]
    engine = "transformers" if experiment.measures_here else experiment.config.engine.kind
    return Made({**figures, ENGINE: engine, **costs, **note, **policy.told()}, files, arm=arm)
