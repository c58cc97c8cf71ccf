"""Errors that a user can fix. Imports nothing, so every part of the package can import it."""


class Refused(ValueError):
    """An input, a file or a place that cannot be used. The message names the dotted field or the
    path, and the remedy, in whole sentences. The command line prints it without a traceback."""


class Failed(RuntimeError):
    """A run that failed. The message is whole sentences. Everything that it saved is intact."""
