#!/usr/bin/env python3
"""The Kubernetes manifests against the schemas of custom resources, unknown fields included.

    git clone --depth 1 https://github.com/ray-project/kuberay
    python scripts/check_kubernetes.py --crds kuberay/helm-chart/kuberay-operator/crds

Kubernetes drops a field that it does not know without a word; here it is an error. What no given
schema describes is named, and not checked. Exit status 1 if a manifest is wrong, 2 if nothing
could be checked.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = ROOT / "scripts" / "cluster" / "kubernetes"
Kind = tuple[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--crds", type=Path, required=True, help="a directory of CRDs as YAML")
    args = parser.parse_args()
    schemas = schemas_in(args.crds)
    checked, wrong = 0, 0
    for path in sorted(MANIFESTS.glob("*.yaml")):
        for manifest in documents(path):
            kind = (manifest["apiVersion"], manifest["kind"])
            name = f"{path.name}: {kind[1]} {manifest['metadata']['name']}"
            if kind not in schemas:
                print(f"{name}: no schema given for {kind[0]}")
                continue
            checked += 1
            problems = list(problems_of(manifest, schemas[kind]))
            wrong += bool(problems)
            for problem in problems:
                print(f"FAILED: {name}: {problem}", file=sys.stderr)
            if not problems:
                print(f"{name}: right")
    if not checked:
        print(f"check_kubernetes: no schema in {args.crds} is of a manifest", file=sys.stderr)
        return 2
    return 1 if wrong else 0


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


def schemas_in(directory: Path) -> dict[Kind, dict[str, Any]]:
    """The schema of every served version of every CRD, by apiVersion and kind."""
    found: dict[Kind, dict[str, Any]] = {}
    for path in sorted(directory.glob("*.yaml")):
        for crd in documents(path):
            if crd.get("kind") != "CustomResourceDefinition":
                continue
            spec = crd["spec"]
            for version in spec["versions"]:
                key = (f"{spec['group']}/{version['name']}", spec["names"]["kind"])
                found[key] = strict(version["schema"]["openAPIV3Schema"])
    return found


def problems_of(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    errors = jsonschema.Draft202012Validator(schema).iter_errors(manifest)
    return [f"{'.'.join(map(str, error.absolute_path))}: {error.message[:300]}" for error in errors]


def strict(schema: Any) -> Any:
    """The same schema, but what it does not list may not be there; and with Kubernetes' numbers
    that may be strings."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if key != "type"}
    if schema.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    elif isinstance(schema.get("type"), str):
        made["type"] = schema["type"]
    elif "type" in schema:  # a field of that name
        made["type"] = strict(schema["type"])
    open_ = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not open_:
        known = schema["properties"]
        if known.get("metadata") == {"type": "object"}:
            return {**made, "additionalProperties": False}
        made["additionalProperties"] = False
    return made


if __name__ == "__main__":
    sys.exit(main())
