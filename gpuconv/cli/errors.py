"""What the user can mend."""


class UserError(Exception):
    """A mistake in the input, with a message for the user and the program's exit code."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
