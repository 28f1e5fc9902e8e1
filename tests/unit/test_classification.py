"""Scalar reward models against their own forward on each sequence alone, in float64."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

from pipeline.config import ModelConfig
from pipeline.errors import ConfigError, RowError
from pipeline.models.classification import Classifier
from pipeline.models.loading import load_classifier
from pipeline.tokens import TokenizedTurn

VOCABULARY, CONTEXT, END = 50, 64, 2
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.5,
    "eos_token_id": END,
}


def llama(pad: int | None = None, **more: Any) -> Any:
    config = transformers.LlamaConfig(**{**SIZES, "num_labels": 1, "pad_token_id": pad, **more})
    return transformers.LlamaForSequenceClassification(config)


def qwen2(pad: int | None = None) -> Any:
    config = transformers.Qwen2Config(**SIZES, num_key_value_heads=1, num_labels=1, pad_token_id=pad)
    return transformers.Qwen2ForSequenceClassification(config)


def gpt2(pad: int | None = None) -> Any:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT, initializer_range=0.5, num_labels=1,
        bos_token_id=END, eos_token_id=END, pad_token_id=pad,
    )  # fmt: skip
    return transformers.GPT2ForSequenceClassification(config)


def bert(pad: int | None = 0) -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES, num_labels=1, pad_token_id=pad))


def roberta(pad: int | None = 1) -> Any:
    config = transformers.RobertaConfig(**SIZES, num_labels=1, pad_token_id=pad)
    return transformers.RobertaForSequenceClassification(config)


def deberta(pad: int | None = 0) -> Any:
    config = transformers.DebertaV2Config(
        **SIZES, num_labels=1, pad_token_id=pad, relative_attention=True, pos_att_type=["p2c", "c2p"]
    )
    return transformers.DebertaV2ForSequenceClassification(config)


def bart(pad: int | None = 1) -> Any:
    config = transformers.BartConfig(
        vocab_size=VOCABULARY, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=CONTEXT, init_std=0.5,
        num_labels=1, pad_token_id=pad, eos_token_id=END, bos_token_id=0, decoder_start_token_id=END,
    )  # fmt: skip
    return transformers.BartForSequenceClassification(config)


def built(make: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    return make(*arguments, **more).double().eval()


def turn(ids: list[int]) -> TokenizedTurn:
    return TokenizedTurn(ids[:2], ids[2:], [])


def mixed(ended: bool = True) -> list[TokenizedTurn]:
    """Lengths 3 to 12, several of each, in no order; every other one ends in the end token, some in two."""
    draw = random.Random(0)
    lengths = [3 + i % 10 for i in range(37)]
    draw.shuffle(lengths)
    rows = [[draw.randrange(3, VOCABULARY) for _ in range(length)] for length in lengths]
    for number, row in enumerate(rows):
        if ended and number % 2:
            row[-1 - (number % 3 == 0) :] = [END] * (1 + (number % 3 == 0))
    return [turn(row) for row in rows]


def alone(model: Any, turns: list[TokenizedTurn], output: int = 0) -> list[float]:
    """The oracle: a batch of one, no padding, nothing but ids and the tokenizer's mask of ones."""
    rewards = []
    for one in turns:
        ids = torch.tensor([one.prompt_ids.tolist() + one.response_ids.tolist()])
        with torch.no_grad():
            rewards.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, output].item())
    return rewards


@pytest.mark.parametrize("pad", [None, 0, END], ids=["no pad token", "its own", "the end token"])
@pytest.mark.parametrize("make", [llama, qwen2, gpt2])
def test_decoders_reward_as_their_own_forward_on_each_sequence_alone(make: Callable[..., Any], pad: int | None) -> None:
    model, turns = built(make, pad), mixed()
    expected = alone(model, turns)
    assert max(expected) - min(expected) > 0.1
    for budget in (1, 30, 16384):
        assert Classifier(model, budget_tokens=budget).score(turns) == pytest.approx(expected, abs=1e-10)
    assert model.config.pad_token_id == pad


@pytest.mark.parametrize("make", [bert, roberta, deberta])
def test_encoders_too(make: Callable[..., Any]) -> None:
    model, turns = built(make), mixed()
    expected = alone(model, turns)
    assert max(expected) - min(expected) > 0.01
    assert Classifier(model).score(turns) == pytest.approx(expected, abs=1e-10)


def test_an_encoder_decoder_that_refuses_rows_with_different_numbers_of_end_tokens() -> None:
    model = built(bart)
    turns = [turn([5, 6, 7, 8, END]), turn([5, 6, END, 8, END]), turn([9, 6, 7, 8, END])]
    assert Classifier(model).score(turns) == pytest.approx(alone(model, turns), abs=1e-10)


