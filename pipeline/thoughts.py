"""Where a model's thoughts end and its answer begins, in the text of what it wrote.

Thoughts stand between markers; a template may open them at the end of the prompt, so that the text begins inside. Left
out: thoughts that special tokens set apart (gpt-oss, Magistral), of which a decoded text shows nothing.
"""

from functools import lru_cache

from pipeline.samples import Message
from pipeline.tokens import Renderer

MARKERS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("◁think▷", "◁/think▷"),
)
TAIL = 16  # tokens at a prompt's end that may hold a marker


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


@lru_cache(maxsize=8)
def opens_thoughts(renderer: Renderer) -> bool:
    """Whether the template's generation prompt ends inside thoughts."""
    if renderer.template is None:
        return False
    ids = renderer.prompt_ids([Message(role="user", content="?")], True)
    said = renderer.tokenizer.decode(ids[-TAIL:], skip_special_tokens=False).rstrip()
    return said.endswith(tuple(open for open, _ in MARKERS))
