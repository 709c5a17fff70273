"""A reply that thinks until its limit is closed, and the action is asked for alone (docs/replies.md)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fake_server import FakeServer
from hypothesis import given
from hypothesis import strategies as st
from players import FULL, key_in, rules
from rich.console import Console
from test_engine_transformers import asks, engine, run
from test_openai_probe import LOCAL, found
from tiny import WORDS, tiny_model, tiny_tokenizer

from leafe.distillation.early_experience import early_experience
from leafe.distillation.examples import Selection, usable_turns
from leafe.distillation.examples import distill as examples_of
from leafe.distillation.writing import Writer
from leafe.engines.base import UNCONTINUED
from leafe.engines.openai import OpenAIEngine
from leafe.engines.openai_findings import differing
from leafe.engines.scripted import ScriptedEngine
from leafe.engines.serve_engine import ServedEngine
from leafe.engines.transformers import TransformersEngine
from leafe.errors import EngineError
from leafe.forest.builder import TreeBuilder
from leafe.forest.driver import Rollout, Runtime, drive
from leafe.forest.explore import EXPLORERS
from leafe.forest.faults import Faults, alarms, faults_of
from leafe.forest.journal import Journal
from leafe.on_policy.groups import sampled_examples
from leafe.records import Ask, Completion, Experience, Message, Sampling, Tree
from leafe.replies import NO_HALF, Half, ParseFailure, parse_action, parse_reflection
from leafe.replies.closing import answer_in, begun_with, closed_action, closed_reflection, reflection_opening
from leafe.terminal import faults_table
from leafe.worlds.fakes import Lookup

RAMBLE = "<think>It may lie in <action>open place1</action>, or not. " + "Hm, let me see about that. " * 30
ACT = Sampling(max_tokens=120)


@pytest.mark.parametrize(
    ("cut", "begun"),
    [
        ("<think>I may go", "<think>I may go\n</think>\n<action>"),
        ("I may go", "I may go\n</think>\n<action>"),  # the chat template may have opened the thoughts
        ("I may.</think>\nSo I", "I may.</think>\nSo I\n<action>"),
        ("<think>Up.</think>\nSo I", "<think>Up.</think>\nSo I\n<action>"),
        ("<think>Not <action>up</action>, since", "<think>Not <action>up</action>, since\n</think>\n<action>"),
        ("<think>I go</thi", "<think>I go\n</think>\n<action>"),
        ("<think>Caf\ufffd", "<think>Caf\n</think>\n<action>"),
        ("", "\n</think>\n<action>"),
        ("<think>a < b and then", "<think>a < b and then\n</think>\n<action>"),
    ],
)
def test_thoughts_are_closed_where_they_are_open(cut: str, begun: str) -> None:
    assert begun_with(cut, "<action>") == begun


@pytest.mark.parametrize(
    ("said", "whole", "action"),
    [
        ("open place2</action>", True, "open place2"),
        ("open place2</action> and so on and on", False, "open place2"),
        ("\n  open place2\n</action>", False, "open place2"),
        ("open place2\nTurn 2. Empty.", False, "open place2"),
        ("open place2\n\nTurn 2.\n<action>open place3</action>", False, "open place2"),
        ("open place2 <action>open place3</action>", False, None),  # two different ones
        ("Hmm, maybe <action>open place3</action>", True, None),
        ("wait <think>again", True, None),
        ("<action>open place2</action>", True, "open place2"),
        ("</think>\n<action>open place2</action>", True, "open place2"),  # of thoughts that the chat template opened
        ("open place2</think> and", False, "open place2"),
        ("open place2</ACTION >", True, "open place2"),
        ("open place2", True, "open place2"),
        ("open place2", False, None),  # nobody knows whether it goes on
        ("", True, None),
        ("</action>", True, None),
    ],
)
def test_the_action_ends_with_its_tag_or_its_line(said: str, whole: bool, action: str | None) -> None:
    assert closed_action(said, whole=whole) == (f"{action}</action>" if action else None)


@pytest.mark.parametrize(
    ("said", "whole", "answer"),
    [
        ("2</turn>\n<experience>Look left.</experience>", True, "2</turn>\n<experience>Look left.</experience>"),
        ("2</turn>\n<experience>Look left.</experience> Hm, hm", False, "2</turn>\n<experience>Look left.</experience>"),
        ("2</turn>\n<experience>Look left.\nTurn 3 was", False, "2</turn>\n<experience>Look left.</experience>"),
        ("2</turn>\n<experience>Look lef", False, None),
        ("2</turn>\n<experience></experience>", True, None),
        ("2\n<experience>Look left.</experience>", True, "2</turn>\n<experience>Look left.</experience>"),
        ("none</turn>", True, "none</turn>"),
        ("none\nSo it", False, "none</turn>"),
        ("2", False, None),
        ("", True, None),
        ("</turn>", True, None),
        ("<think>push left", True, None),
    ],
)
def test_a_reflection_ends_with_its_tags_or_lines(said: str, whole: bool, answer: str | None) -> None:
    assert closed_reflection(said, known=NO_HALF, whole=whole) == answer


def test_a_reflection_whose_turn_is_known_is_asked_for_its_experience_alone() -> None:
    assert reflection_opening(Half(2)) == "<turn>2</turn>\n<experience>"
    assert closed_reflection("Look left.\nHm", known=Half(2), whole=False) == "Look left.</experience>"
    assert closed_reflection("Look lef", known=Half(2), whole=False) is None


@pytest.mark.parametrize("part", ["<", "<action ", "<action>", "<think>", "</think>", " ", "\ufffd", "<a" + " b" * 59, "\n<turn>"])
def test_reading_takes_time_in_proportion_to_a_reply(part: str) -> None:
    """A length that takes minutes where time grows with its square."""
    text = part * (200_000 // len(part))
    begun_with(text, "<action>")
    for whole in (True, False):
        closed_action(text, whole=whole)
        closed_reflection(text, known=NO_HALF, whole=whole)


PARTS = "<think>,</think>,<Thinking>,<action>,</action>,<turn>,</turn>,<experience>,</experience>,<answer>,</answer>,go up, ,1,none,```,<"
TEXTS = st.lists(st.sampled_from([*PARTS.split(","), "\n", "Action: down"])).map("".join)


@given(TEXTS, TEXTS, st.booleans())
def test_nothing_that_was_thought_becomes_the_answer(cut: str, said: str, whole: bool) -> None:
    action, reflection = closed_action(said, whole=whole), closed_reflection(said, known=NO_HALF, whole=whole)
    if action is not None:
        assert answer_in(begun_with(cut, "<action>") + action, "action") == f"<action>{action}"
        with suppress(ParseFailure):  # it only stood for an action
            read = parse_action("tags", f"<action>{action}")
            assert read and read in action
    if reflection is not None:
        assert answer_in(begun_with(cut, "<turn>") + reflection, "turn") == f"<turn>{reflection}"
        with suppress(ParseFailure):
            parse_reflection("tags", f"<turn>{reflection}", 3)


def rambling(ends: Callable[[Ask], str] = lambda ask: "open place2</action>") -> Callable[[Ask], str]:
    """A policy that thinks for ever, and acts where its thoughts are closed."""

    def answer(ask: Ask) -> str:
        if ask.purpose == "reflect":
            return "<turn>none</turn>"
        return ends(ask) if ask.begun else RAMBLE

    return answer


def tree_of(
    policy: Callable[[Ask], str], *, method: str = "independent", continues: bool = True, **settings: object
) -> tuple[Tree, list[Ask]]:
    """A tree that the driver grew with a scripted engine, and what that engine was asked."""
    engine_ = ScriptedEngine(policy)
    engine_.continues = continues  # type: ignore[misc]
    wanted = rules(FULL, **{"act": ACT, "closing": 40, "max_attempts": 1, **settings})
    task = key_in(2)

    async def grow() -> Tree:
        work = iter([Rollout(task.id, task, EXPLORERS[method](TreeBuilder(task, wanted)))])
        [(_, tree)] = [pair async for pair in drive(work, Runtime(engine_, Lookup), concurrency=4)]
        return tree

    return asyncio.run(grow()), engine_.asks


def test_a_cut_reply_takes_the_action_that_is_written_behind_its_closed_thoughts() -> None:
    tree, asked = tree_of(rambling())
    [turn] = tree.turns
    assert tree.attempts[0].success and turn.parsed and turn.action == "open place2"
    assert turn.completion.finish == "closed" and turn.completion.text.endswith("\n</think>\n<action>open place2</action>")
    assert [ask.begun for ask in asked] == ["", RAMBLE[:120].rstrip() + "\n</think>\n<action>"]
    assert asked[1].sampling == replace(ACT, max_tokens=40) and asked[1].seed != asked[0].seed
    paid = 120 + len("open place2</action>")
    assert turn.completion.drawn == tree.spend.sampled_tokens == paid
    shares = faults_of([tree])
    assert (shares.closed, shares.cut, shares.no_action) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("end", "finish", "experience"),
    [
        (" 1</turn>\n<experience>The key is in place2.\nAnd so on", "closed", Experience(1, "The key is in place2.")),
        ("none</turn> and on", "closed", None),
        ("none" * 20, "length", None),
    ],
)
def test_a_reflection_that_was_cut_is_closed(end: str, finish: str, experience: Experience | None) -> None:
    def policy(ask: Ask) -> str:
        if ask.purpose == "act":
            return "<action>open place3</action>"
        return end if ask.begun else RAMBLE

    tree, asked = tree_of(policy, method="tree", reflect=ACT, max_attempts=2, closing=60)
    reflection = tree.reflections[0]
    assert reflection.replies[0].finish == finish and reflection.experience == experience
    assert tree.spend.reflection_tokens >= 120 + min(60, len(end))
    assert any(ask.begun.endswith("\n</think>\n<turn>") for ask in asked)


def test_a_reply_that_only_repeats_itself_is_closed_unless_it_holds_an_action() -> None:
    limit = replace(ACT, max_tokens=400, max_repeats=4)
    tree, _ = tree_of(rambling(), act=limit)
    assert tree.turns[0].completion.finish == "closed" and tree.turns[0].action == "open place2"
    said = "<action>open place2</action> " + "Hm, let me see about that. " * 30
    tree, asked = tree_of(lambda ask: said, act=limit)
    assert tree.turns[0].completion.finish == "repetition" and tree.turns[0].action == "open place2" and len(asked) == 1


def test_the_terminal_names_each_share_and_leaves_out_what_did_not_occur() -> None:
    console = Console(width=80, file=StringIO())
    console.print(
        faults_table([("tree", faults_of([tree_of(rambling())[0]])), ("base", Faults(replies=4, no_action=0.25, cut=0.5))])
    )
    *_, heading, _, tree, base = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert heading.split() == ["action", "cut", "closed"] and [tree.split(), base.split()] == [
        ["tree", "0.0", "0.0", "100.0"],
        ["base", "25.0", "50.0", "-"],
    ]


def test_what_was_closed_is_not_learned_from() -> None:
    tree, _ = tree_of(rambling())
    assert usable_turns(tree) == set() and examples_of([tree], FULL, Selection()) == []
    assert list(sampled_examples(FULL, tree, tree.turns, kind="grpo", group="g", attempt=0, weight=1.0)) == []


def cut_as_ever(tree: Tree) -> bool:
    return all(turn.completion.finish == "length" and not turn.parsed for turn in tree.turns)


def test_a_reply_stays_cut_where_nothing_can_close_it() -> None:
    endless, _ = tree_of(rambling(lambda ask: "open " * 30))
    assert cut_as_ever(endless) and endless.turns[0].completion.drawn == 160
    assert endless.turns[0].completion.text == RAMBLE[:120]
    other, asked = tree_of(rambling(), continues=False)
    assert cut_as_ever(other) and not any(ask.begun for ask in asked)
    off, asked = tree_of(rambling(), closing=0)
    assert cut_as_ever(off) and not any(ask.begun for ask in asked) and off.turns[0].completion == other.turns[0].completion


def test_many_closed_replies_are_told_of(tmp_path: Path) -> None:
    from test_faults import config

    tree, _ = tree_of(rambling())
    assert any("had to be closed" in line and "sampling.act.max_tokens" in line for line in alarms(faults_of([tree]), config()))


def test_a_run_that_was_killed_goes_on_to_the_same_tree(tmp_path: Path) -> None:
    """Wherever it is killed, between a cut reply and its end too."""
    task, ends = key_in(2, horizon=4), lambda ask: f"open place{3 + ask.seed % 3}</action>"
    wanted = rules(FULL, act=ACT, closing=40, max_attempts=2)

    def grown(fail_after: int | None, path: Path | None) -> Tree:
        journal = Journal(path) if path else None
        try:
            runtime = Runtime(ScriptedEngine(rambling(ends), fail_after=fail_after), Lookup, journal=journal)

            async def grow() -> Tree:
                work = iter([Rollout(task.id, task, EXPLORERS["tree"](TreeBuilder(task, wanted)))])
                [(_, tree)] = [pair async for pair in drive(work, runtime, concurrency=4)]
                return tree

            return asyncio.run(grow())
        finally:
            if journal:
                journal.close()

    whole = grown(None, None)
    assert sum(turn.completion.finish == "closed" for turn in whole.turns) == len(whole.turns) > 4
    for stop in range(1, 8):
        path = tmp_path / f"{stop}.jsonl"
        with pytest.raises(EngineError):
            grown(stop, path)
        assert grown(None, path) == whole


def test_the_engine_in_process_goes_on_from_what_is_begun() -> None:
    [[plain]] = asks(Sampling(0.0, 1.0, 6), tasks=1, samples=1, turns=1)
    ask = replace(plain, begun=f"{WORDS[0]} {WORDS[1]}")
    ids = [*LOCAL.prompt_ids(ask.messages), *LOCAL.text_ids(ask.begun)]
    model, greedy = tiny_model(), list(ids)
    while len(greedy) < len(ids) + 6 and (len(greedy) == len(ids) or greedy[-1] not in LOCAL.stop_ids):
        greedy.append(int(model(torch.tensor([greedy])).logits[0, -1].argmax()))

    async def use(served: TransformersEngine) -> tuple[Completion, Completion]:
        return await served.generate(ask), await served.generate(replace(ask, sampling=Sampling(0.0, 1.0, 512)))

    rest, full = run(use, engine())
    assert list(rest.token_ids) == greedy[len(ids) :] and rest.prompt_tokens == len(ids)
    assert full.finish == "context"


def test_servers_are_asked_to_go_on_and_found_out() -> None:
    assert [found(FakeServer(kind), served="policy").continues for kind in ("vllm", "llama", "transformers", "openai", "mute")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    vllm = found(FakeServer("vllm"))
    older = {name: value for name, value in vllm.as_json().items() if name != "continues"}
    assert differing(vllm.as_json(), vllm) == differing(older, vllm) == []
    assert differing(vllm.as_json(), replace(vllm, continues=False)) == ["continues: True -> False"]
    assert any("sampling.closing" in line for line in found(FakeServer("transformers"), served="policy").lines)


@pytest.mark.parametrize("kind", ["vllm", "llama"])
def test_a_server_hears_the_reply_that_is_begun(kind: str) -> None:
    server = FakeServer(kind, play=lambda messages, draw: "go left" if messages[-1]["role"] == "assistant" else "hm")
    messages, begun = (Message("user", "Where to?"),), "I think so.\n<action>"
    client = OpenAIEngine("http://server/v1", "policy", tokenizer=tiny_tokenizer(), continues=True, transport=server.transport())
    reply = asyncio.run(client.generate(Ask(messages, Sampling(max_tokens=16), 1, begun=begun)))
    assert reply.text.strip() == "go left" and client.continues
    assert reply.prompt_tokens == len(LOCAL.prompt_ids(messages)) + len(LOCAL.text_ids(begun))
    assert server.asked[-1]["messages"][-1] == {"role": "assistant", "content": begun}
    plain = asyncio.run(
        OpenAIEngine("http://server/v1", "policy", transport=server.transport()).generate(Ask(messages, Sampling(max_tokens=16), 1))
    )
    assert plain.text.strip() == "hm" and "continue_final_message" not in server.asked[-1]


def test_an_expert_of_the_policy_s_own_teaches_nothing_by_replies_that_were_closed() -> None:
    tree, _ = tree_of(rambling(lambda ask: "open place2</action>"))
    writer = Writer(LOCAL)
    assert tree.attempts[0].success and early_experience([tree], FULL, writer, {"expert"}) == []
    assert writer.left_out == {"expert_closed": 1}


def test_a_cut_reflection_that_named_its_turn_is_asked_for_the_experience_alone() -> None:
    cut = "<turn>1</turn>\n<experience>The key " + "may lie anywhere, so " * 20

    def policy(ask: Ask) -> str:
        if ask.purpose == "act":
            return "<action>open place3</action>"
        return "Open place2.</experience>" if ask.begun else cut

    tree, asked = tree_of(policy, method="tree", reflect=ACT, max_attempts=2, closing=60)
    assert tree.reflections[0].experience == Experience(1, "Open place2.")
    assert next(ask.begun for ask in asked if ask.begun).endswith("\n<turn>1</turn>\n<experience>")


@pytest.mark.parametrize(
    ("status", "body"), [(400, {"error": {"message": "final message does not appear"}}), (200, {"choices": []})]
)
def test_a_server_that_refuses_to_continue_leaves_the_reply_cut_and_the_run_alive(status: int, body: object) -> None:
    server = FakeServer("vllm", broken=lambda request: (status, body) if request.get("continue_final_message") else None)
    told: list[str] = []
    client = OpenAIEngine("http://server/v1", "policy", continues=True, told=told.append, transport=server.transport())
    ask = Ask((Message("user", "Where to?"),), Sampling(max_tokens=16), 1, begun="<think>Hm\n</think>\n<action>")

    async def asked_twice() -> list[Completion]:
        return [await client.generate(ask), await client.generate(ask)]

    assert asyncio.run(asked_twice()) == [UNCONTINUED] * 2
    assert len(told) == 1 and "does not continue" in told[0]


def test_a_server_that_repeats_what_was_begun_gives_the_continuation_alone() -> None:
    begun = "<think>Hm\n</think>\n<action>"
    server = FakeServer("vllm", play=lambda messages, draw: f"{begun}go left")
    client = OpenAIEngine("http://server/v1", "policy", continues=True, transport=server.transport())
    ask = Ask((Message("user", "Where to?"),), Sampling(max_tokens=64), 1, begun=begun)
    assert asyncio.run(client.generate(ask)).text == "go left"


@pytest.mark.parametrize("continues", [True, False])
def test_a_server_of_the_run_s_own_is_asked_to_continue_though_it_is_the_first_request(continues: bool) -> None:
    """As a run asks that was killed between a cut reply and its end."""
    server = FakeServer("vllm", play=lambda messages, draw: "go left")

    async def connect(lost: Callable[[], str]) -> OpenAIEngine:
        return OpenAIEngine("http://server/v1", "policy", continues=continues, transport=server.transport())

    async def work() -> Completion:
        served = ServedEngine(SimpleNamespace(ended=False), connect)  # type: ignore[arg-type]
        try:
            assert served.continues
            return await served.generate(
                Ask((Message("user", "Where to?"),), Sampling(max_tokens=16), 1, begun="I think so.\n<action>")
            )
        finally:
            await served.close()

    found_ = asyncio.run(work())
    assert found_.text.strip() == "go left" if continues else found_ == UNCONTINUED
