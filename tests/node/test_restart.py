"""What a node does when others have been started anew: the coordinator, or a gateway."""

from __future__ import annotations

import pytest
from node_driver import NodeDriver, make_work

from pd.messages import Abort, Admitted, Granted, Heartbeat, Interrupted, PeerLost, Verify


def decoding(gateway: str = "gateway") -> NodeDriver:
    node = NodeDriver("m0", "mixed")
    node.start_prefill(make_work(10, gateway=gateway, attempt=2), 1, "m0")
    while not node.core.decode.scheduler.running:
        node.step()
    node.clear()
    return node


@pytest.mark.parametrize(
    "attempt, indices, missing", [(2, (0,), ()), (3, (0,), (0,)), (2, (0, 1), (1,)), (1, (0,), ())]
)
def test_work_that_it_never_heard_of_is_interrupted(
    attempt: int, indices: tuple[int, ...], missing: tuple[int, ...]
) -> None:
    node = decoding()
    node.order(Verify("gateway", Admitted("r", indices, attempt, "m0", "m0", 1, 1)))
    told = [(message.indices, message.attempt) for message in node.sent(Interrupted, "gateway")]
    assert told == ([(missing, attempt)] if missing else [])


def test_what_is_on_its_way_counts_as_there() -> None:
    node = NodeDriver("d0", "decode")
    node.reserve(make_work(10))
    node.order(Verify("gateway", Admitted("r", (0,), 0, "p0", "d0", 1, 1)))
    assert not node.sent(Interrupted)


def test_work_of_a_gateway_that_is_gone_ends() -> None:
    node = decoding("g1")
    node.reserve(make_work(10, name="other", gateway="g2"), 7)
    node.order(PeerLost("g1", 4))
    assert not node.begin_step()
    assert not node.core.decode.scheduler.running
    assert list(node.core.decode.handoffs) == [7]
    assert len(node.sent(Granted)) == 1
    node.order(Abort("other", (0,), 0))
    assert not node.interrupted()


def test_a_heartbeat_is_nothing_to_report() -> None:
    node = decoding()
    node.tick(10.0)
    assert node.core._reporter.has_news is False
    node.order(Heartbeat("coordinator"))
    assert node.core._reporter.has_news is False
