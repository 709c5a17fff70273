"""The watched attempts of a row under its own policy and under the table's model: the stage `score ARM`, by which its distance is told.

There is nothing to compare where the arm is the table's model without notes, where it is not shown or has no transcripts, as those of
older versions, or where the engine cannot score. A row never fails by that. One whose engine failed meanwhile has no figure either, and
no such stage, so that it can be tried again.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from leafe.chat import Prompts
from leafe.engines.base import Engine
from leafe.errors import EngineError, Unwritable, UserError
from leafe.evaluation.drift import ByTurn, Drift, drifts, nats_by_turn, read_drifts, write_drifts
from leafe.evaluation.transcripts import Transcript
from leafe.experiment import Experiment
from leafe.measuring import MODEL
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import Row
from leafe.results import transcripts_of
from leafe.run import RunDirectory
from leafe.shown import SCORES

NOTES = ("notes", "prompts", "memory")  # in the result of a measurement, of a policy that reads more than the task


def score_row(plan: Plan, row: Row, experiment: Experiment, run: RunDirectory) -> None:
    """Scores the watched attempts of a row's arm, unless there is nothing to compare, and records that as a stage."""
    stage, path = _stage(row.arm), run.evaluation(row.arm, SCORES)
    if row.said.forest or row not in plan.shown or stage in run.stages:
        return
    transcripts, said = tuple(transcripts_of(run, row.arm).values()), run.stages.get(f"evaluate {row.arm}") or {}
    base = locate(plan.base.model, CHECKPOINTS) if row.said.start else experiment.base
    model = run.path / said[MODEL] if MODEL in said else experiment.base
    if not transcripts or (model.resolve() == base.resolve() and not any(name in said for name in NOTES)):
        return
    experiment.keep_logs_of(run)
    run.check(model)
    read = experiment.prompts_of(said["prompts"]) if "prompts" in said else experiment.prompts
    lacks = f"{stage}: the row has no figure of its distance from the base"
    try:
        found = _scored(experiment, stage, transcripts, {"own": (model, read), "base": (base, experiment.prompts)})
    except Unwritable:
        raise
    except UserError as error:
        experiment.progress.say(f"{lacks}, since {error}")
        run.finish_stage(stage, {"note": str(error)})
        return
    except EngineError as error:  # everything that it costs much to make is made
        experiment.progress.say(f"{lacks}: {error.why}; delete {run.path / 'DONE'}, and the same command tries once more")
        return
    write_drifts(path, found)
    figures = {"attempts": len(found), "turns": sum(one.turns for one in found)}
    nats = {"own": round(sum(one.own for one in found), 3), "base": round(sum(one.base for one in found), 3)}
    run.finish_stage(stage, {**figures, **nats}, files=[path])


def scored(run: RunDirectory, arm: str) -> tuple[Drift, ...]:
    """The scored attempts of a run's arm, none where it has none. Raises `CorruptFile` where they are not as they were left."""
    path = run.evaluation(arm, SCORES)
    if path not in run.made_by(_stage(arm)):
        return ()
    return read_drifts(run.check(path))


def _stage(arm: str) -> str:
    return f"score {arm}"


def _scored(
    experiment: Experiment, stage: str, transcripts: tuple[Transcript, ...], policies: dict[str, tuple[Path, Prompts]]
) -> list[Drift]:
    """The transcripts under both policies, each a model and prompts; one model is loaded after the other."""
    with experiment.progress.stage(stage, len(policies) * len(transcripts), "attempts") as gauge:

        async def under(engine: Engine, name: str) -> list[ByTurn]:
            return await nats_by_turn(engine, transcripts, policies[name][1], noted=name == "own", told=gauge.advance)

        found = {
            name: experiment.with_engine(model, partial(under, name=name), measures=True) for name, (model, _) in policies.items()
        }
    return drifts(transcripts, found["own"], found["base"])
