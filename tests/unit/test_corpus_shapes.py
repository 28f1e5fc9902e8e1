import json
import pickle
from datetime import date, datetime
from decimal import Decimal

import pytest

from pipeline.config import InputConfig
from pipeline.corpus import Shape, detect, turns
from pipeline.errors import InputError, RowError


def said(role, content):
    return {"role": role, "content": content}


def user(content):
    return said("user", content)


def assistant(content):
    return said("assistant", content)


def gpt(content):
    return {"from": "gpt", "value": content}


def human(content):
    return {"from": "human", "value": content}


def labels(row, **config):
    """[(preference, index, prompt, response)] of a corpus of this one row."""
    sample = detect([row], InputConfig(**config)).normalise("f", 0, row)
    assert sample.failed == []
    return [
        (turn.preference, turn.response_index, turn.prompt, turn.response)
        for turn in turns(sample, config.get("turns", "last"))
    ]


Q, A, B = [user("q")], "a", "b"
PAIR = [("chosen", 0, Q, A), ("rejected", 0, Q, B)]
ONE = [(None, 0, Q, A)]
SEVERAL = [(None, 0, Q, A), (None, 1, Q, B)]
HH = "\n\nHuman: q\n\nAssistant: "
HH_LONG = "\n\nHuman: q\n\nAssistant: x\n\nHuman: y\n\nAssistant:"
LONG = [user("q"), assistant("x"), user("y")]

