"""Whether a sandbox contains on this machine: a program that tries to get out, run in it once a process.

`require` is called before the first program that is not ours. A kernel that ignores a limit, a bubblewrap that is too old or forbidden,
an interpreter that cannot be reached: each is one sentence with what fixes it. The battery of hostile programs in the tests goes
further; this is what can be tried in a tenth of a second on every machine.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from leafe.errors import EnvironmentFailure, UserError
from leafe.worlds.sandbox.limits import Limits, Outcome, Program, Verdict
from leafe.worlds.sandbox.sandbox import Sandbox
from leafe.worlds.sandbox.system_calls import known_machine

INSTALL = "sudo apt-get install bubblewrap"
ALLOW = "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"  # Ubuntu; elsewhere user.max_user_namespaces
PYTHON = "sudo apt-get install python3"
OTHERWISE = "take the weaker sandbox by name: sandbox=seccomp"

# Prints a word for each open way out. `{secret}` is a file outside that every user may read.
ESCAPES = """
import os, socket, sys
sys.stderr.close()
def find(word, attempt):
    try:
        if attempt():
            print(word)
    except Exception:  # whatever refused it, this way out is shut, which is what is hoped for
        pass
def connects():
    socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    return True
def processes():
    for _ in range(64):
        if os.fork() == 0:
            import time
            time.sleep(5)
            os._exit(0)
    return True
find("root", lambda: os.getuid() == 0)
find("network", connects)
find("files", lambda: open({secret!r}).read())
find("write", lambda: open("/usr/leafe", "w") or open("/leafe", "w"))
find("ptrace", lambda: open("/proc/%d/mem" % os.getppid(), "rb").fileno() >= 0)
find("processes", processes)
print("done")
"""


@dataclass(frozen=True, slots=True)
class Objection:
    """Why programs cannot be contained here, and what to do about it."""

    why: str
    mend: str


@cache
def objection(kind: str = "bubblewrap", interpreter: str | None = None) -> Objection | None:
    """Why programs cannot be contained on this machine; None where they can. Remembered."""
    if sys.platform != "linux" or not known_machine():
        return Objection(f"the sandbox knows no {platform.system()} on {platform.machine()}", "use Linux on x86_64 or aarch64")
    if kind == "bubblewrap" and shutil.which("bwrap") is None:
        return Objection("bubblewrap is not installed", f"{INSTALL} (where namespaces cannot be had, {OTHERWISE})")
    try:
        outcome = _tried(Sandbox(kind, interpreter=interpreter))
    except (EnvironmentFailure, OSError) as failure:
        return _explained(str(failure), kind)
    found = outcome.stdout.split()
    if outcome.verdict is not Verdict.EXITED or found[-1:] != ["done"]:
        return _explained(f"the sandbox cannot run its own test: {outcome.verdict} {outcome.stderr.strip()[-200:]}", kind)
    if len(found) > 1:
        return Objection(f"the sandbox {kind!r} leaves a way out here ({', '.join(found[:-1])})", "use Linux 5.14 or later")
    return None


def _tried(sandbox: Sandbox) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="leafe-outside-") as folder:
        secret = Path(folder, "secret")
        secret.write_text("outside")
        Path(folder).chmod(0o755)
        return sandbox.run_once(Program(ESCAPES.format(secret=str(secret))), limits=Limits(wall_seconds=20))


def _explained(words: str, kind: str) -> Objection:
    """A failure to start, with the likeliest remedy."""
    if "nknown option" in words:
        return Objection(f"{words}; bubblewrap 0.6 or later is wanted", INSTALL)
    if "python" in words and ("No such file" in words or "ermission denied" in words):
        return Objection(f"{words}; an interpreter that other users may start is wanted", PYTHON)
    if kind == "bubblewrap":
        return Objection(f"{words}; user namespaces may be switched off", f"{ALLOW} (or {OTHERWISE})")
    return Objection(f"{words}; Landlock is wanted", "use Linux 5.13 or later")


def require(kind: str = "bubblewrap", interpreter: str | None = None) -> None:
    """Raises `UserError` where programs cannot be contained."""
    found = objection(kind, interpreter)
    if found is not None:
        raise UserError(f"{found.why}; to fix it: {found.mend}")
