"""`endoreward push` and `pull`: a finished label store as a dataset with a card, on a hub or in a local folder, and back.

A dataset has the layout of a store, and beside it the card, README.md:

    labels/, errors/, records/    as in the store; in records/input-*.json the place of a file is its name alone
    manifest.json                 without places
    README.md                     what a person reads, and a hub's viewer and `datasets` go by

What says where and how a run was (report.html, status.json, .lock) stays behind. The store is held against its records before
it goes, and after it came.
"""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from itertools import islice

from jobs import terminal
from jobs.stores.datasets import Dataset, dataset_at
from jobs.stores.finalize import REPORT_ROWS
from jobs.stores.inspect_store import warn_of_guesses
from pipeline import storage
from pipeline.errors import ConfigError, StoreError
from pipeline.report.card import without_places
from pipeline.report.dataset_card import dataset_card, is_untouched, shareable_manifest
from pipeline.store import LabelStore, documents, places, problems, status
from pipeline.store.manifest import Manifest

CARD, RUN, MANIFEST = "README.md", "records/run.json", "manifest.json"
OF_A_STORE = re.compile(
    r"(labels|errors)/part-[\w-]+\.parquet|records/(run|input-[0-9a-f]{12}|[0-9a-f]{12}-\d{6,})\.json"
    r"|records/segments/\d{6}-[0-9a-f]{8}\.segment|manifest\.json"
)
OF_A_STORE_IN_USE = {places.LOCK, status.NAME}
OF_A_HUB = {".gitattributes"}  # that it puts into what it creates


def push(uri: str, to: str, public: bool = False) -> int:
    """Publish the store at `uri`, or what is new in it since it was.

    Args:
        to: as `dataset_at` takes it.
        public: whether a dataset that is made by this may be read by everyone.

    Returns 0. Raises ConfigError for a place that is none; StoreError where the store is not finished or not whole, or `to`
    holds something else, or labels that the store lacks; RunError where the hub cannot be reached.
    """
    dataset = dataset_at(to)
    store = LabelStore(uri)
    store.require()
    survey = store.survey()
    manifest = Manifest.of_finished(store, survey)
    if wrong := next(problems(store, inputs=False), None):
        raise StoreError(f"{uri} is not whole and stays where it is: {wrong}")
    warn_of_guesses(store)
    standing = dataset.files()
    _refuse_others(dataset, standing, manifest, uri)
    if pictured := survey.stats.pictured:
        terminal.warn(f"{pictured:,} labels name pictures of their prompts by place, and these paths go as they are")
    if public and dataset.public is False:
        terminal.warn(f"{to} is there already and stays private: --public is for a new dataset; change it on the hub")
    shared = shareable_manifest(manifest)
    card = dataset_card(shared, store.sample(REPORT_ROWS, shards=survey.shards), dataset.hub_name)
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: _content(store, name, scratch) for name in _names(store)}
        files[MANIFEST] = documents.readable(shared.content())
        if CARD not in standing or is_untouched(dataset.read(CARD).decode(errors="replace")):
            files[CARD] = card.encode()
        else:
            terminal.warn(f"{to}: {CARD} was edited there, and stays as it is")
        removed = sorted(name for name in standing - files.keys() if OF_A_STORE.fullmatch(name))
        message = f"{manifest.counts.labels:,} labels of fingerprint {manifest.fingerprint[:12]}"
        where = dataset.change(files, removed, message, public)
    if dataset.hub_name and not standing - OF_A_HUB:
        terminal.say(f"{to}: a new dataset, {'for everyone to read' if dataset.public else 'private'}")
    terminal.say(f"{manifest.counts.labels:,} labels: {where}")
    return 0


