"""Where work goes: `pd.policies.route` decides, and here is what it decides on. Pure.

The keys of a prompt's blocks, what the directory says of them, what was promised; and then what
was sent where, until the nodes' snapshots and events show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kvstore.directory import Coverage, Leading
from kvstore.prefix import KeySpace, chain, short_keys, unpack_short_keys
from pd.holders import Holders
from pd.member import Credit, Node
from pd.members import Members
from pd.messages import BlockEvents
from pd.policies.candidate import Blocks, Candidate, Fleet, Placement, Prompt
from pd.policies.costs import Costs
from pd.policies.disaggregate import Disaggregate
from pd.policies.forecast import UNKNOWN, Forecast, forecast
from pd.policies.lengths import OutputLengths
from pd.policies.predict import cached_blocks, predict, usable_blocks
from pd.policies.route import Routing, route
from pd.policies.sources import best_sources
from pd.policies.spread import hash64
from pd.popular import PopularPrefixes
from pd.promises import Promises
from pd.types import Source, Work

_BEGINNING = 64  # tokens by which prompts without a session are told apart: a few blocks
_NOTHING = Leading(0, 0)


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How work is placed. With `prefix_cache` the nodes keep blocks under keys of `key_space`."""

    routing: Routing = "cache_aware"
    prefix_cache: bool = True
    key_space: KeySpace = field(default_factory=KeySpace)
    disaggregate: Disaggregate = "auto"
    adaptive_chunks: bool = True


class Query:
    """Work that is to be placed, and the keys of its blocks: one chain for every KV layout, each
    made when it is first asked for."""

    def __init__(self, work: Work, options: RouterOptions) -> None:
        request = work.request
        self.work = work
        self.tokens = work.tokens()
        tenant = request.tenant.encode()
        self.session: int | None = None
        if request.session:
            self.session = self.affinity = hash64(b"session", tenant, request.session.encode())
        else:
            start = chain(b"", self.tokens[:_BEGINNING])
            self.affinity = hash64(b"prompt", tenant, request.cache_salt.encode(), start)
        self._options = options
        self._keys: dict[tuple[int, int], Sequence[int]] = {}

    def keys(self, layout: int, block_size: int) -> Sequence[int]:
        """Short keys of the full blocks; none where nodes keep no blocks."""
        if not self._options.prefix_cache:
            return ()
        keys = self._keys.get((layout, block_size))
        if keys is None:
            request = self.work.request
            space = self._options.key_space
            root = space.root(layout, request.tenant, request.cache_salt)
            keys = short_keys(space.block_keys(self.tokens, block_size, root))
            self._keys[layout, block_size] = keys
        return keys


@dataclass(frozen=True, slots=True)
class Route:
    """Where a query goes. `sources` have blocks that the prefill node lacks; `work_s` is what the
    prompt costs that node, and `tokens` the same in tokens computed; `num_computed` are those that
    the node does not have, some of which may be fetched."""

    query: Query
    placement: Placement
    sources: tuple[Source, ...]
    work_s: float
    tokens: int
    num_cached: int
    num_computed: int
    coverage: Coverage
    forecast: Forecast


