"""What nodes are about to have: found by prompts that begin alike, gone with their reasons."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore.prefix import block_hashes, short_keys
from pd.promises import Promises


def chain(text: str) -> list[int]:
    """A key for every character, which covers those before it."""
    return list(short_keys(block_hashes([ord(c) for c in text], 1, b"")))


def test_prompts_that_begin_alike_find_each_other() -> None:
    promises = Promises()
    promises.make(1, "p0", chain("abcdef"))
    promises.make(2, "p1", chain("abc"))
    assert promises.leading(chain("abcdxx")) == {"p0": 4, "p1": 3}
    assert promises.leading(chain("ab")) == {"p0": 2, "p1": 2}
    assert promises.leading(chain("xbc")) == {} == promises.leading(chain(""))


def test_the_longest_of_several_counts() -> None:
    promises = Promises()
    for transfer_id, text in enumerate(("ax", "abcd", "abx"), 1):
        promises.make(transfer_id, "p0", chain(text))
    assert promises.leading(chain("abcde")) == {"p0": 4}
    promises.ended(2)
    promises.reported("p0")
    assert promises.leading(chain("abcde")) == {"p0": 4}, "its report may be on the way"
    promises.reported("p0")
    assert promises.leading(chain("abcde")) == {"p0": 2}


def test_a_promise_is_kept_with_its_last_block() -> None:
    promises = Promises()
    promises.make(1, "p0", chain("abcd"))
    promises.make(1, "d0", chain("abcd"))
    promises.stored("p0", chain("abc"))
    assert promises.leading(chain("abcd")) == {"p0": 4, "d0": 4}
    promises.stored("p0", chain("abcd"))
    assert promises.leading(chain("abcd")) == {"d0": 4}


def test_a_lost_node_keeps_nothing() -> None:
    promises = Promises()
    promises.make(1, "p0", chain("abcd"))
    promises.make(1, "d0", chain("abcd"))
    promises.lost("p0")
    assert promises.leading(chain("abcd")) == {"d0": 4}
    promises.ended(1)
    promises.ended(1)
    for _ in range(2):
        promises.reported("d0")
    assert not len(promises)


@given(st.lists(st.text("ab", min_size=1, max_size=6), max_size=8), st.text("ab", max_size=8))
def test_leading_is_the_longest_common_beginning(texts: list[str], asked: str) -> None:
    promises = Promises()
    expected: dict[str, int] = {}
    for transfer_id, text in enumerate(texts, 1):
        node_id = f"p{transfer_id % 2}"
        promises.make(transfer_id, node_id, chain(text))
        pairs = zip(text, asked, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(text), len(asked)))
        expected[node_id] = max(expected.get(node_id, 0), common)
    assert promises.leading(chain(asked)) == {n: c for n, c in expected.items() if c}


class PromisesMachine(RuleBasedStateMachine):
    """Against a plain set of (transfer, node, text)."""

    def __init__(self) -> None:
        super().__init__()
        self.promises = Promises()
        self.model: set[tuple[int, str, str]] = set()
        self.left: dict[tuple[int, str], int] = {}  # reports, by transfer that has ended and node
        self.transfers = 0

    @rule(node=st.sampled_from("pqr"), text=st.text("ab", min_size=1, max_size=5))
    def make(self, node: str, text: str) -> None:
        self.transfers += 1
        for node_id in {node, "d"}:
            self.promises.make(self.transfers, node_id, chain(text))
            self.model.add((self.transfers, node_id, text))

    @rule(node=st.sampled_from("pqrd"), text=st.text("ab", min_size=1, max_size=5))
    def stored(self, node: str, text: str) -> None:
        self.promises.stored(node, chain(text))
        self.model = {m for m in self.model if not (m[1] == node and text.startswith(m[2]))}

    @rule(node=st.sampled_from("pqrd"))
    def lost(self, node: str) -> None:
        self.promises.lost(node)
        self.model = {m for m in self.model if m[1] != node}

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def ended(self, data: Any) -> None:
        transfer_id = data.draw(st.integers(1, self.transfers))
        self.promises.ended(transfer_id)
        for of, node, _ in self.model:
            if of == transfer_id:
                self.left.setdefault((of, node), 2)

    @precondition(lambda self: self.transfers)
    @rule(data=st.data())
    def drop(self, data: Any) -> None:
        transfer_id = data.draw(st.integers(1, self.transfers))
        self.promises.drop(transfer_id)
        self.model = {m for m in self.model if m[0] != transfer_id}

    @rule(node=st.sampled_from("pqrd"))
    def reported(self, node: str) -> None:
        self.promises.reported(node)
        self.left = {at: n - (at[1] == node) for at, n in self.left.items()}
        self.model = {m for m in self.model if self.left.get(m[:2], 1)}

    @invariant()
    def same(self) -> None:
        assert len(self.promises) == len(self.model)
        for text in ("a", "ab", "bbb", "ababa"):
            nodes = {node for _, node, promised in self.model if promised[0] == text[0]}
            assert self.promises.leading(chain(text)).keys() == nodes


TestPromisesMachine = PromisesMachine.TestCase
TestPromisesMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
