"""Chat templates of the kinds that current models have, written small, and tokenizers that know their tokens.

Each stands for a family of published ones: what it does to the system message, to thoughts, to tool calls, where its
generation prompt ends, and what it puts behind a turn.
"""

import re

import transformers
from tiny import CHATML, tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

HEAD = "{% for m in messages %}"
TAIL = "{% endfor %}"
CALLS = (
    "{% for c in m['tool_calls'] or [] %}<tool_call>{{ c['function']['name'] }} {{ c['function']['arguments'] | tojson }}"
    "</tool_call>{% endfor %}"
)
SPLIT = (  # thoughts beside the text, or in it
    "{% set t = m['reasoning_content'] or '' %}{% set c = m['content'] %}{% if not t and '</think>' in c %}"
    "{% set t = c.split('</think>')[0].split('<think>')[-1].strip() %}{% set c = c.split('</think>')[-1].lstrip('\\n') %}"
    "{% endif %}"
)


def _chatml(answer: str, generation: str, before: str = "") -> str:
    """ChatML whose assistant turns are `answer`."""
    return (
        before + HEAD + "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}" + answer + "{% else %}"
        "{{ m['content'] }}{% endif %}<|im_end|>\n" + TAIL + "{% if add_generation_prompt %}<|im_start|>assistant\n"
        + generation + "{% endif %}"
    )  # fmt: skip


TOOLS = "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"

TEMPLATES = {
    # ChatML: Qwen 1.5 and 2, SmolLM, Yi
    "chatml": CHATML,
    # with tools, as Qwen 2.5
    "tools": _chatml("{{ m['content'] }}" + CALLS, "", TOOLS),
    # a space in front of the answer, as Llama 2 and Mistral 7B; the system message is refused
    "inst": HEAD + "{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}{% elif m['role'] == 'user' %}"
    "[INST] {{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}" + TAIL,
    # trims, and says today's date, as Llama 3.2
    "dated": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday Date: {{ strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set messages = messages[1:] %}{% endif %}"
    "<|eot_id|>" + HEAD + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>" + TAIL
    + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    # roles of its own and no system message, as Gemma
    "gemma": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + HEAD
    + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    + TAIL + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    # an empty block of thoughts before an answer without, as Qwen 3
    "thinking": _chatml(
        SPLIT + "<think>\n{{ t }}\n</think>\n\n{{ c }}" + CALLS,
        "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}",
        TOOLS,
    ),
    # the generation prompt opens the thoughts, as Qwen 3.5
    "opened": _chatml(SPLIT + "<think>\n{{ t }}\n</think>\n\n{{ c }}", "<think>\n"),
    # likewise, and an empty block that is closed at once, as Nemotron 3
    "closed": _chatml(SPLIT + "<think>{{ '\n' ~ t ~ '\n' if t else '' }}</think>{{ c }}", "<think>\n"),
    # thoughts are dropped, as DeepSeek R1
    "dropping": HEAD + "{% if m['role'] == 'assistant' %}<|Assistant|>{{ m['content'].split('</think>')[-1] }}<|end|>"
    "{% elif m['role'] == 'user' %}<|User|>{{ m['content'] }}{% else %}{{ m['content'] }}{% endif %}" + TAIL
    + "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
    # no end of turn, as GLM 4.5
    "endless": "[gMASK]" + HEAD + "<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' %}" + SPLIT
    + "<think>{{ t }}</think>\n{{ c }}{% else %}{{ m['content'] }}{% endif %}" + TAIL
    + "{% if add_generation_prompt %}<|assistant|>{% endif %}",
    # channels, a date and another end after tool calls, as gpt-oss
    "channels": "<|start|>system<|message|>Current date: {{ strftime_now('%Y-%m-%d') }}<|end|>"
    "{% for t in tools or [] %}<|start|>developer<|message|>{{ t | tojson }}<|end|>{% endfor %}" + HEAD
    + "{% if m['role'] == 'assistant' %}{% if m['thinking'] %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m['thinking'] }}<|end|>{% endif %}{% if m['tool_calls'] %}{% set f = m['tool_calls'][0]['function'] %}"
    "<|start|>assistant to={{ f['name'] }}<|message|>{{ f['arguments'] | tojson }}<|call|>{% else %}"
    "<|start|>assistant<|channel|>final<|message|>"
    "{{ m['content'] }}{{ '<|return|>' if loop.last else '<|end|>' }}{% endif %}"
    "{% else %}<|start|>{{ m['role'] }}<|message|>{{ m['content'] }}<|end|>{% endif %}" + TAIL
    + "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    # ends in a space, as Vicuna
    "spaced": HEAD + "{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% elif m['role'] == 'system' %}{{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}" + TAIL + "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
    # an end of text behind the last turn, as Phi 3
    "ended": HEAD + "<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n" + TAIL
    + "{% if add_generation_prompt %}<|assistant|>\n{% else %}</s>{% endif %}",
    # no generation prompt; the system message is dropped, as small talkers have it
    "talk": HEAD + "{% if m['role'] == 'user' %}User: {{ m['content'] }}\nBot:{% elif m['role'] == 'assistant' %} "
    "{{ m['content'] }}</s>\n{% endif %}" + TAIL,
}  # fmt: skip

SPECIAL = re.compile(r"<\|[\w.]+\|>|<(?:start|end)_of_turn>|\[gMASK\]")
ROLES = ("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
MARKERS = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # added tokens that are not special, as in Qwen 3


def chat_tokenizer(name: str, pieces: bool = False) -> transformers.PreTrainedTokenizerFast:
    """A tokenizer with one of the templates, and its control tokens as special ones.

    Args:
        pieces: of SentencePiece's kind, which puts a space before every text; else of bytes, with merges that cross words.
    """
    template = TEMPLATES[name]
    tok = sentence_pieces() if pieces else tokenizer()
    tok.model_max_length = 4096
    special = sorted({*SPECIAL.findall(template), *ROLES, "<|im_start|>", "<|im_end|>"})
    tok.add_special_tokens({"additional_special_tokens": special})
    tok.add_tokens([marker for marker in MARKERS if marker in template])
    tok.chat_template = template
    return tok


def sentence_pieces(merges: tuple[tuple[str, str], ...] = ()) -> transformers.PreTrainedTokenizerFast:
    """Characters, and words with the space in front of them as one piece; what is unknown in bytes. As Llama 2's."""
    letters = [chr(code) for code in range(33, 127)] + ["▁"]
    vocabulary = {
        piece: i for i, piece in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *letters])
    }
    merges = merges or (
        ("▁", "a"),
        ("▁", "r"),
        ("▁r", "e"),
        ("▁re", "d"),
        ("r", "e"),
        ("re", "d"),
        ("▁", "b"),
        ("a", "b"),
    )
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    core = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"(?<=\n)|(?=\n)"), "isolated")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=4096
    )
