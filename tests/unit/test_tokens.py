"""Token accounting: what is prompt, what is scored, and what is neither."""

from pathlib import Path
from typing import Any

import pytest
from tiny import CHATML, tokenizer

from pipeline.config import TokensConfig
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import ConfigError, RowError
from pipeline.tokens import Renderer, TokenizedTurn, load_rubrics, pieces


def turn(prompt: str | list[Message], response: str, rubric: str | None = None) -> Turn:
    talk = not isinstance(prompt, str)
    messages = prompt if not isinstance(prompt, str) else [Message(role="user", content=prompt)] if prompt else []
    return Turn("f:0:chosen:0:0", "f:0", "chosen", 0, 0, messages, response, talk, rubric, {})


def shown(renderer: Renderer, tokenized: TokenizedTurn) -> tuple[str, str]:
    decode = renderer.tokenizer.decode
    return decode(tokenized.prompt_ids.tolist()), decode(tokenized.response_ids.tolist())


def render(tok: Any, *args: Any, context: int = 256, **config: Any) -> tuple[str, str]:
    renderer = Renderer(tok, TokensConfig(**config), context)
    return shown(renderer, renderer.tokenize(turn(*args)))


def test_a_template_scores_the_answer_and_its_end_of_turn_and_nothing_after() -> None:
    prompt, scored = render(tokenizer(CHATML), "hi", "yes")
    assert prompt == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert scored == "yes<|im_end|>"  # not the newline that the template puts behind it


def test_a_templates_output_is_final() -> None:
    """A tokenizer that likes to add a beginning token adds none to a rendering."""
    tok = tokenizer("<s>" + CHATML, bos=True)
    renderer = Renderer(tok, TokensConfig(), 256)
    ids = renderer.tokenize(turn("hi", "yes")).prompt_ids.tolist()
    assert ids.count(tok.bos_token_id) == 1 and ids[0] == tok.bos_token_id
    bare = Renderer(tokenizer(CHATML, bos=True), TokensConfig(), 256).tokenize(turn("hi", "yes")).prompt_ids.tolist()
    assert tok.bos_token_id not in bare


def test_an_empty_block_of_thoughts_belongs_to_the_prompt() -> None:
    thinking = CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    )
    prompt, scored = render(tokenizer(thinking), "hi", "yes")
    assert prompt.endswith("assistant\n<think>\n\n</think>\n\n") and scored == "yes<|im_end|>"


def test_a_template_that_trims() -> None:
    trimming = CHATML.replace("m['content']", "m['content'] | trim")
    assert render(tokenizer(trimming), "hi", "  yes \n")[1] == "yes<|im_end|>"


def test_a_template_without_an_end_of_turn_says_so() -> None:
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    renderer = Renderer(tokenizer(template), TokensConfig(), 256)
    assert shown(renderer, renderer.tokenize(turn("hi", "yes"))) == ("user: hi\nassistant:", " yes")
    assert any("no end-of-turn" in note for note in renderer.notes)


def test_a_template_that_refuses_is_a_row_error() -> None:
    tok = tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RowError, match=r"template_error.*roles must alternate"):
        render(tok, "hi", "yes")


def test_a_base_model_gets_prompt_response_and_end() -> None:
    assert render(tokenizer(), "Once", " upon a time") == ("Once", " upon a time</s>")
    assert render(tokenizer(), "Once", " upon a time", append_eos=False) == ("Once", " upon a time")
    assert render(tokenizer(CHATML), "Once", " upon", template="none") == ("Once", " upon</s>")


def test_a_space_at_the_end_of_a_prompt_goes_to_the_response() -> None:
    assert render(tokenizer(), "Once ", "upon") == ("Once", " upon</s>")
    assert render(tokenizer(), "Once ", "upon", trailing_space="keep") == ("Once ", "upon</s>")


def test_one_beginning_token_never_two() -> None:
    for text in ("hi", "<s>hi"):
        tok = tokenizer(bos=True)
        ids = Renderer(tok, TokensConfig(), 256).tokenize(turn(text, "yes")).prompt_ids.tolist()
        assert ids[0] == tok.bos_token_id and ids.count(tok.bos_token_id) == 1


def test_an_empty_prompt_starts_from_a_beginning_or_an_end_token() -> None:
    assert render(tokenizer(), "", "Once") == ("<s>", "Once</s>")
    no_bos = tokenizer()
    no_bos.bos_token = None
    assert render(no_bos, "", "Once") == ("</s>", "Once</s>")
    with pytest.raises(RowError, match="empty_prompt"):
        render(tokenizer(specials=False), "", "Once")


def test_prompt_tokens_do_not_move_when_a_merge_crosses_the_boundary() -> None:
    tok = tokenizer()
    assert len(tok("abcd")["input_ids"]) == 1  # jointly one token
    tokenized = Renderer(tok, TokensConfig(append_eos=False), 256).tokenize(turn("ab", "cd"))
    assert tokenized.prompt_ids.tolist() == tok("ab")["input_ids"]
    assert tokenized.response_ids.tolist() == tok("cd")["input_ids"]


def test_a_conversation_without_a_template_is_a_transcript() -> None:
    talk: list[Message] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "bye"},
    ]
    assert render(tokenizer(), talk, "see you") == (
        "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: bye\n\nAssistant:",
        " see you</s>",
    )


@pytest.mark.parametrize("response", ["", "  \n"])
def test_an_empty_response(response: str) -> None:
    with pytest.raises(RowError, match="empty_response"):
        render(tokenizer(CHATML), "hi", response)


