"""Pretrains a small vision-language model that tells colours, counts and kinds of shapes, from demonstrations that err.

An Idefics3 (a SigLIP encoder, a pixel shuffle, a Llama) learns by next-token prediction over the answers to the
questions of shapes.py. A quarter of the demonstrations are wrong in one thing, and an eighth are without a picture. At
the end it is written as a Hugging Face folder, which AutoModelForImageTextToText, AutoTokenizer and AutoProcessor load,
and measured on held-out pairs with their pictures and without.

A word of the task is one token, with the space before it; any other printable ASCII text goes by characters. A picture
is 9 tokens, one for each cell of the grid, and 3 around them.

Float32 on one CPU thread, a few minutes. Seed and thread count fix the weights on one machine; another machine may
round otherwise and, like another seed, end a few points away. Left out: checkpoints, resuming, GPUs, mixed precision.
"""

import argparse
import math
import os
import random
import re
import string
import time
from typing import Any

import shapes

FAKE, IMAGE, GLOBAL, END = "<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>"
SPECIAL_TOKENS = ["<pad>", "<bos>", "<unk>", END, FAKE, IMAGE, GLOBAL]
PATCH, SHUFFLE = 8, 2  # pixels of a patch's side; patches of a token's side
PICTURE_TOKENS = (shapes.SIZE // PATCH // SHUFFLE) ** 2
TEMPLATE = (
    "<bos>{% for message in messages %}{{ message['role'] | capitalize }}:\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}{% endif %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
WARMUP_STEPS = 50
WEIGHTS = (2, 1, 1)  # of the questions: the first asks for the most
BLIND_SHARE = 8  # one demonstration of so many is without its picture


def parse_arguments() -> argparse.Namespace:
    here = os.path.dirname(os.path.abspath(__file__))
    parser = argparse.ArgumentParser(
        description="Pretrain the small model of shapes, measure it and save it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", default=os.path.join(here, "model"), help="folder to write")
    parser.add_argument("--steps", type=int, default=650)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3, help="the peak of the cosine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def words() -> list[str]:
    """What is one token: each word of the questions, the answers and the roles, as it begins a text and behind a space."""
    text = [
        *shapes.QUESTIONS,
        *shapes.COUNTS,
        *shapes.COLOURS,
        *(kind + end for kind in shapes.KINDS for end in ("", "s")),
    ]
    single = sorted({word for part in text for word in re.findall("[A-Za-z]+", part)})
    return ["User:", "Assistant:", *single, *(f" {word}" for word in single)]


def build_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = words()
    characters = [*string.printable[:95], "\n"]
    tokenizer = Tokenizer(
        models.WordLevel(
            {token: index for index, token in enumerate([*SPECIAL_TOKENS, *known, *characters])}, unk_token="<unk>"
        )
    )
    whole = "|".join(re.escape(word) for word in sorted(known, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(rf"(?:{whole})(?![A-Za-z])|[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token=END,
        unk_token="<unk>",
        additional_special_tokens=[FAKE, IMAGE, GLOBAL],
        chat_template=TEMPLATE,
        model_max_length=256,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def build_processor(tokenizer: Any) -> Any:
    from transformers import Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    side = {"longest_edge": shapes.SIZE}
    pictures = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    return Idefics3Processor(pictures, tokenizer, image_seq_len=PICTURE_TOKENS, chat_template=TEMPLATE)


def build_model(tokenizer: Any) -> Any:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration

    text = {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": tokenizer.model_max_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": shapes.SIZE,
        "patch_size": PATCH,
    }
    return Idefics3ForConditionalGeneration(
        Idefics3Config(
            text_config=text,
            vision_config=vision,
            scale_factor=SHUFFLE,
            image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
            tie_word_embeddings=False,
            dtype="float32",
        )
    )


def prompt_ids(tokenizer: Any, question: str, with_picture: bool) -> list[int]:
    """A question behind its picture, as the processor expands it."""
    parts = [{"type": "image"}] * with_picture + [{"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": parts}], tokenize=False, add_generation_prompt=True
    )
    text = text.replace(IMAGE, FAKE + GLOBAL + IMAGE * PICTURE_TOKENS + FAKE)
    return tokenizer(text, add_special_tokens=False).input_ids


def pixels(scenes: list[shapes.Scene]) -> Any:
    """[scenes, 1, 3, SIZE, SIZE] in -1 to 1, what the processor makes of the pictures."""
    import numpy as np
    import torch

    stacked = np.stack([np.asarray(shapes.paint(scene), np.float32) for scene in scenes])
    return torch.from_numpy((stacked / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)[:, None].contiguous()


def sequences(tokenizer: Any, prompts: list[list[int]], answers: list[str]) -> dict[str, Any]:
    """Prompts with their answers and END, padded on the right; only the answers are labels."""
    import torch

    ends = [tokenizer(text + END, add_special_tokens=False).input_ids for text in answers]
    width = max(len(prompt) + len(end) for prompt, end in zip(prompts, ends, strict=True))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    mask = torch.zeros_like(ids)
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        begin, stop = len(prompt), len(prompt) + len(end)
        ids[row, :stop] = torch.tensor(prompt + end)
        labels[row, begin:stop] = ids[row, begin:stop]
        mask[row, :stop] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def train(model: Any, tokenizer: Any, args: argparse.Namespace) -> None:
    """Minimise the mean of -log p(token of an answer | what is before it) by AdamW: a warm-up, then a cosine to 0."""
    import torch

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / args.steps))

    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    prompts = {
        (question, seen): prompt_ids(tokenizer, question, seen)
        for question in shapes.QUESTIONS
        for seen in (False, True)
    }
    rng = random.Random(f"demonstrations {args.seed}")
    blind = args.batch_size // BLIND_SHARE
    started = time.monotonic()
    model.train()
    for step in range(1, args.steps + 1):
        scenes = [shapes.random_scene(rng, held_out=False) for _ in range(args.batch_size)]
        asked = rng.choices([*shapes.QUESTIONS], WEIGHTS, k=args.batch_size)
        inputs = sequences(
            tokenizer,
            [prompts[question, number >= blind] for number, question in enumerate(asked)],
            [shapes.demonstration(scene, question, rng) for scene, question in zip(scenes, asked, strict=True)],
        )
        pictures = pixels(scenes)
        pictures[:blind] = 0.0  # which the model takes for padding
        loss = model(**inputs, pixel_values=pictures).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == args.steps:
            print(f"step {step:4d}  loss {loss.item():.4f}  {time.monotonic() - started:5.1f} s", flush=True)


def answer_logprobs(model: Any, tokenizer: Any, scenes: list[Any], prompts: list[list[int]], answers: list[str]) -> Any:
    """sum log p(token | tokens before it) over each answer and its END; without pictures where `scenes` is empty."""
    import torch

    inputs = sequences(tokenizer, prompts, answers)
    labels = inputs.pop("labels")[:, 1:]
    with torch.no_grad():
        logits = model(**inputs, **({"pixel_values": pixels(scenes)} if scenes else {})).logits[:, :-1]
    of_labels = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return (of_labels * (labels >= 0)).sum(-1)


def count_ranked(model: Any, tokenizer: Any, rows: list[tuple[shapes.Scene, dict[str, str]]], seen: bool) -> int:
    """How many pairs have sum log p(chosen) > sum log p(rejected), with their pictures or without."""
    prompts = [prompt_ids(tokenizer, row["prompt"], seen) for _, row in rows]
    scenes = [scene for scene, _ in rows] if seen else []
    chosen, rejected = (
        answer_logprobs(model, tokenizer, scenes, prompts, [row[side] for _, row in rows])
        for side in ("chosen", "rejected")
    )
    return int((chosen > rejected).sum())


def report(model: Any, tokenizer: Any) -> None:
    model.eval()
    rows = list(shapes.pairs(1200, seed=2))
    print("\nheld-out pairs, sum log p(chosen) > sum log p(rejected)")
    for question in shapes.QUESTIONS:
        of_one = [row for row in rows if row[1]["prompt"] == question]
        with_picture, without = (count_ranked(model, tokenizer, of_one, seen) for seen in (True, False))
        print(f"{question:28s} with the picture {with_picture}/{len(of_one)}, without {without}/{len(of_one)}")


def main() -> None:
    args = parse_arguments()
    import torch  # after the arguments, so that --help and a typing error answer at once
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, args)
    model.save_pretrained(args.output)
    build_processor(tokenizer).save_pretrained(args.output)
    print(f"saved {args.output}")
    report(model, tokenizer)


if __name__ == "__main__":
    main()
