"""How fast a node goes, as its snapshots show: step times by load, and how often outputs end."""

from __future__ import annotations

import math
from collections.abc import Iterable

from pd.policies.chunk import SHARE, trickle_steps, worth_tokens
from pd.policies.steps import StepTimes
from pd.types import NodeSnapshot, StepTime

# Weight of the newest step in the mean of prompt tokens that ride along: an output's TPOT is a mean
# over some hundred steps.
_SMOOTHING = 0.005
MOST_OF = 1.28  # standard deviations that nine of ten stay below


class EventRate:
    """Events a second, those of about the last `window_s` seconds counting most."""

    __slots__ = ("_window_s", "_level", "_at_s", "_since_s")

    def __init__(self, window_s: float = 20.0) -> None:
        self._window_s = window_s
        self._level = 0.0
        self._at_s = 0.0
        self._since_s: float | None = None

    def count(self, now: float, number: float = 1.0) -> None:
        if self._since_s is None:
            self._since_s = self._at_s = now
        self._decay(now)
        self._level += number

    def per_s(self, now: float) -> float:
        """0 before the first; later what was seen over the time there was to see it."""
        if self._since_s is None:
            return 0.0
        self._decay(now)
        # At least a second: two events in a millisecond are no rate yet.
        seen_s = max(1.0, now - self._since_s)
        return self._level / (self._window_s * -math.expm1(-seen_s / self._window_s))

    def _decay(self, now: float) -> None:
        if now > self._at_s:
            self._level *= math.exp((self._at_s - now) / self._window_s)
            self._at_s = now


class Pace:
    """Of one node. `times` is what its steps take by load; the `first` ones it timed itself, before
    there was work for it."""

    __slots__ = ("ended", "times", "_steps", "_prefilled", "_prompt_tokens", "_chunk", "_read")

    def __init__(self, first: Iterable[StepTime] = ()) -> None:
        self.ended = EventRate()
        self.times = StepTimes(first)
        self._steps = self._prefilled = 0
        self._prompt_tokens = 0.0  # a step that also decodes has, in the mean
        self._chunk = 0.0  # that an average token of a prompt comes in
        self._read = 0.0  # tokens whose KV chunks read, for each that they compute

    def observe(self, snapshot: NodeSnapshot) -> None:
        """Learn from the last step that a snapshot tells of, if that is a new one."""
        if snapshot.steps == self._steps or snapshot.step_s <= 0.0:
            return
        steps, prefilled = snapshot.steps - self._steps, snapshot.prefill_tokens - self._prefilled
        self._steps, self._prefilled = snapshot.steps, snapshot.prefill_tokens
        seqs, prompt_tokens = snapshot.step_seqs, snapshot.step_prompt_tokens
        self.times.learn(snapshot)
        if seqs and steps > 0:
            # Of all steps since the last snapshot: those that one tells of are rarely without a
            # prompt, since it is prompts that make nodes report.
            weight = 1.0 - (1.0 - _SMOOTHING) ** steps
            self._prompt_tokens += weight * (prefilled / steps - self._prompt_tokens)
            if prompt_tokens:
                weight = min(1.0, _SMOOTHING * prompt_tokens / max(1.0, self._prompt_tokens))
                self._chunk += weight * (prompt_tokens - self._chunk)
                self._read += weight * (snapshot.step_prompt_context / prompt_tokens - self._read)

    def step_s(
        self,
        seqs: float,
        context: float,
        prompt_tokens: float = 0.0,
        prompt_context: float | None = None,
    ) -> float | None:
        """What a step of this load takes; None until a few have been seen. Where nothing is said
        of it, chunks of prompts read as much KV as they did lately."""
        if not self.times.known:
            return None
        read = prompt_tokens * self._read if prompt_context is None else prompt_context
        return self.times.step_s(seqs, context, prompt_tokens, read)

    def tpot_s(self, seqs: float, context: float) -> float | None:
        """The mean step of such a batch, with as many prompts in between as there were lately."""
        return self.step_s(seqs, context, self._prompt_tokens)

    def likely_tpot_s(
        self, seqs: float, context: float, num_steps: float, waiting_tokens: float
    ) -> float | None:
        """What nine of ten outputs of so many steps stay below.

        Prompts that wait count as if they had been among the others lately: they will have been
        before what is let in now is long under way. How many fall into an output's time is chance,
        and of few steps the mean is further off.
        """
        mean = self._prompt_tokens + _SMOOTHING * waiting_tokens
        spread = math.sqrt(mean * self._chunk / max(1.0, num_steps))
        return self.step_s(seqs, context, mean + MOST_OF * spread)

    def prompt_rate(
        self, seqs: float, context: float, tpot_s: float, num_tokens: int
    ) -> float | None:
        """Tokens a second of prompts of so many, beside such a batch, where a token of an output
        may take `tpot_s` in the mean; None until a few steps have been seen."""
        base_s = self.step_s(seqs, context)
        per_token_s = self.times.per_prompt_token_s
        if base_s is None or per_token_s <= 0.0:
            return None
        gain_s = max(0.0, tpot_s - base_s)  # of outputs on their targets, by a step without prompts
        start = max(0.0, num_tokens - gain_s / per_token_s) / 2  # of a chunk, in the mean
        fixed_s = self.times.chunk_s(start)
        worth = worth_tokens(fixed_s, per_token_s)
        tokens = max(worth, (gain_s - fixed_s) / per_token_s)
        chunk_s = fixed_s + tokens * per_token_s
        # Never fewer than what trickles; else as often as outputs have gained what a chunk takes.
        worth_s = fixed_s + worth * per_token_s
        rate = worth / (trickle_steps(worth_s, tpot_s / SHARE) * base_s + worth_s)
        return max(rate, tokens * gain_s / (chunk_s * tpot_s))

    def per_seq_s(self, context: float) -> float:
        """How much one more sequence of so much context adds to every step."""
        return self.times.per_seq_s(context)
