import doctest
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dr_plugin.triplets import kernels
from dr_plugin.triplets.kernels import (
    KERNELS,
    Kernel,
    bandwidth_distances,
    check_kernel,
    has_bandwidth,
    median_bandwidth,
)


def rows(count, dimension, seed=0, dtype=torch.float32):
    return torch.rand((count, dimension), generator=torch.Generator().manual_seed(seed)).to(dtype)


def by_loops(name, x, y, bandwidth):
    """The kernel of two lists of numbers, in plain Python."""
    if name == "gaussian":
        return math.exp(-sum((a - b) ** 2 for a, b in zip(x, y, strict=True)) / (2 * bandwidth**2))
    if name == "laplacian":
        return math.exp(-sum(abs(a - b) for a, b in zip(x, y, strict=True)) / bandwidth)
    if name == "cosine":
        lengths = math.hypot(*x) * math.hypot(*y)
        return max(0.0, sum(a * b for a, b in zip(x, y, strict=True)) / lengths) if lengths else 0.0
    largest = max(sum(x), sum(y))
    return sum(map(min, x, y)) / largest if largest else 0.0


def kernel_of(name, bandwidth=0.7):
    return Kernel(name, bandwidth if has_bandwidth(name) else None)


@pytest.mark.parametrize("dimension", [1, 5, 300])  # 300: the row-by-row city-block distance
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_against_loops(name, dimension):
    x, y = rows(6, dimension), rows(4, dimension, seed=1)
    if name == "cosine":
        x, y = x - 0.5, y - 0.5
    bandwidth = 0.4 * (math.sqrt(dimension) if name == "gaussian" else dimension)
    expected = [[by_loops(name, a, b, bandwidth) for b in y.tolist()] for a in x.tolist()]
    kernel = kernel_of(name, bandwidth)
    assert np.ptp(expected) > 0.01
    for left, right, wanted in [(x, y, expected), (y, x, np.transpose(expected))]:
        np.testing.assert_allclose(kernel(left, right), wanted, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(kernel.paired(x[:4], y), np.diagonal(expected), rtol=2e-6, atol=1e-6)


def test_closed_forms():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert Kernel("gaussian", 5.0)(x, y).item() == pytest.approx(math.exp(-0.5))
    assert Kernel("laplacian", 7.0)(x, y).item() == pytest.approx(math.exp(-1))
    assert Kernel("cosine")(torch.tensor([[1.0, 0.0]]), y).item() == pytest.approx(0.6)
    assert Kernel("cosine")(-y, y).item() == 0
    assert Kernel("intersection")(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 0.0]])).item() == 0.25


@pytest.mark.parametrize("name", KERNELS)
def test_itself_is_1_and_a_zero_vector_has_nothing_in_common(name):
    kernel, x = kernel_of(name), rows(3, 4) + 0.1
    assert kernel.paired(x, x).tolist() == pytest.approx([1, 1, 1], abs=1e-6)
    zero = torch.zeros(1, 4)
    if not has_bandwidth(name):
        assert kernel(zero, x).tolist() == [[0, 0, 0]]
        assert kernel(zero, zero).item() == kernel.paired(zero, zero).item() == 0
    else:
        assert kernel(zero, zero).item() == 1


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float16, 2e-3),
        (torch.bfloat16, 2e-2),
        (torch.float32, 1e-6),
        (torch.float64, 1e-14),
        (torch.int64, 0),
    ],
)
def test_dtypes_are_computed_in_float32_at_least(name, dtype, tolerance):
    exact = rows(4, 6, dtype=torch.float64) * 4
    x = exact.to(dtype)
    if dtype == torch.int64:
        exact, tolerance = x.double(), 1e-6
    for values in (kernel_of(name, 3.0)(x, x), kernel_of(name, 3.0).paired(x, x.flip(0))):
        assert values.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    wanted = kernel_of(name, 3.0)(exact, exact)
    assert (kernel_of(name, 3.0)(x, x).double() - wanted).abs().max() <= tolerance


@pytest.mark.parametrize("name", KERNELS)
def test_autocast_changes_nothing(name):
    x, kernel = rows(5, 8), kernel_of(name)
    expected = kernel(x, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kernel(x, x), expected)


