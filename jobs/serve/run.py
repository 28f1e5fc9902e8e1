"""The command `serve`: checks the description, opens the port, and answers until it is told to stop."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from jobs.terminal import say
from pipeline.config import ModelConfig, ServeConfig, refuse_unread
from pipeline.config.serving import unread_without_ray
from pipeline.errors import ConfigError
from pipeline.models.loading import context_length, load_settings, load_tokenizer
from pipeline.tokens import Renderer
from pipeline.tokens.texts import load_rubrics

if TYPE_CHECKING:
    from jobs.serve.batching import Scorer
    from jobs.serve.desk import Desk

Open = Callable[[str, ModelConfig], "Scorer"]  # a model by its name, as a scorer


def serve(config: ServeConfig, local: bool) -> int:
    """Answers requests until SIGTERM or SIGINT; those in hand end first. Raises ConfigError, RunError."""
    if local:
        refuse_unread(config, unread_without_ray())
    token = os.environ.get(config.serve.token_variable, "")
    if not token and not config.serve.on_loopback:
        raise ConfigError(
            f"serve.host = {config.serve.host} can be reached from other machines, and there is no token: set "
            f"{config.serve.token_variable} in the environment, or leave serve.host out"
        )
    try:
        from jobs.serve import app, connections  # noqa: F401

        if not local:
            import ray.serve  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serve needs {error.name}: pip install 'endoreward[serve]'") from None
    renderers = open_renderers(config)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listening(config.serve.host, config.serve.port))
        open_model, batches = in_process(config), 1
        if not local:
            from jobs.serve.replicas import PER_REPLICA, deployments

            open_model = stack.enter_context(deployments(config, listener.getsockname()[1])).open
            batches = PER_REPLICA * config.serve.most_replicas
        _answer(config, renderers, open_model, batches, listener, token)
    return 0


def _answer(
    config: ServeConfig,
    renderers: dict[str, dict[str, Renderer]],
    open_model: Open,
    batches: int,
    listener: socket.socket,
    token: str,
) -> None:
    """Until a signal, or until a model cannot be loaded, whose error is then raised."""
    from jobs.serve.app import app_of
    from jobs.serve.connections import server_of

    errors: list[Exception] = []

    def failed(error: Exception) -> None:
        errors.append(error)
        server.should_exit = True

    server = server_of(app_of(desk_of(config, renderers, open_model, failed, batches), token), config.serve)
    server.capture_signals = lambda: _until_told(server)  # type: ignore[method-assign]
    host, port = listener.getsockname()[:2]
    place = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    say(f"{', '.join(config.models)} at {place}, its routes at /docs")
    server.run(sockets=[listener])
    if errors:
        raise errors[0]


def open_renderers(config: ServeConfig) -> dict[str, dict[str, Renderer]]:
    """Of each model, by its name, and by the names in requests: its own, or NAME@RUBRIC for each of `tokens.rubrics`.

    Raises ConfigError where a model's tokenizer or settings cannot be loaded."""
    tokens = config.tokens.dated()
    under = {"": tokens}
    if tokens.rubrics is not None:
        texts = load_rubrics(tokens.rubrics)
        under = {
            f"@{name}": tokens.model_copy(update={"rubrics": None, "system_prompt": text})
            for name, text in texts.items()
        }
    renderers = {}
    for name, model in config.models.items():
        tokenizer = load_tokenizer(model)
        context = context_length(load_settings(model), tokenizer)
        renderers[name] = {name + rubric: Renderer(tokenizer, own, context) for rubric, own in under.items()}
    return renderers


def desk_of(
    config: ServeConfig,
    renderers: dict[str, dict[str, Renderer]],
    open_model: Open,
    failed: Callable[[Exception], None] = lambda error: None,
    batches: int = 1,
) -> "Desk":
    """The models as requests see them; loaded when the server starts.

    Args:
        failed: is called with what `open_model` raised.
        batches: of a model, at once at most.
    """
    from jobs.serve.batching import Batcher
    from jobs.serve.desk import Desk
    from jobs.serve.service import Service

    def loads(name: str) -> Callable[[], "Scorer"]:
        return lambda: open_model(name, config.models[name])

    batchers = {name: Batcher(loads(name), failed, batches) for name in renderers}
    tokenizing = ThreadPoolExecutor(1, "tokenizer")
    services = {
        name: Service(name, config, renderer, batchers[model], tokenizing)
        for model, named in renderers.items()
        for name, renderer in named.items()
    }
    return Desk(config, batchers, services, tokenizing)


def in_process(config: ServeConfig) -> Open:
    def open_model(name: str, model: ModelConfig) -> "Scorer":
        import torch

        from jobs.serve.inprocess import InProcess, scorer_spec

        device = config.scorer.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        scorer = InProcess(scorer_spec(config, model, device))
        say(f"{name} is loaded ({scorer.layout} on {device})")
        return scorer

    return open_model


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
