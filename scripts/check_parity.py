#!/usr/bin/env python3
"""Greedy and sampled parity of the whole system against Hugging Face, token for token.

    python scripts/check_parity.py --out benchmarks/parity.json

Serves the real model in fp32 as 1 prefill + 1 decode node and as a mixed node, sends prompts
of 1 to 3,000 tokens (prose in several languages, code, chat) through HTTP, and compares every
token with `transformers.generate`. Where they differ, the gap between the two best logits at
that place is listed: below 1e-3 the order of additions decides, above it something is wrong.
Then one sampled request in many surroundings: alone, in a batch of 16, on a prefix-cache hit,
with forced preemption, in both kinds of cell.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx

from pd.cli.load import resolve_model
from pd.cluster import Cluster
from pd.config import Config
from pd.engine.chat import ChatTemplate
from pd.engine.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
EXCUSABLE_GAP = 1e-3
GROUP = 8  # prompts of one length, so that transformers can run them as a batch without padding
LENGTHS = [
    1, 2, 3, 5, 9, 15, 16, 17, 31, 32, 33, 50, 64, 77, 100, 128,
    190, 256, 300, 400, 511, 700, 1024, 1800, 3000,
]  # fmt: skip

PROSE = {
    "English": "The harbour woke slowly. Fishermen checked their nets while gulls argued over "
    "scraps, and the first ferry of the morning left a long white line across the bay. ",
    "German": "Der Zug fuhr pünktlich ab, aber niemand stieg ein. Am Fenster saß eine alte Frau "
    "und zählte die Masten, die draußen vorbeizogen, als wären es Jahre. ",
    "French": "Le marché s'installe avant l'aube : on décharge les cageots de pêches, "
    "on plaisante, et le café fume dans des tasses ébréchées. ",
    "Spanish": "En el taller olía a madera recién cortada. El carpintero medía dos veces y cortaba "
    "una, como le había enseñado su abuela. ",
    "Russian": "Снег шёл всю ночь, и утром двор казался чужим. Дети лепили крепость, а сосед "
    "искал под сугробом свою машину. ",
    "Chinese": "清晨的雾还没有散去,渔船已经出海了。"
    "岸边的老人一边修补渔网,一边给孩子们讲过去的故事。",
    "Japanese": "夜明け前の駅には誰もいなかった。"
    "始発電車の灯りが、濡れたホームを静かに照らしていた。",
    "Arabic": "كان السوق مزدحما في الصباح، والباعة ينادون على بضائعهم بأصوات عالية. ",
    "Hindi": "बारिश के बाद गाँव की सड़क पर मिट्टी की खुशबू फैल गई और बच्चे खेलने निकल आए। ",
    "Emoji": "Status 🚀: build ✅ tests ✅ deploy ❌ — on-call 👩‍🚒 paged, café ☕️ first. ",
}


def make_prompts(
    tokenizer: Tokenizer, template: ChatTemplate, lengths: list[int], seed: int
) -> list[list[int]]:
    """Token ids, GROUP prompts of every length, all different."""
    rng = random.Random(seed)
    code = "\n".join(p.read_text() for p in sorted((ROOT / "kvstore").glob("*.py")))
    prompts: list[list[int]] = []
    for length in lengths:
        for i in range(GROUP):
            kind = i % 4
            if kind == 0:
                text = rng.choice(list(PROSE.values()))
            elif kind == 1:
                text = code[rng.randrange(len(code) // 2) :]
            else:
                text = " ".join(rng.sample(list(PROSE.values()), 4))
            ids = tokenizer.encode(f"{rng.randrange(10**6)} {text}")
            while len(ids) < length + 8:
                more = rng.choice(list(PROSE.values())) + f"({rng.randrange(1000)}) "
                ids += tokenizer.encode(more)
            if kind == 3:
                question = [{"role": "user", "content": text[:120] + " What happens next?"}]
                chat = tokenizer.encode(template.render(question, add_generation_prompt=True))
                ids = (ids[: max(0, length - len(chat))] + chat)[-length:]
            prompts.append(ids[:length])
    return prompts


async def complete(
    url: str, bodies: list[dict[str, Any]], concurrency: int
) -> list[list[list[int]]]:
    """Generated token ids of every request, one list a choice."""
    gate = asyncio.Semaphore(concurrency)

    async with httpx.AsyncClient(base_url=url, timeout=None) as client:

        async def one(body: dict[str, Any]) -> list[list[int]]:
            async with gate:
                body = {"return_token_ids": True, **body}
                response = await client.post("/v1/completions", json=body)
            if response.status_code != 200:
                raise SystemExit(f"HTTP {response.status_code}: {response.text}")
            choices = sorted(response.json()["choices"], key=lambda c: c["index"])
            return [choice["token_ids"] for choice in choices]

        return await asyncio.gather(*(one(body) for body in bodies))


def greedy_bodies(prompts: list[list[int]], num_tokens: int) -> list[dict[str, Any]]:
    return [{"prompt": p, "max_tokens": num_tokens, "temperature": 0} for p in prompts]


def reference(model_dir: str, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """`transformers.generate`, greedy, GROUP prompts of equal length at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    outputs: list[list[int]] = []
    for start in range(0, len(prompts), GROUP):
        ids = torch.tensor(prompts[start : start + GROUP])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens,
                do_sample=False, pad_token_id=0,
            )  # fmt: skip
        eos = model.generation_config.eos_token_id
        ends = set(eos if isinstance(eos, list) else [eos])
        for row in out[:, ids.shape[1] :].tolist():
            end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            outputs.append(row[:end])
        print(f"    transformers: {start + len(ids)} of {len(prompts)}", flush=True)
    return outputs


