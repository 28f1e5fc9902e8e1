"""What single values say: columns by dotted path, messages and transcripts as text, the words of labels."""

import json

import pytest

from pipeline.corpus import columns
from pipeline.corpus import messages as read
from pipeline.corpus.labels.words import TIE, TIES, is_scale, parts, tokens, vocabulary, word
from pipeline.errors import RowError

ROW = {
    "a": [{"x": 1, "y": "one"}, {"y": "two"}],
    "b": {"c": {"d": 3}},
    "e.f": 4,
    "empty": [],
    "m": [{"role": "user", "content": "q"}],
}


def test_a_path_reaches_into_every_object_of_a_list():
    assert columns.lookup(ROW, "a.y") == ["one", "two"] and columns.lookup(ROW, "a.x") == [1, None]
    assert (
        columns.lookup(ROW, "b.c.d") == 3 and columns.lookup(ROW, "e.f") == 4 and columns.lookup(ROW, "empty.x") == []
    )
    for path in ("a.z", "b.x", "a.y.z", "g"):
        assert not columns.has(ROW, path)
        with pytest.raises(RowError, match=f"missing_column.*{path}"):
            columns.lookup(ROW, path)
    assert columns.lookup({"a": {"y": ["one", "two"]}}, "a.y") == ["one", "two"]  # a struct of lists


def test_what_is_used_goes_and_its_siblings_stay():
    assert columns.without(ROW, "a.y")["a"] == [{"x": 1}, {}]
    assert "a" not in columns.without({"a": [{"y": 1}, {"y": 2}], "b": 1}, "a.y")
    assert columns.without(ROW, "a")["b"] is ROW["b"] and ROW["a"][0] == {"x": 1, "y": "one"}


def test_paths_of_objects_in_lists_are_named_and_messages_are_values():
    assert columns.paths([ROW]) == ["a.x", "a.y", "b.c.d", "e.f", "empty", "m"]


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    "value",
    [
        MESSAGES, MESSAGES[0], [MESSAGES, MESSAGES], [{"content": "x" * 9000, "role": "user"}],
        [{"from": "human", "value": "q"}], [{"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}],
    ],
)  # fmt: skip
def test_messages_as_json_are_what_they_were(value):
    assert read.decoded(json.dumps(value), "x") == read.decoded("\n " + json.dumps(value, indent=1), "x") == value


@pytest.mark.parametrize(
    "text",
    [
        "hello", "[1, 2]", '["a"]', '{"from": "Paris", "to": "London"}', '{"role": "admin"}', "[broken", "{role: x}", "",
        "[Verse 1]", 'Say {"role": "user", "content": "q"}', '[{"name": "f"}]', '{"answer": "the role: a content: b"}',
    ],
)  # fmt: skip
def test_other_text_stays_text(text):
    assert read.decoded(text, "x") == text


@pytest.mark.parametrize(
    "text",
    ["[{'role': 'user', 'content': 'q'}]", '[{"role": "user", "content": "q"}', '[{"role": "user" "content": "q"}]'],
)
def test_messages_that_cannot_be_parsed_are_an_error(text):
    with pytest.raises(RowError, match=r"bad_message.*no JSON.*double quotes"):
        read.decoded(text, "x")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("\n\nHuman: q\n\nAssistant:", True), ("\n\nHuman: q\n\nAssistant: ", True),
        ("\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant:", True),
        ("\n\nHuman: q", False), ("Human: q\n\nAssistant:", False), ("\n\nHuman: q\n\nAssistant: a", False),
        ("See:\n\nHuman: q\n\nAssistant:", False), ("q", False),
    ],
)  # fmt: skip
def test_a_prompt_is_a_transcript_by_its_whole_pattern(text, whole):
    assert read.is_transcript_prompt(text) is whole


def test_what_follows_a_transcript_is_its_next_turns():
    prompt = "\n\nHuman: q\n\nAssistant:"
    assert read.continued(prompt, " a ", "x") == [{"role": "assistant", "content": "a"}]
    longer = read.continued(prompt, "a\n\nHuman: r\n\nAssistant: b\n\nHuman: s", "x")
    assert [message["content"] for message in longer] == ["a", "r", "b"]
    assert read.continued(prompt, "", "x") == [{"role": "assistant", "content": ""}]


@pytest.mark.parametrize(
    ("history", "reason"),
    [("hello", "bad_message"), ([["a"]], "bad_message"), ([["a", None]], "null"), ([["a", 1]], "not_text")],
)
def test_a_history_that_is_none_is_an_error(history, reason):
    with pytest.raises(RowError) as raised:
        read.to_history(history, "x")
    assert raised.value.reason == reason


def test_histories():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert (
        read.to_history([["a", "b"]], "x")
        == read.to_history('[["a", "b"]]', "x")
        == read.to_history(turns, "x")
        == turns
    )
    assert read.to_history(None, "x") == read.to_history([], "x") == read.to_history("[]", "x") == []


@pytest.mark.parametrize(("asked", "said"), [(["q"], ["a", "b"]), ([], []), ("q", ["a"]), (["q"], "a"), (["q"], 3)])
def test_turns_that_do_not_match_are_an_error(asked, said):
    with pytest.raises(RowError, match="bad_message"):
        read.interleaved(asked, said, "x")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1, "1"), (1.0, "1"), ("1", "1"), (" 1.0 ", "1"), ("01", "1"), (-1, "-1"), ("-0", "0"), (1.5, "1.5"), (True, "true"),
        ("False ", "false"), (None, ""), ("", ""), (float("nan"), ""), ("NaN", ""), ("[[A]]", "a"), ("A > B", "a>b"),
        ("inf", "inf"), ("1_0", "1_0"), ("Tie (bothbad)", "tie(bothbad)"),
    ],
)  # fmt: skip
def test_a_label_has_one_spelling(value, said):
    assert word(value) == said


def test_names_are_taken_apart():
    assert tokens("betterResponse_id2") == ["better", "response", "id", "2"]
    assert parts("human_ref_A", "human_ref_B") == ("a", "b") and parts("responseA", "responseB") == ("a", "b")
    assert parts("r.first", "r.second") == ("first", "second") and parts("chosen_text", "other") is None
    assert is_scale("overallScore", digits=False) and is_scale("preference_strength", digits=False)
    assert is_scale("human_preference", digits=True) and not is_scale("human_preference", digits=False)
    assert is_scale("is_first_better", digits=True) and not is_scale("better_response_id", digits=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [("response_A", "response_B"), ("output_1", "output_2"), ("response_0", "response_1"), ("r.first", "r.second"), ("a", "b"),
     ("llama_answer", "gpt_answer"), ("gpt4_text", "claude_text"), ("answer_b", "answer_c"), ("left", "right")],
)  # fmt: skip
def test_no_word_depends_on_the_order_in_which_columns_are_given(first, second):
    known = vocabulary(first, second)
    assert known == vocabulary(second, first) and set(known.values()) == {first, second}
    assert known[first.lower()] == first and known[second.lower()] == second
    digits = {said for said in known if said.isdigit()}
    assert digits == {part for part in (parts(first, second) or ()) if part.isdigit()}
    assert TIE in TIES and not any(said == TIE for said in known)
