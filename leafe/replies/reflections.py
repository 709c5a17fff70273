"""Reflections: a turn in `<turn>...</turn>`, an experience in `<experience>...</experience>`, and the other forms that are read.

`docs/replies.md` is the grammar in words, with a table of cases. A turn is read or refused; it is never moved into range.
"""

from __future__ import annotations

import re
from dataclasses import replace

from leafe.records import Experience
from leafe.replies.reading import (
    NO_HALF,
    Half,
    ParseFailure,
    different,
    hollow,
    opened_last,
    pairs,
    quoted,
    tags_in,
    thoughts_apart,
    unwrapped,
)

_NONE = {"none", "n/a", "no turn", "none of the turns", "none of them", "nothing", "null"}
_WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_MARKS = r"[ \t>#*_`-]{0,8}"
_NUMBER = re.compile(r"(?:turn|step|number)?[ \t:#*.]*(-?[0-9]+)(?:[ \t]*[.,:;(–—-][^0-9]*)?", re.IGNORECASE | re.DOTALL)
_TURN_LINE = re.compile(
    rf"^{_MARKS}turn[*_` \t]{{0,4}}[:#]?[*_` \t]{{0,4}}(-?[0-9]{{1,9}}|none|{'|'.join(_WORDS)})[*_` \t.:]{{0,6}}$",
    re.IGNORECASE | re.MULTILINE,
)
_EXPERIENCE_LINE = re.compile(rf"^{_MARKS}experience[*_`]{{0,3}}[ \t]?:[*_]{{0,3}}", re.IGNORECASE | re.MULTILINE)
_NEXT_LINE = re.compile(
    rf"^{_MARKS}(?:turn|thought|action|observation|experience)[*_`]{{0,3}}[ \t]?[:0-9]", re.IGNORECASE | re.MULTILINE
)
_AROUND_A_REPLY = " \t\r\n`~*_"
_BEHIND_A_TURN = " \t\r\n.:;,–—-*_`"
_LONGEST_TURN = 200  # characters of the text for a turn


def render_tagged_reflection(experience: Experience | None) -> str:
    """A reply that names a turn and an experience, or (None) that nothing went wrong."""
    if experience is None:
        return "<turn>none</turn>"
    return f"<turn>{experience.turn}</turn>\n<experience>{experience.text}</experience>"


def parse_tagged_reflection(reply: str, turns: int, *, whole: bool, kept: Half = NO_HALF) -> Experience | None:
    """The experience that a reply names, or None if the reply is that nothing went wrong. Raises `ParseFailure`.

    `kept` is the half that an earlier reply gave, if only the other half was asked for.
    """
    thoughts = thoughts_apart(reply)
    said = thoughts.said
    if thoughts.unclosed is not None and not pairs(said, "turn") and not pairs(said, "experience"):
        said = thoughts.unclosed if _ends_with_a_tag(thoughts.unclosed) else said
    named = _turns_named(said) or _thought_alone(said, thoughts.closed) or _answer_alone(said, kept)
    turn, text, problem = kept.turn, kept.experience, ""
    try:
        if named or turn is None:
            turn = _one_turn(named, turns, _lacks("turn", said, thoughts.closed, whole=whole))
            if turn is None:
                return None
    except ParseFailure as failure:
        turn, problem = None, str(failure)
    try:
        text = _experience(said, thoughts.closed, whole=whole, alone=kept.turn is not None)
    except ParseFailure as failure:
        problem = problem or ("" if text else str(failure))
    if turn is None or problem:
        raise ParseFailure(problem, Half(turn, text))
    return Experience(turn, text)


def _ends_with_a_tag(text: str) -> bool:
    found = [*pairs(text, "turn"), *pairs(text, "experience")]
    return bool(found) and not text[max(pair.end for pair in found) :].strip(" \t\r\n.`~*")


def _turns_named(said: str) -> list[str]:
    """The texts for the turn: in tags, else on separate lines above the experience."""
    in_tags = [unwrapped(pair.text) for pair in pairs(said, "turn")]
    opened = opened_last(said, "turn")
    if opened is not None:  # a <turn> that is not closed ends with its line or at the next tag
        line = re.split(r"[<\n]", said[opened : opened + _LONGEST_TURN], maxsplit=1)[0].strip()
        in_tags += [line] if line else []
    if in_tags:
        return in_tags
    above = [*(pair.start for pair in pairs(said, "experience")), *(line.start() for line in _EXPERIENCE_LINE.finditer(said))]
    return [line.group(1) for line in _TURN_LINE.finditer(said, 0, min(above))] if above else []


def _thought_alone(said: str, closed: tuple[str, ...]) -> list[str]:
    """The number in `<think>2</think>` before an experience: thoughts that are a number alone are a turn in the wrong tag."""
    alone = closed[-1].strip() if closed and pairs(said, "experience") else ""
    return [alone] if len(alone) <= 8 and _NUMBER.fullmatch(alone) else []