def test_gaussian_far_from_the_origin_keeps_differences():
    x = 1e4 + torch.tensor([[0.0], [1.0]])
    assert Kernel("gaussian", 1.0)(x, x)[0, 1].item() == pytest.approx(math.exp(-0.5), rel=1e-5)
    x[0] = -1e4  # and where the mean is far from all
    x = torch.cat([x, x[1:] + 1])
    assert Kernel("gaussian", 1.0)(x, x)[1, 2].item() == pytest.approx(math.exp(-0.5), rel=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosine_of_extreme_lengths(scale):
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    for values in (Kernel("cosine")(x * scale, y * scale), Kernel("cosine").paired(x * scale, y * scale)):
        assert values.item() == pytest.approx(0.6, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(KERNELS),
    count=st.integers(1, 5),
    dimension=st.sampled_from([1, 3, 130]),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e5]),
    seed=st.integers(0, 1000),
)
def test_any_kernel_is_symmetric_and_between_0_and_1(name, count, dimension, scale, seed):
    x = rows(count, dimension, seed).round(decimals=1) * scale
    if name != "intersection":
        x -= 0.5 * scale
    values = kernel_of(name, 0.7 * scale)(x, x)
    torch.testing.assert_close(values, values.T, rtol=1e-6, atol=1e-6)
    assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize("name", KERNELS)
def test_no_rows(name):
    x, none = rows(3, 4), rows(0, 4)
    kernel = kernel_of(name)
    assert kernel(x, none).shape == (3, 0)
    assert kernel(none, x).shape == (0, 3)
    assert kernel.paired(none, none).shape == (0,)


def test_many_columns_in_pieces_change_nothing():
    x, y = rows(3, 130), rows(1100, 130, seed=1)
    expected = torch.cdist(x.double(), y.double(), p=1) / -50
    torch.testing.assert_close(Kernel("laplacian", 50.0)(x, y), expected.exp().float())


def test_nothing_is_differentiated():
    x = rows(3, 4).requires_grad_()
    assert not any(kernel_of(name)(x, x).requires_grad for name in KERNELS)


def test_median_bandwidth_leaves_copies_out():
    assert median_bandwidth(torch.tensor([0.0, 0.0, 0.0, 3.0, 5.0, 9.0])).item() == 5
    assert median_bandwidth(torch.tensor([2.0, 4.0])).item() == 2  # the lower of two
    assert median_bandwidth(torch.tensor([torch.nan, 4.0])).item() == 4
    assert median_bandwidth(torch.zeros(3)).item() == 1
    assert median_bandwidth(torch.zeros(0)).item() == 1


def test_bandwidth_distances_are_the_kernels_own():
    x, y = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert bandwidth_distances("gaussian", x, y).tolist() == [5]
    assert bandwidth_distances("laplacian", x, y).tolist() == [7]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("gausian", 1.0), r"kernel: got 'gausian', expected one of gaussian, .*did you mean 'gaussian'\?"),
        ((3,), "kernel: got 3, expected one of"),
        (("gaussian",), "bandwidth: got None, expected a number above 0"),
        (("gaussian", 0), "bandwidth: got 0, expected a finite number above 0"),
        (("laplacian", -1.0), "got -1.0"),
        (("laplacian", math.nan), "got nan"),
        (("laplacian", math.inf), "got inf"),
        (("laplacian", True), "got True"),
        (("laplacian", "1"), "got '1'"),
        (("cosine", 1.0), "bandwidth: got 1.0, expected None: 'cosine' has none"),
    ],
)
def test_bad_kernels_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        Kernel(*arguments)


def test_a_name_alone_is_checked_without_bandwidth():
    check_kernel("gaussian")
    with pytest.raises(ValueError, match="kernel: got 'rbf'"):
        check_kernel("rbf")


@pytest.mark.parametrize("shapes", [((3, 4), (3, 5)), ((4,), (3, 4)), ((3, 4), (2, 3, 4))])
def test_bad_shapes_are_refused(shapes):
    x, y = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=r"expected \(n, D\) and \(m, D\)"):
        Kernel("cosine")(x, y)


def test_kernels_are_values():
    kernel = Kernel("gaussian", np.float32(2))
    assert pickle.loads(pickle.dumps(kernel)) == kernel == Kernel("gaussian", 2.0)


def test_example_runs():
    results = doctest.testmod(kernels)
    assert results.attempted > 0
    assert results.failed == 0
