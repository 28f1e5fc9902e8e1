"""A hostile chat template: it ends neither the process that asks for a rendering nor its patience."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from chat_templates import TEMPLATES, chat_tokenizer
from tiny import CHATML, save_model, tokenizer

from jobs.serve.run import open_renderers
from pipeline.config import ServeConfig, TokensConfig
from pipeline.corpus.samples import Message, Turn
from pipeline.errors import RowError, RunError
from pipeline.rewards.requests import RequestReader
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import read_prompts
from pipeline.tokens import Renderer, bounded
from pipeline.tokens.bounded import Applied
from pipeline.training.rows import stored_renderer

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(999) %}{% endfor %}{% endfor %}{% endfor %}"
POWER = "{{ (9 ** (9 ** 9)) % 7 }}"  # never lets go of the interpreter's lock
LONG = "{{ 'a' * 100000000000 }}"
DEEP = "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}"
FLOOD = "{{ 'a' * 70000000 }}"
ECHO = "{% for a in range(4000) %}{{ messages[0]['content'] }}{% endfor %}"
LATER = "{% if messages[0]['content'] | length > 20 %}" + LOOP + "{% endif %}"
USER: list[Message] = [{"role": "user", "content": "hi"}]
TOOL = {"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": {}}}


def renderer(hostile: str) -> Renderer:
    return Renderer(tokenizer(hostile + CHATML), TokensConfig(), 256)


def turn(prompt: str) -> Turn:
    return Turn("f:0:chosen:0:0", "f:0", "chosen", 0, 0, [{"role": "user", "content": prompt}], "ab", True, None, {})


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has loaded what it needs, and little patience with it."""
    renderer("").prompt_ids(USER, True)
    monkeypatch.setattr(bounded, "WITHIN_S", 0.3)


@pytest.mark.parametrize("hostile", [LOOP, POWER], ids=["loop", "power"])
def test_one_without_an_end_is_ended(hostile: str, hurried: None, monkeypatch: pytest.MonkeyPatch) -> None:
    made, begin = renderer(hostile), time.monotonic()
    with pytest.raises(RunError, match=r"the chat template does not come to an end: 0\.3 s .*; take another one"):
        made.prompt_ids(USER, True)
    assert time.monotonic() - begin < 30
    monkeypatch.undo()
    assert len(renderer("").prompt_ids(USER, True)) > 2  # the next one has a process again


def test_one_that_shows_it_to_some_conversations_alone_is_ended_there(hurried: None) -> None:
    made = renderer(LATER)
    assert made.tokenize(turn("short")).response_ids.size and made.end_tokens()
    with pytest.raises(RunError, match="does not come to an end"):
        made.tokenize(turn("a prompt of more than twenty characters"))


def test_one_that_wants_all_memory_or_nests_without_measure_refuses_the_conversation() -> None:
    for hostile in (LONG, DEEP):
        with pytest.raises(RowError) as raised:
            renderer(hostile).prompt_ids(USER, True)
        assert raised.value.reason == "template_error"


def test_one_that_makes_a_flood_of_a_conversation_refuses_it() -> None:
    with pytest.raises(RowError, match=r"it makes 70,0.* characters of it, and at most 67,108,864 can be"):
        renderer(FLOOD).prompt_ids(USER, True)
    made = renderer(ECHO)
    assert len(made.prompt_ids(USER, True)) > 4000
    with pytest.raises(RowError, match=r"it makes 80,.* characters of it"):  # by the way that the first one went
        made.prompt_ids([{"role": "user", "content": "x" * 20_000}], True)


def test_one_that_ends_its_process_each_time_is_named() -> None:
    with pytest.raises(RunError, match=r"the chat template ended the process .* 3 times, .* SIGSEGV; take another one"):
        bounded.bounded(signal.raise_signal, signal.SIGSEGV)


def test_a_process_that_something_else_ends_is_started_again(tmp_path: Path) -> None:
    mark = tmp_path / "was here"
    command = f"[ -e '{mark}' ] || {{ touch '{mark}'; kill -9 $PPID; }}"
    assert bounded.bounded(os.system, command) == 0 and mark.exists()


def test_train_renders_no_row_by_it(hurried: None) -> None:
    """The template is the store's, whoever made that."""
    stored = {"format": 2, "tokens.template": LATER + CHATML, "tokens.over_length": "reject", "tokens.append_eos": True}
    with pytest.raises(RunError, match="does not come to an end"):
        stored_renderer(tokenizer(CHATML), {**stored, "model.max_length": 256}).tokenize(turn("long " * 9))


def test_serve_does_not_start_with_it(hurried: None, tmp_path: Path) -> None:
    config = ServeConfig.model_validate({"model": {"name": str(save_model(tmp_path / "m", LOOP + CHATML))}})
    [named] = open_renderers(config).values()
    with pytest.raises(RunError, match="does not come to an end"):
        RequestReader(*named.values())


def test_rl_reads_no_prompt_of_it(tmp_path: Path, hurried: None) -> None:
    model = save_model(tmp_path / "m", LATER + CHATML)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": [{"role": "user", "content": "%s"}]}\n' % ("long " * 9))
    config = RlConfig.model_validate(
        {"policy": {"name": str(model)}, "input": {"paths": [str(tmp_path / "prompts.jsonl")]}}
    )
    with pytest.raises(RunError, match="does not come to an end"):
        read_prompts(config, config.input.paths, "input.paths")


@pytest.mark.parametrize("name", TEMPLATES)
def test_beside_it_renders_as_the_tokenizer_does(name: str) -> None:
    tok = chat_tokenizer(name)
    applied = Applied(tok.special_tokens_map)
    for tools in (None, [TOOL]):
        options: dict[str, Any] = {"chat_template": TEMPLATES[name], "tokenize": False, "add_generation_prompt": True}
        assert applied(USER, tools=tools, **options) == tok.apply_chat_template(USER, tools=tools, **options)
