"""The exact laws that reservoirs are held to, by explicit loops, and the test against them."""

from collections import Counter
from itertools import permutations, product

import numpy as np
import pytest
from scipy.stats import chisquare


def _sets(weights, capacity):
    law = Counter()
    for order in permutations(range(len(weights)), capacity):
        probability, rest = 1.0, sum(weights)
        for item in order:
            probability *= weights[item] / rest
            rest -= weights[item]
        law[frozenset(order)] += probability
    return law


def _tuples(weights, length):
    total = sum(weights)
    return {
        items: float(np.prod([weights[item] / total for item in items]))
        for items in product(range(len(weights)), repeat=length)
    }


def _check(outcomes, law):
    counts = Counter(outcomes)
    assert counts.keys() <= law.keys()
    total = sum(counts.values())
    expected = {outcome: probability * total for outcome, probability in law.items()}
    common = [outcome for outcome in law if expected[outcome] >= 5]
    observed = [counts[outcome] for outcome in common]
    wanted = [expected[outcome] for outcome in common]
    if (rest := total - sum(wanted)) > 1e-6 * total:
        observed.append(total - sum(observed))
        wanted.append(rest)
    wanted = np.array(wanted) * (sum(observed) / sum(wanted))
    assert chisquare(observed, wanted).pvalue > 1e-4


@pytest.fixture(scope="session")
def set_law():
    """`set_law(weights, capacity)`: probability of each set of items under successive sampling."""
    return _sets


@pytest.fixture(scope="session")
def tuple_law():
    """`tuple_law(weights, length)`: probability of each sequence of independent draws by weight."""
    return _tuples


@pytest.fixture(scope="session")
def check_law():
    """`check_law(outcomes, law)`: fails if the outcomes are not from the law, by chi-square."""
    return _check
