"""oneDNN's float32 products on a CPU, against float64."""

import pytest
import torch

from pipeline.models.scoring.products import OneDnn, fast_products


@pytest.mark.parametrize("shape", [(5, 7), (2, 5, 7), (0, 7)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [None, 1, 64])
def test_products_are_those_of_float64(shape: tuple[int, ...], bias: bool, rows: int | None) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(7, 11, bias=bias), torch.randn(shape)
    with torch.inference_mode(), OneDnn(rows):
        ours = [layer(x), layer(x)]
    exact = layer.double()(x.double())
    for each in ours:
        torch.testing.assert_close(each.double(), exact, atol=1e-6, rtol=1e-6)


def test_weights_are_packed_once_also_where_they_are_views_of_one_storage() -> None:
    whole, x = torch.randn(64, 32), torch.randn(8, 32)
    with torch.inference_mode(), OneDnn(8) as products:
        for part in (whole[:16], whole[:32], whole[16:], whole[:16]):
            torch.testing.assert_close(torch.nn.functional.linear(x, part), x @ part.T)
    assert len(products.packed) == 3


def test_gradients_and_other_dtypes_are_left_to_pytorch() -> None:
    layer, x = torch.nn.Linear(7, 11), torch.randn(5, 7, requires_grad=True)
    with OneDnn():
        layer(x).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad[0], layer.weight.sum(dim=0).detach())
        with torch.no_grad():
            assert layer.double()(x.double()).dtype == torch.float64


def test_a_device_that_is_no_cpu_keeps_its_own() -> None:
    assert not isinstance(fast_products(torch.device("cuda")), OneDnn)
    assert isinstance(fast_products(torch.device("cpu")), OneDnn) == torch.backends.mkldnn.is_available()
