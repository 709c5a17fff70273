"""Prompt texts, one folder a profile and one file a purpose; a folder of the user's own works the same way.

`terse` is what the bundled model was trained on, `full` is for instruction-tuned models. A file may be overridden for one environment
by the same file in a subfolder with the environment's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from leafe.chat import OPTIONAL, Prompts, check_prompts, places_in
from leafe.errors import UnknownName, UserError
from leafe.replies import FORMS

_HERE = Path(__file__).parent
PROFILES = ("terse", "full")
PURPOSES = tuple(item.name for item in fields(Prompts) if item.name not in ("form", "actions_help"))


def load_prompts(profile: str, environment: str, *, remind: bool = False, actions_help: str = "") -> Prompts:
    """The prompts of a profile (`terse`, `full`), or of a folder with a file `PURPOSE.txt` for each of `PURPOSES`, for an environment.

    `remind` says whether each turn ends with `reminder.txt`; `actions_help` is the environment's own line of help.

    Replies to a folder's prompts are read as tagged ones unless it, or its subfolder for the environment, holds a file `form.txt` with
    the word `bare` or `program`. The newline that an
    editor leaves at the end of a file is no part of a prompt. Raises `UserError` for a file that is missing or cannot be used.
    """
    folder = _folder(profile)
    texts = {}
    for purpose in PURPOSES:
        path = _file(folder, environment, purpose)
        if path is None and purpose in OPTIONAL:
            continue
        if path is None:
            raise UserError(
                f"{folder} wants a file {purpose}.txt and has none; copy it from one of the profiles {', '.join(PROFILES)}"
            )
        texts[purpose] = _read(path).removesuffix("\n")
    if remind and "reminder" not in texts:
        raise UserError(f"remind=true wants a file reminder.txt in {folder}, which has none; write one or type remind=false")
    if not remind:
        texts.pop("reminder", None)
    form_file = _file(folder, environment, "form") or folder / "form.txt"
    form = _read(form_file).strip() if form_file.is_file() else "tags"
    known = next((one for one in FORMS if one == form), None)
    if known is None:
        raise UserError(f"{form_file} wants one of the words {', '.join(FORMS)} and holds {form!r}")
    prompts = Prompts(form=known, actions_help=actions_help, **texts)
    check_prompts(prompts)
    return prompts


def load_questions(profile: str, environment: str, places: Mapping[str, set[str]]) -> dict[str, str]:
    """The texts of a profile that a method alone knows, those that it has, by purpose; `places` says which values each may name.

    Raises `UserError` for a text that names another value.
    """
    folder, texts = _folder(profile), {}
    for purpose, allowed in places.items():
        path = _file(folder, environment, purpose)
        if path is None:
            continue
        texts[purpose] = _read(path).removesuffix("\n")
        if further := places_in(texts[purpose]) - allowed:
            wanted = ", ".join(f"{{{name}}}" for name in sorted(allowed)) or "no value"
            raise UserError(f"{path} may name {wanted} and names {{{min(further)}}}")
    return texts


def _folder(profile: str) -> Path:
    folder = _HERE / profile if profile in PROFILES else Path(profile)
    if not folder.is_dir():
        raise UnknownName("prompt profile (or folder)", profile, PROFILES)
    return folder


def _file(folder: Path, environment: str, purpose: str) -> Path | None:
    """The file of a purpose, that of the environment before the one of all."""
    candidates = (folder / environment / f"{purpose}.txt", folder / f"{purpose}.txt")
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the prompt {path} as UTF-8 text: {error}") from None
