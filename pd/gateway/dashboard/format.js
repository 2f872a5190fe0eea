// Numbers as people read them, and elements from text: nothing a client sent is ever taken for HTML.

export function seconds(value) {
  if (value === null || value === undefined) return "-";
  if (value >= 100) return `${value.toFixed(0)} s`;
  if (value >= 1) return `${value.toFixed(2)} s`;
  if (value >= 0.1) return `${(value * 1000).toFixed(0)} ms`;
  if (value >= 0.001) return `${(value * 1000).toFixed(1)} ms`;
  return value === 0 ? "0" : `${(value * 1e6).toFixed(0)} µs`;
}

export function count(value) {
  if (value === null || value === undefined) return "-";
  if (Math.abs(value) >= 1e9) return `${(value / 1e9).toFixed(1)} G`;
  if (Math.abs(value) >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (Math.abs(value) >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  if (Number.isInteger(value) || Math.abs(value) >= 100) return Math.round(value).toLocaleString("en");
  return value.toFixed(Math.abs(value) >= 10 ? 1 : 2);
}

export function bytes(value) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let unit = 0;
  for (; value >= 1000 && unit < units.length - 1; unit++) value /= 1000;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export const percent = (share) =>
  share === null ? "-" : `${(share * 100).toFixed(share > 0 && share < 0.9995 ? 1 : 0)} %`;

export const clock = (unix) => new Date(unix * 1000).toLocaleTimeString("en-GB");

// el("b", {class: "good"}, "text", child...)
export function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

// A bar of parts: [{share, kind or color, title}]
export function bar(parts, kind = "track") {
  const made = el("div", { class: kind });
  for (const part of parts) {
    const piece = el("span", { class: part.kind ?? null, title: part.title ?? null });
    piece.style.width = `${Math.max(0, Math.min(1, part.share || 0)) * 100}%`;
    if (part.color) piece.style.background = part.color;
    made.append(piece);
  }
  return made;
}
