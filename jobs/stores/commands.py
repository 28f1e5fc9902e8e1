"""The commands that work on a label store or a run, as arguments of the command line; what they do is imported as it runs."""

import argparse
import shlex
from collections.abc import Callable
from typing import TypeAlias

from pipeline.config import refuse_secrets

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
Command = Callable[[argparse.Namespace], int]


def add_store_commands(commands: Commands) -> None:
    """The commands that read a store or a run."""
    _of_store(commands, "report", _report, "draw the page of a finished label store, or of a training run so far")

    sweep = _of_store(commands, "sweep", _sweep, "accuracy of every aggregation and several gammas, from stored tokens")
    sweep.add_argument(
        "--gamma", action="append", type=float, metavar="G", help="repeatable; default: eight from 1 to 0.7"
    )
    sweep.add_argument(
        "--floor", metavar="WEIGHT", type=float, help="floor of the discounted weights; default: the store's"
    )
    sweep.add_argument("--output", metavar="FILE.json", type=place, help="write the figures too")

    aggregate = _of_store(commands, "aggregate", _aggregate, "a new label store with another reward.*; needs no model")
    aggregate.add_argument(
        "--output", metavar="DIR", required=True, type=place, help="directory of the new label store"
    )
    aggregate.add_argument("--set", action="append", default=[], metavar="reward.x=value", help="repeatable")

    export = _of_store(commands, "export", _export, "a label store as preference data for a trainer")
    export.add_argument(
        "--format",
        default="trl",
        help="trl, openrlhf, verl or axolotl: as its loader reads pairs, with rewards and margin",
    )
    export.add_argument("--output", metavar="FILE", required=True, type=place, help="a .parquet or .jsonl file")

    _of_store(commands, "status", _status, "how far a label store or a training run is")

    validate = _of_store(commands, "validate", _validate, "check that a label store is whole")
    validate.add_argument("--workers", metavar="N", type=int, default=8, help="threads that read and check; default: 8")

    compact = _of_store(commands, "compact", _compact, "few large files of a label store instead of many small ones")
    compact.add_argument(
        "--file-mb", metavar="MB", type=float, default=256, help="when a file of labels is large enough; default: 256"
    )

    push = _of_store(commands, "push", _push, "publish a label store as a dataset with a card, on a model hub")
    push.add_argument("--to", metavar="ORG/NAME", required=True, type=place, help="on the hub; or a folder: ./x, /x")
    push.add_argument("--public", action="store_true", help="a new dataset may be read by everyone; default: private")

    pull = commands.add_parser("pull", help="a published dataset as a label store again, checked")
    pull.add_argument("source", metavar="ORG/NAME", type=place, help="on the hub; or a folder: ./x, /x")
    pull.add_argument("--output", metavar="DIR", required=True, type=place, help="directory of the label store")
    pull.add_argument("--revision", help="branch, tag or commit of the dataset")
    pull.set_defaults(command=_pull)


def _of_store(commands: Commands, name: str, run: Command, help: str) -> argparse.ArgumentParser:
    """A command that takes a store or a run."""
    command = commands.add_parser(name, help=help)
    command.add_argument("store", metavar="DIR", type=place)
    command.set_defaults(command=run)
    return command


def place(text: str) -> str:
    try:
        return refuse_secrets(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _report(arguments: argparse.Namespace) -> int:
    from jobs.stores.redraw import redraw

    return redraw(arguments.store)


def _sweep(arguments: argparse.Namespace) -> int:
    from jobs.stores.sweep import GAMMAS, sweep

    return sweep(arguments.store, arguments.gamma or GAMMAS, arguments.output, arguments.floor)


def _aggregate(arguments: argparse.Namespace) -> int:
    from jobs.stores.aggregate import aggregate

    return aggregate(arguments.store, arguments.output, arguments.set, shlex.join(["endoreward", *arguments.words]))


def _export(arguments: argparse.Namespace) -> int:
    from jobs.stores.export import export

    return export(arguments.store, arguments.format, arguments.output)


def _status(arguments: argparse.Namespace) -> int:
    from jobs.stores.inspect_store import status

    return status(arguments.store)


def _validate(arguments: argparse.Namespace) -> int:
    from jobs.stores.inspect_store import validate

    return validate(arguments.store, arguments.workers)


def _compact(arguments: argparse.Namespace) -> int:
    from jobs.stores.compact import compact

    return compact(arguments.store, arguments.file_mb)


def _push(arguments: argparse.Namespace) -> int:
    from jobs.stores.hub import push

    return push(arguments.store, arguments.to, arguments.public)


def _pull(arguments: argparse.Namespace) -> int:
    from jobs.stores.hub import pull

    return pull(arguments.source, arguments.output, arguments.revision)
