"""Response tokens labelled per second: `pipeline.models.scoring.Scorer` against the ordinary loop, side by side in one run.

The loop is what one would write first: rows in the order of the corpus, batches of 8, padding on the right with an
attention mask, the model's full logits, log_softmax over the vocabulary in float32, the taken tokens gathered. Both
sides score the same tokens with the same weights, threads and allocator settings, in turns, and must agree.

The model is a Llama with random weights: speed does not depend on what they are. Transcripts are drawn with the length
statistics of HH (harmless-base, test) under a byte-level BPE of 14,019 tokens: two responses to a shared prompt,
lengths lognormal. With --corpus they are read from a file. Only response tokens count.

Two rows between the loop and the scorer, and one within it, say where the gain comes from. Left out: GPUs, reading and
writing; `endoreward label` reports the whole run's tokens per second.
"""

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
import transformers
from machine import CONSOLE, shared, table, verdict

from pipeline.config import InputConfig, TokensConfig
from pipeline.corpus import detect, find_files, plan_file, read_shards
from pipeline.models.scoring import Scorer
from pipeline.rewards.labelling import prepare
from pipeline.tokens import Renderer, TokenizedTurn

ALLOCATOR = {  # large buffers are kept and mapped in huge pages: no side pays for page faults
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "THP_MEM_ALLOC_ENABLE": "1",
}
LONGEST = 1024  # tokens of a transcript
PROMPT, RESPONSE = (4.57, 0.95), (3.54, 0.92)  # mean and deviation of log length, measured
AT_LEAST = 2.5
LogProbs = list[torch.Tensor]  # per turn, [response tokens]


