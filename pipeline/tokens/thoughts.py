"""Where a model's thoughts end and its answer begins, in the text of what it wrote.

Thoughts stand between markers; a template may open them at the end of the prompt, so that the text begins inside. Left
out: thoughts that special tokens set apart (gpt-oss, Magistral), of which a decoded text shows nothing.
"""

import re

MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
OPENED = re.compile(
    r"\s*(?:" + "|".join(re.escape(open) for open, _ in MARKERS) + ")"
)  # a text that begins with thoughts
CLOSED = re.compile("(?:" + "|".join(re.escape(close) for _, close in MARKERS) + r")\s*")  # the end of thoughts


def behind_thoughts(text: str, opened: bool = False) -> str | None:
    """What a text says behind its thoughts, all of it where there are none; None where they do not end.

    Args:
        opened: whether the prompt opens the thoughts, so that a text without a marker is inside of them.

    >>> behind_thoughts("<think>4 or 5?</think> It is 5."), behind_thoughts("<think>4 or"), behind_thoughts("4 or", True)
    (' It is 5.', None, None)
    """
    ends = [(text.rfind(close) + len(close)) for _, close in MARKERS if close in text]
    if not ends and opened:
        return None
    answer = text[max(ends, default=0) :]
    return None if any(open in answer for open, _ in MARKERS) else answer
