"""Two outputs and a label that says which is better: stated, proven, known of a layout, or refused."""

import json
import re

import pytest
from corpora import obeyed, plan, preferences, write

from pipeline.config import InputConfig
from pipeline.corpus import Shape, detect, turns
from pipeline.errors import ConfigError, InputError, RowError

JUDGE_BENCH = InputConfig(response_key=["response_A", "response_B"], label_key="label")
LLM_BAR = InputConfig(response_key=["output_1", "output_2"], label_key="label")


def judge_bench(label):
    return {
        "pair_id": "p", "original_id": "1", "source": "mmlu-pro-law", "question": "q", "response_model": "m",
        "response_A": "x", "response_B": "y", "label": label,
    }  # fmt: skip


def llm_bar(label):
    return {"input": "q", "output_1": "x", "output_2": "y", "label": label}


def two(first, second, label, name="label"):
    """A stranger's row: the better is x where the first column is meant, y where the second is."""
    return {"prompt": "q", first: "x", second: "y", name: label}


def stated(first, second, name="label", **keys):
    return InputConfig(response_key=[first, second], label_key=name, **keys)


def chosen(config, rows):
    """Of each row the better text, or the reason of its error."""
    shape = detect(rows, config, "f")
    found = []
    for number, row in enumerate(rows):
        try:
            sample = shape.normalise("f", number, row)
        except RowError as error:
            found.append(error.reason)
            continue
        by = {turn.preference: (turn.response, turn.response_index) for turn in turns(sample)}
        assert by.keys() == {"chosen", "rejected"} and {index for _, index in by.values()} == {0}
        found.append(by["chosen"][0])
    return found


FIRST = [
    "A", "a", "A>B", "a > b", "A>>B", "[[A]]", "[[A>>B]]", "model_a", "first", "response_A", "Response_a", " A ",
]  # fmt: skip
SECOND = ["B", "b", "B>A", "B>>A", "[[B]]", "[[b>a]]", "model_b", "Second", "response_B"]
NEITHER = [
    "C",
    "A=B",
    "B=A",
    "A = B",
    "tie",
    "Tie",
    "[[C]]",
    "[[A=B]]",
    "tie (bothbad)",
    "both",
    "Draw",
    "equal",
    "neither",
]
UNKNOWN = ["", None, "A B", "A<B", 3, 0, 1, 1.5, True, ["A"], {"a": 1}, "[A]", "x y"]


@pytest.mark.parametrize("label", FIRST)
def test_the_first_is_better(label):
    assert chosen(JUDGE_BENCH, [judge_bench(label)]) == ["x"]


@pytest.mark.parametrize("label", SECOND)
def test_the_second_is_better(label):
    assert chosen(JUDGE_BENCH, [judge_bench(label)]) == ["y"]


@pytest.mark.parametrize("label", NEITHER)
def test_neither_is_better(label):
    assert chosen(JUDGE_BENCH, [judge_bench("B"), judge_bench(label)]) == ["y", "no_preference"]


@pytest.mark.parametrize("label", UNKNOWN)
def test_a_label_that_says_nothing_is_quoted(label):
    shape = detect([judge_bench("A")], JUDGE_BENCH)
    with pytest.raises(RowError, match="bad_label") as raised:
        shape.normalise("f", 0, judge_bench(label))
    assert repr(label) in raised.value.detail and "'label'" in raised.value.detail


def test_judge_bench_layout():
    row = judge_bench("B>A")
    shape = detect([row], JUDGE_BENCH)
    assert shape.describe() == "question + response_A + response_B + label (judgebench: text, 1 each)"
    sample = shape.normalise("f", 0, row)
    assert sample.extra == {k: row[k] for k in ("pair_id", "original_id", "source", "response_model", "label")}
    assert [(r.preference, r.messages[0]["content"]) for r in sample.responses] == [("rejected", "x"), ("chosen", "y")]
    assert sample.prompt == [{"role": "user", "content": "q"}]


