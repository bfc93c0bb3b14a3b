"""Restarts slow down while something keeps dying, and start afresh after a healthy life."""

from kvmserver.backoff import FIRST_S, HEALTHY_S, LONGEST_S, Backoff


def test_the_wait_doubles_up_to_a_limit_and_recovers() -> None:
    now = [0.0]
    backoff = Backoff(lambda: now[0])
    waits = []
    for _ in range(10):
        backoff.started()
        waits.append(backoff.delay_s())
    assert waits[:3] == [FIRST_S, 2 * FIRST_S, 4 * FIRST_S]
    assert waits[-1] == LONGEST_S
    backoff.started()
    now[0] += HEALTHY_S
    assert backoff.delay_s() == FIRST_S