SHAPES = {
    "prompt and response": ({"prompt": "q", "response": A}, ONE, False, "prompt + response (text, 1)"),
    "completion": ({"prompt": "q", "completion": A}, ONE, False, "prompt + completion (text, 1)"),
    "question and answer": ({"question": "q", "answer": A}, ONE, False, "question + answer (text, 1)"),
    "instruction and output": (
        {"instruction": "q", "input": "", "output": A}, ONE, False, "instruction + input + output (text, 1)",
    ),
    "instruction with input": (
        {"instruction": "i", "input": "n", "output": A},
        [(None, 0, [user("i\n\nn")], A)], False, "instruction + input + output (text, 1)",
    ),
    "input and output": ({"input": "q", "output": A}, ONE, False, "input + output (text, 1)"),
    "messages prompt, text response": ({"prompt": Q, "response": A}, ONE, True, "prompt + response (messages, 1)"),
    "conversational completion": (
        {"prompt": Q, "completion": [assistant(A)]}, ONE, True, "prompt + completion (messages, 1)",
    ),
    "responses": ({"prompt": "q", "responses": [A, B]}, SEVERAL, False, "prompt + responses (text, 2)"),
    "responses in messages": (
        {"prompt": Q, "responses": [[assistant(A)], [assistant(B)]]}, SEVERAL, True, "prompt + responses (messages, 2)",
    ),
    "responses, one message each": (
        {"prompt": Q, "responses": [assistant(A), assistant(B)]}, SEVERAL, True, "prompt + responses (messages, 2)",
    ),
    "responses by name": (
        {"query": "q", "responses": {"law": A, "art": B}}, SEVERAL, False, "query + responses (text by name, 2)",
    ),
    "a pair": ({"prompt": "q", "chosen": A, "rejected": B}, PAIR, False, "prompt + chosen + rejected (text, 1 each)"),
    "a pair in messages": (
        {"prompt": Q, "chosen": [assistant(A)], "rejected": [assistant(B)]}, PAIR, True,
        "prompt + chosen + rejected (messages, 1 each)",
    ),
    "a pair of single messages": (
        {"prompt": Q, "chosen": assistant(A), "rejected": assistant(B)}, PAIR, True,
        "prompt + chosen + rejected (messages, 1 each)",
    ),
    "several chosen and rejected": (
        {"prompt": "q", "chosen": [A, A], "rejected": [B]},
        [("chosen", 0, Q, A), ("chosen", 1, Q, A), ("rejected", 0, Q, B)], False,
        "prompt + chosen + rejected (text, 2 and 1)",
    ),
    "a pair that carries its prompt": (
        {"chosen": [*LONG, assistant(A)], "rejected": [*LONG, assistant(B)]},
        [("chosen", 0, LONG, A), ("rejected", 0, LONG, B)], True, "chosen + rejected (conversations, 1 each)",
    ),
    "a pair that repeats its prompt": (
        {"prompt": "q", "messages": [*Q, assistant(A)], "chosen": [*Q, assistant(A)], "rejected": [*Q, assistant(B)]},
        PAIR, True, "prompt + chosen + rejected (messages, 1 each)",
    ),
    "a pair of equals": (
        {"chosen": [*Q, assistant(A)], "rejected": [*Q, assistant(A)]},
        [("chosen", 0, Q, A), ("rejected", 0, Q, A)], True, "chosen + rejected (conversations, 1 each)",
    ),
    "a pair that parts early": (
        {"chosen": [*Q, assistant("x"), user("y"), assistant(A)], "rejected": [*Q, assistant(B)]},
        [("chosen", 0, LONG, A), ("rejected", 0, Q, B)], True, "chosen + rejected (conversations, 1 each)",
    ),
    "transcripts": (
        {"chosen": HH + A, "rejected": HH + B}, PAIR, True,
        "chosen + rejected (transcripts that carry the prompt, 1 each)",
    ),
    "longer transcripts": (
        {"chosen": f"{HH_LONG} {A}", "rejected": f"{HH_LONG} {B}\n\n"},
        [("chosen", 0, LONG, A), ("rejected", 0, LONG, B)], True,
        "chosen + rejected (transcripts that carry the prompt, 1 each)",
    ),
    "a ShareGPT pair": (
        {"conversations": [human("q")], "chosen": gpt(A), "rejected": gpt(B)}, PAIR, True,
        "conversations + chosen + rejected (messages, 1 each)",
    ),
    "a ShareGPT conversation": (
        {"conversations": [{"from": "system", "value": "s"}, human("q"), gpt(A)]},
        [(None, 0, [said("system", "s"), *Q], A)], True, "conversations (conversations, 1)",
    ),
    "messages": ({"messages": [*LONG, assistant(A)]}, [(None, 0, LONG, A)], True, "messages (conversations, 1)"),
    "messages that go on": (
        {"messages": [*LONG, assistant(A), user("z")]}, [(None, 0, LONG, A)], True, "messages (conversations, 1)",
    ),
    "messages beside a prompt": (
        {"prompt": "q", "messages": [*Q, assistant(A)]}, ONE, True, "messages (conversations, 1)",
    ),
    "a struct of lists": (
        {"messages": {"role": ["user", "assistant"], "content": ["q", A]}}, ONE, True, "messages (conversations, 1)",
    ),
    "content in parts": (
        {"prompt": [said("user", [{"type": "text", "text": "q"}])], "response": A}, ONE, True,
        "prompt + response (messages, 1)",
    ),
    "a system column": (
        {"system": "s", "question": "q", "chosen": A, "rejected": B},
        [(p, i, [said("system", "s"), *Q], text) for p, i, _, text in PAIR], False,
        "system + question + chosen + rejected (text, 1 each)",
    ),
    "text": ({"text": A}, [(None, 0, [], A)], False, "text (text, 1)"),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_published_shapes_are_recognised(name):
    row, expected, conversational, description = SHAPES[name]
    row = {"id": 7, "note": {"deep": [1.5]}, **row}
    shape = detect([row], InputConfig())
    sample = shape.normalise("f", 3, row)
    assert labels(row) == expected
    assert sample.conversational is conversational
    assert sample.prompt_id == "f:3" and sample.failed == []
    assert {"id", "note"} <= sample.extra.keys() and not {
        "chosen",
        "rejected",
        "text",
        "response",
    } & sample.extra.keys()
    assert shape.describe() == description


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_is_plain_data(name):
    shape = detect([SHAPES[name][0]], InputConfig())
    assert Shape.from_json(json.loads(json.dumps(shape.to_json()))) == shape == pickle.loads(pickle.dumps(shape))


def test_names_of_responses_ride_along():
    row = {"query": "q", "responses": {"law": "a", "art": "b"}, "source": "s"}
    found = list(turns(detect([row], InputConfig()).normalise("f", 0, row)))
    assert [turn.extra for turn in found] == [
        {"source": "s", "response_key": "law"},
        {"source": "s", "response_key": "art"},
    ]
    assert [turn.id for turn in found] == ["f:0:response:0:0", "f:0:response:1:0"]


def test_keys_reach_into_columns_and_leave_their_siblings():
    row = {"question": "q", "truth": "t", "6b": {"solution": "a", "ok": True}, "175b": {"solution": "b"}, "x.y": "z"}
    config = InputConfig(prompt_key="question", response_key=["6b.solution", "175b.solution", "x.y"])
    shape = detect([row], config)
    sample = shape.normalise("f", 0, row)
    assert [(r.index, r.messages[0]["content"], r.extra["response_key"]) for r in sample.responses] == [
        (0, "a", "6b.solution"),
        (1, "b", "175b.solution"),
        (2, "z", "x.y"),
    ]
    assert sample.extra == {"truth": "t", "6b": {"ok": True}}
    assert row["6b"] == {"solution": "a", "ok": True}
    assert shape.describe() == "question + 6b.solution + 175b.solution + x.y (text, 3)"


ROW = {"prompt": "q", "response": "a", "chosen": "c", "rejected": "r", "text": "t", "m": [*Q, assistant("m")], "p": "o"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, [("chosen", 0, Q, "c"), ("rejected", 0, Q, "r")]),
        ({"prompt_key": "p"}, [("chosen", 0, [user("o")], "c"), ("rejected", 0, [user("o")], "r")]),
        ({"response_key": "text"}, [(None, 0, Q, "t")]),
        ({"prompt_key": "p", "response_key": "response"}, [(None, 0, [user("o")], "a")]),
        ({"chosen_key": "response"}, [("chosen", 0, Q, "a"), ("rejected", 0, Q, "r")]),
        ({"chosen_key": "text", "rejected_key": "response"}, [("chosen", 0, Q, "t"), ("rejected", 0, Q, "a")]),
        (
            {"chosen_key": "text", "response_key": "p"},
            [("chosen", 0, Q, "t"), ("rejected", 0, Q, "r"), (None, 0, Q, "o")],
        ),
        ({"messages_key": "m"}, [(None, 0, Q, "m")]),
    ],
)
def test_keys_win(config, expected):
    assert labels(ROW, **config) == expected


