"""What a user can mend. Imports nothing, so that every room and the command line may know it."""


class Refused(ValueError):
    """An input, a file or a place that cannot be used. The message is whole sentences that name the
    dotted field or the path, and the remedy; the command line prints it without a traceback."""


class Failed(RuntimeError):
    """A run that did not end well, in whole sentences; what it saved is intact."""
