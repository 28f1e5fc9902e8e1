"""The names that `import endoreward` gives, in one place. Imports neither torch nor Ray."""

from endoreward.labels import read_errors, read_labels
from endoreward.scorer import ScoredResponse, Scorer
from endoreward.trainers import remote, reward
from pipeline import __version__
from pipeline.config import RewardConfig
from pipeline.errors import ConfigError, EndorewardError, RowError, StoreError
from pipeline.rewards.endogenous import aggregate, soft_value, token_rewards

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
