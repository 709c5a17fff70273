"""OpenEnv servers: the published one where it is installed, and one that follows its protocol, well or badly."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from test_cli import assert_one_sentence

from leafe.envs.base import Fidelity
from leafe.envs.check import check_environment
from leafe.envs.openenv import LARGEST, OpenEnv
from leafe.envs.openenv_actions import ActionForm, NoAction
from leafe.envs.openenv_texts import LONGEST, readable
from leafe.envs.registry import make
from leafe.envs.world import World
from leafe.errors import EnvironmentFailure, MissingDependency, UserError
from leafe.records import Observation

pytest.importorskip("websockets", reason="wants pip install -e '.[openenv]'")
from openenv_server import ABOUT, ACTION, Spoil, serve_fake

WORDS = ["ab", "ca", "leave", "", "x" * 50]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve_fake() as address:
        yield address


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def real_server() -> Iterator[str]:
    """The published server, in the interpreter that `LEAFE_OPENENV_PYTHON` names, or in this one where it has the package."""
    python = os.environ.get("LEAFE_OPENENV_PYTHON") or (sys.executable if importlib.util.find_spec("openenv") else "")
    if not python:
        pytest.skip("openenv-core is not installed; name an interpreter that has it: LEAFE_OPENENV_PYTHON")
    port = free_port()
    script = Path(__file__).with_name("openenv_server.py")
    with subprocess.Popen([python, str(script), str(port), "4"], stderr=subprocess.PIPE) as process:
        for _ in range(1200):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stderr and process.stderr.read().decode()[-500:]
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
        process.kill()


def played(environment: OpenEnv, *actions: str, number: int = 0) -> list[Observation]:
    task = environment.tasks("train", number + 1)[-1]
    return [environment.reset(task), *(environment.step(action) for action in actions)]


def holds(address: str, **more: Any) -> dict[str, str]:
    """The verdicts on a server with many rollbacks."""
    arguments = {"url": address, "fidelity": "replay", "examples": WORDS, "horizon": 8, **more}
    report = check_environment(
        lambda: make("openenv", arguments), name="openenv", rollbacks=60, count=4, spec="openenv", arguments=arguments
    )
    assert report.passed, [finding for finding in report.findings if finding.verdict == "fail"]
    return {finding.name: finding.verdict for finding in report.findings}


def test_what_is_declared_holds_over_many_rollbacks(server: str) -> None:
    verdicts = holds(server)
    assert verdicts["rollback"] == verdicts["second_process"] == verdicts["after_end"] == "pass"
    assert verdicts["invalid_action"] == "skipped"  # any word may be said


def test_the_published_server_is_played_as_the_one_of_the_tests(real_server: str, server: str) -> None:
    assert holds(real_server)["rollback"] == "pass"
    real, ours = (played(OpenEnv(url=address), *WORDS, number=3) for address in (real_server, server))
    assert [one.text for one in real] == [one.text for one in ours]


def test_an_instance_is_a_session_of_its_own(server: str) -> None:
    one, other = OpenEnv(url=server), OpenEnv(url=server)
    assert played(one, "xx", "xx")[-1].text.startswith("text: 0 of the letters are right.\ntries: 2")
    assert played(other, "xx")[-1].text.startswith("text: 0 of the letters are right.\ntries: 1")
    assert "tries: 3" in one.step("xx").text
    one.close()
    other.close()


def test_a_word_is_an_action_and_the_ending_and_the_success_are_the_servers(server: str) -> None:
    first = played(OpenEnv(url=server))[0]
    assert first == Observation("text: A safe with two letters.\ntries: 0")
    tried = [played(OpenEnv(url=server, show=["text"]), f" {one}{other} ") for one in "abc" for other in "abc"]
    opened = [one[-1] for one in tried if one[-1].success]
    assert opened == [Observation("Open!\nReward: 1. The episode is over.", True, True, 1.0)]
    left = played(OpenEnv(url=server), "leave", "ab")
    assert left[1].done and not left[1].success and left[2] == left[1]
    asked = played(OpenEnv(url=server, success_reward=0.0), "leave")[-1]
    assert asked.success


def test_what_the_server_refuses_is_answered_and_takes_no_step(server: str) -> None:
    told, empty, after = played(OpenEnv(url=server), "x" * 41, "  ", "xx")[1:]
    assert (
        told.text
        == "That is no action: String should have at most 40 characters. An action is word (string): Two of the letters a, b and c."
    )
    assert empty.text.startswith("That is no action. An action is word") and "tries: 1" in after.text


def test_an_error_of_the_world_is_a_lost_episode_and_the_next_reset_is_a_new_session(server: str) -> None:
    world = World(OpenEnv(url=server))
    task = world.environment.tasks("train", 1)[0]
    first = world.reset(task)
    with pytest.raises(EnvironmentFailure, match="the OpenEnv server answered 'error': the safe is broken"):
        world.step("smash")
    assert world.reset(task) == first
    world.close()


def bomb(answer: dict[str, Any]) -> str:
    return "[" * 100_000


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda answer: "{", "answered with something that is no JSON"),
        (lambda answer: b"{}", "answered with something that is no message"),
        (lambda answer: "[]", "answered with something that is no message"),
        (lambda answer: '{"type": "observation", "data": []}', "answered with something that is no message"),
        (lambda answer: '{"type": "observation", "data": {"observation": "x"}}', "something that is no observation"),
        (lambda answer: '{"type": "observation", "data": {"observation": {}, "done": "yes"}}', "something that is no observation"),
        (lambda answer: '{"type": "observation", "data": {"observation": {}, "reward": "1"}}', "something that is no observation"),
        (lambda answer: '{"type": "observation", "data": {"observation": {}, "reward": NaN}}', "the reward nan"),
        (lambda answer: '{"type": "state", "data": {}}', "answered 'state'"),
        (lambda answer: '"' + "x" * (9 * 2**20) + '"', "ended the session"),
        (bomb, "answered with something that is no JSON"),
    ],
)
def test_a_server_that_talks_nonsense_loses_the_episode_and_nothing_else(spoil: Spoil, why: str) -> None:
    with serve_fake(spoil=spoil) as address:
        world = World(OpenEnv(url=address, timeout=20.0))
        with pytest.raises(EnvironmentFailure, match=why):
            world.reset(world.environment.tasks("train", 1)[0])
        world.close()


def test_a_server_that_does_not_answer_is_not_waited_for() -> None:
    def slow(answer: dict[str, Any]) -> None:
        time.sleep(3)

    with serve_fake(spoil=slow) as address:
        world = World(OpenEnv(url=address, timeout=1.0))
        with pytest.raises(EnvironmentFailure, match="did not answer in 1 s"):
            world.reset(world.environment.tasks("train", 1)[0])
        world.close()


def test_a_full_server_is_said_to_be_full_and_sessions_are_what_it_takes() -> None:
    with serve_fake(sessions=1) as address:
        one, other = OpenEnv(url=address, sessions=1), OpenEnv(url=address)
        played(one)
        assert one.instances == 1
        with pytest.raises(UserError, match="max_concurrent_envs"):
            played(other)
        one.close()
        assert played(other)[0].text.startswith("text: A safe")
        other.close()


def test_control_characters_and_floods_do_not_reach_a_prompt() -> None:
    assert readable("a\x1b[2J\x00b\r\nc\u202e") == "a [2J b\nc"
    assert len(readable("x" * 10**6)) < LONGEST + 40 and readable("x" * (LONGEST + 1)).endswith("[1 more characters]")
    assert readable(" \n") == "(nothing)"


def form(properties: dict[str, Any], wanted: str = "", required: list[str] | None = None) -> ActionForm:
    return ActionForm.of({"properties": properties, "required": required or []}, wanted, "http://here")


def test_the_field_that_takes_the_text_is_read_off_the_schema() -> None:
    text, number = {"type": "string"}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}
    assert form({"metadata": {}, "move": number}).read(" 7 ") == {"move": 7}
    assert form({"say": text, "loud": {"type": "boolean"}}, required=["say"]).read("hm ") == {"say": "hm"}
    assert form({"say": text, "loud": {"type": "boolean"}}, "loud").read("true") == {"loud": True}
    assert form({"any": {}}).read('{"x": [1]}') == {"any": {"x": [1]}}
    assert form({"say": text, "to": text}, "json").read('{"say": "a", "to": "b"}') == {"say": "a", "to": "b"}
    listed = form({"go": {"enum": ["left", "right"], "type": "string"}})
    assert listed.read("left") == {"go": "left"} and listed.help == "An action is one of: left, right."
    for bad, one in [
        ("up", listed),
        ("1.5", form({"move": number})),
        ("true", form({"move": number})),
        ("[1]", form({"a": text}, "json")),
    ]:
        with pytest.raises(NoAction):
            one.read(bad)
    with pytest.raises(UserError, match=r"say \(string\), to \(string\)"):
        form({"say": text, "to": text})
    with pytest.raises(UserError, match="action=json"):
        form({"say": text, "to": text}, "say", required=["say", "to"])
    with pytest.raises(UserError, match=r"http://here.*'sai'.*'say'"):
        form({"say": text}, "sai")


MOVE = {"enum": ["left", "right"], "title": "Move", "type": "string"}
DEFINED = {"Move": MOVE, "Speed": {"enum": [1, 2], "type": "integer"}, "Loop": {"anyOf": [{"$ref": "#/$defs/Loop"}] * 20}}


@pytest.mark.parametrize(
    ("given", "text", "value"),
    [
        ({"$ref": "#/$defs/Move"}, "left", "left"),
        ({"allOf": [{"$ref": "#/$defs/Move"}], "description": "Where to."}, " right ", "right"),
        ({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/Move"}], "default": None}, "left", "left"),
        ({"$ref": "#/$defs/Speed"}, "2", 2),
        ({"enum": ["fast", 3, None]}, "3", 3),
        ({"const": "go", "type": "string"}, "go", "go"),
        ({"type": ["null", "string"]}, "left", "left"),
        ({"type": ["integer", "null"]}, "3", 3),
        ({}, "left", "left"),
        ({}, "turn left", "turn left"),
        ({}, "3", 3),
        ({}, "NaN", "NaN"),
        ({"$ref": "http://elsewhere/schema"}, "left", "left"),
        ({"$ref": "#/$defs/Loop"}, "left", "left"),
        ({"anyOf": None, "type": "string"}, "left", "left"),
    ],
)
def test_a_field_is_read_by_what_its_schema_refers_to(given: dict[str, Any], text: str, value: Any) -> None:
    found = ActionForm.of({"properties": {"m": given}, "$defs": DEFINED, "required": None}, "", "http://here")
    assert found.read(text) == {"m": value} and type(found.read(text)["m"]) is type(value)
    with pytest.raises(NoAction):
        found.read(" ")
    if found.choices:
        with pytest.raises(NoAction):
            found.read("sideways")


def test_the_words_of_a_schema_are_shown_without_control_characters() -> None:
    told = form({"say\x1b[2J": {"type": "string", "description": "A \x1b[31mword."}}).help
    listed = form({"go": {"enum": ["le\x1bft", "right"]}})
    assert told == "An action is say [2J (string): A  [31mword."
    assert listed.help == "An action is one of: le ft, right." and listed.read("le ft") == {"go": "le\x1bft"}
    assert form({"a\x07": {}, "b": {}}, "json").help.endswith("a  (any), b (any).")
    with pytest.raises(UserError) as refusal:
        form({"a\x07": {}, "b": {}})
    assert str(refusal.value).isprintable()


def test_a_page_without_an_end_is_not_read_to_its_end() -> None:
    sent = 0

    class Endless(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            nonlocal sent
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                while sent < 20 * LARGEST:
                    sent += self.wfile.write(b" " * 65536)

        def log_message(self, *about: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Endless) as endless:
        threading.Thread(target=endless.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="answered 200 and no JSON object"):
            OpenEnv(url=f"http://127.0.0.1:{endless.server_address[1]}").tasks("train", 1)
        endless.shutdown()
    assert sent < 4 * LARGEST


def test_splits_share_no_seed_and_the_fidelity_is_the_users_word(server: str) -> None:
    drawn = [OpenEnv(url=server).tasks(split, 50) for split in ("train", "valid", "test")]
    assert len({task.payload["seed"] for tasks in drawn for task in tasks}) == 150
    assert (
        drawn[0][0].instruction
        == "Open the safe with the right two letters.\nAn action is word (string): Two of the letters a, b and c."
    )
    assert OpenEnv.fidelity is Fidelity.NONE and OpenEnv(url=server, fidelity="replay").fidelity is Fidelity.REPLAY


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([f"url=http://127.0.0.1:{free_port()}"], "no OpenEnv server answers at http://127.0.0.1:"),
        (["url=http://"], "openenv wants the address of a server, as url=http://localhost:8000; found 'http://'"),
        (["url=ftp://here"], "openenv wants the address of a server"),
        (["url=SERVER/other"], "SERVER/other/metadata answered 404 and no JSON object: is url= that of an OpenEnv server?"),
        (["url=SERVER", "action=sentence"], "unknown field of the actions of SERVER 'sentence'"),
        (["url=SERVER", "fidelity=snapshot"], "unknown fidelity of an OpenEnv server 'snapshot'"),
        (["url=SERVER", "timeout=0"], "openenv wants a horizon of at least 1"),
        (["url=SERVER", "--split", "exam"], "unknown split 'exam'"),
        ([], "missing a required argument: 'url'"),
    ],
)
def test_what_cannot_be_played_is_one_sentence(arguments: list[str], sentence: str, server: str) -> None:
    said = leafe("check-env", "openenv", *(one.replace("SERVER", server) for one in arguments))
    assert_one_sentence(said, sentence.replace("SERVER", server))


def test_pages_that_are_no_json_are_one_sentence() -> None:
    for pages, why in (
        ({"/metadata": "<html>"}, "answered 200 and no JSON object"),
        ({"/metadata": ABOUT, "/schema": {}}, "no actions"),
    ):
        with serve_fake(pages=pages) as address:
            assert_one_sentence(leafe("check-env", "openenv", f"url={address}"), why)


def test_a_server_that_goes_away_stops_the_stage_with_one_sentence() -> None:
    with serve_fake(pages={"/schema": {"action": ACTION}, "/metadata": ABOUT}) as address:
        environment = OpenEnv(url=address, timeout=5.0)
        task = environment.tasks("train", 1)[0]
    with pytest.raises(UserError, match=r"no OpenEnv session can be had at ws://127\.0\.0\.1:.*start the server"):
        environment.reset(task)


def test_a_field_that_is_to_be_shown_and_is_not_there_is_named(server: str) -> None:
    with pytest.raises(UserError, match=r"unknown field of the observations of .* 'txt'; did you mean 'text'\?"):
        played(OpenEnv(url=server, show=["txt"]))


def test_without_the_extra_the_command_that_installs_it_is_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets", None)
    monkeypatch.setitem(sys.modules, "websockets.exceptions", None)
    with pytest.raises(MissingDependency, match=r"is not installed; type: pip install .*\[openenv\]"):
        OpenEnv(url=server)


def test_a_session_is_played_from_the_command_line(server: str) -> None:
    said = leafe("play", "openenv", f"url={server}", "fidelity=replay", stdin="xx\nback 1\nleave\n")
    assert said.status == 0 and "0 of the letters are right." in said.out


def test_an_action_is_not_changed_by_who_plays(server: str) -> None:
    lost = replace(played(OpenEnv(url=server), "zz")[-1], text="")
    assert lost == Observation("", False, False, 0.0)
