"""A sampled response is labelled, rewarded and trained on after exactly the tokens that it was asked with."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from chat_templates import TEMPLATES
from label_stores import label_store
from tiny import CHATML, save_model

from jobs.label.plan import check_sampled
from pipeline.config import InputConfig, LabelConfig, ModelConfig, SampleConfig, load_config_as
from pipeline.corpus import Shape, Shard, detect, find_files, plan_file
from pipeline.corpus.samples import Message
from pipeline.errors import ConfigError
from pipeline.models.generation import Generator
from pipeline.models.loading import load_model, load_tokenizer
from pipeline.models.questions import Question
from pipeline.models.scoring import Scorer
from pipeline.rewards.labellers import Endogenous, PromptSampler
from pipeline.rewards.labellers.prompts import prompt_shape, sampled
from pipeline.rl.config import RlConfig
from pipeline.rl.prompts import read_prompts
from pipeline.rl.rollout_store import RolloutStore, describe_rollouts
from pipeline.rl.rollouts import Group, Rollout
from pipeline.rl.sources import RewardMixture
from pipeline.store import Failure, Label, StoredInput
from pipeline.store.schema import labels_table
from pipeline.tokens import TokenizedTurn
from pipeline.training.config import TrainConfig
from pipeline.training.examples import find_examples
from pipeline.training.rows import RowReader

Row = dict[str, Any]
# As Qwen3's: asked, the policy may think; an answer that is rendered without thoughts stands behind a closed block.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last and '</think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK: list[Message] = [
    {"role": "user", "content": "ab ☃?"}, {"role": "assistant", "content": "cd"}, {"role": "user", "content": "and?"},
]  # fmt: skip
PROMPTS: list[Row] = [{"prompt": "What is it?"}, {"prompt": TALK, "level": 2}, {"prompt": "Hi", "system": "Be brief."}]
SHARD = Shard("a.jsonl", 0, 0, 9, 9, "0" * 64, 0, 10)


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("thinking"), THINKING)


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("chat"), CHATML)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("base"))


@dataclass(frozen=True)
class Written:
    """What a policy wrote: rows as `sample` writes them, and the sampler's log pi of each response."""

    rows: list[Row]
    logprobs: list[np.ndarray]


def written(model: Path, prompts: Sequence[Row] = PROMPTS, **tokens: Any) -> Written:
    config = SampleConfig.model_validate(
        {"model": {"name": str(model)}, "sample": {"num_responses": 3, "max_new_tokens": 24}, "tokens": tokens}
    )
    labeller = PromptSampler(config, config.model)
    shape = prompt_shape(prompts, config.input, "a.jsonl")
    prepared = labeller.prepare(SHARD, 0, enumerate(prompts), shape)
    generator = Generator(
        load_model(config.model, "cpu"), labeller.renderer.tokenizer, max_new_tokens=24, temperature=1.0,
        eos_token_ids=labeller.renderer.end_tokens(), logprobs=True,
    )  # fmt: skip
    answers = generator.generate(prepared.requests)
    labels, failures = labeller.finish(prepared, answers)
    assert not failures
    rows = [json.loads(json.dumps(each.row)) for each in sampled(labels_table(labels))]
    return Written(rows, [each.logprobs for answer in answers for each in answer])  # type: ignore[union-attr, misc]


def labelled(
    model: Path, rows: Sequence[Row], *, shape: Shape | None = None, **tokens: Any
) -> tuple[list[Label], list[Failure]]:
    config = LabelConfig.model_validate({"model": {"name": str(model)}, "tokens": tokens})
    labeller = Endogenous(config, config.model)
    prepared = labeller.prepare(SHARD, 0, enumerate(rows), shape or detect(rows, InputConfig()))
    return labeller.finish(prepared, Scorer(load_model(config.model, "cpu")).score(prepared.requests))


def by_id(labels: Sequence[Label]) -> dict[str, Label]:
    return {label.id: label for label in labels}


# Sampled, then labelled


