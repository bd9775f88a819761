"""What was seen lately: bounded in time and in number."""

from collections import OrderedDict
from collections.abc import Callable, Hashable


class Recent:
    """Remembers names for a while; where there are too many, the oldest are forgotten first."""

    def __init__(self, *, seconds: float, limit: int, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._limit = limit
        self._clock = clock
        self._seen_at: OrderedDict[Hashable, float] = OrderedDict()

    def is_repeated(self, name: Hashable) -> bool:
        """Tells whether the name was seen within the time, and remembers a new one from now on."""
        now = self._clock()
        while self._seen_at and self._oldest() <= now - self._seconds:
            self._seen_at.popitem(last=False)
        if name in self._seen_at:
            return True
        if len(self._seen_at) >= self._limit:
            self._seen_at.popitem(last=False)
        self._seen_at[name] = now
        return False

    def _oldest(self) -> float:
        return next(iter(self._seen_at.values()))
