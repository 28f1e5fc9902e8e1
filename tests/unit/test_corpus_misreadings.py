"""Files that look like a known arrangement and are another: refused with keys that give the right one, or read as meant."""

import pytest
from corpora import Row, obeyed, plan, preferences, scored, write

from pipeline.config import BestOfNConfig, InputConfig
from pipeline.corpus import detect
from pipeline.errors import InputError, RowError
from pipeline.evaluation.benchmarks.best_of_n import BestOfN

ASKED, GOOD, BAD = "Which is bigger?", "A whale.", "A mouse."


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def two(label: object, **other: object) -> Row:
    return {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "winner": label, **other}


AB = InputConfig(response_key=["response_a", "response_b"], label_key="winner")


def test_names_of_columns_are_no_responses(tmp_path):
    rows = [
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "chosen": f"response_{x}", "rejected": f"response_{y}"}
        for x, y in ("ab", "ba")
    ]
    write(tmp_path, rows)
    with pytest.raises(InputError, match="hold the names of columns") as raised:
        plan(tmp_path)
    [way] = obeyed(str(raised.value))
    assert preferences(plan(tmp_path, way)) == [(GOOD, BAD), (BAD, GOOD)]


def test_steps_of_one_answer_are_no_alternatives(tmp_path):
    write(tmp_path, [{"prompt": ASKED, "completions": [GOOD, BAD], "labels": [True, False]}])
    with pytest.raises(InputError, match="steps of one answer") as raised:
        plan(tmp_path)
    [way] = obeyed(str(raised.value))
    assert [turn.response for turn in scored(plan(tmp_path, way))[0]] == [GOOD, BAD]
    write(tmp_path, [{"prompt": ASKED, "completions": [GOOD, BAD], "labels": ["x"]}])  # not one for each
    assert len(scored(plan(tmp_path))[0]) == 2


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"text": ASKED, "response_1": GOOD, "response_2": BAD, "winner": "response_2"}, (BAD, GOOD)),
        ({"text": ASKED, "accepted": GOOD, "rejected": BAD}, (GOOD, BAD)),
    ],
)
def test_a_text_that_is_a_prompt_is_no_plain_text(row, right, tmp_path):
    write(tmp_path, [row])
    with pytest.raises(InputError, match="'text' may be plain text, or the prompt of") as raised:
        plan(tmp_path)
    first, second = obeyed(str(raised.value))
    assert preferences(plan(tmp_path, first)) == [right]
    [[turn]] = scored(plan(tmp_path, second))
    assert (turn.prompt, turn.response) == ([], ASKED)


def test_a_text_beside_a_prompt_is_its_response_or_stands_alone(tmp_path):
    write(tmp_path, [{"prompt": ASKED, "text": GOOD, "format": "story"}])
    with pytest.raises(InputError, match="the response to 'prompt'") as raised:
        plan(tmp_path)
    [way] = obeyed(str(raised.value))
    [[turn]] = scored(plan(tmp_path, way))
    assert (turn.prompt[0]["content"], turn.response) == (ASKED, GOOD)
    assert "take column 'prompt' out" in str(raised.value)
    write(tmp_path, [{"instruction": ASKED, "output": GOOD, "text": f"### {ASKED} {GOOD}"}])
    assert scored(plan(tmp_path))[0][0].response == GOOD


def test_messages_of_a_tree_are_no_plain_text(tmp_path):
    tree = [("1", None, "prompter", ASKED), ("2", "1", "assistant", GOOD)]
    write(tmp_path, [{"message_id": i, "parent_id": p, "role": r, "text": t} for i, p, r, t in tree])
    with pytest.raises(InputError, match="one message of a conversation") as raised:
        plan(tmp_path)
    [way] = obeyed(str(raised.value))
    assert len(scored(plan(tmp_path, way))) == 2


def test_the_winner_of_the_first_turn_is_judged_by_the_first_answers(tmp_path):
    """mt_bench_human_judgments: both turns stand in every row, and `turn` says which of them `winner` is of."""
    both = {"conversation_a": talk(ASKED, "a1", "And?", "a2"), "conversation_b": talk(ASKED, "b1", "And?", "b2")}
    about = {"question_id": 1, "model_a": "x", "model_b": "y", "judge": "expert_0"}
    write(tmp_path, [{**about, **both, "winner": w, "turn": t} for w, t in (("model_b", 1), ("model_a", 2))])
    assert preferences(plan(tmp_path)) == [("b1", "a1"), ("a2", "b2")]
    row = {**about, **both, "winner": "model_a", "turn": 1}
    sample = detect([row], InputConfig()).normalise("f", 0, {**row, "turn": 3})
    assert [failed.error.reason for failed in sample.failed] == ["bad_message"] * 2
    assert "'turn' says 3 and column 'conversation_a' has 2 answers" in sample.failed[0].error.detail


