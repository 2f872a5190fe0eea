// Asks the gateway every two seconds and draws what it says. The key, if one is wanted, is kept for
// this tab only and sent as a header, so that it is in no address and no log.

import { decisions, mood, nodes, tiers, transfers } from "./cell.js";
import { lines } from "./charts.js";
import { clock, count, el, percent, seconds } from "./format.js";
import { list, waterfall } from "./requests.js";

const EVERY_MS = 2000, TIMEOUT_MS = 8000, KEPT = 900, GLANCE_S = 60;
const $ = (id) => document.getElementById(id);
const history = { columns: {}, last: 0 };
let chosen = null, latest = null, timer = null;

class KeyError extends Error {}

async function ask(path) {
  const key = sessionStorage.getItem("pd-key");
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const response = await fetch(path, { headers, cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  const body = await response.json();
  if (response.status === 401 || response.status === 403) throw new KeyError(body.error.message);
  if (!response.ok) throw new Error(body.error?.message ?? `${path}: ${response.status}`);
  return body;
}

// The samples that are new go to the end of those that are here.
function remember(told) {
  const times = told.columns.t ?? [];
  if (!times.length) return;
  const had = history.columns.t?.length ?? 0;
  for (const [name, values] of Object.entries(told.columns)) {
    const column = history.columns[name] ?? Array(had).fill(null);
    history.columns[name] = [...column, ...values].slice(-KEPT);
  }
  history.last = times.at(-1);
}

async function refresh() {
  try {
    const [status, told, recent, decided] = await Promise.all([
      ask("/v1/status"), ask(`/v1/history?since=${history.last}`),
      ask("/v1/requests/recent?limit=60"), ask("/v1/decisions?limit=60"),
    ]);
    remember(told);
    latest = { status, told, recent, decided };
    $("key-form").hidden = true;
    $("main").hidden = false;
    $("forget").hidden = !sessionStorage.getItem("pd-key");
    show();
  } catch (error) {
    if (error instanceof KeyError) return askForKey(error.message);
    state("bad", `no answer: ${error.message}`);
  }
  timer = setTimeout(refresh, EVERY_MS);
}

function askForKey(message) {
  const tried = sessionStorage.getItem("pd-key") !== null;
  sessionStorage.removeItem("pd-key");
  $("main").hidden = $("forget").hidden = true;
  $("key-form").hidden = false;
  $("key-error").textContent = tried ? message : "";
  $("key").focus();
  state("", "locked");
}

function state(kind, text) {
  $("state").className = `pill ${kind}`;
  $("state").textContent = $("state").title = text;
}

function show() {
  const { status, told, recent, decided } = latest;
  $("model").textContent = status.model;
  document.title = `pd · ${status.model}`;
  $("updated").textContent = `${told.gateway} · ${clock(told.now)}`;
  const gone = told.gone;
  const ill = [...gone.map((node) => `${node.id} is gone`),
    ...status.nodes.filter((node) => mood(node) !== "good").map((node) => `${node.id} is ${mood(node) === "bad" ? "silent" : node.state}`)];
  if (!status.ready) state("bad", `not ready: ${status.reason}`);
  else if (ill.length) state("warn", `degraded: ${ill.join(", ")}`);
  else state("good", "ready");
  tiles(status, told);
  charts(told);
  nodes($("nodes"), status, gone, told.now);
  tiers($("tiers"), $("sources"), status.nodes);
  transfers($("transfers"), status.nodes);
  decisions($("decisions"), decided.decisions);
  requests(recent);
}

const column = (name) => history.columns[name] ?? [];

// Mean over the last minute; null where nothing was measured.
function lately(name) {
  const since = history.last - GLANCE_S;
  const values = column(name).filter((value, i) => value !== null && history.columns.t[i] > since);
  return values.length ? values.reduce((a, b) => a + b, 0) / values.length : null;
}

function tile(name, value, note, kind = "") {
  return el("div", { class: "tile", "data-tile": name }, el("div", { class: "name" }, name),
    el("div", { class: `value ${kind}` }, value), el("div", { class: "note" }, note));
}

function tiles(status, told) {
  const good = lately("attained_per_s") ?? 0, missed = lately("missed_per_s") ?? 0;
  const share = good + missed > 0 ? good / (good + missed) : null;
  const aim = (value) => (value === null ? "no target" : `target ${seconds(value)}`);
  const over = (value, target) => (value !== null && target !== null && value > target ? "warn" : "");
  const ttft = column("ttft_p90").at(-1) ?? null, tpot = column("tpot_p90").at(-1) ?? null;
  const refused = lately("rejected_per_s") ?? 0, resumed = lately("interrupted_per_s") ?? 0;
  $("tiles").replaceChildren(
    tile("attainment", share === null ? "-" : percent(share), "met targets, 1 min", share === null ? "" : share >= 0.95 ? "good" : share >= 0.8 ? "warn" : "bad"),
    tile("goodput", share === null ? "-" : `${count(good)}/s`, "on time, 1 min"),
    tile("TTFT p90", seconds(ttft), aim(told.targets.ttft_s), over(ttft, told.targets.ttft_s)),
    tile("TPOT p90", seconds(tpot), aim(told.targets.tpot_s), over(tpot, told.targets.tpot_s)),
    tile("tokens", `${count(lately("tokens_per_s") ?? 0)}/s`, "to clients, 1 min"),
    tile("in flight", count(status.num_requests), `${status.gateway.running} stream, ${status.gateway.waiting} wait`),
    tile("refused", `${count(refused)}/s`, "429 and 503, 1 min", refused > 0 ? "warn" : ""),
    tile("resumed", `${count(resumed)}/s`, "elsewhere, 1 min", resumed > 0 ? "warn" : ""));
}

function charts(told) {
  const times = column("t");
  const end = told.now, start = end - Number($("range").value);
  const chart = (id, title, format, series, target = null) => lines($(id), {
    title, times, format, start, end, target,
    series: series.map(([name, key, color]) => ({ name, color, values: column(key) })),
  });
  const rate = (value) => count(value);
  chart("chart-ttft", "Time to first token", seconds, [["p50", "ttft_p50", "--p50"], ["p90", "ttft_p90", "--p90"], ["p99", "ttft_p99", "--p99"]], told.targets.ttft_s);
  chart("chart-tpot", "Time per output token", seconds, [["p50", "tpot_p50", "--p50"], ["p90", "tpot_p90", "--p90"], ["p99", "tpot_p99", "--p99"]], told.targets.tpot_s);
  chart("chart-requests", "Requests a second", rate, [["finished", "finished_per_s", "--p50"], ["on time", "attained_per_s", "--decode"], ["refused", "rejected_per_s", "--p99"]]);
  chart("chart-tokens", "Tokens a second", rate, [["to clients", "tokens_per_s", "--p50"]]);
  chart("chart-queue", "In flight", rate, [["streaming", "running", "--p50"], ["waiting", "waiting", "--p90"]]);
  chart("chart-kv", "KV sent, MB a second", rate, [["by nodes", "transferred_mb_per_s", "--p50"]]);
}

function requests(recent) {
  const rows = [...recent.running, ...recent.ended];
  const choose = (id) => { chosen = id; requests(latest.recent); };
  list($("requests"), rows, chosen, choose);
  const found = rows.find((row) => row.request_id === chosen);
  if (found) waterfall($("detail"), found);
}

function theme(name) {
  document.documentElement.dataset.theme = name;
  localStorage.setItem("pd-theme", name);
}

$("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
$("range").addEventListener("change", () => latest && charts(latest.told));
$("forget").addEventListener("click", () => {
  clearTimeout(timer);
  sessionStorage.removeItem("pd-key");
  location.reload();
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("pd-key", $("key").value.trim());
  $("key").value = "";
  refresh();
});
addEventListener("resize", () => latest && charts(latest.told));

theme(localStorage.getItem("pd-theme") ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
refresh();
