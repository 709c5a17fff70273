"""The sandbox: what honest programs get, and a battery of hostile ones of which none gets out, harms the next or outstays its limits."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import ATTACKS, Attack, source

from leafe.doctor import sandbox_finding
from leafe.errors import EnvironmentFailure, UnknownName, UserError
from leafe.worlds.sandbox import control_group, probe
from leafe.worlds.sandbox.container import KINDS
from leafe.worlds.sandbox.limits import MIB, Limits, Program, Verdict
from leafe.worlds.sandbox.sandbox import Sandbox
from leafe.worlds.sandbox.system_calls import assemble

SHORT = Limits(cpu_seconds=0.6, wall_seconds=1.5, memory_bytes=128 * MIB, file_bytes=4 * MIB, output_bytes=200_000)
LATER = "a-word-of-the-next-input"
QUICK = {name: attack for name, attack in ATTACKS.items() if not attack.long}  # benchmarks/sandbox.py --hostile runs all


@pytest.fixture(params=sorted(KINDS))
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    """Each kind that this machine can contain with."""
    missing = probe.objection(request.param)
    if missing is not None:
        pytest.skip(missing.why)
    return Sandbox(request.param)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    """What there is to get at: files, a server, sockets, this process, an environment variable."""
    for name, mode in (("secret", 0o644), ("writable", 0o666)):
        (tmp_path / name).write_text(f"{name}-{os.getpid()}-never-seen")
        (tmp_path / name).chmod(mode)
    for folder in [tmp_path, *tmp_path.parents[:3]]:  # everybody may come this far, were it not for the sandbox
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    monkeypatch.setenv("LEAFE_TEST_SECRET", "environment-never-seen")
    name = f"\0leafe-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(name)
        abstract.listen()
        yield {
            "OUTSIDE": str(tmp_path),
            "VICTIM": os.getpid(),
            "PORT": server.getsockname()[1],
            "ABSTRACT": name,
            "HOME": os.path.expanduser("~"),
            "SECRET_NAME": "LEAFE_TEST_SECRET",
            "RETAL": LATER[::-1],
            "TOKEN": f"lf-{os.getpid()}"[:15],
        }


def named(name: object) -> list[str]:
    """Processes of this machine, namespaces included, that call themselves so."""
    found = []
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            found += [comm.parent.name] if comm.read_text().strip() == name else []
        except OSError:
            continue
    return found


def still_there(name: object) -> list[str]:
    """The same, after a little patience: a killed process takes a moment to go."""
    eventually(lambda: not named(name))
    return named(name)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the attacks name the system calls of x86_64")
@pytest.mark.parametrize("attack", QUICK.values(), ids=QUICK)
def test_a_hostile_program_gets_nowhere_and_harms_nobody(sandbox: Sandbox, outside: dict[str, object], attack: Attack) -> None:
    caught: list[int] = []
    handlers = {number: signal.signal(number, lambda seen, _: caught.append(seen)) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        outcomes = list(sandbox.run(Program(source(attack, outside)), ["attack\n", f"harmless {LATER}\n"], SHORT))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    hostile, harmless = outcomes
    assert "ESCAPED" not in hostile.stdout and "never-seen" not in hostile.stdout + hostile.stderr
    assert not any(slip in hostile.stderr for slip in ("NameError", "SyntaxError", "could not start"))
    # Where nothing can be forked, what would have run into a limit fails at once.
    assert hostile.verdict in attack.verdicts or (sandbox.kind == "seccomp" and hostile.verdict is Verdict.ERROR), hostile
    assert hostile.wall_seconds <= 1.5 * SHORT.wall_seconds and len(hostile.stdout) <= SHORT.output_bytes
    assert (harmless.verdict, harmless.stdout) == (Verdict.EXITED, "42\n")
    assert caught == [] and still_there(outside["TOKEN"]) == []
    folder = Path(str(outside["OUTSIDE"]))
    assert sorted(path.name for path in folder.iterdir()) == ["secret", "writable"]
    assert (folder / "writable").read_text().endswith("never-seen") and (folder / "writable").stat().st_mtime > 0


def test_an_attack_that_gets_through_would_be_seen(sandbox: Sandbox, outside: dict[str, object]) -> None:
    through = Attack("tried('nothing', lambda: open(__file__).read(1))")
    assert "ESCAPED" in sandbox.run_once(Program(source(through, outside)), "attack\n", SHORT).stdout


def test_a_battery_has_at_least_a_hundred_programs() -> None:
    assert len(ATTACKS) >= 100 and len({attack.body for attack in ATTACKS.values()}) == len(ATTACKS)


def test_an_honest_program_reads_computes_and_writes(sandbox: Sandbox) -> None:
    program = Program("import math, collections, heapq\nprint(sum(map(int, input().split())), math.factorial(5), 'é')")
    first, second = sandbox.run(program, ["1 2 3", "4 5"], Limits())
    assert (first.verdict, first.stdout, second.stdout) == (Verdict.EXITED, "6 120 é\n", "9 120 é\n")
    assert 0 < first.cpu_seconds < 2 and first.memory_bytes > MIB


def test_threads_with_great_stacks_and_deep_recursion_work(sandbox: Sandbox) -> None:
    program = (
        "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**27)\n"
        "def depth(n):\n    return 0 if n == 0 else 1 + depth(n - 1)\n"
        "thread = threading.Thread(target=lambda: print(depth(20000)))\nthread.start()\nthread.join()"
    )
    assert sandbox.run_once(Program(program)).stdout == "20000\n"


def test_how_a_program_failed_is_told(sandbox: Sandbox) -> None:
    failed = sandbox.run_once(Program("def f():\n    return [][1]\nf()"))
    assert failed.verdict is Verdict.ERROR and failed.status == 1
    assert "line 2" in failed.stderr and failed.stderr.endswith("IndexError: list index out of range\n")
    assert sandbox.run_once(Program("import os; os.kill(os.getpid(), 11)")).status == -11
    assert sandbox.run_once(Program("raise SystemExit(0)")).verdict is Verdict.EXITED


def test_a_large_input_arrives_whole_and_output_up_to_the_cap_comes_back(sandbox: Sandbox) -> None:
    text = "".join(f"{number}\n" for number in range(400_000))
    program = Program("import sys\ndata = sys.stdin.read()\nprint(len(data), hash(data))\nprint('x' * 900_000)")
    one, two = (sandbox.run_once(program, text).stdout.split() for _ in range(2))
    assert one == two and one[0] == str(len(text)) and len(one[2]) == 900_000


def test_inputs_are_run_only_as_they_are_asked_for(sandbox: Sandbox) -> None:
    given: list[str] = []

    def inputs() -> Iterator[str]:
        for number in range(5):
            given.append(str(number))
            yield given[-1]

    runs = sandbox.run(Program("print(input())"), inputs(), Limits())
    assert next(runs).stdout == "0\n" and given == ["0"]
    runs.close()


def test_many_programs_run_at_once_and_do_not_mix(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda number: sandbox.run_once(Program("print(int(input()) ** 2)"), str(number)).stdout, range(24))
        )
    assert answers == [f"{number**2}\n" for number in range(24)]


def test_a_container_draws_the_same_random_numbers_and_addresses_every_time() -> None:
    missing = probe.objection()
    if missing is not None:
        pytest.skip(missing.why)
    program = Program("import os, random\nprint(random.random(), object(), os.urandom(8), hash('word'), {'a', 'b', 'c'})")
    assert len({Sandbox().run_once(program).stdout for _ in range(3)}) == 1


def test_a_runner_finds_the_program_beside_it(sandbox: Sandbox) -> None:
    runner = "import os\nprint(open(os.path.join(os.path.dirname(__file__), 'program.py')).read(), input())"
    assert sandbox.run_once(Program("the program", runner), "the input").stdout == "the program the input\n"


def test_nothing_is_left_when_a_run_is_given_up_half_way(sandbox: Sandbox) -> None:
    others = descendants(os.getpid())
    runs = sandbox.run(Program("print(1)"), ["", ""], Limits())
    assert next(runs).stdout == "1\n"
    family = descendants(os.getpid()) - others
    threads = threading.active_count()
    # What gives it up is kept, and all that its traceback holds: nothing is left to Python's own clearing up.
    with pytest.raises(KeyboardInterrupt) as kept:
        runs.throw(KeyboardInterrupt())
    assert family and eventually(lambda: not [pid for pid in family if alive(pid)])
    assert threading.active_count() == threads and kept.value is not None


SPINNING = "import time\nprint('up', flush=True)\nwhile True:\n    time.sleep(0.01)"
# A thread that becomes another program has forgotten the signal that the end of its parent would send.
AFTERWARDS = "import time; time.sleep(60)"
FORGETFUL = (
    f"import os, sys, threading, time\nwords = (sys.executable, '-c', {AFTERWARDS!r})\n"
    "threading.Thread(target=os.execv, args=(sys.executable, words)).start()\ntime.sleep(60)"
)


@pytest.mark.parametrize("spinning", [SPINNING, FORGETFUL], ids=["spinning", "forgetful"])
def test_a_killed_process_takes_its_sandbox_along(sandbox: Sandbox, spinning: str) -> None:
    code = (
        "from leafe.worlds.sandbox.limits import Limits, Program\nfrom leafe.worlds.sandbox.sandbox import Sandbox\n"
        f"Sandbox({sandbox.kind!r}).run_once(Program({spinning!r}), limits=Limits(cpu_seconds=50, wall_seconds=100))"
    )
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", code], env=surroundings) as victim:
        family = eventually(lambda: len(found := descendants(victim.pid)) >= 2 and found)
        if spinning is FORGETFUL:
            assert eventually(lambda: any(command(pid).endswith(AFTERWARDS) for pid in descendants(victim.pid)))
        victim.kill()
    assert family and eventually(lambda: not [pid for pid in family if alive(pid)])


def command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0")
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    """Processes that this one started, and those that they started."""
    try:
        children = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    except OSError:
        return set()
    return children.union(*(descendants(child) for child in children))


def eventually(look: Callable[[], Any]) -> Any:
    """What is seen in the end, with patience for what takes a moment."""
    for _ in range(200):
        if found := look():
            return found
        time.sleep(0.05)
    return look()


def test_an_unknown_kind_and_a_missing_interpreter_are_one_sentence() -> None:
    with pytest.raises(UnknownName, match="did you mean 'seccomp'"):
        Sandbox("secomp")
    if probe.objection("seccomp") is None:
        with pytest.raises((EnvironmentFailure, FileNotFoundError)):
            Sandbox("seccomp", interpreter="/usr/bin/no-such-python").run_once(Program("print(1)"))


def test_a_machine_without_bubblewrap_is_refused_with_the_command_that_mends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    probe.objection.cache_clear()
    try:
        with pytest.raises(UserError, match=r"bubblewrap.*apt-get install bubblewrap"):
            probe.require()
    finally:
        probe.objection.cache_clear()


def test_a_sandbox_that_starts_nothing_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    for folder in [tmp_path, *tmp_path.parents[:3]]:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    probe.objection.cache_clear()
    try:
        found = probe.objection()
    finally:
        probe.objection.cache_clear()
    assert found is not None and found.why.endswith("No permissions to create new namespace; user namespaces may be switched off")
    assert "sysctl" in found.mend and "sandbox=seccomp" in found.mend


def test_the_doctor_says_whether_programs_can_be_contained() -> None:
    assert sandbox_finding(None).verdict == "ok"
    refused = sandbox_finding("bubblewrap is not installed", "sudo apt-get install bubblewrap")
    assert (refused.verdict, refused.mend) == ("optional", "sudo apt-get install bubblewrap")


def test_a_filter_is_whole_instructions_with_jumps_that_stay_inside() -> None:
    for contained in (True, False):
        code = assemble(contained=contained, own_process=7)
        count = len(code) // 8
        assert len(code) % 8 == 0 and count < 4096
        for number in range(count):
            jump = max(code[8 * number + 2], code[8 * number + 3])
            assert number + 1 + jump < count or code[8 * number] == 0x06


def test_what_a_program_does_to_its_own_folder_never_reaches_the_next_input(sandbox: Sandbox) -> None:
    if sandbox.kind == "seccomp":
        pytest.skip("there is no folder of its own there")
    look = "import os\nprint(sorted(os.listdir('/tmp')), oct(os.stat('/tmp').st_mode), os.listxattr('/tmp'))\n"
    for harm in (
        "os.chmod('/tmp', 0)",
        "os.mkdir('/tmp/input')",
        "os.chmod('/tmp', 0o1777)",
    ):
        first, second = sandbox.run(Program(look + harm), ["", ""], Limits())
        assert (first.verdict, second.verdict, second.stdout) == (Verdict.EXITED, Verdict.EXITED, first.stdout)


def test_memory_that_processes_share_counts_once_and_files_in_memory_count(sandbox: Sandbox) -> None:
    if sandbox.kind == "seccomp":
        pytest.skip("nothing can be forked or written there")
    forked = (
        "import os, time\nkept = bytearray(60_000_000)\nfor _ in range(6):\n"
        "    if os.fork() == 0:\n        time.sleep(0.2)\n        os._exit(0)\n"
    )
    held = "kept = bytearray(90_000_000)\nfor number in range(15):\n    open(f'/tmp/{number}', 'wb').write(b'x' * 4_000_000)\n"
    waits = "import time\ntime.sleep(0.3)\nprint(1)"
    assert sandbox.run_once(Program(forked + waits), limits=replace(SHORT, cpu_seconds=2)).stdout == "1\n"
    assert sandbox.run_once(Program(held + waits), limits=replace(SHORT, cpu_seconds=2)).verdict is Verdict.MEMORY


def test_standard_streams_have_their_names_and_an_input_cannot_be_changed(sandbox: Sandbox) -> None:
    program = Program("text = open('/dev/stdin').read()\nopen('/dev/stdout', 'w').write(text + open('/dev/fd/0').read())")
    assert sandbox.run_once(program, "a word ").stdout == "a word a word "


def test_an_ignored_sigchld_is_refused_as_that_and_not_taken_for_success() -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nfrom leafe.worlds.sandbox.limits import Program\n"
        "from leafe.worlds.sandbox.sandbox import Sandbox\nprint(Sandbox('seccomp').run_once(Program('print(1)')))"
    )
    surroundings = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode and "SIGCHLD is ignored here" in done.stderr and not done.stdout


def test_no_control_group_is_looked_for_where_there_is_no_hierarchy(tmp_path: Path) -> None:
    mounts, own = tmp_path / "mounts", tmp_path / "cgroup"
    for table, groups in (
        ("tmpfs / tmpfs rw", "0::/"),
        (f"cgroup2 {tmp_path} cgroup2 rw", "0::/../x"),
        (f"c {tmp_path} cgroup2 rw", "9:memory:/"),
    ):
        mounts.write_text(table + " 0 0\n")
        own.write_text(groups + "\n")
        assert control_group.home(str(mounts), str(own)) is None


@pytest.mark.skipif(control_group.home() is None, reason="no control group with a limit of memory can be made here")
def test_what_the_kernel_ends_for_its_group_s_memory_is_told_as_memory(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_group, "MARGIN", -80 * MIB)
    outcome = sandbox.run_once(Program("kept = b'x' * 110_000_000\nprint(1)"), limits=SHORT)
    assert outcome.verdict is Verdict.MEMORY and outcome.stdout == ""