@pytest.mark.parametrize("template", [None, CHATML])
def test_a_response_of_only_special_tokens(template: str | None) -> None:
    with pytest.raises(RowError, match="only_special_tokens"):
        render(tokenizer(template), "hi", "<|im_end|></s>", control="keep")


def test_over_length_by_default_cuts_the_response_and_its_end() -> None:
    renderer = Renderer(tokenizer(), TokensConfig(), 10)
    cut = renderer.tokenize(turn("12345", "abefgefgefg"))
    assert cut.truncated and len(cut.prompt_ids) + len(cut.response_ids) == 10
    assert shown(renderer, cut) == ("12345", "abefge")
    exact = renderer.tokenize(turn("12345", "6789"))
    assert not exact.truncated and shown(renderer, exact)[1] == "6789</s>"


def test_over_length_prompts_are_row_errors() -> None:
    renderer = Renderer(tokenizer(), TokensConfig(), 5)
    with pytest.raises(RowError, match=r"prompt_too_long.*5 prompt and 2 response tokens, at most 5 fit"):
        renderer.tokenize(turn("12345", "6"))


def test_over_length_reject_and_cut_prompt() -> None:
    with pytest.raises(RowError, match="too_long"):
        Renderer(tokenizer(), TokensConfig(over_length="reject"), 8).tokenize(turn("12345", "6789"))
    renderer = Renderer(tokenizer(bos=True), TokensConfig(over_length="cut_prompt"), 8)
    cut = renderer.tokenize(turn("12345", "6789"))
    assert cut.truncated and shown(renderer, cut) == ("<s>45", "6789</s>")
    hopeless = renderer.tokenize(turn("123", "67890xyz"))  # no room for any prompt: the response is cut after all
    assert len(hopeless.prompt_ids) + len(hopeless.response_ids) == 8 and hopeless.truncated


def test_a_configured_length_never_exceeds_the_models() -> None:
    renderer = Renderer(tokenizer(), TokensConfig(max_length=1000), 20)
    assert renderer.max_length == 20 and "context" in renderer.notes[0]


def test_a_system_prompt_is_rendered_and_kept() -> None:
    renderer = Renderer(tokenizer(CHATML), TokensConfig(system_prompt="Be brief."), 256)
    tokenized = renderer.tokenize(
        turn([{"role": "system", "content": "Own."}, {"role": "user", "content": "hi"}], "yes")
    )
    assert tokenized.prompt[0] == {"role": "system", "content": "Be brief.\n\nOwn."}
    assert shown(renderer, tokenized)[0].startswith("<|im_start|>system\nBe brief.\n\nOwn.<|im_end|>")


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages if m['role'] != 'system' %}" + CHATML.partition("%}")[2],
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML,
    ],
    ids=["drops it", "refuses it"],
)
def test_a_rubric_that_the_template_drops_goes_into_the_first_user_turn(template: str) -> None:
    renderer = Renderer(tokenizer(template), TokensConfig(system_prompt="Be brief."), 256)
    tokenized = renderer.tokenize(turn("hi", "yes"))
    assert tokenized.prompt == [{"role": "user", "content": "Be brief.\n\nhi"}]
    assert "Be brief.\n\nhi" in shown(renderer, tokenized)[0]
    assert any("drops the system message" in note for note in renderer.notes)


def test_several_rubrics_make_a_label_each(tmp_path: Path) -> None:
    path = tmp_path / "rubrics.toml"
    path.write_text('brief = "Be brief."\nkind = "Be kind."\n')
    renderer = Renderer(tokenizer(CHATML), TokensConfig(rubrics=str(path)), 256)
    each = renderer.under_rubrics(turn("hi", "yes"))
    assert [t.id for t in each] == ["f:0:chosen:0:0@brief", "f:0:chosen:0:0@kind"]
    assert "Be kind." in shown(renderer, renderer.tokenize(each[1]))[0]


@pytest.mark.parametrize("text", ["", "a = 1", '"a b" = "x"', "not toml", 'a = " "'])
def test_wrong_rubrics(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rubrics.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"rubrics\.toml"):
        load_rubrics(str(path))


def test_pieces_are_the_text_of_each_token() -> None:
    tok = tokenizer()
    assert pieces(tok)(tok("abx</s>")["input_ids"]) == ["ab", "x", "</s>"]
    assert pieces(tok)(tok("é!")["input_ids"]) == ["", "é", "!"]


@pytest.mark.parametrize("response", ["a", "t", "user", "assistant\n"])
def test_a_response_that_stands_in_the_template_too(response: str) -> None:
    prompt, scored = render(tokenizer(CHATML), "user", response)
    assert prompt.endswith("<|im_start|>assistant\n") and scored == response + "<|im_end|>"
    thinking = CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}"
    )
    assert render(tokenizer(thinking), "user", response)[1] == response + "<|im_end|>"


def test_an_end_token_in_the_response_is_not_doubled() -> None:
    assert render(tokenizer(), "hi", "yes</s>")[1] == "yes</s>"


def test_an_unknown_token_is_not_a_special_one() -> None:
    tok = tokenizer()
    tok.unk_token = "<|im_end|>"
    assert render(tok, "hi", "<|im_end|>", append_eos=False)[1] == "<|im_end|>"


def test_spaces_in_front_of_words_are_shown(shared: Path) -> None:
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(shared / "models/stories260K")
    ids = tok("Lily and Ben went to the park.", add_special_tokens=False)["input_ids"]
    assert "".join(pieces(tok)(ids)).strip() == "Lily and Ben went to the park."
