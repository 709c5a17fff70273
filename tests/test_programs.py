"""CodeContests and MBPP: what is read, how it is judged, what the policy is told, and that no hidden test is ever told."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from command import leafe
from hypothesis import given, settings
from hypothesis import strategies as st
from players import FULL, Hand, grown, turns_in

from leafe.chat import Scene, act_messages, bare_messages, reflect_messages
from leafe.envs.base import Environment
from leafe.envs.check import check_environment
from leafe.envs.registry import make
from leafe.errors import CorruptFile, UnknownName, UserError
from leafe.forest.explore import explore
from leafe.prompts import PROFILES, load_prompts
from leafe.records import Ask, Experience, StopReason, Task
from leafe.replies import parse_action, render_action, render_reflection
from leafe.worlds.codecontests import CodeContests
from leafe.worlds.mbpp import Mbpp
from leafe.worlds.programs.call_runner import canonical
from leafe.worlds.programs.environment import OWN, Programming
from leafe.worlds.programs.feedback import HIDDEN, feedback, plain
from leafe.worlds.programs.judge import Failure, judge
from leafe.worlds.programs.problem import Case, Problem, same_answer
from leafe.worlds.sandbox.limits import Limits, Outcome, Program, Verdict
from leafe.worlds.sandbox.probe import objection
from leafe.worlds.sandbox.sandbox import Sandbox

KINDS = [kind for kind in ("bubblewrap", "seccomp") if objection(kind) is None]
contained = pytest.mark.skipif(not KINDS, reason="no sandbox contains programs on this machine; leafe doctor says what it wants")
BOTH = pytest.mark.parametrize("name", ["codecontests", "mbpp"])
EITHER = pytest.mark.parametrize("name", [pytest.param("codecontests", marks=pytest.mark.slow), "mbpp"])
DATA = os.environ.get("LEAFE_DATA", "")
with_data = pytest.mark.skipif(not DATA, reason="LEAFE_DATA names no folder with codecontests/ and mbpp/")


def made(name: str, **settings: Any) -> Programming:
    """The environment in the best sandbox that there is."""
    environment = make(name, {"sandbox": KINDS[0], **settings})
    assert isinstance(environment, Programming)
    return environment


def row(**changes: Any) -> dict[str, Any]:
    """A problem in CodeContests' schema: print the double."""
    problem = {
        "name": "double",
        "description": "Print the double of a number.",
        "public_tests": {"input": ["1\n", "-4\n"], "output": ["2\n", "-8\n"]},
        "private_tests": {"input": ["1\n", "70021\n"], "output": ["2\n", "140042\n"]},
        "generated_tests": {"input": [], "output": []},
        "solutions": {"language": [2, 3], "solution": ["int main() {}", "print(2 * int(input()))"]},
        "incorrect_solutions": {"language": [3], "solution": ["print(2)"]},
        "time_limit": {"seconds": 1, "nanos": 500_000_000},
        "memory_limit_bytes": 64 * 2**20,
    }
    return problem | changes


