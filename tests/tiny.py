"""Tiny tokenizers and models that tests build: real ones, of the real classes."""

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

ENDLESS = r"\boxed{\sin^{32}(x+y+z)+\cos^{32}(x-y)}", r"\cos^{32}(x)+\sin(y)"
"""An answer and the right one, which SymPy compares for longer than anyone waits."""

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


SMALL: dict[str, Any] = dict(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    initializer_range=0.3,  # logits of several nats: mistakes show
    pad_token_id=0,
)
"""Sizes of a random model of any architecture, with grouped heads."""

WORDS_TEMPLATE = "{% for m in messages %}{{ m['content'] }} {% endfor %}"


def save_bigram(folder: Path, follows: dict[str, str], words: str = "", context: int = 256) -> Path:
    """A causal LM of whole words whose next word depends on the last one alone: `follows[last]`, by far, and the end of
    the text after a word that is not in `follows`. A judge whose every verdict is known."""
    vocabulary = ["<unk>", "</s>", *sorted({*follows, *follows.values(), *words.split()})]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.decoder = decoders.Metaspace(replacement=" ", prepend_scheme="never")
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="</s>", model_max_length=context
    )
    tok.chat_template = WORDS_TEMPLATE
    size = len(vocabulary) + len(vocabulary) % 2
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(vocabulary),
            hidden_size=size,
            intermediate_size=4,
            num_hidden_layers=1,
            num_attention_heads=1,
            max_position_embeddings=context,
            eos_token_id=1,
            bos_token_id=None,
        )
    )
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size)[: len(vocabulary)])
        table = torch.randn(len(vocabulary), size, generator=torch.Generator().manual_seed(0)) / size
        for number, word in enumerate(vocabulary):
            table[vocabulary.index(follows.get(word, "</s>")), number] += 3.0
        model.lm_head.weight.copy_(table)
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder
