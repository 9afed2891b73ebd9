"""The logger ``plugrad``: what was chosen and compiled, and what looks like a mistake."""

from typing import Any


def debug(message: str, *arguments: Any) -> None:
    """Log what happened, for who wants to know; formatted only if a handler takes it."""
    import logging  # slow to import, and not needed by a call of a kernel

    logging.getLogger("plugrad").debug(message, *arguments)


def info(message: str, *arguments: Any) -> None:
    """Log what was expected to be faster, and why it is not."""
    import logging

    logging.getLogger("plugrad").info(message, *arguments)


def warn(message: str, *arguments: Any) -> None:
    """Log what is allowed and looks like a mistake."""
    import logging

    logging.getLogger("plugrad").warning(message, *arguments)