@pytest.mark.parametrize(
    ("row", "config", "expected"),
    [
        ({"story": "a"}, {"response_key": "story"}, [(None, 0, [], "a")]),
        ({"m": [*Q, assistant("a")]}, {"response_key": "m"}, ONE),
        ({"m": [*Q, assistant("a")], "better": "b"}, {"chosen_key": "better", "messages_key": "m"}, None),
        ({"dialog": Q, "best": "a", "worst": "b"},
         {"messages_key": "dialog", "chosen_key": "best", "rejected_key": "worst"}, PAIR),
        ({"c": HH + "a", "r": HH + "b"}, {"chosen_key": "c", "rejected_key": "r"}, PAIR),
    ],
)  # fmt: skip
def test_keys_without_a_prompt(row, config, expected):
    if expected is None:
        assert labels(row, **config)[0][3] == "b"
    else:
        assert labels(row, **config) == expected


def test_keys_that_are_nowhere_are_refused():
    rows = [{"question": "q", "model": {"solution": "a"}}]
    for config, key in (({"prompt_key": "promt"}, "prompt_key"), ({"response_key": ["model.x"]}, "response_key")):
        with pytest.raises(
            InputError, match=rf"f\.jsonl: input\.{key} = .*columns: question, model\.solution"
        ) as raised:
            detect(rows, InputConfig(**config), "f.jsonl")
        assert str(next(iter(config.values()))).strip("[]'") in str(raised.value)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"question": "q", "truth": "t", "6b": {"ok": True, "solution": "a"}},
            ["question, truth, 6b.ok, 6b.solution", "input.prompt_key=question --set input.response_key=6b.solution"],
        ),
        (
            {"chosen": "a", "rejected": "b"},
            ["nearest is chosen + rejected", "no column holds a prompt", "Give the rows a"],
        ),
        ({"chosen": "a", "rejected": "b", "said": "q"}, ["--set input.prompt_key=said (there"]),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, ["no column holds a prompt", "Give the rows a"]),
        ({"question": "q", "answer": 4}, ["nearest is question + answer", "'answer' is a number", "No keys make"]),
        ({"messages": "hello"}, ["a list of messages is due", "--set input.response_key=messages (there"]),
        (
            {"prompt": "q", "picture": "p"},
            ["'prompt' would be a prompt", "input.prompt_key=prompt --set input.response_key=pic"],
        ),
        ({"a": 1}, ["Columns: a", "no column has a name", "No keys make"]),
        ({}, ["Columns: none", "No keys make"]),
    ],
)
def test_what_fits_nothing_is_explained(row, words):
    with pytest.raises(InputError) as raised:
        detect([row], InputConfig(), "some/file.jsonl")
    for word in ["some/file.jsonl", *words]:
        assert word in str(raised.value)


