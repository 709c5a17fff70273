"""Teachers that play environments: what they teach is what the environment shows, and advice says only what can be known."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from transformers import AutoModelForCausalLM, AutoTokenizer

from leafe.chat import Notes, Scene, act_messages, reflect_messages
from leafe.engines.tokens import ChatTokenizer
from leafe.envs.base import Environment
from leafe.errors import UserError
from leafe.model_folder import locate
from leafe.nano import CHECKPOINTS
from leafe.nano.build import UNFINISHED, Plan, Shape, build
from leafe.nano.curriculum import Curriculum, Lesson, Stage, Writer
from leafe.nano.household_tutor import BLAME, HouseholdTutor
from leafe.nano.tokenizer import build_tokenizer
from leafe.nano.world_teacher import OracleTutor, WorldTeacher
from leafe.nano.worlds import SHIPPED, world
from leafe.prompts import load_prompts
from leafe.records import Completion, Message, Observation, Turn
from leafe.worlds.fakes import Lookup
from leafe.worlds.household.environment import Household
from leafe.worlds.sokoban.environment import Sokoban

PROMPTS = load_prompts("terse", "household")


def houses() -> Household:
    return Household(rooms=1, places=12, items=8, goals="put,two", skew=0.0)


@cache
def household() -> tuple[Lesson, ...]:
    return tuple(islice(WorldTeacher(houses, HouseholdTutor(), longest=9).lessons(5), 120))


@cache
def tokenizer() -> Any:
    return build_tokenizer(Writer.corpus(PROMPTS, household()), 1024)


@cache
def chat() -> ChatTokenizer:
    return ChatTokenizer(tokenizer())


FACT = re.compile(r"(\w+ \d+) in (\w+ \d+)")


def shown(lesson: Lesson) -> list[str]:
    """What is read before each turn, and at the end."""
    return [lesson.start, *(move.observation for move in lesson.moves)]


@pytest.mark.parametrize(
    ("environment", "teach"),
    [
        (houses(), household),
        (Sokoban(), lambda: tuple(islice(WorldTeacher(Sokoban, OracleTutor(), longest=8).lessons(1), 40))),
        (Lookup(), lambda: tuple(islice(WorldTeacher(Lookup, OracleTutor(), longest=5, split="train").lessons(1), 40))),
    ],
    ids=["household", "sokoban", "lookup"],
)
def test_lessons_are_what_the_environment_shows_when_it_is_played_so(
    environment: Environment, teach: Callable[[], tuple[Lesson, ...]]
) -> None:
    lessons = teach()
    assert any(move.advice for lesson in lessons for move in lesson.moves)
    assert any(lookback.experience for lesson in lessons for lookback in lesson.lookbacks)
    for lesson in lessons:
        assert environment.reset(lesson.task).text == lesson.start
        for move in lesson.moves:
            assert environment.step(move.action).text == move.observation
            assert sum(move.habits.values()) == pytest.approx(1.0) and move.habits[move.action] > 0


def turns_of(lesson: Lesson) -> Iterator[Turn]:
    for number, move in enumerate(lesson.moves, start=1):
        parent = f"t{number - 1}" if number > 1 else None
        observation = Observation(move.observation)
        yield Turn(f"t{number}", parent, number, 0, move.action, True, Completion(move.action), observation, move.advice or None)


def prompts_of_use(lesson: Lesson) -> Iterator[tuple[Message, ...]]:
    """Every prompt that is read while the lesson's episode is played and looked back at."""
    scene, trajectory = Scene(PROMPTS, lesson.task, Observation(lesson.start)), list(turns_of(lesson))
    for number, move in enumerate(lesson.moves):
        yield act_messages(scene, trajectory[:number], Notes(move.advice or None))
    for lookback in lesson.lookbacks:
        yield reflect_messages(scene, trajectory[: lookback.after_turn], ended=lookback.ended)


def test_prompts_with_advice_are_those_of_use_token_for_token() -> None:
    begin = tokenizer().convert_tokens_to_ids("<|assistant|>")
    for lesson in household()[:40]:
        row = Writer(tokenizer(), PROMPTS).row(lesson)
        asked = {tuple(row.ids[key] for key in range(at + 1) if at < row.end[key]) for at in row.term_at if row.ids[at] == begin}
        assert {tuple(chat().prompt_ids(messages)) for messages in prompts_of_use(lesson)} <= asked


def test_what_is_said_of_a_house_was_seen_in_the_episode_and_places_to_try_were_not_looked_into() -> None:
    facts = tries = 0
    for lesson in household():
        heard = [move.advice for move in lesson.moves]
        for lookback in lesson.lookbacks:
            if lookback.experience is None:
                continue
            _, _, said = lookback.experience.text.partition(BLAME)
            seen = shown(lesson)[1 : lookback.after_turn + 1]
            told = [fact for advice in heard[: lookback.after_turn] for fact in FACT.findall(advice.partition(BLAME)[2])]
            for item, place in FACT.findall(said):
                opened = [text for text in seen if text.startswith((f"{place}:", f"{place}, open:"))]
                brought = f"You put {item} in {place}." in seen
                assert brought or any(item in text for text in opened) or (not opened and (item, place) in told)
                facts += 1
            for place in re.findall(r"\w+ \d+", said.partition(" Try ")[2]):
                assert not any(text.startswith((f"{place}:", f"{place}, open:")) for text in seen)
                tries += 1
    assert facts > 30 and tries > 100