def written(path: Path, *rows: Mapping[str, Any]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def begun(tmp_path: Path, *rows: Mapping[str, Any], **settings: Any) -> Programming:
    """An episode of the only problem in a file."""
    environment = made("codecontests", path=written(tmp_path / "train.jsonl", *(rows or (row(),))), **settings)
    environment.reset(environment.tasks("train", 1)[0])
    return environment


# Judged


@contained
@EITHER
def test_a_shipped_environment_of_programs_keeps_what_it_declares(name: str) -> None:
    args = {"sandbox": KINDS[0]}
    report = check_environment(lambda: make(name, args), name=name, rollbacks=12, count=3, spec=name, arguments=args)
    found = {finding.name: finding for finding in report.findings}
    assert report.passed and {finding.verdict for finding in report.findings} == {"pass"}, report
    assert found["rollback"].figures["rollbacks"] >= 12 and report.measured is report.declared


@contained
@EITHER
def test_every_own_problem_is_solved_by_its_solution_and_not_by_its_wrong_programs(name: str) -> None:
    environment = made(name)
    tasks = [task for split, count in (("train", 8), ("valid", 2), ("test", 2)) for task in environment.tasks(split, count)]
    assert len({task.id for task in tasks}) == 12
    for task in tasks:
        environment.reset(task)
        *wrong, _ = environment.example_actions()[1:]
        assert wrong and not any(environment.step(program).success for program in wrong)
        solved = environment.step(environment.expert()[0])
        assert solved.success and solved.done and solved.reward == 1.0 and environment.expert() == []


@contained
@pytest.mark.parametrize(
    ("program", "told"),
    [
        ("print(2)", "Public test 2 of 2: the answer is wrong.\nInput:\n-4\nExpected:\n-8\nGot:\n2"),
        ("pass", "Public test 1 of 2: the answer is wrong.\nInput:\n1\nExpected:\n2\nGot:\n(nothing)"),
        (
            "x = 1\nprint([][1])",
            "Public test 1 of 2: the program fails: line 2: IndexError: list index out of range.\nInput:\n1\nExpected:\n2",
        ),
        ("raise SystemExit(3)", "Public test 1 of 2: the program fails: exit status 3.\nInput:\n1\nExpected:\n2"),
        ("while True: pass", "Public test 1 of 2: the program takes longer than the limit of 0.3 s.\nInput:\n1\nExpected:\n2"),
        (
            "a = [0] * 10**9",
            "Public test 1 of 2: the program takes more memory than the limit of 256 MiB.\nInput:\n1\nExpected:\n2",
        ),
        ("while True: print(1)", "Public test 1 of 2: the program writes too much.\nInput:\n1\nExpected:\n2"),
        ("x = int(input())\nprint(2 * x if x < 99 else 0)", HIDDEN.format(count=2)),
        ("print(2 * int(input()))", "All tests pass."),
        ("```python\nprint(2 * int(input()))\n```", "All tests pass."),
        ("input('%')\nprint('\\x07')", "Got:\n%\\x07"),
    ],
)
def test_what_is_wrong_is_told_from_the_first_public_test_that_fails(tmp_path: Path, program: str, told: str) -> None:
    environment = begun(tmp_path, time_factor=0.2)
    observation = environment.step(program)
    if program.startswith("input"):
        assert observation.text.endswith("Got:\n%\\x07")
    else:
        assert observation.text == told
    assert observation.success == (told == "All tests pass.")


@contained
@pytest.mark.parametrize("text", ["", "  \n", "open box", "```python\n```", "def f(:", "  x = 1", "x" * 70_000, "\0", "\ud800"])
def test_text_that_is_no_program_is_answered_with_what_would_be_one_and_changes_nothing(tmp_path: Path, text: str) -> None:
    environment = begun(tmp_path)
    before = environment.snapshot()
    observation = environment.step(text)
    assert observation.text.endswith("Submit a whole Python 3 program that reads standard input and writes standard output.")
    assert not observation.done and environment.snapshot() == before


@contained
def test_submissions_are_the_state_and_going_back_forgets_them(tmp_path: Path) -> None:
    environment = begun(tmp_path)
    start = environment.snapshot()
    environment.step("print(2)")
    middle = environment.snapshot()
    assert len(middle.submissions) == 1 and start.submissions == ()
    last = environment.step("print(2 * int(input()))")
    assert environment.step("print(2)") == last and environment.expert() == []
    environment.restore(middle)
    assert environment.snapshot() == middle and environment.expert() and not environment.step("print(3)").done


@contained
def test_a_function_is_called_with_arguments_and_its_value_compared(tmp_path: Path) -> None:
    task = {
        "task_id": 601,
        "text": "Write a function to pair numbers.",
        "code": "def pair(a, b):\n    return (a, [b, None])",
        "test_list": ["assert pair(1, 2.0) == (1, [2, None])", "assert pair(math.floor(3.5), 'a  b') == (3, ['a  b', None])"],
        "test_setup_code": "import math",
        "challenge_test_list": [],
    }
    environment = made("mbpp", path=written(tmp_path / "mbpp.jsonl", task))
    first = environment.tasks("train", 1)[0]
    assert first.instruction.endswith("For example:\nassert pair(1, 2.0) == (1, [2, None])")
    told = {}
    for body in ("return (a, b)", "return (a, [b, None])", "return (a, [b if b == 2 else 'a b', None])", "print('2')", "1/0"):
        environment.reset(first)
        told[body] = environment.step(f"def pair(a, b):\n    {body}").text
    assert told["return (a, b)"].endswith("Call:\npair(1, 2.0)\nExpected:\n(1, [2, None])\nGot:\n(1, 2)")
    assert told["return (a, [b, None])"] == "All tests pass."
    assert told["return (a, [b if b == 2 else 'a b', None])"].startswith("All 1 public tests pass, but a hidden")
    assert told["print('2')"].endswith("Got:\nNone") and "line 2: ZeroDivisionError" in told["1/0"]
    environment.reset(first)
    assert "NameError: name 'pair' is not defined" in environment.step("def other():\n    pass").text
    assert environment.step("def pair(:").text.startswith("That is no Python program: line 1: SyntaxError")


def pairs_of(text: str, expected: str, other: str = "", answer: str = "") -> dict[str, Any]:
    """A public test and a hidden one, where none is given the same with a further line that nobody reads."""
    hidden = {"input": [other or text + "0\n"], "output": [answer or expected]}
    return {"public_tests": {"input": [text], "output": [expected]}, "private_tests": hidden}


RIGHT = {
    "any case": (row(description="Print YES. You can print each letter in any case.", **pairs_of("1\n", "YES\n")), "print('Yes')"),
    "a tolerance": (row(description="Print it. An error of at most 1e-4 is fine.", **pairs_of("1\n", "0.3333\n")), "print(1 / 3)"),
    "more than a mebibyte": (row(**pairs_of("1\n", "word\n" * 300_000)), "print('word\\n' * 300000)"),
    "a blank last line": (
        row(**pairs_of("2\na\n\n", "1 0\n", "3\nab\n\n\n", "2 0 0\n")),
        "n = int(input())\nprint(*(len(input()) for _ in range(n)))",
    ),
    "digits by the thousand": (row(**pairs_of("9" * 5000 + "\n", "1" + "0" * 5000 + "\n")), "print(int(input()) + 1)"),
    "/dev/stdin": (row(**pairs_of("5\n", "10\n")), "print(2 * int(open('/dev/stdin').readline()))"),
    "/dev/fd/0": (
        row(**pairs_of("5\n", "10\n")),
        "import os\nprint(2 * int(os.read(os.open('/dev/fd/0', os.O_RDONLY), 9).split()[0]))",
    ),
}


@contained
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_program_is_right(name: str, tmp_path: Path) -> None:
    problem, program = RIGHT[name]
    environment = begun(tmp_path, problem)
    assert environment.step(program).text == "All tests pass."
    environment.reset(environment.tasks("train", 1)[0])
    assert not environment.step("print(12)").success


@contained
@pytest.mark.parametrize(
    "program", ["eval(')')", "exec('def f(:')", "compile('x = = 1', 'x.py', 'exec')", "raise SyntaxError('no')"]
)
def test_a_program_that_meets_a_syntax_error_as_it_runs_is_a_program_that_fails(program: str, tmp_path: Path) -> None:
    environment = begun(tmp_path)
    told = environment.step(f"x = input()\n{program}")
    assert (
        told.text.startswith("Public test 1 of 2: the program fails: line 2: SyntaxError")
        and told.info["verdict"] == "public error"
    )
    assert len(environment.snapshot().submissions) == 1


def function(code: str, *tests: str) -> dict[str, Any]:
    """A problem in MBPP's schema."""
    return {
        "task_id": 601,
        "text": "Write f.",
        "code": code,
        "test_list": list(tests),
        "test_setup_code": "",
        "challenge_test_list": [],
    }


EQUAL = [
    ("Decimal('1.50')", "1.5"),
    ("Decimal(3)", "3"),
    ("Fraction(1, 4)", "0.25"),
    ("[Fraction(6, 2)]", "[3]"),
    ("bytearray(b'ab')", "b'ab'"),
    ("Colour('red')", "'red'"),
    ("{Colour('red'): Size(2)}", "{'red': 2}"),
    ("{1: 2}.keys()", "{1}"),
    ("Pair(1, 2)", "(1, 2)"),
    ("Counter('aab')", "{'a': 2, 'b': 1}"),
    ("UserList([1, True])", "[1, 1]"),
    ("7**6000", canonical(7**6000)),
]
TYPES = """import atexit, enum
from collections import Counter, UserList, namedtuple
from decimal import Decimal
from fractions import Fraction
Pair = namedtuple("Pair", "a b")
class Colour(str, enum.Enum):
    RED = "red"
class Size(enum.IntEnum):
    SMALL = 2
print("begun")
atexit.register(print, "the end")
def f(n):
    print("called", end="")
    return """


@contained
def test_values_that_compare_equal_are_right_whatever_their_type_and_whatever_is_printed(tmp_path: Path) -> None:
    tests = [f"assert f({number}) == {literal}" for number, (_, literal) in enumerate(EQUAL)]
    values = ", ".join(f"lambda: {value}" for value, _ in EQUAL)
    environment = made("mbpp", path=written(tmp_path / "mbpp.jsonl", function("def f(n): pass", *tests)))
    environment.reset(environment.tasks("train", 1)[0])
    assert environment.step(TYPES + f"(False, [{values}][n]())").text.startswith("Public test 1 of 1: the answer is wrong")
    assert environment.step(TYPES + f"[{values}][n]()").text == "All tests pass."
    assert canonical(Decimal("0.1")) != canonical(0.1) and canonical(Fraction(1, 3)) != canonical(1 / 3)


@contained
def test_a_published_solution_is_tried_before_it_is_believed(tmp_path: Path) -> None:
    wrong, right = "print(3)", "print(2 * int(input()))"
    environment = begun(tmp_path, row(solutions={"language": [3, 3], "solution": [wrong, right]}))
    assert environment.expert() == [right]
    assert begun(tmp_path, row(solutions={"language": [3], "solution": [wrong]})).expert() == []


class Prepared(Sandbox):
    """Gives the outcomes that it was given, whatever the program: a judge cannot tell."""

    def __init__(self, *outcomes: Outcome) -> None:
        super().__init__("bubblewrap")
        self.left = list(outcomes)

    def run(self, program: Program, inputs: Iterable[str], limits: Limits) -> Generator[Outcome, None, None]:
        for _ in inputs:
            yield self.left.pop(0)


def took(seconds: float, verdict: Verdict = Verdict.EXITED) -> Outcome:
    return Outcome(verdict, "2\n", cpu_seconds=seconds)


@pytest.mark.parametrize(
    ("outcomes", "reason"),
    [
        ([took(0.9), took(1.0)], None),
        ([took(1.1), took(0.9), took(0.95), took(1.3)], None),  # run again, it was in time once
        ([took(1.1), took(0.9), took(1.05), took(1.1)], "time"),
        ([took(0.9), took(1.2, Verdict.TIME)], "time"),  # ended well beyond the limit: not run again
        ([took(1.1), took(1.2, Verdict.TIME), took(1.1), took(1.2)], "time"),
    ],
)
def test_a_program_at_its_time_limit_is_run_again_and_its_least_time_counts(outcomes: list[Outcome], reason: str | None) -> None:
    cases = (Case("1", "2", "1"), Case("2", "2", "2"))
    failure = judge(Prepared(*outcomes), Problem("p", "s", cases[:1], cases[1:], cpu_seconds=1.0), "print(2)")
    assert (failure and failure.reason) == reason


GAPS = st.text(" \t\n\r", min_size=1, max_size=3)
WORDS = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=5)


