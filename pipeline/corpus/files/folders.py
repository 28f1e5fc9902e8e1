"""Which files of a folder are data, and which of them make one corpus: the layouts that `datasets` writes and reads.

    saved     `save_to_disk`: what state.json names; dataset_dict.json lies above the folders of its splits
    stated    a dataset repository whose README.md names configurations, splits and their files in its YAML
    named     files or folders whose names say a split: `data/train-00000-of-00002.parquet`, `test.jsonl`, `dev/a.csv`
    plain     anything else: every file with a suffix that is read

One corpus is one split of one configuration. Where a folder holds several and none is chosen, it is refused, with all
that there is. Whatever is not read is returned with its reason. Names here are paths below the folder.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from shlex import quote
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.errors import InputError

# As `datasets` ignores them, and what belongs to a repository rather than to its data.
METADATA = {
    "readme.md", "readme", "readme.txt", "license", "license.txt", "license.md", "config.json", "dataset_info.json",
    "dataset_infos.json", "dataset_dict.json",
}  # fmt: skip
REPOSITORY = {"README.md", ".gitattributes", "dataset_infos.json"}  # one of these at the top makes a folder a clone
# A word in a name that says a split, by the name that the split has here.
SPLIT_WORDS = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation",
    "dev": "validation", "test": "test", "testing": "test", "eval": "eval", "evaluation": "eval",
}  # fmt: skip
SHARD = re.compile(r"(?P<split>\w+(?:[.-]\w+)*)-(?P<index>\d{5})-of-(?P<number>\d{5})")
# What `datasets` computed once, beside what it was computed of.
CACHE = re.compile(r"cache-[0-9a-f]+(_\d+_of_\d+)?\.arrow")
UNNAMED = "its state.json does not name it"
CACHED = "a cache of `datasets`"
LISTED = 20  # splits and configurations named in a message


@dataclass(frozen=True)
class Choice:
    """Which configuration and which split to take of a folder that has them; each may be a glob pattern."""

    config: str | None = None
    split: str | None = None


ANY = Choice()


class Skipped(NamedTuple):
    """A file that is not read, and why. `uri` is its address, where that is known."""

    name: str
    reason: str
    uri: str = ""


@dataclass(frozen=True)
class Member:
    """What is known of one data file. `beside` is the folder in which its split stands beside others."""

    name: str
    config: str | None = None
    split: str | None = None
    beside: str = ""


@dataclass
class Folder:
    """A folder being sorted. `unread` says why a file is not read, `read` gives the bytes of one."""

    place: str  # as given, for messages
    names: Sequence[str]  # of all files below it that are not hidden
    hidden: Sequence[str]
    unread: Callable[[str], str | None]
    read: Callable[[str], bytes]
    section: str | None = "input"  # of the configuration, where it chooses; None where only a path can
    skipped: list[Skipped] = field(default_factory=list)

    def skip(self, names: Iterable[str], reason: str) -> None:
        self.skipped += [Skipped(name, reason) for name in names]

    def path(self, name: str) -> str:
        return storage.join(self.place, name)


def choose(folder: Folder, choice: Choice, default: Choice = ANY) -> tuple[list[str], set[str]]:
    """The files of one corpus, and what there was to choose: `config`, `split`. What is left out is in `skipped`.

    Args:
        choice: as configured.
        default: what is taken where nothing is configured and the folder has configurations or splits.

    Raises:
        InputError: where there are several and nothing chooses, where the choice fits none, and where files are missing or
            seem to be there twice.
    """
    members = _members(folder)
    kinds = set()
    for kind in ("config", "split"):
        members, several = _narrowed(folder, members, kind, choice, default)
        kinds |= {kind} if several else set()
    names = list(dict.fromkeys(member.name for member in members))
    _require_whole(folder, names)
    _require_once(folder, names)
    return names, kinds


def without_unnamed(folder: Folder, names: Iterable[str]) -> list[str]:
    """`names` without the .arrow files of saved datasets that their state.json does not name."""
    saved = _saved(folder)
    files = {each.name for members in saved.values() for each in members}
    unnamed = {name for name in names if name.endswith(".arrow") and _top(name) in saved} - files
    cached = {name for name in names if CACHE.fullmatch(_base(name))} - unnamed - files
    folder.skip(sorted(unnamed), UNNAMED)
    folder.skip(sorted(cached), CACHED)
    return [name for name in names if name not in unnamed | cached]


def _members(folder: Folder) -> list[Member]:
    saved = _saved(folder)
    arrow = [each for members in saved.values() for each in members]
    named, data = {each.name for each in arrow}, []
    for name in folder.names:
        if name in named:
            continue
        if _base(name).lower() in METADATA or (_top(name) in saved and _base(name) == "state.json"):
            folder.skip([name], "metadata")
        elif _top(name) in saved:
            folder.skip([name], UNNAMED)
        elif CACHE.fullmatch(_base(name)):
            folder.skip([name], CACHED)
        elif why := folder.unread(name):
            folder.skip([name], why)
        else:
            data.append(name)
    stated = _stated(folder, data)
    if not stated:
        return [*arrow, *_named(folder, data)]
    files = {each.name for each in stated}
    folder.skip((name for name in data if name not in files), "no configuration in README.md names it")
    return [*arrow, *stated]


def _saved(folder: Folder) -> dict[str, list[Member]]:
    """Folders that `save_to_disk` wrote, and the files that their state.json names.

    Raises InputError for a state.json that cannot be understood beside .arrow files, and where a named file is missing.
    """
    there = set(folder.names)
    tops = {_top(name) for name in there if name.endswith(".arrow")}
    saved: dict[str, list[Member]] = {}
    for name in (_joined(top, "state.json") for top in sorted(tops)):
        if name not in there:
            continue
        top = _top(name)
        try:
            state = json.loads(folder.read(name))
            files = [_joined(top, each["filename"]) for each in state["_data_files"]]
        except (ValueError, TypeError, KeyError):
            raise InputError(
                f"{folder.path(name)} lies beside .arrow files and does not name them (`_data_files`) as "
                "`datasets.save_to_disk` does: copy the saved dataset again, or give the path of each of its files"
            ) from None
        if state.get("_indices_data_files"):
            raise InputError(
                f"{folder.path(name)}: the dataset takes its rows by an index of its own (`_indices_data_files`), which "
                "is not read: save it again with `datasets` after `flatten_indices()`"
            )
        missing = sorted(set(files) - there)
        if missing:
            raise InputError(
                f"{folder.path(name)} names {_base(missing[0])}, which is not there ({len(missing)} of {len(files)} files "
                "are missing): copy the saved dataset whole"
            )
        split, beside = split_word(_base(top)) or state.get("_split"), _top(top)
        if _joined(beside, "dataset_dict.json") in there and top:
            split = _base(top)
        saved[top] = [Member(file, None, split, beside) for file in files]
    return saved


def _stated(folder: Folder, data: Sequence[str]) -> list[Member]:
    """The files that README.md's `configs` name, with configuration and split; empty where it names none that is here."""
    if "README.md" not in folder.names:
        return []
    readme = folder.read("README.md")
    try:
        configs = _front_matter(readme).get("configs")
    except ValueError:
        folder.skip(["README.md"], "its YAML cannot be understood, so that it names no splits")
        return []
    members = []
    for config in configs if isinstance(configs, list) else []:
        if not isinstance(config, dict):
            continue
        name = str(config.get("config_name", "default"))
        top = str(config.get("data_dir") or "").strip("/")
        files = config.get("data_files")
        if files is None and top:
            below = [each for each in data if each.startswith(f"{top}/")]
            members += [Member(each, name, *_split_of(each)) for each in below]
        for split, patterns in _patterns(files):
            whole = [_joined(top, pattern.removeprefix("./")).split("/") for pattern in patterns]
            members += [
                Member(each, name, split) for each in data if any(matches(each.split("/"), glob) for glob in whole)
            ]
    if configs and not members:
        folder.skip(["README.md"], "its configurations name no file that is here")
    return members


