"""Bad messages through real sockets; scripts/fuzz_frames.py sends many more of them."""

from __future__ import annotations

import pytest
from bad_frames import WAYS, attack_mailbox, attack_transport


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("transport", ["zmq", "shm"])
def test_blocks(transport: str) -> None:
    assert set(attack_transport(transport, 400, seed=1)) == set(WAYS)


def test_control_messages() -> None:
    assert sum(attack_mailbox(400, seed=1).values()) == 400
