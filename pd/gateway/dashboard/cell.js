// The parts of the page about the cell: its nodes, its KV, its transfers, its decisions.

import { bar, bytes, clock, count, el, percent, seconds } from "./format.js";

const TITLES = { prefill: "Prefill", decode: "Decode", mixed: "Mixed", pool: "KV pools" };
const SILENT_S = 3;

export const mood = (node) =>
  node.silent_s > SILENT_S ? "bad" : node.state && node.state !== "ready" ? "warn" : "good";

function meter(name, share, text, title) {
  return el("div", { class: "meter", title }, el("span", { class: "pale" }, name), bar([{ share }]), el("span", {}, text));
}

function card(node) {
  const used = 1 - node.free_blocks / (node.num_blocks || 1);
  const made = el("div", { class: "card node", "data-node": node.id },
    el("div", { class: "node-head" },
      el("span", { class: `dot ${mood(node)}` }), el("b", {}, node.id),
      el("span", { class: "pale" }, node.silent_s > SILENT_S ? `silent for ${seconds(node.silent_s)}` : node.state)),
    el("div", { class: "facts", title: `process ${node.pid} on ${node.host}` },
      `${node.host} · ${node.device} · epoch ${node.epoch}` + (node.step_s ? ` · step ${seconds(node.step_s)}` : "")));
  if (node.role === "pool") {
    made.append(meter("memory", node.cached_blocks / (node.num_blocks || 1), percent(node.cached_blocks / (node.num_blocks || 1))));
    if (node.num_disk_blocks) made.append(meter("disk", node.disk_blocks / node.num_disk_blocks, percent(node.disk_blocks / node.num_disk_blocks)));
    return made;
  }
  if (node.role !== "decode") {
    made.append(meter("queue", node.waiting_tokens / 8192, `${node.num_waiting} · ${count(node.waiting_tokens)} tok`, "prompts, and their tokens still to compute"));
  }
  if (node.role !== "prefill") {
    made.append(meter("batch", node.num_running / (node.max_num_seqs || 1), `${node.num_running}/${node.max_num_seqs}`, "sequences decoding"));
  }
  made.append(meter("KV", used, percent(used), "blocks in use"));
  return made;
}

export function nodes(place, status, gone, now) {
  const pools = [];
  for (const role of Object.keys(TITLES)) {
    const own = status.nodes.filter((node) => node.role === role);
    const missing = gone.filter((node) => node.role === role);
    if (!own.length && !missing.length) continue;
    const list = el("div", { class: "pool-nodes" }, ...own.map(card));
    for (const node of missing) {
      list.append(el("div", { class: "card node gone", "data-node": node.id },
        el("div", { class: "node-head" }, el("span", { class: "dot bad" }), el("b", {}, node.id),
          el("span", { class: "bad" }, `gone for ${Math.max(0, now - node.since).toFixed(0)} s`))));
    }
    pools.push(el("div", { class: "pool" }, el("h3", {}, `${TITLES[role]} · ${own.length}`), list));
  }
  place.replaceChildren(...(pools.length ? pools : [el("p", { class: "pale" }, "No node has joined yet.")]));
}

const sum = (list, value) => list.reduce((total, each) => total + (value(each) || 0), 0);

export function tiers(place, sourcesPlace, all) {
  const pools = all.filter((node) => node.role === "pool");
  const others = all.filter((node) => node.role !== "pool");
  const rows = [
    ["nodes", sum(others, (n) => n.cached_blocks * n.block_size), sum(others, (n) => n.num_blocks * n.block_size)],
    ["pool memory", sum(pools, (n) => n.cached_blocks * n.block_size), sum(pools, (n) => n.num_blocks * n.block_size)],
    ["pool disk", sum(pools, (n) => n.disk_blocks * n.block_size), sum(pools, (n) => n.num_disk_blocks * n.block_size)],
  ].filter(([name, , room]) => room || name === "nodes");
  place.replaceChildren(...rows.map(([name, held, room]) => el("div", { class: "tier" },
    el("span", { class: "pale" }, name), bar([{ share: held / (room || 1) }], "track thick"),
    el("span", { class: "right" }, `${count(held)} of ${count(room)} tokens · ${percent(held / (room || 1))}`))));
  sources(sourcesPlace, pools, others);
}

// As `pd kv` counts them: what was fetched, by whence, and what was found in place.
function sources(place, pools, others) {
  const disk = sum(pools, (n) => n.served_disk_blocks * n.block_size);
  const served = sum(pools, (n) => n.served_blocks * n.block_size);
  const fetched = sum(others, (n) => n.fetched_tokens);
  const pool = Math.min(fetched, served);
  const parts = [
    ["computed", sum(others, (n) => n.prefill_tokens), "--admit"],
    ["own cache", Math.max(0, sum(others, (n) => n.cache_hit_tokens) - fetched), "--decode"],
    ["other nodes", fetched - pool, "--first_step"],
    ["pool memory", Math.max(0, pool - disk), "--compute"],
    ["pool disk", Math.min(pool, disk), "--fetch"],
  ];
  const total = sum(parts, ([, tokens]) => tokens);
  if (!total) return place.replaceChildren(el("p", { class: "pale" }, "No prompt yet."));
  const legend = el("div", { class: "legend" });
  for (const [name, tokens, color] of parts) {
    const swatch = el("i", { class: "swatch" });
    swatch.style.background = `var(${color})`;
    legend.append(el("span", {}, swatch, `${name} ${percent(tokens / total)}`));
  }
  place.replaceChildren(bar(parts.map(([name, tokens, color]) => ({ share: tokens / total, color: `var(${color})`, title: name })), "track thick"), legend);
}

export function transfers(place, all) {
  const rows = all.filter((node) => node.role !== "pool");
  const head = ["from", "pushes", "KV sent", "mean", "rate", "fetched", "given"];
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name, i) => el("th", { class: i ? "right" : null }, name)))));
  const body = el("tbody");
  for (const node of rows) {
    const cells = [
      count(node.num_transfers), bytes(node.transferred_bytes),
      node.num_transfers ? seconds(node.transfer_s / node.num_transfers) : "-",
      node.transfer_s ? `${bytes(node.transferred_bytes / node.transfer_s)}/s` : "-",
      `${count(node.fetched_tokens)} tok`, `${count(node.served_blocks * node.block_size)} tok`,
    ];
    body.append(el("tr", {}, el("td", {}, node.id), ...cells.map((text) => el("td", { class: "right" }, text))));
  }
  table.append(body);
  place.replaceChildren(table, el("p", { class: "pale" },
    "Since each process started. Pushes of one node run side by side: their rates add up to less. " +
    "Fetched is KV brought here from caches, given is KV that others fetched."));
}

const KINDS = { change: "", node: "", role: "", resume: "warn", reject: "warn", lost: "bad", kill: "bad" };

export function decisions(place, list) {
  if (!list.length) {
    return place.replaceChildren(el("p", { class: "pale" }, "Nothing had to be decided about the cell yet."));
  }
  place.replaceChildren(...list.map((each) => {
    const numbers = Object.entries(each.numbers).map(([key, value]) => `${key} ${count(value)}`).join(", ");
    const kind = each.what.endsWith(" left") ? "bad" : KINDS[each.kind] ?? "";
    return el("li", {}, el("span", { class: "pale" }, clock(each.last_at)), el("span", { class: `badge ${kind}` }, each.kind),
      el("span", {}, el("b", {}, each.what), each.times > 1 ? ` ${each.times}×` : "",
        el("span", { class: "pale" }, ` ${each.reason}${numbers ? ` (${numbers})` : ""}`)));
  }));
}
