"""The frame of every page: one file that holds its style and no script, and a policy in its head that forbids any."""

from __future__ import annotations

from importlib.resources import files

from leafe.viewer.markup import Markup, tag

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def document(title: str, *content: Markup) -> str:
    """The whole file of a page."""
    # The stylesheet is ours and holds nothing that ends a style element, so it goes in as it is.
    style = Markup((files("leafe") / "viewer" / "assets" / "page.css").read_text(encoding="utf-8"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"{title} · leafe"),
        tag("style", style),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', tag('main', *content)), lang='en')}\n"
