"""Generation against a plain loop of full forwards without a cache, and against the softmax itself."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from scipy.stats import chisquare

from pipeline.errors import RowError
from pipeline.models import generation
from pipeline.models.generation import Generator
from pipeline.models.questions import Completion, Question
from pipeline.models.scoring import Scorer
from pipeline.tokens import TokenizedTurn

PROMPTS = [[5, 9, 33], [7], [100, 101, 102, 103, 104, 105, 106], [250, 3, 3, 8], [44] * 11]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module, object]:
    folder = tiny.save_model(tmp_path_factory.mktemp("models") / "tiny")
    model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    return folder, model, tiny.tokenizer()


def gpt2() -> torch.nn.Module:
    torch.manual_seed(3)
    config = transformers.GPT2Config(
        vocab_size=264, n_embd=16, n_layer=2, n_head=2, n_positions=24, initializer_range=0.3, eos_token_id=None
    )
    return transformers.GPT2LMHeadModel(config).double().eval()


@torch.inference_mode()
def argmax_loop(model: torch.nn.Module, prompt: list[int], steps: int, ends: set[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_greedy_is_the_argmax_of_full_forwards_whatever_the_batch(parts, family):
    _, model, tok = parts
    model = model if family == "llama" else gpt2()
    generator = Generator(model, tok, max_new_tokens=12)
    together = generator.generate([Question(prompt) for prompt in PROMPTS])
    alone = [Generator(model, tok, max_new_tokens=12).generate([Question(prompt)])[0] for prompt in PROMPTS]
    assert together == alone
    for prompt, [completion] in zip(PROMPTS, together, strict=True):
        assert completion.token_ids == argmax_loop(model, prompt, 12, set(generator.end_tokens))
        assert completion.text == tok.decode(completion.token_ids, skip_special_tokens=True)
    assert generator.notes == [] and generator.forwarded_tokens > 0


def test_an_end_token_stops_and_is_reported(parts):
    _, model, tok = parts
    [[free]] = Generator(model, tok, max_new_tokens=12).generate([Question(PROMPTS[0])])
    assert not free.finished and len(free.token_ids) == 12
    end = free.token_ids[3]
    first = free.token_ids.index(end)
    ended = Generator(model, tok, max_new_tokens=12, eos_token_ids=[end])
    for questions in ([PROMPTS[0]], PROMPTS):
        [completion] = ended.generate([Question(prompt) for prompt in questions])[0]
        assert completion.finished and completion.token_ids == free.token_ids[: first + 1]
    assert ended.end_tokens == sorted({end, tok.eos_token_id})


def test_the_models_own_settings_do_not_leak_in_and_come_back(parts):
    _, model, tok = parts
    want = Generator(model, tok, max_new_tokens=12).generate([Question(p) for p in PROMPTS])
    before = model.generation_config
    own = transformers.GenerationConfig(
        do_sample=True, temperature=5.0, top_k=3, repetition_penalty=4.0, max_length=9, min_new_tokens=3,
        suppress_tokens=list(range(0, 200)), no_repeat_ngram_size=1, eos_token_id=[tok.eos_token_id, 258],
        pad_token_id=258,
    )  # fmt: skip
    model.generation_config = own
    try:
        generator = Generator(model, tok, max_new_tokens=12)
        assert generator.end_tokens == sorted({tok.eos_token_id, 258})
        generator.end_tokens = [tok.eos_token_id]
        assert generator.generate([Question(p) for p in PROMPTS]) == want
        assert model.generation_config is own
    finally:
        model.generation_config = before


def next_tokens(parts, temperature: float, top_p: float, samples: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Counts of the first token sampled after a prompt, and its probabilities at the temperature."""
    _, model, tok = parts
    generator = Generator(model, tok, max_new_tokens=1, temperature=temperature, top_p=top_p)
    [completions] = generator.generate([Question(PROMPTS[2], samples, seed=11)])
    counts = torch.bincount(
        torch.tensor([each.token_ids[0] for each in completions]), minlength=model.config.vocab_size
    )
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([PROMPTS[2]])).logits[0, -1]
    return counts, (logits / temperature).softmax(-1)