@pytest.mark.parametrize("kind", [int, float, str, lambda n: f" {n}.0 "])
def test_the_digit_in_a_columns_name_is_proof_in_any_spelling(kind):
    rows = [llm_bar(kind(1)), llm_bar(kind(2)), llm_bar(kind(1))]
    assert chosen(LLM_BAR, rows) == ["x", "y", "x"]
    backwards = InputConfig(response_key=["output_2", "output_1"], label_key="label")
    assert chosen(backwards, rows) == ["x", "y", "x"]


@pytest.mark.parametrize("kind", [int, float, str])
def test_numbers_that_are_in_no_columns_name_are_refused(kind):
    for rows in (
        [llm_bar(kind(1)), llm_bar(kind(0))],
        [judge_bench(kind(1)), judge_bench(kind(2))],
        [judge_bench(kind(1))],
    ):
        with pytest.raises(InputError, match=r"not proven.*input\.label_values="):
            detect(rows, LLM_BAR if "output_1" in rows[0] else JUDGE_BENCH)


def test_one_foreign_value_in_any_row_of_any_file_refuses_the_run(tmp_path):
    write(tmp_path, [llm_bar(1)] * 300, "a.jsonl")
    path = write(tmp_path, [llm_bar(2)] * 200 + [llm_bar(0)], "b.jsonl")
    with pytest.raises(InputError, match=r"b\.jsonl, row 200: column 'label' says '0'") as raised:
        plan(tmp_path, LLM_BAR)
    for way in obeyed(str(raised.value), LLM_BAR):
        plan(tmp_path, way)
    write(tmp_path, [llm_bar(2)] * 200 + [llm_bar(None)], path.name)  # a row without a label disproves nothing
    assert preferences(plan(tmp_path, LLM_BAR))[-2:] == [("y", "x"), "bad_label"]


def test_letters_name_columns_whatever_their_order():
    assert chosen(InputConfig(response_key=["response_B", "response_A"], label_key="label"), [judge_bench("A")]) == [
        "x"
    ]


def test_columns_by_name_go_before_letters():
    config = InputConfig(response_key=["b", "a"], label_key="better")
    assert chosen(config, [{"prompt": "q", "b": "x", "a": "y", "better": "a"}]) == ["y"]


def test_nested_columns_and_conversations():
    config = InputConfig(response_key=["r.first", "r.second"], label_key="human.winner")
    row = {"prompt": "q", "r": {"first": "x", "second": "y"}, "human": {"winner": "model_b"}}
    assert chosen(config, [row]) == ["y"]
    talk = {
        side: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]
        for side, text in [("conversation_a", "x"), ("conversation_b", "y")]
    }
    config = InputConfig(response_key=["conversation_a", "conversation_b"], label_key="winner")
    assert chosen(config, [{**talk, "winner": "model_b"}, {**talk, "winner": "tie"}]) == ["y", "no_preference"]
    sample = detect([{**talk, "winner": "model_b"}], config).normalise("f", 0, {**talk, "winner": "model_a"})
    assert sample.prompt == [{"role": "user", "content": "q"}]


def test_an_empty_response_leaves_its_sibling():
    row = {**llm_bar(1), "output_2": ""}
    sample = detect([llm_bar(1)], LLM_BAR).normalise("f", 0, row)
    assert [r.preference for r in sample.responses] == ["chosen"]
    assert [(f.preference, f.error.reason) for f in sample.failed] == [("rejected", "empty_response")]


@pytest.mark.parametrize(
    "given", [None, "answer_a", ["answer_a"], ["answer_a"] * 2, ["answer_a", "answer_b", "prompt"]]
)
def test_a_label_needs_two_columns(given):
    row = two("answer_a", "answer_b", "A")
    with pytest.raises(InputError, match=r"f: input\.label_key = 'label' chooses between two columns") as raised:
        detect([row], InputConfig(response_key=given, label_key="label"), "f")
    [obedient] = obeyed(str(raised.value), InputConfig(label_key="label"))
    assert chosen(obedient, [row]) == ["x"]


