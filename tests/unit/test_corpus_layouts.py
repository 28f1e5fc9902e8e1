"""Every layout that people publish, by a small file in it: what is scored after what, and which response is better.

Rows are made up here; sources are the corpora's cards or the code of their authors.
"""

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpora import Row, plan, preferences, scored, write

from pipeline.config import InputConfig
from pipeline.corpus import detect
from pipeline.corpus.samples import Message
from pipeline.errors import InputError, RowError
from pipeline.rewards.labellers.prompts import prompt_of, prompt_shape


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


class Layout(NamedTuple):
    source: str
    rows: list[Row]
    expected: list[Any]  # of each row [(preference, prompt, response), ...], in the order of scoring, or a reason
    keys: Mapping[str, Any] = MappingProxyType({})
    says: str = ""  # within what is shown of the file


Q = [user("Which is bigger?")]
GOOD, BAD = "A whale.", "A mouse."
PAIR = [("chosen", Q, GOOD), ("rejected", Q, BAD)]
ASKED = "Which is bigger?"
HH = f"\n\nHuman: {ASKED}\n\nAssistant:"
LONG = [user("Hello"), assistant("Hi."), *Q]
HH_LONG = f"\n\nHuman: Hello\n\nAssistant: Hi.\n\nHuman: {ASKED}\n\nAssistant:"
FIRST, SECOND = [("chosen", Q, GOOD), ("rejected", Q, BAD)], [("rejected", Q, GOOD), ("chosen", Q, BAD)]


def shp(label: Any) -> Row:
    return {
        "post_id": "p", "domain": "askscience", "history": ASKED, "human_ref_A": GOOD, "human_ref_B": BAD, "labels": label,
        "score_A": 9 if label else 2, "score_B": 2 if label else 9, "score_ratio": 4.5,
    }  # fmt: skip


def pku(better: Any, safer: Any = None) -> Row:
    row = {"prompt": ASKED, "response_0": GOOD, "response_1": BAD, "better_response_id": better}
    return row if safer is None else row | {"safer_response_id": safer, "is_response_0_safe": True}


def ultrafeedback(*scores: float) -> Row:
    answers = [
        {"response": text, "overall_score": score, "model": "m", "annotations": {"honesty": {"Rating": "4"}}}
        for text, score in zip((GOOD, BAD, "A horse."), scores, strict=False)
    ]
    return {"source": "s", "instruction": ASKED, "models": ["m"], "completions": answers}


def summaries(choice: int, info: Row | None = None) -> Row:
    info = info or {"id": "i", "post": "Long story.", "title": "Help", "subreddit": "advice", "article": None}
    texts = [{"text": GOOD, "policy": "sup", "note": None}, {"text": BAD, "policy": "ref", "note": None}]
    return {"info": info, "summaries": texts, "choice": choice, "worker": "w", "split": "train"}


POST = [user("SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: Long story.\n\nTL;DR:")]
ARTICLE = [user("Article:\nNews.\n\nTL;DR:\n")]


def arena(winner: str) -> Row:
    talk = {f"conversation_{side}": [*Q, assistant(text)] for side, text in (("a", GOOD), ("b", BAD))}
    return {"question_id": "q", "model_a": "x", "model_b": "y", "winner": winner, **talk}


def arena_55k(a: int, b: int, tie: int, text: str = json.dumps([ASKED])) -> Row:
    one, other = (
        (json.dumps([GOOD]), json.dumps([BAD])) if text == json.dumps([ASKED]) else ('["1", "2"]', '["1", "3"]')
    )
    return {
        "id": 1, "model_a": "x", "model_b": "y", "prompt": text, "response_a": one, "response_b": other,
        "winner_model_a": a, "winner_model_b": b, "winner_tie": tie,
    }  # fmt: skip


def judge_bench(label: str) -> Row:
    return {
        "pair_id": "p", "original_id": "1", "source": "mmlu", "question": ASKED, "response_model": "m",
        "response_A": GOOD, "response_B": BAD, "label": label,
    }  # fmt: skip


def llm_bar(label: Any) -> Row:
    return {"input": ASKED, "output_1": GOOD, "output_2": BAD, "label": label}


def ours(text: str) -> list[Message]:
    return [*Q, assistant(text)]