def test_samples_are_distributed_as_the_softmax_at_the_temperature(parts):
    counts, p = next_tokens(parts, 0.7, 1.0, 4000)
    expected, order = (4000 * p).sort()
    rare = int((expected.cumsum(0) < 20).sum()) + 1  # together, so that every cell expects some
    observed = torch.cat([counts[order[:rare]].sum()[None], counts[order[rare:]]])
    expected = torch.cat([expected[:rare].sum()[None], expected[rare:]])
    assert chisquare(observed.numpy(), expected.numpy()).pvalue > 1e-3
    wrong = next_tokens(parts, 1.0, 1.0, 1)[1] * 4000  # the test can fail: another temperature's softmax
    wrong = torch.cat([wrong[order[:rare]].sum()[None], wrong[order[rare:]]])
    assert chisquare(observed.numpy(), wrong.numpy()).pvalue < 1e-6


def test_top_p_keeps_the_smallest_sufficient_set(parts):
    counts, p = next_tokens(parts, 1.0, 0.5, 3000)
    values, order = p.sort(descending=True)
    kept = order[: int((values.cumsum(0) < 0.5).sum()) + 1]
    assert set(counts.nonzero().flatten().tolist()) == set(kept.tolist())
    assert chisquare(counts[kept].numpy(), (3000 * p[kept] / p[kept].sum()).numpy()).pvalue > 1e-3


def test_samples_depend_on_seed_and_number_not_on_their_batch(parts):
    _, model, tok = parts

    def run(questions: list[Question], budget: int = 16384) -> list:
        options = dict(max_new_tokens=10, temperature=1.0, budget_tokens=budget)
        return Generator(model, tok, **options).generate(questions)

    asked = [Question(prompt, 3, seed) for seed, prompt in enumerate(PROMPTS)]
    together = run(asked)
    assert together == run(asked)
    assert together == [run([question])[0] for question in asked]
    assert together == run(asked[::-1])[::-1] == run(asked, budget=40)
    assert together[2][:2] == run([Question(PROMPTS[2], 2, 2)])[0]
    assert len({tuple(sample.token_ids) for sample in together[0]}) == 3
    assert run([Question(PROMPTS[0], 3, 99)])[0] != together[0]


def test_the_context_cuts_completions_and_refuses_prompts():
    model, tok = gpt2(), tiny.tokenizer()
    prompts = [[5] * 3, [6] * 20, [7] * 23, [8] * 24, [9] * 30, [3, 999]]
    generator = Generator(model, tok, max_new_tokens=10)
    found = generator.generate([Question(prompt) for prompt in prompts])
    assert [len(each[0].token_ids) for each in found[:3]] == [10, 4, 1]
    assert [each[0].finished for each in found[:3]] == [False] * 3
    for prompt, [completion] in zip(prompts, found[:3], strict=False):
        assert completion.token_ids == argmax_loop(model, prompt, len(completion.token_ids), set())
    assert [e.reason for e in found[3:] if isinstance(e, RowError)] == ["prompt_too_long"] * 2 + ["unknown_token"]
    tight = Generator(model, tiny.tokenizer(), max_new_tokens=10, max_length=len(prompts[0]) + 3)
    assert [len(each.token_ids) for each in tight.generate([Question(prompts[0])])[0]] == [3]


class Small(torch.nn.Module):
    """A real model on a device with room for a number of tokens."""

    def __init__(self, model: torch.nn.Module, room: int):
        super().__init__()
        self.model, self.room, self.calls = model, room, 0
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, module: torch.nn.Module, arguments: tuple, options: dict) -> None:
        self.calls += 1
        if options["input_ids"].numel() > self.room:
            raise torch.OutOfMemoryError("out of memory")


def test_out_of_memory_halves_the_budget_and_spares_who_fits():
    tok = tiny.tokenizer()
    model = gpt2()
    want = Generator(gpt2(), tok, max_new_tokens=4).generate([Question(p) for p in PROMPTS[:4]])
    Small(model, room=10)
    generator = Generator(model, tok, max_new_tokens=4)
    found = generator.generate([Question(p) for p in [*PROMPTS[:4], PROMPTS[4]]])
    assert found[:4] == want
    assert isinstance(found[4], RowError) and found[4].reason == "out_of_memory"
    assert generator.budget_tokens < 100 and "out of memory" in generator.notes[0]


