"""What is set of a process for a run is taken back, also after an error; which addresses are refused, without a Ray."""

import logging
import signal
import socket

import pytest
import ray

from jobs.cluster import _logging_and_signals_as_before, joins_cluster, require_answer
from pipeline.config import ClusterConfig
from pipeline.errors import ConfigError


def test_logging_and_signals_are_put_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("ray")
    monkeypatch.setattr(logger, "level", logging.INFO)
    handlers, on_term = list(logger.handlers), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), _logging_and_signals_as_before():
        logger.setLevel(logging.ERROR)
        logger.addHandler(logging.NullHandler())
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyError
    assert logger.level == logging.INFO and logger.handlers == handlers
    assert signal.getsignal(signal.SIGTERM) == on_term


def test_what_is_no_cluster_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        pytest.skip("this process has a Ray, of another test")
    for given in (None, "", "local"):
        monkeypatch.setenv("RAY_ADDRESS", given) if given is not None else monkeypatch.delenv("RAY_ADDRESS", False)
        assert not joins_cluster(ClusterConfig())
    assert not joins_cluster(ClusterConfig(ray_address="local"))
    assert joins_cluster(ClusterConfig(ray_address="127.0.0.1:6379"))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert joins_cluster(ClusterConfig())


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_where_nothing_listens_the_address_is_wrong(scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        place = f"{scheme}127.0.0.1:{once.getsockname()[1]}"
    with pytest.raises(ConfigError, match=rf"{place}: Connection refused.*run\.ray_address"):
        require_answer(place)
    with pytest.raises(ConfigError, match="is no address"):
        require_answer(f"{scheme}127.0.0.1:port")


def test_credentials_in_the_environments_address_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    if ray.is_initialized():
        pytest.skip("this process has a Ray, of another test")
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:hidden@head:10001")
    with pytest.raises(ConfigError, match="RAY_ADDRESS: holds credentials") as refused:
        joins_cluster(ClusterConfig())
    assert "hidden" not in str(refused.value)
