"""Engines: what completes prompts, behind one interface. A member a file.

    base           the interface, and what every member is opened from
    transformers   in this process, by transformers' own `generate` (`pipeline.models.generation`): exact, the reference
    vllm           in this process, by vLLM
    endpoint       a server elsewhere, over HTTP (`http`)
    checks         what an engine cannot run, in a sentence before anything starts

What one can do beside giving texts it says itself (`Abilities`).
"""

from pipeline.models.engines.base import Abilities, Adapters, Drawing, Endpoint, Engine, EngineSpec

__all__ = ["Abilities", "Adapters", "Drawing", "Endpoint", "Engine", "EngineSpec", "open_engine"]


def open_engine(spec: EngineSpec) -> Engine:
    """The engine of a description, with its model loaded. Raises ConfigError."""
    if spec.engine == "vllm":
        from pipeline.models.engines.vllm import VllmEngine

        return VllmEngine(spec)
    if spec.engine == "endpoint":
        from pipeline.models.engines.endpoint import EndpointEngine

        return EndpointEngine(spec)
    from pipeline.models.engines.transformers import TransformersEngine

    return TransformersEngine(spec)
