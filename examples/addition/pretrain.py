"""Pretrains the embedded default: a small Llama that does column addition, from demonstrations that are often wrong.

Plain next-token prediction over prompt, worked answer and EOS. A third of the worked answers contain one wrong step
(problems.py), so a sample is often wrong although the log-probabilities know better. At the end the model is written as
a Hugging Face folder, which AutoModelForCausalLM and AutoTokenizer load, and measured on held-out problems.

One character is one token. The tokenizer puts one BOS in front, as Llama's does, and adds no EOS; EOS and padding are
different tokens, and each character that the format does not have is one `<unk>`.

Float32 on one CPU thread, a few minutes. Seed and thread count fix the weights on one machine; another machine may
round otherwise and, like another seed, end a few points away. Left out: checkpoints, resuming, GPUs, mixed precision.
"""

import argparse
import math
import os
import random
import time

import problems

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>", "<unk>"]
CHARACTERS = "0123456789+=;"

WARMUP_STEPS = 50
EVALUATION_SEED = 2
PAIRS_SEED = 1  # pairs.jsonl is these pairs


def parse_arguments() -> argparse.Namespace:
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(
        description="Pretrain the small addition model, measure it and save it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default=os.path.join(here, "model"), help="folder to write")
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak of the cosine")
    parser.add_argument("--heads", type=int, default=4, help="3 are of size 32, which vLLM has on a CPU too")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def build_tokenizer():
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_model(tokenizer, heads: int):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=heads,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            dtype="float32",
        )
    )


def train(model, tokenizer, args) -> None:
    """Minimise the mean of -log p(token | tokens before it) by AdamW: a warm-up, then a cosine to 0."""
    import torch

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / args.steps))

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    stream = problems.problem_stream(args.seed, held_out=False)
    rng = random.Random(f"demonstrations {args.seed}")
    started = time.monotonic()
    model.train()
    for step in range(1, args.steps + 1):
        batch = [next(stream) for _ in range(args.batch_size)]
        texts = [p.prompt + problems.demonstration(p, rng) + tokenizer.eos_token for p in batch]
        inputs = tokenizer(texts, return_tensors="pt", padding=True)
        labels = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps:
            print(f"step {step:4d}  loss {loss.item():.4f}  {time.monotonic() - started:5.1f} s", flush=True)


def count_correct(model, tokenizer, tasks: list[problems.Problem], sample: bool, batch_size: int = 500) -> int:
    """How many problems the model solves, sampling at temperature 1 or greedily."""
    correct = 0
    for start in range(0, len(tasks), batch_size):
        batch = tasks[start : start + batch_size]
        inputs = tokenizer([p.prompt for p in batch], return_tensors="pt")  # all prompts have one length
        options = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
        output = model.generate(**inputs, **options, max_new_tokens=48)
        texts = tokenizer.batch_decode(output[:, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        correct += sum(problems.is_correct(p, text) for p, text in zip(batch, texts, strict=True))
    return correct


def response_logprobs(model, tokenizer, prompts: list[str], responses: list[str]):
    """sum log p(token | tokens before it) over each response and its EOS."""
    import torch

    texts = [p + r + tokenizer.eos_token for p, r in zip(prompts, responses, strict=True)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        logprobs = model(**inputs).logits[:, :-1].log_softmax(-1)
    token_logprobs = logprobs.gather(-1, inputs.input_ids[:, 1:, None])[..., 0]
    starts = torch.tensor([len(tokenizer(p).input_ids) for p in prompts])
    positions = torch.arange(1, inputs.input_ids.shape[1])
    in_response = (positions >= starts[:, None]) & (inputs.attention_mask[:, 1:] == 1)
    return (token_logprobs * in_response).sum(-1)


def count_ranked(model, tokenizer, pairs: list[dict[str, str]]) -> int:
    """How many pairs have sum log p(chosen) > sum log p(rejected)."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen, rejected = (
        response_logprobs(model, tokenizer, prompts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")
    )
    return int((chosen > rejected).sum())


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    share = successes / trials
    centre = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2)) / (1 + z * z / trials)
    return centre - half, centre + half


def report(model, tokenizer) -> None:
    tasks = problems.distinct_problems(2000, EVALUATION_SEED)
    pairs = list(problems.pair_rows(500, PAIRS_SEED))
    model.eval()
    print(f"\n{'on held-out problems':32s} {'right':>11s} {'share':>7s}   95% interval")
    for name, right, total in (
        ("sampled at temperature 1", count_correct(model, tokenizer, tasks, sample=True), len(tasks)),
        ("greedy", count_correct(model, tokenizer, tasks, sample=False), len(tasks)),
        ("pairs, sum of log-probabilities", count_ranked(model, tokenizer, pairs), len(pairs)),
    ):
        low, high = wilson_interval(right, total)
        print(f"{name:32s} {f'{right}/{total}':>11s} {right / total:7.2%}   {low:.1%} to {high:.1%}")


def main() -> None:
    args = parse_arguments()
    import torch  # after the arguments, so that --help and a typing error answer at once
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, args.heads)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, args)
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    print(f"saved {args.output}")
    report(model, tokenizer)


if __name__ == "__main__":
    main()
