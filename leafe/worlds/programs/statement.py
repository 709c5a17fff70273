"""A statement's rules for right answers: letters in any case, a tolerance for numbers, or several right answers.

A published problem comes without its judge, so the rules are read from the statement's words, which is a heuristic. Case and tolerance
are judged as stated. Where several answers are right, only a judge of the problem's own could recognise a wrong one: such a problem is
`Excluded`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from typing import Literal

from leafe.worlds.programs.problem import Answers, Excluded
from leafe.worlds.programs.several import Sentence, accepts_others, several_answers

SEVERAL = "a special judge"
NO_FIGURE = "a tolerance without a figure"

_HEADING = re.compile(
    r"^[ \t#*=-]*(inputs?|outputs?|examples?|samples?|notes?|constraints|scoring|interaction|explanation|hints?|subtasks?)\b"
    r"(?:[ \t]+(?:format|specification|data|section|inputs?|outputs?|\d+))*[ \t:*#=-]*$",
    re.IGNORECASE | re.MULTILINE,
)
_ASIDE = ("example", "sample", "note", "explanation", "hint")  # sections that ask for nothing
_SENTENCE = re.compile(r"(?<=[.!?;])\s+(?=[^a-z\s])")

_SPOKEN = re.compile(r"\b(?:print|output|display|write|answer|accept|recogni)", re.IGNORECASE)
_LETTERS = re.compile(r"letter|character|symbol|upper|lower|\bword|\banswers?\b|verdict|string|\byes\b|\bno\b", re.IGNORECASE)
_IN_CASE = re.compile(
    r"\b(?:any|either|arbitrary|whatever|whichever)\s+(?:letter\s+|possible\s+)?(?:case|register)\b", re.IGNORECASE
)
_CASE = r"\b(?:case|register)\b"
_CASE_FREE = re.compile(
    rf"""\b(?:case|register)[\s-]*(?:in|un)sensitiv | \bnot\s+case[\s-]*sensitiv | insensitiv\w*\s+to\s+(?:the\s+)?case
    | \b(?:letters?|characters?|answers?|words?|upper|lower)\b[^.]{{0,30}}{_CASE}[^.]{{0,20}}(?:\bnot|n't)\s+(?:matter|important|relevant)
    | {_CASE}\s+of\s+(?:\w+\s+){{1,4}}(?:does\s+not|doesn't)\s+matter
    | {_CASE}\s+of\s+(?:\w+\s+){{1,4}}(?:is|will\s+be)\s+(?:ignored|irrelevant|not\s+important|unimportant)
    | ^(?:letter\s+)?case\s+(?:(?:does\s+not|doesn't)\s+matter|is\s+(?:ignored|irrelevant|not\s+important))
    | \b(?:regardless\s+of|ignor\w+|irrespective\s+of)\s+(?:the\s+)?(?:letter\s+)?case\b""",
    re.IGNORECASE | re.VERBOSE,
)
_CAPITALS_FREE = re.compile(r"\bcapitali[sz]ation\b[^.]{0,20}(?:\bnot|n't|ignored|irrelevant|unimportant)", re.IGNORECASE)
_EITHER_CASE = re.compile(
    r"\b(?:upper|lower|small|capital)[\s-]*(?:case)?\s*(?:letters?\s*)?(?:or|and|as\s+well\s+as|/)\s*(?:in\s+)?(?:upper|lower|small|capital)",
    re.IGNORECASE,
)
_PERMITS = re.compile(r"\b(?:accept\w*|allowed|(?:can|may)\s+(?:be\s+)?(?:print|output|writ|display|given|us)\w*)\b", re.IGNORECASE)
_MIXED = re.compile(r"\b(?:yEs|YeS|yeS|YEs|yES|nO)\b")

_CLOSE = re.compile(
    r"\berrors?\b|precision|accura|toleran|deviat|\bdiffer\w*\b|\bwithin\b|considered\s+(?:to\s+be\s+)?(?:correct|right|valid)|discrepan"
    r"|\boff\s+by\b|\baway\b"
    r"|margin|\bclose\b|max\s*[({\\]+\s*1\s*,",
    re.IGNORECASE,
)
_ERROR = re.compile(
    r"\b(?:absolute|relative)\b(?:\s*(?:or|and|/|,)\s*(?:absolute|relative|abs|rel))?\s*(?:errors?|difference|deviation|precision|tolerance)",
    re.IGNORECASE,
)
_MINUS = r"[-\u2010-\u2015\u2212]"
_FIGURE = re.compile(
    rf"""(?:(?P<times>\d+(?:\.\d+)?)\s*(?:\\times|\\cdot|[*x×·⋅])\s*)?
    (?: (?<![\d.])\{{?10\}}?\s*(?:\^|\*\*|<sup>)?\s*[({{]*\s*{_MINUS}\s*[({{]*(?P<ten>\d{{1,2}})(?!\d)
      | (?<![\d.])(?P<mantissa>\d+(?:\.\d+)?)\s?e\s?{_MINUS}\s?(?P<exponent>\d{{1,2}})(?!\d)
      | (?<![\d.])(?P<plain>0?\.\d*[1-9])(?!\d)
      | (?<![\d.])10(?P<tiny>⁻[⁰¹²³⁴⁵⁶⁷⁸⁹]+))""",
    re.IGNORECASE | re.VERBOSE,
)
_TINY = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789")
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_PLACES = re.compile(
    rf"\b(\d{{1,2}}|{'|'.join(_COUNTS)})\s*(?:\(\d+\)\s*)?(?:or\s+more\s+)?(?:correct\s+|exact\s+|significant\s+)?(?:decimal\s+)?"
    r"(?:digits?|decimals?|places?|signs|figures)\b",
    re.IGNORECASE,
)
_AT_LEAST = re.compile(
    r"\b(?:at\s+least|(?:no|not)\s+(?:less|fewer)\s+than|or\s+more|accura\w*|precision|correct\s+to)\b", re.IGNORECASE
)
_OF_A_FRACTION = re.compile(r"decimal|\bpoint|\bdot\b|\bcomma\b|precision|accura", re.IGNORECASE)
_EXACTLY = re.compile(r"\b(?:exactly|round\w*|truncat\w*)\b", re.IGNORECASE)


def answers_of(statement: str, *, special_judges: bool = False) -> Answers:
    """How answers to a statement are to be compared.

    Raises `Excluded` where only a judge of the problem's own can tell right from wrong; with `special_judges` nothing is excluded.
    """
    sentences = list(_sentences(statement))
    if not special_judges and (several_answers(sentences) or accepts_others(statement)):
        raise Excluded(SEVERAL)
    figures = [(one.text, figure) for one in sentences if (figure := _figure(one.text)) is not None]
    errors = [one.text for one in sentences if _ERROR.search(one.text)]
    if errors and not figures and not special_judges:
        raise Excluded(NO_FIGURE)
    headed = any(one.about_output for one in sentences)
    return Answers(
        any_case=any(_in_any_case(one, spoken=one.about_output or not headed) for one in sentences),
        tolerance=max((figure for _, figure in figures), default=None),
        measure=_measure(" ".join(errors) or " ".join(text for text, _ in figures)),
    )


def _sentences(statement: str) -> Iterator[Sentence]:
    """The sentences about the problem and its output; those about the input, examples and notes are left out."""
    section, at = "", 0
    for heading in [*_HEADING.finditer(statement), None]:
        text = statement[at : len(statement) if heading is None else heading.start()]
        if not section.startswith((*_ASIDE, "input", "constraint")):
            for paragraph in re.split(r"\n\s*\n|\n(?=\s*[*•-]\s)", text):
                for sentence in _SENTENCE.split(" ".join(paragraph.split())):
                    yield Sentence(sentence, section.startswith("output"))
        if heading is not None:
            # Below `Examples` every `Input` and `Output` is one of an example.
            section = section if section.startswith(("example", "sample")) else heading.group(1).lower()
            at = heading.end()


def _in_any_case(one: Sentence, *, spoken: bool) -> bool:
    text = one.text
    if _MIXED.search(text):
        return True
    if not spoken and not _SPOKEN.search(text):
        return False
    if _IN_CASE.search(text):
        return bool(_LETTERS.search(_IN_CASE.sub(" ", text)))
    if _PERMITS.search(text) and _one_word_in_two_cases(text):
        return True
    return bool(_CASE_FREE.search(text) or _CAPITALS_FREE.search(text) or (_EITHER_CASE.search(text) and _PERMITS.search(text)))


def _one_word_in_two_cases(text: str) -> bool:
    """Whether a word occurs in capitals and otherwise, as YES and Yes."""
    words = set(re.findall(r"[A-Za-z]{2,}", text))
    return any(word.isupper() and {word.lower(), word.title()} & words for word in words)


def _figure(text: str) -> Decimal | None:
    """The tolerance that a sentence names: a small number, or a number of digits that have to be right at least."""
    found = [_number(match) for match in _FIGURE.finditer(text)] if _CLOSE.search(text) else []
    if found:
        return max(found)
    places = _PLACES.search(text)
    if places is None or _EXACTLY.search(text) or not _AT_LEAST.search(text) or not _OF_A_FRACTION.search(text):
        return None
    word = places.group(1).lower()
    return Decimal(1).scaleb(-(_COUNTS.index(word) if word in _COUNTS else int(word)))


def _number(match: re.Match[str]) -> Decimal:
    if match["plain"]:
        value = Decimal(match["plain"])
    elif match["tiny"]:
        value = Decimal(1).scaleb(int(match["tiny"].translate(_TINY)))
    else:
        value = Decimal(match["mantissa"] or 1).scaleb(-int(match["ten"] or match["exponent"]))
    return value * Decimal(match["times"] or 1)


def _measure(said: str) -> Literal["absolute", "relative", "either"]:
    """Which error is bounded; either where both are named, or none."""
    absolute, relative = re.search(r"\babsolute", said, re.IGNORECASE), re.search(r"\brelative", said, re.IGNORECASE)
    if re.search(r"max\s*[({\\]+\s*1", said, re.IGNORECASE):
        return "either"
    if relative:
        return "either" if absolute else "relative"
    return "absolute" if absolute or re.search(r"\bdiffer", said, re.IGNORECASE) else "either"
