"""Sending a request again."""

from collections.abc import Callable
import random
import time
from typing import TypeVar

from jaxmoe.mt import RequestError

ATTEMPTS = 7  # at a request that is refused in passing, such as 429 and 5xx
ATTEMPTS_IN_DOUBT = 3  # at one that may be billed each time

T = TypeVar("T")


def repeat(request: Callable[[], T], pause_s: float) -> T:
    """What `request` returns, asked again after growing pauses where it fails in passing.

    Raises:
        RequestError: the last one.
    """
    doubtful = 0
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except RequestError as error:
            doubtful += error.may_be_billed
            if not error.passing or attempt == ATTEMPTS or doubtful == ATTEMPTS_IN_DOUBT:
                raise
        time.sleep(pause_s * 2 ** (attempt - 1) * random.uniform(0.8, 1.2))
    raise AssertionError("the last attempt returns or raises")
