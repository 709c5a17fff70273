"""Decides, sentence by sentence, whether a statement accepts more than one answer.

A sentence that names the wanted one of several answers ("print the smallest") asks for one, unless any of those is accepted again
("with the fewest moves, print any"). The words are those of published statements; other wordings are not found.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a statement, and whether it is in the section on the output."""

    text: str
    about_output: bool


_SAY = r"(?:print|output|display|report|return|write|list|show)\w*"
_FIND = r"(?:find|determine|construct|build|restore|give|provide)"
_FITTING = (
    r"(?:of|one|such|valid|suitable|possible|appropriate|correct|right|acceptable|optimal|feasible|proper|satisfying|matching|winning"
    r"|fitting|permutation|answers?|solutions?)"
)
_ANSWERS = r"""(?:answers?|solutions?|options?|variants?|possibilit\w+|results?|outputs?|optimal|correct|valid|possible|suitable|appropriate
    |candidates?|choices?)"""
_FOUND = rf"""(?:{_ANSWERS}|such|ways?|of\s+them|\w+s\s+(?:that|which|with|satisfying|for\s+which)|permutations?|strings?|sequences?|arrays?
    |sets?|subsets?|paths?|routes?|plans?|partitions?|arrangements?|configurations?|schedules?|assignments?|matri\w+|strategies)"""
