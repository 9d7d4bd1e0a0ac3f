import pytest
import torch

from clipray.numerics.solvers.softmax import log_softmax, softmax


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 47, 48])
def test_rows_of_any_length_equal_pytorchs(classes, dtype):
    z = torch.randn(3, 7, classes, dtype=dtype, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 1e4):  # large ones overflow unless the largest is taken off
        asked = (scale * z).clone()
        torch.testing.assert_close(softmax(asked), torch.softmax(scale * z, -1))
        torch.testing.assert_close(log_softmax(asked), torch.log_softmax(scale * z, -1))
        assert torch.equal(asked, scale * z)
    assert softmax(z[:0]).shape == (0, 7, classes)


def test_a_class_that_is_ruled_out_has_no_probability():
    z = torch.tensor([[0.0, -torch.inf, 0.0]])
    assert softmax(z).tolist() == [[0.5, 0.0, 0.5]]
    assert log_softmax(z)[0, 1] == -torch.inf
