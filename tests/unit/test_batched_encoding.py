"""Texts of many turns in one call of the tokenizer: the very tokens that each turn alone has, whatever the tokenizer."""

from collections.abc import Callable
from typing import Any

import pytest
import transformers
from chat_templates import chat_tokenizer, sentence_pieces
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import CHATML, tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.config import TokensConfig
from pipeline.corpus.samples import Turn
from pipeline.errors import RowError
from pipeline.tokens import Renderer, TokenizedTurn
from pipeline.tokens.control import CLOSE, OPEN
from pipeline.tokens.encoding import Encoding


def words(pre: Any = None, normalizer: Any = None, *added: AddedToken) -> transformers.PreTrainedTokenizerFast:
    """WordPiece, as BERT has it, with `[UNK]` and special tokens of any kind."""
    letters = [*"abcdnt", *(f"##{letter}" for letter in "abcdnt"), "ab", "##cd", ".", "|"]
    core = Tokenizer(models.WordPiece({text: i for i, text in enumerate(["[UNK]", *letters])}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizer, pre or pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    core.add_special_tokens([AddedToken("<|im_start|>", special=True, normalized=False), *added])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="<|im_start|>")


def special(text: str, **options: bool) -> AddedToken:
    return AddedToken(text, special=True, **{"normalized": False, **options})


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: tokenizer(CHATML),
    "bytes with a beginning": lambda: tokenizer(bos=True),
    "sentence pieces": sentence_pieces,
    "chat of sentence pieces": lambda: chat_tokenizer("chatml", True),
    "words": words,
    "a space before the first word": lambda: words(pre_tokenizers.Metaspace(prepend_scheme="first")),
    "lower case": lambda: words(None, normalizers.BertNormalizer()),
    "composed": lambda: words(None, normalizers.NFC()),
    "takes white space": lambda: words(None, None, special("<|im_end|>", lstrip=True, rstrip=True)),
    "across another": lambda: words(None, None, special("b<|"), special("|>a"), special("<|im_start|>ab")),
    "as written and normalised": lambda: words(None, normalizers.Lowercase(), special("<|im_end|>", normalized=True)),
    "a word by itself": lambda: words(None, None, special("<|im_end|>", single_word=True)),
    "Python": lambda: transformers.ByT5Tokenizer(extra_ids=3),
}
PARTS = [
    "<|im_start|>",
    "<|im_end|>",
    "</s>",
    "b<|",
    "|>a",
    "a",
    "b",
    "ab",
    "cd",
    " ",
    "\n",
    "\n\n",
    ".",
    "é",
    "e\u0301",
    "T",
]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=8).map("".join)
MARKED = st.sampled_from(["", "", "", f"a{OPEN}<|im_start|>{CLOSE}b"])


def alone(encoding: Encoding, prompt: str, response: str) -> tuple[list[int], list[int]] | str:
    """What one pair alone becomes: prompt and whole tokenised each by itself."""
    try:
        ids = encoding.ids(prompt)
        return ids, encoding.response_ids(prompt, ids, response)
    except RowError as error:
        return str(error)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(pairs=st.lists(st.tuples(TEXTS, TEXTS, MARKED), min_size=1, max_size=4))
@example(pairs=[("<|im_start|>a\n", "ab", ""), ("<|im_start|>a\n", "\nab", ""), ("ab<|im_start|>", "ab", "")])
@settings(max_examples=40, deadline=None)
def test_together_as_alone(name: str, pairs: list[tuple[str, str, str]]) -> None:
    encoding = _encodings.setdefault(name, Encoding(TOKENIZERS[name]()))
    given_pairs = [(marked + prompt, response) for prompt, response, marked in pairs]
    together = encoding.cut(given_pairs)
    assert [str(each) if isinstance(each, RowError) else each for each in together] == [
        alone(encoding, *pair) for pair in given_pairs
    ]


_encodings: dict[str, Encoding] = {}


def test_only_tokens_that_nothing_lies_across_cut_a_text() -> None:
    cutting = {name: set(Encoding(made())._controls) & {*PARTS} for name, made in TOKENIZERS.items()}
    assert cutting["bytes"] == {"</s>", "<|im_start|>", "<|im_end|>"}
    assert not cutting["across another"]
    for name in ("takes white space", "as written and normalised", "a word by itself"):
        assert cutting[name] == {"<|im_start|>"}, name
    assert not cutting["Python"]


def test_a_prompt_is_rendered_and_tokenised_once_for_all_its_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Renderer(tokenizer(CHATML), TokensConfig(), 256)
    prompt = [{"role": "user", "content": "ab?"}]
    siblings = [Turn(f"f:0:{i}", "f:0", None, i, 0, list(prompt), f"cd {i}", True, None, {}) for i in range(16)]  # type: ignore[arg-type]
    made.tokenize_siblings(siblings[:1])
    rendered, tokenised = [], []
    assert made.chat is not None
    apply, batch = made.chat.apply, made.encoding._batch
    monkeypatch.setattr(made.chat, "apply", lambda *args, **options: rendered.append(1) or apply(*args, **options))
    monkeypatch.setattr(made.encoding, "_batch", lambda texts: tokenised.append(texts) or batch(texts))
    answers = made.tokenize_groups([siblings, siblings[:2]])
    assert len(rendered) <= 16 + 2 + 2 + 2, "one of each conversation, and two of each prompt"
    assert len(tokenised) == 1 and sum("ab?" in text for text in tokenised[0]) == 1
    turns = [each for group in answers for each in group if isinstance(each, TokenizedTurn)]
    assert len(turns) == 18 and len({id(turn.prompt_ids) for turn in turns}) == 1


def test_a_row_that_fails_leaves_the_others_of_its_batch() -> None:
    refusing = CHATML.replace(
        "{{ m['content'] }}", "{{ raise_exception('no') if m['content'] == 'ab' else m['content'] }}"
    )
    made = Renderer(tokenizer(refusing), TokensConfig(), 256)

    def group(*responses: str) -> list[Turn]:
        prompt = [{"role": "user", "content": "q"}]
        return [Turn(f"f:{each}", "f", None, 0, 0, prompt, each, True, None, {}) for each in responses]  # type: ignore[arg-type]

    [(first, refused), (empty,), (last,)] = made.tokenize_groups([group("cd", "ab"), group(" "), group("cd")])
    assert isinstance(refused, RowError) and refused.reason == "template_error"
    assert isinstance(empty, RowError) and empty.reason == "empty_response"
    assert isinstance(first, TokenizedTurn) and isinstance(last, TokenizedTurn)
    assert first.response_ids.tolist() == last.response_ids.tolist()