def _front_matter(readme: bytes) -> Mapping[str, Any]:
    """The YAML between two lines of `---` at the head of a dataset card, empty where there is none. Raises ValueError."""
    import yaml  # late: scoring and rendering stand on this package, and need no YAML

    text = readme.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    head = re.match(r"---[ \t]*\n(.*?)\n---[ \t]*(?:\n|$)", text, re.DOTALL)
    try:
        front_matter = yaml.safe_load(head[1]) if head else None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return front_matter if isinstance(front_matter, dict) else {}


def _patterns(files: Any) -> list[tuple[str, list[str]]]:
    """`data_files` as splits and patterns: text, a list of text, a mapping, or a list of `split` and `path`."""
    if isinstance(files, dict):
        return [(str(split), _texts(paths)) for split, paths in files.items()]
    entries = files if isinstance(files, list) else [files]
    if any(isinstance(entry, dict) for entry in entries):
        return [(str(e.get("split", "train")), _texts(e.get("path"))) for e in entries if isinstance(e, dict)]
    return [("train", _texts(files))]


def _texts(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, str)]


def _named(folder: Folder, data: Sequence[str]) -> list[Member]:
    """Splits by names; in a clone, the folders of files that are named as shards are configurations."""
    clone = not REPOSITORY.isdisjoint([*folder.names, *folder.hidden])
    several = clone and len({_config_of(name) for name in data if SHARD.match(_base(name))}) > 1
    return [Member(name, _config_of(name) if several else None, *_split_of(name)) for name in data]