def test_a_label_and_chosen_columns_contradict():
    config = InputConfig(**{**JUDGE_BENCH.model_dump(), "chosen_key": "response_A"})
    with pytest.raises(InputError, match="one or the other"):
        detect([judge_bench("A")], config)


def test_a_label_column_that_is_not_there_or_is_none():
    with pytest.raises(InputError, match=r"input\.label_key = 'winner' is in none"):
        detect([judge_bench("A")], InputConfig(**{**JUDGE_BENCH.model_dump(), "label_key": "winner"}))
    with pytest.raises(InputError, match="'pair_id' means is not proven: it says p"):
        detect([judge_bench("A")], InputConfig(**{**JUDGE_BENCH.model_dump(), "label_key": "pair_id"}))


MEANS = {"1": "human_a", "0": "human_b"}


@pytest.mark.parametrize("labels", [[1, 0], [1.0, 0.0], ["1", "0"], ["1 ", " 0"], ["1.0", "0.0"]])
def test_a_stated_meaning_holds_in_every_spelling(labels):
    config = stated("human_a", "human_b", label_values=MEANS | {"-1": "tie"})
    rows = [two("human_a", "human_b", label) for label in [*labels, -1, "-1.0", 2, None, True]]
    assert chosen(config, rows) == ["x", "y", "no_preference", "no_preference", "bad_label", "bad_label", "bad_label"]


@pytest.mark.parametrize("labels", [[True, False], ["true", "False"], ["TRUE", "FALSE"]])
def test_booleans_are_stated_as_words(labels):
    config = stated("a", "b", label_values={"true": "a", "false": "b"})
    assert chosen(config, [two("a", "b", label) for label in labels]) == ["x", "y"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"1": "human_c"}, r"'1' means 'human_c', which is none of the responses; there are human_a, human_b, and tie"),
        ({"1": "human_a", "1.0": "human_b"}, "two meanings"),
        ({"A": "human_a", "B": "human_b"}, r"knows a, b, and column 'label' says 1, 0"),
    ],
)
def test_a_stated_meaning_that_cannot_be_is_refused(values, says):
    with pytest.raises(InputError, match=says):
        detect(
            [two("human_a", "human_b", 1), two("human_a", "human_b", 0)],
            stated("human_a", "human_b", label_values=values),
        )


def test_grades_have_a_threshold_a_side_and_a_band():
    config = stated("a", "b", "strength", label_threshold=0, label_above="b")
    rows = [two("a", "b", grade, "strength") for grade in (-3, "2", 0, 1.0, None, "much")]
    assert chosen(config, rows) == ["x", "y", "no_preference", "y", "bad_label", "bad_label"]
    wide = stated("a", "b", "strength", label_threshold=3, label_above="a", label_tie=0.5)
    assert chosen(wide, [two("a", "b", grade, "strength") for grade in (1, 2.5, 3.5, 4, 5)]) == [
        "y", "no_preference", "no_preference", "x", "x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"label_values": {"1": "a"}, "label_threshold": 1, "label_above": "a"}, "not both"),
        ({"label_threshold": 1}, "belong together"),
        ({"label_tie": 1}, "label_threshold"),
        ({"score_key": "s", "rank_key": "r"}, "not both"),
        ({"min_margin": 1}, "pairs_from"),
        ({"pairs_from": "threshold"}, "belong together"),
    ],
)
def test_keys_that_contradict_are_refused(keys, says):
    with pytest.raises(ValueError, match=says):
        InputConfig(**keys)
    with pytest.raises(InputError, match="is none of two responses"):
        detect([two("a", "b", 1)], stated("a", "b", label_threshold=0, label_above="c"))
    for lone in ({"label_values": MEANS}, {"label_threshold": 0, "label_above": "a"}, {"pairs_from": "best_worst"}):
        with pytest.raises(ConfigError, match=r"give input\."):
            detect([{"prompt": "q", "response": "a"}], InputConfig(**lone))


