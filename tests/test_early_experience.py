"""Early Experience: what is tried around an expert's way, what is learned from it, and a run that is killed again and again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from halls import DOORS, Apart, Halls, Unaided, halls
from hypothesis import given, settings
from hypothesis import strategies as st
from players import FULL, TERSE, Hand, breaks, grown, rules, scripted
from test_driver import driven
from tiny import tiny_model, tiny_tokenizer

from leafe.chat import Prompts
from leafe.comparing import read_comparison
from leafe.config import parse
from leafe.distillation.early_experience import EXPERT, SELF_REFLECTION, WORLD_MODEL, early_experience
from leafe.distillation.rows import pack_examples, steps_an_epoch
from leafe.distillation.store import read_examples
from leafe.distillation.writing import Writer
from leafe.engines.base import Engine
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.tokens import ChatTokenizer
from leafe.envs.base import Environment, Fidelity, Placement
from leafe.envs.calls import Call, carry_out
from leafe.envs.world import World
from leafe.errors import EngineError, EnvironmentFailure, ReplayDiverged, UserError
from leafe.experiment import Experiment
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime
from leafe.forest.expert import Around, forks
from leafe.forest.journal import Journal
from leafe.lab import run_recipe, run_verb, stages_of
from leafe.progress import Gauge, Silent
from leafe.records import BROKEN, Ask, Example, Observation, StopReason, Task, Tree
from leafe.replies import ParseFailure, parse_action, parse_thought, render_action
from leafe.run import RunDirectory
from leafe.scale.fakes import FakeWorkers
from leafe.scale.worlds import spread
from leafe.worlds.fakes import SlipperySokoban

KINDS = {EXPERT, WORLD_MODEL, SELF_REFLECTION}
TOKENS = ChatTokenizer(tiny_tokenizer())


def walker(ask: Ask) -> str:
    """Any door, or something else."""
    draw = random.Random(ask.seed)
    return draw.choice([*DOORS, *DOORS, "sing", "Open  red", "what\nnow"])


def writer(context: int = 0) -> Writer:
    return Writer(TOKENS, context)


def learned(tree: Tree, prompts: Prompts = TERSE, kinds: set[str] | None = None) -> list[Example]:
    return early_experience([tree], prompts, writer(), kinds or KINDS)


def by_hand() -> tuple[Hand, Tree]:
    """One alternative wanted in each of three states: what the expert does, two lines, and in the third state nothing new at all."""
    hand = Hand(Halls(), scripted("open red", "open blue", "what\nnow", "sing", "open red", "Open  red"))
    task = halls("open red", "open green", "open red")
    return hand, grown(Around("environment", 1), hand, task, turns=3)


def test_alternatives_are_new_actions_taken_one_step_from_the_states_of_the_expert() -> None:
    hand, tree = by_hand()
    assert hand.steps == ["open red", "open green", "open red", "open blue", "sing"]
    expert, *others = tree.attempts
    assert (expert.by, expert.stop, expert.parent) == ("environment", StopReason.SUCCESS, None)
    assert [(one.parent, one.turn, one.stop, one.by) for one in others] == [
        (0, 1, StopReason.ONE_STEP, "policy"),
        (0, 2, StopReason.ONE_STEP, "policy"),
    ]
    first, second, third = forks(tree)
    assert [turn.observation.text for turn in first.others] == ["Behind open blue of hall 0: a bat."]
    assert [turn.observation.text for turn in second.others] == ["Behind sing of hall 1: a wall."]
    assert not third.others
    assert (tree.spend.turns, tree.spend.expert_steps, tree.spend.discarded, tree.spend.rollbacks) == (2, 3, 4, 2)
    # Nothing in the prompts but the way of the expert: the same that a policy reads that walked it.
    assert [[message.content for message in ask.messages] for ask in hand.asks[:2]] == [["Get out. 4 turns.\n1: Hall 0."]] * 2
    assert [message.content for message in hand.asks[3].messages[1:]] == ["open red", "2: Hall 1."]


def test_the_three_kinds_of_examples_of_a_small_tree_are_these() -> None:
    _, tree = by_hand()
    found = learned(tree)
    start, ids = "Get out. 4 turns.\n1: Hall 0.", TOKENS.reply_ids
    said = [(one.kind, [message.content for message in one.messages], one.target) for one in found]
    assert said == [
        (EXPERT, [start], "open red"),
        (EXPERT, [start, "open red", "2: Hall 1."], "open green"),
        (EXPERT, [start, "open red", "2: Hall 1.", "open green", "3: Hall 2."], "open red"),
        (WORLD_MODEL, [start, "open red", "Predict."], "Hall 1."),
        (WORLD_MODEL, [start, "open blue", "Predict."], "Behind open blue of hall 0: a bat."),
        (WORLD_MODEL, [start, "open red", "2: Hall 1.", "open green", "Predict."], "Hall 2."),
        (WORLD_MODEL, [start, "open red", "2: Hall 1.", "sing", "Predict."], "Behind sing of hall 1: a wall."),
        (
            SELF_REFLECTION,
            [start + "\nCompare."],
            "open blue: Behind open blue of hall 0: a bat.\nopen red: Hall 1.\nopen red",
        ),
        (
            SELF_REFLECTION,
            [start, "open red", "2: Hall 1.\nCompare."],
            "sing: Behind sing of hall 1: a wall.\nopen green: Hall 2.\nopen green",
        ),
    ]
    assert all(one.target_ids == ids(one.target) and TOKENS.decode(one.target_ids) == one.target for one in found)
    # A made comparison weighs as many tokens as the expert's action has.
    for one, action in zip(found[-2:], ("open red", "open green"), strict=True):
        assert one.weight * len(one.target_ids) == pytest.approx(len(ids(action)))
    assert {one.weight for one in found[:-2]} == {1.0}


def thinker(said: str) -> Callable[[Ask], str]:
    """Opens doors in tags, and compares in always the same words."""

    def answer(ask: Ask) -> str:
        return said if ask.purpose == "reflect" else render_action("tags", random.Random(ask.seed).choice(DOORS))

    return answer


def test_a_policy_that_has_words_compares_by_itself_and_learns_thought_and_action() -> None:
    hand = Hand(Halls(), thinker("<think>Hm.</think>\nA bat helps nobody, so I open red."))
    tree = grown(Around("environment", 2, True), hand, halls("open red", "open red", "open red"), prompts=FULL)
    asked = [ask for ask in hand.asks if ask.purpose == "reflect"]
    assert len(asked) == 3 and tree.spend.reflections == 3 and tree.spend.turns <= 6
    question = asked[0].messages[-1].content
    assert "The action that leads on: open red" in question and "Behind open blue of hall 0: a bat." in question
    found = [one for one in learned(tree, FULL) if one.kind == SELF_REFLECTION]
    assert len(found) == 3
    for one, fork in zip(found, forks(tree), strict=True):
        assert one.target == "<think>A bat helps nobody, so I open red.</think>\n<action>open red</action>" and one.weight == 1.0
        assert parse_action("tags", one.target) == fork.expert.action
        assert not any("Behind" in message.content for message in one.messages)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "...",
        "I sing. <action>sing</action>",
        "<think>I open red.",
        "</think><think> I would rather open green",
        FULL.compare[FULL.compare.index("Write no tags") :].strip(),
    ],
)
def test_a_comparison_that_is_none_or_could_be_read_as_an_action_is_counted_and_not_learned(said: str) -> None:
    tree = grown(Around("environment", 1, True), Hand(Halls(), thinker(said)), halls(*["open red"] * 3), prompts=FULL)
    assert tree.reflections and all(one.unread and one.experience is None for one in tree.reflections)
    assert {one.kind for one in learned(tree, FULL)} == {EXPERT, WORLD_MODEL}


@settings(max_examples=25)
@given(st.text(max_size=30) | st.lists(st.sampled_from(["<think>", "</think>", "<action>", "</action>", "go", "\n"])).map("".join))
def test_whatever_a_comparison_holds_its_target_says_the_action_of_the_expert(text: str) -> None:
    for form, action in (("tags", "open red"), ("program", "print(1)")):
        prompts = replace(FULL, form=form)
        try:
            thought = read_comparison(prompts, text, action)
        except ParseFailure:
            continue
        assert parse_action(prompts.form, f"<think>{thought}</think>\n{render_action(prompts.form, action)}") == action


def test_a_comparison_with_the_action_of_the_expert_in_tags_is_read_as_its_thought() -> None:
    assert (
        read_comparison(FULL, "<think>A bat helps nobody.</think>\n<action>open red</action>", "open red") == "A bat helps nobody."
    )
    assert read_comparison(FULL, "So be it. <action> open red </action>", "open red") == "So be it."
    with pytest.raises(ParseFailure, match="decides for 'sing', which is another action"):
        read_comparison(FULL, "<think>A bat helps nobody.</think>\n<action>sing</action>", "open red")


def test_a_comparison_that_was_cut_is_not_read() -> None:
    with pytest.raises(ParseFailure, match="cut at its limit"):
        parse_thought("I open", whole=False)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    turns=st.integers(1, 12),
    alternatives=st.integers(1, 4),
    source=st.sampled_from(["auto", "successes"]),
)
def test_the_budget_is_kept_every_outcome_is_real_and_no_prompt_shows_one(
    seed: int, turns: int, alternatives: int, source: Any
) -> None:
    task = Halls().tasks("train", 1, seed)[0]
    hand = Hand(Halls(), walker)
    tree = grown(Around(source, alternatives), hand, task, turns=turns, seed=seed)
    assert tree.spend.turns <= turns and tree.spend.turns + tree.spend.expert_steps == len(tree.turns) == len(hand.steps)
    outcomes = set()
    for fork in forks(tree):
        actions = [turn.action for turn in (fork.expert, *fork.others)]
        assert len(actions) <= alternatives + 1 and len({" ".join(one.lower().split()) for one in actions}) == len(actions)
        for turn in (fork.expert, *fork.others):
            world = World(Halls())
            world.reset(task)
            for before in fork.before:
                assert world.step(before.action) == before.observation
            assert world.step(turn.action) == turn.observation
        outcomes |= {turn.observation.text for turn in fork.others if turn.observation.text.startswith("Behind")}
    walked = {turn.observation.text for fork in forks(tree) for turn in fork.before}
    for example in learned(tree):
        assert not any(outcome in message.content for outcome in outcomes - walked for message in example.messages)


def test_a_small_budget_is_spread_over_all_states() -> None:
    tree = grown(Around("auto", 3), Hand(Halls(), walker), halls(*DOORS), turns=3)
    assert [len(fork.others) for fork in forks(tree)] == [1, 1, 1]
    alone = [grown(Around("auto", 3), Hand(Halls(), walker), halls(*DOORS), turns=1, seed=seed) for seed in range(12)]
    assert {tuple(len(fork.others) for fork in forks(tree)) for tree in alone} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_without_an_expert_the_shortest_success_within_half_of_the_budget_takes_its_place() -> None:
    way = ["open red", "open green", "open blue"]
    hand = Hand(Unaided(), scripted("sing", *way, "open blue", "open blue", "open red", "open red"))
    tree = grown(Around("auto", 1), hand, halls(*way), turns=8)
    assert [one.by for one in tree.attempts] == ["policy"] * 5 and tree.spend.expert_steps == 0
    found = list(forks(tree))
    assert [fork.expert.action for fork in found] == ["sing", *way]
    assert [len(fork.others) for fork in found] == [1, 1, 1, 1] and tree.spend.turns == 8
    assert learned(tree, kinds={EXPERT})[0].target_ids == tuple(b"sing")  # as it was sampled


def test_a_plan_that_is_too_long_or_cannot_be_said_is_not_played() -> None:
    class Wordy(Halls):
        """Its expert speaks in two lines."""

        def expert(self) -> Sequence[str]:
            """No bare reply can say it."""
            return ["open\nred"]

    for world, task in ((Halls(), halls(*DOORS, horizon=2)), (Wordy(), halls(*DOORS))):
        hand = Hand(world, walker)
        assert not grown(Around("environment"), hand, task).attempts and hand.steps == []


def test_an_expert_that_solves_nothing_and_a_rollback_that_diverges_give_no_example() -> None:
    class Lost(Halls):
        """Its expert gives up after the first door."""

        def expert(self) -> Sequence[str]:
            """One door."""
            return self.way[:1]

    tree = grown(Around("environment"), Hand(Lost(), walker), halls(*DOORS))
    assert tree.attempts[0].stop in BROKEN and "solve nothing" in (tree.attempts[0].error or "") and not learned(tree)
    diverging = Hand(Halls(), scripted("sing", "sing", "sing"), breaks({6}, ReplayDiverged))
    tree = grown(Around("environment", 1), diverging, halls(*DOORS))
    assert [one.stop for one in tree.attempts[1:]] == [StopReason.REPLAY_DIVERGED, StopReason.ONE_STEP, StopReason.ONE_STEP]
    assert [len(fork.others) for fork in forks(tree)] == [0, 1, 1]
    assert tree.spend.turns == 2


def test_what_does_not_fit_or_cannot_be_written_is_left_out_and_counted() -> None:
    _, tree = by_hand()
    whole, narrow = writer(), writer(context=64)
    assert len(early_experience([tree], TERSE, whole, KINDS)) == 9 and not whole.left_out
    some = early_experience([tree], TERSE, narrow, KINDS)
    assert len(some) + narrow.left_out.total() == 9 and narrow.left_out["world_model_no_room"] > 0
    assert all(len(TOKENS.prompt_ids(one.messages)) + len(one.target_ids) <= 64 for one in some)
    silent = replace(tree, turns=tuple(replace(turn, observation=Observation(" ")) for turn in tree.turns))
    counted = writer()
    early_experience([silent], TERSE, counted, {WORLD_MODEL})
    assert counted.left_out == {"world_model_empty": 4}


def test_a_control_token_that_an_observation_spells_out_is_text_to_the_writer() -> None:
    ids = TOKENS.reply_ids("see <|end|> here")
    assert ids.count(TOKENS.reply_ids("")[0]) == 1 and TOKENS.decode(ids) == "see <|end|> here"


@pytest.mark.parametrize("counts", [[5], [3, 9, 1], [16, 17, 2, 2]])
def test_steps_of_an_epoch_are_counted_as_training_takes_them(counts: list[int]) -> None:
    _, tree = by_hand()
    one = learned(tree)[0]
    examples = [replace(one, id=f"{task}-{n}", task=f"task {task}") for task, count in enumerate(counts) for n in range(count)]
    for batch in (1, 4, 8, 64):
        bundles = pack_examples(examples, TOKENS, row_tokens=4096, most=batch)
        a_step = max(1, round(batch / (len(examples) / len(bundles))))
        assert steps_an_epoch(examples, batch) == -(-len(bundles) // a_step)


def grow(tasks: Sequence[Task], runtime: Runtime, into: dict[str, Tree] | None = None) -> dict[str, Tree]:
    around = Around("auto", 2)
    work = (Rollout(task.id, task, around(TreeBuilder(task, rules(turns=9)))) for task in tasks)
    return driven(work, runtime, into=into)


@pytest.mark.parametrize("patience", [3, 40])
def test_an_exploration_that_breaks_goes_on_from_its_journal_to_the_same_trees(patience: int, tmp_path: Path) -> None:
    tasks = Halls().tasks("train", 6)
    wanted = grow(tasks, Runtime(ScriptedEngine(walker), Halls))
    path = tmp_path / "journal.jsonl"
    journal = Journal(path)
    with pytest.raises(EngineError):
        grow(tasks, Runtime(ScriptedEngine(walker, fail_after=patience), Halls, journal=journal))
    journal.close()
    assert grow(tasks, Runtime(ScriptedEngine(walker), Halls, journal=Journal(path))) == wanted


def test_worlds_in_processes_and_in_workers_that_die_answer_the_expert_and_the_rollbacks_alike() -> None:
    tasks = Halls().tasks("train", 3)
    wanted = grow(tasks, Runtime(ScriptedEngine(walker), Halls))
    apart = Runtime(ScriptedEngine(walker), Apart, placement=Placement.PROCESS, workers=1)
    assert grow(tasks[:1], apart) == {tasks[0].id: wanted[tasks[0].id]}
    crew = FakeWorkers()

    def answer(ask: Ask) -> str:
        if len(engine.asks) in (1, 20):
            crew.open[0].kill()
        return walker(ask)

    engine = ScriptedEngine(answer)
    assert grow(tasks, Runtime(engine, Halls, host=partial(spread, crew, 2))) == wanted
    assert crew.started > 2 and crew.open == []


@pytest.mark.parametrize("said", [None, "open red", [1], 7, (1 / 0 for _ in "a"), iter(["open red", "open \ud800"]), []])
def test_whatever_an_expert_answers_is_texts_or_a_failure_that_says_what_was_wanted(said: Any) -> None:
    world = World(type("Odd", (Halls,), {"expert": lambda self: said})())
    carry_out(world, Call("reset", halls(*DOORS)))
    try:
        assert all(action.isprintable() for action in carry_out(world, Call("expert")).actions)
    except EnvironmentFailure as failure:
        assert "from expert(), found" in str(failure)
    assert carry_out(world, Call("step", action="sing")).observation.text == "Behind sing of hall 0: a wall."


def test_slippery_worlds_break_rollbacks_and_nothing_of_them_is_learned() -> None:
    world = SlipperySokoban(slip=0.5, horizon=8, min_length=2, max_length=4)
    task = world.tasks("train", 1)[0]
    engine = ScriptedEngine(lambda ask: random.Random(ask.seed).choice(["up", "down", "left", "right"]))
    tree = grow([task], Runtime(engine, partial(SlipperySokoban, slip=0.5, horizon=8, min_length=2, max_length=4)))[task.id]
    broken = {one.index for one in tree.attempts if one.stop in BROKEN}
    assert not any(turn.attempt in broken for fork in forks(tree) for turn in (fork.expert, *fork.others))


RECIPE = """
name: early
method: early_experience
environment: {name: halls}
tasks: {train: 6, test: 2}
explore: {turns: 9}
evaluate: {samples: 1, resamples: 10}
train: {epochs: 3, batch_size: 8, learning_rate: 1.0e-3, warmup_share: 0.0}
early_experience: {arms: [early_experience, imitation]}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def experiment(base: Path, *overrides: str, world: Callable[[], Environment] = Halls, **engine: Any) -> Experiment:
    config = parse(RECIPE, "early", [f"model={base}", *overrides])

    def load(folder: Path) -> Engine:
        return ScriptedEngine(walker, **engine)

    return Experiment(config, base, load, world, Silent())