def divergences(
    model_dir: str, prompts: list[list[int]], want: list[list[int]], got: list[list[int]], name: str
) -> list[dict[str, Any]]:
    """The first differing token of every differing output, with the top-2 logit gap there."""
    import torch
    from transformers import AutoModelForCausalLM

    different = [i for i in range(len(want)) if want[i] != got[i]]
    if not different:
        return []
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    found = []
    for i in different:
        pairs = zip(want[i] + [-1], got[i] + [-1], strict=False)
        at = next(k for k, (a, b) in enumerate(pairs) if a != b)
        with torch.inference_mode():
            logits = model(torch.tensor([prompts[i] + want[i][:at]])).logits[0, -1]
        top = torch.topk(logits, 2).values
        gap = float(top[0] - top[1])
        found.append({
            "cell": name, "prompt": i, "prompt_tokens": len(prompts[i]), "position": at,
            "top2_gap": gap, "excusable": gap < EXCUSABLE_GAP,
        })  # fmt: skip
    return found


def sampled_bodies(prompt: list[int]) -> dict[str, Any]:
    return {"prompt": prompt, "max_tokens": 64, "temperature": 1.0, "seed": 1234}


async def sampled(cluster: Cluster, prompt: list[int], others: list[list[int]]) -> dict[str, Any]:
    """The same sampled request in different company."""
    target = sampled_bodies(prompt)
    company = [{**sampled_bodies(p), "seed": i} for i, p in enumerate(others)]
    runs = {"alone": (await complete(cluster.url, [target], 1))[0][0]}
    runs["prefix_cache_hit"] = (await complete(cluster.url, [target], 1))[0][0]
    batch = await complete(cluster.url, [*company[:7], target, *company[7:15]], 16)
    runs["batch_of_16"] = batch[7][0]
    return runs


async def preempted(cluster: Cluster, prompt: list[int], others: list[list[int]]) -> dict[str, Any]:
    """The same request while the pool is too small for everybody."""
    target = sampled_bodies(prompt)
    company = [{**sampled_bodies(p), "seed": i, "max_tokens": 96} for i, p in enumerate(others)]
    outputs = await complete(cluster.url, [*company[:8], target, *company[8:]], 64)
    preemptions = sum(int(node["preemptions"]) for node in cluster.status().nodes)
    return {"tokens": outputs[8][0], "preemptions": preemptions}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64, help="tokens generated a prompt")
    parser.add_argument("--lengths", type=int, default=len(LENGTHS), help="use the first N lengths")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    del LENGTHS[args.lengths :]

    base = {"model": args.model, "port": 0, "dtype": "float32"}
    config = resolve_model(Config.from_dict(None, **base), print)
    model_dir = config.model.model
    tokenizer = Tokenizer(model_dir)
    template = ChatTemplate.from_dir(model_dir, tokenizer.special_tokens)
    assert template is not None
    prompts = make_prompts(tokenizer, template, LENGTHS, seed=7)
    probe = tokenizer.encode("The lighthouse keeper wrote in his diary every evening. " * 8)
    others = make_prompts(tokenizer, template, [40, 80, 120, 200, 300], seed=8)
    started = time.monotonic()
    report: dict[str, Any] = {
        "command": " ".join(sys.argv), "prompts": len(prompts), "tokens": args.tokens,
        "lengths": LENGTHS,
    }  # fmt: skip

    cells = {"pd": {"prefill": 1, "decode": 1}, "mixed": {"mixed": 1}}
    outputs: dict[str, list[list[int]]] = {}
    draws: dict[str, list[int]] = {}
    for name, counts in cells.items():
        print(f"==> {name}: {counts}", flush=True)
        with Cluster.start(resolve(base, counts), print) as cluster:
            bodies = greedy_bodies(prompts, args.tokens)
            answers = asyncio.run(complete(cluster.url, bodies, args.concurrency))
            outputs[name] = [choices[0] for choices in answers]
            runs = asyncio.run(sampled(cluster, probe, others))
            draws |= {f"{name} {how}": tokens for how, tokens in runs.items()}
        small = {**counts, "kv_cache_gib": 0.04, "max_model_len": 512, "prefix_cache": False}
        with Cluster.start(resolve(base, small), print) as cluster:
            result = asyncio.run(preempted(cluster, probe, others))
            draws[f"{name} preempted"] = result["tokens"]
            report[f"{name}_preemptions"] = result["preemptions"]
            print(f"    {result['preemptions']} preemptions", flush=True)

    print("==> transformers", flush=True)
    want = reference(model_dir, prompts, args.tokens)
    report["divergences"] = []
    for name, got in outputs.items():
        report["divergences"] += divergences(model_dir, prompts, want, got, name)
        same = sum(a == b for a, b in zip(want, got, strict=True))
        report[f"{name}_identical"] = same
        print(f"{name}: {same} of {len(prompts)} identical to transformers")
    first = draws["pd alone"]
    report["sampled"] = {how: tokens == first for how, tokens in draws.items()}
    report["seconds"] = round(time.monotonic() - started, 1)
    print(json.dumps({k: report[k] for k in ("divergences", "sampled", "seconds")}, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")
    bad = [d for d in report["divergences"] if not d["excusable"]]
    forced = all(report[f"{name}_preemptions"] > 0 for name in cells)
    ok = not bad and all(report["sampled"].values()) and forced
    print("parity holds" if ok else "PARITY BROKEN")
    return 0 if ok else 1


def resolve(base: dict[str, Any], more: dict[str, Any]) -> Config:
    return resolve_model(Config.from_dict(None, **{**base, **more}), lambda step: None)


if __name__ == "__main__":
    raise SystemExit(main())