def pull(source: str, output: str, revision: str | None = None) -> int:
    """Write the dataset at `source` as a label store, whole or not at all, to the local folder `output`.

    Returns 0. Raises ConfigError for a place that is none; StoreError where `source` is no label store's dataset, or not
    whole, or `output` is not free; RunError where the hub cannot be reached.
    """
    dataset = dataset_at(source, revision)
    if not storage.is_local(output):
        raise ConfigError(f"--output {output}: pull writes to a local folder; copy it from there")
    folder = storage.absolute(output)
    if places.check(folder, places.STORE) or (os.path.isdir(folder) and os.listdir(folder)):
        raise StoreError(f"{output} is not empty and is left as it is; give an --output that is not there yet")
    standing = dataset.files()
    names = sorted(filter(OF_A_STORE.fullmatch, standing))
    if RUN not in names:
        raise StoreError(f"{source} is no label store's dataset, or none that may be read from here: it has no {RUN}")
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder), prefix=".endoreward-") as scratch:
        begun = os.path.join(scratch, "store")
        os.mkdir(begun)
        dataset.download(names, begun)
        store = LabelStore(begun)
        if wrong := next(problems(store, inputs=False), None):
            raise StoreError(
                f"{source} is not whole, and nothing is written: {wrong.replace(begun, source)}; push it once more"
            )
        labels = Manifest.of_finished(store).counts.labels
        os.rename(begun, folder)
    left = sorted(standing - {*names, CARD, *OF_A_HUB})
    if left:
        terminal.say(f"{len(left):,} files of the dataset are not of the store and are left there: {_listed(left)}")
    terminal.say(f"{output}: whole; {labels:,} labels. Its page: endoreward report {output}")
    return 0


def _refuse_others(dataset: Dataset, standing: set[str], manifest: Manifest, uri: str) -> None:
    """Raises StoreError where something else is in the place, a store in use too, or labels that this store lacks."""
    place = dataset.name
    if used := sorted(standing & OF_A_STORE_IN_USE):
        raise StoreError(
            f"{place} is a label store in use (it has {_listed(used)}), which is left as it is; give another --to"
        )
    if RUN not in standing:
        foreign = sorted(standing - OF_A_HUB)
        if foreign:
            raise StoreError(
                f"{place} holds something else ({_listed(foreign)}), which is left as it is; give another --to"
            )
        return
    theirs = documents.decode(dataset.read(RUN), f"{place}/{RUN}").get("fingerprint")
    if theirs != manifest.fingerprint:
        raise StoreError(
            f"{place} holds the labels of another store, of fingerprint {str(theirs)[:12]}, and this one is of "
            f"{manifest.fingerprint[:12]}; give another --to"
        )
    if MANIFEST not in standing:
        raise StoreError(f"{place} has no {MANIFEST}, so what is in it is not known; give another --to")
    ours = {(each.name, each.sha256) for each in manifest.inputs}
    try:
        content = json.loads(dataset.read(MANIFEST))
    except ValueError as error:
        raise StoreError(f"{place}/{MANIFEST} is damaged: {error}; give another --to") from None
    published = Manifest.parse(content, f"{place}/{MANIFEST}")
    lacking = [each.name for each in published.inputs if (each.name, each.sha256) not in ours]
    if lacking:
        raise StoreError(
            f"{place} holds labels of {_listed(lacking)} that {uri} lacks, and they would go; give another --to, or label "
            "that into this store first"
        )
    if published.counts.labels > manifest.counts.labels:
        raise StoreError(
            f"{place} holds {published.counts.labels:,} labels and {uri} {manifest.counts.labels:,}, so it is newer, and they "
            "would go; pull it, or give another --to"
        )


def _names(store: LabelStore) -> list[str]:
    """Files of the store that are published, parts first."""
    folders = ("labels", "errors", "records", "records/segments")
    names = [f"{folder}/{name}" for folder in folders for name in storage.list_names(store.at(*folder.split("/")))]
    return [name for name in names if OF_A_STORE.fullmatch(name)]


def _content(store: LabelStore, name: str, scratch: str) -> str | bytes:
    """Of a file as it is published."""
    uri = store.at(*name.split("/"))
    if name.startswith("records/input-"):
        content = documents.read(uri)
        content["file"]["uri"] = without_places(content["file"]["uri"])
        return documents.encode(content)
    if storage.is_local(uri):
        return storage.absolute(uri)
    path = os.path.join(scratch, name.replace("/", "-"))
    with open(path, "wb") as file:
        file.write(storage.read_bytes(uri))
    return path


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(islice(names, 3)) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")