LAYOUTS = {
    "hh-rlhf": Layout(
        "huggingface.co/datasets/Anthropic/hh-rlhf",
        [{"chosen": f"{HH_LONG} {GOOD}", "rejected": f"{HH_LONG} {BAD}"}],
        [[("chosen", LONG, GOOD), ("rejected", LONG, BAD)]],
        says="transcripts that carry the prompt",
    ),
    "full-hh-rlhf": Layout(
        "huggingface.co/datasets/Dahoas/full-hh-rlhf",
        [{"prompt": HH_LONG, "chosen": f" {GOOD}", "rejected": f" {BAD}", "response": f" {GOOD}"}],
        [[("chosen", LONG, GOOD), ("rejected", LONG, BAD)]],
        says="prompt + chosen + rejected (transcripts, 1 each)",
    ),
    "full-hh-rlhf, whole transcripts beside the prompt": Layout(
        "the same, with responses that repeat it",
        [{"prompt": HH_LONG, "chosen": f"{HH_LONG} {GOOD}", "rejected": f"{HH_LONG} {BAD}"}],
        [[("chosen", LONG, GOOD), ("rejected", LONG, BAD)]],
    ),
    "a transcript after its own question": Layout(
        "the same, with the question as text",
        [{"prompt": ASKED, "chosen": f"{HH} {GOOD}", "rejected": f"{HH} {BAD}"}],
        [PAIR],
    ),
    "shp": Layout(
        "huggingface.co/datasets/stanfordnlp/SHP", [shp(1), shp(0), shp(1)], [FIRST, SECOND, FIRST],
        says="shp: text, 1 each",
    ),
    "shp, by its scores": Layout(
        "the same", [shp(1), shp(0)], [FIRST, SECOND],
        {"score_key": ["score_A", "score_B"], "pairs_from": "best_worst", "min_margin": 1},
    ),
    "shp, only ones": Layout("the same", [shp(1), shp(1)], [FIRST, FIRST]),
    "shp, only zeros": Layout("the same", [shp(0)], [SECOND]),
    "shp, a few columns": Layout(
        "the same", [{k: v for k, v in shp(1).items() if k in ("history", "human_ref_A", "human_ref_B", "labels")}], [FIRST]
    ),
    "shp, keys stated": Layout(
        "the same", [shp(1), shp("0"), shp(1.0)], [FIRST, SECOND, FIRST],
        {"prompt_key": "history", "response_key": ["human_ref_A", "human_ref_B"], "label_key": "labels"},
    ),
    "shp, columns stated the other way about": Layout(
        "the same", [shp(1), shp(0)], [FIRST[::-1], SECOND[::-1]],
        {"response_key": ["human_ref_B", "human_ref_A"], "label_key": "labels"},
    ),
    "pku-saferlhf, the more helpful": Layout(
        "huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF", [pku(1, 0), pku(0, 1)], [SECOND, FIRST],
        {"label_key": "better_response_id"},
    ),
    "pku-saferlhf, the safer": Layout(
        "the same", [pku(1, 0), pku(0, 1)], [FIRST, SECOND], {"label_key": "safer_response_id"}
    ),
    "pku-saferlhf-single-dimension": Layout(
        "huggingface.co/datasets/PKU-Alignment/PKU-SafeRLHF-single-dimension", [pku(1), pku(1)], [SECOND, SECOND]
    ),
    "ultrafeedback": Layout(
        "huggingface.co/datasets/openbmb/UltraFeedback", [ultrafeedback(7.5, 3.0)],
        [[(None, Q, GOOD), (None, Q, BAD)]], says="ultrafeedback: text, 2 scored",
    ),
    "ultrafeedback, best against worst": Layout(
        "the same", [ultrafeedback(7.5, 3.0, 5.0), ultrafeedback(3.0, 3.0), ultrafeedback(1.0, 2.0)],
        [[*PAIR, (None, Q, "A horse.")], [(None, Q, GOOD), (None, Q, BAD)], SECOND],
        {"pairs_from": "best_worst"}, says="2 rows prefer a response, 1 do not",
    ),
    "ultrafeedback, best against all others": Layout(
        "the same", [ultrafeedback(7.5, 3.0, 7.0)], [[*PAIR, (None, Q, "A horse.")]],
        {"pairs_from": "best_rest", "min_margin": 1},
    ),
    "ultrafeedback, all pairs": Layout(
        "the same", [ultrafeedback(7.5, 3.0, 5.0)], [[(None, Q, GOOD), (None, Q, BAD), (None, Q, "A horse.")]],
        {"pairs_from": "all", "min_margin": 2}, says="2 pairs of two responses each",
    ),
    "ultrafeedback, by another number": Layout(
        "the same", [{**ultrafeedback(7.5, 3.0), "completions": [
            {"response": GOOD, "overall_score": 7.5, "rating": "2"}, {"response": BAD, "overall_score": 3.0, "rating": "3"}]}],
        [SECOND], {"score_key": "completions.rating", "pairs_from": "best_worst"},
    ),
    "ultrafeedback, a rating that is not there": Layout(
        "the same", [{**ultrafeedback(7.5, 3.0), "completions": [
            {"response": GOOD, "overall_score": 7.5, "rating": "2"}, {"response": BAD, "overall_score": 3, "rating": "NA"}]}],
        [[(None, Q, GOOD), (None, Q, BAD)]], {"score_key": "completions.rating", "pairs_from": "best_worst"},
    ),
    "ultrafeedback, by a threshold": Layout(
        "the same", [ultrafeedback(7.5, 3.0, 5.0)], [[*PAIR, ("chosen", Q, "A horse.")]],
        {"pairs_from": "threshold", "score_threshold": 5},
    ),
    "ultrafeedback_binarized": Layout(
        "huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized",
        [{"prompt": ASKED, "prompt_id": "1", "chosen": ours(GOOD), "rejected": ours(BAD), "messages": ours(GOOD),
          "score_chosen": 8.0, "score_rejected": 2.0}],
        [PAIR],
    ),
    "summarize_from_feedback": Layout(
        "github.com/openai/summarize-from-feedback",
        [summaries(1), summaries(0), summaries(1, {"id": "i", "post": None, "article": "News."})],
        [[("rejected", POST, GOOD), ("chosen", POST, BAD)], [("chosen", POST, GOOD), ("rejected", POST, BAD)],
         [("rejected", ARTICLE, GOOD), ("chosen", ARTICLE, BAD)]],
    ),
    "chatbot_arena_conversations": Layout(
        "huggingface.co/datasets/lmsys/chatbot_arena_conversations",
        [arena("model_b"), arena("model_a"), arena("tie"), arena("tie (bothbad)")],
        [SECOND, FIRST, "no_preference", "no_preference"],
    ),
    "lmsys-arena-human-preference-55k": Layout(
        "huggingface.co/datasets/lmsys/lmsys-arena-human-preference-55k",
        [arena_55k(0, 1, 0), arena_55k(1, 0, 0), arena_55k(0, 0, 1), arena_55k(1, 0, 0, '["first", "second"]')],
        [SECOND, FIRST, "no_preference",
         [("chosen", [user("first"), assistant("1"), user("second")], "2"),
          ("rejected", [user("first"), assistant("1"), user("second")], "3")]],
    ),
    "orca_dpo_pairs": Layout(
        "huggingface.co/datasets/Intel/orca_dpo_pairs",
        [{"system": "Be brief.", "question": ASKED, "chosen": GOOD, "rejected": BAD}],
        [[(kind, [system("Be brief."), *Q], text) for kind, _, text in PAIR]],
    ),
    "distilabel pairs": Layout(
        "huggingface.co/datasets/argilla/distilabel-intel-orca-dpo-pairs",
        [{"system": "", "input": ASKED, "chosen": GOOD, "rejected": BAD, "generations": [GOOD, BAD], "rating": [9.0, 2.0]}],
        [PAIR],
    ),
    "distilabel generations": Layout(
        "the same, by its ratings", [{"instruction": ASKED, "generations": [BAD, GOOD], "rating": ["2", "9.5"]}],
        [[("rejected", Q, BAD), ("chosen", Q, GOOD)]],
        {"response_key": "generations", "score_key": "rating", "pairs_from": "best_worst"},
    ),
    "skywork-reward-preference": Layout(
        "huggingface.co/datasets/Skywork/Skywork-Reward-Preference-80K-v0.2",
        [{"chosen": ours(GOOD), "rejected": ours(BAD), "source": "s"}], [PAIR],
    ),
    "tulu-3 preference mixture": Layout(
        "huggingface.co/datasets/allenai/llama-3.1-tulu-3-8b-preference-mixture",
        [{"id": "1", "prompt": ASKED, "chosen": ours(GOOD), "rejected": ours(BAD)}], [PAIR],
    ),
    "kto": Layout(
        "huggingface.co/docs/trl/dataset_formats",
        [{"prompt": ASKED, "completion": GOOD, "label": True}, {"prompt": ASKED, "completion": BAD, "label": False}],
        [[(None, Q, GOOD)], [(None, Q, BAD)]], says="prompt + completion + label (kto: text, 1)",
    ),
    "trl, explicit prompt": Layout(
        "huggingface.co/docs/trl/dataset_formats", [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD}], [PAIR]
    ),
    "trl, conversational": Layout(
        "the same", [{"prompt": Q, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)]}], [PAIR]
    ),
    "trl, implicit prompt": Layout("the same", [{"chosen": ours(GOOD), "rejected": ours(BAD)}], [PAIR]),
    "trl, tools": Layout(
        "the same",
        [{"prompt": Q, "chosen": [assistant(GOOD)], "rejected": [assistant(BAD)],
          "tools": json.dumps([{"type": "function", "function": {"name": "weigh"}}])}],
        [PAIR],
    ),
    "llama-factory alpaca": Layout(
        "github.com/hiyouga/LLaMA-Factory, data/README.md",
        [{"instruction": "Which is", "input": "bigger?", "output": GOOD, "system": "Be brief.",
          "history": [["Hello", "Hi."], ["And?", "Yes."]]}],
        [[(None, [system("Be brief."), user("Hello"), assistant("Hi."), user("And?"), assistant("Yes."),
                  user("Which is\n\nbigger?")], GOOD)]],
        says="system + history + instruction + input + output",
    ),
    "llama-factory alpaca, a pair": Layout(
        "the same",
        [{"instruction": ASKED, "input": "", "chosen": GOOD, "rejected": BAD, "history": [["Hello", "Hi."]]},
         {"instruction": ASKED, "input": "", "chosen": GOOD, "rejected": BAD, "history": []}],
        [[("chosen", LONG, GOOD), ("rejected", LONG, BAD)], PAIR],
    ),
    "llama-factory sharegpt": Layout(
        "the same",
        [{"conversations": [{"from": "human", "value": ASKED}], "chosen": {"from": "gpt", "value": GOOD},
          "rejected": {"from": "gpt", "value": BAD}}],
        [PAIR],
    ),
    "llama-factory sharegpt, tool calls": Layout(
        "the same",
        [{"conversations": [
            {"from": "human", "value": ASKED}, {"from": "function_call", "value": '{"name": "weigh", "arguments": {}}'},
            {"from": "observation", "value": "big"}, {"from": "gpt", "value": GOOD}]}],
        [[(None, [*Q, {"role": "assistant", "content": "", "tool_calls": [{"name": "weigh", "arguments": {}}]},
                  {"role": "tool", "content": "big"}], GOOD)]],
    ),
    "answers with scores": Layout(
        "made up, by stated keys",
        [{"question": ASKED, "answers": [{"text": BAD, "pm_score": 1}, {"text": GOOD, "pm_score": 8}]}],
        [[("rejected", Q, BAD), ("chosen", Q, GOOD)]],
        {"response_key": "answers.text", "score_key": "answers.pm_score", "pairs_from": "best_worst"},
    ),
    "answers with ranks": Layout(
        "made up, by stated keys", [{"question": ASKED, "answers": [{"answer": BAD, "rank": 3}, {"answer": GOOD, "rank": 1}]}],
        [[("rejected", Q, BAD), ("chosen", Q, GOOD)]],
        {"response_key": "answers.answer", "rank_key": "answers.rank", "pairs_from": "best_worst"},
    ),
    "reward-bench": Layout(
        "huggingface.co/datasets/allenai/reward-bench",
        [{"prompt": ASKED, "chosen": GOOD, "rejected": BAD, "subset": "mt-bench-easy", "id": 1, "chosen_model": "x"}], [PAIR],
    ),
    "reward-bench-2": Layout(
        "huggingface.co/datasets/allenai/reward-bench-2",
        [{"id": "1", "prompt": ASKED, "chosen": [GOOD], "rejected": [BAD, "A cat."], "num_correct": 1, "num_incorrect": 2,
          "subset": "Factuality"}],
        [[*PAIR, ("rejected", Q, "A cat.")]],
    ),
    "rm-bench": Layout(
        "github.com/THU-KEG/RM-Bench",
        [{"id": "1", "prompt": ASKED, "chosen": ["a", "b", "c"], "rejected": ["d", "e", "f"], "domain": "chat"}],
        [[("chosen", Q, "a"), ("chosen", Q, "b"), ("chosen", Q, "c"), ("rejected", Q, "d"), ("rejected", Q, "e"),
          ("rejected", Q, "f")]],
    ),
    "judgebench": Layout("github.com/ScalerLab/JudgeBench", [judge_bench("B>A"), judge_bench("A>B")], [SECOND, FIRST]),
    "llmbar": Layout("github.com/princeton-nlp/LLMBar", [llm_bar(2), llm_bar(1)], [SECOND, FIRST]),
    "thoughts in the text": Layout(
        "reasoning corpora", [{"question": ASKED, "answer": f"<think>Weigh them.</think>{GOOD}"}],
        [[(None, Q, f"<think>Weigh them.</think>{GOOD}")]],
    ),
    "question with context": Layout(
        "huggingface.co/datasets/databricks/databricks-dolly-15k and others",
        [{"question": ASKED, "context": "Whales and mice.", "answer": GOOD}],
        [[(None, [user(f"{ASKED}\n\nWhales and mice.")], GOOD)]], says="question + context + answer",
    ),
    "messages as JSON": Layout(
        "CSV exports", [{"messages": json.dumps(ours(GOOD))}], [[(None, Q, GOOD)]], says="messages (conversations, 1)"
    ),
    "a pair as JSON": Layout(
        "CSV exports", [{"chosen": json.dumps(ours(GOOD)), "rejected": json.dumps(ours(BAD))}], [PAIR]
    ),
    "a prompt as JSON": Layout(
        "CSV exports", [{"prompt": json.dumps(Q), "chosen": GOOD, "rejected": BAD}], [PAIR]
    ),
    "plain text": Layout("TinyStories", [{"text": GOOD}], [[(None, [], GOOD)]]),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read(name, tmp_path):
    layout = LAYOUTS[name]
    write(tmp_path, layout.rows)
    inputs = plan(tmp_path, InputConfig(**layout.keys))
    found = [
        each if isinstance(each, str) else [(turn.preference, turn.prompt, turn.response) for turn in each]
        for each in scored(inputs)
    ]
    assert found == layout.expected
    assert layout.says in inputs[0].shape.describe()


