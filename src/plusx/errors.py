"""The one error that is the user's to mend."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """What was asked for cannot be done as it was asked.

    The message is one sentence for the person who typed the command or called the function: where,
    what was given, what is allowed, the nearest match, what to do next. The command line prints it
    and exits with 2; every other exception is a failure of the work and exits with 1.
    """


def did_you_mean(word: str, options: Iterable[str], count: int = 1) -> str:
    """ "; did you mean a or b?" for the options that are nearest to the word; empty without any."""
    near = get_close_matches(word, list(options), n=count)
    return f"; did you mean {' or '.join(near)}?" if near else ""