def test_logits_that_are_no_numbers_are_an_error():
    model = gpt2()
    with torch.no_grad():
        model.transformer.wte.weight[7] = float("nan")
    [broken] = Generator(model, tiny.tokenizer(), max_new_tokens=2).generate([Question([7])])
    assert isinstance(broken, RowError) and broken.reason == "not_finite"


SIZES = dict(
    vocab_size=264, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.15,
)  # fmt: skip
FAMILIES: dict[str, Callable[[], torch.nn.Module]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZES)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=264, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15)
    ),
    "gpt_neo": lambda: transformers.GPTNeoForCausalLM(
        transformers.GPTNeoConfig(
            vocab_size=264, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64,
            attention_types=[[["global", "local"], 1]], window_size=6, initializer_range=0.15,
        )
    ),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(**SIZES, head_dim=8, sliding_window=6, final_logit_softcapping=3.0)
    ),
    "mistral_window": lambda: transformers.MistralForCausalLM(transformers.MistralConfig(**SIZES, sliding_window=6)),
}  # fmt: skip
ENDS = list(range(0, 264, 9))  # many: the samples of a batch end after 1 to 12 tokens
GROUPS = [Question(prompt, 4, seed) for seed, prompt in enumerate(PROMPTS)]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(5)
    return FAMILIES[request.param]().eval()


def ready(model: torch.nn.Module, **options) -> Generator:
    options = dict(max_new_tokens=12, temperature=1.0, eos_token_ids=ENDS, logprobs=True) | options
    return Generator(model, tiny.tokenizer(), **options)


def repeated(model: torch.nn.Module, **options) -> Generator:
    """Each row's prompt computed for itself, and no row leaves before all have ended."""
    generator = ready(model, **options)
    generator.shares_prompts = False
    return generator


@torch.inference_mode()
def plain_logits(model: torch.nn.Module, question: Question, completion: Completion) -> torch.Tensor:
    """[H, V] of one sequence alone, without padding and cache."""
    ids = torch.tensor([question.prompt_ids + completion.token_ids])
    return model(input_ids=ids, use_cache=False).logits[0, len(question.prompt_ids) - 1 : -1]


def assert_logprobs(model: torch.nn.Module, generator: Generator, distribution: Callable, tolerance=1e-5) -> None:
    lengths = set()
    for question, completions in zip(GROUPS, generator.generate(GROUPS), strict=True):
        for completion in completions:
            lengths.add(len(completion.token_ids))
            chosen = torch.tensor(completion.token_ids)[:, None]
            want = distribution(plain_logits(model, question, completion)).gather(1, chosen)[:, 0]
            assert completion.logprobs.dtype == np.float32
            np.testing.assert_allclose(completion.logprobs, want.numpy(), rtol=0, atol=tolerance)
    assert len(lengths) > 1


def test_logprobs_are_those_of_the_models_own_forward(model):
    assert_logprobs(model, ready(model), lambda logits: logits.log_softmax(-1))
    assert_logprobs(model, repeated(model), lambda logits: logits.log_softmax(-1))


def test_logprobs_are_those_of_the_scorer(model):
    scorer = Scorer(model)
    for question, completions in zip(GROUPS, ready(model).generate(GROUPS), strict=True):
        turns = [TokenizedTurn(question.prompt_ids, each.token_ids, prompt=[]) for each in completions]
        for completion, scores in zip(completions, scorer.score(turns), strict=True):
            np.testing.assert_allclose(completion.logprobs, scores.logprobs, rtol=0, atol=1e-5)


def nucleus(logits: torch.Tensor) -> torch.Tensor:
    """log of softmax(logits / 0.7) renormalised over the fewest tokens that hold 0.6 of it."""
    p, order = (logits.double() / 0.7).softmax(-1).sort(descending=True)
    p = p.where(p.cumsum(-1) - p < 0.6, 0.0)
    return torch.zeros_like(p).scatter(-1, order, (p / p.sum(-1, keepdim=True))).log().float()