class Router:
    """Placement of work over the members of a cell."""

    def __init__(
        self, options: RouterOptions, members: Members, holders: Holders, lengths: OutputLengths
    ) -> None:
        self.options = options
        self.promises = Promises()
        self.popular = PopularPrefixes()
        self._lengths = lengths
        self._members = members
        self._directory = holders.directory

    def query(self, work: Work) -> Query:
        return Query(work, self.options)

    def route(self, query: Query, fleet: Fleet) -> Route | None:
        """The nodes for this work among these, or None if there are none."""
        typical = fleet.typical
        coverage: dict[int, Coverage] = {}
        blocks: dict[int, Blocks] = {}
        for layout, size in fleet.kinds:
            keys = query.keys(layout, size)
            if keys:
                found = coverage[layout] = self._directory.lookup(keys)
                blocks[layout] = self._blocks(query, keys, found, typical, size)
        request = query.work.request
        prompt = Prompt(
            len(query.tokens), query.session, query.affinity, blocks, typical,
            measured=fleet.measured,
            slo=request.slo, num_seqs=len(query.work.indices), max_tokens=request.params.max_tokens,
            paced=self.options.adaptive_chunks, mean_output=self._lengths.mean,
        )  # fmt: skip
        placement = route(fleet, prompt, self.options.routing, self.options.disaggregate)
        if placement is None:
            return None
        start, decode = fleet.nodes[placement.prefill], fleet.nodes[placement.decode]
        costs = typical.of(start.snapshot)
        found = coverage.get(start.layout, Coverage())
        work_s = predict(start, prompt).compute_s
        num_cached = cached_blocks(start, prompt)
        return Route(
            query,
            placement,
            self._sources(query, start, found, costs),
            work_s=work_s,
            tokens=max(1, round(work_s * costs.rate)),
            num_cached=num_cached,
            num_computed=len(query.tokens) - num_cached * start.block_size,
            coverage=found,
            forecast=forecast(start, decode, prompt) if prompt.has_targets else UNKNOWN,
        )

    def popular_prefixes(self, limit: int) -> Iterator[Mapping[str, str | int]]:
        """Those asked for most, and who has them, as `pd kv` shows it."""
        for prefix in self.popular.top(limit):
            holders = self._directory.lookup([prefix.key]).leading
            yield {
                "key": f"{prefix.key:016x}",
                "tokens": prefix.num_tokens,
                "requests": prefix.count,
                "holders": ", ".join(sorted(holders)),
            }

    def sent(self, route: Route, work: Work, transfer_id: int) -> None:
        """The work is on its way, as this transfer, to where the route says."""
        nodes, placement = self._members.nodes, route.placement
        prefill, decode = nodes[placement.prefill], nodes[placement.decode]
        num_seqs, context = len(work.indices), work.num_tokens
        if decode is prefill:
            prefill.charge(transfer_id, Credit(1, route.tokens, num_seqs, context))
        else:
            prefill.charge(transfer_id, Credit(1, route.tokens))
            decode.charge(transfer_id, Credit(seqs=num_seqs, context=context))
        self._count(route, prefill)
        if not work.attempt:
            hello = prefill.hello
            self.popular.count(route.query.keys(hello.layout, hello.block_size), hello.block_size)
        for node in {prefill.id: prefill, decode.id: decode}.values():
            keys = route.query.keys(node.hello.layout, node.hello.block_size)
            if len(keys) > route.coverage.leading.get(node.id, _NOTHING).blocks:
                self.promises.make(transfer_id, node.id, keys)

    def not_sent(self, node_id: str, transfer_id: int) -> None:
        """The order could not be delivered: no snapshot will ever show it."""
        self.promises.drop(transfer_id)
        node = self._members.nodes.get(node_id)
        if node is not None:
            node.discharge(transfer_id)

    def ended(self, transfer_id: int) -> None:
        """Outputs of this work have ended, or nobody wants them."""
        self.promises.ended(transfer_id)

    def stored(self, node_id: str, events: BlockEvents) -> None:
        """The directory has these events now."""
        if self.promises:
            self.promises.stored(node_id, unpack_short_keys(events.stored))

    def reported(self, node_id: str) -> None:
        """The node has sent a snapshot."""
        self.promises.reported(node_id)

    def lost(self, node_id: str) -> None:
        self.promises.lost(node_id)

    # -------------------------------------------------------------- inside
    def _blocks(
        self, query: Query, keys: Sequence[int], found: Coverage, typical: Costs, size: int
    ) -> Blocks:
        cached = self.promises.leading(keys)
        coming = max(cached.values(), default=0)
        for holder, part in found.leading.items():
            cached[holder] = max(part.blocks, cached.get(holder, 0))
        if self.options.routing != "cache_aware":
            return Blocks(cached, coming=coming)
        # Two, because the best may be the very node that is asked about.
        sources = best_sources(
            found.leading, self._epoch_of, typical, size,
            usable=usable_blocks(len(query.tokens), size), limit=2,
        )  # fmt: skip
        return Blocks(cached, sources, coming)

    def _sources(
        self, query: Query, node: Candidate, found: Coverage, costs: Costs
    ) -> tuple[Source, ...]:
        """What the node may fetch from. What it was only promised does not count as there."""
        if not found.leading:
            return ()
        nodes = self._members.nodes
        host = nodes[node.node_id].hello.host

        def distance(holder: str) -> int:
            other = nodes[holder]  # a pool has nothing else to do
            return 2 * (other.hello.host != host) + other.serves

        return best_sources(
            found.leading, self._epoch_of, costs, node.block_size,
            usable=usable_blocks(len(query.tokens), node.block_size),
            cached=found.leading.get(node.node_id, _NOTHING).blocks,
            distance=distance, key=hash64(query.work.request.request_id.encode()),
        )  # fmt: skip

    def _count(self, route: Route, node: Node) -> None:
        """Where the prompt's tokens were found, for those who look at caches."""
        found, size = node.found, node.hello.block_size
        num_tokens = len(route.query.tokens)
        found.routed_tokens += num_tokens
        found.found_local_tokens += route.num_cached * size
        if not route.sources:
            return
        source = route.sources[0]
        end = min(source.num_blocks, usable_blocks(num_tokens, size))
        slow_from = max(route.num_cached, source.num_blocks - source.num_slow)
        slow = max(0, end - slow_from)
        fast = max(0, end - route.num_cached - slow)
        if self._members.nodes[source.holder].serves:
            found.found_remote_tokens += fast * size
        else:
            found.found_dram_tokens += fast * size
        found.found_disk_tokens += slow * size

    def _epoch_of(self, holder: str) -> int:
        return self._members.nodes[holder].epoch
