"""How a model reaches its device: straight from its file where accelerate places weights, and not where ZeRO-3 parts them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import save_model

from pipeline.config import ModelConfig
from pipeline.models import loading


class Loader:
    """Stands in the place of transformers' class, with a real model that remembers where it was sent."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.sent: list[str] = []

    def from_pretrained(self, name: str, **options: Any) -> tuple[Any, dict[str, Any]]:
        self.options = options
        model = torch.nn.Linear(2, 2)
        model.to = lambda device: self.sent.append(device) or model  # type: ignore[assignment,func-returns-value]
        return model, {"missing_keys": [], "mismatched_keys": []}


@pytest.mark.parametrize(
    ("device", "gpus", "accelerate", "zero3", "placed"),
    [
        ("cuda", 0, True, False, {"": "cuda"}),
        ("cuda", 1, True, False, {"": "cuda"}),
        ("cuda", 2, True, False, "auto"),
        ("cuda", 1, False, False, None),
        ("cuda", 1, True, True, None),
        ("cpu", 0, True, False, None),
    ],
)
def test_weights_go_straight_to_a_gpu(
    device: str, gpus: int, accelerate: bool, zero3: bool, placed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.import_utils.is_accelerate_available", lambda: accelerate)
    monkeypatch.setattr("transformers.integrations.deepspeed.is_deepspeed_zero3_enabled", lambda: zero3)
    loader = Loader()
    config = ModelConfig(name=str(save_model(tmp_path / "model")), dtype="float32")
    loading._load(loader, config, device, gpus, "causal LM", "an encoder")
    assert loader.options.get("device_map") == placed
    assert loader.sent == ([] if placed else [device])


@pytest.mark.skipif(not loading._places_weights(), reason="needs accelerate")
def test_a_model_that_is_placed_is_the_one_that_is_sent(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = save_model(tmp_path / "model")
    placed = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"}).eval()
    sent = loading.load_model(ModelConfig(name=str(folder), dtype="float32"), "cpu")
    ids = torch.arange(3, 9)[None]
    torch.testing.assert_close(placed(ids).logits, sent(ids).logits, rtol=0, atol=0)
    assert not hasattr(placed, "_hf_hook"), "nothing runs beside the forward pass"
