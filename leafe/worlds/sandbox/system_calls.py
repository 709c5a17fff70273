"""A seccomp filter, assembled by hand: which system calls a program is refused, as the kernel's own bytecode.

The refused calls would reach beyond the sandbox or around its limits: other namespaces, mounts, tracing, keys, BPF, clocks, all sockets but
pairs, orders to other processes, and memory that no figure of a process shows: System V, memfd, shared anonymous and huge pages, pages put
out to swap, and the kernel's records of locks, watches, filters, rings and addresses. Random numbers come from a file instead of the
kernel, so that a program that draws some does the same in every run. An argument that is a pointer cannot be looked at, so `clone3` does
not exist here; every libc then falls back to `clone`.

Children whose parent ignores SIGCHLD are reaped unseen, and their time is lost. So in a container SIGCHLD keeps its
default whatever the program sets: setting it succeeds and does nothing, and a parent still waits for its children as ever.
"""

from __future__ import annotations

import errno
import platform
import struct

# Numbers on x86_64 and on aarch64; None where the call does not exist.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "pidfd_getfd": (438, 438), "perf_event_open": (298, 241),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
    "fspick": (433, 433), "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "vmsplice": (278, 75),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "quotactl": (179, 60), "swapon": (167, 224), "swapoff": (168, 225), "reboot": (169, 142),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "syslog": (103, 116), "iopl": (172, None), "ioperm": (173, None), "lookup_dcookie": (212, 18),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190),
    "msgget": (68, 186), "mq_open": (240, 180), "io_setup": (206, 0), "inotify_init": (253, None), "inotify_init1": (294, 26),
    "fanotify_init": (300, 262), "seccomp": (317, 277), "landlock_create_ruleset": (444, 444),
    "socket": (41, 198), "bind": (49, 200), "connect": (42, 203), "listen": (50, 201), "setsockopt": (54, 208),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "process_mrelease": (448, 448),
}  # fmt: skip
ABSENT = {"clone3": (435, 435), "getrandom": (318, 278)}
# Refused besides where there is no container: anything that touches another process or a file's owner, mode and times.
REFUSED_BARE: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None), "futimesat": (261, None),
    "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463), "removexattrat": (466, 466),
    "truncate": (76, 45),
}  # fmt: skip
CLONE, MMAP, SIGACTION = (56, 220), (9, 222), (13, 134)
# Refused when an argument, counted from 0, is one of these: signals to whom a file is said to belong to, record locks and larger pipes;
# the same by ioctl; further filters and a life beyond one's parent; pages put out to swap.
WITH_ARGUMENT: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {
    (72, 25): (1, (6, 7, 8, 10, 15, 37, 38, 1026, 1031)),  # fcntl
    (16, 29): (1, (0x8901, 0x8902)),  # ioctl
    (157, 167): (0, (1, 22)),  # prctl
    (28, 233): (2, (20, 21)),  # madvise
}
OTHER_PROCESS = {"kill": (62, 129), "tgkill": (234, 131)}  # allowed with one's own process as the first argument
OTHER_LIMITS = (302, 261)  # prlimit64: allowed with 0 for oneself

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # the column above, and what the kernel calls it
NEW_NAMESPACES, CLONE_THREAD = 0x7E020000, 0x00010000
MAP_SHARED, MAP_ANONYMOUS, MAP_HUGETLB = 0x01, 0x20, 0x40000
SIGCHLD = 17

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _MACHINE, _ARGUMENTS = 0, 4, 16  # offsets in the kernel's struct seccomp_data


def known_machine() -> bool:
    """Whether the tables know this machine's system calls."""
    return platform.machine() in MACHINES


