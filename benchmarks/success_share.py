"""The best source of rehearsal: a fifth of the successes or all of them, uniform over successes or over tasks.

    python benchmarks/success_share.py --out DIR [--recipe quickstart] [--seeds 1,2,3] [--tasks 128] [--samples 32] [a.b=value ...]

For each seed one forest is explored by the recipe; each arm is trained from the same base on examples from that forest, and all are
measured on the same tasks of the split `valid`. The split `test` is refused: a choice by these figures must not have seen it.
Kinds of arms (`--kinds`): `leafe` with counterfactual examples, `rehearsal` without. The first arm is the paper's setting.

Each seed is an ordinary run in DIR/seed-N; the same command resumes a killed one, and seeds may be added. The table is printed and
written to DIR/success_share.md: Pass@k as the mean over seeds, differences to the first arm task by task, their intervals from bootstrap
draws over tasks. Seeds are too few for a bootstrap, so each seed's difference is printed beside it. With `PYTHONPATH=benchmarks` the
commands `leafe report` and `leafe compare` read the runs too.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from transformers.utils.logging import disable_progress_bar

from leafe.cli.console import console
from leafe.compose import bench_of
from leafe.config import load_recipe
from leafe.distillation.examples import counterfactual, rehearsal
from leafe.errors import LeafeError, UserError
from leafe.evaluation.passk import Counts, pass_per_task, powers_of_two_up_to
from leafe.jsonl import write_text_atomically
from leafe.lab import run_recipe
from leafe.methods.base import Method, Policy, Settings
from leafe.records import Example
from leafe.results import BASE, arms_of
from leafe.run import RunDirectory
from leafe.terminal import Bars

Matrix = NDArray[np.float64]
HERE = "success_share:SuccessShare"
KINDS = ("leafe", "rehearsal")


class SuccessShareSettings(Settings):
    """An arm for each of `kinds`, `shares` and `over`."""

    kinds: tuple[Literal["leafe", "rehearsal"], ...] = Field(("leafe",), strict=False)
    shares: tuple[float, ...] = Field((0.2, 1.0), strict=False)
    over: tuple[Literal["successes", "tasks"], ...] = Field(("successes", "tasks"), strict=False)


class SuccessShare(Method):
    """One forest, and an arm for each way of drawing rehearsal from it."""

    name = "success_share"
    summary = "ways of drawing rehearsal from one forest"
    Settings = SuccessShareSettings

    def stages(self, lab: Any, run: RunDirectory, settings: Any) -> Iterator[Any]:
        """The base, one exploration, then each arm's examples, training and measurement."""
        yield lab.measure(run, BASE, Policy(lab.base))
        yield lab.explore(run, 1, Policy(lab.base))
        for kind in settings.kinds:
            for share in settings.shares:
                for over in settings.over:
                    yield from self._arm(lab, run, kind, share=share, over=over)

    def _arm(self, lab: Any, run: RunDirectory, kind: str, *, share: float, over: str) -> Iterator[Any]:
        arm = f"{kind}-{share:g}-{over}"

        def examples() -> list[Example]:
            selection = replace(lab.selection(), success_share=share, rehearse=over)
            trees = lab.trees(run, 1)
            corrected = counterfactual(trees, lab.prompts, selection) if kind == "leafe" else ()
            return [*corrected, *rehearsal(trees, lab.prompts, selection)]

        yield lab.distill(run, arm, examples, needs=("explore round 1",))
        yield lab.train(run, arm, lambda: lab.examples(run, arm), needs=(f"distil {arm}",))
        yield lab.measure(run, arm, lab.trained(run, arm), needs=(f"train {arm}",))


@dataclass(frozen=True)
class Measured:
    """One seed's arms: successes of every task, and each stage's report."""

    counts: Mapping[str, Counts]
    stages: Mapping[str, Any]


