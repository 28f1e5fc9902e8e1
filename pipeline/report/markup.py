"""Text from data, made safe to put into a page."""

import html

# Tab and newline stay; other control characters are no HTML and show as their pictures.
_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}
_PICTURES |= {127: 0x2421} | dict.fromkeys(range(128, 160), 0xFFFD)


def esc(text: object) -> str:
    """`text` as HTML text or as a quoted attribute's value. Half a surrogate pair becomes a question mark."""
    return html.escape(str(text).encode("utf-8", "replace").decode().translate(_PICTURES))


def minus(number: str) -> str:
    """A formatted number with a real minus sign, as wide as the plus."""
    return number.replace("-", "\N{MINUS SIGN}")


def compact(number: float) -> str:
    """`12,345`, `12.3 M`, `4.56 B`: short enough for a large figure."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if number >= size * (10 if unit == "M" else 1):
            return f"{number / size:.3g}\N{NO-BREAK SPACE}{unit}"
    return f"{number:,.0f}"