def apart(words: list[str], gaps: list[str]) -> str:
    """Words with a gap before each and one at the end."""
    return "".join(gap + word for gap, word in zip(gaps, words, strict=False)) + gaps[len(words)]


@given(data=st.data(), words=st.lists(WORDS, min_size=1, max_size=6), other=WORDS)
def test_outputs_are_compared_word_by_word(data: st.DataObject, words: list[str], other: str) -> None:
    gaps = [data.draw(st.lists(GAPS, min_size=len(words) + 1, max_size=len(words) + 1)) for _ in range(2)]
    expected = apart(words, gaps[0])
    assert same_answer(expected, apart(words, gaps[1])) and same_answer(expected, apart(words, gaps[1]).strip())
    place = data.draw(st.integers(0, len(words) - 1))
    changed = [words[:place] + words[place + 1 :], [*words[:place], other, *words[place:]], [*words[:-1], words[-1] + other]]
    changed += [[*words[:place], other, *words[place + 1 :]]] if other != words[place] else []
    changed += [["".join(words)]] if len(words) > 1 else []
    assert not any(same_answer(expected, " ".join(found)) for found in changed)


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
    | st.binary(max_size=4)
)
HASHABLE = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3), max_leaves=6
)
LITERALS = st.recursive(
    HASHABLE,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HASHABLE, inner, max_size=3) | st.sets(HASHABLE, max_size=3),
)


