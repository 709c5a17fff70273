"""Faults of a run: replies without an action, cut replies, attempts without room, unreadable reflections.

All are shares, None if they were not counted or there was nothing to count. They are counted over trees here and over the lines of an
evaluation in `evaluation.outcomes`; `alarms` describes faults so frequent that the other figures of a run mean little. Nothing is read
or printed here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from leafe.records import BROKEN, Attempt, Shortening, StopReason, Tree
from leafe.settings import RunConfig

LOUD = 0.5  # beyond half, solved tasks and Pass@k reflect limits and prompts rather than the policy
BROKEN_LOUD = 0.05  # of attempts; none is a failure of the policy, so a twentieth moves Pass@k by as much as methods do
QUOTED = 200  # characters of an error in a sentence
# The columns of a table of shares, by field.
HEADING = {
    "no_action": "replies without action",
    "cut": "replies cut",
    "closed": "replies closed",
    "repeated": "replies repeating",
    "shortened": "prompts shortened",
    "out_of_room": "attempts out of room",
    "broken": "attempts broken",
    "unread": "reflections unread",
    "no_room": "reflections no room",
}


@dataclass(frozen=True, slots=True)
class Faults:
    """Shares of `replies` (one a turn), of `attempts` and of `reflections`. `error` is the most frequent error that broke attempts.

    `errors` counts broken attempts by class.
    `closed` replies were cut or repeated themselves, and were completed; `repeated` ones were ended when they only repeated themselves.
    `shortened` replies had a prompt that left out some of its history, which is no fault but worth knowing. `unread_cut` is the share of
    reflections that could not be read and whose last reply was cut.
    """

    replies: int = 0
    no_action: float | None = None
    cut: float | None = None
    closed: float | None = None
    repeated: float | None = None
    shortened: float | None = None
    attempts: int = 0
    out_of_room: float | None = None
    broken: float | None = None
    error: str | None = None
    reflections: int = 0
    unread: float | None = None
    unread_cut: float | None = None
    no_room: float | None = None
    errors: Mapping[str, int] = field(default_factory=dict)


def share(count: int | None, of: int) -> float | None:
    """A part of a whole, None if it was not counted or the whole is 0."""
    return None if count is None or not of else count / of


def commonest_error(errors: Iterable[str | None]) -> str | None:
    """The most frequent of some attempts' errors, without leafe's class in front, on one line and safe for a terminal."""
    texts = Counter(_one_line(error.removeprefix("EnvironmentFailure: ")) for error in errors if error)
    return texts.most_common(1)[0][0] if texts else None


def _one_line(text: str) -> str:
    line = " ".join(text.split())[:QUOTED]
    return "".join(character if character.isprintable() else "\ufffd" for character in line)


def faults_of(trees: Sequence[Tree]) -> Faults:
    """The shares over all turns, attempts and reflections of some trees."""
    turns = [turn for tree in trees for turn in tree.turns]
    attempts = [attempt for tree in trees for attempt in tree.attempts]
    reflections = [reflection for tree in trees for reflection in tree.reflections]
    unread = [reflection for reflection in reflections if reflection.unread]
    return Faults(
        replies=len(turns),
        no_action=share(sum(not turn.parsed for turn in turns), len(turns)),
        cut=share(sum(turn.completion.finish == "length" for turn in turns), len(turns)),
        closed=share(sum(turn.completion.finish == "closed" for turn in turns), len(turns)),
        repeated=share(sum(turn.completion.finish == "repetition" for turn in turns), len(turns)),
        shortened=share(sum(turn.shortening != Shortening() for turn in turns), len(turns)),
        attempts=len(attempts),
        out_of_room=share(sum(attempt.stop is StopReason.TOKEN_LIMIT for attempt in attempts), len(attempts)),
        broken=share(sum(attempt.stop in BROKEN for attempt in attempts), len(attempts)),
        error=commonest_error(_errors(attempts)),
        reflections=len(reflections),
        unread=share(len(unread), len(reflections)),
        unread_cut=share(sum(bool(one.replies) and one.replies[-1].finish == "length" for one in unread), len(reflections)),
        no_room=share(sum(reflection.no_room for reflection in reflections), len(reflections)),
        errors=by_class((attempt.stop, attempt.error) for attempt in attempts),
    )


def class_of(stop: StopReason, error: str | None) -> str | None:
    """The class of error that broke an attempt, None if it ended by itself or by a limit. An `error` is `CLASS` or `CLASS: message`."""
    if error is not None:
        return error.partition(":")[0].strip() or "unnamed"
    return stop.value if stop in BROKEN else None


def by_class(ended: Iterable[tuple[StopReason, str | None]]) -> dict[str, int]:
    """The number of broken attempts, by class."""
    return dict(sorted(Counter(filter(None, (class_of(stop, error) for stop, error in ended))).items()))


def _errors(attempts: Iterable[Attempt]) -> Iterator[str | None]:
    return (attempt.error or attempt.stop.value for attempt in attempts if attempt.stop in BROKEN)


def fault_cells(faults: Faults, *, none: str = "-") -> tuple[str, ...]:
    """The shares in percent, in the order of `HEADING`; `none` for a missing share."""
    shares = (getattr(faults, name) for name in HEADING)
    return tuple(none if value is None else f"{100 * value:.1f}" for value in shares)


def loud(faults: Faults) -> Iterator[str]:
    """The faults too frequent to ignore, in two or three words each, such as `96 % no action`."""
    shares = {
        "no action": faults.no_action,
        "cut": faults.cut,
        "closed": faults.closed,
        "repeating": faults.repeated,
        "out of room": faults.out_of_room,
    }
    return (f"{_percent(value)} {words}" for words, value in shares.items() if value is not None and _is_loud(value))


def alarms(faults: Faults, config: RunConfig) -> tuple[str, ...]:
    """A sentence for each fault that is too frequent, with the setting or the command that fixes it."""
    return (*_on_replies(faults, config), *_on_attempts(faults, config), *on_reflections(faults, config))


def check_command(config: RunConfig) -> str:
    """The command that tries a run's environment alone."""
    settings = " ".join(
        f"{name}={value}" for name, value in config.environment.args.items() if isinstance(value, str | int | float)
    )
    return f"leafe check-env {config.environment.name} {settings}".strip()


