"""Engines: what completes prompts, behind one interface. A member a file.

    base           the interface, and what every member is opened from
    transformers   in this process, by transformers' own `generate` (`pipeline.models.generation`): exact, the reference

What one can do beside giving texts it says itself (`Abilities`).
"""

from pipeline.models.engines.base import Abilities, Drawing, Engine, EngineSpec

__all__ = ["Abilities", "Drawing", "Engine", "EngineSpec", "open_engine"]


def open_engine(spec: EngineSpec) -> Engine:
    """The engine of a description, with its model loaded. Raises ConfigError."""
    from pipeline.models.engines.transformers import TransformersEngine

    return TransformersEngine(spec)
