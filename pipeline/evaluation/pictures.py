"""How much of a preference the picture explains: the reward with the picture, with a grey one, and with another row's."""

from collections.abc import Sequence

import numpy as np

from pipeline.evaluation.benchmarks.base import item_name
from pipeline.evaluation.benchmarks.figures import Figures
from pipeline.evaluation.benchmarks.items import Item
from pipeline.evaluation.documents import Gap, PictureControl
from pipeline.evaluation.statistics import intervals
from pipeline.evaluation.stores import Evaluated

OWN, CONTROLS = "given", ("grey", "other")


def picture_control(evaluations: Sequence[Evaluated], resamples: int, seed: int) -> PictureControl | None:
    """Accuracy over the pairs that have a margin with each of the three pictures. None where the control was not made, or no
    pair is there."""
    shown = {each.variant.pictures: {item_name(item): item for item in each.items} for each in evaluations}
    if not {OWN, *CONTROLS} <= shown.keys():
        return None
    names = [name for name in shown[OWN] if all(name in shown[control] for control in CONTROLS)]
    margins = {kind: [_margins(shown[kind][name]) for name in names] for kind in (OWN, *CONTROLS)}
    sizes = np.array([len(each) for each in margins[OWN]], float)
    if not sizes.sum():
        return None
    names = [name for name, size in zip(names, sizes, strict=True) if size]
    right = {
        kind: np.array([np.mean(np.array(each) > 0) for each in of_items if each]) for kind, of_items in margins.items()
    }
    right |= {f"less {control}": right[OWN] - right[control] for control in CONTROLS}
    sizes = sizes[sizes > 0]
    figures = Figures({}, names, right, np.zeros(len(names), np.int64), np.ones(1), sizes)
    bounds = {name: list(ends) for name, ends in intervals(figures, resamples, seed).items()}
    accuracy = {kind: float((sizes * right[kind]).sum() / sizes.sum()) for kind in right}
    return PictureControl(
        items=len(names),
        pairs=int(sizes.sum()),
        accuracy={kind: accuracy[kind] for kind in (OWN, *CONTROLS)},
        intervals={kind: bounds[kind] for kind in (OWN, *CONTROLS)},
        explained={
            control: Gap(difference=accuracy[f"less {control}"], interval=bounds[f"less {control}"])
            for control in CONTROLS
        },
        margin={kind: float(np.mean(np.concatenate(of_items))) for kind, of_items in margins.items()},
    )


def _margins(item: Item) -> list[float]:
    return [margin for *_, margin in item.pairs()]