def _is_loud(value: float | None) -> bool:
    return value is not None and value > LOUD


def _percent(value: float) -> str:
    """Whole percent; less than all is never shown as 100 %."""
    return f"{100 if value == 1 else min(99, round(100 * value))} %"


def _part(value: float | None, noun: str, plural: str) -> str:
    """A share in words, such as `every reply` or `96 % of replies`."""
    return f"every {noun}" if value == 1 else f"{_percent(value or 0.0)} of {plural}"


def _was_cut(value: float | None, noun: str, plural: str, *, limit: str) -> str:
    verb = "was" if value == 1 else "were"
    return f"{_part(value, noun, plural)} {verb} cut at {limit}: raise it"


def _on_replies(faults: Faults, config: RunConfig) -> Iterator[str]:
    cut = _was_cut(faults.cut, "reply", "replies", limit=f"sampling.act.max_tokens={config.sampling.act.max_tokens}")
    silent = "no reply held an action" if faults.no_action == 1 else f"{_part(faults.no_action, 'reply', 'replies')} held no action"
    if _is_loud(faults.no_action):
        yield f"{silent}; {cut}" if _is_loud(faults.cut) else f"{silent}: {_of_form(config)}"
    elif _is_loud(faults.cut):
        yield cut
    if _is_loud(faults.closed):
        limit = f"sampling.act.max_tokens={config.sampling.act.max_tokens}"
        some = _part(faults.closed, "reply", "replies")
        yield f"{some} came to no action within {limit} and had to be closed: raise it, unless they repeat themselves"
    if _is_loud(faults.repeated):
        yield f"{_part(faults.repeated, 'reply', 'replies')} only repeated themselves in the end: the model may be too small for this world"


def _of_form(config: RunConfig) -> str:
    if config.prompts == "terse" and not config.model.startswith("nano"):
        return "prompts=terse is for the bundled models; set prompts=full"
    return f"read some on the page, and what prompts={config.prompts} asks for"


def _on_attempts(faults: Faults, config: RunConfig) -> Iterator[str]:
    if _is_loud(faults.out_of_room):
        yield f"{_part(faults.out_of_room, 'attempt', 'attempts')} ran out of room {_room(config)}"
    if faults.broken is not None and faults.broken >= BROKEN_LOUD:
        number = round(faults.broken * faults.attempts)
        many = "every attempt" if faults.broken == 1 else f"{number} of {faults.attempts} attempts ({_percent(faults.broken)})"
        fails = "" if faults.broken == 1 else " and count as failures"
        yield f"{many} broke{fails}, most often by `{faults.error}`; type: {check_command(config)}"


def _room(config: RunConfig) -> str:
    limit, shortened = config.engine.max_context, config.history.keep == "fit"
    mends = [*(["raise it"] if limit else []), *([] if shortened else ["set history.keep=fit"])]
    last = (
        f"ask for shorter replies than sampling.act.max_tokens={config.sampling.act.max_tokens}, or take a model with a longer one"
    )
    return f"in {f'engine.max_context={limit}' if limit else 'the context of the model'}: {' or '.join(mends) or last}"


def on_reflections(faults: Faults, config: RunConfig) -> Iterator[str]:
    """The alarms about reflections."""
    limit = f"sampling.reflect.max_tokens={config.sampling.reflect.max_tokens}"
    if _is_loud(faults.unread):
        some = f"{_part(faults.unread, 'reflection', 'reflections')} could not be read"
        found = "no reflection could be read" if faults.unread == 1 else some
        cut = _was_cut(faults.unread_cut, "reflection", "reflections", limit=limit)
        yield f"{found}; {cut}" if _is_loud(faults.unread_cut) else f"{found}: {_of_form(config)}"
    if _is_loud(faults.no_room):
        yield f"{_part(faults.no_room, 'reflection', 'reflections')} found no room {_room(config)}"
