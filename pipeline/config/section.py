"""What every configuration is made of, and how one is read: sections, places, values as they were typed, and what a run has
no use for. Knows no section in particular."""

import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import ConfigError
from pipeline.objects import is_objects

SECRET = re.compile(
    r"(?:^|[?&;#,\s])(?:x-(?:amz|goog|ms)-[a-z-]+|[a-z_-]*(?:signature|secret|token|password|passwd|credentials?)[a-z_-]*"
    r"|sig|pwd|(?:[a-z_-]*(?:access|account|api|shared|private)[_-]?)key(?:[_-]?id)?|googleaccessid)=",
    re.IGNORECASE,
)
"""What gives access, as presigned addresses of S3, Google and Azure and connection strings name it."""


def refuse_secrets(place: str) -> str:
    """Locations are logged and stored. Raises ValueError for one with credentials in it."""
    address, query = re.fullmatch(r"([^?#]*)(.*)", unquote(place), re.DOTALL).groups()  # type: ignore[union-attr]
    authority = address.partition("://")[2].partition("/")[0]
    pairs = query or (address if ";" in address else "")
    if "@" in authority or SECRET.search(pairs) or re.search(r"://[^/?#\s]*@", query):
        raise ValueError(
            "holds credentials; give them in the environment, such as AWS_ACCESS_KEY_ID, and here the address without them"
        )
    return place


Place = Annotated[str, AfterValidator(refuse_secrets)]
OPERATORS = "operator's"
"""Marks a field that a configuration in object storage may not set: it runs code, or a key goes where it says."""


Unread = Iterable[tuple[str, str]]
"""Sections, or fields by their dotted path, that a run does not read; and why, as `under a.b = c; what to do`."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    def unread(self) -> Unread:
        """What a configuration has no use for as it stands."""
        return ()


Kind = TypeVar("Kind", bound=Section)


def load_config_as(
    kind: type[Kind], toml_path: str | None, overrides: list[tuple[str, Any]], assignments: list[str]
) -> Kind:
    """Build the configuration of a run.

    Args:
        kind: what the command is told: `LabelConfig`, `EvaluateConfig`, ...
        toml_path: a TOML file with the sections of `kind`, or None.
        overrides: (dotted path, value) from command-line flags.
        assignments: `a.b=value` from `--set`; the value is read as TOML, else taken as text. A text field takes what was
            typed, but for quotes around it.

    Raises:
        ConfigError: with every mistake on a line of its own, each under its dotted path.
    """
    tree: dict[str, Any] = _read_toml(toml_path) if toml_path else {}
    given = overrides + [_parse_assignment(text, kind) for text in assignments]
    if toml_path and is_objects(toml_path):
        _refuse_overreach(kind, tree, toml_path, {path for path, _ in given})
    for path, value in given:
        _put(tree, path, value)
    try:
        config = kind.model_validate(tree)
    except ValidationError as error:
        raise _mistakes(f"{_dotted(e['loc'])}: {_sentence(e, kind)}" for e in error.errors()) from None
    refuse_unread(config, config.unread())
    return config


def _refuse_overreach(kind: type[Section], tree: Mapping[str, Any], place: str, given: set[str]) -> None:
    """Raises ConfigError where a configuration in object storage says what is the operator's to say, and he does not."""
    from pipeline.config.borrowed import overreach  # late: it knows sections

    lines = [
        f"{path}: {why}, which a configuration in object storage cannot say; give it on the command line, as --set "
        f"{path}=..., or the configuration as a local file"
        for path, why in overreach(kind, tree)
        if path not in given
    ]
    if lines:
        raise _mistakes([f"{place}:", *lines])


def value_at(config: Section, path: str) -> Any:
    """The value of a field by its dotted path, as `learner.deepspeed` or `rewards.NAME.model`."""
    value: Any = config
    for name in path.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    return value


def changed(config: Kind, values: Mapping[str, Any]) -> Kind:
    """The configuration with other values in these fields, by dotted path. Nothing is validated anew."""
    for path, value in values.items():
        config = _with(config, path.split("."), value)
    return config