@pytest.mark.parametrize("kind", ["thinking", "chat", "base"])
@pytest.mark.parametrize("tokens", [{}, {"system_prompt": "Kind, ab."}])
def test_label_gives_the_log_probabilities_of_the_sampler(
    kind: str, tokens: Row, request: pytest.FixtureRequest
) -> None:
    """Of the very tokens, cut-off responses and a system prompt of the policy's included."""
    model = request.getfixturevalue(kind)
    made = written(model, **tokens)
    labels, failures = labelled(model, made.rows)
    empty = [
        f"a.jsonl:{n}:response:{i}" for n, row in enumerate(made.rows) for i, r in enumerate(row["responses"]) if not r
    ]
    assert [failure.id for failure in failures] == empty
    found = by_id(labels)
    for number, row in enumerate(made.rows):
        for i, ids in enumerate(row["response_token_ids"]):
            label = found.get(f"a.jsonl:{number}:response:{i}:0")
            if label is None:
                continue
            assert list(label.token_ids) == ids and np.array_equal(label.prompt_token_ids, row["prompt_token_ids"])
            np.testing.assert_allclose(label.token_logprobs, made.logprobs[3 * number + i], atol=1e-5)
            assert "rendering" not in json.loads(label.extra_info)
    assert len(found) > 5


@pytest.mark.parametrize("name", ["stories260K", "soda-chat-3M", "babyllama-1M"])
def test_real_models_are_scored_as_they_were_sampled(shared: Path, name: str) -> None:
    """SentencePiece among them, whose text alone does not say whether a space comes first."""
    model = shared / "models" / name
    made = written(model, [{"prompt": "Tom had a ball. The ball was"}])
    labels, _ = labelled(model, made.rows)
    assert len(labels) == 3
    for label, logprobs in zip(labels, made.logprobs, strict=True):
        np.testing.assert_allclose(label.token_logprobs, logprobs, atol=1e-4)


