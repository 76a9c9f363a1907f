"""Does another precision, or the host, cure what a scan found?"""

from srdd.verify_fix.outcome import Change, Outcome
from srdd.verify_fix.run import verify_fix

__all__ = ["Change", "Outcome", "verify_fix"]
