"""What a command needs before it begins: its flags have values, and its local places hold for workers too."""

from typing import Any, TypeVar

from pipeline.config import EvaluateConfig, LabelConfig, places
from pipeline.config.section import changed, value_at
from pipeline.errors import ConfigError
from pipeline.storage import absolute_folder

Labelling = TypeVar("Labelling", bound=LabelConfig)


def with_absolute_places(config: Labelling) -> Labelling:
    """Workers have other working directories, so every local place becomes absolute."""
    models = ["model.name"]
    if isinstance(config, EvaluateConfig):
        models += ["verifier.model", "judge.model", "classifier.model", "implicit.reference"]
    values: dict[str, Any] = {field: absolute_folder(value_at(config, field)) for field in models}
    values["tokens.rubrics"] = config.tokens.rubrics or None
    values["input.picture_root"] = config.input.picture_root or None
    return places.with_absolute_places(
        changed(config, values), "output.path", "tokens.rubrics", "tokens.template", "input.picture_root"
    )


def require(**flags: Any) -> None:
    """Raises ConfigError that names the flags without a value."""
    missing = [f"--{flag}" for flag, value in flags.items() if not value]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: none given")
