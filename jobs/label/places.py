"""What a command needs before it begins: its flags have values, and its local places hold for workers too."""

import os
from typing import Any, TypeVar

from pipeline.config import EvaluateConfig, LabelConfig
from pipeline.errors import ConfigError
from pipeline.storage import absolute

Labelling = TypeVar("Labelling", bound=LabelConfig)


def with_absolute_places(config: Labelling) -> Labelling:
    """Workers have other working directories, so every local place becomes absolute."""

    def model(name: str) -> str:
        return os.path.abspath(name) if os.path.isdir(name) else name

    tokens = config.tokens
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": model(config.model.name)},
        "output": {"path": absolute(config.output.path)},
        "tokens": {
            "rubrics": absolute(tokens.rubrics) if tokens.rubrics else None,
            "template": tokens.template if tokens.template in ("auto", "none") else absolute(tokens.template),
        },
    }
    if isinstance(config, EvaluateConfig):
        sections |= {
            name: {"model": model(getattr(config, name).model)} for name in ("verifier", "judge", "classifier")
        }
        sections["implicit"] = {"reference": model(config.implicit.reference)}
    changed = {name: getattr(config, name).model_copy(update=update) for name, update in sections.items()}
    return config.model_copy(update=changed)


def require(**flags: Any) -> None:
    """Raises ConfigError that names the flags without a value."""
    missing = [f"--{flag}" for flag, value in flags.items() if not value]
    if missing:
        raise ConfigError(f"{' and '.join(missing)}: none given")