def synthetic_turns(pairs: int, vocabulary: int, seed: int) -> list[TokenizedTurn]:
    """Chosen and rejected of each pair one after another, as in the corpus."""
    rng = np.random.default_rng(seed)

    def draw(mean: float, deviation: float, most: int) -> list[int]:
        length = int(np.clip(rng.lognormal(mean, deviation), 3, most))
        return rng.integers(3, vocabulary, length).tolist()

    prompts = [draw(*PROMPT, LONGEST // 2) for _ in range(pairs)]
    return [TokenizedTurn(prompt, draw(*RESPONSE, LONGEST // 2), []) for prompt in prompts for _ in range(2)]


def corpus_turns(path: str, pairs: int) -> list[TokenizedTurn]:
    """The first pairs of a file, as the pipeline reads and tokenises them, with the tokenizer of soda-chat-3M."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(shared("models", "soda-chat-3M"), model_max_length=LONGEST)
    renderer = Renderer(tokenizer, TokensConfig(template="none"), LONGEST)
    [file] = find_files([path])
    plan = plan_file(file, shard_rows=pairs)
    shard, rows = next(read_shards(file, "auto", plan.shards[:1]))
    shape = detect([row for _, row in rows if isinstance(row, dict)], InputConfig(), file.name)
    return prepare(shard, 0, rows, shape, renderer, "last").tokens


def build(options: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(0)
    heads = max(1, options.hidden // 64)
    config = transformers.LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 8 // 3 // 32 * 32,
        num_hidden_layers=options.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        max_position_embeddings=LONGEST,
        initializer_range=0.05,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


@torch.inference_mode()
def loop(
    model: torch.nn.Module,
    turns: list[TokenizedTurn],
    batch: int,
    *,
    head_at_scored: bool = False,
    by_size: bool = False,
) -> LogProbs:
    """The ordinary loop; the two switches are the ablation."""
    order = sorted(range(len(turns)), key=lambda i: len(turns[i].prompt_ids) + len(turns[i].response_ids))
    order = order if by_size else list(range(len(turns)))
    found: LogProbs = [torch.empty(0)] * len(turns)
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        rows = [[*turns[i].prompt_ids, *turns[i].response_ids] for i in part]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        spans = [(len(turns[i].prompt_ids) - 1, len(row) - 1) for i, row in zip(part, rows, strict=True)]
        if head_at_scored:
            states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            scored = torch.cat([states[row, begin:end] for row, (begin, end) in enumerate(spans)])
            taken = torch.cat([ids[row, begin + 1 : end + 1] for row, (begin, end) in enumerate(spans)])
            every = torch.log_softmax(model.get_output_embeddings()(scored).float(), dim=-1)
            one = every.gather(1, taken[:, None])[:, 0].split([end - begin for begin, end in spans])
        else:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            every = torch.log_softmax(logits[:, :-1].float(), dim=-1)
            whole = every.gather(2, ids[:, 1:, None])[..., 0]
            one = tuple(whole[row, begin:end] for row, (begin, end) in enumerate(spans))
        for i, logprobs in zip(part, one, strict=True):
            found[i] = logprobs.clone()
    return found


def scored(scorer: Scorer, turns: list[TokenizedTurn], shared_prompts: bool = True) -> LogProbs:
    """The scorer; without shared prompts, every response in a call with no sibling."""
    if shared_prompts:
        return [torch.from_numpy(s.logprobs) for s in scorer.score(turns)]
    found: LogProbs = [torch.empty(0)] * len(turns)
    for offset in (0, 1):
        found[offset::2] = scored(scorer, turns[offset::2])
    return found


def timed(work: Callable[[], LogProbs]) -> tuple[float, float, int, LogProbs]:
    """Seconds, seconds of CPU, page faults, result."""
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    start, start_cpu = time.perf_counter(), time.process_time()
    found = work()
    took, took_cpu = time.perf_counter() - start, time.process_time() - start_cpu
    return took, took_cpu, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="rows of the loop's batches")
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seed", type=int, default=0, help="of the synthetic transcripts")
    parser.add_argument("--corpus", help="a file of pairs, such as ../shared/data/hh-rlhf/harmless-base-test.jsonl.gz")
    parser.add_argument("--no-ablation", action="store_true", help="the loop and the scorer alone")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # they are read when a process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})
    torch.set_num_threads(options.threads)

    turns = corpus_turns(options.corpus, options.pairs) if options.corpus else None
    turns = turns or synthetic_turns(options.pairs, options.vocabulary, options.seed)
    prompt = sum(len(turn.prompt_ids) for turn in turns)
    response = sum(len(turn.response_ids) for turn in turns)
    model, scorer = build(options), Scorer(build(options))
    head = options.hidden * options.vocabulary
    trunk = sum(p.numel() for p in model.parameters()) - head
    ways: dict[str, Callable[[], LogProbs]] = {
        f"loop, batch {options.batch}": lambda: loop(model, turns, options.batch)
    }
    if not options.no_ablation:
        ways["... output matrix at scored positions only"] = lambda: loop(
            model, turns, options.batch, head_at_scored=True
        )
        ways["... and rows sorted by length"] = lambda: loop(
            model, turns, options.batch, head_at_scored=True, by_size=True
        )
        ways["scorer, prompts not shared"] = lambda: scored(scorer, turns, shared_prompts=False)
    ways["scorer"] = lambda: scored(scorer, turns)

    loop(model, turns[: options.batch], options.batch)  # the first calls of a process are slower
    scorer.score(turns[: options.batch])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    faults: dict[str, int] = {}
    worst: dict[str, float] = {}
    reference: LogProbs | None = None
    for repeat in range(options.repeats):
        for name in list(ways) if repeat % 2 == 0 else list(ways)[::-1]:
            took, took_cpu, faults[name], found = timed(ways[name])
            seconds[name].append(took)
            cpu[name].append(took_cpu)
            reference = reference or found
            worst[name] = max(float((a - b).abs().max()) for a, b in zip(found, reference, strict=True))
    first = next(iter(ways))

    def ratios(of: dict[str, list[float]], name: str) -> list[float]:
        return [a / b for a, b in zip(of[first], of[name], strict=True)]

    ratio = {name: statistics.median(ratios(seconds, name)) for name in ways}
    shown = table(
        f"{len(turns)} responses, {prompt:,} prompt and {response:,} response tokens; Llama of {trunk / 1e6:.0f}M in "
        f"{options.layers} layers and {head / 1e6:.0f}M in the output matrix, vocabulary {options.vocabulary:,}; "
        f"median of {options.repeats}",
        "", "seconds", "CPU seconds", "response tokens/s", "times the loop", "page faults", "log pi differs by",
    )  # fmt: skip
    for name in ways:
        middle = statistics.median(seconds[name])
        shown.add_row(
            name, f"{middle:.2f}", f"{statistics.median(cpu[name]):.2f}", f"{response / middle:,.0f}",
            f"{ratio[name]:.2f}", f"{faults[name]:,}", f"{worst[name]:.1e}",
        )  # fmt: skip
    CONSOLE.print(shown)
    spread = ratios(seconds, "scorer")
    CONSOLE.print(
        f"scorer: layout {scorer.layout}; its ratio lay between {min(spread):.2f} and {max(spread):.2f}; "
        f"in seconds of CPU, {statistics.median(ratios(cpu, 'scorer')):.2f}"
    )
    verdict(
        {
            f"at least {AT_LEAST} times the loop ({ratio['scorer']:.2f})": ratio["scorer"] >= AT_LEAST,
            f"the same log-probabilities to 1e-3 ({max(worst.values()):.1e})": max(worst.values()) < 1e-3,
        }
    )


if __name__ == "__main__":
    main()
