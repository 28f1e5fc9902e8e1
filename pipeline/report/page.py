"""What every page has: the frame of an HTML file without a script and without a network, prompts, how to reproduce it.

Every value in a template is escaped, and the page's own policy forbids scripts and requests besides.
"""

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from markupsafe import Markup

from pipeline.report.markup import render
from pipeline.report.toml import to_toml

MARGIN = 16  # around a chart in a file of its own
OTHER_VERSION = "draw it with the version of endoreward that made it, or a newer one"  # a remedy
FOLDED = 500  # characters of a prompt that is folded where it has more

Cell = str | tuple[str, str]  # of a table: text, or a figure and what stands under it (empty: nothing)
Tile = tuple[str, str, str]  # a large figure, what it is, and a note
Keys = Sequence[tuple[Markup, str]]  # of a chart: a mark, and what it stands for


def page(template: str, title: str, **values: Any) -> str:
    """The file as text (write it as UTF-8): a template that extends `page.html.j2`, and what it shows."""
    return str(render(template, title=title, style=Markup(_style()), **values))


def standalone_charts(drawn: str) -> dict[str, str]:
    """Every chart of a page as an SVG file of its own, light, by a name made of what it says it shows."""
    style = re.sub(r"@media[^{]*\{(\n(?: .*\n)*\}| [^\n]*\})\n", "", _style())
    charts: dict[str, str] = {}
    for chart in re.findall(r'<svg class="chart".*?</svg>', drawn, re.DOTALL):
        label = html.unescape(re.search(r'aria-label="([^"]*)"', chart)[1])  # type: ignore[index]
        name = re.sub(r"[^a-z0-9]+", "-", re.split(r"[:;]| by the ", label)[0].lower()).strip("-")
        frame = re.search(r'viewBox="0 0 (\S+) ([^"]+)"', chart)
        width, height = (int(float(side)) + 2 * MARGIN for side in frame.groups())  # type: ignore[union-attr]
        head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        paper = f'<rect x="-{MARGIN}" y="-{MARGIN}" width="{width}" height="{height}" fill="var(--paper)"/>'
        framed = chart.replace(frame[0], f'viewBox="-{MARGIN} -{MARGIN} {width} {height}"', 1)  # type: ignore[index]
        opened = framed.replace("<svg", head, 1).replace(">", f"><style>{style}</style>{paper}", 1)
        charts[f"{len(charts) + 1:02}-{name}.svg"] = opened + "\n"
    return charts


def _style() -> str:
    return files(__package__).joinpath("report.css").read_text(encoding="utf-8")


def facts(created: str, fingerprint: str | None = None) -> list[str]:
    """The line above the title: when it was made, and the fingerprint's beginning."""
    beginning = f"fingerprint {fingerprint[:12]}" if fingerprint else ""
    return list(filter(None, (created[:16].replace("T", " "), beginning)))


@dataclass(frozen=True)
class Prompt:
    """A conversation as it is shown: folded where it is long, under its length and, where there is one, its opening."""

    messages: Sequence[tuple[str, str]]  # role, text
    length: int  # characters, those that are left out too
    left_out: int = 0
    opening: str = ""

    @property
    def folded(self) -> bool:
        return self.length > FOLDED


@dataclass(frozen=True)
class Reproduction:
    """How to make it again: a command, its configuration, what it was made with, and what to expect of it."""

    command: str
    toml: str
    lines: Sequence[str]
    note: str

    @classmethod
    def of(
        cls,
        command: str,
        config: Mapping[str, Any],
        versions: Mapping[str, str],
        note: str,
        fingerprints: Sequence[str],
    ) -> "Reproduction":
        """Of what a document says of its making; `fingerprints` are a line each."""
        made_with = ", ".join(f"{name} {version}" for name, version in versions.items())
        return cls(command, to_toml(config), [line for line in (made_with, *fingerprints) if line], note)


def listed(names: list[str]) -> str:
    """`a, b and c`; at least one name."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
