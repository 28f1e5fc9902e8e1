"""Tiny vision-language models that tests build: real ones, of the real classes, with tokenizer, processor and template."""

import functools
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tiny import tokenizer
from transformers.processing_utils import ProcessorMixin

from pipeline.config import ModelConfig
from pipeline.corpus.pictures import PLACEHOLDER, Picture
from pipeline.corpus.samples import Message, Turn
from pipeline.models.loading import load_settings, load_tokenizer
from pipeline.models.pictures import PictureProcessor

SIDE, PATCH = 16, 4  # pixels of a tile and of a patch
TEXT: dict[str, Any] = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
    pad_token_id=0,
)
VISION: dict[str, Any] = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
TILES = {**VISION, "image_size": SIDE, "patch_size": PATCH}

SPECIALS = {
    "qwen2_vl": ["<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"],
    "gemma3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>"],
    "llava_onevision": ["<image>", "<video>"],
    "idefics3": [
        "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
        *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    ],
}  # fmt: skip
SPECIALS |= {"qwen2_5_vl": SPECIALS["qwen2_vl"], "qwen3_vl": SPECIALS["qwen2_vl"], "smolvlm": SPECIALS["idefics3"]}
NAMES = tuple(SPECIALS)
MARKERS = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), "<|vision_start|><|image_pad|><|vision_end|>"),
    "gemma3": "<start_of_image>",
    **dict.fromkeys(("llava_onevision", "idefics3", "smolvlm"), "<image>"),
}
PARTS = "{% for p in m.content %}{% if p.type == 'image' %}MARKER{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
EITHER = "{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}"
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\nCONTENT<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def template(name: str) -> str:
    """Those of LLaVA-OneVision and SmolVLM take nothing but parts."""
    content = PARTS if name in ("llava_onevision", "smolvlm") else EITHER
    return CHAT.replace("CONTENT", content).replace("MARKER", MARKERS[name])


def build(name: str, ids: dict[str, int], size: int) -> Any:
    t = transformers
    text = {**TEXT, "vocab_size": size}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    squares = {"patch_size": PATCH, "spatial_merge_size": 2, "temporal_patch_size": 2, "num_heads": 2, "depth": 2}
    qwen = {"image_token_id": ids.get("<|image_pad|>"), "video_token_id": ids.get("<|video_pad|>")}
    if name == "qwen2_vl":
        vision = {**squares, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2}
        return t.Qwen2VLForConditionalGeneration(
            t.Qwen2VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **qwen)
        )
    if name == "qwen2_5_vl":
        vision = {**squares, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
        vision |= {"window_size": 16, "fullatt_block_indexes": [1]}
        return t.Qwen2_5_VLForConditionalGeneration(
            t.Qwen2_5_VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision, **qwen)
        )
    if name == "qwen3_vl":
        vision = {**squares, "hidden_size": 16, "intermediate_size": 24, "out_hidden_size": 32}
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        rope["mrope_interleaved"] = True
        return t.Qwen3VLForConditionalGeneration(
            t.Qwen3VLConfig(text_config={**text, "head_dim": 8, "rope_parameters": rope}, vision_config=vision, **qwen)
        )
    if name == "gemma3":
        return t.Gemma3ForConditionalGeneration(
            t.Gemma3Config(
                text_config={
                    **text,
                    "head_dim": 8,
                    "sliding_window": 12,
                    "layer_types": ["sliding_attention", "full_attention"],
                },
                vision_config=TILES,
                mm_tokens_per_image=4,
                image_token_index=ids["<image_soft_token>"],
                boi_token_index=ids["<start_of_image>"],
                eoi_token_index=ids["<end_of_image>"],
            )
        )
    if name == "llava_onevision":
        return t.LlavaOnevisionForConditionalGeneration(
            t.LlavaOnevisionConfig(
                text_config={**text, "model_type": "qwen2"},
                vision_config={**TILES, "model_type": "siglip_vision_model", "vision_use_head": False},
                image_token_index=ids["<image>"],
                video_token_index=ids["<video>"],
                vision_feature_layer=-1,
                image_grid_pinpoints=PINPOINTS,
            )
        )
    kind = "Idefics3" if name == "idefics3" else "SmolVLM"
    config = getattr(t, f"{kind}Config")(
        text_config={**text, "model_type": "llama"},
        vision_config={**TILES, "model_type": f"{name}_vision"},
        scale_factor=2,
        image_token_id=ids["<image>"],
        pad_token_id=0,
    )
    return getattr(t, f"{kind}ForConditionalGeneration")(config)


