"""What an error offers of columns that are not recognised, followed as it stands: the text that is then asked and answered."""

import json
from typing import Any

import pytest
from corpora import Row, obeyed, plan, scored, write

from pipeline.errors import InputError

ASKED, GOOD, BAD = "Which is bigger?", "A whale.", "A mouse."
TALK = [{"role": "user", "content": ASKED}, {"role": "assistant", "content": GOOD}]
PAIR = [("chosen", ASKED, GOOD), ("rejected", ASKED, BAD)]
BOTH = [(None, ASKED, GOOD), (None, ASKED, BAD)]
ROWS: dict[str, tuple[Row, Any]] = {
    "webgpt comparisons": (
        {"question": {"dataset": "eli5", "id": "x", "full_text": ASKED}, "quotes_0": {"title": ["t"], "extract": ["e"]},
         "answer_0": GOOD, "tokens_0": {"prefix": [1]}, "score_0": 1.0, "quotes_1": {"title": ["t"], "extract": []},
         "answer_1": BAD, "tokens_1": {"prefix": []}, "score_1": -1.0}, BOTH,
    ),
    "helpsteer3": (
        {"domain": "general", "language": "english", "context": TALK[:1], "response1": GOOD, "response2": BAD,
         "overall_preference": -2, "individual_preference": [{"score": -2, "feedback1": "f", "feedback2": "g"}]},
        "what column 'overall_preference' means is not proven",
    ),
    "lmsys-chat": ({"conversation_id": "c", "model": "m", "conversation": TALK, "turn": 1}, [(None, ASKED, GOOD)]),
    "openai preferences": (
        {"input": {"messages": TALK[:1], "tools": []}, "preferred_output": TALK[1:],
         "non_preferred_output": [{"role": "assistant", "content": BAD}]}, PAIR,
    ),
    "argilla preferences": (
        {"source": "s", "instruction": ASKED, "chosen_response": GOOD, "rejected_response": BAD, "chosen_avg_rating": 5}, PAIR,
    ),
    "accepted and rejected": ({"question": ASKED, "accepted": GOOD, "rejected": BAD}, PAIR),
    "capital letters": ({"Prompt": ASKED, "Chosen": GOOD, "Rejected": BAD}, PAIR),
    "spaces before names": ({"prompt": ASKED, " chosen": GOOD, " rejected": BAD}, PAIR),
    "distilabel generations": (
        {"instruction": ASKED, "generation_models": ["a", "b"], "generations": [GOOD, BAD], "ratings": [5, 1],
         "rationales": ["x", "y"]}, BOTH,
    ),
    "label studio": (
        {"id": 1, "data": {"prompt": ASKED, "answer1": GOOD, "answer2": BAD},
         "annotations": [{"id": 1, "result": [{"value": {"selected": "left"}, "type": "pairwise"}]}]}, BOTH,
    ),
    "names of columns behind two texts": (
        {"prompt": ASKED, "response_a": GOOD, "response_b": BAD, "chosen": 0, "rejected": 1},
        "what column 'chosen' means is not proven",
    ),
    "an id beside the response": ({"prompt_id": "x", "response": GOOD}, [(None, "", GOOD)]),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_advice_gives_the_right_columns(name, tmp_path):
    row, expected = ROWS[name]
    write(tmp_path, [row])
    with pytest.raises(InputError) as raised:
        plan(tmp_path)
    [way] = obeyed(str(raised.value))
    if isinstance(expected, str):
        with pytest.raises(InputError, match=expected):
            plan(tmp_path, way)
        return
    [turns] = scored(plan(tmp_path, way))
    assert [(t.preference, "".join(m["content"] for m in t.prompt), t.response) for t in turns] == expected


@pytest.mark.parametrize(
    "row",
    [
        {"labeler": "l", "question": {"problem": ASKED}, "label": {"steps": [{"chosen_completion": 0}], "finish_reason": "x"}},
        {"prompt": ASKED, "category": "c", "category_id": 1},
        {"message_tree_id": "1", "prompt": {"message_id": "1", "text": ASKED, "role": "prompter", "replies": []}},
        {"custom_id": "1", "status": "done", "body": {"choices": [{"index": 0, "message": TALK[1]}]}},
        {"a": "x", "b": "y"},
    ],
)  # fmt: skip
def test_a_column_whose_name_says_nothing_is_not_offered(row, tmp_path):
    write(tmp_path, [row])
    with pytest.raises(InputError) as raised:
        plan(tmp_path)
    assert obeyed(str(raised.value)) == []
    assert "mend" in str(raised.value) and json.dumps(next(iter(row))).strip('"') in str(raised.value)
