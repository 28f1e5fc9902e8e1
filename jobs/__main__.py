"""The command line: `endoreward` and `python -m jobs`. Parses first; torch and Ray are imported by what runs.

Exit codes: 0 done, 2 a wrong description or a refused fingerprint (nothing started), 1 the run failed.
"""

import argparse
import logging
import math
import os
import shlex
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_origin

from jobs.stores.commands import Commands, add_store_commands, place
from pipeline.config import (
    REWARDS,
    EvaluateConfig,
    LabelConfig,
    SampleConfig,
    Section,
    ServeConfig,
    load_config,
    load_config_as,
    named_models,
    section_fields,
)
from pipeline.errors import ConfigError, EndorewardError
from pipeline.rl.config import RlConfig
from pipeline.training.config import TrainConfig

if TYPE_CHECKING:
    from jobs.label.sizing import Rate


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code.

    Args:
        argv: its words; None in a process that is the command's own.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # no thread that outlives a run may have Ray join or start a cluster by itself
        os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    arguments = _parser().parse_args(words, argparse.Namespace(words=words, own_process=argv is None))
    if "config" not in arguments:  # whose run.verbose would say
        quiet(False)
    try:
        code: int = arguments.command(arguments)
    except EndorewardError as error:
        print(f"endoreward: {error}", file=sys.stderr)
        code = error.exit_code
    except OSError as error:
        print(f"endoreward: {error}; what is committed is kept, run the same again to go on", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("endoreward: interrupted; what is committed is kept, run the same again to go on", file=sys.stderr)
        code = 1
    if argv is None:
        _end_beside_a_model(code)
    return code


def _end_beside_a_model(code: int) -> None:
    """Where a server's thread is still within torch: the interpreter's own end would abort the process there."""
    if any(thread.name.startswith("model ") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="endoreward",
        description="Label preference corpora with the reward model inside a language model, evaluate it, and train on it.",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    for add in (_add_label, _add_sample, _add_evaluate, _add_train, _add_rl, _add_serve, _add_shim, add_store_commands):
        add(commands)
    return parser


def _add_label(commands: Commands) -> None:
    label = _configured(
        commands,
        "label",
        LabelConfig,
        help="score a corpus into a label store",
        description="Score every response of a corpus with a model's endogenous reward and write a label store.",
    )
    _add_run(label, "directory of the label store")
    label.add_argument("--dry-run", action="store_true", help="show configuration, shape, an example and an estimate")
    label.add_argument(
        "--tokens-per-second",
        type=_positive,
        metavar="N",
        help="of one actor, prompts included, for the estimate's hours",
    )
    label.add_argument("--measured", type=place, metavar="STORE", help="a finished store whose run had that rate")
    label.add_argument("--price", type=_positive, metavar="P", help="of an actor's hour, for the estimate's price")
    label.add_argument("--retry-errors", action="store_true", help="label shards that hold error rows once more")
    label.set_defaults(command=_label)


def _add_sample(commands: Commands) -> None:
    sample = _configured(
        commands,
        "sample",
        SampleConfig,
        help="let a policy write several responses to each prompt",
        description="Sample several responses to every prompt of a corpus, and write them as a corpus for `label`.",
        without=("reward",),
    )
    _add_run(sample, "directory of the samples", model="--policy", source="--prompts")
    sample.add_argument("--dry-run", action="store_true", help="check everything and show what would be asked")
    sample.add_argument("--retry-errors", action="store_true", help="ask once more where there are error rows")
    sample.set_defaults(command=_sample)


def _add_evaluate(commands: Commands) -> None:
    evaluate = _configured(
        commands,
        "evaluate",
        EvaluateConfig,
        help="put rewards side by side on a benchmark",
        description="Compute the figures of a benchmark under one reward or several, with intervals, bias and a page.",
    )
    _add_run(evaluate, "directory of the results, and of a label store for each reward")
    evaluate.add_argument("--benchmark", help="which benchmark; a name that is unknown lists the known")
    evaluate.add_argument(
        "--reward", action="append", metavar="NAME", help=f"{', '.join(REWARDS)}; repeatable, default: endogenous"
    )
    evaluate.add_argument("--labels", metavar="STORE", help="evaluate an existing label store; needs no model")
    evaluate.add_argument("--rubrics", metavar="FILE.toml", help="system prompts, one evaluation each")
    evaluate.add_argument("--dry-run", action="store_true", help="check everything and show what would be labelled")
    evaluate.add_argument("--retry-errors", action="store_true", help="ask once more where there are error rows")
    evaluate.set_defaults(command=_evaluate)


def _add_train(commands: Commands) -> None:
    train = _configured(
        commands,
        "train",
        TrainConfig,
        help="train a policy on stored labels",
        description="Optimise a policy on label stores, with Ray Train and DeepSpeed, and write it as a Hugging Face model.",
    )
    train.add_argument("--labels", action="append", metavar="STORE", help="a finished label store; repeatable")
    train.add_argument("--policy", metavar="MODEL", help="what is trained: a local folder or a model hub's name")
    train.add_argument("--output", metavar="DIR", help="directory of the run, its checkpoints and the trained policy")
    train.add_argument("--dry-run", action="store_true", help="check everything and show what would be trained")
    train.set_defaults(command=_train)


def _add_rl(commands: Commands) -> None:
    rl = _configured(
        commands,
        "rl",
        RlConfig,
        help="improve a policy by its own samples under a frozen reward",
        description="Online RL: the policy samples, a frozen language model rewards, the policy learns.",
    )
    rl.add_argument("--prompts", action="append", metavar="PATH", help="what is practised on; as --input of label")
    rl.add_argument("--policy", metavar="MODEL", help="what is improved: a local folder or a model hub's name")
    rl.add_argument("--reward-model", metavar="MODEL", help="what rewards; default: the policy as it is now")
    rl.add_argument("--output", metavar="DIR", help="directory of the run, its checkpoints and the improved policy")
    rl.add_argument("--dry-run", action="store_true", help="check everything and show what would be done")
    rl.set_defaults(command=_rl)


def _add_serve(commands: Commands) -> None:
    serve = _configured(
        commands,
        "serve",
        ServeConfig,
        help="answer training frameworks with rewards over HTTP",
        description="Serve a model's endogenous reward, and its log-probabilities, to training frameworks over HTTP.",
    )
    serve.add_argument("--model", action="append", default=[], help="a folder or hub's name; several as NAME=MODEL")
    serve.add_argument("--revision", help="branch, tag or commit of a hub model")
    serve.add_argument("--host", help="address to listen on; default: this machine's own, 127.0.0.1")
    serve.add_argument("--port", type=int, help="default: 8000")
    serve.add_argument("--local", action="store_true", help="in one process, without Ray")
    serve.set_defaults(command=_serve)


def _add_shim(commands: Commands) -> None:
    shim = commands.add_parser("shim", help="print the file by which a training framework asks a server of rewards")
    shim.add_argument("name", metavar="FRAMEWORK", help="trl, verl, openrlhf, slime, nemo-rl, skyrl or prime-rl")
    shim.set_defaults(command=_shim)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is no number above 0")
    return value


def _configured(
    commands: Commands, name: str, kind: type[Section], *, help: str, description: str, without: Sequence[str] = ()
) -> argparse.ArgumentParser:
    """A command that takes a configuration, whose fields its --help lists; `without` the sections that it refuses."""
    epilog, form = _fields(kind, without), argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(name, help=help, description=description, epilog=epilog, formatter_class=form)
    command.add_argument("config", nargs="?", metavar="CONFIG.toml", help="the configuration; flags win over it")
    command.add_argument("--set", action="append", default=[], metavar="a.b=value", help="any field below; repeatable")
    return command


def _add_run(command: argparse.ArgumentParser, output: str, *, model: str = "--model", source: str = "--input") -> None:
    """The flags of a command that takes a configuration; `model` and `source` are what it calls its model and input."""
    command.add_argument(model, dest="model", metavar="MODEL", help="a local folder or a model hub's name")
    command.add_argument("--revision", help="branch, tag or commit of a hub model")
    command.add_argument(
        source,
        dest="input",
        action="append",
        metavar="PATH",
        help="file, folder, glob, s3://, gs:// or hf://datasets/...; repeatable",
    )
    command.add_argument("--output", metavar="DIR", help=output)


def _fields(kind: type[Section], without: Sequence[str] = ()) -> str:
    """The configuration's fields, for --help, but for the sections that the command refuses."""
    lines = ["configuration (TOML sections, or --set section.field=value):"]
    for section in kind.model_fields:
        if section in without:
            continue
        lines.append("")
        named = f"{section}.NAME" if get_origin(kind.model_fields[section].annotation) is dict else section
        for name, field in section_fields(kind, section).items():
            lines.append(f"  {named}.{name} = {field.get_default(call_default_factory=True)!r}")
            lines.append(f"      {field.description}")
    return "\n".join(lines)


def _label(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, _flags(arguments), arguments.set)
    quiet(config.run.verbose)
    _do_without_torch(arguments, config)
    from jobs.label.run import label

    return label(
        config,
        dry_run=arguments.dry_run,
        retry_errors=arguments.retry_errors,
        command=_command(arguments),
        rate=_rate(arguments),
        price=arguments.price,
    )


def _rate(arguments: argparse.Namespace) -> "Rate | None":
    """Of an actor, as the flags for the estimate say it. Raises ConfigError where they say nothing, or two things."""
    from jobs.label.sizing import Rate, measured_rate

    flags = {"--tokens-per-second": arguments.tokens_per_second, "--measured": arguments.measured}
    for flag, value in {**flags, "--price": arguments.price}.items():
        if value is not None and not arguments.dry_run:
            raise ConfigError(f"{flag}: is for the estimate of --dry-run, and this run makes none; leave it out")
    if None not in flags.values():
        raise ConfigError("--tokens-per-second and --measured: give one, a rate as a number or as a store's")
    if arguments.measured is not None:
        return measured_rate(arguments.measured)
    if arguments.tokens_per_second is not None:
        return Rate(arguments.tokens_per_second, "as given")
    if arguments.price is not None:
        raise ConfigError("--price: needs a rate; give --tokens-per-second or --measured too")
    return None


def _sample(arguments: argparse.Namespace) -> int:
    config = load_config_as(SampleConfig, arguments.config, _flags(arguments), arguments.set)
    quiet(config.run.verbose)
    _do_without_torch(arguments, config)
    from jobs.sample.run import sample

    return sample(config, retry_errors=arguments.retry_errors, command=_command(arguments), dry_run=arguments.dry_run)


def _evaluate(arguments: argparse.Namespace) -> int:
    config = load_config_as(EvaluateConfig, arguments.config, _flags(arguments), arguments.set)
    quiet(config.run.verbose)
    _do_without_torch(arguments, config)
    from jobs.evaluate.run import evaluate

    return evaluate(config, retry_errors=arguments.retry_errors, command=_command(arguments), dry_run=arguments.dry_run)


def _train(arguments: argparse.Namespace) -> int:
    fields = {"labels": "train.labels", "policy": "policy.name", "output": "output.path"}
    config = load_config_as(TrainConfig, arguments.config, _given(arguments, fields), arguments.set)
    quiet(config.run.verbose)
    from jobs.train.run import train

    return train(config, dry_run=arguments.dry_run, command=_command(arguments))


def _rl(arguments: argparse.Namespace) -> int:
    fields = {
        "prompts": "input.paths",
        "policy": "policy.name",
        "reward_model": "reward_model.name",
        "output": "output.path",
    }
    config = load_config_as(RlConfig, arguments.config, _given(arguments, fields), arguments.set)
    quiet(config.run.verbose)
    from jobs.rl.run import rl

    return rl(config, dry_run=arguments.dry_run, command=_command(arguments))


def _serve(arguments: argparse.Namespace) -> int:
    fields = {"revision": "model.revision", "host": "serve.host", "port": "serve.port"}
    given = named_models(arguments.model) + _given(arguments, fields)
    config = load_config_as(ServeConfig, arguments.config, given, arguments.set)
    quiet(False)
    from jobs.serve.run import serve

    return serve(config, arguments.local)


def _shim(arguments: argparse.Namespace) -> int:
    from jobs.serve.shim import shim

    return shim(arguments.name)


def _given(arguments: argparse.Namespace, fields: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(field, value) of each flag that was given; `fields` by flag."""
    return [(field, value) for flag, field in fields.items() if (value := getattr(arguments, flag, None)) is not None]


def _flags(arguments: argparse.Namespace) -> list[tuple[str, Any]]:
    """Configuration fields that flags set."""
    fields = {
        "model": "model.name",
        "revision": "model.revision",
        "input": "input.paths",
        "output": "output.path",
        "benchmark": "evaluate.benchmark",
        "reward": "evaluate.rewards",
        "labels": "evaluate.labels",
        "rubrics": "tokens.rubrics",
    }
    return _given(arguments, fields)


def _command(arguments: argparse.Namespace) -> str:
    """What was typed, for the manifest."""
    return shlex.join(["endoreward", *arguments.words])


def _do_without_torch(arguments: argparse.Namespace, config: LabelConfig) -> None:
    """In a process that is the command's own: transformers would import torch for its configurations, which takes seconds.
    Models are loaded by actors; only code that a model folder brings may want it here."""
    if arguments.own_process and not config.model.trust_remote_code and "torch" not in sys.modules:
        sys.modules["torch"] = None  # type: ignore[assignment]
        logging.getLogger("transformers").addFilter(lambda record: "PyTorch was not found" not in record.getMessage())


def quiet(verbose: bool) -> None:
    """Keep libraries' progress bars and advice out of the terminal; before any of them is imported."""
    if not verbose:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


if __name__ == "__main__":
    sys.exit(main())