def test_labels_that_begin_late_are_read_where_they_are_stated():
    rows = [two("a", "b", None)] * 20
    shape = detect(rows, stated("a", "b", label_values={"1": "a"}))
    sample = shape.normalise("f", 20, two("a", "b", 1))
    assert [r.preference for r in sample.responses] == ["chosen", "rejected"]
    with pytest.raises(InputError, match="'label' says 'A'; give input"):
        detect([two("a", "b", "A")], stated("a", "b", label_threshold=0, label_above="a"))


def test_one_hot_columns_are_one_label():
    def row(a, b, tie):
        return {"prompt": "q", "answer_a": "x", "answer_b": "y", "win_a": a, "win_b": b, "win_tie": tie}

    config = stated("answer_a", "answer_b", ["win_a", "win_b", "win_tie"])
    rows = [
        row(1, 0, 0),
        row(0, 1, 0),
        row(0, 0, 1),
        row("0", "1.0", "0"),
        row(1, 1, 0),
        row(0, 0, 0),
        row(True, False, False),
    ]
    assert chosen(config, rows) == ["x", "y", "no_preference", "y", "bad_label", "bad_label", "x"]
    other = stated("answer_a", "answer_b", ["win_a", "win_b"], label_values={"win_a": "answer_b", "win_b": "answer_a"})
    assert chosen(other, rows[:2]) == ["y", "x"]


def test_a_label_may_choose_from_a_list():
    config = InputConfig(response_key="answers", label_key="best", label_values={"0": "0", "1": "1", "2": "2"})
    row = {"prompt": "q", "answers": ["x", "y", "z"], "best": 1}
    sample = detect([row], config).normalise("f", 0, row)
    assert [(r.preference, r.index) for r in sample.responses] == [("rejected", 0), ("chosen", 0), ("rejected", 1)]
    with pytest.raises(RowError, match="bad_label"):
        detect([row], config).normalise("f", 0, {**row, "answers": ["x"]})
    with pytest.raises(InputError, match="not proven"):  # 1 may be the first or the second
        detect([row], InputConfig(response_key="answers", label_key="best"))


