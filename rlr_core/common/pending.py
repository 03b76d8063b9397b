"""What is asked for and not there yet."""

from __future__ import annotations


class Pending(Exception):
    """Raised by a reward whose scores have to come from outside, such as a person's, and are not there yet.

    The update is not taken: the run saves itself and ends, saying `reason`; resumed when the scores are
    there, it rolls the same update out again, bit-equal, and goes on.
    """

    def __init__(self, reason: str):
        """reason: what is waited for and where it goes, a sentence."""
        super().__init__(reason)
        self.reason = reason
