"""What can go wrong, by whose fault, and with which exit code."""

from __future__ import annotations


class HalError(Exception):
    """Root of every error this project raises on purpose; its message is one line that states the value found,
    the rule it breaks and what to do; `exit_code` is what the command line returns for it.
    """

    exit_code = 2


class UsageError(HalError):
    """The caller gave a value, file or option that breaks a stated rule (exit code 2)."""


class BackendUnavailableError(HalError):
    """The named backend is known but cannot run on this machine, or no such device exists (exit code 3)."""

    exit_code = 3


class UnknownBackendError(UsageError):
    """No backend of that name is registered (exit code 2); the message lists the known ones with their state."""


class UnsupportedError(HalError):
    """A backend was asked for an operator or dtype it does not declare (exit code 2)."""


class ModelError(UsageError):
    """A checkpoint or module cannot be used: missing, truncated, non-finite, remote code, no layer stack (exit
    code 2).
    """


class HookError(HalError):
    """A hook was attached to a site that does not exist, or a module returned an output no rule covers (exit
    code 2).
    """


class EngineError(UsageError):
    """A serving or training engine cannot be used as asked: its release is not one we know, it was started without
    our extension, or it runs its model where hooks do not (exit code 2).
    """


def one_line(error: BaseException) -> str:
    """An error as it stands inside another message: its type and text, without line breaks."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