# A stranger's file, its keys, and of each row the better text or a reason; or a sentence where it is refused.
STRANGERS = {
    "columns the other way about": (
        [two("response_b", "response_a", "A")], stated("response_b", "response_a"), ["y"],
    ),
    "floats for digits": ([two("r0", "r1", 1.0), two("r0", "r1", 0.0)], stated("r0", "r1"), ["y", "x"]),
    "spaces around digits": ([two("r_0", "r_1", "1 "), two("r_0", "r_1", " 0")], stated("r_0", "r_1"), ["y", "x"]),
    "digits that are all 1": ([two("r_0", "r_1", 1)] * 25, stated("r_0", "r_1"), ["y"] * 25),
    "the label says response_0": ([two("response_0", "response_1", "response_0")], stated("response_0", "response_1"), ["x"]),
    "the label counts from 0, the columns from 1": (
        [two("response_1", "response_2", "response_1"), two("response_1", "response_2", "response_0")],
        stated("response_1", "response_2"), "says 'response_0' in one of its rows",
    ),
    "booleans": ([two("answer_a", "answer_b", True)], stated("answer_a", "answer_b"), "not proven: it says true"),
    "0 and 1 beside letters": (
        [two("text_a", "text_b", 0), two("text_a", "text_b", 1)], stated("text_a", "text_b"), "not proven: it says 0, 1",
    ),
    "-1, 0 and 1": (
        [two("a", "b", n) for n in (-1, 0, 1)], stated("a", "b"), r"not proven: it says -1, 0, 1.*label_threshold=0",
    ),
    "1 to 5": (
        [two("r1", "r2", n) for n in (1, 2, 5)], stated("r1", "r2"), r"says '5' in one of its rows.*input\.label_threshold=3",
    ),
    "a score of 1 and 2": (
        [two("r1", "r2", n, "score") for n in (1, 2)], stated("r1", "r2", "score"), "'score' means is not proven",
    ),
    "a graded preference of 1 and 2": (
        [two("r1", "r2", n, "overall_preference") for n in (1, 2)], stated("r1", "r2", "overall_preference"), "not proven",
    ),
    "school grades": ([two("text_a", "text_b", g, "grade") for g in "AB"], stated("text_a", "text_b", "grade"), "not proven"),
    "preferred: A": ([two("answer_a", "answer_b", "A", "preferred")], stated("answer_a", "answer_b", "preferred"), ["x"]),
    "winner: model_b": ([two("answer_a", "answer_b", "model_b", "winner")], stated("answer_a", "answer_b", "winner"), ["y"]),
    "the writer's name": ([two("gpt4_text", "claude_text", "claude")], stated("gpt4_text", "claude_text"), ["y"]),
    "letters beside digits": ([two("output_2", "output_1", "A")], stated("output_2", "output_1"), ["y"]),
    "left or right of columns that say neither": (
        [two("mine", "theirs", "left")], stated("mine", "theirs"), "not proven: it says left",
    ),
    "letters beside columns without": ([two("mine", "theirs", "A")], stated("mine", "theirs"), "not proven: it says a"),
    "a third letter": (
        [two("text_a", "text_b", "A"), two("text_a", "text_b", "D")], stated("text_a", "text_b"), "says 'd' in one",
    ),
    "some rows without a label": (
        [two("r_a", "r_b", None), two("r_a", "r_b", "b"), two("r_a", "r_b", ""), two("r_a", "r_b", float("nan"))],
        stated("r_a", "r_b"), ["bad_label", "y", "bad_label", "bad_label"],
    ),
    "no row with a label": ([two("r_a", "r_b", None)], stated("r_a", "r_b"), "not proven: it is empty"),
    "a confidence": ([two("r_0", "r_1", 1, "confidence")], stated("r_0", "r_1", "confidence"), "not proven"),
    "an index of chosen and one of rejected": (
        [{"prompt": "q", "responses": ["x", "y"], "chosen": 1, "rejected": 0}], InputConfig(), "'chosen' is a number",
    ),
    "a place in a list": (
        [{"prompt": "q", "answers": ["x", "y"], "best": 1}], InputConfig(response_key="answers", label_key="best"),
        r"'input\.label_values=\{\"0\" = \"0\", \"1\" = \"1\"\}' where 0 means the first, or .* where 1 means the first",
    ),
    "no keys at all": (
        [two("response_a", "response_b", "a", "winner")], InputConfig(),
        r"input\.response_key=\[\"response_a\", \"response_b\"\].*--set input\.label_key=winner",
    ),
    "a list that holds one": (
        [{"prompt": "q", "answers": ["x"], "best": 1}], InputConfig(response_key="answers", label_key="best"),
        "chooses between two columns",
    ),
    "conversations with ratings": (
        [{"id": "1", "conv_A": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}], "conv_A_rating": 1,
          "conv_B": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "y"}], "conv_B_rating": 2}],
        InputConfig(), r"--set 'input\.response_key=\[\"conv_A\", \"conv_B\"\]' \(there are also .*input\.score_key",
    ),
    "scores that nobody stated": (
        [{"question": "q", "answers": [{"text": "x", "pm_score": 1}, {"text": "y", "pm_score": 2}]}], InputConfig(),
        r"--set input\.prompt_key=question --set input\.response_key=answers\.text",
    ),
    "shp with a third label": (
        [{"history": "q", "human_ref_A": "x", "human_ref_B": "y", "labels": n} for n in (1, 0, 2)], InputConfig(),
        "says '2' in one of its rows",
    ),
    "a place that a layout does not know": (  # the advice is the layout's own reading, which is now stated
        [{"info": {"post": "p"}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": n} for n in (0, 1, 2)], InputConfig(),
        "says '2' in one of its rows",
    ),
    "places from 1": (
        [{"info": {"post": "p"}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 2}], InputConfig(),
        r"Say it: --set 'input\.label_values=\{\"1\" = \"0\", \"2\" = \"1\"\}' where 1 means the first$",
    ),
    "two labels that may disagree": (
        [{"prompt": "q", "response_0": "x", "response_1": "y", "better_response_id": 0, "safer_response_id": 1}],
        InputConfig(),
        "may disagree on which response is better",
    ),
    "texts that need a prompt": ([{"chosen": "x", "rejected": "y"}], InputConfig(), "no column holds a prompt"),
    "context that is no text": (
        [{"question": "q", "context": ["a", "b"], "answer": "x"}], InputConfig(), r"--set input\.context_key=",
    ),
    "a history that is none": (
        [{"prompt": "q", "history": ["I said", "you said"], "response": "x"}], InputConfig(), r"--set input\.history_key=",
    ),
    "messages that are no JSON": (
        [{"prompt": "q", "response": "[{'role': 'assistant', 'content': 'x'}]"}], InputConfig(), "is no JSON",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STRANGERS)
def test_a_strangers_file_is_right_or_refused(name, tmp_path):
    rows, config, expected = STRANGERS[name]
    write(tmp_path, rows)
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            plan(tmp_path, config)
    else:
        found = preferences(plan(tmp_path, config))
        assert [each if isinstance(each, str) else each[0] for each in found] == expected


@pytest.mark.parametrize("name", [name for name, (*_, expected) in STRANGERS.items() if isinstance(expected, str)])
def test_advice_that_is_obeyed_removes_the_error(name, tmp_path):
    rows, config, _ = STRANGERS[name]
    write(tmp_path, rows)
    with pytest.raises(InputError) as raised:
        plan(tmp_path, config)
    ways = obeyed(str(raised.value), config)
    assert ways or re.search("No keys make|Give the rows|a list of two or more", str(raised.value))
    for way in ways:
        try:
            plan(tmp_path, way)
        except InputError as error:
            assert _first_words(error) != _first_words(raised.value), str(error)


def _first_words(error):
    return str(error)[:60]


@pytest.mark.parametrize("name", [name for name, (*_, expected) in STRANGERS.items() if isinstance(expected, list)])
def test_nothing_depends_on_the_order_of_response_key_or_of_columns(name, tmp_path):
    rows, config, expected = STRANGERS[name]
    write(tmp_path, [dict(reversed(row.items())) for row in rows])
    assert isinstance(config.response_key, list)
    found = preferences(plan(tmp_path, config.model_copy(update={"response_key": config.response_key[::-1]})))
    assert [each if isinstance(each, str) else each[0] for each in found] == expected


def test_a_label_column_in_only_some_files_is_refused(tmp_path):
    write(tmp_path, [two("r_a", "r_b", "a")], "a.jsonl")
    write(tmp_path, [{"prompt": "q", "r_a": "x", "r_b": "y"}], "b.jsonl")
    with pytest.raises(InputError, match=r"b\.jsonl: input\.label_key = 'label' is in none"):
        plan(tmp_path, stated("r_a", "r_b"))


def test_a_shape_with_a_rule_is_plain_data():
    rules = [
        (JUDGE_BENCH, judge_bench("A")),
        (stated("a", "b", label_threshold=0, label_above="a"), two("a", "b", 1)),
        (InputConfig(response_key=["a", "b"], score_key=["x", "y"], pairs_from="best_rest"),
         {"prompt": "q", "a": "1", "b": "2", "x": 1, "y": 2}),
    ]  # fmt: skip
    for config, row in rules:
        shape = detect([row], config)
        assert Shape.from_json(json.loads(json.dumps(shape.to_json()))) == shape


def test_shapes_of_stores_from_before_labels_load():
    old = {
        "responses": [["chosen", "chosen"], ["rejected", "rejected"]], "prompt": "prompt", "context": None, "system": None,
        "plain": False, "turns": "last", "note": "text, 1 each",
    }  # fmt: skip
    shape = Shape.from_json(old)
    assert shape.label is None and shape.describe() == "prompt + chosen + rejected (text, 1 each)"
    transcript = {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "b"}
    assert shape.normalise("f", 0, transcript).prompt[0]["content"] == transcript["prompt"]  # as it was read then