def _instruction(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def _answer(number: int, error: int) -> bytes:
    """Answers one system call with an error."""
    return _instruction(_EQUAL, number, no=1) + _instruction(_RETURN, _ERROR | error)


def _with(number: int, argument: int, values: tuple[int, ...]) -> bytes:
    """Refuses one system call when the lower half of an argument, which is all that the kernel reads of it, is one of these."""
    tests = b"".join(_answer(value, errno.EPERM) for value in values)
    body = _instruction(_LOAD, _ARGUMENTS + 8 * argument) + tests + _instruction(_LOAD, _NUMBER)
    return _instruction(_EQUAL, number, no=len(body) // 8) + body


def _no_unseen_memory(number: int) -> bytes:
    """Answers mmap with a lack of memory where huge pages are asked for, or memory that is shared and in no file."""
    body = _instruction(_LOAD, _ARGUMENTS + 8 * 3) + _instruction(_ANY_BIT, MAP_HUGETLB, yes=2)
    body += _instruction(_ANY_BIT, MAP_SHARED, no=2) + _instruction(_ANY_BIT, MAP_ANONYMOUS, no=1)
    body += _instruction(_RETURN, _ERROR | errno.ENOMEM) + _instruction(_LOAD, _NUMBER)
    return _instruction(_EQUAL, number, no=len(body) // 8) + body


def _keeps_children(number: int) -> bytes:
    """Lets rt_sigaction succeed without doing anything where it would set what becomes of SIGCHLD; asking is let through."""
    body = _instruction(_LOAD, _ARGUMENTS) + _instruction(_EQUAL, SIGCHLD, no=5)
    body += _instruction(_LOAD, _ARGUMENTS + 8) + _instruction(_EQUAL, 0, no=2)  # a pointer has two halves
    body += _instruction(_LOAD, _ARGUMENTS + 12) + _instruction(_EQUAL, 0, yes=1)
    body += _instruction(_RETURN, _ERROR) + _instruction(_LOAD, _NUMBER)
    return _instruction(_EQUAL, number, no=len(body) // 8) + body


def _unless(number: int, test: bytes) -> bytes:
    """Refuses one system call unless `test`, an instruction on its first argument, skips the refusal."""
    body = _instruction(_LOAD, _ARGUMENTS) + test + _instruction(_RETURN, _ERROR | errno.EPERM) + _instruction(_LOAD, _NUMBER)
    return _instruction(_EQUAL, number, no=len(body) // 8) + body


def assemble(*, contained: bool, own_process: int = 0) -> bytes:
    """The filter for this machine, an array of the kernel's `struct sock_filter`.

    Without a container it also keeps the program, process `own_process`, to itself.

    Raises `KeyError` on a machine that the tables do not know.
    """
    column, machine = MACHINES[platform.machine()]
    code = _instruction(_LOAD, _MACHINE) + _instruction(_EQUAL, machine, yes=1) + _instruction(_RETURN, _KILL)
    code += _instruction(_LOAD, _NUMBER)
    if column == 0:  # the same calls under other numbers, with pointers of 32 bits
        code += _instruction(_AT_LEAST, 0x40000000, no=1) + _instruction(_RETURN, _KILL)
    refused = REFUSED if contained else REFUSED | REFUSED_BARE
    for numbers in refused.values():
        number = numbers[column]
        code += _answer(number, errno.EPERM) if number is not None else b""
    for absent in ABSENT.values():
        code += _answer(absent[column], errno.ENOSYS)
    for calls, (argument, values) in WITH_ARGUMENT.items():
        code += _with(calls[column], argument, values)
    code += _no_unseen_memory(MMAP[column]) + _unless(OTHER_LIMITS[column], _instruction(_EQUAL, 0, yes=1))
    if contained:
        code += _unless(CLONE[column], _instruction(_ANY_BIT, NEW_NAMESPACES, no=1)) + _keeps_children(SIGACTION[column])
    else:
        code += _unless(CLONE[column], _instruction(_ANY_BIT, CLONE_THREAD, yes=1))
        for other in OTHER_PROCESS.values():
            code += _unless(other[column], _instruction(_EQUAL, own_process, yes=1))
    return code + _instruction(_RETURN, _ALLOW)
