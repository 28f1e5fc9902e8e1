"""Tiny tokenizers and models that tests build: real ones, of the real classes."""

from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(
    template: str | None = None, bos: bool = False, specials: bool = True
) -> transformers.PreTrainedTokenizerFast:
    """Every byte a token, plus merges that cross words so that boundaries matter; `bos` adds `<s>` in front."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: i for i, character in enumerate(alphabet)}
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("Ġ", "a")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    core = Tokenizer(models.BPE(vocabulary, merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"] if specials else []
    core.add_special_tokens(names)
    if bos:
        core.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))])
    known = {"bos_token": "<s>", "eos_token": "</s>"} if specials else {}
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, **known, additional_special_tokens=names[2:], model_max_length=256
    )
    fast.chat_template = template
    return fast


def save_model(folder: Path, template: str | None = None, context: int = 256, seed: int = 0, hidden: int = 16) -> Path:
    """A random Llama of a few thousand parameters with `tokenizer`, in Hugging Face layout."""
    tok = tokenizer(template)
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=len(tok),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context,
        initializer_range=0.3,
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
