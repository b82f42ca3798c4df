"""What a report says of the run itself: its curves, its data, where the time went, config, environment, and how to repeat it."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from imgrec.config.annotations import format_value
from imgrec.config.changes import changed_keys
from imgrec.config.plain_data import read_mapping
from imgrec.config.schema import leaves
from imgrec.errors import ConfigError, DataError, ImgrecError, plural
from imgrec.files import resolved
from imgrec.html_page import Section, code, scrolling, text
from imgrec.report.charts import CHART_STYLE, ChartLine, line_chart, share_bars
from imgrec.report.facts import Facts
from imgrec.report.stored_values import CHECK_KINDS, check_kinds
from imgrec.scan.known_faults import KnownFault, check_command
from imgrec.terminal import duration, percent
from imgrec.training.stored_run import curve
from imgrec.training.timeline import PART_NAMES

CURVE_CHARTS = (
    ("Loss", {"train/loss": "training", "val/loss": "validation"}, ""),
    ("Accuracy", {"train/accuracy": "training", "val/accuracy": "validation"}, "%"),
    ("Learning rate", {"lr": "rate"}, ""),
)
MOST_EXAMPLES = 3  # of a finding of the check


def curves_section(facts: Facts) -> Section:
    """Loss, accuracy and rate of each epoch; of a mean of runs what it was made of."""
    if soup := (facts.result or {}).get("soup"):
        return Section("curves", "The runs that it is the mean of", _soup(soup))
    best = (facts.result or {}).get("best") or {}
    charts = []
    for title, names, unit in CURVE_CHARTS:
        lines = [ChartLine(shown, *curve(facts.run, name)) for name, shown in names.items()]
        if chart := line_chart(title, lines, unit=unit, mark=best.get("epoch")):
            charts.append(f"<div><h3>{title}</h3>{chart}</div>")
    if not charts:
        return Section("curves", "Curves", "<p>No epoch has ended: there are no curves yet.</p>")
    note = (
        f'<p class="soft">The dotted line is epoch {best["epoch"]}, the best by {text(facts.config.get("monitor"))}.</p>'
        if best
        else ""
    )
    return Section("curves", "Curves", f'<div class="row">{"".join(charts)}</div>{note}', style=CHART_STYLE)


def _soup(soup: Mapping[str, Any]) -> str:
    """A table of the runs in the order in which they were tried."""

    def figure(value: float) -> str:
        return f"{value:.4f}" if soup["monitor"] == "val/loss" else percent(value)

    cells = [(each["run"], each["alone"], each["mean"], "yes" if each["kept"] else "no") for each in soup["ingredients"]]
    rows = "".join(
        f'<tr><th scope="row">{text(run)}</th><td class="n">{figure(alone)}</td>'
        f'<td class="n">{"-" if mean is None else figure(mean)}</td><td>{kept}</td></tr>'
        for run, alone, mean, kept in cells
    )
    monitor = text(soup["monitor"])
    head = f'<th scope="col">run</th><th scope="col" class="n">{monitor} alone</th><th scope="col" class="n">mean with it</th><th scope="col">kept</th>'
    table = scrolling(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", "The runs of the mean")
    kept = sum(each["kept"] for each in soup["ingredients"])
    return (
        f"<p>The weights are the mean of {kept} of {plural(len(cells), 'run')}, each added where {monitor} did not become worse. "
        f"The mean was chosen by {monitor}, which is therefore too good by chance; the test was used for no choice.</p>{table}"
    )


def data_section(facts: Facts) -> Section:
    """How many images each split has, what could not be read, and what a check found."""
    data = facts.config["data"]
    where = data.get("root") or data.get("file") or data.get("path")
    said = f"<p>{text(str(data.get('_target_', '')).rpartition('.')[2])}{f' from <code>{code(where)}</code>' * bool(where)}</p>"
    rows = "".join(_split_row(split, list(counts.values())) for split, counts in facts.images.items() if any(counts.values()))
    head = "".join(
        f'<th scope="col"{" class=n" * (name != "split")}>{name}</th>'
        for name in ("split", "images", "classes", "fewest", "most")
    )
    if rows:
        table = f'<table id="split-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
        said += scrolling(table, "Images of the splits")
    elif facts.test is not None:
        images = f"{facts.test['count']:,} image{'s' * (facts.test['count'] != 1)}"
        said += f"<p>{images} {facts.measured.of}, of {plural(len(facts.classes), 'class', 'es')}; the other splits were not counted.</p>"
    if left_out := (facts.result or {}).get("left_out"):
        shown = ", ".join(map(text, left_out[:5]))
        said += f"<p>{plural(len(left_out), 'image')} could not be read and {'were' if len(left_out) > 1 else 'was'} left out: {shown}{', ...' * (len(left_out) > 5)}</p>"
    return Section("data", "Data", said + _check(facts))


def _split_row(split: str, counts: list[int]) -> str:
    present = [count for count in counts if count]
    cells = "".join(f'<td class="n">{figure:,}</td>' for figure in (sum(present), len(present), min(present), max(present)))
    return f'<tr><th scope="row">{text(split)}</th>{cells}</tr>'


def _check(facts: Facts) -> str:
    """The result of `imgrec check` on this data, where it lies in the run directory or the working folder, else what the run knew."""
    root = facts.config["data"].get("root")
    for file in (facts.folder / "check.json", Path("check.json")):
        if (found := _read_check(file)) is not None and (file.parent == facts.folder or _same_folder(found.get("root"), root)):
            items = "".join(
                f"<li>{finding.get('count', 0):,} {text(str(finding.get('kind')).replace('_', ' '))}: {text(finding.get('what'))}"
                f"{_examples(finding.get('examples'))}</li>"
                for finding in found["findings"]
            )
            faults = found.get("faults", 0)
            said = f"found {plural(faults, 'fault')}" if faults else "found no faults"
            return f"<h3>Check</h3><p><code>imgrec check</code> {said} ({text(file)}).</p><ul>{items}</ul>"
    if not (command := check_command(facts.config["data"])):
        return ""
    stored = (facts.result or {}).get("data_faults") or []
    known = "".join(f"<li>{text(KnownFault(*(fault[name] for name in KnownFault._fields)))}</li>" for fault in stored)
    said = f"<p>Known when it was trained:</p><ul>{known}</ul>" if known else ""
    return f"{said}<p>Which images are damaged or copies: type <code>{code(command)}</code>, then <code>imgrec report {code(facts.quoted)}</code>.</p>"


def _examples(examples: Any) -> str:
    shown = examples[:MOST_EXAMPLES] if isinstance(examples, list) else []
    return f' <span class="soft">({"; ".join(map(text, shown))})</span>' if shown else ""


def _read_check(file: Path) -> dict[str, Any] | None:
    """None where there is none, and of a file that another program wrote."""
    if not file.is_file():
        return None
    try:
        content = read_mapping(file, {"imgrec": Literal["check"]}, fix="")
        check_kinds(content, CHECK_KINDS)
    except (DataError, ConfigError):
        return None
    return content


def _same_folder(one: Any, other: Any) -> bool:
    return isinstance(one, str) and isinstance(other, str) and resolved(one) == resolved(other)


def time_section(facts: Facts) -> Section:
    """Which share of the training's time went where."""
    result = facts.result
    shares: Mapping[str, float] = (result or {}).get("time_shares") or {}
    if result is None or not shares:
        return Section("time", "Where the time went", "<p>Known at the end of the run.</p>")
    seconds = result["train_seconds"]
    bars = [
        (PART_NAMES.get(part, part), share, f"{share:.1%}, {duration(share * seconds)}")
        for part, share in sorted(shares.items(), key=lambda item: -item[1])
        if share > 0
    ]
    held = f"<p>{text(result['held_back'])}</p>" if result.get("held_back") else ""
    return Section(
        "time", "Where the time went", f"<p>{duration(seconds)} of training.</p>{share_bars(bars)}{held}", style=CHART_STYLE
    )


