"""The failure budget: progress resets it, an error that repeats uses it up, lost workers are only counted."""

import pytest

from jobs.training.failures import MAX_FAILURES, FailureBudget, last_line


class LostWorkerError(Exception):
    health_check_failure = "node died"


def test_an_error_that_repeats_is_given_up_the_third_time() -> None:
    budget = FailureBudget()
    errors = [RuntimeError(f"log\nfailed on port {port} at 0x7f{port}") for port in (3001, 3002, 3003)]
    assert [budget.is_used_up([error], 1) for error in errors] == [False, False, True]
    assert budget.repeats == 3


def test_the_same_error_of_several_workers_counts_once() -> None:
    budget = FailureBudget()
    assert not budget.is_used_up([ValueError("a"), ValueError("a"), ValueError("a")], 1)
    assert not budget.is_used_up([ValueError("b")], 1)
    assert not budget.is_used_up([ValueError("a"), ValueError("b")], 1)
    assert budget.is_used_up([ValueError("b"), ValueError("c")], 1)


def test_lost_workers_and_different_errors_have_a_larger_budget() -> None:
    for error in (lambda _: LostWorkerError("died"), lambda number: ValueError("x" * number)):
        budget = FailureBudget()
        answers = [budget.is_used_up([error(number)], 1) for number in range(MAX_FAILURES + 1)]
        assert answers == [False] * MAX_FAILURES + [True]


def test_progress_resets_the_budget() -> None:
    budget = FailureBudget()
    for epochs_done in range(3 * MAX_FAILURES):
        assert not budget.is_used_up([ValueError("same")], epochs_done)
        assert not budget.is_used_up([LostWorkerError("same")], epochs_done)
        assert not budget.is_used_up([ValueError("same")], epochs_done)


@pytest.mark.parametrize(("error", "line"), [(ValueError("a\nb \n"), "b"), (AssertionError(), "AssertionError")])
def test_last_line_is_never_empty(error: Exception, line: str) -> None:
    assert last_line(error) == line
