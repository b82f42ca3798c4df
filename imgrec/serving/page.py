"""The page at /: drop images on it, or choose them, and read their classes."""

from collections.abc import Sequence

from imgrec.errors import first_names, plural
from imgrec.html_page import Section, read_script, render, text
from imgrec.serving.limits import Limits

_POLICY = (
    "default-src 'none'; connect-src 'self'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)
PAGE_HEADERS = {
    "Content-Security-Policy": f"{_POLICY}; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
_HEAD = '<link rel="icon" href="data:,">'  # else browsers ask for /favicon.ico
_STYLE = """
.drop { display: flex; flex-direction: column; gap: .6rem; align-items: center; justify-content: center; text-align: center;
  min-height: 11rem; padding: 1.5rem 1rem; margin: 1rem 0; border: 2px dashed var(--line); border-radius: 12px; background: var(--box);
  transition: border-color .15s }
.drop.over { border-color: var(--accent) } .drop b { font-size: 1.15rem }
.drop input { max-width: 100%; font: inherit; color: inherit } input::file-selector-button { font: inherit; color: var(--paper);
  background: var(--accent); border: 0; border-radius: 6px; padding: .45rem 1rem; margin-right: .8rem; cursor: pointer }
:is(input, button, summary):focus-visible, .wide:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px }
.token input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--soft); border-radius: 4px; padding: .2rem .5rem;
  width: 100%; max-width: 26rem }
#answers { list-style: none; padding: 0; display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  align-items: start }
#answers li { background: var(--box); border-radius: 10px; padding: .9rem; min-width: 0 }
#answers img { display: block; width: 100%; height: 11rem; object-fit: contain; border-radius: 6px }
#answers h3 { margin: .6rem 0 .1rem; font-size: .85rem; font-weight: 400; color: var(--soft) }
.first { font-size: 1.25rem; font-weight: 600; margin: 0 0 .4rem }
.bars { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: .1rem .8rem; margin: 0 } .bars dt { grid-column: 1 }
.bars dd { margin: 0; grid-column: 2; text-align: right; font-variant-numeric: tabular-nums }
.bars .bar { grid-column: 1 / 3; height: .35rem; margin-bottom: .4rem; border-radius: 3px; background: var(--line) }
.bar i { display: block; height: 100%; border-radius: 3px; background: var(--accent) }
"""


def drop_page(classes: Sequence[str], limits: Limits, *, needs_token: bool) -> str:
    """HTML with its style and script in it; it asks this server alone."""
    kinds = ",".join(f"image/{form}" for form in limits.formats)
    token = (
        '<p class="token"><label for="token">Token of this server</label><br>'
        '<input id="token" type="password" autocomplete="off" spellcheck="false"></p>'
    )
    form = (
        f"<p>{plural(len(classes), 'class', 'es')}: {text(first_names(classes, 12))}</p>{token if needs_token else ''}"
        '<div class="drop" id="drop"><b id="drop-label">Drop images here, or choose them</b>'
        f'<input id="files" type="file" accept="{kinds}" multiple aria-labelledby="drop-label" aria-describedby="drop-limits">'
        f'<span class="soft" id="drop-limits">{", ".join(limits.formats)}; up to {limits.max_body_bytes / 1e6:g} MB each</span></div>'
        '<p id="said" role="status" class="soft"></p><ul id="answers" aria-label="Answers"></ul>'
    )
    header = " -H 'Authorization: Bearer TOKEN'" if needs_token else ""
    typed = (
        f"<pre>curl{header} -F image=@photo.jpg <span data-origin>http://127.0.0.1:8000</span>/predict</pre>"
        '<p><a href="openapi.json">openapi.json</a> describes every request and answer.</p>'
    )
    sections = [
        Section("try", "Try it", form, script=read_script("imgrec.serving", "page.js"), style=_STYLE),
        Section("typed", "From a terminal", typed),
    ]
    return render("serve", "Which class is it?", sections, policy=_POLICY, head=_HEAD)
