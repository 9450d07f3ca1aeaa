"""What a run over sites spends of differential privacy: after its rounds so far, and in all."""

from __future__ import annotations

import time

from plures.privacy import ExamplesPlan, Plan, Spent
from plures.remote.allowed import spends

SHARE, LEAST = 0.05, 1.0
"""Accounting takes at most this share of a run's time, or so many seconds: an exact number may take some."""


class Account:
    """The account of a run.

    Args:
        plan: differential privacy of the run.
        rounds: all its rounds.

    Attributes:
        whole: what all rounds spend.
        epsilon, round: what was spent after which round, as last computed.
    """

    def __init__(self, plan: Plan | ExamplesPlan, rounds: int) -> None:
        self.plan, self.rounds = plan, rounds
        begun = time.perf_counter()
        self.whole: Spent = plan.spent(rounds, spends(plan, rounds))
        self.epsilon, self.round, self._took = 0.0, 0, time.perf_counter() - begun

    def after(self, round: int, seconds: float) -> dict[str, float]:
        """Numbers for monitoring after a round.

        Args:
            round: rounds finished.
            seconds: that they took.
        """
        if round == self.rounds:
            self.epsilon, self.round = self.whole.epsilon, round
        elif self._took <= max(LEAST, SHARE * seconds):
            begun = time.perf_counter()
            self.epsilon, self.round = spends(self.plan, round), round
            self._took += time.perf_counter() - begun
        plan = {"epsilon_plan": self.whole.epsilon, "delta": self.whole.delta}
        return {"epsilon": self.epsilon, "epsilon_round": float(self.round), **plan} if self.round else plan
