"""Started in the sandbox in place of a program that defines a function: calls it and prints what it gives, in one form for equal values.

The expected value is never here. The judge writes it in the same form and compares the last line of the output. Another Python than ours
may run this file, so it imports nothing of ours.

    input: {"setup": "import math", "call": "area(2, 3)"}
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def canonical(value: Any) -> str:
    """One text for all values that compare equal, as far as literals go: 1, 1.0 and True are one, and so are equal sets.

    >>> canonical({2: (1.0, True), "a": {3, 1}, 0: (5,)})
    "{'a': {1, 3}, 0: (5,), 2: (1, 1)}"
    """
    if value is None or isinstance(value, (str, bytes)):
        return repr(value)
    if isinstance(value, (bool, int)):
        return str(int(value))
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, complex):
        return canonical(value.real) if value.imag == 0 else repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(canonical, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(canonical, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, (set, frozenset)):
        return "{" + ", ".join(sorted(map(canonical, value))) + "}" if value else "set()"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{canonical(key)}: {canonical(item)}" for key, item in value.items())) + "}"
    return f"<{type(value).__name__}>"


def main() -> None:
    """Runs the program beside this file, then the call."""
    asked = json.loads(sys.stdin.read())
    sys.stdin = open(os.devnull)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "program.py"), encoding="utf-8") as file:
        source = file.read()
    names: dict[str, Any] = {"__name__": "program"}
    # Text from outside is run here because here is inside the sandbox.
    exec(compile(source, "program.py", "exec"), names)
    exec(compile(asked["setup"], "setup.py", "exec"), names)
    value = eval(compile(asked["call"], "call.py", "eval"), names)
    sys.stdout.write("\n" + canonical(value) + "\n")


if __name__ == "__main__":
    main()