def done(path: Path, made: Experiment) -> RunDirectory:
    with RunDirectory.open(path, made.config) as run:
        run_recipe(made, run)
        return run


def files(path: Path) -> dict[str, str]:
    """The digests of everything that a run computed; lines are in the order in which tasks were finished, which may differ."""
    kept = [one for one in sorted(path.rglob("*")) if one.suffix in (".jsonl", ".safetensors")]
    lines = {one: sorted(one.read_bytes().split(b"\n")) if one.suffix == ".jsonl" else [one.read_bytes()] for one in kept}
    return {str(one.relative_to(path)): hashlib.sha256(b"\n".join(lines[one])).hexdigest() for one in kept}


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return done(tmp_path_factory.mktemp("early") / "run", experiment(base))


def test_every_arm_takes_the_steps_of_imitation_and_the_turns_stay_within_the_budget(whole: RunDirectory) -> None:
    stages = whole.stages
    explored, distilled = stages["explore experience"], stages["distil experience"]
    assert 0 < explored["turns"] == explored["alternatives"] <= explored["budget"] == 6 * 9
    assert (explored["solved"], explored["experts"], explored["states"], explored["expert_steps"]) == (0, 6, 18, 18)
    assert distilled["expert"] == 18 and distilled["world_model"] == 18 + explored["turns"] and distilled["self_reflection"] == 18
    steps = {name: stages[f"train {name}"]["steps"] for name in ("imitation", "world_model", "early_experience")}
    assert (
        steps["imitation"] == steps["world_model"] + steps["early_experience"] and steps["world_model"] == steps["imitation"] // 2
    )
    assert stages["train early_experience"]["examples"] == 36 and list(whole.arms()) == ["base", "early_experience", "imitation"]
    found = list(read_examples(whole.examples("experience")))
    assert len({one.id for one in found}) == len(found)


