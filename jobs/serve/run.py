"""The command `serve`: checks the description, opens the port, and answers until it is told to stop."""

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

from jobs.terminal import say
from pipeline.config import ServeConfig
from pipeline.errors import ConfigError
from pipeline.models.loading import context_length, load_model, load_settings, load_tokenizer
from pipeline.tokens import Renderer


def serve(config: ServeConfig, local: bool) -> int:
    """Answers requests until SIGTERM or SIGINT; those in hand end first. Raises ConfigError."""
    if not local:
        raise ConfigError("replicas on Ray Serve are not there yet: give --local for one process without Ray")
    token = os.environ.get(config.serve.token_variable, "")
    if not token and not config.serve.on_loopback:
        raise ConfigError(
            f"serve.host = {config.serve.host} can be reached from other machines, and there is no token: set "
            f"{config.serve.token_variable} in the environment, or leave serve.host out"
        )
    try:
        import uvicorn

        from jobs.serve.app import app_of
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'endoreward[serve]'") from None
    renderer = open_renderer(config)
    with listening(config.serve.host, config.serve.port) as listener:
        server: uvicorn.Server
        errors: list[Exception] = []

        def failed(error: Exception) -> None:
            errors.append(error)
            server.should_exit = True

        service = service_of(config, renderer, failed)
        seconds = int(config.serve.shutdown_s)
        settings = uvicorn.Config(
            app_of(service, token),
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=seconds,
            lifespan="on",
        )
        server = uvicorn.Server(settings)
        server.capture_signals = lambda: _until_told(server)  # type: ignore[method-assign]
        host, port = listener.getsockname()[:2]
        say(f"{config.name} at http://{f'[{host}]' if ':' in host else host}:{port}, its routes at /docs")
        server.run(sockets=[listener])
    if errors:
        raise errors[0]
    return 0


def open_renderer(config: ServeConfig) -> Renderer:
    """Raises ConfigError where the model's tokenizer or settings cannot be loaded."""
    tokenizer = load_tokenizer(config.model)
    return Renderer(tokenizer, config.tokens.dated(), context_length(load_settings(config.model), tokenizer))


def service_of(config: ServeConfig, renderer: Renderer, failed: Any = lambda error: None) -> Any:
    """The model as requests see it; loaded when the server starts."""
    from jobs.serve.service import Service

    def load() -> Any:
        import torch

        from pipeline.models.scoring import Scorer

        device = config.scorer.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        scorer = Scorer(
            load_model(config.model, device),
            alpha=config.reward.alpha,
            budget_tokens=config.scorer.budget_tokens,
            head_chunk_mb=config.scorer.head_chunk_mb,
        )
        say(f"{config.name} is loaded ({scorer.layout} on {device})")
        return scorer

    return Service(config, renderer, load, failed)


@contextlib.contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """Raises ConfigError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}; give another --port or --host"
        ) from None
    with listener:
        yield listener


@contextlib.contextmanager
def _until_told(server: Any) -> Iterator[None]:
    """SIGINT and SIGTERM end the server in peace, and the command with 0."""
    before = {number: signal.signal(number, server.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
