"""`endoreward serve --local` beside whoever measures or tests it, in an environment of its own. Needs nothing but Python."""

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextlib.contextmanager
def local_server(model: Path, python: str = sys.executable) -> Iterator[str]:
    """The address of a server of a model, for as long as the block runs. Raises RuntimeError with what it said where it ends
    before."""
    command = [python, "-m", "jobs", "serve", "--local", "--model", str(model), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            printed = ""
            while "is loaded" not in printed:
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"the server ended: {printed}")
                printed += line
            address = re.search(r"http://127\.0\.0\.1:\d+", printed)
            assert address is not None
            yield address[0]
        finally:
            process.terminate()
            process.wait(60)
