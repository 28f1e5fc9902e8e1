"""The error tree: who has to act decides the class.

Every error carries a finished sentence (what is wrong, where, what to do) and pickles, because it may be raised on a
worker and read on the driver.
"""


class EndorewardError(Exception):
    """Base of every error this project raises on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(EndorewardError):
    """The run was described wrongly; nothing was started."""

    exit_code = 2


class InputError(ConfigError):
    """An input file or folder cannot be used at all: missing, broken, of an unknown shape, or changed under way."""


class StoreError(ConfigError):
    """The output directory cannot be used: another fingerprint, another driver, foreign content."""


class RunError(EndorewardError):
    """The run started and could not finish."""


class StorageError(RunError, OSError):
    """An object store could not be read or written: no permission, out of reach, failing for too long. Names the object, the
    operation and what to do."""


class RowError(EndorewardError):
    """One input row or one response cannot be scored. It becomes a row of `errors/`.

    Args:
        reason: a short fixed word that errors are counted by, such as `empty_response`.
        detail: the sentence for a person: what was found and what would mend it.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def last_line(error: BaseException | str) -> str:
    """What somebody else's error, or its text, says at its end, which in a traceback is the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
