"""What is prompt and what is scored under the kinds of chat templates that current models have."""

import glob
import importlib.util
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES, TOOLS, chat_tokenizer, sentence_pieces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import CHATML, tokenizer
from transformers.utils import chat_template_utils

from pipeline.config import TokensConfig
from pipeline.corpus import Shape, Shard
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import ConfigError, RowError
from pipeline.rewards.labelling import ALIKE, prepare
from pipeline.tokens import Renderer, TokenizedTurn

DAY = "2024-07-26"
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}
USER: list[Message] = [{"role": "user", "content": "hi"}]
SANITIZES = hasattr(chat_template_utils, "mark_control_tokens")  # transformers 5.20 and later, the reference's own way


def turn(prompt: list[Message], response: str, beside: dict[str, Any] | None = None, tools: Any = None) -> Turn:
    return Turn("f:0:chosen:0:0", "f:0", "chosen", 0, 0, prompt, response, True, None, {}, beside or {}, tools)


def renderer(name: str, pieces: bool = False, context: int = 4096, **config: Any) -> Renderer:
    return Renderer(chat_tokenizer(name, pieces), TokensConfig(**{"date": DAY, **config}), context)


def whole(tokens: TokenizedTurn) -> list[int]:
    """All ids of a turn."""
    return [*tokens.prompt_ids.tolist(), *tokens.response_ids.tolist()]


def shown(made: Renderer, tokens: TokenizedTurn) -> tuple[str, str]:
    """Prompt and scored text; the second from where the first ends, as some decoders drop a space in front."""
    prompt = made.encoding.text(tokens.prompt_ids.tolist())
    return prompt, made.encoding.text(whole(tokens))[len(prompt) :]


def reference(made: Renderer, tokens: TokenizedTurn, answer: Message, tools: Any = None, **options: Any) -> list[int]:
    """The tokenizer's own ids of the whole conversation, with the date that the renderer has."""
    assert made.chat is not None
    return made.tokenizer.apply_chat_template(
        [*tokens.prompt, answer],
        chat_template=made.chat.source,
        tools=tools,
        tokenize=True,
        return_dict=False,
        **options,
    )