def test_a_searcher_who_follows_a_true_fact_goes_there_first() -> None:
    found = 0
    for lesson in household():
        for move in lesson.moves:
            spots = dict(FACT.findall(move.advice.partition(BLAME)[2]))
            if spots and "Bring" not in move.advice:
                likeliest = max(move.habits, key=lambda action: move.habits[action])
                assert any(spot in likeliest for spot in spots.values())
                found += 1
    assert found > 10


def test_an_expert_is_all_that_advice_needs() -> None:
    lessons = islice(WorldTeacher(Sokoban, OracleTutor(right=0.2), longest=8).lessons(2), 60)
    environment, checked = Sokoban(), 0
    for lesson in lessons:
        for lookback in lesson.lookbacks:
            if lookback.experience is None:
                continue
            environment.reset(lesson.task)
            for move in lesson.moves[: lookback.experience.turn - 1]:
                environment.step(move.action)
            before = len(environment.expert())
            assert lookback.experience.text.startswith(f"{lesson.moves[lookback.experience.turn - 1].action} was wrong. Do ")
            for action in lookback.experience.text.rpartition(" Do ")[2].removesuffix(".").split("; "):
                environment.step(action)
                before -= 1
                assert len(environment.expert()) == before
            checked += 1
    assert checked > 20


def test_the_same_seed_gives_the_same_lessons() -> None:
    def drawn(seed: int) -> tuple[Lesson, ...]:
        return tuple(islice(WorldTeacher(houses, HouseholdTutor(), longest=9).lessons(seed), 10))

    assert drawn(5) == household()[:10] != drawn(6)


def test_a_tutor_says_what_it_cannot_read() -> None:
    lessons = WorldTeacher(lambda: Household(rooms=2, goals="put"), HouseholdTutor(), longest=4).lessons(0)
    with pytest.raises(ValueError, match="one room with the goal put or two"):
        next(lessons)


def test_a_split_without_tasks_cannot_be_taught() -> None:
    with pytest.raises(UserError, match="pretrain"):
        next(WorldTeacher(Lookup, OracleTutor(), longest=4).lessons(0))


def test_any_environment_with_an_expert_is_a_world_that_can_be_built(tmp_path: Path) -> None:
    said = leafe("nano", "build", "lookup", "--steps", "1", "--size", "small", "--processes", "1", "--out", tmp_path / "lookup")
    assert said.status == 0, said
    assert (tmp_path / "lookup" / "model.safetensors").is_file() and not (tmp_path / "lookup" / UNFINISHED).exists()
    refused = leafe("nano", "build", "lookup")
    assert refused.status == 2 and "--out DIR" in refused.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gymnasium", "id=FrozenLake-v1"], "missing: expert"),
        (["codecontests"], "system prompt"),
        (["lookup", "--split", "nowhere"], "nowhere"),
        (["nowhere"], "nowhere"),
    ],
)
def test_a_world_that_cannot_be_taught_is_refused_in_a_sentence(tmp_path: Path, arguments: list[str], words: str) -> None:
    said = leafe("nano", "build", *arguments, "--out", tmp_path / "model")
    assert said.status == 2 and words in said.err and said.err.count("\n") == 1
    assert not (tmp_path / "model").exists()


def test_the_shipped_worlds_are_taught_on_a_split_of_their_own() -> None:
    for name in SHIPPED:
        curriculum = world(name, {}, split="train").curriculum
        lesson = next(iter(curriculum.teacher(curriculum.stages[0]).lessons(0)))
        assert lesson.moves and curriculum.prompts == name


SMALL = Shape(hidden=32, layers=1, heads=2, inner=32, vocabulary=512, context=512)
BRIEF = Curriculum(
    "household", (Stage(1.0, 2),), partial(lambda stage: WorldTeacher(houses, HouseholdTutor(), longest=stage.longest))
)


def _build(out: Path, plan: Plan) -> None:
    build(BRIEF, out, plan)


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    plan = Plan(steps=24, tokens=64, shape=SMALL, saved_every=8)
    _build(tmp_path / "whole", plan)
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_build, args=(tmp_path / "killed", plan))
    killed.start()
    assert killed.pid is not None
    (tmp_path / "killed").mkdir(exist_ok=True)
    (tmp_path / "killed" / "model.safetensors").write_bytes(b"what stood there before")
    while killed.is_alive() and not (tmp_path / "killed" / UNFINISHED).exists():
        killed.join(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert (tmp_path / "killed" / "model.safetensors").read_bytes() == b"what stood there before"
    told: list[str] = []
    build(BRIEF, tmp_path / "killed", plan, told.append)
    assert not told or not told[0].startswith("step 1/")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("name", "most"), [("nano", 5_000_000), ("nano-household", 8_000_000)])
def test_the_shipped_checkpoints_are_small_and_any_tool_loads_them(name: str, most: int) -> None:
    folder = locate(name, CHECKPOINTS)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= most
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "1: ?"}], add_generation_prompt=True, return_tensors="pt")
    assert model.config.vocab_size >= len(tokenizer) and model(**prompt).logits.isfinite().all()
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\nlicense: apache-2.0")