def _answer_alone(said: str, kept: Half) -> list[str]:
    """The whole of a short reply to a question for the turn alone."""
    return [unwrapped(said)] if kept.experience and said.strip() and not tags_in(said) else []


def _one_turn(named: list[str], turns: int, lacks: str) -> int | None:
    if not named:
        raise ParseFailure(lacks)
    if len(different(named)) > 1:
        raise ParseFailure(f"there were different turns: {quoted(named[0])} and {quoted(different(named)[1])}")
    return _turn(named[-1], turns)


def _turn(text: str, turns: int) -> int | None:
    plain = text[:_LONGEST_TURN].strip(" \t\r\n.*_#:;()[]`").casefold()
    if plain in _NONE:
        return None
    word = plain.removeprefix("turn").strip(" :")
    found = _NUMBER.fullmatch(plain) if len(text) <= _LONGEST_TURN else None
    if found is None and word not in _WORDS:
        raise ParseFailure(f"the turn was {quoted(text)} and not one number from 1 to {turns}, or none")
    number = found.group(1) if found else str(_WORDS.index(word) + 1)
    if len(number) > 6 or not 1 <= int(number) <= turns:
        raise ParseFailure(f"there is no turn {quoted(number)}: wanted a turn from 1 to {turns}")
    return int(number)


def _experience(said: str, closed: tuple[str, ...], *, whole: bool, alone: bool) -> str:
    """The one experience. Without a closing tag it extends to the end of a whole reply.

    `alone` means that nothing else was asked for, so a reply without any tag is the experience.
    """
    found = [pair.text.strip() for pair in pairs(said, "experience")]
    opened = opened_last(said, "experience")
    if not found and whole:
        found = [_to_the_end(_before_a_turn(said[opened:]))] if opened is not None else _on_lines(said)
    if whole and not any(found):
        found += _behind_the_turn(said) or ([_to_the_end(said)] if alone and not tags_in(said) else [])
    chosen = different([text for text in found if not hollow(text)])
    if len(chosen) > 1:
        raise ParseFailure(f"there were different experiences: {quoted(chosen[0])} and {quoted(chosen[1])}")
    if chosen:
        return chosen[0]
    if any(found):
        raise ParseFailure(f"{quoted(next(filter(None, found)))} only stands for an experience: say what to do instead")
    if found:
        raise ParseFailure("the experience was empty")
    raise ParseFailure(_lacks("experience", said, closed, whole=whole))


def _on_lines(said: str) -> list[str]:
    """The texts of lines `Experience: ...`, each up to the next labelled line, a tag or the end."""
    found = []
    for label in _EXPERIENCE_LINE.finditer(said):
        following = _NEXT_LINE.search(said, label.end())
        text = said[label.end() : following.start() if following else len(said)]
        tags = tags_in(text)
        if tags and not text[: tags[0].start].strip():  # a closing tag in the place of an opening one
            text, tags = text[tags[0].end :], tuple(replace(tag, start=tag.start - tags[0].end) for tag in tags[1:])
        found.append(_to_the_end(text[: tags[0].start] if tags else text))
    return found


def _behind_the_turn(said: str) -> list[str]:
    """The text after the turn in a reply that begins with the turn: nothing else was asked for."""
    named = pairs(said, "turn")
    if not named or said[: named[0].start].strip(_AROUND_A_REPLY):
        return []
    behind = said[named[-1].end :]
    for empty in reversed([pair for pair in pairs(behind, "experience") if not pair.text.strip()]):
        behind = behind[: empty.start] + behind[empty.end :]
    # With a tag in it, such as a closing one that was never opened, the advice would be a guess.
    text = "" if tags_in(behind) else _to_the_end(behind.lstrip(_BEHIND_A_TURN))
    return [text] if text else []


def _before_a_turn(text: str) -> str:
    """The text of an experience that is not closed, without a turn that is named after it."""
    turn = next((tag.start for tag in tags_in(text) if tag.name == "turn"), len(text))
    return text[:turn]


def _to_the_end(text: str) -> str:
    """The rest of a reply, without the end of a fence around the reply."""
    lines = text.strip().split("\n")
    return "\n".join(lines[:-1] if len(lines) > 1 and lines[-1].strip() in ("```", "~~~") else lines).strip()


def _lacks(name: str, said: str, closed: tuple[str, ...], *, whole: bool) -> str:
    if not whole:
        return f"the reply was cut before its {name} ended"
    if any(pairs(text, name) for text in closed) and not pairs(said, name):
        return f"the <{name}>...</{name}> stood among the thoughts, before </think>"
    return f"there was no <{name}>...</{name}>"
