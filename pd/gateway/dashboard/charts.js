// Lines over time, as SVG. A chart is drawn anew with every sample: there are a few hundred points.

import { clock, el } from "./format.js";

const HEIGHT = 138, LEFT = 54, RIGHT = 8, TOP = 8, BOTTOM = 20;
const SVG = "http://www.w3.org/2000/svg";

function draw(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// The next of 1, 2, 2.5, 5, 10 times a power of ten.
function roundUp(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((step) => step >= value * 0.999);
}

// series: [{name, color, values}], times: Unix seconds, format: of values; target: a level
export function lines(figure, { title, times, series, format, start, end, target = null }) {
  const width = Math.max(220, figure.clientWidth - 32);
  const shown = times.map((time, i) => i).filter((i) => times[i] >= start);
  let top = 0;
  for (const { values } of series) for (const i of shown) top = Math.max(top, values[i] ?? 0);
  // A target far above what is measured would flatten everything: then it is left out.
  if (target !== null && (top === 0 || target <= top * 3)) top = Math.max(top, target);
  top = roundUp(top * 1.05);
  const x = (time) => LEFT + ((time - start) / (end - start)) * (width - LEFT - RIGHT);
  const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": title });
  for (const level of [0, top / 2, top]) {
    svg.append(draw("line", { class: "rule", x1: LEFT, x2: width - RIGHT, y1: y(level), y2: y(level) }));
    svg.append(draw("text", { x: LEFT - 6, y: y(level) + 4, "text-anchor": "end" }, format(level)));
  }
  for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
    const time = start + share * (end - start);
    svg.append(draw("text", { x: x(time), y: HEIGHT - 4, "text-anchor": anchor }, clock(time)));
  }
  if (target !== null && target <= top) {
    svg.append(draw("line", { class: "target", x1: LEFT, x2: width - RIGHT, y1: y(target), y2: y(target) }));
  }
  for (const { values, color } of series) {
    let path = "", last = null;
    for (const i of shown) {
      const value = values[i];
      if (value === null || value === undefined) { last = null; continue; }
      // Samples that are missing are a gap, not a line across it.
      const joined = last !== null && times[i] - times[last] < 10;
      path += `${joined ? "L" : "M"}${x(times[i]).toFixed(1)} ${y(Math.min(value, top)).toFixed(1)}`;
      last = i;
    }
    const line = draw("path", { d: path });
    line.style.stroke = `var(${color})`;
    svg.append(line);
  }
  const head = el("div", { class: "chart-head" }, el("b", {}, title));
  const now = shown.at(-1);
  for (const { name, color, values } of series) {
    const swatch = el("i");
    swatch.style.background = `var(${color})`;
    head.append(el("span", { class: "key-of" }, swatch, `${name} ${format(now === undefined ? null : values[now] ?? null)}`));
  }
  const inside = figure.matches(":hover") ? figure.pointer : null;
  figure.replaceChildren(head, svg);
  hover(figure, svg, { times, shown, series, format, x, inside, width });
}

function hover(figure, svg, { times, shown, series, format, x, inside, width }) {
  const cursor = draw("line", { class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  const tip = el("div", { class: "tip", hidden: "" });
  svg.append(cursor);
  figure.append(tip);
  const move = (clientX) => {
    figure.pointer = clientX;
    const box = svg.getBoundingClientRect();
    const at = ((clientX - box.left) / box.width) * width;
    if (!shown.length) return;
    const nearest = shown.reduce((a, b) => (Math.abs(x(times[b]) - at) < Math.abs(x(times[a]) - at) ? b : a));
    const place = x(times[nearest]);
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
    tip.replaceChildren(el("div", { class: "pale" }, clock(times[nearest])));
    for (const { name, values } of series) tip.append(el("div", {}, `${name} ${format(values[nearest] ?? null)}`));
    tip.hidden = false;
    const left = (place / width) * box.width + 16;
    tip.style.left = `${place > width / 2 ? left - tip.offsetWidth - 14 : left + 14}px`;
    tip.style.top = "44px";
  };
  svg.addEventListener("pointermove", (event) => move(event.clientX));
  svg.addEventListener("pointerleave", () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); });
  if (inside) move(inside);
}