PINPOINTS = [[16, 16], [16, 32], [32, 16], [32, 32], [16, 48]]


def image_processor(name: str) -> Any:
    t = transformers
    if name.startswith("qwen"):
        size = {"shortest_edge": 8 * 8 * 2, "longest_edge": 8 * 8 * 12}
        return t.Qwen2VLImageProcessorPil(size=size, patch_size=PATCH, merge_size=2, temporal_patch_size=2)
    if name == "gemma3":
        return t.Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    if name == "llava_onevision":
        return t.LlavaOnevisionImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=PINPOINTS)
    kind = {"idefics3": t.Idefics3ImageProcessorPil, "smolvlm": t.SmolVLMImageProcessorPil}[name]
    return kind(size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE})


OWN_SETTINGS: dict[str, dict[str, Any]] = {
    "gemma3": {"image_seq_length": 4},
    "llava_onevision": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
    "idefics3": {"image_seq_len": 4},
    "smolvlm": {"image_seq_len": 4},
}  # of processor_config.json


def save(folder: Path, name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """A random model of a family, in Hugging Face layout."""
    tok = tokenizer(template(name))
    tok.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *SPECIALS[name]]})
    tok.model_max_length = 512
    ids = {token: tok.convert_tokens_to_ids(token) for token in SPECIALS[name]}
    if name == "gemma3":
        tok.init_kwargs |= dict(zip(("boi_token", "image_token", "eoi_token"), SPECIALS[name], strict=True))
    torch.manual_seed(seed)
    model = build(name, ids, len(tok))
    for parameter in model.parameters():  # biases start at zero, which would hide that one is forgotten
        if parameter.ndim == 1:
            parameter.data += torch.randn_like(parameter) * 0.1
        elif parameter.std() < 0.1:
            parameter.data = torch.randn_like(parameter) * 0.2  # so that pictures matter
    model.to(dtype).save_pretrained(folder)
    tok.save_pretrained(folder)
    image_processor(name).save_pretrained(folder)
    if own := OWN_SETTINGS.get(name):
        (folder / "processor_config.json").write_text(json.dumps(own))
    return folder


@functools.lru_cache
def family_processor(name: str, folder: Path) -> Any:
    """The family's own processor, whose video processor, which would need torchvision, is left out."""
    config = ModelConfig(name=str(folder))
    kind = {
        "qwen2_vl": "Qwen2VLProcessor", "qwen2_5_vl": "Qwen2_5_VLProcessor", "qwen3_vl": "Qwen3VLProcessor",
        "gemma3": "Gemma3Processor", "llava_onevision": "LlavaOnevisionProcessor", "idefics3": "Idefics3Processor",
        "smolvlm": "SmolVLMProcessor",
    }[name]  # fmt: skip

    class Own(getattr(transformers, kind)):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            return type(argument)

    parts = {"image_processor": image_processor(name), "tokenizer": load_tokenizer(config)}
    if name not in ("gemma3", "idefics3"):
        parts["video_processor"] = object()
    if name == "gemma3":
        for part, token in zip(("boi_token", "image_token", "eoi_token"), SPECIALS[name], strict=True):
            setattr(parts["tokenizer"], part, token)
            setattr(parts["tokenizer"], f"{part}_id", parts["tokenizer"].convert_tokens_to_ids(token))
    assert issubclass(Own, ProcessorMixin)
    return Own(**parts, **OWN_SETTINGS.get(name, {}))


@functools.lru_cache
def our_processor(folder: Path) -> PictureProcessor:
    config = ModelConfig(name=str(folder))
    return PictureProcessor(config, load_settings(config), load_tokenizer(config))


def picture(width: int, height: int, seed: int = 0) -> Picture:
    """Noise, as PNG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(data := io.BytesIO(), "PNG")
    return Picture(data.getvalue(), f"noise {seed}")


def user(text: str, *pictures: Picture) -> Message:
    """A user's message, `@` where a picture is."""
    content = text.replace("@", PLACEHOLDER)
    return (
        {"role": "user", "content": content, "pictures": list(pictures)}
        if pictures
        else {"role": "user", "content": text}
    )


def turn(prompt: list[Message], response: str, number: int = 0) -> Turn:
    return Turn(f"f:0:response:{number}:0", "f:0", None, number, 0, prompt, response, True, None, {})