def test_logprobs_are_of_the_distribution_that_was_sampled():
    torch.manual_seed(5)
    model = FAMILIES["llama"]().eval()
    assert_logprobs(model, ready(model, temperature=0.7, top_p=0.6), nucleus, 2e-5)
    assert_logprobs(model, ready(model, temperature=2.0), lambda logits: (logits / 2).log_softmax(-1))
    assert_logprobs(model, ready(model, temperature=0.0), lambda logits: logits.log_softmax(-1))
    [[completion]] = ready(model, logprobs=False).generate([Question([5])])
    assert completion.logprobs is None


def test_a_group_computes_its_prompt_once_and_its_samples_are_the_same(model, caplog):
    caplog.set_level(logging.WARNING)
    for budget in (16384, 70):  # 70 cuts through groups
        shared, plain = ready(model, budget_tokens=budget), repeated(model, budget_tokens=budget)
        found = shared.generate(GROUPS)
        assert found == plain.generate(GROUPS)
        assert shared.shares_prompts
        assert shared.forwarded_tokens < plain.forwarded_tokens / 1.5
    assert caplog.records == [] and shared.notes == []


def test_forwarded_tokens_are_those_that_the_model_was_given(model):
    generators = [ready(model), repeated(model)]
    assert generators[0].shares_prompts  # the trial is not counted
    given = 0

    def count(module: torch.nn.Module, arguments: tuple, options: dict) -> None:
        nonlocal given
        given += options["input_ids"].numel()

    model.register_forward_pre_hook(count, with_kwargs=True)
    for generator in generators:
        given = 0
        generator.generate(GROUPS)
        assert generator.forwarded_tokens == given > 0


def test_a_prompt_costs_once_whatever_the_number_of_samples():
    model = gpt2()
    generator = Generator(model, tiny.tokenizer(), max_new_tokens=2, temperature=1.0)
    generator.end_tokens = []
    generator.generate([Question([44] * 11, samples=5)])
    assert generator.forwarded_tokens == 10 + 5 * 2


def test_ended_rows_leave_the_batch():
    """One prompt of one token, so that nothing is shared: what is saved is saved by rows that left."""
    torch.manual_seed(5)
    model = FAMILIES["llama"]()
    leaving, staying = ready(model, max_new_tokens=48), repeated(model, max_new_tokens=48)
    [found] = leaving.generate([Question([7], samples=32)])
    assert [found] == staying.generate([Question([7], samples=32)])
    lengths = sorted(len(each.token_ids) for each in found)
    assert staying.forwarded_tokens == 32 * lengths[-1]
    assert sum(lengths) <= leaving.forwarded_tokens < 4 / 3 * sum(lengths) < staying.forwarded_tokens


def test_a_cache_that_cannot_be_gathered_repeats_prompts():
    torch.manual_seed(5)
    config = transformers.RwkvConfig(
        vocab_size=264, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32, context_length=64
    )
    generator = ready(transformers.RwkvForCausalLM(config))
    [found] = generator.generate([Question(PROMPTS[2], samples=3)])
    assert not generator.shares_prompts and generator.notes == []
    assert generator.forwarded_tokens == 3 * (6 + max(len(each.token_ids) for each in found))


def test_new_weights_are_used_at_once(model):
    generator = ready(model)
    before = generator.generate(GROUPS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    after = generator.generate(GROUPS)
    assert after == ready(model).generate(GROUPS) != before


@pytest.mark.parametrize("prompts", [1, 5], ids=["plain", "packed"])
def test_large_models_write_the_same_by_other_products(monkeypatch, model, prompts):
    """Of one row the weights stay as they are, of five they are packed: anew in each call, since they may have changed."""
    questions = [Question(prompt, seed=seed) for seed, prompt in enumerate(PROMPTS[:prompts])]
    for factor in (1.0, 1.1):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)
        answers = []
        for large in (10**9, 0):
            monkeypatch.setattr(generation, "LARGE", large)
            answers.append([each for [each] in ready(model, max_new_tokens=32).generate(questions)])
        for plain, ours in zip(*answers, strict=True):
            assert plain.token_ids == ours.token_ids
            np.testing.assert_allclose(plain.logprobs, ours.logprobs, atol=1e-5)