def _split_of(name: str) -> tuple[str | None, str]:
    """The split that a name says (of the file, else of its innermost folder that says one, else what shards are called),
    and the folder that holds what says it."""
    top, base = _top(name), _base(name)
    shard = SHARD.match(base)
    word = split_word(base)
    if word:
        return (shard["split"] if shard and re.fullmatch(r"\w+(\.\w+)*", shard["split"]) else word), top
    folders = top.split("/")
    for depth in reversed(range(len(folders))):
        if word := split_word(folders[depth]):
            return word, "/".join(folders[:depth])
    return (shard["split"] if shard else None), top


def split_word(name: str) -> str | None:
    """The split that a word of a name says: `harmless-base-test.jsonl.gz` is of test."""
    words = re.split(r"[-._ 0-9]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None)


def _config_of(name: str) -> str:
    """The folder of a file, less `data` and folders that say a split."""
    return "/".join(part for part in name.split("/")[:-1] if part != "data" and not split_word(part)) or "default"


def _narrowed(
    folder: Folder, members: list[Member], kind: str, choice: Choice, default: Choice
) -> tuple[list[Member], bool]:
    """The members of the chosen configurations or splits, and whether there was anything to choose from.

    Raises InputError.
    """
    stated: str | None = getattr(choice, kind)
    wanted: str | None = stated or getattr(default, kind)
    if kind == "split" and wanted and not any(member.split for member in members):
        members = _split_by_word(members, wanted)
    groups: dict[str | None, list[Member]] = defaultdict(list)
    for member in members:
        groups[getattr(member, kind)].append(member)
    if not any(groups):
        return members, False
    if wanted is None:
        if len(groups.keys() - {None}) > 1 and (kind == "config" or _side_by_side(members)):
            raise InputError(_several(folder, kind, groups))
        return members, True
    taken = [name for name in groups if fnmatchcase(name or "", wanted)]
    if not taken and kind == "split":
        taken = [name for name in groups if name == SPLIT_WORDS.get(wanted)]
    if not taken:
        raise InputError(_none_fits(folder, kind, wanted, stated is not None, groups))
    for name in groups.keys() - set(taken):
        reason = f"{_called(kind)} {name}" if name else f"its name says no {_called(kind)}"
        folder.skip((member.name for member in groups[name]), reason)
    return [member for member in members if getattr(member, kind) in taken], True


def _split_by_word(members: Sequence[Member], word: str) -> list[Member]:
    """A split that is no split's name everywhere, such as `filtered`: the files with that word in their names."""
    within = re.compile(rf"(^|[-._ /]){re.escape(word)}([-._ /]|$)")
    return [replace(member, split=word) if within.search(member.name) else member for member in members]


def _require_whole(folder: Folder, names: Sequence[str]) -> None:
    """Raises InputError where shards say how many they are, and are fewer or more."""
    sets: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
    for name in names:
        if shard := SHARD.match(_base(name)):
            sets[_top(name), shard["split"]].append((int(shard["index"]), int(shard["number"])))
    for (top, split), shards in sets.items():
        number = shards[0][1]
        if sorted(shards) == [(index, number) for index in range(number)]:
            continue
        missing = sorted(set(range(number)) - {index for index, _ in shards})
        wrong = f"shard {missing[0]} of {number} is missing" if missing else "a shard is there more than once"
        raise InputError(
            f"{folder.path(_joined(top, split))}-*: {wrong} ({len(shards)} files); complete the folder, or to take what is "
            f"there give the glob {quote(folder.path(_joined(top, f'{split}-*')))}"
        )


def _require_once(folder: Folder, names: Sequence[str]) -> None:
    """Raises InputError for two files that differ in their suffixes alone: one corpus in two forms, most likely."""
    forms: dict[str, str] = {}
    for name in names:
        stem = re.sub(r"(\.(gz|zst))?$", "", name).rpartition(".")[0]
        other = forms.setdefault(stem, name)
        if other != name:
            raise InputError(
                f"{folder.place}: {other} and {name} seem to be one corpus in two forms, and each row would count twice; give "
                f"the path of one, such as {quote(folder.path(other))} (a glob takes what it matches)"
            )


def _side_by_side(members: Sequence[Member]) -> bool:
    """Whether one folder holds two splits, as files or as folders."""
    splits: dict[str, set[str]] = defaultdict(set)
    for member in members:
        if member.split:
            splits[member.beside].add(member.split)
    return any(len(beside) > 1 for beside in splits.values())


def _several(folder: Folder, kind: str, groups: Mapping[str | None, list[Member]]) -> str:
    called, first = _called(kind), _first(groups)
    path = _path(folder, groups, first)
    several = f"{folder.place}: this folder holds several {called}s, and a corpus is one: {_list(groups)}. Choose one"
    if folder.section is None:
        return f"{several} by its path" + (f", such as {path}" if path else "")
    within = sorted({member.split for member in groups[first] if member.split}, key=_order)
    further = f" --set input.split={quote(within[0])}" if kind == "config" and len(within) > 1 else ""
    or_path = f" (or give the path {quote(path)})" if path and not further else ""
    return (
        f"{several}, for example with --set input.{kind}={quote(first)}{further}{or_path}; --set 'input.{kind}=*' takes all "
        "of them together"
    )


def _none_fits(folder: Folder, kind: str, wanted: str, stated: bool, groups: Mapping[str | None, list[Member]]) -> str:
    called = _called(kind)
    why = f"input.{kind} = {wanted!r} is no {called} of this folder" if stated else (
        f"the benchmark is the {called} {wanted!r}, which is not in this folder"
    )  # fmt: skip
    return (
        f"{folder.place}: {why}; there are {_list(groups)}. Choose with --set input.{kind}={quote(_first(groups))}, or give "
        "another folder"
    )


def _first(groups: Mapping[str | None, list[Member]]) -> str:
    return min((name for name in groups if name is not None), key=_order)


def _order(split: str) -> tuple[int, str]:
    known = ("train", "validation", "test")
    return (known.index(split) if split in known else len(known), split)


def _list(groups: Mapping[str | None, list[Member]]) -> str:
    """`train (2 files), test (test.jsonl) and, without a name for it, extra.jsonl`."""
    named = sorted((name for name in groups if name is not None), key=_order)
    entries = [f"{name} ({_files(groups[name])})" for name in named[:LISTED]]
    if len(named) > LISTED:
        entries.append(f"{len(named) - LISTED} more")
    return ", ".join(entries) + (f" and, without a name for it, {_files(groups[None])}" if groups.get(None) else "")


def _files(members: Sequence[Member]) -> str:
    return members[0].name if len(members) == 1 else f"{len(members)} files"


def _path(folder: Folder, groups: Mapping[str | None, list[Member]], name: str) -> str | None:
    """The path of a group's only file, or of the folder that holds all of it and nothing else; None where there is none."""
    group = {member.name for member in groups[name]}
    if len(group) == 1:
        return folder.path(next(iter(group)))
    top = os.path.commonpath(map(_top, group)) if all(map(_top, group)) else ""
    others = {member.name for members in groups.values() for member in members} - group
    inside = not top or any(other.startswith(f"{top}/") for other in others)
    return None if inside else folder.path(top)


def _called(kind: str) -> str:
    return "configuration" if kind == "config" else kind


def _top(name: str) -> str:
    return name.rpartition("/")[0]


def _base(name: str) -> str:
    return name.rpartition("/")[2]


def _joined(top: str, name: str) -> str:
    return f"{top}/{name}" if top else name


def matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path fits a glob, part by part. A name that begins with `.` or `_` fits only a part that begins so."""
    if not pattern:
        return not names
    if pattern[0] == "**" and matches(names, pattern[1:]):
        return True
    if not names or (names[0][0] in "._" and pattern[0][0] != names[0][0]):
        return False
    if pattern[0] == "**":
        return matches(names[1:], pattern)
    return fnmatchcase(names[0], pattern[0]) and matches(names[1:], pattern[1:])