def test_no_rows_at_all():
    with pytest.raises(InputError, match="not one row"):
        detect([], InputConfig())


def test_the_first_rows_may_be_bad_or_ragged():
    good = {"prompt": "q", "response": "a"}
    assert detect([{"x": 1}, {"prompt": 5}, good], InputConfig()).describe() == "prompt + response (text, 1)"
    assert detect([{"prompt": "q", "response": ""}], InputConfig()).prompt == "prompt"


SURROGATE = json.loads('"x\\ud800"')
PROMPT_ERRORS = [
    ({}, "missing_column"),
    ({"prompt": None}, "null"),
    ({"prompt": 5}, "not_text"),
    ({"prompt": True}, "not_text"),
    ({"prompt": date(2020, 1, 1)}, "not_text"),
    ({"prompt": SURROGATE}, "lone_surrogate"),
    ({"prompt": [None]}, "null"),
    ({"prompt": ["q"]}, "bad_message"),
    ({"prompt": [{"text": "q"}]}, "bad_message"),
    ({"prompt": [{"role": "user"}]}, "bad_message"),
    ({"prompt": [said("user", None)]}, "null"),
    ({"prompt": [said("user", 3)]}, "not_text"),
    ({"prompt": [said("user", [{"type": "image"}])]}, "not_text"),
    ({"prompt": [said("narrator", "q")]}, "bad_role"),
    ({"prompt": [said("user", SURROGATE)]}, "lone_surrogate"),
]


@pytest.mark.parametrize(("row", "reason"), PROMPT_ERRORS)
def test_a_bad_prompt_fails_the_row(row, reason):
    shape = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
    with pytest.raises(RowError) as raised:
        shape.normalise("f", 0, {"chosen": "a", "rejected": "b", **row})
    assert raised.value.reason == reason
    raised.value.detail.encode()


RESPONSE_ERRORS = [
    (..., "missing_column"),
    (None, "null"),
    (5, "not_text"),
    ("", "empty_response"),
    ([], "empty_response"),
    ({}, "empty_response"),
    (SURROGATE, "lone_surrogate"),
    ([None], "null"),
    ([assistant("")], "empty_response"),
    ([assistant(None)], "null"),
    ([user("x")], "no_assistant_turn"),
    ([assistant("a"), said("narrator", "b")], "bad_role"),
    ([assistant("a"), user("y"), {"role": "assistant"}], "bad_message"),
    ([assistant("a"), "b"], "bad_message"),
    ([[]], "no_assistant_turn"),
]


@pytest.mark.parametrize(("value", "reason"), RESPONSE_ERRORS)
def test_a_bad_response_leaves_its_siblings(value, reason):
    shape = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
    row = {"prompt": "q", "chosen": "a", "rejected": value}
    if value is ...:
        del row["rejected"]
    sample = shape.normalise("f", 0, row)
    assert [turn.id for turn in turns(sample)] == ["f:0:chosen:0:0"]
    failure = next(failure for failure in sample.failed if failure.error.reason == reason)
    assert (failure.preference, failure.index) in {("rejected", 0), ("rejected", 1)}
    failure.error.detail.encode()
    assert pickle.loads(pickle.dumps(sample)).failed[0].error.reason == sample.failed[0].error.reason


