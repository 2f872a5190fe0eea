"""Every route there is: behind the key, and described as it is."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from front import Front, serving
from starlette.routing import Route

from pd.gateway.limits import Limits
from pd.gateway.openapi import OPEN_PATHS, PAGE, PAGE_FILES, description

KEY = "s3cret"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")


@pytest.fixture(scope="module")
def keyed(text_model_dir: Path) -> Iterator[Front]:
    with serving(text_model_dir, api_keys={KEY: "", "theirs": "tenant"}) as front:
        yield front


def routes(front: Front) -> list[Route]:
    """All of them; whoever mounts other kinds teaches these tests to walk those."""
    found = front.server.app.others.routes
    assert all(isinstance(each, Route) for each in found)
    paths = {each.path for each in found}
    assert paths >= set(front.server.app.endpoints), "what is served is known to the router"
    return found  # type: ignore[return-value]


def test_every_route_refuses_without_the_key(keyed: Front) -> None:
    asked = 0
    for route in routes(keyed):
        path = PARAMETER.sub("tiny", route.path)
        for method in METHODS:
            allowed = method in (route.methods or ())
            for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}):
                status = keyed.http.request(method, path, headers=header).status_code
                if path in OPEN_PATHS:
                    assert status == (200 if allowed else 405), f"{method} {path}"
                else:
                    assert status == 401, f"{method} {path}"
                asked += 1
            if method == "HEAD":
                continue
            right = keyed.http.request(method, path, headers={"authorization": f"Bearer {KEY}"})
            assert right.status_code != 401
            assert (right.status_code == 405) == (not allowed), f"{method} {path}"
    assert asked >= 10 * len(METHODS)


@pytest.mark.parametrize(
    "path",
    ["/", "/v1", "/v1/nothing", "/nothing", "/docs", "//health", "/health/", "/health/../v1/status",
     "/metrics/x", "/%2e%2e/v1/status", "/HEALTH", "/v1/models/", "*", "/health%00", "/ready;/v1",
     "/dashboard/", "/dashboard/x.js", "/dashboard/app.js/..", "/dashboard/index.html"],
)  # fmt: skip
def test_what_is_no_route_refuses_as_well(keyed: Front, path: str) -> None:
    """Default is closed: a path next to an open one is not open."""
    connection = http.client.HTTPConnection("127.0.0.1", keyed.server.port, timeout=10)
    connection.request("GET", path)  # as it stands: httpx would tidy it
    assert connection.getresponse().status == 401
    connection.close()


def test_only_these_are_open() -> None:
    page = {PAGE, *(f"{PAGE}/{name}" for name in PAGE_FILES)}
    assert {"/health", "/ready", "/metrics"} | page == OPEN_PATHS


# ---------------------------------------------------------------------- the description
def test_routes_and_description_agree(keyed: Front) -> None:
    document = keyed.http.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()
    described = {
        (method.upper(), path) for path, item in document["paths"].items() for method in item
    }
    there = {
        (method, PARAMETER.sub(r"{\1}", route.path))
        for route in routes(keyed)
        for method in route.methods or ()
        if method != "HEAD"
    }
    assert described == there
    for path, item in document["paths"].items():
        for operation in item.values():
            assert operation["security"] == ([] if path in OPEN_PATHS else [{"key": []}])
            names = {
                each["name"] for each in operation.get("parameters", ()) if each["in"] == "path"
            }
            assert names == {found[1] for found in PARAMETER.finditer(path)}


def test_without_keys_none_is_described() -> None:
    for item in description(Limits(), keyed=False)["paths"].values():
        for operation in item.values():
            assert "security" not in operation and "401" not in operation["responses"]


def test_every_schema_is_one() -> None:
    """Each is valid JSON Schema, all references lead somewhere, and defaults are accepted."""
    document = description(Limits(max_output_tokens=77), keyed=True)
    components = document["components"]["schemas"]
    for schema in components.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        assert reference.rpartition("/")[2] in components
    body = components["CompletionBody"]
    assert body["properties"]["max_tokens"]["anyOf"][0]["maximum"] == 77
    for good, bad in (
        ({"prompt": "hi"}, {}),
        ({"prompt": [1, 2], "temperature": 0}, {"prompt": "hi", "temperature": 3}),
        ({"prompt": "hi", "top_p": 0.5}, {"prompt": "hi", "top_p": 0}),
        ({"prompt": ["a", "b"], "n": 16}, {"prompt": "hi", "n": 17}),
        ({"prompt": "hi", "store": False}, {"prompt": "hi", "store": True}),
        ({"prompt": "hi", "slo": {"ttft_ms": 5}}, {"prompt": "hi", "slo": {"ttft_ms": 0}}),
        ({"prompt": "hi", "stop": ["a"]}, {"prompt": "hi", "stop": [""]}),
        ({"prompt": "hi", "logit_bias": {"1": 2}}, {"prompt": "hi", "logit_bias": {"1": 200}}),
        ({"prompt": "hi", "user": "me"}, {"prompt": "hi", "promt": "me"}),
    ):
        schema = {**body, "components": document["components"]}
        jsonschema.validate(good, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(bad, schema)
