"""What imgrec extend changed, in a report."""

from typing import Any

from imgrec.analysis.changed_answers import few_images_sentence
from imgrec.errors import plural
from imgrec.html_page import Section, code, scrolling, text
from imgrec.report.facts import Facts
from imgrec.report.pictures import changed_tiles
from imgrec.report.shown_images import ShownImages
from imgrec.terminal import percent, percents


def extended_sections(facts: Facts, images: ShownImages | None) -> list[Section]:
    """One section, of a run that added classes to another; of others none."""
    entry: dict[str, Any] | None = (facts.result or {}).get("extended")
    if entry is None:
        return []
    old, new = entry.get("old"), entry.get("new")
    names = ", ".join(map(text, entry["new_classes"]))
    how = "Nothing but the rows of the new classes was trained" if entry.get("frozen") else "All of the network was trained"
    said = f"<p>{plural(len(entry['new_classes']), 'class', 'es')} added to <code>{code(entry['parent'])}</code>: {names}. {how}.</p>"
    if old is None and new is None:
        return [Section("extended", "What did the new classes change?", f"{said}<p>Not known: there is no test split.</p>")]
    said += _accuracies(old, new)
    if (fewest := entry.get("fewest")) is not None:
        said += f"<p>{text(few_images_sentence(fewest, frozen=bool(entry.get('frozen'))))}</p>"
    if old is not None:
        said += _moves(old)
        if images is not None and images.changed:
            said += (
                "<p>Images whose answer changed, those first of whose new answer the network is most certain: the answer before "
                f"&rarr; the answer now, with its probability. A right one is green.</p>{changed_tiles(images)}"
            )
    return [Section("extended", "What did the new classes change?", said)]


def _accuracies(old: dict[str, Any] | None, new: dict[str, Any] | None) -> str:
    rows = ""
    if old is not None:
        value, low, high = (100 * part for part in old["difference"])
        rows += _row(
            "old classes",
            f"{old['images']:,}",
            f"{percent(old['before'])} {percents(old['before_interval'])}",
            f"{percent(old['after'])} {percents(old['after_interval'])}",
            f"{value:+z.2f} points ({low:z.2f} to {high:z.2f})",
        )
    if new is not None:
        rows += _row(
            "new classes", f"{new['images']:,}", "", f"{percent(new['accuracy'])} {percents(new['accuracy_interval'])}", ""
        )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("test images of", "images", "before", "now", "difference"))
    return scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", "Accuracy before and now")


def _row(name: str, *cells: str) -> str:
    return f'<tr><th scope="row">{name}</th>{"".join(f"<td class=n>{cell}</td>" for cell in cells)}</tr>'


def _moves(old: dict[str, Any]) -> str:
    if not old["changed"]:
        return "<p>No answer to an image of an old class changed.</p>"
    rows = "".join(
        f'<tr><td>{text(move["from"])}</td><td>{text(move["to"])}</td><td class="n">{move["images"]:,}</td></tr>'
        for move in old["moves"]
    )
    head = '<tr><th scope="col">answer before</th><th scope="col">answer now</th><th scope="col" class="n">images</th></tr>'
    table = scrolling(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>", "Answers that changed")
    listed = sum(move["images"] for move in old["moves"])
    rest = f"<p>{plural(old['changed'] - listed, 'other')} of other pairs.</p>" if listed < old["changed"] else ""
    return f"<p>{plural(old['changed'], 'answer')} to images of old classes changed:</p>{table}{rest}"
