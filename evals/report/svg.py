"""matplotlib's SVG made part of a page: it follows the page's colours and fonts, and shares no ids with its neighbours."""

from __future__ import annotations

import re
from html import escape

from budgetctl.evals.report.series import DARK, FAINT, GROUND, INK, LIGHT

_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"<metadata>.*?</metadata>", re.DOTALL)
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
_ROOT = re.compile(r"<svg [^>]*?viewBox=\"([^\"]*)\"[^>]*>")
_KEYED = re.compile(r'id="(s\d+-\d+)"')
_ID = re.compile(r'id="([^"]+)"')
_REFERENCE = re.compile(r'(?:xlink:)?href="#([^"]+)"')
_URL = re.compile(r"url\(#([^)]+)\)")
_FAMILY = re.compile(r"(font: [^;\"]*?px) [^;\"]*")


def inline(svg: str, name: str, alt: str) -> str:
    """An ``<svg>`` element for a page.

    ``name`` is distinct in the page and begins every id; ``alt`` is what a screen reader says. Ids of series become
    classes, colours become variables of the page's style sheet, text takes the page's font.
    """
    text = _COMMENT.sub("", _METADATA.sub("", _PROLOGUE.sub("", svg)))
    root = _ROOT.match(text)
    if root is None:
        raise ValueError("no SVG with a viewBox: expected matplotlib's")
    body = text[root.end() :]
    body = _KEYED.sub(r'class="\1"', body)
    body = _ID.sub(rf'id="{name}-\1"', body)
    body = _REFERENCE.sub(rf'href="#{name}-\1"', body)
    body = _URL.sub(rf"url(#{name}-\1)", body)
    body = _FAMILY.sub(r"\1 inherit-font", body).replace(" inherit-font", " var(--font)")
    body = re.sub(r">\s+<", "><", body)
    for colour, variable in _variables().items():
        body = body.replace(colour, f"var({variable})")
    return (
        f'<svg viewBox="{root[1]}" role="img" aria-label="{escape(alt)}"><title>{escape(alt)}</title>{body}'
    )


def colours(dark: bool) -> str:
    """Declarations of the series' colours for the style sheet."""
    shades = DARK if dark else LIGHT
    return "".join(f"--series-{place}:{shade};" for place, shade in enumerate(shades))


def _variables() -> dict[str, str]:
    found = {shade: f"--series-{place}" for place, shade in enumerate(LIGHT)}
    return found | {INK: "--ink", FAINT: "--faint", GROUND: "--ground"}
