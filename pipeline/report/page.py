"""What every page has: the frame of an HTML file without a script and without a network, sections, how to reproduce it.

Everything from data is escaped, and the page's own policy forbids scripts and requests besides.
"""

import html
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from pipeline.report.markup import esc

MARGIN = 16  # around a chart in a file of its own
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")  # of TOML
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, sections: list[str]) -> str:
    """The file as text (write it as UTF-8): `sections` are markup, empty ones are left out; `title` is text."""
    body = "\n".join(filter(None, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{esc(title)}</title><style>\n{_style()}</style></head>\n"
        f"<body><main>\n{body}\n</main></body></html>\n"
    )


def standalone_charts(drawn: str) -> dict[str, str]:
    """Every chart of a page as an SVG file of its own, light, by a name made of what it says it shows."""
    style = re.sub(r"@media[^{]*\{(\n(?: .*\n)*\}| [^\n]*\})\n", "", _style())
    found: dict[str, str] = {}
    for chart in re.findall(r'<svg class="chart".*?</svg>', drawn, re.DOTALL):
        label = html.unescape(re.search(r'aria-label="([^"]*)"', chart)[1])  # type: ignore[index]
        name = re.sub(r"[^a-z0-9]+", "-", re.split(r"[:;]| by the ", label)[0].lower()).strip("-")
        frame = re.search(r'viewBox="0 0 (\S+) ([^"]+)"', chart)
        width, height = (int(float(side)) + 2 * MARGIN for side in frame.groups())  # type: ignore[union-attr]
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        paper = f'<rect x="-{MARGIN}" y="-{MARGIN}" width="{width}" height="{height}" fill="var(--paper)"/>'
        framed = chart.replace(frame[0], f'viewBox="-{MARGIN} -{MARGIN} {width} {height}"', 1)  # type: ignore[index]
        opened = framed.replace("<svg", head, 1).replace(">", f"><style>{style}</style>{paper}", 1)
        found[f"{len(found) + 1:02}-{name}.svg"] = opened + "\n"
    return found


def _style() -> str:
    return files(__package__).joinpath("report.css").read_text(encoding="utf-8")


def facts(record: dict[str, Any], fingerprint: str | None = None) -> str:
    """The line above the title: when it was made, and the fingerprint's beginning."""
    given = [str(record["created"])[:16].replace("T", " ")] if record.get("created") else []
    given += [f"fingerprint {fingerprint[:12]}"] if fingerprint else []
    return f'<p class="facts"><b>endoreward</b>{"".join(f"<span>{esc(fact)}</span>" for fact in given)}</p>'


def section(title: str, said: list[str], body: str) -> str:
    """A section with its sentences (text) beside its body (markup)."""
    notes = "".join(f"<p>{esc(text)}</p>" for text in said if text)
    return f'<section class="beside"><div class="said"><h2>{esc(title)}</h2>{notes}</div><div>{body}</div></section>'


def wide_section(title: str, said: list[str], body: str) -> str:
    """A section whose body (markup) has the whole width under its sentences (text)."""
    notes = "".join(f'<p class="said">{esc(text)}</p>' for text in said if text)
    return f'<section class="wide"><h2>{esc(title)}</h2>{notes}{body}</section>'


def table(rows: list[list[str]], head: list[str] | None = None, of_class: str = "") -> str:
    """A table of markup: the first cell of a row names it; `head` names the columns, that of the names included."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head or [])
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in rows
    )
    drawn = f'<table class="{of_class}">' if of_class else "<table>"
    return f"{drawn}{f'<thead><tr>{top}</tr></thead>' if top else ''}<tbody>{lines}</tbody></table>"


def multiples(figures: list[str]) -> str:
    """Small charts (markup) side by side: two in a row where that leaves none over, else three."""
    return f'<div class="multiples{" two" if len(figures) in (1, 2, 4) else ""}">{"".join(figures)}</div>'


def reproduce(record: dict[str, Any], command: str, said: str, file: str, fingerprints: list[str]) -> str:
    """How to make it again: the command, the configuration as `file`, versions and `fingerprints` (a line each)."""
    parts = [f"<pre><code>{esc(record.get('command') or command)}</code></pre>"]
    if toml := to_toml(record.get("config") or {}):
        parts.append(f"<details><summary>{file}</summary><pre><code>{esc(toml)}</code></pre></details>")
    versions = ", ".join(f"{name} {version}" for name, version in (record.get("versions") or {}).items())
    parts += [f'<p class="fine">{esc(line)}</p>' for line in (versions, *fingerprints) if line]
    return section("Reproduce", [said], "".join(parts))


def to_toml(config: dict[str, Any]) -> str:
    """A configuration of sections as TOML; fields that are None are left out, because TOML has no word for them."""
    return "\n\n".join(_toml_sections(config, ""))


def _toml_sections(config: dict[str, Any], within: str) -> Iterator[str]:
    for name, fields in config.items():
        if isinstance(fields, dict):
            path = within + (name if BARE_KEY.fullmatch(name) else _toml_value(name))
            own = {key: value for key, value in fields.items() if value is not None and not isinstance(value, dict)}
            lines = [f"{key} = {_toml_value(value)}" for key, value in own.items()]
            if lines:
                yield "\n".join([f"[{path}]", *lines])
            yield from _toml_sections(fields, f"{path}.")


def listed(names: list[str]) -> str:
    """`a, b and c`; at least one name."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _toml_value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
