"""Whether and when to try again: pure policy. A call computes and changes nothing, so repeating it is always correct."""

STATUSES = frozenset({429, 502, 503, 504})
FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 8.0


def wait_s(attempt: int, *, retry_after: str, chance: float) -> float:
    """Returns the seconds to wait after an attempt, counted from 1: those of Retry-After and full jitter.

    The jitter is `chance`, uniform in [0, 1), of 0.25 s, of twice that after each further attempt, of 8 s at most.
    """
    # Retry-After may also be a date; the service sends none.
    asked_s = float(retry_after) if retry_after.isdecimal() else 0.0
    return asked_s + chance * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt - 1, 10))


class RetryBudget:
    """Keeps retries at 10 % of all calls and a reserve of 10, so that they don't bury a service that is down.

    Without a lock: what threads can make of the count is a retry more or less.
    """

    share, reserve = 0.1, 10.0

    def __init__(self) -> None:
        self._left = self.reserve

    def deposit(self) -> None:
        """Adds what a call earns."""
        self._left = min(self.reserve, self._left + self.share)

    def withdraw(self) -> bool:
        """Takes a retry out, and says whether there was one."""
        is_enough = self._left >= 1
        self._left -= is_enough
        return is_enough