_IF = r"\b(?:if|in\s+(?:the\s+)?case|when|whenever|should|where|there\s+(?:may|might|can|could)\s+be)\b[^,.]{0,30}?"
_MANY = re.compile(
    rf"""{_IF}\b(?:multiple|several|many|more\s+than\s+one|two\s+or\s+more|various|numerous)\s+(?:\w+\s+){{0,2}}?{_FOUND}\b
    | {_IF}\bdifferent\s+(?:\w+\s+)?{_ANSWERS.replace("possible|", "")}\b | \bif\s+there\s+are\s+different\s+ways\b
    | {_IF}\b(?:several|multiple|many|more\s+than\s+one)\s+(?:exists?|are\s+possible|is\s+possible)\b
    | \bmany\s+of\s+(?:them|these|those)\b | \bif\s+there\s+are\s+ties\b""",
    re.IGNORECASE | re.VERBOSE,
)
_NOT_UNIQUE = re.compile(r"(?:\bnot\s+(?:\w+\s+){0,2}|n't\s+(?:\w+\s+){0,2}|\bnon-)unique\b|\bambiguous\b", re.IGNORECASE)
_SEVERAL = re.compile(rf"\b(?:multiple|several|many|more\s+than\s+one)\s+(?:\w+\s+)?{_ANSWERS}\b", re.IGNORECASE | re.VERBOSE)
_ANY_ONE = re.compile(
    r"\b(?:any|arbitrary|whichever|whatever)\b|\b(?:one|some|either)\s+of\s+(?:them|these|those|the)\b|\bno\s+matter\s+which\b",
    re.IGNORECASE,
)
# Says which of several answers is wanted.
_WHICH = re.compile(
    r"lexicograph|alphabet|smallest|largest|minim|maxim|\bleast|greatest|lowest|highest|fewest|shortest|longest|earliest|latest|\bfirst\b"
    r"|\blast\b|leftmost|rightmost|topmost|nearest|closest|biggest|\bmost\b|smaller|larger|earlier|later|lower|higher|ascending|descending"
    r"|increasing|decreasing|sorted|\bnumber\s+of\b|modul|\bcount\b|\bsum\b|how\s+many|\bin\s+the\s+order\b|\b-\s?1\b",
    re.IGNORECASE,
)
_SAYS = re.compile(rf"\b(?:{_SAY}|find|satisf\w+|accept\w*|answers|solutions)\b", re.IGNORECASE)
_SETTLES = re.compile(
    rf"\b(?:{_SAY}|{_FIND}|cho[os]\w*|pick\w*|select\w*|accept\w*|allowed|enough|suffic\w*|satisf\w*|will\s+do)\b", re.IGNORECASE
)
_TELLS_ANY = re.compile(
    rf"""(?<!not\s)(?<!n't\s)(?<!without\s)\b{_SAY}\s+(?:out\s+)?(?:(?:an?|the|just|only|integers?|indices|numbers?|of|them|as)\s+)?
        (?:any|arbitrary|whichever)\b
        (?!\s+(?:\w+\s+)?(?:case|time|moment|order|number\s+of|extra|additional|other\s+(?:text|symbols?|characters?))\b)
    | (?:^|[.,;:]\s*|(?<!able\s)(?<!possible\s)\bto\s+|\b(?:should|must|please|and|then|just)\s+){_FIND}\s+(?:an?\s+)?(?:any|arbitrary)\s+
        (?:\w+\s+)?{_FITTING}\b
    | \b(?:{_SAY}|find)\s+(?:(?:just|only|exactly|at\s+least)\s+)?one\s+
        (?:of\s+(?:them|these|those|the\s+(?:\w+\s+)?(?:{_ANSWERS}|ways))|such|possible|valid|suitable|correct)\b
    | \b{_SAY}\s+(?:an\s+example\s+of|some\s+(?:such|valid|suitable|correct|possible))\b
    | \bwhich\s+(?:one|of\s+them)\s+(?:to|you)\s+{_SAY}
    | \bsatisfied\s+(?:by|with)\s+any\b
    | \b(?:any|either|each|every|all)\s+of\s+(?:them|these|those)\s+(?:\w+\s+){{0,3}}(?:accept|considered\s+(?:correct|right|valid))
    | \b(?:special|custom)\s+(?:checker|judge)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_ACCEPTED = re.compile(
    r"\b(?:any|all|each|every|other|another)\b[^.]{0,60}\b(?:answers?|solutions?|outputs?|permutations?|sequences?|arrangements?)\b"
    r"[^.]{0,40}\b(?:accepted|acceptable|considered\s+(?:to\s+be\s+)?(?:correct|right|valid))\b",
    re.IGNORECASE,
)
_IN_ORDER = r"\b[^;]{0,160}?\b(?:any|arbitrary|whatever|random)\s+(?:possible\s+|valid\s+)?order\b"
_OUTPUT_IN_ANY_ORDER = re.compile(rf"\b{_SAY}{_IN_ORDER}", re.IGNORECASE)
_THINGS_IN_ANY_ORDER = re.compile(
    rf"\b(?:lines?|contain|integers|numbers|indices|edges|vertices|elements|pairs){_IN_ORDER}", re.IGNORECASE
)
_ORDER_FREE = re.compile(
    r"\border\b[^.]{0,60}\b(?:(?:does\s+not|doesn't|do\s+not|don't)\s+matter|(?:is|are)\s+(?:not\s+important|unimportant|irrelevant|arbitrary)"
    r"|(?:can|may)\s+be\s+(?:arbitrary|any))",
    re.IGNORECASE,
)
_ABOUT_MOVES = re.compile(r"perform|appl(?:y|ied)|visit|execut|identical|considered|\bsame\b|differ", re.IGNORECASE)
_ONE_NUMBER = re.compile(
    rf"\b{_SAY}\s+(?:a\s+single|one|the\s+only|exactly\s+one|only\s+one)\s+(?:integer|number)\b(?!\W{0, 3}[0-9])", re.IGNORECASE
)


def several_answers(sentences: Sequence[Sentence]) -> bool:
    """Whether more than one answer is right."""
    one_number = any(one.about_output and _ONE_NUMBER.search(one.text) for one in sentences)
    following = [*sentences[1:], Sentence("", False)]
    return any(
        _TELLS_ANY.search(one.text)
        or _in_any_order(one)
        or (not one_number and _order_is_free(one))
        or _whichever(one, after.text)
        or _ACCEPTED.search(one.text)
        for one, after in zip(sentences, following, strict=True)
    )


def accepts_others(text: str) -> bool:
    """Whether a text, as a note on an example, says that other answers are accepted."""
    return _ACCEPTED.search(text) is not None


def _in_any_order(one: Sentence) -> bool:
    return bool(_OUTPUT_IN_ANY_ORDER.search(one.text) or (one.about_output and _THINGS_IN_ANY_ORDER.search(one.text)))


def _order_is_free(one: Sentence) -> bool:
    return one.about_output and bool(_ORDER_FREE.search(one.text)) and not _ABOUT_MOVES.search(one.text)


def _whichever(one: Sentence, after: str) -> bool:
    """Whether there may be several answers and none is preferred. The next sentence may state what to do then."""
    many = _MANY.search(one.text) or _NOT_UNIQUE.search(one.text) or (_SEVERAL.search(one.text) if one.about_output else None)
    if many is None:
        return False
    settled = _SETTLES.search(one.text, many.end()) or _SETTLES.search(one.text[: many.start()])
    whole = one.text if settled else f"{one.text} {after}"
    if not _SETTLES.search(whole) or not (one.about_output or _SAYS.search(whole)):
        return False
    return not _WHICH.search(whole) or bool(_ANY_ONE.search(whole, many.end()))
