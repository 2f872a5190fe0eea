"""The configuration: strict input, one source for files and flags, exact round trips."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pd.cli.load import dump_config
from pd.config import OPTIONS, SECTIONS, CacheConfig, ClusterConfig, Config, SchedulerConfig
from pd.errors import ConfigError
from pd.schema import Option, options_of


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """Every value an option takes, within what a float or an int of its range can be."""
    values: st.SearchStrategy[Any]
    if option.key == "api_keys":
        names = st.from_regex(r"[A-Za-z0-9._-]{1,9}", fullmatch=True)
        keys = st.from_regex(r"key-[a-zA-Z0-9=:;]{0,9}", fullmatch=True)
        return st.lists(
            st.tuples(names, keys), max_size=3, unique_by=(lambda x: x[0], lambda x: x[1])
        ).map(lambda pairs: tuple(f"{name}={key}" for name, key in pairs))
    if option.key == "tenant_classes":
        word = st.builds(
            "{}=weight:{}/priority:{}/ttft_ms:{}".format,
            st.sampled_from(("gold", "default", "x")), st.integers(1, 99), st.integers(-9, 9),
            st.floats(0.1, 1e4),
        )  # fmt: skip
        return st.lists(word, max_size=3, unique_by=lambda each: each[0]).map(tuple)
    if option.key == "tenants":
        return st.just(())  # they need classes: a case of its own below
    if option.key == "trace_endpoint":
        values = st.from_regex(r"https?://[a-z]{1,9}(:[0-9]{1,4})?(/[a-z]{0,5})?", fullmatch=True)
    elif option.many:
        values = st.lists(st.sampled_from(option.choices), min_size=1, unique=True).map(tuple)
    elif option.choices:
        values = st.sampled_from(option.choices)
    elif option.kind is bool:
        values = st.booleans()
    elif option.kind is int:
        low = int(option.minimum or 0)
        values = st.integers(low, int(option.maximum or low + 10**6))
    elif option.kind is float:
        low_f = option.minimum or 0.0
        values = st.floats(low_f, option.maximum or low_f + 1e6, allow_nan=False)
    else:
        values = st.text(min_size=1).filter(str.strip)
    return st.one_of(st.none(), values) if option.nullable else values


@st.composite
def configs(draw: st.DrawFn) -> Config:
    keys = draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True))
    values = {key: draw(values_of(OPTIONS[key])) for key in keys}
    try:
        return Config.from_dict(**values)
    except ConfigError:  # options that exclude each other: a case of its own below
        for key in (
            "prefill", "decode", "heartbeat_s", "node_timeout_s", "lease_s", "pool_dram_gib",
            "pool_disk_gib", "api_key", "api_keys", "tenant_classes", "max_prefill_nodes",
            "max_decode_nodes", "max_mixed_nodes",
        ):  # fmt: skip
            values.pop(key, None)
        return Config.from_dict(**values)


@given(configs())
def test_to_dict_round_trips(config: Config) -> None:
    assert Config.from_dict(config.to_dict()) == config


@given(configs())
def test_a_yaml_file_round_trips(config: Config) -> None:
    assert Config.from_dict(yaml.safe_load(dump_config(config))) == config


@given(st.data())
def test_a_flag_parses_to_what_the_file_says(data: st.DataObject) -> None:
    option = OPTIONS[data.draw(st.sampled_from(sorted(OPTIONS)))]
    value = data.draw(values_of(option))
    if option.kind is bool:
        return  # a switch: it has no text
    text = "" if value is None and option.kind is str else option.written(value)
    assert option.parse(text) == option.check(value)


@given(
    st.sampled_from(sorted(OPTIONS)),
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.text()),
        st.dictionaries(st.text(), st.integers()),
    ),
)  # fmt: skip
def test_any_value_is_taken_or_refused_by_name(key: str, value: object) -> None:
    option = OPTIONS[key]
    try:
        config = Config.from_dict({option.section: {key: value}})
    except ConfigError as error:
        assert option.section in str(error)
    else:
        assert Config.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("sections", "flags", "parts"),
    [
        ({"cluster": {"prefil": 1}}, {}, ["'prefil'", "'cluster'", "did you mean 'prefill'"]),
        ({"clutser": {}}, {}, ["'clutser'", "did you mean 'cluster'"]),
        ({"prefill": 1}, {}, ["'prefill'", "belongs in section 'cluster'"]),
        ({"cluster": {"port": 80}}, {}, ["belongs in section 'gateway'"]),
        ({"cluster": {1: 2}}, {}, ["unknown key '1'"]),
        ({"gateway": {"zzz": 1}}, {}, ["known keys: host, port"]),
        ({"gateway": [1]}, {}, ["section 'gateway' must be a mapping"]),
        ([], {}, ["the configuration must be a mapping"]),
        ({}, {"no_such": 1}, ["unknown key 'no_such'"]),
        ({}, {"port": 65536}, ["gateway.port", "from 0 to 65535", "65536"]),
        ({}, {"port": "80"}, ["gateway.port", "whole number", "'80'"]),
        ({}, {"port": True}, ["gateway.port", "not True"]),
        ({}, {"verify": 1}, ["transfer.verify", "true or false"]),
        ({}, {"dtype": "float3"}, ["model.dtype", "bfloat16", "did you mean 'float32'"]),
        ({}, {"lease_s": float("nan")}, ["cluster.lease_s", "nan"]),
        ({}, {"lease_s": float("inf")}, ["cluster.lease_s", "inf"]),
        ({}, {"decode": 3, "max_decode_nodes": 2}, ["scale.max_decode_nodes = 2", "decode = 3"]),
        ({}, {"max_mixed_nodes": 2}, ["scale.max_mixed_nodes = 2", "cluster.mixed to 1 or more"]),
        ({}, {"aging_s": -1}, ["scheduler.aging_s", "at least 0"]),
        ({}, {"api_key": 12}, ["gateway.api_key", "a string"]),
        ({}, {"api_keys": "a=b"}, ["gateway.api_keys", "a list of words", "mapping"]),
        ({}, {"api_keys": ["a=b", ""]}, ["gateway.api_keys, entry 2"]),
        ({}, {"api_keys": ["secret"]}, ["gateway.api_keys, entry 1", "NAME=KEY"]),
        ({}, {"api_keys": ["a="]}, ["gateway.api_keys, entry 1", "NAME=KEY"]),
        ({}, {"api_keys": ["a b=c"]}, ["gateway.api_keys, entry 1", "NAME=KEY"]),
        ({}, {"api_keys": ["a=x y"]}, ["gateway.api_keys, entry 1", "NAME=KEY"]),
        ({}, {"api_keys": ["a=x,y"]}, ["gateway.api_keys, entry 1", "commas"]),
        ({}, {"api_keys": {"a": "k", "b": 7}}, ["gateway.api_keys, entry 2"]),
        ({}, {"api_keys": ["a=k", "a=m"]}, ["entry 2", "tenant 'a'", "given before"]),
        ({}, {"api_keys": ["a=k", "b=k"]}, ["entry 2", "tenant 'b'", "given before"]),
        ({}, {"api_keys": ["a=k"], "api_key": "k"}, ["entry 1", "given before"]),
        ({}, {"ttft_ms": 0}, ["slo.ttft_ms"]),
        ({}, {"tenant_classes": ["gold"]}, ["slo", "'gold'", "NAME=KEY:VALUE"]),
        ({}, {"tenant_classes": ["gold=wait:1"]}, ["slo", "'wait'", "requests_per_s"]),
        ({}, {"tenant_classes": ["g=weight:1/weight:2"]}, ["'weight' is given twice"]),
        ({}, {"tenant_classes": ["g=weight:0"]}, ["class 'g'", "weight must be from"]),
        ({}, {"tenant_classes": ["g=weight:nan"]}, ["class 'g'", "weight must be from"]),
        ({}, {"tenant_classes": ["g=priority:1.5"]}, ["class 'g'", "whole number", "1.5"]),
        ({}, {"tenant_classes": ["g=priority:1/min_priority:2"]}, ["more urgent than"]),
        ({}, {"tenant_classes": ["g=weight:1", "g=weight:2"]}, ["class 'g' is given twice"]),
        ({}, {"tenants": ["alice=gold"]}, ["tenant 'alice'", "class 'gold'", "none at all"]),
        ({}, {"tenants": ["alice"]}, ["slo", "TENANT=CLASS"]),
        ({}, {"routing": "cache-aware"}, ["cluster.routing", "did you mean 'cache_aware'"]),
        ({}, {"model": " "}, ["model.model"]),
        ({}, {"transports": []}, ["transfer.transports", "list of shm, zmq"]),
        ({}, {"transports": "shm"}, ["transfer.transports"]),
        ({}, {"transports": ["shm", "shm"]}, ["transfer.transports", "repeats"]),
        ({}, {"transports": ["zmp"]}, ["did you mean 'zmq'"]),
        ({}, {"prefill": 0}, ["cluster.decode is 1", "cluster.prefill is 0"]),
        ({}, {"decode": 0, "mixed": 1}, ["cluster.prefill is 1", "cluster.decode is 0"]),
        ({}, {"prefill": 0, "decode": 0}, ["no nodes"]),
        ({}, {"heartbeat_s": 6.0}, ["cluster.node_timeout_s = 10", "heartbeat_s (6)"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(sections: Any, flags: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_dict(sections, **flags)
    for part in parts:
        assert part in str(caught.value)


def test_direct_construction_is_as_strict() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.max_num_seqs"):
        SchedulerConfig(max_num_seqs=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().cluster.prefill = 3  # type: ignore[misc]


def test_flags_win_over_the_file() -> None:
    config = Config.from_dict({"gateway": {"port": 1, "max_n": 2}}, port=3)
    assert (config.gateway.port, config.gateway.max_n) == (3, 2)


def test_an_empty_file_or_section_is_the_defaults() -> None:
    assert Config.from_dict(None) == Config.from_dict({"cluster": None}) == Config()


def test_mixed_alone_means_mixed_only() -> None:
    for config in (Config.from_dict(mixed=2), Config.from_dict({"cluster": {"mixed": 2}})):
        assert (config.cluster.prefill, config.cluster.decode, config.cluster.mixed) == (0, 0, 2)
    hybrid = Config.from_dict(mixed=1, prefill=1, decode=2).cluster
    assert (hybrid.prefill, hybrid.decode, hybrid.mixed, hybrid.num_nodes) == (1, 2, 1, 4)


def test_keys_of_tenants_are_a_list_or_a_mapping() -> None:
    listed = Config.from_dict({"gateway": {"api_keys": ["alice=k1", "bob=k=2"], "api_key": "k0"}})
    mapped = Config.from_dict(
        {"gateway": {"api_keys": {"alice": "k1", "bob": "k=2"}}}, api_key="k0"
    )
    assert listed == mapped
    assert listed.gateway.tenants() == {"k0": "", "k1": "alice", "k=2": "bob"}
    assert OPTIONS["api_keys"].parse("alice=k1, bob=k=2") == listed.gateway.api_keys
    assert Config().gateway.tenants() == {}


def test_tenant_classes_are_words_or_mappings() -> None:
    words = Config.from_dict(
        tenant_classes=["gold=ttft_ms:300/priority:-5", "default=requests_per_s:2"],
        tenants=["alice=gold"], tpot_ms=50,
    ).slo  # fmt: skip
    nested = Config.from_dict(
        {
            "slo": {
                "tpot_ms": 50,
                "tenant_classes": {
                    "gold": {"ttft_ms": 300, "priority": -5}, "default": {"requests_per_s": 2},
                },
                "tenants": {"alice": "gold"},
            }
        }
    ).slo  # fmt: skip
    assert words == nested
    classes = nested.classes()
    gold, default = classes.of("alice"), classes.of("bob")
    assert (gold.name, gold.priority, gold.min_priority, gold.ttft_ms) == ("gold", -5, -5, 300.0)
    assert (default.name, default.requests_per_s, default.min_priority) == ("default", 2.0, None)
    assert Config().slo.classes().of("anyone").requests_per_s is None


def test_no_key_is_shown_by_an_error() -> None:
    for wrong in (["s3cret"], ["a b=s3cret"], ["a=s3cret", "a=s3cret"]):
        with pytest.raises(ConfigError) as caught:
            Config.from_dict(api_keys=wrong)
        assert "s3cret" not in str(caught.value)


def test_all_processes_of_a_cell_have_one_key_space() -> None:
    cache = CacheConfig()
    assert cache.key_space("cell secret", 1) == cache.key_space("cell secret", 2)
    assert cache.key_space(None, 1) != cache.key_space(None, 2)
    lasting = CacheConfig(key_secret="kept")
    assert lasting.key_space("one start", 1) == lasting.key_space("the next", 2)
    assert not lasting.key_space(None, 1).share_between_tenants
    assert CacheConfig(share_between_tenants=True).key_space(None, 1).share_between_tenants


def test_auto_is_decided_by_the_device() -> None:
    assert SchedulerConfig().token_budget("cpu") < SchedulerConfig().token_budget("cuda")
    assert SchedulerConfig(max_num_batched_tokens=7).token_budget("cuda") == 7
    assert CacheConfig().kv_bytes("cpu") == 1 << 30
    assert CacheConfig().kv_bytes("cuda") is None
    assert CacheConfig(kv_cache_gib=0.5).kv_bytes("cuda") == 1 << 29
    assert ClusterConfig().threads(2) == 1
    assert ClusterConfig().threads(1) == 1
    assert ClusterConfig(prefill=0, decode=0, mixed=1).threads(2) == 2
    assert ClusterConfig(threads_per_node=3).threads(2) == 3


def test_every_option_says_what_it_does() -> None:
    for section in SECTIONS:
        for option in options_of(section):
            assert option.help
            assert option.check(option.default) == option.default
            assert option.flag.startswith("--")


# Options that are read through a method of their section.
READ_THROUGH = {
    "prefill": "counts",
    "decode": "counts",
    "mixed": "counts",
    "ttft_ms": "classes",
    "tpot_ms": "classes",
    "tenant_classes": "classes",
    "tenants": "classes",
    "api_key": "tenants",
    "api_keys": "tenants",
    "key_secret": "key_space",
    "share_between_tenants": "key_space",
    "kv_cache_gib": "kv_bytes",
    "threads_per_node": "threads",
    "max_num_batched_tokens": "token_budget",
    "max_prefill_nodes": "bounds",
    "max_decode_nodes": "bounds",
    "max_mixed_nodes": "bounds",
}


def test_every_option_does_something() -> None:
    """An option that is parsed and then forgotten is worse than none."""
    root = Path(__file__).resolve().parent.parent
    text = "\n".join(
        path.read_text()
        for package in ("pd", "prefill_node", "decode_node", "kvstore")
        for path in root.glob(f"{package}/**/*.py")
        if path.name != "schema.py" and not path.name.startswith("config")
    )
    idle = [
        option.path
        for option in OPTIONS.values()
        if not re.search(rf"\b{option.section}\.{READ_THROUGH.get(option.key, option.key)}\b", text)
    ]
    assert not idle, f"nothing reads {idle}"