@given(LITERALS, LITERALS)
def test_equal_values_and_only_those_have_one_canonical_text(one: Any, other: Any) -> None:
    assert (canonical(one) == canonical(other)) == (one == other)


# What the policy reads


OUTCOMES = st.builds(Outcome, st.just(Verdict.ERROR), st.text(), st.text(), st.integers(-64, 255), st.floats(0, 9), st.floats(0, 9))
REASONS = st.sampled_from(["wrong", "error", "time", "memory", "output"])
CASES = st.builds(Case, st.text(), st.text(), st.text())


@given(CASES, CASES, REASONS, OUTCOMES, st.integers(1, 9))
def test_feedback_on_a_hidden_test_says_nothing_of_it(
    shown: Case, hidden: Case, reason: Any, outcome: Outcome, number: int
) -> None:
    problem = Problem("p", "s", (shown,), (hidden,))
    assert feedback(problem, Failure(number, True, hidden, reason, outcome)) == HIDDEN.format(count=1)


@given(CASES, REASONS, OUTCOMES)
def test_feedback_is_short_and_printable_whatever_a_program_writes(case: Case, reason: Any, outcome: Outcome) -> None:
    text = feedback(Problem("p", "s", (case,), (case,)), Failure(1, False, case, reason, outcome))
    assert all(character.isprintable() or character in "\n\t" for character in text) and 0 < len(text) < 3000
    assert plain(plain(text)) == plain(text)


