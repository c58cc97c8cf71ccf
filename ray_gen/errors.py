"""Errors that a user can fix. Imports nothing, so every part of the package can import it."""


class Refused(ValueError):
    """An input, a file or a place that cannot be used. The message names the dotted field or the
    path, and the remedy, in whole sentences. The command line prints it without a traceback."""


class Failed(RuntimeError):
    """A run that failed. The message is whole sentences. Everything that it saved is intact."""


class GpuMemoryError(Failed):
    """A step of training needs more memory than a GPU has. With a smaller
    `training.micro_batch_size` it may need less."""


class MachineMemoryError(Failed):
    """Processes of a run were ended because the memory of a machine ran short. The message says who
    had it."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a command. The message says what was saved; it may be empty."""

    def __init__(self, message: str = "", *, number: int = 2) -> None:
        """number: of the signal; 2 is SIGINT."""
        super().__init__(message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """Exit code of the command, as in shells: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number