PLAIN = {
    "chatml": ("<|im_start|>assistant\n", "yes<|im_end|>"),
    "tools": ("<|im_start|>assistant\n", "yes<|im_end|>"),
    "inst": ("[INST] hi [/INST]", " yes</s>"),
    "dated": ("assistant<|end_header_id|>\n\n", "yes<|eot_id|>"),
    "gemma": ("<start_of_turn>model\n", "yes<end_of_turn>"),
    "thinking": ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "yes<|im_end|>"),
    "opened": ("<|im_start|>assistant\n<think>\n\n</think>\n\n", "yes<|im_end|>"),
    "closed": ("<|im_start|>assistant\n<think></think>", "yes<|im_end|>"),
    "dropping": ("<|User|>hi<|Assistant|>", "yes<|end|>"),
    "endless": ("<|assistant|>\n<think></think>\n", "yes"),
    "channels": ("<|start|>assistant<|channel|>final<|message|>", "yes<|return|>"),
    "spaced": ("USER: hi ASSISTANT:", " yes</s>"),
    "ended": ("<|assistant|>\n", "yes<|end|>"),
    "talk": ("User: hi\nBot:", " yes</s>"),
}
ASKED = {  # where a policy's own writing begins
    "chatml": "<|im_start|>assistant\n",
    "tools": "<|im_start|>assistant\n",
    "inst": "[INST] hi [/INST]",
    "dated": "assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>model\n",
    "thinking": "<|im_start|>assistant\n",
    "opened": "<|im_start|>assistant\n<think>\n",
    "closed": "<|im_start|>assistant\n<think>\n",
    "dropping": "<|Assistant|><think>\n",
    "endless": "hi<|assistant|>",
    "channels": "<|end|><|start|>assistant",
    "spaced": "ASSISTANT: ",
    "ended": "<|assistant|>\n",
    "talk": "hi\nBot:",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_answer(name: str) -> None:
    made = renderer(name)
    tokens = made.tokenize(turn(USER, "yes"))
    prompt, scored = shown(made, tokens)
    assert (prompt.endswith(PLAIN[name][0]), scored) == (True, PLAIN[name][1]), prompt
    ids = reference(made, tokens, {"role": "assistant", "content": "yes"})
    assert ids[: len(whole(tokens))] == whole(tokens)


@pytest.mark.parametrize("pieces", [False, True], ids=["bytes", "sentence pieces"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_policy_is_asked_with_the_templates_own_generation_prompt(name: str, pieces: bool) -> None:
    made = renderer(name, pieces)
    assert made.chat is not None
    ids = made.prompt_ids(USER, True)
    assert pieces or made.encoding.text(ids).endswith(ASKED[name])
    own = made.tokenizer.apply_chat_template(
        USER, chat_template=made.chat.source, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert ids == own
    assert "</think>" not in made.encoding.text(ids)


def test_settings_of_a_template_are_the_users() -> None:
    made = renderer("thinking", template_kwargs={"enable_thinking": False})
    assert made.encoding.text(made.prompt_ids(USER, True)).endswith("<think>\n\n</think>\n\n")
    assert made.identity != renderer("thinking").identity
    with pytest.raises(ValueError, match="given to every template already"):
        TokensConfig(template_kwargs={"add_generation_prompt": True})


THOUGHTS = {  # of "<think>\nwell\n</think>\n\nyes", within the text and beside it; None: an error row
    "chatml": ("<think>\nwell\n</think>\n\nyes<|im_end|>", None),
    "tools": ("<think>\nwell\n</think>\n\nyes<|im_end|>", None),
    "inst": (" <think>\nwell\n</think>\n\nyes</s>", None),
    "dated": ("<think>\nwell\n</think>\n\nyes<|eot_id|>", None),
    "gemma": ("<think>\nwell\n</think>\n\nyes<end_of_turn>", None),
    "thinking": ("<think>\nwell\n</think>\n\nyes<|im_end|>", "<think>\nwell\n</think>\n\nyes<|im_end|>"),
    "opened": ("well\n</think>\n\nyes<|im_end|>", "well\n</think>\n\nyes<|im_end|>"),
    "closed": ("well\n</think>yes<|im_end|>", "well\n</think>yes<|im_end|>"),
    "dropping": (None, None),
    "endless": ("\n<think>well</think>\nyes", "\n<think>well</think>\nyes"),
    "channels": (
        "<think>\nwell\n</think>\n\nyes<|return|>",
        "<|channel|>analysis<|message|>well<|end|><|start|>assistant<|channel|>final<|message|>yes<|return|>",
    ),
    "spaced": (" <think>\nwell\n</think>\n\nyes</s>", None),
    "ended": ("<think>\nwell\n</think>\n\nyes<|end|>", None),
    "talk": (" <think>\nwell\n</think>\n\nyes</s>", None),
}


@pytest.mark.parametrize("beside", [False, True], ids=["within the text", "beside it"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_thoughts_are_scored_as_the_template_renders_them(name: str, beside: bool) -> None:
    made, expected = renderer(name), THOUGHTS[name][beside]
    response = (
        turn(USER, "yes", {"reasoning_content": "well"}) if beside else turn(USER, "<think>\nwell\n</think>\n\nyes")
    )
    if expected is None:
        with pytest.raises(RowError, match=r"template_error.*does not show.*set tokens\.template"):
            made.tokenize(response)
        return
    tokens = made.tokenize(response)
    assert shown(made, tokens)[1] == expected
    thoughts = {"thinking": "well"} if beside else {}  # gpt-oss's name, which transformers gives them from 5.21 on
    ids = reference(made, tokens, {**thoughts, **response.answer})
    assert ids[: len(whole(tokens))] == whole(tokens)


@pytest.mark.parametrize("beside", [False, True], ids=["within the text", "beside it"])
@pytest.mark.parametrize("name", ["thinking", "opened", "closed", "endless"])
def test_the_answer_alone_is_scored_where_thoughts_are_given(name: str, beside: bool) -> None:
    made = renderer(name, thoughts="given")
    response = (
        turn(USER, "yes", {"reasoning_content": "well"}) if beside else turn(USER, "<think>\nwell\n</think>\n\nyes")
    )
    prompt, scored = shown(made, made.tokenize(response))
    assert scored == PLAIN[name][1] and "well" in prompt
    assert shown(made, made.tokenize(turn(USER, "yes"))) == shown(
        renderer(name), renderer(name).tokenize(turn(USER, "yes"))
    )
    with pytest.raises(RowError, match="no_answer"):
        made.tokenize(turn(USER, "<think>\nwell, and"))


@pytest.mark.parametrize("name", ["thinking", "opened", "closed", "endless", "channels"])
def test_siblings_have_the_same_prompt_tokens(name: str) -> None:
    """So that V(s_1) cancels: an empty block of thoughts is the response's where another response has thoughts."""
    made = renderer(name)
    plain, thoughtful = made.tokenize_siblings([turn(USER, "yes"), turn(USER, "no", {"reasoning_content": "well"})])
    assert isinstance(plain, TokenizedTurn) and isinstance(thoughtful, TokenizedTurn)
    assert plain.prompt_ids.tolist() == thoughtful.prompt_ids.tolist()
    alone = made.tokenize(turn(USER, "yes"))
    assert whole(plain) == whole(alone)


def test_texts_that_a_template_makes_the_same_are_counted() -> None:
    shape, shard = Shape((("a", "chosen"), ("b", "rejected")), prompt="q"), Shard("f", 0, 0, 3, 3, "0" * 64, 0, 10)
    rows = [(n, {"q": "hi", "a": "yes", "b": other}) for n, other in enumerate(("yes ", "yes", "no"))]
    trimmed, kept = (prepare(shard, 0, rows, shape, renderer(name), "last") for name in ("gemma", "chatml"))
    assert not trimmed.failures and (trimmed.counts[ALIKE], kept.counts[ALIKE]) == (1, 0)


def test_a_prompt_is_cut_once_for_all_responses_to_it() -> None:
    """At the base commit each half of a pair had a cut of its own, so that V(s_1) did not cancel."""
    made = Renderer(tokenizer(), TokensConfig(over_length="cut_prompt", append_eos=False), 10)
    short, long = made.tokenize_siblings([_bare("12345678", "ef"), _bare("12345678", "efgh")])
    assert isinstance(short, TokenizedTurn) and isinstance(long, TokenizedTurn)
    assert shown(made, short) == ("345678", "ef") and shown(made, long) == ("345678", "efgh")
    assert short.truncated and long.truncated


def _bare(prompt: str, response: str) -> Turn:
    return Turn(
        "f:0:chosen:0:0", "f:0", "chosen", 0, 0, [{"role": "user", "content": prompt}], response, False, None, {}
    )


# Tools


@pytest.mark.parametrize("control", ["text", "keep"])
def test_a_tools_name_in_another_text_is_no_tool(control: str, tmp_path: Any) -> None:
    """A template without tools passed where the person happened to name one: the tools were left out in silence."""
    asked: list[Message] = [{"role": "user", "content": "What is the weather?"}]
    called: list[Message] = [*asked, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, *asked]
    made = renderer("chatml", control=control)
    with pytest.raises(RowError, match="does not show the tools weather"):
        made.tokenize(turn(asked, "fine", tools=[TOOL]))
    with pytest.raises(RowError, match="does not show the tools weather"):
        made.prompt_ids(asked, True, [TOOL])
    with pytest.raises(RowError, match=r"does not show message 1 \(assistant\)"):
        made.tokenize(turn(called, "fine"))
    (tmp_path / "tools-alone.jinja").write_text(TOOLS + CHATML)  # which names the tool, and shows no call
    alone = renderer("chatml", control=control, template=str(tmp_path / "tools-alone.jinja"))
    with pytest.raises(RowError, match="does not show the tool calls of message 1"):
        alone.tokenize(turn(called, "fine", tools=[TOOL]))
    own = renderer("tools", control=control)
    assert own.tokenize(turn(called, "fine", tools=[TOOL])).response_ids.size


def test_a_message_is_not_shown_by_another_that_holds_its_text() -> None:
    history: list[Message] = [
        {"role": "user", "content": "Is it 12?"},
        {"role": "assistant", "content": "I look."},
        {"role": "tool", "content": "12"},
    ]
    with pytest.raises(RowError, match=r"does not show message 2 \(tool\)"):
        renderer("talk").tokenize(turn(history, "yes"))
    assert "<|im_start|>tool\n12" in shown(made := renderer("tools"), made.tokenize(turn(history, "yes")))[0]
    again: list[Message] = [*history[:2], *history[:2], {"role": "user", "content": '{"a": "I look."}'}]
    assert renderer("talk").tokenize(turn(again, "yes")).prompt_ids.size


@pytest.mark.parametrize("content", ["", "let me look"])
@pytest.mark.parametrize("name", ["tools", "thinking", "channels"])
def test_tool_calls_are_scored_with_the_turn(name: str, content: str) -> None:
    made = renderer(name)
    response = turn(USER, content, {"tool_calls": [CALL]}, [TOOL])
    if name == "channels" and content:  # it leaves the text out
        with pytest.raises(RowError, match="does not show the text of the response"):
            made.tokenize(response)
        return
    tokens = made.tokenize(response)
    prompt, scored = shown(made, tokens)
    assert "of a city" in prompt and '{"city": "Rome"}' in scored and content in scored
    assert scored.endswith("<|call|>" if name == "channels" else "</tool_call><|im_end|>")
    ids = reference(made, tokens, response.answer, [TOOL])
    assert ids[: len(whole(tokens))] == whole(tokens)


def test_arguments_as_json_text_are_objects_where_a_template_wants_them() -> None:
    tok = chat_tokenizer("tools")
    tok.chat_template = tok.chat_template.replace(
        "{{ c['function']['arguments'] | tojson }}",
        "{% for k, v in c['function']['arguments'].items() %}{{ k }}={{ v }}{% endfor %}",
    )
    made = Renderer(tok, TokensConfig(), 4096)
    text = {"type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    answers = [made.tokenize(turn(USER, "", {"tool_calls": [call]})) for call in (CALL, text)]
    assert whole(answers[0]) == whole(answers[1]) and "city=Rome" in shown(made, answers[1])[1]
    with pytest.raises(RowError, match="refuses this conversation"):
        made.tokenize(turn(USER, "", {"tool_calls": [{"function": {"name": "weather", "arguments": "Rome"}}]}))


def test_tools_and_their_results_that_a_template_does_not_show_are_errors() -> None:
    with pytest.raises(RowError, match="does not show the tool calls"):
        renderer("chatml").tokenize(turn(USER, "", {"tool_calls": [CALL]}))
    with pytest.raises(RowError, match="does not show the tool 'weather'"):
        renderer("chatml").tokenize(turn(USER, "yes", tools=[TOOL]))
    history: list[Message] = [
        *USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "12 degrees"},
    ]
    with pytest.raises(RowError, match=r"does not show message 1 \(assistant\)"):
        renderer("chatml").tokenize(turn(history, "cold"))
    with pytest.raises(RowError, match=r"does not show message 2 \(tool\)"):
        renderer("talk").tokenize(turn([*USER, {"role": "assistant", "content": "x"}, history[2]], "cold"))
    prompt, scored = shown(made := renderer("tools"), made.tokenize(turn(history, "cold")))
    assert "12 degrees" in prompt and "weather" in prompt and scored == "cold<|im_end|>"
    for beside, tools in (({"tool_calls": [CALL]}, None), ({"reasoning_content": "x"}, None), ({}, [TOOL])):
        with pytest.raises(RowError, match="no_template"):
            Renderer(tokenizer(), TokensConfig(), 256).tokenize(turn(USER, "yes", beside, tools))


# System messages


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_rows_own_system_message_is_never_dropped(name: str) -> None:
    made = renderer(name)
    tokens = made.tokenize(turn([{"role": "system", "content": "Be brief."}, *USER], "yes"))
    assert "Be brief." in shown(made, tokens)[0]
    folded = name in ("inst", "gemma", "talk")
    assert (tokens.prompt == [{"role": "user", "content": "Be brief.\n\nhi"}]) == folded
    assert any("a row's own is put before the first user message" in note for note in made.notes) == folded


@pytest.mark.parametrize("name", TEMPLATES)
def test_an_empty_system_message_is_none(name: str) -> None:
    made = renderer(name)
    tokens = made.tokenize(turn([{"role": "system", "content": " \n"}, *USER], "yes"))
    assert shown(made, tokens) == shown(made, made.tokenize(turn(USER, "yes")))


# The date


def test_a_template_that_asks_for_the_date_gets_the_same_one_always() -> None:
    for name, text in (("dated", "26 Jul 2024"), ("channels", "2024-07-26")):
        made = renderer(name)
        assert made.asks_for_date and text in shown(made, made.tokenize(turn(USER, "yes")))[0]
        today = renderer(name, date=None)
        year = str(datetime.now(UTC).year)
        assert year in shown(today, today.tokenize(turn(USER, "yes")))[0]
    assert not renderer("chatml").asks_for_date
    assert renderer("chatml").identity == renderer("chatml", date="2020-01-01").identity
    assert renderer("dated").identity != renderer("dated", date="2020-01-01").identity
    with pytest.raises(ValueError, match="isoformat"):
        TokensConfig(date="26 Jul 2024")


@pytest.mark.parametrize("format", ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d", "on the %d.%m.%y at %H:%M", "plain"])
def test_dates_are_written_as_strftime_writes_them(format: str) -> None:
    tok = tokenizer("{{ strftime_now('" + format + "') }}|" + TEMPLATES["chatml"])
    made = Renderer(tok, TokensConfig(date=DAY), 4096)
    assert made.encoding.text(made.prompt_ids(USER, True)).partition("|")[0] == datetime(2024, 7, 26).strftime(format)


# Control tokens


@pytest.mark.parametrize("pieces", [False, True], ids=["bytes", "sentence pieces"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_control_tokens_that_a_person_typed_are_text(name: str, pieces: bool) -> None:
    made = renderer(name, pieces)
    messages: list[Message] = [{"role": "user", "content": "what is <|im_end|> and </s>?"}]
    answer: Message = {"role": "assistant", "content": "<|im_end|> ends a turn"}
    tokens = made.tokenize(turn(messages, answer["content"]))
    prompt, scored = shown(made, tokens)
    assert "what is <|im_end|> and </s>?" in prompt and "<|im_end|> ends a turn" in scored
    end = made.tokenizer.convert_tokens_to_ids("<|im_end|>")
    plain = made.tokenize(turn(USER, "yes"))
    assert whole(tokens).count(end) == whole(plain).count(end)
    assert tokens.prompt == messages  # as it was given
    assert made.take_counts() == {
        "messages hold control tokens of the template, which are read as text (tokens.control)": 2
    }
    if name != "endless" and SANITIZES:
        ids = reference(made, tokens, answer, sanitize_control_tokens=True)
        assert ids[: len(whole(tokens))] == whole(tokens)


def test_control_tokens_can_be_kept_or_refused() -> None:
    kept = renderer("chatml", control="keep").tokenize(turn([{"role": "user", "content": "a <|im_end|>"}], "yes"))
    end = chat_tokenizer("chatml").convert_tokens_to_ids("<|im_end|>")
    assert kept.prompt_ids.tolist().count(end) == 2
    with pytest.raises(RowError, match=r"control_tokens.*'<\|im_end\|>'.*tokens\.control = text"):
        renderer("chatml", control="refuse").tokenize(turn(USER, "a <|im_end|>"))
    assert renderer("chatml", control="refuse").tokenize(turn(USER, "yes"))
    bare = Renderer(chat_tokenizer("chatml"), TokensConfig(template="none"), 4096).tokenize(_bare("a<|im_end|>", "b"))
    assert end in bare.prompt_ids  # text without a template is left as it is


def test_markers_of_thoughts_stay_tokens_in_an_assistants_turn_alone() -> None:
    made = renderer("thinking")
    think = made.tokenizer.convert_tokens_to_ids("<think>")
    tokens = made.tokenize(turn([{"role": "user", "content": "say <think>"}], "<think>\nwell\n</think>\n\nyes"))
    assert think not in tokens.prompt_ids.tolist() and tokens.response_ids.tolist().count(think) == 1


# SentencePiece, and where text is cut


def test_a_space_at_the_end_of_a_prompt_goes_to_the_response() -> None:
    """SentencePiece puts a space before every text: `red` tokenised apart was ` red`, and the text had two."""
    tok = sentence_pieces()
    moved = Renderer(tok, TokensConfig(append_eos=False), 256)
    tokens = moved.tokenize(_bare("a ball was ", "red and"))
    assert shown(moved, tokens) == ("a ball was", " red and")
    assert whole(tokens) == tok("a ball was red and", add_special_tokens=False)["input_ids"]
    kept = Renderer(tok, TokensConfig(append_eos=False, trailing_space="keep"), 256)
    tokens = kept.tokenize(_bare("a ball was ", "red and"))
    assert shown(kept, tokens) == ("a ball was ", "red and")
    assert tokens.prompt_ids.tolist() == tok("a ball was ", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("make", [sentence_pieces, tokenizer])
def test_a_space_in_front_of_a_response_counts(make: Any) -> None:
    made = Renderer(make(), TokensConfig(append_eos=False), 256)
    for response in ("there", " there", "\nthere"):
        assert shown(made, made.tokenize(_bare("Hello", response))) == ("Hello", response)


def test_the_real_models_text(shared: Any) -> None:
    """`Tom had a ball. The ball was ` and `red and big.` under stories260K: three readings, three sums of log pi."""
    torch = pytest.importorskip("torch")
    from pipeline.config import ModelConfig
    from pipeline.models.loading import load_model, load_tokenizer

    source = ModelConfig(name=str(shared / "models/stories260K"), dtype="float64")
    model, tok = load_model(source, "cpu"), load_tokenizer(source)

    def total(prompt: str, response: str, **config: Any) -> float:
        tokens = Renderer(tok, TokensConfig(append_eos=False, **config), 512).tokenize(_bare(prompt, response))
        with torch.no_grad():
            logprobs = model(torch.tensor([whole(tokens)])).logits[0].double().log_softmax(-1)
        size = len(tokens.prompt_ids)
        return sum(float(logprobs[size + i - 1, token]) for i, token in enumerate(tokens.response_ids))

    prompt, response = "Tom had a ball. The ball was ", "red and big."
    assert total(prompt, response) == pytest.approx(-9.9254, abs=1e-3)
    assert total(prompt, response, trailing_space="keep") == pytest.approx(-26.9308, abs=1e-3)


# Lengths


def test_the_models_own_length_counts() -> None:
    tok = chat_tokenizer("chatml")
    tok.model_max_length = 16
    made = Renderer(tok, TokensConfig(), 256)
    assert made.max_length == 256 and "the tokenizer states a length of 16" in made.notes[0]
    assert Renderer(tok, TokensConfig(max_length=32), 256).max_length == 32


# Anything

WORDS = st.text(alphabet="ab cd\n<>/think|_é▁. ", min_size=1, max_size=24)
THOUGHTFUL = st.builds("<think>{}</think>{}".format, WORDS, WORDS)
TYPED = st.builds("{}<|im_end|>{}".format, WORDS, WORDS)


@st.composite
def conversations(draw: Any) -> tuple[list[Message], list[str], bool]:
    """A prompt, responses to it, and whether control tokens are typed in it (or else thoughts)."""
    typed = draw(st.booleans())
    said = st.one_of(WORDS, TYPED if typed else THOUGHTFUL)
    prompt: list[Message] = [{"role": "system", "content": draw(WORDS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        prompt += [{"role": "user", "content": draw(WORDS)}, {"role": "assistant", "content": draw(said)}]
    prompt.append({"role": "user", "content": draw(st.one_of(WORDS, TYPED) if typed else WORDS)})
    return prompt, draw(st.lists(said, min_size=1, max_size=3)), typed


@pytest.mark.parametrize("pieces", [False, True], ids=["bytes", "sentence pieces"])
@pytest.mark.parametrize("name", TEMPLATES)
@given(conversations())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_conversation_decodes_to_what_is_rendered(
    name: str, pieces: bool, drawn: tuple[list[Message], list[str], bool]
) -> None:
    """And every response comes out as tokens or as an error."""
    made = _renderers.setdefault((name, pieces), renderer(name, pieces, context=100_000))
    prompt, responses, typed = drawn
    answers = made.tokenize_siblings([turn(prompt, response) for response in responses])
    assert len(answers) == len(responses)
    assert len({tuple(each.prompt_ids) for each in answers if isinstance(each, TokenizedTurn)}) <= 1
    for response, tokens in zip(responses, answers, strict=True):
        if isinstance(tokens, RowError):
            assert tokens.reason in ("empty_response", "template_error", "not_reversible", "only_special_tokens"), (
                tokens
            )
            continue
        ids = reference(made, tokens, {"role": "assistant", "content": response}, sanitize_control_tokens=typed)
        got, due = made.encoding.text(whole(tokens)), made.encoding.text(ids)
        texts = [each["content"] for each in prompt] + [response]
        typed_by_chance = any(token in text for token in made.tokenizer.get_added_vocab() for text in texts)
        if typed_by_chance or (typed and not SANITIZES):  # tokens there, around which pieces decode to other spaces
            got, due = got.replace(" ", ""), due.replace(" ", "")
        assert due.startswith(got)


_renderers: dict[tuple[str, bool], Renderer] = {}


def test_all_templates_that_trl_ships() -> None:
    spec = importlib.util.find_spec("trl")
    if spec is None or spec.origin is None:
        pytest.skip("TRL is not installed; its templates are read with it: pip install trl==1.16.0")
    paths = sorted(glob.glob(os.path.join(os.path.dirname(spec.origin), "chat_templates", "*.jinja")))
    assert paths
    for path in paths:
        tok = chat_tokenizer("chatml")
        tok.chat_template = Path(path).read_text()
        made = Renderer(tok, TokensConfig(date=DAY), 100_000)
        try:
            tokens = made.tokenize(turn(USER, "yes"))
        except RowError as error:
            assert error.reason == "template_error", (path, error)  # templates that take pictures want lists
            continue
        ids = reference(made, tokens, {"role": "assistant", "content": "yes"})
        assert ids[: len(whole(tokens))] == whole(tokens), path


def test_a_wrong_template_file(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match=r"tokens\.template: cannot read"):
        Renderer(tokenizer(), TokensConfig(template=str(tmp_path / "none.jinja")), 256)