NOSY = [
    "print(open(__file__).read())\nprint(__import__('sys').stdin.read())",
    "import os\nprint(os.environ, os.listdir('.'), input())",
    "import sys\nsys.stderr.write(sys.stdin.read() * 3)\nraise ValueError(sys.argv)",
    "raise ValueError(input())",
    "x = input()\nprint(2 * int(x) if int(x) < 99 else 1 / 0)",
    "x = input()\nprint(2 * int(x) if int(x) < 99 else x)",
    "x = int(input())\nopen('/tmp/kept', 'a').write(str(x))\nprint(2 * x)",
    "try:\n    print(open('/tmp/kept').read())\nexcept OSError:\n    print(0)",
    "import glob\nprint([open(name, 'rb').read(999) for name in glob.glob('/tmp/*') + glob.glob('/proc/*/cmdline')])",
    "import os\nfor number in range(3, 30):\n    try:\n        print(os.read(number, 99))\n    except OSError:\n        pass",
]


@contained
@settings(max_examples=3, deadline=None)
@given(order=st.permutations(NOSY))
def test_no_hidden_test_is_ever_in_a_prompt(order: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    secrets = ("31337", "62674", "generated-secret", "8675309")
    tests = {"private_tests": {"input": ["31337\n"], "output": ["62674\n"]}}
    tests["generated_tests"] = {"input": ["8675309\n"], "output": ["generated-secret\n"]}
    environment = begun(tmp_path_factory.mktemp("problems"), row(**tests))
    task, prompts = replace(environment.tasks("train", 1)[0], horizon=len(order)), load_prompts("full", "codecontests")
    hand = Hand(environment, lambda ask: render_action(prompts.form, order[turns_in(ask)]))
    tree = grown(explore, hand, task, prompts=prompts, max_attempts=1)
    scene_texts = [message.content for ask in hand.asks for message in ask.messages]
    trajectory, scene = tree.turns, Scene(prompts, task, tree.root)
    scene_texts += [
        message.content
        for message in (
            *act_messages(scene, trajectory),
            *bare_messages(scene, trajectory),
            *reflect_messages(scene, trajectory, ended=True),
        )
    ]
    assert len(trajectory) == len(order)
    told = "\n".join([json.dumps(task.payload), task.instruction, *scene_texts])
    assert not [secret for secret in secrets if secret in told]


@contained
@BOTH
@pytest.mark.parametrize("profile", PROFILES)
def test_a_policy_that_fails_first_is_put_right_by_its_reflection(name: str, profile: str) -> None:
    environment, prompts = made(name), load_prompts(profile, name)
    task = environment.tasks("train", 1, seed=3)[0]
    environment.reset(task)
    right, wrong = environment.example_actions()[:2]
    assert parse_action(prompts.form, render_action(prompts.form, right)) == right.strip()

    def policy(ask: Ask) -> str:
        if ask.purpose == "reflect":
            return render_reflection(prompts.form, Experience(2, "Handle every case: start anew."))
        return render_action(prompts.form, right if "start anew" in ask.messages[-1].content else wrong)

    hand = Hand(environment, policy)
    tree = grown(explore, hand, task, prompts=prompts, max_attempts=2)
    assert [attempt.stop for attempt in tree.attempts] == [StopReason.TURN_LIMIT, StopReason.SUCCESS]
    assert tree.attempts[1].parent == 0 and tree.attempts[1].turn == 2 and len(tree.turns) == task.horizon + 1 == 5
    ((_, revised),) = tree.branch_turns()
    assert revised.action == right.strip() and revised.observation.success
    asked = next(ask for ask in reversed(hand.asks) if ask.purpose == "act")
    trajectory = tree.trajectory(revised.id)[:-1]
    bare = bare_messages(Scene(prompts, task, tree.root), trajectory)
    assert "start anew" in asked.messages[-1].content and not any("start anew" in message.content for message in bare)
    assert [m.content for m in bare[:-1]] == [m.content for m in asked.messages[:-1]]


# What is read


@contained
def test_hidden_tests_that_are_public_too_do_not_count_as_hidden(tmp_path: Path) -> None:
    problem = made("codecontests").problem_of(row())
    assert [case.input for case in problem.hidden] == ["70021\n"] and problem.cpu_seconds == 1.5
    assert problem.memory_bytes == 256 * 2**20 and problem.solutions == ("print(2 * int(input()))",)
    limited = made("codecontests", hidden_tests=1).problem_of(row(generated_tests=[{"input": "5", "output": "10"}]))
    assert len(limited.hidden) == 1


@contained
def test_what_cannot_be_judged_is_left_out_and_counted(tmp_path: Path) -> None:
    rows = [
        row(),
        row(name="any", description="If there are several answers, print any of them."),
        row(name="near", description="Your answer is right if its absolute or relative error is at most 1e-6."),
        row(name="far", description="Print it with a small relative error."),
        row(name="file", input_file="in.txt"),
        row(name="talk", description="This is an interactive problem."),
        row(name="bare", private_tests={"input": [], "output": []}),
    ]
    path = written(tmp_path / "train.jsonl", *rows)
    counted = {"judged": 2, "a special judge": 1, "input or output in a file": 1, "interaction": 1, "no hidden tests": 1}
    assert made("codecontests", path=path).census("train") == counted | {"a tolerance without a figure": 1}
    assert made("codecontests", path=path, special_judges=True).census("train")["judged"] == 4
    with pytest.raises(UserError, match=r"wanted 3 tasks of split 'train', found 2 in .*1 for a special judge"):
        made("codecontests", path=path).tasks("train", 3)


@contained
def test_files_belong_to_the_split_that_their_names_say_and_others_are_parted(tmp_path: Path) -> None:
    for file in ("train-1.jsonl", "valid.jsonl", "test-0.jsonl"):
        written(tmp_path / file, row(name=file))
    environment = made("codecontests", path=str(tmp_path))
    for split, file in (("train", "train-1.jsonl"), ("valid", "valid.jsonl"), ("test", "test-0.jsonl")):
        (task,) = environment.tasks(split, 1)
        assert task.payload["file"] == file and environment.reset(task).text
    path = written(tmp_path / "mine.jsonl", *(row(name=f"p{number}") for number in range(60)))
    sizes = {split: made("codecontests", path=path).census(split)["judged"] for split in ("train", "valid", "test")}
    assert sum(sizes.values()) == 60 and min(sizes.values()) > 0


@contained
def test_a_task_points_at_its_tests_and_does_not_carry_them(tmp_path: Path) -> None:
    environment = begun(tmp_path)
    (task,) = environment.tasks("train", 1)
    assert "70021" not in json.dumps([task.payload, task.instruction])
    written(tmp_path / "train.jsonl", row(private_tests={"input": ["9\n"], "output": ["18\n"]}))
    with pytest.raises(UserError, match="has other tests there; give codecontests the path"):
        environment.reset(task)
    for payload in ({}, {**task.payload, "place": 10**9}, {**task.payload, "file": "../../secret.jsonl"}):
        with pytest.raises(UserError, match="give codecontests the path"):
            environment.reset(Task(task.id, task.env, "x", 4, payload))


@contained
def test_wrong_paths_and_broken_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no problem file at .*absent; give a \.jsonl or \.parquet file"):
        made("codecontests", path=str(tmp_path / "absent")).tasks("train", 1)
    for name, text, said in (
        ("train-a.jsonl", "{", "is no JSON"),
        ("train-b.jsonl", "[1]\n", "should be a problem"),
        ("train-c.jsonl", '{"name": "x"}\n', "should hold problems with the column 'description' and has name"),
        ("train-f.jsonl", json.dumps(row()) + "\n{}\n", "is no problem of codecontests's schema"),
        ("train-g.jsonl", "", "should hold problems with the column 'name' and has nothing"),
        ("train-d.jsonl", json.dumps(row(public_tests=5)) + "\n", "is no problem of codecontests's schema"),
        ("train-e.jsonl", "\udcff\n", "is no JSON"),
    ):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(CorruptFile, match=said):
            made("codecontests", path=str(tmp_path / name)).tasks("train", 2)
    with pytest.raises(UnknownName, match="did you mean 'valid'"):
        made("mbpp").tasks("vald", 1)
    with pytest.raises(UserError, match="time_factor above 0"):
        made("mbpp", time_factor=0)
    with pytest.raises(UnknownName, match="did you mean 'seccomp'"):
        make("mbpp", {"sandbox": "seccom"})


@contained
@pytest.mark.parametrize("start", [b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n \n"])
def test_problem_files_may_begin_with_blank_lines_and_a_mark(start: bytes, tmp_path: Path) -> None:
    line = json.dumps(row(description="Print\u2028the double.\x85"), ensure_ascii=False).encode()
    (tmp_path / "validation-0.jsonl").write_bytes(start + line + b"\n\n")
    environment = made("codecontests", path=str(tmp_path))
    (task,) = environment.tasks("validation", 1)
    assert (
        environment.tasks("valid", 1) == [task]
        and environment.reset(task).text
        and environment.census("validation") == {"judged": 1}
    )
    (tmp_path / "validation-0.jsonl").write_bytes(line.replace(b'"name"', b'"rating": NaN, "name"', 1))
    with pytest.raises(CorruptFile, match="NaN is no JSON: write null"):
        made("codecontests", path=str(tmp_path))


@contained
def test_parquet_holds_the_same_problems_as_json_lines(tmp_path: Path) -> None:
    parquet = pytest.importorskip(
        "pyarrow.parquet", reason="pyarrow is not installed; pip install -c constraints.txt -e '.[parquet]'"
    )
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [json.loads(line) for line in (OWN / "codecontests" / "train.jsonl").open()]
    )
    parquet.write_table(table, tmp_path / "train-00000.parquet", row_group_size=3)
    lines, rows = made("codecontests"), made("codecontests", path=str(tmp_path))
    assert {task.id for task in lines.tasks("train", 8)} == {task.id for task in rows.tasks("train", 8)}
    task = rows.tasks("train", 1)[0]
    rows.reset(task)
    assert rows.step(rows.expert()[0]).success
    (tmp_path / "train-bad.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(CorruptFile, match="is no parquet file"):
        made("codecontests", path=str(tmp_path / "train-bad.parquet")).tasks("train", 1)


# On the command line


@contained
@pytest.mark.parametrize("command", [("check-env",), ("play",)])
def test_a_wrong_path_a_broken_file_and_a_missing_sandbox_end_with_status_2(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = f"sandbox={KINDS[0]}"
    broken = written(tmp_path / "train.jsonl", {"name": "x"})
    for argument, said in (
        (f"path={tmp_path}/absent", "no problem file at"),
        (f"path={broken}", "should hold problems with the column"),
    ):
        done = leafe(*command, "codecontests", kind, argument)
        assert done.status == 2 and said in done.err and done.err.count("\n") == 1
    monkeypatch.setenv("PATH", "/nowhere")
    objection.cache_clear()
    try:
        done = leafe(*command, "mbpp")
    finally:
        objection.cache_clear()
    assert done.status == 2 and "bubblewrap" in done.err and "apt-get install bubblewrap" in done.err


@contained
def test_a_person_submits_programs_of_several_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "mbpp.jsonl", function("def f(n): pass", "assert f(2) == 4", "assert f(-1) == -2"))
    typed = "def f(n):\n\n    return 3\n.\n```python\ndef f(n):\n    return 2 * n\n```\n"
    done = leafe("play", "mbpp", f"path={path}", f"sandbox={KINDS[0]}", stdin=typed)
    assert done.status == 0 and "Expected:\n4\nGot:\n3" in done.out and done.out.rstrip().endswith("Solved in 2 turns.")


# The shared data


def judged(environment: Environment, split: str, count: int) -> tuple[list[str], list[str]]:
    """Names of problems whose own solution fails, and of those that a wrong program passes."""
    assert isinstance(environment, Programming)
    problems = []
    for task in environment.tasks(split, count):
        environment.reset(task)
        problems.append((environment.snapshot().problem, environment.example_actions()[-1]))
    sandbox = Sandbox(KINDS[0])
    with ThreadPoolExecutor(2) as pool:
        failed = pool.map(lambda one: judge(sandbox, one[0], one[0].solutions[0]) and one[0].name, problems)
        passed = pool.map(lambda one: judge(sandbox, one[0], one[1]) is None and one[0].name, problems)
        return [name for name in failed if name], [name for name in passed if name]


@contained
@with_data
@pytest.mark.parametrize("count", [6, pytest.param(171, marks=pytest.mark.slow)])
def test_the_published_solutions_pass_their_hidden_tests_and_a_wrong_program_does_not(count: int) -> None:
    environment = made("codecontests", path=f"{DATA}/codecontests", special_judges=True)
    assert judged(environment, "train", count) == ([], [])


@contained
@with_data
@pytest.mark.parametrize(
    ("split", "count"), [("valid", 8), *(pytest.param(*one, marks=pytest.mark.slow) for one in (("test", 499), ("train", 374)))]
)
def test_the_solutions_of_mbpp_pass_their_tests(split: str, count: int) -> None:
    assert judged(made("mbpp", path=f"{DATA}/mbpp"), split, count) == ([], [])


@contained
@with_data
def test_no_long_hidden_input_of_the_shared_problems_is_in_their_statements() -> None:
    environment = made("codecontests", path=f"{DATA}/codecontests", special_judges=True)
    for task in environment.tasks("train", 171):
        environment.reset(task)
        problem = environment.snapshot().problem
        assert not [case for case in problem.hidden if len(case.input) > 20 and case.input.strip() in task.instruction]
    assert made("codecontests", path=f"{DATA}/codecontests").census("train")["a special judge"] == 10
    assert CodeContests.fidelity is Mbpp.fidelity and FULL.form == "tags"
