"""One HTML page without a network: light and dark, on a phone, a screen and paper."""

from collections.abc import Sequence
from functools import cache
from html import escape
from importlib.resources import files
from typing import NamedTuple
from unicodedata import bidirectional

from imgrec.errors import isolated
from imgrec.files import as_utf8

# No request leaves the page, whatever a name in it may hold.
NO_NETWORK = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
PAGE_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --soft: #5b5b62; --paper: #fff; --box: #f3f3f5; --line: #d5d5da; --accent: #0b57b0;
  --second: #a34800; --good: #1b6e2f; --bad: #b3261e; --heat: 11, 87, 176 }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf0; --soft: #a9a9b2; --paper: #17171a; --box: #26262b; --line: #45454d;
  --accent: #8ab8ff; --second: #ffb37a; --good: #7fd491; --bad: #ff8a80; --heat: 138, 184, 255 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem } p { margin: .4rem 0; max-width: 48rem } a { color: var(--accent) }
.soft { color: var(--soft) } .good { color: var(--good) } .bad { color: var(--bad) } .n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums } .big { font-size: 2.2rem; font-weight: 600; line-height: 1.2 }
code, pre { unicode-bidi: isolate }
.wide { overflow-x: auto } .box { background: var(--box); border-radius: 6px; padding: .6rem .8rem; margin: .6rem 0 }
.row { display: flex; flex-wrap: wrap; gap: 1rem 2rem } .row > * { flex: 1 1 18rem; min-width: 0 }
table { border-collapse: collapse; margin: .5rem 0 } caption { text-align: left; color: var(--soft) }
th, td { padding: .15rem 1.2rem .15rem 0; text-align: left; vertical-align: top } thead th { border-bottom: 1px solid var(--line) } tbody th { font-weight: 500 }
th.n, td.n { text-align: right } td { min-width: 3rem; max-width: 24rem } thead th { white-space: nowrap }
tbody :is(th, td):first-child { min-width: 8rem } tbody tr:hover { background: var(--box) }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer }
th button::after { content: "\\2195"; color: var(--soft); padding-left: .2em } th[aria-sort=ascending] button::after { content: "\\2191" }
th[aria-sort=descending] button::after { content: "\\2193" }
code, pre { font: .9em/1.45 ui-monospace, monospace } pre { background: var(--box); border-radius: 6px; padding: .6rem .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere; margin: .5rem 0 }
svg, img { max-width: 100%; height: auto } details { margin: .5rem 0 } summary { cursor: pointer }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: 1rem 0 }
@media screen and (max-width: 28rem) { th, td { padding-right: .7rem } tbody :is(th, td):first-child { min-width: 6.5rem } }
@page { size: A4; margin: 14mm }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --box: #f3f3f5; --line: #bbb; --accent: #0b57b0;
  --second: #a34800; --good: #1b6e2f; --bad: #b3261e; --heat: 11, 87, 176 } body { max-width: none; padding: 0; font-size: 10pt } nav { display: none }
  h2, h3 { break-after: avoid } tr, figure, svg, img, .box { break-inside: avoid } .wide { overflow: visible } }
"""


class Section(NamedTuple):
    """A part of the page. html: safe, everything of a user's in it escaped; script and style: once in the page, however many sections have it."""

    id: str  # stays, so that links and scripts find it
    heading: str  # text, which is escaped
    html: str
    script: str = ""
    style: str = ""


# Marks that turn the direction of all that follows in a line, so that a name could show figures backwards, and control characters.
_TURNING = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_REPLACED = dict.fromkeys((*range(9), *range(14, 32), *range(127, 160), *_TURNING), "?")


def shown(value: object) -> str:
    """A user's text without what a page would not show as it is."""
    return as_utf8(str(value)).translate(_REPLACED)


def text(value: object) -> str:
    """A user's text as HTML, also within an attribute's quotes: a name, or a sentence of ours with names in it.

    Letters from right to left turn no figures beside them.
    """
    plain = shown(value)
    if not plain.isascii() and (directions := set(map(bidirectional, plain))) & {"R", "AL"}:
        plain = isolated(plain) if "L" in directions else f"\u2068{plain}\u2069"
    return escape(plain)


def code(value: object) -> str:
    """A user's text as HTML within <code> or <pre>, whose style isolates it: a command is copied, so it has no marks of direction."""
    return escape(shown(value))


@cache  # a server asks for it at each visit
def read_script(package: str, name: str) -> str:
    """The JavaScript of a page, a file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def scrolling(table: str, label: str, kind: str = "wide") -> str:
    """HTML of a table that scrolls where the screen is too narrow for it, also by keyboard."""
    return f'<div class="{kind}" tabindex="0" role="group" aria-label="{text(label)}">{table}</div>'


def page_start(command: str) -> str:
    """How a page begins that a command wrote, by which it is known as ours."""
    return f"<!doctype html><!-- imgrec {command} -->"


def render(command: str, title: str, sections: Sequence[Section], *, policy: str = NO_NETWORK, head: str = "") -> str:
    """The page: the title, links to the sections, and the sections in their order. policy: what it may load; head: more of its head."""
    links = "".join(f'<li><a href="#{section.id}">{text(section.heading)}</a></li>' for section in sections)
    body = "".join(
        f'<section aria-labelledby="{section.id}"><h2 id="{section.id}">{text(section.heading)}</h2>{section.html}</section>\n'
        for section in sections
    )
    styles = "".join(dict.fromkeys(section.style for section in sections))
    scripts = "".join(dict.fromkeys(section.script for section in sections))
    return (
        f'{page_start(command)}<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">{head}'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>'
        f"<style>{PAGE_STYLE}{styles}</style></head><body><header><h1>{text(title)}</h1>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>'
        f"{f'<script>{scripts}</script>' if scripts else ''}</body></html>\n"
    )
