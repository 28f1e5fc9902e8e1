"""The files of a model's processor, which its weights and its tokenizer do without."""

import os
import shutil

from pipeline.models.loading import ModelSource, on_this_machine

FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


def copy_processor(model: ModelSource, folder: str) -> None:
    """Copy those that a model has, of a folder or of a hub, into the folder of one that was made of it."""
    from transformers.utils.hub import cached_file

    for name in FILES:
        path = cached_file(
            on_this_machine(model.name),
            name,
            revision=model.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is not None:
            shutil.copyfile(path, os.path.join(folder, name))
