"""A model's image processor and the text of its pictures, opened when they are first needed.

The processor as transformers loads it has an image processor and one for videos, which needs torchvision; pictures need the
first alone, which without torchvision is that of Pillow. What the processor does to text is `families`.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipeline.corpus.pictures import Picture
from pipeline.errors import ConfigError, RowError
from pipeline.models.pictures.families import FAMILIES, Family

if TYPE_CHECKING:
    from pipeline.models.loading import ModelSource


class PictureProcessor:
    """How one model takes pictures: a `pipeline.tokens.pictures.PictureText`, and the tensors of pictures.

    Args:
        model: where its files are.
        config: the model's own configuration.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: "ModelSource", config: Any, tokenizer: Any):
        self.model, self.config, self.tokenizer = model, config, tokenizer
        self.token_id = int(config.image_token_id)

    @cached_property
    def token(self) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(self.token_id))

    @property
    def marker(self) -> str:
        return self._family.marker

    @property
    def written(self) -> str:
        return self._family.written

    def expanded(self, sizes: Sequence[tuple[int, int]]) -> list[str]:
        """Raises RowError `refused_picture` where the processor refuses a size, and ConfigError."""
        try:
            return self._family.expanded(sizes)
        except ValueError as error:
            raise _refused(sizes, error) from None

    def tensors(self, *prompts: Sequence[Picture]) -> dict[str, Any]:
        """The inputs of prompts' pictures, of one or several that are forwarded at once, as the processor gives them to its
        model. Raises RowError, ConfigError."""
        decoded = [[picture.open() for picture in pictures] for pictures in prompts]
        try:
            return dict(self._images(decoded, return_tensors="pt", **self._family.options))
        except ValueError as error:
            raise _refused([image.size for images in decoded for image in images], error) from None

    @cached_property
    def _family(self) -> Family:
        """Raises ConfigError."""
        from pipeline.models.loading import processor_settings

        settings = processor_settings(self.model)
        family = FAMILIES[self.config.model_type](self._images, settings, self.tokenizer, self.config)
        known = self.tokenizer.convert_tokens_to_ids([family.marker, self.token])
        if self.tokenizer.unk_token_id in known or None in known:
            raise ConfigError(
                f"the tokenizer of {self.model.name} has no token {family.marker!r}, which its chat template writes for a "
                "picture; is it another model's?"
            )
        return family

    @cached_property
    def _images(self) -> Any:
        """Raises ConfigError."""
        from pipeline.models.loading import load_image_processor

        return load_image_processor(self.model, FAMILIES[self.config.model_type].pillows)


def picture_processor(model: "ModelSource", config: Any, tokenizer: Any) -> PictureProcessor | None:
    """None for a model of a family that we do not read pictures with."""
    return PictureProcessor(model, config, tokenizer) if config.model_type in FAMILIES else None


def open_pictures(model: "ModelSource", config: Any) -> PictureProcessor | None:
    """The same, with the tokenizer that the model has. Raises ConfigError where there is none to load."""
    from pipeline.models.loading import load_tokenizer

    return PictureProcessor(model, config, load_tokenizer(model)) if config.model_type in FAMILIES else None


def require_pictures(model: "ModelSource", config: Any, tokenizer: Any) -> None:
    """What a corpus with pictures asks of a model, before anything is begun. Raises ConfigError."""
    processor = picture_processor(model, config, tokenizer)
    if processor is None:
        what = "is of a family whose pictures are not read" if _has_vision(config) else "reads text alone"
        raise ConfigError(
            f"the corpus has pictures, and {model.name} ({config.model_type}) {what}; take one of {', '.join(FAMILIES)}"
        )
    processor.expanded([(64, 64)])


def _has_vision(config: Any) -> bool:
    return any(getattr(config, name, None) is not None for name in ("vision_config", "image_token_id"))


def _refused(sizes: Sequence[tuple[int, int]], error: ValueError) -> RowError:
    shown = ", ".join(f"{width} x {height}" for width, height in sizes)
    return RowError(
        "refused_picture", f"the model's image processor refuses a picture ({shown} pixels): {error}; leave the row out"
    )
