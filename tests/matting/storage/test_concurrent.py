"""Concurrent calls: results in order, a bounded number of calls, errors in their turn."""

import threading

import pytest

from matting.storage.concurrent import concurrently


def test_results_come_in_order():
    assert list(concurrently(lambda number: number**2, range(20), ahead=4)) == [(n, n**2) for n in range(20)]
    assert list(concurrently(str, [], ahead=4)) == []


def test_no_more_calls_than_ahead_are_made():
    called = []
    results = concurrently(called.append, range(20), ahead=3)
    next(results)
    assert len(called) <= 4
    results.close()


def test_calls_run_at_the_same_time():
    barrier = threading.Barrier(3, timeout=10)
    assert len(list(concurrently(lambda _: barrier.wait(), range(3), ahead=3))) == 3


def test_error_is_raised_when_its_result_is_due():
    results = concurrently(lambda number: 1 / number, [1, 2, 0], ahead=3)
    assert [next(results), next(results)] == [(1, 1.0), (2, 0.5)]
    with pytest.raises(ZeroDivisionError):
        next(results)
