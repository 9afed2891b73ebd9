"""The logger ``plugrad``: what was chosen and compiled, and what looks like a mistake."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging


@functools.cache  # to get it takes a lock, which Ctrl-C may leave taken: other threads would wait for it for ever
def _logger() -> logging.Logger:
    import logging  # slow to import, and not needed by a call of a kernel

    return logging.getLogger("plugrad")


def debug(message: str, *arguments: Any) -> None:
    """Log what happened, for who wants to know; formatted only if a handler takes it."""
    _logger().debug(message, *arguments)


def info(message: str, *arguments: Any) -> None:
    """Log what was expected to be faster, and why it is not."""
    _logger().info(message, *arguments)


def warn(message: str, *arguments: Any) -> None:
    """Log what is allowed and looks like a mistake."""
    _logger().warning(message, *arguments)
