"""pd.outbox: effects leave in order, and pages are closed before they are used again."""

from __future__ import annotations

from kvstore.transfer import Push
from pd.messages import Heartbeat, Tokens
from pd.outbox import CancelPush, Expect, Forget, Outbox, Send
from pd.types import TokenEvent

EXPECT = Expect(1, "p", 1, (4, 5))
PUSH = Push(2, "d", 1, 0, (1,), (2,))


def test_a_message_does_not_overtake_tokens() -> None:
    outbox = Outbox("n")
    outbox.token("gw", TokenEvent("r", 0, 0, 0, 7))
    outbox.send("other", Heartbeat("n"))
    outbox.send("gw", Heartbeat("n"))
    outbox.token("gw", TokenEvent("r", 0, 0, 1, 8))
    to = [(e.to, type(e.message)) for e in outbox.drain() if isinstance(e, Send)]
    assert to == [("other", Heartbeat), ("gw", Tokens), ("gw", Heartbeat), ("gw", Tokens)]
    assert outbox.drain() == []


def test_grants_can_be_taken_out_first_and_stay_in_order() -> None:
    outbox = Outbox()
    outbox.add(PUSH)
    outbox.add(EXPECT)
    outbox.send("p", Heartbeat("n"))
    outbox.add(Forget(1))
    outbox.add(CancelPush(2))
    assert outbox.drain_grants() == [EXPECT, Forget(1)]
    assert outbox.drain_grants() == []
    assert outbox.drain() == [PUSH, Send("p", Heartbeat("n")), CancelPush(2)]