def test_nothing_is_padded_and_equal_lengths_share_a_forward() -> None:
    model, turns, calls = built(llama), mixed(), []
    model.register_forward_pre_hook(lambda _, __, given: calls.append(given["input_ids"].numel()), with_kwargs=True)
    classifier = Classifier(model, budget_tokens=30)
    classifier.score(turns)
    assert classifier.forwarded_tokens == sum(len(t.prompt_ids) + len(t.response_ids) for t in turns) == sum(calls)
    assert max(calls) <= 30
    assert len(calls) < len(turns)


def test_a_padding_token_that_is_the_end_token_is_noted_once_and_only_where_it_matters() -> None:
    classifier = Classifier(built(llama, END))
    classifier.score(mixed(ended=False))
    assert classifier.notes == []
    classifier.score(mixed())
    classifier.score(mixed())
    assert classifier.notes == ["pad_token_id is the end token, 2; the model reads its reward before it"]
    for model in (built(llama, 0), built(llama, None), built(bert, END)):
        other = Classifier(model)
        other.score(mixed())
        assert other.notes == []


def test_one_of_several_outputs() -> None:
    model, turns = built(llama, num_labels=3), mixed()
    assert Classifier(model, output=2).score(turns) == pytest.approx(alone(model, turns, 2), abs=1e-10)
    model.config.name_or_path = "org/rewards"
    with pytest.raises(ConfigError, match=r"classifier.output = 3, but org/rewards has 3 outputs"):
        Classifier(model, output=3)


def test_rows_that_cannot_be_scored_leave_the_others_alone() -> None:
    model = built(llama)
    good = mixed()
    unknown, long, broken = turn([3, 4, VOCABULARY]), turn([3] * (CONTEXT + 1)), turn([3, 4, 40])
    model.get_input_embeddings().weight.data[40] = float("nan")
    good = [t for t in good if 40 not in t.prompt_ids.tolist() + t.response_ids.tolist()]
    found = Classifier(model).score([unknown, *good, long, broken])
    refused = [found[0], *found[-2:]]
    assert all(isinstance(r, RowError) for r in refused)
    assert [r.reason for r in refused] == ["unknown_token", "too_long", "not_finite"]  # type: ignore[union-attr]
    assert found[1:-2] == pytest.approx(alone(model, good), abs=1e-10)


def test_positions_that_begin_after_the_padding_token_shorten_the_context() -> None:
    model = built(roberta)
    fits, long = turn([3] * (CONTEXT - 2)), turn([3] * (CONTEXT - 1))
    reward, refusal = Classifier(model).score([fits, long])
    assert [reward] == pytest.approx(alone(model, [fits]), abs=1e-10)
    assert isinstance(refusal, RowError) and refusal.reason == "too_long"


def test_out_of_memory_halves_the_budget_and_only_what_does_not_fit_alone_is_given_up() -> None:
    model = built(llama)
    turns = [*mixed(), turn([3] * 40)]

    def limited(_: Any, __: Any, given: dict[str, torch.Tensor]) -> None:
        if given["input_ids"].numel() > 20:
            raise torch.OutOfMemoryError("no memory")

    expected = alone(model, turns[:-1])
    model.register_forward_pre_hook(limited, with_kwargs=True)
    classifier = Classifier(model, budget_tokens=400)
    *rewards, refusal = classifier.score(turns)
    assert rewards == pytest.approx(expected, abs=1e-10)
    assert isinstance(refusal, RowError) and refusal.reason == "out_of_memory"
    assert classifier.budget_tokens <= 20 and classifier.notes


def test_half_precision_does_not_round_the_reward() -> None:
    model, turns = built(llama).bfloat16(), mixed()
    ids = [torch.tensor([t.prompt_ids.tolist() + t.response_ids.tolist()]) for t in turns]
    with torch.no_grad():
        states = [model.model(input_ids=i).last_hidden_state[0, -1] for i in ids]
        expected = [float(state.double() @ model.score.weight[0].double()) for state in states]
    rewards = Classifier(model, budget_tokens=1).score(turns)
    assert rewards == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert any(torch.tensor(r).bfloat16().item() != r for r in rewards)


def test_a_saved_reward_model_comes_back_and_anything_else_is_refused(tmp_path: Path) -> None:
    model, turns = built(llama).float(), mixed()
    model.save_pretrained(tmp_path / "reward")
    loaded = load_classifier(ModelConfig(name=str(tmp_path / "reward")), "cpu")
    assert Classifier(loaded).score(turns) == pytest.approx(alone(model, turns), abs=1e-5)

    causal = tiny.save_model(tmp_path / "causal")
    with pytest.raises(ConfigError, match=r"not those of its sequence classifier: 1 tensor .*score\.weight.*causal LM"):
        load_classifier(ModelConfig(name=str(causal)), "cpu")
    with pytest.raises(ConfigError, match="there is no model folder"):
        load_classifier(ModelConfig(name=str(tmp_path / "absent")), "cpu")
