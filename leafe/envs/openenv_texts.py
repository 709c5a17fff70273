"""Text from an OpenEnv server as it may be shown: of bounded length, without control characters."""

from __future__ import annotations

LONGEST = 20_000  # characters of an observation


def readable(text: str) -> str:
    """Text of bounded length without control characters."""
    cut = text[:LONGEST] + (f"\n[{len(text) - LONGEST:,} more characters]" if len(text) > LONGEST else "")
    kept = "".join(one if one.isprintable() or one in "\n\t" else " " for one in cut.replace("\r\n", "\n"))
    return kept.strip() or "(nothing)"
