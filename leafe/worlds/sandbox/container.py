"""The start of a driver in containment: the command, the files that go in, and the user that it runs as.

`bubblewrap` makes namespaces of its own: no network, no process but its own, the system's programs read-only, and one small `/tmp`.
`seccomp` makes none: see `lock`. Either way the program never runs as root. `probe` tests whether it truly is contained.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from leafe.worlds.sandbox.limits import Limits, Program
from leafe.worlds.sandbox.lock import OWN_PROCESS
from leafe.worlds.sandbox.system_calls import assemble

NOBODY = 65534  # the user that root becomes, and the id of everybody inside
SYSTEM_PYTHON = "/usr/bin/python3"
FOLDERS = ("/lib", "/lib32", "/lib64", "/libx32", "/bin", "/sbin")  # beside /usr, links into it on most systems
SURROUNDINGS = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONNOUSERSITE": "1",
    "PYTHONINTMAXSTRDIGITS": "0",  # whole numbers as long as a problem wants them
    "OMP_NUM_THREADS": "1",
}
HERE = Path(__file__).parent
RANDOM_BYTES = bytes((37 * number + number // 251) % 256 for number in range(2**16))  # the contents of /dev/urandom, always equal


@dataclass(frozen=True, slots=True)
class Launch:
    """The process to start: the command, its environment, descriptors to hand down, and the user to become (None for oneself).

    `farewell` is the signal that ends it with all that it started.
    """

    command: tuple[str, ...]
    surroundings: Mapping[str, str]
    descriptors: tuple[int, ...] = ()
    user: int | None = None
    farewell: int = signal.SIGKILL


def interpreter_or_default(given: str | None) -> str:
    """The Python that programs run under: the given one, the system's, or as the last choice the one that runs now."""
    if given is not None:
        return given
    return SYSTEM_PYTHON if os.access(SYSTEM_PYTHON, os.X_OK) else os.path.realpath(sys.executable)


def _other_user() -> int | None:
    return NOBODY if os.geteuid() == 0 else None


def _driver_arguments(limits: Limits, scratch: str) -> list[str]:
    seconds = (int(limits.cpu_seconds * 1e6), int(limits.wall_seconds * 1e6))
    sizes = (limits.memory_bytes, limits.processes, limits.file_bytes, limits.output_bytes)
    return [*map(str, (*seconds, *sizes)), scratch]


def _readable_folders(interpreter: str) -> list[str]:
    """The system folders that a program may read: /usr, and where the interpreter is elsewhere its installation."""
    installation = str(Path(os.path.realpath(interpreter)).parent.parent)
    return ["/usr"] if installation in ("/", "/usr") or installation.startswith("/usr/") else ["/usr", installation]


def _descriptor(data: bytes, close: ExitStack) -> int:
    """A descriptor that reads these bytes."""
    descriptor = os.memfd_create("leafe", os.MFD_CLOEXEC)
    close.callback(os.close, descriptor)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _files(program: Program) -> dict[str, bytes]:
    """The files beside the driver; text that is no UTF-8 is converted."""
    files = {"driver.py": (HERE / "driver.py").read_bytes(), "program.py": program.source.encode("utf-8", "replace")}
    return files if program.runner is None else files | {"runner.py": program.runner.encode("utf-8", "replace")}


@contextmanager
def bubblewrap(program: Program, limits: Limits, interpreter: str) -> Iterator[Launch]:
    """A container of namespaces. Raises `FileNotFoundError` where there is no bubblewrap."""
    binary = shutil.which("bwrap")
    if binary is None:
        raise FileNotFoundError("bwrap")
    command = [binary, "--unshare-user", "--unshare-all", "--uid", str(NOBODY), "--gid", str(NOBODY), "--hostname", "sandbox"]
    command += ["--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"]
    for name, value in SURROUNDINGS.items():
        command += ["--setenv", name, value]
    for folder in _readable_folders(interpreter):
        command += ["--ro-bind", folder, folder]
    for folder in filter(os.path.lexists, FOLDERS):
        command += ["--symlink", os.readlink(folder), folder] if os.path.islink(folder) else ["--ro-bind", folder, folder]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache", "--proc", "/proc"]
    # Not bubblewrap's own /dev, whose shm has no limit of size; nor /dev/zero: shared memory mapped from it is in no figure.
    command += ["--dev-bind", "/dev/null", "/dev/null"]
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        command += ["--symlink", f"/proc/self/fd{target}", f"/dev/{name}"]
    with ExitStack() as close:
        inside = {f"/box/{name}": data for name, data in _files(program).items()} | {"/dev/urandom": RANDOM_BYTES}
        descriptors = {path: _descriptor(data, close) for path, data in inside.items()}
        for path, descriptor in descriptors.items():
            command += ["--perms", "0444", "--file", str(descriptor), path]
        # The largest input is in the scratch folder for a moment, beside what the program may write.
        command += ["--perms", "0700", "--size", str(limits.file_bytes + 64 * 2**20), "--tmpfs", "/tmp"]
        rules = _descriptor(assemble(contained=True), close)
        command += ["--remount-ro", "/", "--chdir", "/tmp", "--seccomp", str(rules)]
        command += [interpreter, "-I", "-S", "/box/driver.py", *_driver_arguments(limits, "/tmp")]
        command += [interpreter, "-s", f"/box/{'program' if program.runner is None else 'runner'}.py"]
        yield Launch(tuple(command), {"PATH": SURROUNDINGS["PATH"]}, (*descriptors.values(), rules), _other_user())


@contextmanager
def seccomp(program: Program, limits: Limits, interpreter: str) -> Iterator[Launch]:
    """No container: Landlock, a system-call filter and resource limits, for systems without namespaces."""
    with tempfile.TemporaryDirectory(prefix="leafe-") as folder:
        os.chmod(folder, 0o755)
        rules = assemble(contained=False, own_process=int.from_bytes(OWN_PROCESS, "little"))
        for name, data in (_files(program) | {"lock.py": (HERE / "lock.py").read_bytes(), "rules": rules}).items():
            Path(folder, name).write_bytes(data)
            os.chmod(Path(folder, name), 0o444)
        readable = [*_readable_folders(interpreter), *FOLDERS, "/etc/ld.so.cache", folder]
        command = [interpreter, "-I", "-S", f"{folder}/driver.py", *_driver_arguments(limits, folder)]
        command += [interpreter, "-I", "-S", f"{folder}/lock.py", f"{folder}/rules", ":".join(readable), "--"]
        command += [interpreter, "-s", f"{folder}/{'program' if program.runner is None else 'runner'}.py"]
        yield Launch(tuple(command), SURROUNDINGS, (), _other_user(), signal.SIGTERM)  # the driver ends the program first


KINDS = {"bubblewrap": bubblewrap, "seccomp": seccomp}
