"""A vision-language model of a useful size, where there is one: ENDOREWARD_VISION_MODEL names its folder."""

import os

import numpy as np
import pytest
from PIL import Image

import endoreward

FOLDER = "ENDOREWARD_VISION_MODEL"
QUESTION = "Which colour is the picture? Answer with one word."


@pytest.mark.skipif(FOLDER not in os.environ, reason=f"${FOLDER} names no folder of a vision-language model")
def test_rewards_do_not_move_with_the_batch_and_follow_the_picture() -> None:
    scorer = endoreward.Scorer.from_pretrained(os.environ[FOLDER])
    rows = [
        {"prompt": QUESTION, "chosen": "Red", "rejected": "Blue", "image": Image.new("RGB", (64, 48), colour)}
        for colour in ("red", "blue")
    ]
    together = [label.reward for label in scorer.label(rows)]  # type: ignore[union-attr]
    alone = [label.reward for row in rows for label in scorer.label([row])]  # type: ignore[union-attr]
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-3)
    red, blue = together[0] - together[1], together[2] - together[3]
    assert abs(red - blue) > 1e-3  # the same texts under another picture
