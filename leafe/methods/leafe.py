"""LEAFE, from a recipe to a trained and measured model (arXiv 2603.16843).

    measure base -> [explore -> distil -> train] x rounds -> measure

Controls explore the same tasks with the same seeds and the same budget of turns. The arms `rehearsal` and `independent` are trained from
the same base with the same settings as `leafe`, on the rehearsal examples of the first round and on those of independent samples.

Where this differs from the paper:
1. The start is whatever `model` names; the paper's main tables start from a GRPO checkpoint.
2. The budget is counted in turns that the policy took.
3. Counterfactual and rehearsal terms are averaged together, with `beta` as the weight of a rehearsal term.
4. Which branches qualify is a setting.
5. Where the environment cannot be rolled back, an experience is told to a fresh attempt, each turn of which is then learned from.
"""

from __future__ import annotations

from pathlib import Path

from leafe.bench import Bench, Plot, forest_of, grow_stage, made, measure_stage, train_stage
from leafe.distillation.causes import why_no_example
from leafe.distillation.examples import distill, rehearsal
from leafe.distillation.store import read_examples, write_examples
from leafe.errors import UserError
from leafe.run import RunDirectory

NOTHING = "there is no example to train on"


def run_recipe(bench: Bench, run: RunDirectory) -> None:
    """Everything that the recipe names, up to the last measurement."""
    measure(bench, run, "base")
    explore(bench, run)
    if not bench.config.arms:
        return
    distil_round(bench, run, 1)
    train(bench, run)
    for arm in bench.config.arms:
        measure(bench, run, arm)


def explore(bench: Bench, run: RunDirectory) -> None:
    """Stage 1 of the first round, and the controls."""
    explore_round(bench, run, 1)
    for method in bench.config.controls:
        plot = Plot(method, bench.explore_seed(1), bench.base, run.control(method), run.control_journal(method))
        grow_stage(bench, run, f"explore {method}", plot)


def train(bench: Bench, run: RunDirectory) -> None:
    """Trains `leafe` through all its rounds, then the other arms."""
    for number in range(1, bench.config.rounds + 1):
        explore_round(bench, run, number)
        distil_round(bench, run, number)
        examples = list(read_examples(made(run.examples(number), "leafe distill", run)))
        if not examples and number == 1:
            # The end of the run; a later round that gives nothing leaves what the rounds before it have learned.
            raise UserError(run.stages["distil round 1"].get("note", NOTHING))
        train_stage(bench, run, _round_arm(bench, number), _round_start(bench, run, number), examples=examples)
    for arm in bench.config.arms:
        if arm != "leafe":
            train_control_arm(bench, run, arm)


def measure(bench: Bench, run: RunDirectory, arm: str) -> None:
    """Measures `base` or a trained arm on the held-out tasks."""
    measure_stage(bench, run, arm, bench.base if arm == "base" else checkpoint_of(run, arm))


def explore_round(bench: Bench, run: RunDirectory, number: int) -> None:
    """Stage 1: grows the forest of a round with the model that the round before gave."""
    model = _round_start(bench, run, number)
    plot = Plot("tree", bench.explore_seed(number), model, run.forest(number), run.journal(number))
    grow_stage(bench, run, f"explore round {number}", plot)


def distil_round(bench: Bench, run: RunDirectory, number: int) -> None:
    """Stage 2, first half: a round's forest to its examples."""
    stage = f"distil round {number}"
    if stage in run.stages:
        return
    trees = list(forest_of(run.forest(number), run, f"explore round {number}"))
    examples = distill(trees, bench.prompts, bench.choice())
    write_examples(run.examples(number), examples)
    kinds = {kind: sum(example.kind == kind for example in examples) for kind in ("counterfactual", "rehearsal")}
    why = {} if examples else {"note": f"{NOTHING}: {why_no_example(trees, bench.config)}"}
    run.finish_stage(stage, kinds | why, files=[run.examples(number)])
    bench.progress.say(f"distilled {kinds['counterfactual']} counterfactual and {kinds['rehearsal']} rehearsal examples")


def train_control_arm(bench: Bench, run: RunDirectory, arm: str) -> None:
    """`rehearsal`: the first round's examples without the counterfactual ones. `independent`: the successes of independent samples.

    A control that finds nothing to learn from stays the base.
    """
    if f"train {arm}" in run.stages:
        return
    files = []
    if arm == "rehearsal":
        examples = [
            example for example in read_examples(made(run.examples(1), "leafe distill", run)) if example.kind == "rehearsal"
        ]
    else:
        forest = forest_of(run.control("independent"), run, "explore independent")
        trees = sorted(forest, key=lambda tree: tree.task.id)
        examples = list(rehearsal(trees, bench.prompts, bench.choice()))
        files.append(run.control_examples("independent"))
        write_examples(files[0], examples)
    train_stage(bench, run, arm, bench.base, examples=examples, files=files)


def checkpoint_of(run: RunDirectory, arm: str) -> Path:
    """The folder of a trained arm. Raises `UserError` when it is not there."""
    return made(run.checkpoint(arm) / "config.json", "leafe train", run).parent


def _round_start(bench: Bench, run: RunDirectory, number: int) -> Path:
    return bench.base if number == 1 else checkpoint_of(run, _round_arm(bench, number - 1))


def _round_arm(bench: Bench, number: int) -> str:
    return "leafe" if number == bench.config.rounds else f"leafe-round-{number}"
