"""Tiles, tables and other small pieces of HTML, in colours that follow the page's theme.

Every value is escaped here. Lines and shades are mixed from the text's own colour, so they fit the
light and the dark theme; better and worse are told by an arrow and words, and only then by colour.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal

import streamlit as st

STYLE: Final = """
<style>
.stMainBlockContainer { max-width: 1180px; padding-top: 3.4rem; padding-bottom: 3rem; }
/* The parts below reload by themselves; a running figure every few seconds says nothing. */
[data-testid="stStatusWidget"] { display: none; }
.stAppHeader { background: transparent; pointer-events: none; }
.stAppHeader button, .stAppHeader a { pointer-events: auto; }
.gv { --gv-line: color-mix(in srgb, currentColor 16%, transparent);
      --gv-soft: color-mix(in srgb, currentColor 5%, transparent);
      --gv-quiet: color-mix(in srgb, currentColor 72%, transparent);
      --gv-up: #0072B2; --gv-down: #B3470A; font-variant-numeric: tabular-nums; }
.gv.gv-dark { --gv-up: #7CC8F2; --gv-down: #F0A46B; }
.gv-brand { display: flex; align-items: baseline; gap: .6rem; flex-wrap: wrap; }
.gv-brand b { font-size: 1.35rem; letter-spacing: -.02em; }
.gv-brand i { display: inline-block; width: .62rem; height: .62rem; border-radius: 50%;
      background: #E69F00; }
.gv-brand span { color: var(--gv-quiet); font-size: .9rem; }
.gv-head { display: flex; flex-wrap: wrap; gap: .1rem 1rem; align-items: baseline;
      justify-content: space-between; margin-bottom: -.35rem; }
.gv-head h1 { font-size: 1.75rem; font-weight: 650; padding: 0; margin: 0; line-height: 1.25; }
.gv-head h2 { font-size: 1.2rem; font-weight: 650; padding: 0; margin: 0; }
.gv-head span { color: var(--gv-quiet); font-size: .9rem; }
.gv-tiles { display: grid; gap: .8rem; grid-template-columns: repeat(4, minmax(0, 1fr)); }
.gv-tile { border: 1px solid var(--gv-line); border-radius: .8rem; padding: .9rem 1rem .75rem;
      display: flex; flex-direction: column; gap: .3rem; min-width: 0; }
.gv-tile h2 { font-size: .9rem; font-weight: 550; padding: 0; margin: 0; color: var(--gv-quiet); }
.gv-value { font-size: 1.7rem; font-weight: 650; letter-spacing: -.02em; line-height: 1.2;
      white-space: nowrap; }
.gv-note { font-size: .86rem; color: var(--gv-quiet); line-height: 1.35; }
.gv-changes { margin-top: .15rem; font-size: .86rem; line-height: 1.5; }
.gv-changes b { font-weight: 650; white-space: nowrap; }
.gv-good b { color: var(--gv-up); } .gv-bad b { color: var(--gv-down); }
.gv-changes span { color: var(--gv-quiet); }
.gv-fresh { margin-top: auto; padding-top: .45rem; font-size: .78rem; color: var(--gv-quiet);
      display: flex; align-items: center; gap: .4rem; }
.gv-fresh::before { content: ""; width: .45rem; height: .45rem; border-radius: 50%; flex: none;
      background: var(--gv-up); }
.gv-fresh.gv-late { color: var(--gv-down); font-weight: 600; }
.gv-fresh.gv-late::before { background: var(--gv-down); border-radius: 0; }
.gv-chips { display: flex; flex-wrap: wrap; gap: .45rem; }
.gv-chips b { border: 1px solid var(--gv-line); background: var(--gv-soft); border-radius: 2rem;
      padding: .22rem .8rem; font-weight: 600; font-size: .95rem; white-space: nowrap; }
.gv-notice { padding: .55rem 0; border-bottom: 1px solid var(--gv-line); }
.gv-notice > b { font-size: .78rem; font-weight: 650; color: var(--gv-quiet); }
.gv-notice.gv-grave > b { color: var(--gv-down); }
.gv-notice a { color: inherit; overflow-wrap: anywhere; }
.gv-text { font-size: .95rem; line-height: 1.5; }
.gv-table { width: 100%; border-collapse: collapse; font-size: .9rem; }
.gv-table th, .gv-table td { padding: .32rem .6rem; text-align: right; border: 0;
      border-bottom: 1px solid var(--gv-line); white-space: nowrap; }
.gv-table th:first-child, .gv-table td:first-child { text-align: left; }
.gv-table thead th { color: var(--gv-quiet); font-weight: 550; }
.gv-table tfoot td { font-weight: 650; border-bottom: 0; }
.gv-scroll { overflow-x: auto; }
@media (max-width: 1020px) { .gv-tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
@media (max-width: 560px) {
  .stMainBlockContainer { padding-left: 1rem; padding-right: 1rem; }
  .gv-tiles { grid-template-columns: minmax(0, 1fr); }
  .gv-brand span { display: none; }
}
</style>
"""


@dataclass(frozen=True, slots=True)
class Change:
    """One comparison line of a tile: an amount with its arrow, and what it is compared with.

    `judgement` is good, bad or neutral.
    """

    amount: str
    against: str
    judgement: str = "neutral"


@dataclass(frozen=True, slots=True)
class Freshness:
    """Up to when a tile is complete, in words; late tiles stand out."""

    words: str
    is_late: bool


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure with its note and its comparisons."""

    label: str
    value: str
    note: str
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to look at: how grave it is, what it is, when it was, and where to see more."""

    label: str
    is_grave: bool
    text: str
    note: str
    link: str
    link_text: str


def style() -> None:
    """Give the page the look of the pieces below; once a rerun."""
    st.html(STYLE)


def is_dark() -> bool:
    """True where the browser shows the dark theme."""
    return st.context.theme.type == "dark"


def _wrapped(body: str) -> str:
    theme = "gv gv-dark" if is_dark() else "gv"
    return f'<div class="{theme}">{body}</div>'


def brand(tagline: str) -> None:
    """Show the product's name."""
    st.html(
        _wrapped(f'<div class="gv-brand"><i></i><b>Giovang</b><span>{escape(tagline)}</span></div>')
    )


def heading(title: str, aside: str, level: Literal[1, 2] = 2) -> None:
    """Show a heading with a quiet remark at its right."""
    st.html(
        _wrapped(
            f'<div class="gv-head"><h{level}>{escape(title)}</h{level}>'
            f"<span>{escape(aside)}</span></div>"
        )
    )


def freshness_line(freshness: Freshness) -> str:
    """The line that says up to when something is complete."""
    kind = "gv-fresh gv-late" if freshness.is_late else "gv-fresh"
    return f'<div class="{kind}">{escape(freshness.words)}</div>'


def tiles(all_tiles: Iterable[Tile], freshness: Freshness) -> None:
    """Show tiles side by side, or one below the other on a telephone."""
    sections = "".join(_tile(tile, freshness) for tile in all_tiles)
    st.html(_wrapped(f'<div class="gv-tiles">{sections}</div>'))


def _tile(tile: Tile, freshness: Freshness) -> str:
    changes = "".join(
        f'<div class="gv-{change.judgement}"><b>{escape(change.amount)}</b> '
        f"<span>{escape(change.against)}</span></div>"
        for change in tile.changes
    )
    return (
        f'<section class="gv-tile"><h2>{escape(tile.label)}</h2>'
        f'<div class="gv-value">{escape(tile.value)}</div>'
        f'<div class="gv-note">{escape(tile.note)}</div>'
        f'<div class="gv-changes">{changes}</div>{freshness_line(freshness)}</section>'
    )


def chips(words: Iterable[str]) -> None:
    """Show short words in a row."""
    items = "".join(f"<b>{escape(word)}</b>" for word in words)
    st.html(_wrapped(f'<div class="gv-chips">{items}</div>'))


def notices(all_notices: Iterable[Notice]) -> None:
    """Show notices one below the other."""
    items = "".join(_notice(notice) for notice in all_notices)
    st.html(_wrapped(f'<div class="gv-notices">{items}</div>'))


def _notice(notice: Notice) -> str:
    kind = "gv-notice gv-grave" if notice.is_grave else "gv-notice"
    return (
        f'<article class="{kind}"><b>{escape(notice.label)}</b>'
        f'<div class="gv-text">{escape(notice.text)}</div>'
        f'<div class="gv-note">{escape(notice.note)} · '
        f'<a href="{escape(notice.link)}" target="_blank" rel="noopener">'
        f"{escape(notice.link_text)}</a></div></article>"
    )


def paragraph(text: str, *, quiet: bool = False) -> None:
    """Show a paragraph."""
    kind = "gv-note" if quiet else "gv-text"
    st.html(_wrapped(f'<div class="{kind}">{escape(text)}</div>'))


def fresh(freshness: Freshness) -> None:
    """Show up to when the piece above is complete."""
    st.html(_wrapped(freshness_line(freshness)))


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], foot: Sequence[str] | None = None
) -> None:
    """Show a table; the first column is text, the others are numbers."""

    def cells(row: Sequence[str], kind: str) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in row) + "</tr>"

    body = "".join(cells(row, "td") for row in rows)
    end = f"<tfoot>{cells(foot, 'td')}</tfoot>" if foot else ""
    st.html(
        _wrapped(
            '<div class="gv-scroll"><table class="gv-table">'
            f"<thead>{cells(head, 'th')}</thead><tbody>{body}</tbody>{end}</table></div>"
        )
    )
