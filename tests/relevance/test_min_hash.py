import math

import numpy as np
import pytest
from datasketch import WeightedMinHashGenerator
from scipy.stats import gamma, kstest

from dr_plugin.relevance import min_hash as module
from dr_plugin.relevance.min_hash import collisions, hash_parameters, min_hash


def histograms(count, dimension, seed=0, empty=0.6):
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.0, 1.0, (count, dimension)) * (rng.random((count, dimension)) > empty)
    return values.astype(np.float32)


def jaccard(x, y):
    return sum(min(a, b) for a, b in zip(x, y, strict=True)) / sum(
        max(a, b) for a, b in zip(x, y, strict=True)
    )


def sampled_by_datasketch(features, parameters):
    """(k, t) of each row and hash, by the formulas of another library on our parameters: (N, H, 2)."""
    generator = WeightedMinHashGenerator(features.shape[1], len(parameters.r))
    generator.rs, generator.ln_cs, generator.betas = parameters
    return np.stack([generator.minhash(row).hashvalues for row in features])


@pytest.mark.parametrize("dimension", [5, 300, 3000], ids=["few", "all tried", "tried in the bounds' order"])
def test_codes_agree_where_the_samples_of_datasketch_do(dimension):
    features = histograms(12, dimension)
    features[1] = features[0]
    features[2] = features[0] * np.random.default_rng(1).uniform(0.5, 1.5, dimension)
    features[3] = 0
    features[3, :2] = 0.01  # in hardly any hash among the entries that are tried first
    features[4] = features[3] * 1.01
    parameters = hash_parameters(dimension, 40, seed=3)
    samples = sampled_by_datasketch(features, parameters)  # (N, H, 2)
    expected = (samples[:, None] == samples).all(axis=-1)  # (N, N, H)
    codes = min_hash(features, parameters)
    assert np.array_equal(codes[:, None] == codes, expected)
    assert 0 < expected[0, 2].mean() < 1


def test_the_order_of_the_bounds_changes_nothing(monkeypatch):
    features = histograms(20, 500)
    features[7] *= 1e-6
    parameters = hash_parameters(500, 50, seed=0)
    expected = min_hash(features, parameters)
    for tried in (1, 10, 100):
        monkeypatch.setattr(module, "_TRIED", tried)
        assert np.array_equal(min_hash(features, parameters), expected)


def test_chunks_change_nothing(monkeypatch):
    features, parameters = histograms(11, 2000), hash_parameters(2000, 8, seed=0)
    expected = min_hash(features, parameters)
    monkeypatch.setattr(module, "_CHUNK", 3)
    assert np.array_equal(min_hash(features, parameters), expected)
    assert np.array_equal(min_hash(features[::-1], parameters), expected[::-1])


def test_codes_agree_as_often_as_the_generalised_jaccard_similarity():
    x = histograms(1, 40)[0]
    rng = np.random.default_rng(5)
    others = [x * (1 + spread * rng.uniform(-1, 1, 40)) for spread in (0.05, 0.3, 0.9)]
    rows = np.stack([x, *others, 2 * x, histograms(1, 40, seed=9)[0]]).astype(np.float32)
    hashes = 20_000
    codes = min_hash(rows, hash_parameters(40, hashes, seed=1))
    shares = collisions(codes, codes)
    for i in range(len(rows)):
        for j in range(len(rows)):
            expected = float(jaccard(rows[i], rows[j]))
            assert shares[i, j] == pytest.approx(
                expected, abs=4 * math.sqrt(expected * max(0, 1 - expected) / hashes) + 1e-6
            )


def test_of_one_weight_and_its_double_half_agree():
    codes = min_hash(np.array([[1.0], [2.0]]), hash_parameters(1, 40_000, seed=2))
    assert collisions(codes[:1], codes[1:])[0, 0] == pytest.approx(0.5, abs=0.01)


def test_rows_of_zeros_agree_with_each_other_only():
    features = histograms(4, 30)
    features[[1, 3]] = 0
    codes = min_hash(features, hash_parameters(30, 64, seed=0))
    shares = collisions(codes, codes)
    assert shares[1, 3] == 1
    assert shares[1, [0, 2]].tolist() == [0, 0]


def test_different_samples_have_different_codes():
    k, t = np.divmod(np.arange(60_000), 60)
    codes = module._code(k, (t - 30).astype(np.float32))
    assert len(np.unique(codes)) >= 59_990  # of 31 bits, about one pair agrees by chance
    assert 0 <= codes.min() < codes.max() < 2**31 - 1


def test_parameters_have_their_distributions():
    parameters = hash_parameters(100, 200, seed=7)
    assert kstest(parameters.r.ravel(), gamma(2).cdf).pvalue > 0.01
    assert kstest(np.exp(parameters.log_c).ravel(), gamma(2).cdf).pvalue > 0.01
    assert kstest(parameters.beta.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(parameters.r.ravel(), parameters.log_c.ravel())[0, 1]) < 0.03


def test_parameters_are_seeded():
    first = hash_parameters(10, 4, seed=0)
    again = hash_parameters(10, 4, seed=0)
    assert all(a is not b and np.array_equal(a, b) for a, b in zip(first, again, strict=True))  # none is kept
    assert not np.array_equal(first.r, hash_parameters(10, 4, seed=1).r)


def test_collisions_by_loops():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 3, (130, 9)).astype(np.int32), rng.integers(0, 3, (5, 9)).astype(np.int32)
    expected = [[sum(a == b for a, b in zip(i, j, strict=True)) / 9 for j in y] for i in x]
    np.testing.assert_allclose(collisions(x, y), expected, rtol=1e-6)