class Killing(Silent):
    """Ends the program when a stage begins."""

    def __init__(self, stage: str) -> None:
        self.named = stage

    def stage(self, name: str, total: float, unit: str) -> Gauge:
        """As `Silent`, but for one."""
        if name == self.named:
            raise KeyboardInterrupt
        return super().stage(name, total, unit)


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_files(whole: RunDirectory, base: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    for patience in (5, 40):
        with pytest.raises(EngineError):
            done(path, experiment(base, fail_after=patience))
    for stage in ("train world_model", "train early_experience"):
        with pytest.raises(KeyboardInterrupt):
            done(path, replace(experiment(base), progress=Killing(stage)))
    run = done(path, experiment(base))
    assert files(path) == files(whole.path)
    assert {name: run.stages[name] for name in run.stages} == {name: whole.stages[name] for name in whole.stages}


@pytest.mark.parametrize(
    ("overrides", "world", "sentence"),
    [
        (["early_experience.expert=environment"], Unaided, "has none; type early_experience.expert=successes"),
        ([], type("Fixed", (Halls,), {"fidelity": Fidelity.NONE}), "cannot be rolled back to them"),
        (
            ["early_experience.expert=successes", "explore.turns=2"],
            Halls,
            "the policy solved none of 6 tasks .* type explore.turns=8",
        ),
        (
            ["tasks.train=1"],
            type("Mute", (Unaided,), {"step": lambda self, action: Observation("No.")}),
            "no expert to learn from: ",
        ),
    ],
)
def test_what_the_method_cannot_do_without_is_one_sentence(
    overrides: list[str], world: Callable[[], Environment], sentence: str, base: Path, tmp_path: Path
) -> None:
    for _ in range(2):  # the same when it is typed again
        with pytest.raises(UserError, match=sentence):
            done(tmp_path / "run", experiment(base, *overrides, world=world))


def test_prompts_without_the_questions_are_refused_with_the_files_that_they_lack(base: Path, tmp_path: Path) -> None:
    for name in ("system", "first", "turn", "experience", "reflect", "reflect_end", "feedback"):
        (tmp_path / f"{name}.txt").write_text(getattr(FULL, name))
    with pytest.raises(UserError, match=r"wants the prompts predict\.txt, alternative\.txt, compare\.txt, which"):
        done(tmp_path / "run", experiment(base, f"prompts={tmp_path}"))
    for name, text in {"form": "bare", "predict": "?", "alternative": "{observation}", "compare": "{alternatives}"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    with pytest.raises(UserError, match=r"wants the prompts contrast\.txt, comparison\.txt, which"):
        done(tmp_path / "bare", experiment(base, f"prompts={tmp_path}"))


def test_settings_that_cannot_go_together_are_refused_when_they_are_read(base: Path) -> None:
    for override, sentence in (
        ("sampling.act.temperature=0", "at temperature 0 they are all the same"),
        ("early_experience.arms=[imitation, imitation]", "each name once"),
        ("early_experience.kind=all", "kind"),
        ("explore.stop_when_solved=2", "wanted 0, found 2; type explore.stop_when_solved=0$"),
    ):
        with pytest.raises(UserError, match=sentence):
            experiment(base, override)


@pytest.mark.parametrize(("kind", "trained"), [("iwm", {WORLD_MODEL, EXPERT}), ("sr", {SELF_REFLECTION, EXPERT})])
def test_each_strategy_alone_trains_on_its_own_kinds(kind: str, trained: set[str], base: Path, tmp_path: Path) -> None:
    made = experiment(base, f"early_experience.kind={kind}", "early_experience.arms=[early_experience]", "tasks.train=2")
    with RunDirectory.open(tmp_path / "run", made.config) as run:
        run_verb(made, run, "explore")
        run_verb(made, run, "distill")
        assert {one.kind for one in read_examples(run.examples("experience"))} == trained
        assert ("train world_model" in [stage.name for stage in stages_of(made, run)]) == (kind == "iwm")


def test_imitation_alone_tries_nothing_and_costs_no_turn(base: Path, tmp_path: Path) -> None:
    world = type("Fixed", (Halls,), {"fidelity": Fidelity.NONE})
    made = experiment(base, "early_experience.arms=[imitation]", world=world)
    with RunDirectory.open(tmp_path / "run", made.config) as run:
        run_verb(made, run, "explore")
        run_verb(made, run, "distill")
        explored, named = run.stages["explore experience"], [stage.name for stage in stages_of(made, run)]
    assert (explored["turns"], explored["expert_steps"]) == (0, 18) and "rollbacks" not in explored
    assert run.stages["distil experience"] == {"expert": 18}
    assert named == ["evaluate base", "explore experience", "distil experience", "train imitation", "evaluate imitation"]


def test_the_bundled_model_takes_two_real_steps_through_the_command_line(tmp_path: Path) -> None:
    board = "{rows: 5, columns: 5, min_length: 1, max_length: 3, horizon: 4}"
    said = leafe(
        "run", "smoke", "--out", tmp_path / "run", "method=early_experience", "environment.name=sokoban", f"environment.args={board}",
        "tasks.train=4", "tasks.test=1", "explore.turns=6", "evaluate.samples=1", "train.batch_size=8", "train.epochs=2",
        "engine.threads=1", "engine.processes=1",
    )  # fmt: skip
    assert said.status == 0, said.err
    with RunDirectory.existing(tmp_path / "run", read_only=True) as run:
        steps = [run.stages[f"train {name}"]["steps"] for name in ("world_model", "early_experience")]
        assert min(steps) >= 1 and sum(steps) >= 2 and run.stages["explore experience"]["turns"] <= 24
    assert "4 of 4 tasks have an expert" in " ".join(said.out.split()) + " ".join(said.err.split())
    assert "by the environment&#x27;s expert" in (tmp_path / "run" / "report.html").read_text().replace("&#39;", "&#x27;")