def test_every_response_is_scored_or_failed_under_its_own_index():
    row = {"prompt": "q", "responses": ["a", None, "", "b", 4]}
    sample = detect([row], InputConfig()).normalise("f", 0, row)
    assert [response.index for response in sample.responses] == [0, 3]
    assert sorted((f.index, f.error.reason) for f in sample.failed) == [
        (1, "null"),
        (2, "empty_response"),
        (4, "not_text"),
    ]


def test_half_a_pair_that_carries_its_prompt_survives():
    shape = Shape((("chosen", "chosen"), ("rejected", "rejected")))
    sample = shape.normalise("f", 0, {"chosen": HH + "a", "rejected": None})
    assert [(turn.prompt, turn.response) for turn in turns(sample)] == [(Q, "a")]
    assert [(f.preference, f.error.reason) for f in sample.failed] == [("rejected", "null")]


def test_a_conversation_without_the_assistant_fails():
    good = {"messages": [*Q, assistant("a")]}
    shape = detect([good], InputConfig())
    for messages, reason in ((Q, "no_assistant_turn"), ([], "empty_response"), (None, "null"), ("hi", "bad_message")):
        sample = shape.normalise("f", 0, {"messages": messages})
        assert sample.responses == [] and [f.error.reason for f in sample.failed] == [reason]


def test_a_prompt_that_the_responses_contradict_fails_the_row():
    row = {"prompt": "other", "chosen": [*Q, assistant("a")], "rejected": [*Q, assistant("b")]}
    shape = Shape((("chosen", "chosen"), ("rejected", "rejected")), prompt="prompt")
    with pytest.raises(RowError, match="prompt_mismatch"):
        shape.normalise("f", 0, row)


@pytest.mark.parametrize(
    ("row", "which", "expected"),
    [
        ({"messages": [*LONG, assistant("a")]}, "last", [(1, 3, "a")]),
        ({"messages": [*LONG, assistant("a")]}, "all", [(0, 1, "x"), (1, 3, "a")]),
        ({"messages": [assistant("hi"), *LONG, assistant("a")]}, "all", [(0, 0, "hi"), (1, 2, "x"), (2, 4, "a")]),
        ({"prompt": LONG, "response": [assistant("a"), user("z"), assistant("b")]}, "last", [(2, 5, "b")]),
        ({"prompt": LONG, "response": [assistant("a"), user("z"), assistant("b")]}, "all", [(1, 3, "a"), (2, 5, "b")]),
        ({"text": "a"}, "all", [(0, 0, "a")]),
        (
            {"chosen": [*LONG, assistant("a")], "rejected": [*LONG, assistant("b")]},
            "all",
            [(1, 3, "a"), (1, 3, "b")],
        ),
    ],
)
def test_turns(row, which, expected):
    sample = detect([row], InputConfig(turns=which)).normalise("f", 0, row)
    found = list(turns(sample, which))
    assert [(turn.turn, len(turn.prompt), turn.response) for turn in found] == expected
    assert len({turn.id for turn in found}) == len(found)
    assert all(turn.id.endswith(f":{turn.turn}") and turn.rubric is None for turn in found)


def test_columns_without_a_place_become_json():
    row = {
        "text": "a", "b": b"ab", "raw": b"\xff", "day": date(2020, 1, 2), "at": datetime(2020, 1, 2, 3), 
        "d": Decimal("1.50"), "t": (1, 2), "map": {1: b"x"}, "none": None, "nan": float("nan"),
    }  # fmt: skip
    extra = detect([row], InputConfig()).normalise("f", 0, row).extra
    assert repr(extra.pop("nan")) == "nan"
    assert extra == {
        "b": "ab", "raw": "/w==", "day": "2020-01-02", "at": "2020-01-02T03:00:00", "d": "1.50", "t": [1, 2],
        "map": {"1": "x"}, "none": None,
    }  # fmt: skip
    json.dumps(extra)


def test_a_row_that_nests_too_deeply_is_a_row_error():
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(RowError, match="too_deep"):
        Shape((("text", None),), plain=True).normalise("f", 0, {"text": "a", "deep": deep})
