"""The law of relevance-weighted triplets, against loops over (6), (7) and (8) that compute it exactly."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from scipy.stats import chi2

import dr_plugin.triplets.relevant as relevant
from dr_plugin.triplets import RANDOM_BITS, ClassLayout, RelevantTriplets, UniformTriplets

DRAWS = 30_000


class Problem:
    """relevance[q][n] of every query and reference, and the law of their triplets."""

    def __init__(self, labels, relevance, references=None, query_weights=None, factors=None, **options):
        self.labels, self.relevance, self.references = labels, relevance, references
        self.others = labels if references is None else references
        self.query_weights, self.factors, self.options = query_weights, factors, options
        self.zeros = options.get("zero_relevance_negatives", False)
        self.uniform = options.get("weighting") == "uniform"

    def triplets(self, **options):
        layout = ClassLayout(_long(self.labels), None if self.references is None else _long(self.references))
        i, j = layout.pairs()
        return RelevantTriplets(
            layout,
            torch.tensor(self.relevance, dtype=torch.float32)[i, j],
            query_weights=None if self.query_weights is None else torch.tensor(self.query_weights),
            candidate_weights=None if self.factors is None else torch.tensor(self.factors),
            **self.options,
            **options,
        )

    def classmates(self, q):
        own = self.references is None
        return [n for n, label in enumerate(self.others) if label == self.labels[q] and not (own and n == q)]

    def factor(self, n):
        return 1.0 if self.factors is None else self.factors[n]

    def candidate(self, q, n):
        """The weight of (7)."""
        r = self.relevance[q][n]
        if self.uniform:
            return self.factor(n) * (r > 0 or not self.zeros)
        return self.factor(n) * min(r, self.options.get("relevance_threshold") or math.inf)

    def satisfies(self, q, p, n):
        """(8)."""
        difference = self.relevance[q][p] - self.relevance[q][n]
        return difference >= self.options.get("relevance_margin", 0) and difference > 0

    def negatives(self, q):
        """Those out of class."""
        if self.zeros:
            return [n for n in self.classmates(q) if self.relevance[q][n] == 0]
        return [n for n, label in enumerate(self.others) if label != self.labels[q]]

    def query_law(self, allowed):
        total = {
            q: sum(self.relevance[q][n] * self.factor(n) for n in self.classmates(q))  # (6)
            for q in range(len(self.labels))
        }
        weights = total if self.query_weights is None else dict(enumerate(self.query_weights))
        weights = {q: weights[q] for q in total if weights[q] > 0 and total[q] > 0 and allowed(q)}
        if self.uniform:
            weights = dict.fromkeys(weights, 1.0)
        group = (lambda q: self.labels[q]) if self.options.get("equal_classes") else (lambda q: None)
        sums = defaultdict(float)
        for q, weight in weights.items():
            sums[group(q)] += weight
        return {q: weight / sums[group(q)] / len(sums) for q, weight in weights.items()}

    def positive_law(self, q):
        weights = {p: self.candidate(q, p) for p in self.classmates(q) if self.candidate(q, p) > 0}
        return {p: weight / sum(weights.values()) for p, weight in weights.items()}

    def out_of_class_law(self):
        """{(query, positive, negative): probability}."""
        return {
            (q, p, n): chance * share / len(self.negatives(q))
            for q, chance in self.query_law(self.negatives).items()
            for p, share in self.positive_law(q).items()
            for n in self.negatives(q)
        }

    def in_class_law(self):
        """The law of the accepted; and of one attempt: P(accepted), mean and variance of the failed trials."""

        def can_succeed(q):
            possible = self.positive_law(q) if self.classmates(q) and sum(self.relevance[q]) else {}
            return any(self.satisfies(q, p, n) for p in possible for n in possible)

        trials = self.options.get("max_trials", 100)
        law, moments = {}, [0.0, 0.0]
        for q, chance in self.query_law(can_succeed).items():
            for p, share in self.positive_law(q).items():
                weights = {n: w for n in self.classmates(q) if n != p and (w := self.candidate(q, n)) > 0}
                good = {n: weight for n, weight in weights.items() if self.satisfies(q, p, n)}
                s = sum(good.values()) / sum(weights.values())
                ends = [s * (1 - s) ** k for k in range(trials)] + [(1 - s) ** trials]  # P(k failures)
                for power in (1, 2):
                    moments[power - 1] += chance * share * sum(p_k * k**power for k, p_k in enumerate(ends))
                for n, weight in good.items():
                    law[q, p, n] = chance * share * sum(ends[:-1]) * weight / sum(good.values())
        accepted = sum(law.values())
        mean, square = moments
        return {key: value / accepted for key, value in law.items()}, accepted, mean, square - mean**2


def _random_relevance(rows, columns, seed, zeros=0.0):
    generator = np.random.default_rng(seed)
    values = generator.gamma(0.7, size=(rows, columns)).astype(np.float32)
    values[generator.random(values.shape) < zeros] = 0
    return values.tolist()


LABELS = [3, 1, 3, 3, 1, 1, 2, 3, 1, 3]  # 2 is a class of one image
SYMMETRIC = (np.array(_random_relevance(10, 10, 0)) + np.array(_random_relevance(10, 10, 0)).T).tolist()
PROBLEMS = {
    "plain": Problem(LABELS, SYMMETRIC),
    "in_class": Problem(LABELS, SYMMETRIC, out_of_class_ratio=0.0),
    "out_of_class": Problem(LABELS, SYMMETRIC, out_of_class_ratio=1.0),
    "half": Problem(LABELS, SYMMETRIC, out_of_class_ratio=0.5),
    "not_symmetric": Problem(LABELS, _random_relevance(10, 10, 1)),
    "threshold": Problem(LABELS, SYMMETRIC, relevance_threshold=0.8),
    "margin": Problem(LABELS, SYMMETRIC, relevance_margin=0.5),
    "threshold_and_margin": Problem(LABELS, SYMMETRIC, relevance_threshold=1.2, relevance_margin=0.9),
    "one_trial": Problem(LABELS, SYMMETRIC, max_trials=1),
    "three_trials": Problem(LABELS, SYMMETRIC, max_trials=3, relevance_margin=0.3),
    "uniform": Problem(LABELS, SYMMETRIC, weighting="uniform", out_of_class_ratio=0.0),
    "uniform_threshold": Problem(LABELS, SYMMETRIC, weighting="uniform", relevance_threshold=0.1),
    "equal_classes": Problem(LABELS, SYMMETRIC, equal_classes=True),
    "equal_classes_uniform": Problem(LABELS, SYMMETRIC, equal_classes=True, weighting="uniform"),
    "zeros": Problem(LABELS, _random_relevance(10, 10, 2, zeros=0.5)),
    "zeros_uniform": Problem(LABELS, _random_relevance(10, 10, 2, zeros=0.5), weighting="uniform"),
    "ties": Problem(LABELS, np.ceil(SYMMETRIC).tolist()),
    "margin_met_exactly": Problem(LABELS, np.ceil(SYMMETRIC).tolist(), relevance_margin=1.0),
    "query_weights": Problem(LABELS, SYMMETRIC, query_weights=[1.0, 0, 2, 3, 1, 1, 9, 5, 2, 1]),
    "candidate_weights": Problem(LABELS, SYMMETRIC, factors=[1.0, 2, 0, 3, 1, 7, 9, 5, 2, 1]),
    "factors_uniform": Problem(
        LABELS, SYMMETRIC, factors=[1.0, 2, 0, 3, 1, 7, 9, 5, 2, 1], weighting="uniform"
    ),
    "references": Problem([1, 3, 7, 1], _random_relevance(4, 10, 3), references=LABELS),
    "references_all": Problem(
        [1, 3, 7, 1],
        _random_relevance(4, 10, 3, zeros=0.2),
        references=LABELS,
        factors=[1.0, 2, 1, 3, 1, 7, 9, 5, 2, 1],
        relevance_threshold=1.0,
        equal_classes=True,
    ),
    "graded": Problem([0] * 8, _random_relevance(8, 8, 4, zeros=0.4), zero_relevance_negatives=True),
    "graded_few_zeros": Problem(
        [0] * 8, _random_relevance(8, 8, 5, zeros=0.05), zero_relevance_negatives=True, out_of_class_ratio=0.5
    ),
    "graded_uniform": Problem(
        [0] * 8,
        _random_relevance(8, 8, 4, zeros=0.4),
        zero_relevance_negatives=True,
        weighting="uniform",
        relevance_margin=0.1,
    ),
    "graded_references": Problem(
        [0] * 3, _random_relevance(3, 8, 6, zeros=0.4), references=[0] * 8, zero_relevance_negatives=True
    ),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_draw_has_the_exact_law(name):
    problem = PROBLEMS[name]
    draw = problem.triplets().draw(DRAWS, _random_bits(1))
    found = list(zip(draw.query.tolist(), draw.positive.tolist(), draw.negative.tolist(), strict=True))
    law, ratio = defaultdict(float), problem.options.get("out_of_class_ratio", 0.2)
    kinds = ((ratio, problem.out_of_class_law()), (1 - ratio, problem.in_class_law()[0] if ratio < 1 else {}))
    for share, part in kinds:
        for key, chance in part.items():
            law[key] += share * chance
    assert set(found) <= {key for key, chance in law.items() if chance > 0}
    for places in ([0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        _assert_follows(_marginal(found, places), _marginal_law(law, places), f"{name} {places}")
    for index, part in enumerate([kinds[0][1], kinds[1][1]]):  # the negatives of each kind
        chosen = [key for key in found if key in part]
        if chosen:
            _assert_follows(_marginal(chosen, [2]), _marginal_law(part, [2]), f"{name} kind {index}")


@pytest.mark.parametrize("name", [name for name in PROBLEMS if name != "out_of_class"])
def test_counters_have_their_exact_means(name):
    problem = PROBLEMS[name]
    counters = problem.triplets().draw(DRAWS, _random_bits(2)).counters
    ratio = problem.options.get("out_of_class_ratio", 0.2)
    _, accepted, mean, variance = problem.in_class_law()
    assert counters["accepted"] == DRAWS == counters["in_class"] + counters["out_of_class"]
    spread = math.sqrt(DRAWS * ratio * (1 - ratio))
    assert abs(counters["out_of_class"] - ratio * DRAWS) <= 4.5 * spread
    discarded = counters["in_class"] * (1 - accepted) / accepted
    assert abs(counters["discarded"] - discarded) <= 4.5 * math.sqrt(discarded / accepted) + 1e-9
    attempts = counters["in_class"] + counters["discarded"]
    # The attempts end with an accepted one, which the means leave out of account: one attempt of slack a chunk.
    slack = problem.options.get("max_trials", 100)
    assert abs(counters["rejected"] - attempts * mean) <= 4.5 * math.sqrt(attempts * variance) + slack


def test_ratio_is_kept_where_most_attempts_are_discarded():
    problem = Problem([0] * 30 + [1] * 30, _one_high(60), relevance_margin=5.0, out_of_class_ratio=0.25)
    draw = problem.triplets(max_trials=2).draw(4000, _random_bits(3))
    assert draw.counters["discarded"] > 2 * draw.counters["in_class"]
    same = (draw.query < 30) == (draw.negative < 30)
    assert int(same.sum()) == draw.counters["in_class"]
    assert abs(draw.counters["in_class"] - 3000) < 4.5 * math.sqrt(4000 * 0.25 * 0.75)


def test_equal_relevances_at_ratio_one_have_the_law_of_uniform_triplets():
    labels = _long([0, 0, 0, 1, 1, 1, 2])
    layout = ClassLayout(labels)
    equal = RelevantTriplets(layout, torch.full((layout.size,), 0.7), out_of_class_ratio=1.0)
    uniform = UniformTriplets(labels)
    assert equal.queries.tolist() == uniform.queries.tolist() == equal.out_of_class_queries.tolist()
    draw = equal.draw(DRAWS, _random_bits(5))
    law = {}
    for q in uniform.queries.tolist():
        bits = torch.arange(12) * (2**RANDOM_BITS // 12) + 2**20  # just above each of 12 equal shares
        pairs = torch.cartesian_prod(bits, bits).T
        for pair in zip(*(part.tolist() for part in uniform.draw(torch.tensor(q), pairs)), strict=True):
            law[q, *pair] = law.get((q, *pair), 0) + 1 / 12**2 / len(uniform.queries)
    found = list(zip(*(part.tolist() for part in draw[:3]), strict=True))
    assert set(found) <= law.keys()
    _assert_follows(Counter(found), law, "equal")


def test_draws_in_parts_of_another_size_have_the_same_law(monkeypatch):
    monkeypatch.setattr(relevant, "_CHUNK", 700)
    test_draw_has_the_exact_law("three_trials")
    test_counters_have_their_exact_means("three_trials")


def _one_high(n):
    """Each query has one reference that is far more relevant than the rest."""
    r = np.full((n, n), 1.0)
    for i in range(n):
        r[i, i // 30 * 30 + (i + 1) % 30] = 10.0
    return r.tolist()


def _random_bits(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda shape: torch.randint(1 << RANDOM_BITS, shape, generator=generator)


def _marginal(found, places):
    return Counter(tuple(key[place] for place in places) for key in found)


def _marginal_law(law, places):
    marginal = defaultdict(float)
    for key, chance in law.items():
        marginal[tuple(key[place] for place in places)] += chance
    return marginal


def _assert_follows(counts, law, what):
    """Chi-square; outcomes of which fewer than 5 are expected are taken together."""
    total = sum(counts.values())
    assert sum(law.values()) == pytest.approx(1)
    rare = [key for key, chance in law.items() if chance * total < 5]
    common = [key for key in law if key not in set(rare)]
    observed = [counts[key] for key in common] + [sum(counts[key] for key in rare)] * bool(rare)
    expected = [law[key] * total for key in common] + [sum(law[key] for key in rare) * total] * bool(rare)
    statistic = sum((o - e) ** 2 / e for o, e in zip(observed, expected, strict=True) if e > 0)
    p_value = chi2.sf(statistic, max(1, len(observed) - 1))
    assert p_value > 1e-5, f"{what}: p = {p_value}, {list(zip(observed, expected, strict=True))[:9]}"


def _long(values):
    return torch.tensor(values, dtype=torch.long)