def main() -> int:
    """Runs missing seeds and prints the table."""
    disable_progress_bar()
    parser = argparse.ArgumentParser(description="success_share and the weights of rehearsal, measured on the split valid")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--tasks", type=int, default=128, help="held-out tasks of the split valid")
    parser.add_argument("--samples", type=int, default=32, help="attempts a task")
    parser.add_argument("--kinds", default="leafe", help="leafe, rehearsal or both, with a comma")
    parser.add_argument("overrides", nargs="*", help="as for leafe run")
    options = parser.parse_args()
    try:
        measured = {seed: run_seed(options, seed) for seed in seeds_of(options.seeds)}
    except LeafeError as error:
        print(f"success_share: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"success_share: interrupted; the same command resumes in {options.out}", file=sys.stderr)
        return 130
    text = table(measured, shlex.join(sys.argv[1:]))
    write_text_atomically(options.out / "success_share.md", text)
    print(text)
    return 0


def seeds_of(text: str) -> list[int]:
    """The seeds in a text, each once."""
    try:
        seeds = [int(seed) for seed in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds: wanted whole numbers with commas, as 1,2,3, found {text!r}") from None
    return list(dict.fromkeys(seeds))


def run_seed(options: argparse.Namespace, seed: int) -> Measured:
    """One seed's run, finished first if it is not."""
    sizes = [f"tasks.test={options.tasks}", f"evaluate.samples={options.samples}", "tasks.test_split=valid"]
    kinds = f"success_share.kinds=[{options.kinds}]"
    config = load_recipe(options.recipe, [f"method={HERE}", kinds, *sizes, *options.overrides, f"seed={seed}"])
    if config.tasks.test_split != "valid":
        raise UserError(f"tasks.test_split: wanted valid, found {config.tasks.test_split}; leave it out")
    with RunDirectory.open(options.out / f"seed-{seed}", config) as run:
        if not run.done:
            experiment = bench_of(config, Bars(console))
            try:
                experiment.check(trains=True, tries=not run.stages)
                run_recipe(experiment, run)
            finally:
                experiment.free()
            run.finish()
        return Measured({arm.name: arm.counts() for arm in arms_of(run)}, dict(run.stages))


def table(measured: Mapping[int, Measured], command: str) -> str:
    """The figures as Markdown."""
    first = next(iter(measured.values()))
    arms = list(first.counts)
    samples = first.counts[BASE].samples
    ks = sorted({1, *(k for k in powers_of_two_up_to(samples) if k >= samples // 4), samples})
    reference = next(arm for arm in arms if arm != BASE)
    lines = [
        f"`python benchmarks/success_share.py {command}`: {len(measured)} seeds, {len(first.counts[BASE].tasks)} tasks of the split valid"
        f" x {samples} samples; differences to `{reference}`, [95 % interval over tasks], each seed's own",
        "",
        "| arm | examples | steps | " + " | ".join(f"Pass@{k} | minus" for k in ks) + " |",
        "|---|---|---|" + "---|---|" * len(ks),
    ]
    for arm in arms:
        cells = [cell for k in ks for cell in cells_of(measured, arm, reference, k)]
        trained = [one.stages.get(f"train {arm}", {}) for one in measured.values()]
        costs = [", ".join(str(one.get(name, "-")) for one in trained) for name in ("examples", "steps")]
        lines.append(f"| {' | '.join([arm, *costs, *cells])} |")
    turns = ", ".join(str(one.stages["explore round 1"]["turns"]) for one in measured.values())
    return "\n".join([*lines, "", f"Turns explored: {turns}.", ""])


def cells_of(measured: Mapping[int, Measured], arm: str, reference: str, k: int) -> tuple[str, str]:
    """An arm's Pass@k, and its difference to the reference."""
    own, other = (np.stack([pass_per_task(one.counts[name], k) for one in measured.values()]) for name in (arm, reference))
    value = f"{100 * own.mean():.1f}"
    if arm == reference:
        return value, "-"
    low, high = interval(own - other)
    each = ", ".join(f"{100 * one:+.1f}" for one in (own - other).mean(axis=1))
    return value, f"{100 * (own - other).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] ({each})"


def interval(differences: Matrix, resamples: int = 5000) -> Sequence[float]:
    """The bounds of 95 % of bootstrap draws over tasks; `differences` is `(seeds, tasks)`, and a task is drawn with all its seeds."""
    by_task = differences.mean(axis=0)
    draw = np.random.default_rng(0)
    means = by_task[draw.integers(len(by_task), size=(resamples, len(by_task)))].mean(axis=1)
    return [float(one) for one in np.quantile(means, [0.025, 0.975])]


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))  # the place of the method for runs
    sys.exit(main())
