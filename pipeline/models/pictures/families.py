"""How each family's processor writes pictures as tokens: how many, and what stands around them.

The text follows from the pictures' sizes, the image processor's parameters and those of `processor_config.json`; no pixel is
looked at. That it is the text of the family's own processor is tested against that.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pipeline.corpus.pictures import Size


class Family:
    """One family's way, for one model.

    Args:
        images: the model's image processor.
        settings: what `processor_config.json` says.
        tokenizer: the model's, which may name its tokens.
        config: the model's own configuration.
    """

    pillows: ClassVar[str]  # the class of Pillow's image processor
    options: ClassVar[Mapping[str, Any]] = {}  # of a call of the image processor, as the family's processor gives them

    def __init__(self, images: Any, settings: Mapping[str, Any], tokenizer: Any, config: Any):
        self.images, self.settings, self.tokenizer, self.config = images, settings, tokenizer, config

    @property
    def marker(self) -> str:
        """What the chat template writes where a picture is."""
        return self._token("image_token", "<image>")

    @property
    def written(self) -> str:
        """What stands for a picture in a text without a template."""
        return self.marker

    def expanded(self, sizes: Sequence[Size]) -> list[str]:
        """What takes the place of each marker of a prompt with pictures of these sizes."""
        raise NotImplementedError

    def _token(self, name: str, default: str) -> str:
        return str(getattr(self.tokenizer, name, None) or self.settings.get(name) or default)


class Qwen(Family):
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: a token for each square of `merge_size` by `merge_size` patches."""

    pillows = "Qwen2VLImageProcessorPil"

    @property
    def marker(self) -> str:
        return self._token("image_token", "<|image_pad|>")

    @property
    def written(self) -> str:
        begin = self._token("vision_start_token", "<|vision_start|>")
        return f"{begin}{self.marker}{self._token('vision_end_token', '<|vision_end|>')}"

    def expanded(self, sizes: Sequence[Size]) -> list[str]:
        patches = [self.images.get_number_of_image_patches(height, width, {}) for width, height in sizes]
        return [self.marker * (count // self.images.merge_size**2) for count in patches]


class Gemma3(Family):
    """As many tokens for any picture, between a begin and an end; pictures are not cut up (pan and scan), as the processor's
    default is."""

    pillows = "Gemma3ImageProcessorPil"
    options: ClassVar[Mapping[str, Any]] = {"do_pan_and_scan": False}

    @property
    def marker(self) -> str:
        return self._token("boi_token", "<start_of_image>")

    def expanded(self, sizes: Sequence[Size]) -> list[str]:
        soft = self._token("image_token", "<image_soft_token>") * int(self.settings.get("image_seq_length", 256))
        return [f"\n\n{self.marker}{soft}{self._token('eoi_token', '<end_of_image>')}\n\n" for _ in sizes]


class LlavaOnevision(Family):
    """One picture is cut into tiles after the best of the resolutions that the model knows, without their padding, and each
    row of tokens ends in a token of its own; several pictures have one tile each."""

    pillows = "LlavaOnevisionImageProcessorPil"

    def expanded(self, sizes: Sequence[Size]) -> list[str]:
        vision = self.config.vision_config
        own = self.settings.get("num_image_tokens") or (vision.image_size // vision.patch_size) ** 2
        counts = [own + 1] * len(sizes) if len(sizes) > 1 else [own + self._of_tiles(*size, own) for size in sizes]
        strategy = self.settings.get("vision_feature_select_strategy") or self.config.vision_feature_select_strategy
        return [self.marker * (count - (strategy == "default")) for count in counts]

    def _of_tiles(self, width: int, height: int, own: int) -> int:
        """Tokens of all tiles of one picture."""
        from transformers.image_processing_utils import select_best_resolution

        side, tile = math.isqrt(own), self._tile()
        best = select_best_resolution((height, width), self.images.image_grid_pinpoints)
        rows, columns = (side * (length // tile) for length in best)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        aspect = self.settings.get("vision_aspect_ratio") or self.config.vision_aspect_ratio
        shrunk = math.sqrt(rows * columns / (int(aspect.removeprefix("anyres_max_")) * side**2))
        if shrunk > 1.1:
            rows, columns = int(rows // shrunk), int(columns // shrunk)
        return int(rows * columns + rows)

    def _tile(self) -> int:
        size = self.images.size
        return int(size["shortest_edge"] if "shortest_edge" in size else min(size["height"], size["width"]))


class Idefics3(Family):
    """A picture is cut into rows of tiles, which the text names, and shown whole behind them."""

    pillows = "Idefics3ImageProcessorPil"

    def expanded(self, sizes: Sequence[Size]) -> list[str]:
        around = self._token("fake_image_token", "<fake_token_around_image>")
        whole = self._token("global_image_token", "<global-img>")
        tile = self.marker * int(self.settings.get("image_seq_len", 169))
        texts = []
        for width, height in sizes:
            _, rows, columns = self.images.get_number_of_image_patches(height, width, {})
            lines = [
                "".join(f"{around}<row_{row}_col_{column}>{tile}" for column in range(1, columns + 1)) + "\n"
                for row in range(1, rows + 1)
            ]
            texts.append("".join(lines) + "\n" * bool(rows) + f"{around}{whole}{tile}{around}")
        return texts


class SmolVLM(Idefics3):
    """As Idefics3, with an image processor of its own name."""

    pillows = "SmolVLMImageProcessorPil"


FAMILIES: dict[str, type[Family]] = {
    "qwen2_vl": Qwen,
    "qwen2_5_vl": Qwen,
    "qwen3_vl": Qwen,
    "gemma3": Gemma3,
    "llava_onevision": LlavaOnevision,
    "idefics3": Idefics3,
    "smolvlm": SmolVLM,
}
"""By a configuration's `model_type`."""
