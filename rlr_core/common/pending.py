"""What a reward raises when its scores are not there yet: the update is taken up again later."""

from __future__ import annotations


class Pending(Exception):
    """No error: somebody has been asked for scores and has not answered yet.

    The run saves its state and ends. When it is resumed, the same update is rolled out again, bit-equal,
    and the reward is asked about the same pictures again in the same order.
    """

    def __init__(self, reason: str):
        """reason: one sentence: what is waited for, and where it goes."""
        super().__init__(reason)
        self.reason = reason
