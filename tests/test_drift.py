"""How far a policy has moved from the base: transcripts of measured attempts, scored under both models, and the figure of a table."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from players import FULL, PLACES, Breaking, Hand, erratic, rules, steady
from tiny import tiny_model, tiny_tokenizer

from leafe.chat import Prompts
from leafe.config import parse
from leafe.engines.base import Engine, Scores
from leafe.engines.scripted import ScriptedEngine
from leafe.envs.base import Environment
from leafe.errors import CorruptFile, EngineError, UserError
from leafe.evaluation.drift import Drift, drifts, nats_by_turn, questions
from leafe.evaluation.evaluate import Watch, evaluate
from leafe.evaluation.explain import FIGURES, explained, sums_of
from leafe.evaluation.outcomes import ArmOutcomes, Outcome, read_outcomes
from leafe.evaluation.passk import Interval, Resampling
from leafe.evaluation.tables import Cost, RowResult, TableResult, as_json, explained_rows, markdown
from leafe.evaluation.transcripts import Transcript, read_transcripts
from leafe.experiment import Experiment
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Runtime
from leafe.forest.play import once
from leafe.history import History
from leafe.lab import measure_base
from leafe.manifest import files_of, given, sealed
from leafe.progress import Silent
from leafe.recall import Recall, Remembered
from leafe.records import Ask, Message, StopReason, Tree
from leafe.reproduce.asked import Asked
from leafe.reproduce.plan import Plan
from leafe.reproduce.spec import load_table
from leafe.reproduce.summary import summary
from leafe.reproduce.work import Failure, carry_out
from leafe.run import RunDirectory
from leafe.settings import RunConfig
from leafe.shown import SCORES, WATCHED
from leafe.viewer.table import render_table
from leafe.worlds.fakes import Lookup

TASKS = Lookup(horizon=3).tasks("test", 6)
NOTE = "look behind the door"
Judge = Callable[[Sequence[Message]], float]


class Judging(ScriptedEngine):
    """A script whose model gives each token of a reply the log-probability that `judge` finds for the prompt."""

    def __init__(self, answer: Callable[[Ask], str], judge: Judge, *, max_context: int = 0) -> None:
        super().__init__(answer, max_context=max_context)
        self.judge = judge
        self.scored: list[tuple[tuple[Message, ...], tuple[int, ...]]] = []

    async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
        await super().score(messages, ids, top)
        self.scored.append((tuple(messages), tuple(ids)))
        return Scores((self.judge(messages),) * len(ids))


def played(*, notes: tuple[str, ...] = (), prompts: Prompts = FULL, history: History = History()) -> tuple[Transcript, Hand]:
    """An attempt of three turns, and everything that was asked in it."""
    hand, recall = Hand(Lookup(horizon=3), steady("<think>hm</think><action>open nothing</action>", "")), None
    if notes:
        recall = Recall([Remembered("m1", "recalled too", "find the key")], 1)
    builder = TreeBuilder(TASKS[0], rules(prompts, notes=notes, recall=recall, history=history))
    tree: Tree = hand.finish(once(builder))
    return Transcript(0, tree, builder.notes), hand


def said(messages: Sequence[Message]) -> str:
    return "".join(one.content for one in messages)


def under(engine: Engine, *transcripts: Transcript, noted: bool = True) -> list[tuple[float | None, ...]]:
    return asyncio.run(nats_by_turn(engine, transcripts, FULL, noted=noted))


# Questions and their answers


@pytest.mark.parametrize("history", [History(), History("last", 1)])
def test_the_policy_is_scored_under_the_very_prompts_that_it_read(history: History) -> None:
    transcript, hand = played(notes=(NOTE,), history=history)
    assert transcript.notes == (NOTE, "recalled too")
    found = list(questions(transcript, FULL, noted=True))
    assert [messages for messages, _ in found] == [ask.messages for ask in hand.asks] and len(found) == 3
    assert [ids for _, ids in found] == [turn.completion.token_ids for turn in transcript.tree.turns]


def test_the_base_is_scored_under_the_prompts_that_a_policy_without_notes_reads() -> None:
    (transcript, _), (_, plain) = played(notes=(NOTE,)), played()
    found = [messages for messages, _ in questions(transcript, FULL, noted=False)]
    assert found == [ask.messages for ask in plain.asks] and not any(NOTE in said(one) for one in found)


def test_the_distance_of_a_policy_that_reads_notes_by_hand() -> None:
    transcript, _ = played(notes=(NOTE,))
    length = len("<think>hm</think><action>open nothing</action>")
    own = under(Judging(steady("", ""), lambda messages: -0.25 if NOTE in said(messages) else -2.0), transcript)
    base = under(Judging(steady("", ""), lambda messages: -0.5 if NOTE not in said(messages) else -8.0), transcript, noted=False)
    (found,) = drifts([transcript], own, base)
    assert found == Drift(TASKS[0].id, 0, 3, own=0.25 * 3 * length, base=0.5 * 3 * length)
    assert found.moved == 0.25 * 3 * length


def test_a_copy_of_the_base_has_not_moved() -> None:
    transcript, _ = played()
    scored = under(Judging(steady("", ""), lambda messages: -0.125 * len(messages)), transcript)
    assert drifts([transcript], scored, scored)[0].moved == 0


def test_turns_without_ids_and_turns_that_are_too_long_are_left_out_of_both() -> None:
    transcript, _ = played()
    first, *others = transcript.tree.turns
    closed = replace(first, completion=replace(first.completion, token_ids=(), logprobs=()))
    transcript = replace(transcript, tree=replace(transcript.tree, turns=(closed, *others)))
    room = len(said(list(questions(transcript, FULL, noted=True))[1][0]).encode()) + 100
    own = under(Judging(steady("", ""), lambda messages: -1.0, max_context=room), transcript)
    base = under(Judging(steady("", ""), lambda messages: -2.0), transcript)
    assert [[one is None for one in turns] for turns in (own[0], base[0])] == [[True, False, True], [True, False, False]]
    (found,) = drifts([transcript], own, base)
    assert found.turns == 1 and found.moved == len(first.completion.text)


def test_an_engine_that_cannot_score_is_told_from_one_without_room() -> None:
    class Mute(ScriptedEngine):
        async def score(self, messages: Sequence[Message], ids: Sequence[int], top: int = 0) -> Scores:
            raise UserError("it gives no log-probabilities of prompts")

    with pytest.raises(UserError, match="no log-probabilities"):
        under(Mute(steady("", "")), played()[0])


# Transcripts


def measured(
    folder: Path, *, samples: int = 3, make: Callable[[], Environment] = lambda: Lookup(horizon=3), watch: int = 2
) -> tuple[list[Outcome], tuple[Transcript, ...]]:
    engine, kept = ScriptedEngine(erratic(PLACES), concurrency=8), folder / "arm.watched.jsonl"
    work = evaluate(
        TASKS,
        rules(),
        Runtime(engine, make),
        folder / "arm.jsonl",
        samples=samples,
        watch=Watch(watch, False, kept if watch else None),
    )
    return asyncio.run(work), read_transcripts(kept) if kept.exists() else ()


def test_the_first_samples_have_transcripts_from_which_their_outcomes_follow(tmp_path: Path) -> None:
    outcomes, transcripts = measured(tmp_path)
    assert [one.key for one in transcripts] == sorted((task.id, sample) for task in TASKS for sample in range(2))
    ended = {(one.task, one.sample): one for one in outcomes}
    for one in transcripts:
        of = ended[one.key]
        assert (of.stop, of.turns) == (one.tree.attempts[-1].stop, len(one.tree.turns)) and of.setback is None
        assert of.sampled_tokens == sum(len(turn.completion.token_ids) for turn in one.tree.turns)


def test_broken_attempts_have_no_transcript(tmp_path: Path) -> None:
    outcomes, transcripts = measured(tmp_path, make=lambda: Breaking(horizon=3))
    whole = {(one.task, one.sample) for one in outcomes if one.error is None and one.sample < 2}
    assert {one.key for one in transcripts} == whole and len(whole) < 2 * len(TASKS)


def test_a_measurement_that_was_cut_between_or_within_its_files_ends_with_the_same_transcripts(tmp_path: Path) -> None:
    outcomes, _ = measured(tmp_path)
    files = tmp_path / "arm.jsonl", tmp_path / "arm.watched.jsonl"
    whole = [file.read_bytes() for file in files]
    watched_first = [file.splitlines(keepends=True) for file in whole]
    for lines in range(0, len(watched_first[0]), 3):
        for torn in (b"", b'{"sample": 1, "tr'):
            files[0].write_bytes(b"".join(watched_first[0][:lines]))
            known = {(one.task, one.sample) for one in read_outcomes(files[0])} if lines else set()
            ahead = [line for one, line in zip(order(whole[1], tmp_path), watched_first[1][1:], strict=True) if one in known]
            lost = watched_first[1][-1]  # of an attempt whose outcome did not get to the disk
            files[1].write_bytes(b"".join([watched_first[1][0], *ahead, *([lost] if lost not in ahead else [])]) + torn)
            assert measured(tmp_path)[0] == outcomes
            assert [sorted(file.read_bytes().splitlines()) for file in files] == [sorted(one.splitlines()) for one in whole]


def order(content: bytes, folder: Path) -> list[tuple[str, int]]:
    """The tasks and samples of transcripts in the order of their lines."""
    found = []
    for line in content.splitlines()[1:]:
        (folder / "one.jsonl").write_bytes(content.splitlines(keepends=True)[0] + line + b"\n")
        found += [one.key for one in read_transcripts(folder / "one.jsonl")]
    return found


def test_transcripts_of_outcomes_that_were_deleted_are_not_kept(tmp_path: Path) -> None:
    measured(tmp_path)
    (tmp_path / "arm.jsonl").unlink()
    stale = (tmp_path / "arm.watched.jsonl").read_text().replace("open", "shut")
    (tmp_path / "arm.watched.jsonl").write_text(stale)
    assert "shut" not in str(measured(tmp_path)[1])


def test_a_line_that_is_no_transcript_is_named(tmp_path: Path) -> None:
    measured(tmp_path)
    with open(tmp_path / "arm.watched.jsonl", "a") as file:
        file.write('{"sample":1}\n')
    with pytest.raises(CorruptFile, match=r"watched\.jsonl line 14 is no transcript"):
        measured(tmp_path)


def test_an_older_measurement_goes_on_without_the_transcripts_that_it_lacks(tmp_path: Path) -> None:
    measured(tmp_path, samples=1, watch=0)
    outcomes, transcripts = measured(tmp_path)
    assert len(outcomes) == 3 * len(TASKS) and {one.sample for one in transcripts} == {1}


# The figure


def arm(*tasks: str) -> ArmOutcomes:
    return ArmOutcomes("x", tuple(Outcome(task, 0, StopReason.TURN_LIMIT, False, 0.0, 4, 9, 5) for task in tasks))


def test_the_figure_is_the_quotient_of_nats_and_turns_over_seeds_and_tasks() -> None:
    scored = {1: [Drift("a", 0, 4, 1.0, 3.0), Drift("b", 0, 2, 5.0, 4.0)], 2: [Drift("a", 0, 2, 0.0, 3.0)]}
    found = explained(sums_of({1: arm("a", "b"), 2: arm("a", "b")}, scored), None, Resampling(100))["nats_from_base"]
    assert found.value == (2 - 1 + 3) / (4 + 2 + 2) and found.low <= found.value <= found.high
    assert "nats_from_base" not in explained(sums_of({1: arm("a", "b")}), None, Resampling(10))
    assert "nats_from_base" not in explained(sums_of({1: arm("a")}, {1: [Drift("a", 0, 0, 0.0, 0.0)]}), None, Resampling(10))


def test_the_figure_stands_in_every_form_of_a_table_and_the_base_has_a_dash() -> None:
    rows = [
        RowResult(name, "", (1,), 2, 2, {}, {}, Cost(), 1.0, explained={"covered": Interval(0.5, 0.5, 0.5), **more})
        for name, more in {"base": {}, "moved": {"nats_from_base": Interval(1.234, -0.001, 2.0)}}.items()
    ]
    table = TableResult("t", "", "m", "e", "r", "test", (1,), 0, "Pass@", 0.95, tuple(rows), (), (), ())
    heading = FIGURES["nats_from_base"][0]
    assert explained_rows(table) == [
        ("row", "ever solved, %", heading),
        ("base", "50.0 [50.0, 50.0]", "-"),
        ("moved", "50.0 [50.0, 50.0]", "1.23 [0.00, 2.00]"),
    ]
    assert heading in markdown(table) and f">{heading}<" in render_table(table) and ">1.23 [0.00, 2.00]<" in render_table(table)
    assert as_json(table)["rows"][1]["explained"]["nats_from_base"]["value"] == 1.234


# A table

RECIPE = """
name: small
model: {model}
environment: {{name: lookup, args: {{places: 4, horizon: 3}}}}
prompts: full
tasks: {{train: 4, test: 4}}
explore: {{turns: 12, max_attempts: 4, max_depth: 3}}
distill: {{qualify: any, success_share: 1.0}}
train: {{epochs: 1, batch_size: 64}}
evaluate: {{samples: 3, resamples: 20}}
"""
LEAFE = 'method: leafe, settings: ["leafe.controls=[]", "leafe.arms=[leafe]"]'
TABLE = f"""
about: Every kind of row.
against: [base]
rows:
  base: {{}}
  hidden: {{method: leafe, shown: false, share: 0.5, settings: ["leafe.controls=[]", "leafe.arms=[leafe]", distill.beta=2]}}
  leafe: {{{LEAFE}}}
  ace: {{method: ace}}
  ace-after: {{method: ace, start: leafe}}
  again: {{start: leafe}}
  after: {{start: hidden, share: 0.5, {LEAFE}}}
