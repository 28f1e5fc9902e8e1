"""`endoreward shim NAME`: the small file, or the lines of a configuration, by which a training framework asks our server.

It stands by itself: nothing of ours has to be installed beside the framework, but for TRL's.
"""

from importlib.resources import files

from pipeline.errors import ConfigError

SHIMS = {
    "trl": "trl.py",
    "verl": "verl.py",
    "openrlhf": "openrlhf.sh",
    "slime": "slime.sh",
    "nemo-rl": "nemo_rl.py",
    "skyrl": "skyrl.py",
    "prime-rl": "prime_rl.toml",
}
CLIENT = "# client.py\n"  # in whose place that file stands


def shim(name: str) -> int:
    """Print it. Returns 0; raises ConfigError for a name that is none."""
    print(shim_of(name), end="")
    return 0


def shim_of(name: str) -> str:
    """The file as text."""
    if name not in SHIMS:
        raise ConfigError(f"{name}: no such framework; there are {', '.join(SHIMS)}")
    folder = files(__package__) / "shims"
    text = (folder / SHIMS[name]).read_text("utf-8")
    return text.replace(CLIENT, (folder / "client.py").read_text("utf-8")) if CLIENT in text else text
