"""HTML of this package: its templates, and text from data made safe to put into a page.

A template escapes every value but `Markup`, which is what this package itself drew.
"""

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

# Tab and newline stay; other control characters are no HTML and show as their pictures.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)


def render(template: str, **values: Any) -> Markup:
    """The template of that name, filled in; a value that it needs and lacks is an `UndefinedError`."""
    return Markup(_templates().get_template(f"{template}.html.j2").render(values))


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = "{:,}".format
    return environment


def esc(text: object) -> Markup:
    """`text` as HTML text or as a quoted attribute's value. Half a surrogate pair becomes a question mark."""
    return escape(_printable(text))


def _printable(value: object) -> str:
    if isinstance(value, Markup):
        return value
    return str(value).encode("utf-8", "replace").decode().translate(_PICTURES)


def minus(number: str) -> str:
    """A formatted number with a real minus sign, as wide as the plus."""
    return number.replace("-", "\N{MINUS SIGN}")


def compact(number: float) -> str:
    """`12,345`, `12.3 M`, `4.56 B`: short enough for a large figure."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size * (10 if unit == "M" else 1):
            return f"{number / size:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{number:,.0f}"
