"""The coordinator, in this process: tries of a block, and which network it assigns to which block."""

from jobs.prediction.coordinator import Begun, BrokenDevice, Coordinator, PlacedNetwork


def test_only_tries_that_killed_a_process_count() -> None:
    coordinator = Coordinator()
    assert coordinator.begin(7, "node") == Begun(1, is_excluded=False, is_round_over=False)
    assert coordinator.begin(7, "node").tries == 2  # the first process died
    coordinator.give_back(7)
    coordinator.end_round()
    assert coordinator.begin(7, "node") == Begun(1, is_excluded=False, is_round_over=True)
    coordinator.begin_round()
    assert coordinator.begin(7, "node").tries == 2


def test_blocks_are_shared_among_networks_and_a_dead_network_counts_once() -> None:
    coordinator = Coordinator()
    assert coordinator.take_network(0) is None
    first, second = (PlacedNetwork(name, name, name, "GPU", None) for name in ("a", "b"))
    coordinator.add_network(first)
    coordinator.add_network(second)
    assert [coordinator.take_network(block) for block in range(4)] == [first, second, first, second]
    coordinator.finish(1)
    assert coordinator.take_network(4) == second
    assert coordinator.take_network(4) == second  # its process died: the block counts once
    broken = BrokenDevice("a", "a", "GPU", "its process ended")
    for _ in range(2):  # all tasks that use it notice
        coordinator.lose_network("a", broken)
    coordinator.add_network(first)  # an answer from before
    assert coordinator.broken() == [broken]
    assert [coordinator.take_network(block) for block in (5, 6)] == [second, second]
    error = ValueError("the checkpoint was replaced")
    coordinator.fail(error)
    assert coordinator.take_network(7) is error