def test_a_refusal_comes_before_anything_is_written(thinking: Path, chat: Path, tmp_path: Path, here: Any) -> None:
    source = tmp_path / "samples.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in written(thinking).rows))
    for further in ((), ("--dry-run",)):
        ran = here("label", "--model", chat, "--input", source, "--output", tmp_path / "labels", *further)
        assert ran.returncode == 2 and "samples.jsonl, row 0: the responses were sampled under another" in ran.stderr
        assert not (tmp_path / "labels").exists()
    ran = here(
        "label", "--model", chat, "--input", source, "--output", tmp_path / "labels", "--dry-run",
        "--set", "tokens.sampled=render",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr


def test_a_policy_that_thinks_is_not_asked_behind_closed_thoughts(thinking: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(thinking)
    made = written(thinking)
    for row, prompt in zip(made.rows, PROMPTS, strict=True):
        said = (
            prompt["prompt"] if isinstance(prompt["prompt"], list) else [{"role": "user", "content": prompt["prompt"]}]
        )
        system = [{"role": "system", "content": prompt["system"]}] if "system" in prompt else []
        asked = tokenizer.apply_chat_template([*system, *said], add_generation_prompt=True, tokenize=False)
        assert tokenizer.decode(row["prompt_token_ids"]) == asked and "</think>" not in asked
    scored, _ = labelled(thinking, made.rows, sampled="render")
    assert all("<think>\n\n</think>" in tokenizer.decode(label.prompt_token_ids) for label in scored)


def test_samples_say_that_their_prompt_opens_thoughts(thinking: Path, tmp_path: Path) -> None:
    """Only who asked knows it, and whoever looks for an answer behind the thoughts has to."""
    assert all("opens_thoughts" not in row for row in written(thinking, PROMPTS[:1]).rows)
    opening = save_model(
        tmp_path / "opening", THINKING.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
    )
    [row] = written(opening, [{**PROMPTS[0], "opens_thoughts": "a column of theirs"}]).rows
    assert row["opens_thoughts"] is True and row["input_opens_thoughts"] == "a column of theirs"
    labels, failures = labelled(opening, [row])
    assert not failures and all(label.extra_info and json.loads(label.extra_info)["opens_thoughts"] for label in labels)


def test_the_system_prompt_of_the_policy_is_in_the_row(chat: Path) -> None:
    rows = written(chat, system_prompt="Kind.").rows
    assert rows[0]["system"] == "Kind." and rows[1]["prompt"][0] == {"role": "system", "content": "Kind."}
    assert rows[2]["system"] == "Kind.\n\nBe brief."
    [label, *_], _ = labelled(chat, rows)
    assert label.prompt == [{"role": "system", "content": "Kind."}, {"role": "user", "content": "What is it?"}]


# Where the tokens cannot be used


def refusals(failures: Sequence[Failure]) -> list[tuple[str, str]]:
    return [(failure.id, failure.reason) for failure in failures]


WHOLE_ROWS = [(f"a.jsonl:{n}", "other_rendering") for n in range(3)]


def test_another_tokenizer_or_template_is_refused_and_render_scores_the_text(
    thinking: Path, chat: Path, base: Path, tmp_path: Path
) -> None:
    made = written(thinking)
    marked = save_model(tmp_path / "marked", THINKING)
    tok = transformers.AutoTokenizer.from_pretrained(marked)
    tok.add_tokens(["zzz"])
    tok.save_pretrained(marked)
    for other in (chat, base, marked):
        labels, failures = labelled(other, made.rows)
        assert not labels and refusals(failures) == WHOLE_ROWS
        assert "set tokens.sampled = render" in failures[0].detail
        anew, failures = labelled(other, made.rows, sampled="render")
        texts = {k: v for row in made.rows for k, v in row.items() if k in ("prompt", "responses")}
        assert anew and texts
        plain = [{k: v for k, v in row.items() if k not in ("prompt_token_ids", "response_token_ids", "rendering")}
                 for row in made.rows]  # fmt: skip
        want, _ = labelled(other, plain)
        assert [(label.id, label.reward, label.extra_info) for label in anew] == [
            (label.id, label.reward, label.extra_info) for label in want
        ]


def test_samples_of_another_day_name_the_day(tmp_path: Path) -> None:
    """Where the template asks for the date, samples of yesterday are labelled by following the refusal literally."""
    model = save_model(tmp_path / "dated", TEMPLATES["dated"], context=1024)
    rows = written(model, PROMPTS[:1], date="2026-02-03").rows
    labels, failures = labelled(model, rows, date="2026-02-04")
    assert not labels and {each.reason for each in failures} == {"other_rendering"}
    [day] = {re.search(r"give --set tokens\.date=(\S+),", each.detail)[1] for each in failures}  # type: ignore[index]
    assert day == "2026-02-03"
    labels, failures = labelled(model, rows, date=day)
    assert labels and not failures
    other = {**rows[0], "rendering": "0" * 64}
    _, failures = labelled(model, [other], date=day)
    assert "tokens.date" not in failures[0].detail


def test_a_dry_run_without_a_date_has_todays(tmp_path: Path) -> None:
    model = save_model(tmp_path / "dated", TEMPLATES["dated"], context=1024)
    config = LabelConfig.model_validate({"model": {"name": str(model)}})
    dated = config.model_copy(update={"tokens": config.tokens.dated()})
    assert Endogenous(config, config.model).renderer.identity == Endogenous(dated, dated.model).renderer.identity


def test_a_system_prompt_at_labelling_is_refused(chat: Path) -> None:
    labels, failures = labelled(chat, written(chat).rows, system_prompt="Be strict.")
    assert not labels and refusals(failures) == WHOLE_ROWS and "leave the system prompt out" in failures[0].detail
    labels, _ = labelled(chat, written(chat).rows, system_prompt="Be strict.", sampled="render")
    assert labels[0].prompt[0]["content"] == "Be strict."


def test_the_first_rows_refuse_before_the_start(thinking: Path, chat: Path, tmp_path: Path) -> None:
    source = tmp_path / "samples.jsonl"
    rows = [{**written(thinking).rows[0], "prompt": None}, *written(thinking).rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    [file] = find_files([str(source)])
    plan = plan_file(file)
    inputs = [StoredInput(file, "auto", detect(list(plan.head), InputConfig()), plan)]
    for model, tokens, said in (
        (thinking, {}, None), (chat, {}, "another tokenizer, chat template"), (chat, {"sampled": "render"}, None),
        (thinking, {"system_prompt": "x"}, "system prompt"),
    ):  # fmt: skip
        config = LabelConfig.model_validate({"model": {"name": str(model)}, "tokens": tokens})
        renderer = Endogenous(config, config.model).renderer
        if said is None:
            check_sampled(inputs, renderer)
        else:
            with pytest.raises(ConfigError, match=r"samples\.jsonl, row 1: .*tokens\.sampled = render") as error:
                check_sampled(inputs, renderer)
            assert said in str(error.value)


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        (
            {"responses": ["by hand", "", ""]},
            ["a.jsonl:0:response:1", "a.jsonl:0:response:2", "a.jsonl:0:response:0:0"],
        ),
        ({"prompt": "What is that?"}, ["a.jsonl:0"]),
        ({"system": "Be brief."}, ["a.jsonl:0"]),
        ({"prompt_token_ids": None}, ["a.jsonl:0"]),
        ({"prompt_token_ids": []}, ["a.jsonl:0"]),
        ({"response_token_ids": [[1]]}, ["a.jsonl:0"]),
        ({"response_token_ids": "12"}, ["a.jsonl:0"]),
        ({"rendering": None}, ["a.jsonl:0"]),
    ],
)
def test_what_was_changed_by_hand_is_an_error_row_with_a_remedy(chat: Path, change: Row, failed: list[str]) -> None:
    row = next(row for row in written(chat, PROMPTS[:1] * 4).rows if all(row["responses"]))
    changed = {**row, **change}
    shape = detect([changed], InputConfig())
    labels, failures = labelled(chat, [changed], shape=shape)
    assert not labels and [failure.id for failure in failures] == failed
    assert failures[-1].reason == "other_tokens" and "tokens.sampled = render" in failures[-1].detail
    labels, failures = labelled(chat, [changed], shape=shape, sampled="render")
    assert labels and all(failure.reason == "empty_response" for failure in failures)
    names = ("prompt_token_ids", "response_token_ids", "rendering")
    without = {**row, **dict.fromkeys(names)}  # as where corpora are laid together
    assert len(labelled(chat, [without], shape=shape)[0]) == 3


def test_tokens_are_cut_to_fit(chat: Path) -> None:
    row = max(written(chat).rows[:1], key=lambda row: len(row["response_token_ids"][0]))
    asked, ids = row["prompt_token_ids"], row["response_token_ids"]
    most = len(asked) + min(map(len, ids))
    labels, _ = labelled(chat, [row], max_length=most)
    for label in labels:
        whole = ids[label.response_index]
        assert list(label.token_ids) == whole[: most - len(asked)]
        assert label.truncated == (len(whole) + len(asked) > most) and np.array_equal(label.prompt_token_ids, asked)


def test_only_another_choice_is_in_the_fingerprint(chat: Path) -> None:
    def described(**tokens: Any) -> dict[str, Any]:
        config = LabelConfig.model_validate({"model": {"name": str(chat)}, "tokens": tokens})
        return Endogenous(config, config.model).describe("float32")

    usual, other = described(), described(sampled="render")
    assert other.pop("tokens.sampled") == "render" and other == usual and "tokens.sampled" not in usual


@pytest.mark.parametrize("kind", [SampleConfig, RlConfig])
def test_where_a_policy_writes_the_choice_is_refused(kind: type[Any]) -> None:
    with pytest.raises(ConfigError, match="has no effect here"):
        load_config_as(kind, None, [], ["tokens.sampled=render"])


def test_columns_of_these_names_alone_are_columns() -> None:
    rows = [{"prompt": "a", "response": "b", "rendering": "3d", "prompt_token_ids": [1]}]
    shape = detect(rows, InputConfig())
    assert not shape.sampled and Shape.from_json(shape.to_json()) == shape
    sample = shape.normalise("a", 0, rows[0])
    assert sample.extra == {"rendering": "3d", "prompt_token_ids": [1]} and sample.prompt_token_ids is None


# Learning from them


def test_a_policy_learns_from_the_tokens_that_were_asked_and_drawn(thinking: Path, tmp_path: Path) -> None:
    """Also one whose tokenizer has grown since, which renders the prompts to find that they are the same."""
    made = written(thinking, PROMPTS[:2])
    store = label_store(tmp_path / "store", thinking, made.rows)
    asked = {f"store.jsonl:{n}": row["prompt_token_ids"] for n, row in enumerate(made.rows)}
    grown = save_model(tmp_path / "grown", THINKING)
    tok = transformers.AutoTokenizer.from_pretrained(grown)
    tok.add_tokens(["zzz"])
    tok.save_pretrained(grown)
    told = {"train": {"labels": [store.uri], "objective": "sft"}, "sft": {"select": "all"}}
    examples = find_examples(TrainConfig.model_validate(told))
    for policy in (thinking, grown):
        reader = RowReader(examples.sources, examples.parts, ModelConfig(name=str(policy)), 4)
        assert reader.same == [policy == thinking]
        rows = reader.read(examples, range(len(examples.rows)))
        for row in rows:
            prompt_id, _, index, _ = row.id.rsplit(":", 3)
            assert row.prompt_ids.tolist() == asked[prompt_id]
            drawn = made.rows[int(prompt_id.rpartition(":")[2])]["response_token_ids"][int(index)]
            assert row.response_ids.tolist() == drawn
        assert len(rows) >= 4


# Online RL


def test_rollouts_are_rewarded_kept_and_trained_on_as_they_were_asked(thinking: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in PROMPTS))
    named = {"name": str(thinking)}
    rewards = {"own": {"kind": "endogenous"}}
    config = RlConfig.model_validate(
        {"policy": named, "reward_model": named, "rewards": rewards, "rl": {"max_new_tokens": 24}}
    )
    prompts = read_prompts(config, [str(source)], "input.paths").prompts
    tokenizer = load_tokenizer(config.policy)
    model = load_model(config.policy, "cpu")
    assert all(tokenizer.decode(prompt.ids).endswith("<|im_start|>assistant\n") for prompt in prompts)
    generator = Generator(model, tokenizer, max_new_tokens=24, temperature=1.0, logprobs=True)
    answers = generator.generate([Question(prompt.ids, 2, n) for n, prompt in enumerate(prompts)])
    made = [
        (prompt, [Rollout(a.token_ids, a.text, a.finished, a.logprobs, 0) for a in each])  # type: ignore[union-attr, arg-type]
        for prompt, each in zip(prompts, answers, strict=True)
    ]
    rewarded = RewardMixture(config, "cpu", "float32", hold_reference=True).reward(made)
    for (_, rollouts), worth in zip(made, rewarded, strict=True):
        for rollout, each in zip(rollouts, worth, strict=True):
            np.testing.assert_allclose(each.reference, rollout.logprobs, atol=1e-5)
    kept = RolloutStore(str(tmp_path / "rollouts"))
    kept.open(describe_rollouts(config, {}, "float32"))
    kept.keep(0, [Group(*each, worth) for each, worth in zip(made, rewarded, strict=True)])
    assert [(group.prompt, [r.ids for r in group.rollouts]) for group in kept.read(0)] == [
        (prompt, [r.ids for r in rollouts]) for prompt, rollouts in made
    ]
    told = {"train": {"labels": [kept.store.uri], "objective": "grpo"}, "policy": named}
    examples = find_examples(TrainConfig.model_validate(told))
    rows = RowReader(examples.sources, examples.parts, ModelConfig.model_validate(named), 4).read(examples, range(6))
    assert {tuple(row.prompt_ids) for row in rows} == {tuple(prompt.ids) for prompt in prompts}
    scored = Scorer(model).score([TokenizedTurn(row.prompt_ids, row.response_ids, []) for row in rows])
    for row, scores in zip(rows, scored, strict=True):
        np.testing.assert_allclose(scores.logprobs, row.logprobs, atol=1e-5)  # type: ignore[union-attr, arg-type]
