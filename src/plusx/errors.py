"""The one error that is the user's to mend."""


class UserError(ValueError):
    """What was asked for cannot be done as it was asked.

    The message is one sentence for the person who typed the command or called the function: where,
    what was given, what is allowed, the nearest match, what to do next. The command line prints it
    and exits with 2; every other exception is a failure of the work and exits with 1.
    """
