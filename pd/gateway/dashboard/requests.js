// The list of requests, and one request's life as a waterfall.

import { bar, bytes, clock, count, el, seconds } from "./format.js";

const NAMES = { first_step: "first step" };

function verdict(request) {
  if (request.outcome === "running") return ["running", ""];
  if (request.outcome !== "finished") return [request.outcome, request.outcome === "cancelled" ? "" : "bad"];
  if (request.attained === null) return ["finished", ""];
  return request.attained ? ["on time", "good"] : [`late: ${request.missed.join(", ")}`, "warn"];
}

// Why it runs where it does.
function placement(why) {
  if (!why) return "-";
  const parts = [`${count(why.cached_tokens)} tokens of the prompt were there`];
  if (why.fetch_from) parts.push(`${why.fetch_from} has more`);
  if (why.predicted_ttft_s !== null) parts.push(`first token predicted in ${seconds(why.predicted_ttft_s)}`);
  return parts.join(", ");
}

// rows: newest first; chosen: an id; choose(id)
export function list(place, rows, chosen, choose) {
  if (!rows.length) {
    return place.replaceChildren(el("p", { class: "pale" }, "No request has come yet."));
  }
  const longest = Math.max(...rows.map((row) => row.e2e_s), 1e-9);
  const head = ["at", "request", "", "prompt", "output", "TTFT", "TPOT", "total", ""];
  const body = el("tbody");
  for (const row of rows) {
    const [text, kind] = verdict(row);
    const open = () => choose(row.request_id);
    const made = el("tr", {
      class: `row${row.request_id === chosen ? " chosen" : ""}`, tabindex: "0", "data-request": row.request_id,
      onclick: open, onkeydown: (event) => { if (event.key === "Enter") open(); },
    },
      el("td", { class: "pale" }, clock(row.arrived_at)), el("td", { class: "id", title: row.request_id }, row.request_id),
      el("td", {}, el("span", { class: `badge ${kind}` }, text)),
      ...[count(row.prompt_tokens), count(row.output_tokens), seconds(row.ttft_s), seconds(row.tpot_s), seconds(row.e2e_s)]
        .map((cell) => el("td", { class: "right" }, cell)),
      el("td", { class: "bar" }, bar(row.spans.map((span) => ({
        share: (span.end_s - span.start_s) / longest, kind: span.name, title: `${span.name} ${seconds(span.end_s - span.start_s)}`,
      })))));
    body.append(made);
  }
  const scrolled = place.scrollTop, focused = document.activeElement?.dataset?.request;
  place.replaceChildren(el("table", {}, el("thead", {}, el("tr", {}, ...head.map((name, i) => el("th", { class: i > 2 ? "right" : null }, name)))), body));
  place.scrollTop = scrolled;
  if (focused) [...body.children].find((row) => row.dataset.request === focused)?.focus();
}

export function waterfall(place, request) {
  const whole = Math.max(request.e2e_s, 1e-9);
  const parts = request.spans.map((span) => {
    const piece = el("i", { class: span.name });
    piece.style.left = `${(span.start_s / whole) * 100}%`;
    piece.style.width = `${((span.end_s - span.start_s) / whole) * 100}%`;
    const lane = el("div", { class: "lane" }, piece);
    for (const each of request.interruptions) {
      if (each.at_s < span.start_s || each.at_s > span.end_s) continue;
      const mark = el("em", { title: each.reason });
      mark.style.left = `${(each.at_s / whole) * 100}%`;
      lane.append(mark);
    }
    return el("div", { class: "span", title: `${span.where} from ${seconds(span.start_s)} to ${seconds(span.end_s)}` },
      el("span", {}, NAMES[span.name] ?? span.name), lane, el("span", { class: "right" }, seconds(span.end_s - span.start_s)));
  });
  const target = (value) => (value === null ? "" : `, target ${seconds(value)}`);
  const facts = [
    ["request", request.request_id],
    ["outcome", verdict(request)[0] + (request.error ? `: ${request.error}` : "")],
    ["first token", seconds(request.ttft_s) + target(request.ttft_target_s)],
    ["then, each", seconds(request.tpot_s) + target(request.tpot_target_s)],
    ["tokens", `${count(request.prompt_tokens)} prompt, ${count(request.output_tokens)} output`],
    ["nodes", request.prefill_node === request.decode_node ? request.prefill_node || "-" : `${request.prefill_node} to ${request.decode_node}`],
    ["placed", placement(request.placement)],
    ["KV moved", bytes(request.kv_moved_bytes)],
    ["tenant", [request.tenant, request.tenant_class].filter(Boolean).join(", ") || "-"],
    ["trace", request.trace_id || "-"],
    ...request.interruptions.map((each) => [`at ${seconds(each.at_s)}`, `interrupted: ${each.reason}`]),
  ];
  place.replaceChildren(...parts, el("dl", {}, ...facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)])));
}
