"""Every public component, given arguments that it cannot have: it works, or says in one line which and why."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from .tables import ENTRIES, EXEMPT
from .tables.entries import check_outcome, odd

FAMILIES = (
    "losses",
    "miners",
    "samplers",
    "reservoirs",
    "relevance",
    "relevance.features",
    "triplets",
    "datasets",
    "trunks",
    "metrics",
)
CALLS = [(name, call) for name, entry in ENTRIES.items() for call in entry.calls]


def reproducible(examples: int) -> settings:
    """The same examples on every machine: what fails once fails again."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def test_every_public_component_has_its_entry():
    public = {
        f"{family}.{name}"
        for family in FAMILIES
        for name in importlib.import_module(f"dr_plugin.{family}").__all__
    }
    built = {name for name in ENTRIES if name.endswith(".build")}  # class methods that make one
    assert set(ENTRIES) - built | set(EXEMPT) == public
    assert not set(ENTRIES) & set(EXEMPT)
    assert {name.removesuffix(".build") for name in built} <= public


@pytest.mark.parametrize("name", ENTRIES)
def test_odd_argument_works_or_is_refused_by_name(name: str, folder: Path):
    entry = ENTRIES[name]
    entry.use(entry.make(**entry.arguments(folder)))  # what is replaced below was right
    if not entry.names:
        return

    @reproducible(entry.examples + len(entry.names))
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        arguments = entry.arguments(folder)
        chosen = data.draw(st.lists(st.sampled_from(entry.names), min_size=1, max_size=2, unique=True))
        ours = {one: data.draw(odd(entry, one, arguments.get(one)), label=one) for one in chosen}
        # Of two tensors that do not fit together, either may be named.
        beside = arguments if any(isinstance(one, np.ndarray | Tensor) for one in ours.values()) else {}
        check_outcome(entry, lambda: entry.use(entry.make(**{**arguments, **ours})), {**beside, **ours})

    tried()


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_odd_call_works_or_is_refused_by_name(name: str, call: str, folder: Path):
    entry = ENTRIES[name]
    run, inputs = entry.calls[call].run, entry.calls[call].inputs
    run(entry.make(**entry.arguments(folder)), **inputs(folder))

    @reproducible(entry.examples)
    @given(st.data())
    def tried(data: st.DataObject) -> None:
        valid = inputs(folder)
        chosen = data.draw(st.lists(st.sampled_from(list(valid)), min_size=1, max_size=2, unique=True))
        ours = {one: data.draw(odd(entry, one, valid[one]), label=one) for one in chosen}
        made = entry.make(**entry.arguments(folder))
        check_outcome(entry, lambda: run(made, **{**valid, **ours}), {**valid, **ours})

    tried()