TABULAR = [name for name, layout in LAYOUTS.items() if not any("tool" in key for key in (name, *layout.rows[0]))]


@pytest.mark.parametrize("name", TABULAR)
def test_a_layout_is_read_from_parquet_too(name, tmp_path):
    layout = LAYOUTS[name]
    labels = {"labels", "label"} & layout.rows[0].keys()
    rows = [row | {key: str(row[key]) for key in labels} for row in layout.rows]  # a column has one type
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus.parquet", row_group_size=1)
    found = [
        each if isinstance(each, str) else [(turn.preference, turn.prompt, turn.response) for turn in each]
        for each in scored(plan(tmp_path, InputConfig(**layout.keys)))
    ]
    assert found == layout.expected


def test_thoughts_beside_the_text_come_along(tmp_path):
    answer = {**assistant(GOOD), "reasoning_content": "Weigh them."}
    write(tmp_path, [{"messages": [*Q, answer]}])
    [[turn]] = scored(plan(tmp_path))
    assert turn.response == GOOD and turn.beside == {"reasoning_content": "Weigh them."}


def test_kto_keeps_its_label_as_a_boolean(tmp_path):
    write(tmp_path, [{"prompt": "q", "completion": "a", "label": label} for label in (True, False, "true", "False")])
    assert [each[0].extra for each in scored(plan(tmp_path))] == [
        {"label": value} for value in (True, False, True, False)
    ]


