"""Time budgets: parses durations and deadlines, and divides epochs between the remaining prune rounds."""

import datetime
import re
from collections.abc import Sequence

from tf_packnet.errors import ArgumentError
from tf_packnet.pruning.shares import GROWING, SHRINKING

DURATION = "a time such as 90s, 15m, 8h or 1h30m"
DEADLINE = "a time of day such as 07:00, or a date and a time such as 2030-01-31T07:00"

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,9}}(?:\.[0-9]{{1,6}})?){unit})?" for unit in _UNITS))
_TIME_OF_DAY = re.compile(r"([01]?[0-9]|2[0-3]):[0-5][0-9]")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9:.+Z-]+")
# Ten years: a limit that catches typing errors.
MOST_SECONDS = 10 * 366 * 86400


def seconds_of(duration: str) -> float | None:
    """Parse a duration such as `1h30m`.

    Returns:
        Seconds; None if `duration` is not a positive time of at most ten years.
    """
    match = _DURATION.fullmatch(duration)
    if match is None:
        return None
    numbers = zip(match.groups(default="0"), _UNITS.values(), strict=True)
    seconds = sum(float(number) * unit for number, unit in numbers)
    return seconds if 0 < seconds <= MOST_SECONDS else None


def shown(seconds: float) -> str:
    """Format a duration in seconds as text that `seconds_of` reads, such as `1h30m` or `2.5s`."""
    minutes, rest = divmod(round(seconds, 6), 60)
    text, left = "", int(minutes)
    for unit, size in (("d", 1440), ("h", 60), ("m", 1)):
        count, left = divmod(left, size)
        text += f"{count}{unit}" if count else ""
    rest = round(rest, 6)
    return f"{text}{rest:.9g}s" if rest or not text else text


def is_deadline(text: str) -> bool:
    """Whether `text` is a time of day or an ISO date with a time."""
    return _TIME_OF_DAY.fullmatch(text) is not None or _moment(text) is not None


def moment_of(deadline: str, now: datetime.datetime) -> datetime.datetime:
    """Parse a deadline: a date with a time, or a time of day, which means its next occurrence after `now`.

    Args:
        deadline: A text for which `is_deadline` is true. Without a time zone, it is in local time.
        now: The current time, in the local time zone.

    Returns:
        The moment, with a time zone.
    """
    moment = _moment(deadline)
    if moment is not None:
        return moment if moment.tzinfo else moment.astimezone()
    hour, minute = map(int, deadline.split(":"))
    # Without a time zone until the end: a clock change may come before it.
    today = now.replace(hour=hour, minute=minute, second=0, microsecond=0, tzinfo=None)
    return today.astimezone() if today.astimezone() > now else (today + datetime.timedelta(days=1)).astimezone()


def check_is_ahead(moment: datetime.datetime, now: datetime.datetime) -> None:
    """Raise ArgumentError if a deadline is in the past."""
    if moment <= now:
        raise ArgumentError("deadline", f"a time after now, {now:%Y-%m-%dT%H:%M:%S}", f"{moment:%Y-%m-%dT%H:%M:%S}")


def _moment(text: str) -> datetime.datetime | None:
    if _DATE.fullmatch(text) is None:
        return None
    try:
        # Python 3.10 does not know Z.
        return datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return None


def weights_of(round_epochs: str, rounds: int) -> tuple[int, ...]:
    """Return the weights by which epochs are divided between `rounds` rounds, see `round_lengths`."""
    growing = tuple(range(1, rounds + 1))
    return {GROWING: growing, SHRINKING: growing[::-1]}.get(round_epochs, (1,) * rounds)


def length_of_first(epochs: int, weights: Sequence[int]) -> int:
    """Return how many of `epochs` epochs follow the first of the remaining rounds.

    With at least as many epochs as rounds, each round is followed by at least one epoch. With fewer, the first round is
    followed by none.

    Args:
        epochs: Number of epochs to divide between the remaining rounds.
        weights: Weight of each remaining round, see `weights_of`.
    """
    rounds = len(weights)
    length = round(epochs * weights[0] / sum(weights))
    return max(min(1, epochs // rounds), min(length, epochs - rounds + 1))
