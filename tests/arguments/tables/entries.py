"""How a public component is built and called, the odd arguments it is given, and what may become of them."""

import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

Arguments = Mapping[str, Any]

# What is handed on as it is, and whose checks are not ours.
PMLS_OWN = frozenset({"reducer", "embedding_regularizer", "embedding_reg_weight", "collect_stats"})
CALLED_BACK = frozenset({"progress", "transform", "target_transform"})  # what these raise is the user's own
JOBLIBS_OWN = frozenset({"n_jobs"})
LEFT_OUT = PMLS_OWN | CALLED_BACK | JOBLIBS_OWN


@dataclass(frozen=True)
class Call:
    """A call of a built component: tensors, tuples of them and arrays are varied, all else is replaced."""

    run: Callable[..., Any]  # (component, **inputs)
    inputs: Callable[[Path], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One public component.

    Attributes:
        make: The class, or the function, which is then the whole of it.
        arguments: Valid ones, small, made anew each time; given the folder that `conftest.py` fills.
        use: Something cheap to do with what was made; what it gives has to be finite numbers.
        calls: Its methods, by what a test calls them.
        left_out: Names of arguments that are not its own to check, beside `LEFT_OUT`.
        unbounded: Names of numbers that may be huge, and take that long.
        functions: Names of arguments that are functions, whose TypeErrors are their own.
        called: What a message may call an argument instead.
        also: What is documented to be raised beside ValueError and TypeError.
        examples: How many are tried.
    """

    make: Callable[..., Any]
    arguments: Callable[[Path], dict[str, Any]]
    use: Callable[[Any], Any] = lambda made: made
    calls: Mapping[str, Call] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    unbounded: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    called: Mapping[str, str] = field(default_factory=dict)
    also: tuple[type[Exception], ...] = ()
    examples: int = 15

    @property
    def names(self) -> list[str]:
        """The arguments that are tried."""
        parameters = inspect.signature(self.make).parameters.values()
        own = [one.name for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
        return [name for name in own if name not in self.left_out | LEFT_OUT]


ODD: tuple[Any, ...] = (
    *(None, True, False, np.bool_(True), 1j, object(), object, lambda: None),
    *(-1, 0, 1, 2**70, -(2**70), 10**400, np.int8(3), np.int64(-1), np.uint64(2**63 + 1)),
    *(0.5, -0.0, 1e300, 1e-300, math.nan, math.inf, -math.inf),
    *(np.float16(0.5), np.float32("nan"), np.float64(2)),
    *("", "nonsense", "Relevance", "IVF", "Most_similar", "ResNet18", b"", b"nonsense"),
    *([], (), {}, [[]], [[1, 2], [3]], [None], [0.5], {"a": 1}, {1, 2}, range(3)),
    *(np.array(3), np.zeros(0), np.zeros((2, 2)), np.array([math.nan, 1]), np.array(["a"]), np.array([None])),
    *(torch.tensor(2), torch.zeros(0), torch.zeros(2, 2), torch.tensor([math.nan, 1]), torch.ones(1, 2, 3)),
)
HUGE: tuple[Any, ...] = (2**31, 2**62, np.int64(2**40))

_SHAPED: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    lambda x: x[:0],
    lambda x: x[:1],
    lambda x: x[:-1],
    lambda x: x[..., :-1],
    lambda x: x[..., :0],
    lambda x: x[None],
    lambda x: x.flatten(),
    lambda x: torch.cat([x, x]),
)
_TYPES = (
    *(torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool),
    torch.bfloat16,
)
_SPOILT: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: -x - 1,
    lambda x: x + 1000,
    lambda x: x * 0,
    lambda x: x * (1e30 if x.is_floating_point() else 2**60),
    lambda x: _first(x, math.nan),
    lambda x: _first(x, math.inf),
    lambda x: _first(x, -math.inf),
)


def _first(x: Tensor, value: float) -> Tensor:
    """With this as its first number."""
    spoilt = (x if x.is_floating_point() else x.double()).clone()
    spoilt.view(-1)[:1] = value
    return spoilt


@st.composite
def varied(draw: st.DrawFn, valid: Any) -> Any:
    """A tensor, an array or a tuple of tensors in another shape, of another type, or with other numbers."""
    if isinstance(valid, tuple):
        place = draw(st.integers(0, len(valid) - 1))
        if draw(st.integers(0, 5)) == 0:
            return valid[:place] + valid[place + 1 :]
        return (*valid[:place], draw(varied(valid[place])), *valid[place + 1 :])
    changed = torch.as_tensor(valid).contiguous()
    how = draw(st.integers(1, 7))  # as bits: which of the three
    if how & 1:
        changed = draw(st.sampled_from(_SHAPED))(changed)
    if how & 2 and changed.dtype != torch.bool:
        changed = draw(st.sampled_from(_SPOILT))(changed.contiguous())
    if how & 4:
        types = _TYPES if isinstance(valid, Tensor) else [one for one in _TYPES if one != torch.bfloat16]
        # Of NaN or infinity there are no integers: the numbers then are any.
        changed = changed.nan_to_num().to(draw(st.sampled_from(types)))
    return changed if isinstance(valid, Tensor) else changed.numpy()


def odd(entry: Entry, name: str, valid: Any) -> st.SearchStrategy[Any]:
    """In the place of the argument `name`: a tensor's is a tensor always, as its type says."""
    if isinstance(valid, Tensor) or (
        isinstance(valid, tuple) and all(isinstance(one, Tensor) for one in valid)
    ):
        return varied(valid)
    pool = ODD if name in entry.unbounded else ODD + HUGE
    numbers = st.integers(-3, 10) | st.floats(-3, 3)
    anything = st.sampled_from(pool) | st.sampled_from(pool) | numbers
    return anything | varied(valid) if isinstance(valid, np.ndarray) else anything


def check_outcome(entry: Entry, run: Callable[[], Any], given: Arguments) -> None:
    """That it works, and gives what is sane, or refuses in one line that names an argument."""
    try:
        result = run()
    except (ValueError, TypeError, *entry.also) as error:
        theirs = any(name in entry.functions and callable(value) for name, value in given.items())
        if theirs or refused(str(error), entry, given):
            return
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    if all(map(_is_finite, given.values())):
        assert _is_finite(result), f"got {result}"


def refused(message: str, entry: Entry, given: Arguments) -> bool:
    """Whether an error's message is one line and names one of these arguments."""
    names = [*given, *(entry.called[name] for name in given if name in entry.called)]
    return "\n" not in message and any(re.search(rf"\b{name}\b", message) for name in names)


def _is_finite(value: Any) -> bool:
    """Whether all numbers in it are, and small enough to be squared."""
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool((np.abs(value.astype(float)) < 1e15).all())
    if isinstance(value, Tensor):
        return not value.is_floating_point() or bool((value.double().abs() < 1e15).all())
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    if isinstance(value, np.floating):
        value = float(value)
    return not isinstance(value, int | float | np.integer) or -1e15 < value < 1e15