"""


def acting(ask: Ask) -> str:
    """Opens one place after another; looks back in the words of each question."""
    asked = ask.messages[-1].content
    if ask.purpose == "act":
        return f"<action>open place{sum(one.sampled for one in ask.messages) % 4 + 1}</action>"
    return f"<lesson>{NOTE}</lesson>" if "<lesson>" in asked else f"<turn>1</turn><experience>{NOTE}</experience>"


@dataclass
class Models:
    """Engines by the folder that they are loaded from: an arm's tokens have a log-probability of -1/4, the base's of -1/2, and half of it
    where the prompt holds a note. `refuses` makes the error of scoring with a model, `patience` is how many questions are answered.
    """

    refuses: Callable[[Path], Exception | None] = lambda folder: None
    patience: int = 10**6
    loaded: list[tuple[Path, Judging]] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def load(self, folder: Path) -> Engine:
        def judge(messages: Sequence[Message]) -> float:
            if error := self.refuses(folder):
                raise error
            self.patience -= 1
            if self.patience < 0:
                raise RuntimeError("killed")
            return -(0.25 if folder.name == "leafe" else 0.5) / (2 if NOTE in said(messages) else 1)

        made = Judging(acting, judge)
        self.loaded.append((folder, made))
        return made

    def bench(self, config: RunConfig) -> Experiment:
        """The experiment of a configuration with these models."""
        progress = Silent()
        progress.say = self.said.append  # type: ignore[method-assign]
        return Experiment(config, Path(config.model), self.load, lambda: Lookup(**config.environment.args), progress)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    tiny_tokenizer().save_pretrained(folder)
    tiny_model().save_pretrained(folder)
    return folder


def plan_of(folder: Path, base: Path, *rows: str) -> Plan:
    folder.mkdir(exist_ok=True)
    (folder / "mine.yaml").write_text(TABLE)
    (folder / "small.yaml").write_text(RECIPE.format(model=base))
    return Plan(
        load_table(str(folder / "mine.yaml")), Asked(recipe=str(folder / "small.yaml"), out=folder / "out", seeds=(1,), rows=rows)
    )


def figures(plan: Plan, models: Models, failures: Sequence[Failure] = ()) -> dict[str, float | None]:
    table = summary(plan, plan.check(models.bench), failures)
    found = {row.name: row.explained.get("nats_from_base") for row in table.rows}
    return {name: one.value if one else None for name, one in found.items()}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Models]:
    plan, models = plan_of(tmp_path_factory.mktemp("table"), base), Models()
    assert carry_out(plan, models.bench, Silent()) == []
    return plan, models


def tokens_a_turn(plan: Plan, row: str) -> float:
    """Of the watched attempts of a row."""
    run = run_of(plan, row)
    transcripts = read_transcripts(run.evaluation(plan.table.row(row).arm, WATCHED))
    turns = [turn for one in transcripts for turn in one.tree.turns]
    assert {one.sample for one in transcripts} == {0, 1}
    return sum(len(turn.completion.token_ids) for turn in turns) / len(turns)


def run_of(plan: Plan, row: str) -> RunDirectory:
    return RunDirectory.existing(plan.path(plan.table.row(row), 1), read_only=True)


def test_every_row_but_the_base_is_told_by_how_many_nats_it_has_moved(whole: tuple[Plan, Models]) -> None:
    plan, models = whole
    found, length = figures(plan, models), {row.name: tokens_a_turn(plan, row.name) for row in plan.shown}
    assert found == {
        "base": None,
        "leafe": pytest.approx(0.25 * length["leafe"]),  # 1/2 - 1/4
        "ace": pytest.approx(0.25 * length["ace"]),  # 1/2 - 1/2 / 2, by its notes alone
        "ace-after": pytest.approx(0.375 * length["ace-after"]),  # 1/2 - 1/4 / 2
        "again": pytest.approx(0.25 * length["again"]),
        "after": pytest.approx(0.25 * length["after"]),  # from the table's model, though it starts from an arm
    }
    assert not any(name.startswith("score") for row in ("base", "hidden") for name in run_of(plan, row).stages)
    scored = run_of(plan, "leafe").stages["score leafe"]
    assert scored["attempts"] == 8 and scored["base"] == pytest.approx(2 * scored["own"])


def test_the_base_never_reads_the_notes_and_the_row_always_does(whole: tuple[Plan, Models]) -> None:
    plan, models = whole
    arm = plan.path(plan.table.row("leafe"), 1) / "checkpoints" / "leafe"
    noted = {
        (folder.resolve() == arm.resolve(), NOTE in said(messages))
        for folder, engine in models.loaded
        for messages, ids in engine.scored
        if len(ids) > 1
    }
    assert noted == {(True, False), (True, True), (False, False), (False, True)}
    assert (plan.path(plan.table.row("ace"), 1) / "memory" / "ace.jsonl").read_text().count(NOTE) == 1


def test_what_was_taken_over_brings_its_transcripts_and_an_older_one_brings_none(
    whole: tuple[Plan, Models], base: Path, tmp_path: Path
) -> None:
    plan, _ = whole
    assert run_of(plan, "again").stages["evaluate base"]["taken_from"] == "ace-after"
    for name in (WATCHED, SCORES):
        assert (
            run_of(plan, "again").evaluation("base", name).read_bytes()
            == run_of(plan, "leafe").evaluation("leafe", name).read_bytes()
        )
    older = plan_of(tmp_path, base, "leafe", "again")
    assert carry_out(replace(older, asked=replace(older.asked, rows=("leafe",))), Models().bench, Silent()) == []
    forget(older.path(older.table.row("leafe"), 1))
    assert carry_out(older, Models().bench, Silent()) == []
    assert run_of(older, "again").stages["evaluate base"]["taken_from"] == "leafe"
    assert figures(older, Models()) == {"leafe": None, "again": None}


def forget(path: Path) -> None:
    """Makes a finished run one of a version that kept no transcripts."""
    before, stages = json.loads((path / "stages.json").read_text()), dict[str, Any]()
    for name, entry in before.items():
        if not name.startswith("score "):
            said = {key: value for key, value in (given(entry) or {}).items() if key != "model"}
            files = {file: about for file, about in files_of(entry).items() if not file.endswith(f"{WATCHED}.jsonl")}
            stages[name] = sealed(name, said, files, list(stages), shown=entry.get("shown"))
    (path / "stages.json").write_text(json.dumps(stages))
    for file in [*path.glob(f"eval/*{WATCHED}.jsonl"), *path.glob(f"eval/*{SCORES}.jsonl")]:
        file.unlink()


@pytest.mark.parametrize("model", ["leafe", "model"])
def test_a_row_whose_engine_cannot_score_has_a_dash_and_a_sentence_and_does_not_fail(
    base: Path, tmp_path: Path, model: str
) -> None:
    error = UserError("no log-probabilities of prompts")
    models = Models(refuses=lambda folder: error if folder.name == model else None)
    plan = plan_of(tmp_path, base, "base", "leafe")
    assert carry_out(plan, models.bench, Silent()) == []
    assert figures(plan, models) == {"base": None, "leafe": None}
    assert [text for text in models.said if text.startswith("score leafe: ") and str(error) in text]
    assert run_of(plan, "leafe").done and run_of(plan, "leafe").stages["score leafe"] == {"note": str(error)}


def test_a_server_that_fails_while_it_scores_costs_that_figure_alone_which_can_be_had_later(base: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base, "base", "leafe")
    models = Models(refuses=lambda folder: EngineError("the server answered 500, 6 times", "what was done is kept"))
    assert carry_out(plan, models.bench, Silent()) == [] and figures(plan, models) == {"base": None, "leafe": None}
    done = run_of(plan, "leafe").path / "DONE"
    assert models.said[-1] == (
        "score leafe: the row has no figure of its distance from the base: the server answered 500, 6 times;"
        f" delete {done}, and the same command tries once more"
    )
    done.unlink()
    again = Models()
    assert carry_out(plan, again.bench, Silent()) == [] and figures(plan, again)["leafe"]
    assert not any(engine.asks for _, engine in again.loaded)


@pytest.mark.parametrize("patience", [0, 5, 30])
def test_a_table_that_was_killed_while_it_scored_ends_with_the_same_files(
    whole: tuple[Plan, Models], base: Path, tmp_path: Path, patience: int
) -> None:
    plan = plan_of(tmp_path, base, "leafe")
    with pytest.raises(RuntimeError, match="killed"):
        carry_out(plan, Models(patience=patience).bench, Silent())
    run = run_of(plan, "leafe")
    assert "evaluate leafe" in run.stages and "score leafe" not in run.stages and not run.evaluation("leafe", SCORES).exists()
    models = Models()
    assert carry_out(plan, models.bench, Silent()) == [] and not any(engine.asks for _, engine in models.loaded)
    kept, wanted = (one.evaluation("leafe", SCORES).read_bytes() for one in (run, run_of(whole[0], "leafe")))
    assert kept == wanted and run_of(plan, "leafe").done


def test_scores_that_were_changed_are_refused_by_name(base: Path, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, base, "leafe")
    assert carry_out(plan, Models().bench, Silent()) == []
    path = run_of(plan, "leafe").evaluation("leafe", SCORES)
    path.write_text(re.sub(r'"own":\d', '"own":9', path.read_text(), count=1))
    with pytest.raises(CorruptFile, match=r"leafe\.scores\.jsonl is not as the stage 'score leafe' left it"):
        figures(plan, Models())


def test_a_measurement_names_its_model_and_keeps_transcripts_without_an_expert(base: Path, tmp_path: Path) -> None:
    class Alone(Lookup):
        expert = Environment.expert

    config = parse(RECIPE.format(model=base), "small")
    experiment = replace(Models().bench(config), make_environment=lambda: Alone(places=4, horizon=3))
    with RunDirectory.open(tmp_path / "run", config) as run:
        measure_base(experiment, run)
        assert "model" not in run.stages["evaluate base"] and all(
            one.setback is None for one in read_outcomes(run.evaluation("base"))
        )
        assert len(read_transcripts(run.evaluation("base", WATCHED))) == 8
    with RunDirectory.open(tmp_path / "unwatched", parse(RECIPE.format(model=base), "small", ["evaluate.watched=0"])) as run:
        measure_base(replace(experiment, config=run.config), run)
        assert not run.evaluation("base", WATCHED).exists()