def test_a_call_of_a_function_is_a_call_of_a_tool(tmp_path):
    call = {"name": "weigh", "arguments": "{}"}
    for content in ("Let me see.", None):
        asked = [*talk(ASKED), {"role": "assistant", "content": content, "function_call": call}]
        write(
            tmp_path, [{"messages": [*asked, {"role": "function", "name": "weigh", "content": "9"}, talk("", GOOD)[1]]}]
        )
        [[turn]] = scored(plan(tmp_path))
        assert turn.prompt[1] == {"role": "assistant", "content": content or "", "tool_calls": [call]}


@pytest.mark.parametrize(
    "media", [{"images": ["x"]}, {"image": "x.png"}, {"images": [{"bytes": b"".hex(), "path": "p"}]}]
)
def test_a_row_with_a_picture_is_an_error(media):
    row = {"prompt": ASKED, "chosen": GOOD, "rejected": BAD}
    shape = detect([row], InputConfig())
    with pytest.raises(RowError, match="not_text"):
        shape.normalise("f", 0, row | media)
    for none in ({"images": []}, {"image": None}, {"image": float("nan")}, {"images": [None]}):
        assert len(shape.normalise("f", 0, row | none).responses) == 2


def test_labels_of_several_people_are_refused(tmp_path):
    for label in (["response_a"], {"value": "response_a"}):
        write(tmp_path, [two(label)])
        with pytest.raises(InputError, match="a label is one value; write one into each row"):
            plan(tmp_path, AB)


def test_a_value_that_names_no_response_is_not_offered_as_one(tmp_path):
    write(tmp_path, [two(label) for label in ("a", "tie", "unsure", "d", "b")])
    with pytest.raises(InputError, match="says 'd' in one of its rows") as raised:
        plan(tmp_path, AB)
    first, _ = obeyed(str(raised.value), AB)
    assert first.label_values == {"a": "response_a", "b": "response_b"}
    assert preferences(plan(tmp_path, first)) == [(GOOD, BAD), "no_preference", "bad_label", "bad_label", (BAD, GOOD)]


def test_a_label_with_a_quotation_mark_can_be_typed(tmp_path):
    write(tmp_path, [two(label) for label in ("it's x", "it's y")])
    with pytest.raises(InputError) as raised:
        plan(tmp_path, AB)
    assert """--set 'input.label_values={"it'"'"'sx" = "response_a", "it'"'"'sy" = "response_b"}'""" in str(
        raised.value
    )


def test_several_columns_that_may_hold_the_response_are_not_chosen_between() -> None:
    row = {"problem": "1 + 1?", "solution": "It is 2.", "answer": "2"}
    with pytest.raises(
        InputError, match=r"columns answer and solution may each hold the response.*response_key=answer"
    ):
        detect([row], InputConfig(), "f")
    assert detect([row], InputConfig(response_key="solution"), "f").responses == (("solution", None),)
    assert len(detect([row], InputConfig(response_key=["answer", "solution"]), "f").responses) == 2
    sampled = {"prompt": "1 + 1?", "responses": ["2"], "truncated": [False], "answer": "2"}
    assert detect([sampled], InputConfig(), "f").responses == (("responses", None),)


def test_the_right_answer_of_best_of_n_is_no_response() -> None:
    row = {"prompt": "1 + 1?", "responses": ["2", "3"], "answer": "2"}
    shape = BestOfN(BestOfNConfig(answer_key="answer")).shape([row], InputConfig(), "f")
    assert shape.responses == (("responses", None),)


def test_a_choice_without_a_rejected_response_is_not_passed_over() -> None:
    row = {"prompt": ASKED, "responses": [GOOD, BAD], "chosen": 0}
    with pytest.raises(InputError, match=r"column 'chosen' says 0 beside 'responses'.*input.response_key=responses"):
        detect([row], InputConfig(), "f")
    assert detect([row], InputConfig(response_key="responses"), "f").responses == (("responses", None),)


def test_texts_in_a_json_list_are_several_where_the_columns_name_says_so() -> None:
    """As a cell of CSV has them."""
    row = {"prompt": ASKED, "responses": '["A whale.", "A mouse."]'}
    sample = detect([row], InputConfig(), "f").normalise("f", 0, row)
    assert [response.messages[-1]["content"] for response in sample.responses] == [GOOD, BAD]
    one = {"prompt": "As JSON, please.", "response": '["A whale."]'}
    [response] = detect([one], InputConfig(), "f").normalise("f", 0, one).responses
    assert response.messages[-1]["content"] == '["A whale."]'
