"""endoreward from Python, without Ray: docs/python.md. A name is loaded when it is first used; until then nothing is.

scorer     Scorer, ScoredResponse                    a language model that rewards responses
labels     read_labels, read_errors                  a label store as an Arrow table
trainers   reward, remote                            the reward as a function of TRL's
public     these and what `pipeline` has of them     soft_value, token_rewards, aggregate, RewardConfig, errors
origin     whether `pipeline`, `actors` and `jobs` are ours
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from endoreward.public import (
        ConfigError,
        EndorewardError,
        RewardConfig,
        RowError,
        ScoredResponse,
        Scorer,
        StoreError,
        __version__,
        aggregate,
        read_errors,
        read_labels,
        remote,
        reward,
        soft_value,
        token_rewards,
    )

__all__ = [
    "ConfigError",
    "EndorewardError",
    "RewardConfig",
    "RowError",
    "ScoredResponse",
    "Scorer",
    "StoreError",
    "__version__",
    "aggregate",
    "read_errors",
    "read_labels",
    "remote",
    "reward",
    "soft_value",
    "token_rewards",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from endoreward.origin import refuse_foreign

    refuse_foreign()
    from endoreward import public

    value = globals()[name] = getattr(public, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