def _with(section: Any, names: list[str], value: Any) -> Any:
    name, *below = names
    if isinstance(section, dict):
        return {**section, name: _with(section[name], below, value) if below else value}
    return section.model_copy(update={name: _with(getattr(section, name), below, value) if below else value})


def refuse_unread(config: Section, unread: Unread) -> None:
    """Raises ConfigError that names every field which was set and is not read."""
    lines = set_but_unread(config, unread)
    if lines:
        raise _mistakes(lines)


def set_but_unread(config: Section, unread: Unread) -> list[str]:
    """A sentence for every field that was set, to another value than its default, and is not read. One that has its default
    does no harm: a configuration that was written out whole has them all."""
    lines: dict[str, str] = {}
    for path, why in unread:
        above, _, field = path.rpartition(".")
        section = value_at(config, above) if above else config
        value = getattr(section, field)
        for name in sorted(_set_fields(value) if isinstance(value, Section) else {field} & _set_fields(section)):
            dotted = f"{path}.{name}" if isinstance(value, Section) else path
            lines.setdefault(dotted, f"{dotted}: has no effect {why}")
    return list(lines.values())


def _set_fields(section: Section) -> set[str]:
    defaults = type(section).model_fields
    return {name for name in section.model_fields_set if getattr(section, name) != defaults[name].default}


def _mistakes(lines: Iterable[str]) -> ConfigError:
    return ConfigError("the configuration has mistakes:\n" + "\n".join(f"  {line}" for line in lines))


def _read_toml(path: str) -> dict[str, Any]:
    try:
        if is_objects(path):
            from pipeline import storage  # late: pyarrow

            return tomllib.loads(storage.read_bytes(path).decode())
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _parse_assignment(text: str, kind: type[Section]) -> tuple[str, Any]:
    path, mark, value = text.partition("=")
    path = path.strip()
    if not mark or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", path):
        value = "" if _is_secret(text) else f" {text}"
        raise ConfigError(f"--set{value}: expected section.field=value, such as reward.alpha=0.5")
    try:
        read = tomllib.loads(f"v = {value}")["v"]
    except tomllib.TOMLDecodeError:
        return path, value
    if _takes_text(kind, path) and not isinstance(read, str | list):
        return path, value.strip()  # a revision such as 12345e67 is no number
    return path, read


def _takes_text(kind: type[Section], path: str) -> bool:
    """Whether a field is text, or one of several words."""
    section, *_, name = path.split(".")
    field = section_fields(kind, section).get(name) if section in kind.model_fields and name != section else None
    if field is None or get_origin(field.annotation) is dict:
        return False
    return any(_is_text(each) for each in (field.annotation, *get_args(field.annotation)))


def _is_text(annotation: Any) -> bool:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    words = get_args(annotation) if get_origin(annotation) is Literal else ()
    return annotation is str or any(isinstance(word, str) for word in words)


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, field = path.split(".")
    for name in sections:
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {path}: {name} is a value, not a section")
    tree[field] = value


def _dotted(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _sentence(error: Any, kind: type[Section]) -> str:
    if error["type"] == "extra_forbidden":
        section, *rest = error["loc"]
        fields = section_fields(kind, str(section)) if rest else kind.model_fields
        return f"no such field; there are {', '.join(fields)}"
    hidden = error["type"] == "missing" or isinstance(error["input"], dict) or _is_secret(error["input"])
    given = "" if hidden else f" (given: {error['input']!r})"
    quotes = "; write it in quotes" if error["type"] == "string_type" and not isinstance(error["input"], list) else ""
    message: str = error["msg"]
    return message.removeprefix("Value error, ") + given + quotes


def _is_secret(value: Any) -> bool:
    """Whether a value, or one of its values, is not to be repeated."""
    try:
        refuse_secrets(str(value))
    except ValueError:
        return True
    return isinstance(value, list) and any(_is_secret(each) for each in value)


def section_fields(kind: type[Section], section: str) -> dict[str, FieldInfo]:
    """The fields of one section of a configuration, or of each of the sections that it holds by name."""
    annotation = kind.model_fields[section].annotation
    if get_origin(annotation) is dict:
        annotation = get_args(annotation)[1]
    assert isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation.model_fields
