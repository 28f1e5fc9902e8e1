"""`endoreward report`: draw the page of a finished label store, or of a training run so far. Needs no model."""

from jobs import terminal
from jobs.stores.finalize import find_decode, write_report
from jobs.stores.inspect_run import redraw_run
from pipeline.errors import StoreError
from pipeline.store import LabelStore, WriterLock
from pipeline.store.manifest import Manifest
from pipeline.training.run import RunFolder


def redraw(uri: str) -> int:
    """Write report.html anew. Returns 0; raises StoreError where the store is not finished.

    Tokens show as text where the tokenizer that the manifest names can be reached, else as their numbers.
    """
    folder = RunFolder(uri)
    if folder.is_run and (run := folder.run()) is not None:
        return redraw_run(folder, run)
    store = LabelStore(uri)
    survey = store.survey()
    manifest = Manifest.of_finished(store, survey)
    decode = find_decode(store, manifest)
    with WriterLock(store.uri):
        if not write_report(store, manifest, decode, survey):
            raise StoreError(f"{uri} holds no labels, so there is nothing to draw; see {store.at('errors')}")
    terminal.say(f"report: {store.at('report.html')}")
    return 0
