"""The command line: `endoreward` and `python -m jobs`. Parses first; torch and Ray are imported by what runs.

Exit codes: 0 done, 2 a wrong description or a refused fingerprint (nothing started), 1 the run failed.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from pipeline.config import LabelConfig, load_config, section_fields
from pipeline.errors import EndorewardError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words, argparse.Namespace(words=words))
    try:
        return arguments.command(arguments)
    except EndorewardError as error:
        print(f"endoreward: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"endoreward: {error}; what is committed is kept, run the same again to go on", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("endoreward: interrupted; what is committed is kept, run the same again to go on", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="endoreward", description="Label preference corpora with the reward model inside a language model."
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    label = commands.add_parser(
        "label",
        help="score a corpus into a label store",
        description="Score every response of a corpus with a model's endogenous reward and write a label store.",
        epilog=_fields(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    label.add_argument("config", nargs="?", metavar="CONFIG.toml", help="the run's configuration; flags win over it")
    label.add_argument("--model", help="a local folder or a model hub's name")
    label.add_argument("--revision", help="branch, tag or commit of a hub model")
    label.add_argument(
        "--input",
        action="append",
        metavar="PATH",
        help="file, folder, glob, s3://, gs:// or hf://datasets/...; repeatable",
    )
    label.add_argument("--output", metavar="DIR", help="directory of the label store")
    label.add_argument("--set", action="append", default=[], metavar="a.b=value", help="any field below; repeatable")
    label.add_argument("--dry-run", action="store_true", help="show configuration, shape, an example and an estimate")
    label.add_argument("--retry-errors", action="store_true", help="label shards that hold error rows once more")
    label.set_defaults(command=_label)

    status = commands.add_parser("status", help="how far a label store is")
    status.add_argument("store", metavar="DIR")
    status.set_defaults(command=_status)

    validate = commands.add_parser("validate", help="check that a label store is whole")
    validate.add_argument("store", metavar="DIR")
    validate.set_defaults(command=_validate)
    return parser


def _fields() -> str:
    """The configuration's fields, for --help."""
    lines = ["configuration (TOML sections, or --set section.field=value):"]
    for section in LabelConfig.model_fields:
        lines.append("")
        for name, field in section_fields(section).items():
            lines.append(f"  {section}.{name} = {field.get_default(call_default_factory=True)!r}")
            lines.append(f"      {field.description}")
    return "\n".join(lines)


def _label(arguments: argparse.Namespace) -> int:
    flags = {
        "model.name": arguments.model,
        "model.revision": arguments.revision,
        "input.paths": arguments.input,
        "output.path": arguments.output,
    }
    config = load_config(arguments.config, [(k, v) for k, v in flags.items() if v is not None], arguments.set)
    _quiet(config.run.verbose)
    from jobs.label import label

    command = shlex.join(["endoreward", *arguments.words])
    return label(config, dry_run=arguments.dry_run, retry_errors=arguments.retry_errors, command=command)


def _status(arguments: argparse.Namespace) -> int:
    from jobs.inspect_store import status

    return status(arguments.store)


def _validate(arguments: argparse.Namespace) -> int:
    from jobs.inspect_store import validate

    return validate(arguments.store)


def _quiet(verbose: bool) -> None:
    """Keep libraries' progress bars and advice out of the terminal; before any of them is imported."""
    if not verbose:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


if __name__ == "__main__":
    sys.exit(main())