def config_section(facts: Facts) -> Section:
    """The keys that differ from the defaults, then all."""
    changed = differences(facts)
    said = _keys(changed) if changed else "<p>Every key has its default.</p>"
    every = _keys(dict(leaves(facts.config)))
    return Section("config", "Config", f"<p>Not as by default:</p>{said}<details><summary>All keys</summary>{every}</details>")


def differences(facts: Facts) -> Mapping[str, Any]:
    """The keys of the config that differ from the defaults; all of a config that the options here do not explain."""
    try:
        return changed_keys(facts.config)
    except (ImgrecError, KeyError):  # of another version, with other groups
        return dict(leaves(facts.config))


def _keys(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{code(key)}</code></td><td><code>{code(format_value(value))}</code></td></tr>"
        for key, value in values.items()
    )
    head = '<tr><th scope="col">key</th><th scope="col">value</th></tr>'
    return scrolling(f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>", "Keys of the config")


def environment_section(facts: Facts) -> Section:
    """Device, network size and versions."""
    result = facts.result
    if result is None:
        return Section("environment", "Environment", "<p>Known at the end of the run.</p>")
    rows = {"device": result.get("device"), "finished": result.get("finished_at"), "seed": result.get("seed")}
    if result.get("parameters") is not None:
        rows["network"] = f"{result['parameters']:,} parameters, {(result.get('flops') or 0) / 1e6:,.1f} MFLOPs an image"
    rows |= result.get("versions") or {}
    body = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(value)}</td></tr>' for name, value in rows.items() if value is not None
    )
    return Section("environment", "Environment", scrolling(f"<table><tbody>{body}</tbody></table>", "Environment"))


def repeat_section(facts: Facts) -> Section:
    """The command that was typed."""
    command = (facts.result or {}).get("command")
    shown = command if isinstance(command, str) else shlex.join(command) if isinstance(command, list) else None
    said = f"<pre>{code(shown)}</pre>" if shown else "<p>Known at the end of the run.</p>"
    note = f'<p class="soft">In the same folder, with another <code>id</code>. <code>{code(facts.folder / "config.yaml")}</code> has every key.</p>'
    return Section("repeat", "To repeat it", said + note)
