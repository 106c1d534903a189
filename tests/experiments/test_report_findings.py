"""What the report reads from a run's figures, against loops and given cases."""

import numpy as np
import pytest

from dr_plugin.experiments.report_findings import confusions, findings, weakest


def evaluations(*values: float, stage: str = "ranking") -> list[dict[str, object]]:
    return [
        {"event": "evaluate", "stage": stage, "epoch": epoch, "precision_at_5": value}
        for epoch, value in enumerate(values, start=1)
    ]


def figures(**parts: float) -> dict[str, object]:
    return {"k": 5} | {part: {"precision_at_5": value} for part, value in parts.items()}


@pytest.mark.parametrize("seed", range(5))
def test_weakest_is_a_slow_search_for_the_smallest(seed: int) -> None:
    precision = np.random.default_rng(seed).integers(0, 4, 12) / 4  # with ties
    left, expected = list(range(12)), []
    for _ in range(5):
        expected.append(min(left, key=lambda label: (precision[label], label)))
        left.remove(expected[-1])
    assert weakest(precision, 5) == expected


def test_weakest_leaves_out_classes_without_a_query() -> None:
    assert weakest(np.array([np.nan, 0.9, 0.1]), 10) == [2, 1]
    assert weakest(np.empty(0), 10) == []


@pytest.mark.parametrize("seed", range(5))
def test_confusions_are_a_slow_search_for_the_largest(seed: int) -> None:
    confusion = np.random.default_rng(seed).dirichlet(np.ones(6), 6)
    expected = []
    for share in sorted((confusion[i, j] for i in range(6) for j in range(6) if i != j), reverse=True)[:7]:
        (i, j), *_ = np.argwhere(confusion == share)
        expected.append((i, j, share))
    assert confusions(confusion, range(6), 7) == expected


def test_confusions_leave_out_zeros_and_other_rows() -> None:
    confusion = np.array([[0.5, 0.5, 0.0], [0.9, 0.1, 0.0], [np.nan] * 3])
    assert confusions(confusion, range(3), 10) == [(1, 0, 0.9), (0, 1, 0.5)]
    assert confusions(confusion, [0], 10) == [(0, 1, 0.5)]
    assert confusions(np.empty((0, 0)), [], 10) == []


def test_findings_without_figures_say_nothing() -> None:
    assert findings({"k": 5}, []) == []
    assert findings(figures(val=0.4), evaluations(0.3)) == []


@pytest.mark.parametrize(
    ("val", "train", "said"),
    [
        (0.41, 0.55, "Precision is 55.00% on train and 41.00% on val, a gap of 14.0 points"),
        (0.60, 0.62, "New images are ranked about as well"),
        (0.60, 0.50, "New images are ranked about as well"),
    ],
)
def test_findings_read_the_gap_of_train_to_val(val: float, train: float, said: str) -> None:
    (remark,) = findings(figures(val=val, train=train), [])
    assert said in remark
    assert ("over-fitting" in remark) == (train - val > 0.03)


@pytest.mark.parametrize(("val", "beaten"), [(0.12, False), (0.05, False), (0.5, True)])
def test_findings_name_a_baseline_that_does_as_well(val: float, beaten: bool) -> None:
    baselines = {"pixels": {"precision_at_5": 0.10}, "hog": {"precision_at_5": 0.07}, "untrained": {}}
    remarks = findings({**figures(val=val), "baselines": baselines}, [])
    assert [remark.split(",")[0] for remark in remarks] == (
        [] if beaten else ["The baseline 'pixels' reaches 10.00%"]
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((0.2, 0.3, 0.4), "was best at its last evaluation (40.00%, epoch 3): longer"),
        ((0.2, 0.5, 0.4), "fell from 50.00% (epoch 2) to 40.00% (epoch 3): shorter"),
        ((0.2, 0.41, 0.4), None),
    ],
)
def test_findings_read_the_course_of_the_last_stage(values: tuple[float, ...], said: str | None) -> None:
    history = [*evaluations(0.9, 0.8, 0.1, stage="softmax"), *evaluations(*values)]
    remarks = findings({"k": 5}, history)
    assert len(remarks) == (said is not None)
    assert all("in stage 'ranking'" in remark and str(said) in remark for remark in remarks)
