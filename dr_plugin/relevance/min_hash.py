"""Weighted minhash: codes that agree as often as non-negative vectors are alike, by generalised Jaccard similarity."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.floating]  # (N, D)
Codes = npt.NDArray[np.int32]  # (N, H)
Floats = npt.NDArray[np.float32]

_CODES = 2**31 - 1  # codes are below it; that of a row of zeros is itself
_CHUNK = 512  # rows whose logarithms are taken at once
_TRIED = 1024  # entries among which the smallest is nearly always found
_TILE = 64  # rows whose counts stay in a core's cache from hash to hash
_ROUNDING = 1e-3  # of logarithms in float32


class HashParameters(NamedTuple):
    """Of H hashes of D entries: r and c ~ Gamma(2, 1), beta ~ Uniform(0, 1), all (H, D) float32."""

    r: Floats
    log_c: Floats
    beta: Floats


def hash_parameters(dimension: int, hashes: int, seed: int) -> HashParameters:
    """Seeded parameters of hashes of vectors of this dimension: 12 bytes for each hash and entry."""
    rng, shape = np.random.default_rng(seed), (hashes, dimension)

    def gamma() -> Floats:  # Gamma(2, 1) is the sum of two Exp(1)
        drawn = rng.standard_exponential(shape, np.float32)
        drawn += rng.standard_exponential(shape, np.float32)
        return np.maximum(drawn, np.finfo(np.float32).tiny, out=drawn)

    r, c = gamma(), gamma()
    return HashParameters(r, np.log(c, out=c), rng.random(shape, np.float32))


def min_hash(features: Features, parameters: HashParameters) -> Codes:
    """Ioffe's improved consistent weighted sampling.

    For each hash, of each entry S_k > 0: t_k = floor(ln S_k / r_k + beta_k), ln y_k = r_k (t_k - beta_k),
    ln a_k = ln c_k - ln y_k - r_k; the sample is (k, t_k) of the smallest a_k. Two vectors' samples are the same
    with probability sum_k min(x_k, y_k) / sum_k max(x_k, y_k).

    As y_k <= S_k, no a_k is below c_k exp(-r_k) / S_k. So entries are tried in the order of that bound, of the
    largest S_k of the chunk, and the rest only for rows in which it could still hold a smaller one: the answer is
    that over all entries, in a tenth of the time or less.

    - A code is the sample's hash in 31 bits: different samples agree by chance once in 2e9.
    - Rows of zeros agree with each other and with no other row.

    Args:
        features: Finite, at least 0.
        parameters: See `hash_parameters`.
    Shape:
        features (N, D) -> (N, H) int32, from 0 to 2^31 - 1.

    References:
        Ioffe, Improved Consistent Sampling, Weighted Minhash and L1 Sketching, ICDM 2010.
    """
    codes = np.empty((len(features), len(parameters.r)), np.int32)
    for start in range(0, len(features), _CHUNK):
        rows = slice(start, start + _CHUNK)
        with np.errstate(divide="ignore"):
            logs = np.log(np.asarray(features[rows], np.float32).T, order="C")  # (D, n), -inf for 0
        largest = logs.max(axis=1)
        for number, (r, log_c, beta) in enumerate(zip(*parameters, strict=True)):
            codes[rows, number] = _code(*_samples(logs, largest, r, log_c, beta))
        codes[rows][~np.isfinite(logs).any(axis=0)] = _CODES
    return codes


def collisions(x: Codes, y: Codes) -> Floats:
    """The share of hashes that agree, an estimate of the generalised Jaccard similarity: (n, H), (m, H) -> (n, m)."""
    left, right = np.ascontiguousarray(x.T), np.ascontiguousarray(y.T)  # (H, n), (H, m)
    shares = np.empty((len(x), len(y)), np.float32)
    for start in range(0, len(x), _TILE):
        rows = slice(start, start + _TILE)
        agree = np.zeros((left[:, rows].shape[1], len(y)), np.uint32)
        for of_left, of_right in zip(left[:, rows, None], right, strict=True):
            agree += of_left == of_right
        shares[rows] = agree / x.shape[1]
    return shares


def _samples(
    logs: Floats, largest: Floats, r: Floats, log_c: Floats, beta: Floats
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Of one hash: k and t_k (n,) of the smallest a_k of each column of logs (D, n)."""
    if len(logs) <= _TRIED:
        _, k, t = _smallest(logs, r, log_c, beta)
        return k, t
    bounds = log_c - r - largest
    order = np.argpartition(bounds, _TRIED)
    tried = order[:_TRIED]
    smallest, place, t = _smallest(logs[tried], r[tried], log_c[tried], beta[tried])
    k = tried[place]
    unsure = np.flatnonzero(smallest > bounds[order[_TRIED]] - _ROUNDING)
    if len(unsure):
        _, k[unsure], t[unsure] = _smallest(logs[:, unsure], r, log_c, beta)
    return k, t


def _smallest(
    logs: Floats, r: Floats, log_c: Floats, beta: Floats
) -> tuple[Floats, npt.NDArray[np.int64], Floats]:
    """The smallest ln a_k of each column of logs (d, n), its row k and its t_k: (n,) each."""
    r, log_c, beta = r[:, None], log_c[:, None], beta[:, None]
    t = logs / r
    t += beta
    np.floor(t, out=t)
    log_a = log_c - (t - beta) * r - r  # inf for an entry of 0, whose t is -inf
    k = log_a.argmin(axis=0)
    columns = np.arange(logs.shape[1])
    return log_a[k, columns], k, t[k, columns]


def _code(k: npt.NDArray[np.int64], t: Floats) -> npt.NDArray[np.int64]:
    """A number below 2^31 - 1 of each sample, by multiplication with odd constants and mixing (splitmix64)."""
    finite = np.where(np.isfinite(t), t, 0).astype(np.int64).astype(np.uint64)
    mixed = k.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + finite * np.uint64(0xD1B54A32D192ED03)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    codes: npt.NDArray[np.int64] = ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(_CODES)).astype(np.int64)
    return codes
