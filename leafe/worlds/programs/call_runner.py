"""Started in the sandbox in place of a program that defines a function: calls it and prints the result, in one form for equal values.

The expected value is never here. The judge writes it in the same form and compares the last line of the output. Another Python than ours
may run this file, so it imports nothing of ours.

    input: {"setup": "import math", "call": "area(2, 3)"}
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Set
from typing import Any

SAFE_DIGITS = 4000  # of a whole number that any Python writes out at once
LONG = 10**SAFE_DIGITS


def canonical(value: Any) -> str:
    """One text for all values that compare equal, as far as literals go: 1, 1.0, True and Decimal(1) are one, and so are equal sets.

    >>> canonical({2: (1.0, True), "a": {3, 1}, 0: (5,)})
    "{'a': {1, 3}, 0: (5,), 2: (1, 1)}"
    """
    if value is None:
        return "None"
    if isinstance(value, str):
        return str.__repr__(value)  # a member of an enumeration of texts has another of its own
    if isinstance(value, (bytes, bytearray, memoryview)):
        return repr(bytes(value))
    if isinstance(value, complex):
        return _number(value.real) if value.imag == 0 else f"({_number(value.real)}+{_number(value.imag)}j)"
    if hasattr(value, "as_integer_ratio"):
        return _number(value)
    if hasattr(type(value), "__index__") and value == int(value):
        return _digits(int(value))
    if type(value).__module__ == "collections" and hasattr(value, "data"):  # UserList, UserDict and UserString
        return canonical(value.data)
    if isinstance(value, list):
        return "[" + ", ".join(map(canonical, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(canonical, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, Set):
        return "{" + ", ".join(sorted(map(canonical, value))) + "}" if len(value) else "set()"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{canonical(key)}: {canonical(item)}" for key, item in value.items())) + "}"
    return f"<{type(value).__name__}>"


def _number(value: Any) -> str:
    """Whole numbers by their digits, others as the nearest float where they are equal to it, else as a fraction."""
    try:
        above, below = value.as_integer_ratio()
    except (ValueError, OverflowError):  # infinite, or no number at all
        return repr(float(value))
    if below == 1:
        return _digits(int(above))
    try:
        nearest = above / below
    except OverflowError:
        return f"{_digits(above)}/{_digits(below)}"
    return repr(nearest) if nearest.as_integer_ratio() == (above, below) else f"{_digits(above)}/{_digits(below)}"


def _digits(value: int) -> str:
    """The decimal digits of a whole number of any length, which Python by itself writes out up to some thousands."""
    if abs(value) < LONG:
        return str(value)
    if value < 0:
        return "-" + _digits(-value)
    half = int(value.bit_length() * 0.30103) // 2
    above, below = divmod(value, 10**half)
    return _digits(above) + _digits(below).rjust(half, "0")


def main() -> None:
    """Runs the program beside this file, then the call."""
    asked = json.loads(sys.stdin.read())
    sys.stdin = open(os.devnull)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py"), encoding="utf-8") as file:
        source = file.read()
    names: dict[str, Any] = {"__name__": "program"}
    # Text from outside is run here because this is inside the sandbox.
    exec(compile(source, "program.py", "exec"), names)
    exec(compile(asked["setup"], "setup.py", "exec"), names)
    value = eval(compile(asked["call"], "call.py", "eval"), names)
    answer = "\n" + canonical(value) + "\n"
    # The program's own output comes first, and nothing after the answer: whatever it left for its exit is not done.
    for stream in (sys.stdout, sys.__stdout__):
        if stream is not None and not stream.closed:
            stream.flush()
    left = memoryview(answer.encode("utf-8", "backslashreplace"))
    while left:
        left = left[os.write(1, left) :]
    os._exit(0)


if __name__ == "__main__":
    main()
