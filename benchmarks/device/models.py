"""Models of random weights, small and large, and turns of the lengths of corpora. Nothing is read from anywhere."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer
from tokenizers import models as bpe

from pipeline.tokens import TokenizedTurn

FAMILIES = ("llama", "qwen3", "gemma2", "moe")
GROUPS = (1, 4, 8)  # query heads to a key-value head
VOCABULARY = 1600


def small(family: str, groups: int, vocabulary: int = VOCABULARY) -> Any:
    """A float32 model on the CPU whose weights are exact in bfloat16, in eval mode: 8 heads, 3 layers. Weights are large
    enough for attention to be sharp and next tokens to be uneven."""
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 8 // groups, "max_position_embeddings": 2048,
        "initializer_range": 0.08, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None,
        "tie_word_embeddings": family in ("qwen3", "gemma2"),
    }  # fmt: skip
    if family == "llama":
        model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common))
    elif family == "qwen3":
        model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common, head_dim=64))
    elif family == "gemma2":
        model = transformers.Gemma2ForCausalLM(
            transformers.Gemma2Config(
                **common, head_dim=64, query_pre_attn_scalar=64, sliding_window=24, attn_logit_softcapping=4.0,
                final_logit_softcapping=8.0,
            )
        )  # fmt: skip
    else:
        model = transformers.Qwen3MoeForCausalLM(
            transformers.Qwen3MoeConfig(
                **common, head_dim=64, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=128,
                norm_topk_prob=True,
            )
        )  # fmt: skip
    return model.to(torch.bfloat16).to(torch.float32).eval()


@dataclass(frozen=True)
class Size:
    """A Qwen3 of this size; D, of the MLP, layers, heads, key-value heads, whether the output matrix is tied."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    head_dim: int = 128
    vocabulary: int = 151936


SIZES = {
    "0.6B": Size(1024, 3072, 28, 16, 8, True),
    "1.5B": Size(1536, 8960, 28, 12, 2, True),
    "8B": Size(4096, 12288, 36, 32, 8, False),
    "toy": Size(64, 128, 2, 4, 2, True, 16, 500),
}


def large(size: Size, device: str, dtype: torch.dtype) -> Any:
    """Made where it will be, in its dtype: nothing of it is ever on the host."""
    config = transformers.Qwen3Config(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.inner,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        head_dim=size.head_dim, tie_word_embeddings=size.tied, max_position_embeddings=8192, initializer_range=0.02,
        bos_token_id=None, eos_token_id=1, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    assert model.dtype == dtype and model.device.type == device, (model.dtype, model.device)
    return model.eval()


def tokenizer() -> Any:
    """A real one that decodes; its text does not matter."""
    core = Tokenizer(bpe.WordLevel({"<unk>": 0, "</s>": 1, **{f"w{i}": i for i in range(2, 400)}}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", model_max_length=2048
    )


def turn(rng: np.random.Generator, prompt: list[int], length: int, vocabulary: int) -> TokenizedTurn:
    return TokenizedTurn(prompt, rng.integers(2, vocabulary, max(1, length)).tolist(), [])


def awkward_turns(siblings: int, vocabulary: int = VOCABULARY) -> list[TokenizedTurn]:
    """Lengths at which kernels go wrong: prompts of one token, responses of one token (none of which is forwarded), longer
    than a tile, longer than a window. `siblings`: responses to a prompt."""
    rng = np.random.default_rng(1)
    lengths = [(1, 5), (1, 1), (7, 1), (63, 64), (64, 65), (129, 130), (20, 200), (300, 3), (33, 31)]
    turns = []
    for prompt, response in lengths:
        ids = rng.integers(2, vocabulary, prompt).tolist()
        for number in range(siblings):
            turns.append(turn(rng, ids, response + 7 * number * (response > 1), vocabulary))
    return turns


def corpus(shape: str, tokens: int, vocabulary: int, seed: int = 0) -> list[TokenizedTurn]:
    """About `tokens` prompt and response tokens, a shared prompt counted once.

    hh          two responses; lengths lognormal as measured on HH (`benchmarks/throughput.py`)
    rm-bench    24 responses of about 315 tokens to a prompt of about 60
    best-of-16  16 responses of about 40 tokens to a prompt of about 600
    """
    rng = np.random.default_rng(seed)
    turns: list[TokenizedTurn] = []
    made = 0

    def lognormal(mean: float, deviation: float) -> int:
        return int(np.clip(rng.lognormal(mean, deviation), 3, 512))

    while made < tokens:
        if shape == "hh":
            prompt, responses = lognormal(4.57, 0.95), [lognormal(3.54, 0.92) for _ in range(2)]
        elif shape == "rm-bench":
            prompt, responses = int(rng.integers(30, 90)), rng.normal(315, 80, 24).clip(20, 700).astype(int).tolist()
        else:
            prompt, responses = int(rng.integers(500, 700)), rng.integers(10, 70, 16).tolist()
        ids = rng.integers(2, vocabulary, prompt).tolist()
        turns += [turn(rng, ids, length, vocabulary) for length in responses]
        made += prompt + sum(responses)
    return turns