def test_scores_and_ranks_come_along_and_margins_too(tmp_path):
    write(tmp_path, [ultrafeedback(7.5, 3.0)])
    extras = [turn.extra for turn in scored(plan(tmp_path))[0]]
    assert [extra["response_score"] for extra in extras] == [7.5, 3.0]
    assert extras[0]["completions"][0]["annotations"] == {"honesty": {"Rating": "4"}}
    assert "response" not in extras[0]["completions"][0]
    write(tmp_path, [{"prompt": "q", "response_1": "x", "response_2": "y", "strength": -2}])
    config = InputConfig(
        response_key=["response_1", "response_2"], label_key="strength", label_threshold=0, label_above="response_2"
    )
    assert {turn.extra["label_margin"] for turn in scored(plan(tmp_path, config))[0]} == {2}


def test_both_labels_of_pku_mean_the_index(tmp_path):
    write(tmp_path, [pku(1, 0)])
    for label, better in (("better_response_id", BAD), ("safer_response_id", GOOD)):
        assert preferences(plan(tmp_path, InputConfig(label_key=label)))[0][0] == better


@pytest.mark.parametrize(
    "other",
    [
        {"response_0": "x", "response_1": "y", "better_response_id": 1, "safer_response_id": 0},
        {"completion": "x", "label": True},
        {"response_a": "x", "response_b": "y", "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
        {"context": "of the prompts' corpus", "history": [["a", "b"]]},
    ],
)
def test_what_sample_wrote_stays_prompt_and_responses(other, tmp_path):
    write(tmp_path, [{"prompt": ASKED, "responses": [GOOD, BAD], "truncated": [False, True], **other}])
    inputs = plan(tmp_path)
    assert inputs[0].shape.describe() == "prompt + responses (text, 2)"
    assert [(turn.preference, turn.prompt, turn.response) for turn in scored(inputs)[0]] == [
        (None, Q, GOOD),
        (None, Q, BAD),
    ]


ASKING = {
    "question with context": ({"question": ASKED, "context": "Whales."}, [user(f"{ASKED}\n\nWhales.")], False),
    "history": ({"instruction": ASKED, "history": [["Hello", "Hi."]]}, LONG, True),
    "a transcript": ({"prompt": HH_LONG}, LONG, True),
    "messages as JSON": ({"prompt": json.dumps(Q)}, Q, True),
    "shp": (shp(1), Q, False),
    "summarize_from_feedback": (summaries(1), POST, False),
    "chatbot_arena_conversations": (arena("tie"), Q, True),
}


@pytest.mark.parametrize("name", ASKING)
def test_sample_asks_what_label_reads(name):
    row, expected, conversational = ASKING[name]
    asked = prompt_of("f", 0, row, prompt_shape([row], InputConfig(), "f"))
    assert (asked.prompt, asked.conversational) == (expected, conversational)


def test_turns_without_answers_are_not_asked():
    with pytest.raises(InputError, match="a person's turns without the answers between them"):
        prompt_shape([arena_55k(1, 0, 0)], InputConfig(), "f")


def test_a_layout_that_is_named_must_be_there():
    with pytest.raises(InputError, match=r"input\.layout = 'spp' is not known; there are shp, "):
        detect([shp(1)], InputConfig(layout="spp"))
    with pytest.raises(InputError, match=r"not the layout shp of input\.layout: no column history, human_ref_A"):
        detect([pku(1)], InputConfig(layout="shp"))
    shape = detect([shp(1), shp(2)], InputConfig(layout="shp"))  # stated: another value is a bad row
    with pytest.raises(RowError, match="bad_label"):
        shape.normalise("f", 1, shp(2))


def test_a_context_that_is_no_part_of_the_prompt_stays_beside_it(tmp_path):
    write(
        tmp_path,
        [{"question": Q, "context": "Whales.", "answer": GOOD}, {"question": ASKED, "context": "", "answer": GOOD}],
    )
    first, second = scored(plan(tmp_path))
    assert first[0].prompt == second[0].prompt == Q and (first[0].extra, second[0].extra) == (
        {"context": "Whales."},
        {},
    )
