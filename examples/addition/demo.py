"""What `make demo` runs: the commands below, each as you would type it in the root of the repository.

Label 500 pairs with the small model and evaluate the labels. Train the model on its own answers, which it has labelled
itself: offline, by a policy gradient on the stored rewards, and online. See how often each policy is right.

The commands share this process and a Ray, so that less is started and imported anew.
"""

import itertools
import runpy
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from jobs.__main__ import main, quiet
from jobs.cluster import cluster
from pipeline.config import ClusterConfig
from pipeline.store import places

COMMANDS = """
endoreward label examples/addition/label.toml --output out/demo
endoreward evaluate --benchmark pairs --labels out/demo --output out/demo-evaluation
python examples/addition/problems.py --problems 128 --split train --output out/demo-problems.jsonl
endoreward sample --policy examples/addition/model --prompts out/demo-problems.jsonl --output out/demo-samples \
    --set scorer.cpus_per_actor=1
endoreward label --model examples/addition/model --input out/demo-samples --output out/demo-labels \
    --set scorer.cpus_per_actor=1
endoreward train examples/train.toml
endoreward rl examples/addition/rl.toml --output out/demo-rl --set rl.max_steps=32
python examples/addition/accuracy.py --problems 500 examples/addition/model out/demo-policy/hf out/demo-rl/hf
"""
WORKERS = 4  # of rl: a learner, a rewarder and two samplers, which take turns where there are fewer CPUs

POLICY = "out/demo-policy"  # of examples/train.toml


def run() -> None:
    """Run one command after the other; exits with the first that fails."""
    for line in COMMANDS.strip().splitlines():
        Console().print(f"\n[bold]$ {line}", soft_wrap=True, highlight=False)
        program, *words = shlex.split(line)
        if program == "endoreward":
            if code := main(words):
                sys.exit(code)
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")


def clear() -> None:
    """Take away what an earlier demo wrote, and nothing that only lies where it would write."""
    words = shlex.split(COMMANDS)
    for name in [after for word, after in itertools.pairwise(words) if word == "--output"] + [POLICY]:
        if Path(name).is_file():
            Path(name).unlink()
        elif any(places.is_ours(name, kind) for kind in places.KINDS):
            shutil.rmtree(name)


if __name__ == "__main__":
    clear()
    quiet(verbose=False)
    with cluster(ClusterConfig(num_cpus=WORKERS)):
        run()
