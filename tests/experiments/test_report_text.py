"""How the report writes its values."""

import pytest

from dr_plugin.experiments.report_text import (
    display_names,
    duration,
    fence,
    flatten,
    markdown,
    number,
    percent,
)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_value_that_is_missing_is_said_to_be(value: float | None) -> None:
    assert {percent(value), number(value), duration(value)} == {"not measured"}


@pytest.mark.parametrize(
    ("value", "digits", "shown"), [(0.41034, 2, "41.03%"), (0, 2, "0.00%"), (1.0, 1, "100.0%")]
)
def test_percent(value: float, digits: int, shown: str) -> None:
    assert percent(value, digits) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(98000, "98,000"), (7, "7"), (245.4, "245"), (1234.5, "1,234"), (3.14159, "3.14")]
)
def test_number(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (812.3, "13 min 32 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (7529.9, "2 h 5 min"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_markdown_escapes_what_markdown_and_html_would_read() -> None:
    assert markdown("a|b *c* _d_ `e` [f] <g> & \\ \n h") == (
        r"a\|b \*c\* \_d\_ \`e\` \[f\] &lt;g&gt; &amp; \\ h"
    )


@pytest.mark.parametrize(("text", "row"), [("a: 1", "```"), ("`x`", "```"), ("````yaml", "`````")])
def test_fence_is_longer_than_any_in_the_text(text: str, row: str) -> None:
    assert fence(text) == row


def test_display_names_shorten_only_where_the_name_stays_unique() -> None:
    names = ["goldfish, Carassius auratus", "crane", "crane, a bird", ", odd", "bee"]
    assert display_names(names) == ["goldfish", "crane", "crane, a bird", ", odd", "bee"]


def test_flatten_joins_keys_and_lists() -> None:
    tree = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": False}
    assert list(flatten(tree)) == [("a", "1"), ("b.c", "1, 2"), ("b.d.e", "not measured"), ("f", "False")]
