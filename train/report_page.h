#pragma once

namespace hedgehog {

/// Style of report.html: light and dark by the reader's setting, readable on a phone.
inline constexpr const char* kReportStyle = R"css(
:root { color-scheme: light dark; --page: #ffffff; --ink: #1d2430; --soft: #5b6675; --line: #d9dee6; --panel: #f6f8fa;
  --one: #1f6feb; --two: #c2410c; --three: #15803d; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --ink: #e4e9f0; --soft: #9aa6b5; --line: #303844;
  --panel: #1a2028; --one: #6cb0ff; --two: #ff9d5c; --three: #5fd38a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 62rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 1rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
.summary { display: flex; flex-wrap: wrap; gap: .6rem; margin: 0; }
.summary div { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .4rem .8rem; }
.summary dt { color: var(--soft); font-size: .8rem; }
.summary dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.chart { position: relative; margin: 0; }
.chart svg { display: block; width: 100%; height: auto; }
.chart svg:focus-visible { outline: 2px solid var(--one); }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; color: var(--soft); font-size: .85rem; }
.legend i { display: inline-block; width: 1.1rem; height: .2rem; margin-right: .35rem; vertical-align: middle; }
.tip { position: absolute; top: .4rem; pointer-events: none; background: var(--page); border: 1px solid var(--line);
  border-radius: .3rem; padding: .25rem .5rem; font-size: .8rem; white-space: pre; font-variant-numeric: tabular-nums; }
.grid { stroke: var(--line); stroke-width: 1; }
.label { fill: var(--soft); font-size: 13px; }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem; padding: .8rem; margin: .3rem 0 1rem;
  white-space: pre-wrap; overflow-wrap: anywhere; }
pre b { color: var(--one); }
.caption { color: var(--soft); font-size: .85rem; }
table { border-collapse: collapse; font-size: .9rem; }
th { text-align: left; }
td, th { border-bottom: 1px solid var(--line); padding: .15rem 1.2rem .15rem 0; overflow-wrap: anywhere; }
td:last-child { font-variant-numeric: tabular-nums; }
)css";

/// Makers of nodes, SVG and HTML, that every page's script begins with.
inline constexpr const char* kNodeScript = R"js(
"use strict";
const make = (parent, name, attributes = {}, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
};
const html = (parent, name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  parent.appendChild(node);
  return node;
};
)js";

/// Draws every chart of the JSON in #data: {"charts": [{"title", "x", "log", "zero", "series": [{"name", "x", "y", "style"}],
/// "floor"}]}. "x" names what the x axis counts; without it steps. A series' style is "faint", "line", "points", or "layer" (one of many, a
/// colour of its own); null values are gaps.
inline constexpr const char* kReportScript = R"js(
const W = 900, H = 300, L = 70, R = 36, T = 12, B = 40;
const show = v => v === null ? "–" : v !== 0 && (Math.abs(v) >= 1e6 || Math.abs(v) < 1e-4)
  ? v.toExponential(2) : Math.abs(v) >= 1000 ? Math.round(v).toLocaleString("en") : String(+v.toPrecision(5));
const ticks = (low, high, count) => {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw);
  const result = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; ++i) result.push(+(i * step).toPrecision(12));
  return result;
};
const logTicks = (low, high) => {
  const result = [], wide = Math.log10(high / low) > 2.5;
  for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); ++e)
    for (const m of wide ? [1] : [1, 2, 5]) {
      const v = +(m * 10 ** e).toPrecision(12);
      if (v >= low && v <= high) result.push(v);
    }
  return result.length > 1 ? result : ticks(low, high, 4).filter(v => v > 0);
};
const color = (series, i, count) => series.style === "layer"
  ? `hsl(${count < 2 ? 215 : 215 + 145 * (i / (count - 1))} 70% 55%)`
  : { faint: "var(--one)", line: "var(--one)", points: "var(--two)" }[series.style];

function range(chart) {
  const all = [], main = [];
  for (const s of chart.series) for (const v of s.y) if (v !== null && (!chart.log || v > 0)) {
    all.push(v);
    if (s.style !== "faint") main.push(v);
  }
  if (chart.floor !== null) { all.push(chart.floor); main.push(chart.floor); }
  if (!all.length) return [0, 1];
  all.sort((a, b) => a - b);
  // a few spikes of single steps may leave the picture; averages and points may not
  const top = main.reduce((a, b) => Math.max(a, b), -Infinity);
  let low = all[0], high = Math.max(all[Math.floor((all.length - 1) * 0.99)], top);
  if (chart.zero) low = Math.min(low, 0);
  if (chart.log) return low < high ? [low / 1.1, high * 1.1] : [low / 2, high * 2];
  if (low === high) { const room = Math.abs(low) * 0.1 || 1; return [chart.zero ? 0 : low - room, high + room]; }
  const room = (high - low) * 0.05;
  return [chart.zero ? low : low - room, high + room];
}

function draw(parent, chart) {
  html(parent, "h2", "", chart.title);
  const legend = html(parent, "div", "legend"), figure = html(parent, "figure", "chart");
  const svg = make(figure, "svg", { viewBox: `0 0 ${W} ${H}`, role: "img", tabindex: 0, "aria-label": chart.title });
  const xs = [...new Set(chart.series.flatMap(s => s.x))].sort((a, b) => a - b);
  const x0 = xs.length ? xs[0] : 0, x1 = xs.length && xs[xs.length - 1] > x0 ? xs[xs.length - 1] : x0 + 1;
  const [y0, y1] = range(chart), f = chart.log ? Math.log : v => v;
  const px = x => L + (x - x0) / (x1 - x0) * (W - L - R);
  const py = y => Math.max(T - 4, Math.min(H - B + 4, H - B - (f(y) - f(y0)) / (f(y1) - f(y0)) * (H - T - B)));
  for (const v of chart.log ? logTicks(y0, y1) : ticks(y0, y1, 5)) {
    make(svg, "line", { class: "grid", x1: L, x2: W - R, y1: py(v), y2: py(v) });
    make(svg, "text", { class: "label", x: L - 8, y: py(v) + 4, "text-anchor": "end" }, show(v));
  }
  for (const v of chart.x ? ticks(x0, x1, 7) : ticks(x0, x1, 7).filter(Number.isInteger))
    make(svg, "text", { class: "label", x: px(v), y: H - B + 18, "text-anchor": "middle" }, v.toLocaleString("en"));
  make(svg, "text", { class: "label", x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, chart.x || "step");
  const entry = (name, paint, opacity = 1) => {
    const item = html(legend, "span", ""), mark = html(item, "i", "");
    mark.style.background = paint;
    mark.style.opacity = opacity;
    item.append(name);
  };
  chart.series.forEach((s, i) => {
    const paint = color(s, i, chart.series.length);
    let path = "", pen = "M";
    s.y.forEach((v, k) => {
      if (v === null || (chart.log && v <= 0)) { pen = "M"; return; }
      path += `${pen}${px(s.x[k]).toFixed(1)} ${py(v).toFixed(1)}`;
      pen = "L";
    });
    const drawn = make(svg, "path", { d: path || "M0 0", fill: "none", "stroke-width": s.style === "faint" ? 1 : 2,
      "stroke-linejoin": "round", opacity: s.style === "faint" ? 0.35 : 1 });
    drawn.style.stroke = paint;
    if (s.style === "points") s.y.forEach((v, k) => {
      if (v !== null) make(svg, "circle", { cx: px(s.x[k]), cy: py(v), r: 3.5 }).style.fill = paint;
    });
    entry(s.name, paint, s.style === "faint" ? 0.35 : 1);
  });
  if (chart.floor !== null) {
    make(svg, "line", { x1: L, x2: W - R, y1: py(chart.floor), y2: py(chart.floor), "stroke-width": 2,
      "stroke-dasharray": "7 5" }).style.stroke = "var(--three)";
    entry(`floor ${show(chart.floor)} (exact entropy of the text)`, "var(--three)");
  }
  hover(figure, svg, chart, xs, px);
}

function hover(figure, svg, chart, xs, px) {
  const cursor = make(svg, "line", { class: "cursor", y1: T, y2: H - B, visibility: "hidden" });
  const tip = html(figure, "div", "tip");
  tip.hidden = true;
  const maps = chart.series.map(s => new Map(s.x.map((x, k) => [x, s.y[k]])));
  let at = xs.length - 1;
  const hide = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); };
  const point = index => {
    if (!xs.length) return;
    at = Math.max(0, Math.min(xs.length - 1, index));
    const x = xs[at], lines = [`${chart.x || "step"} ${x.toLocaleString("en")}`];
    chart.series.forEach((s, i) => { if (maps[i].has(x)) lines.push(`${s.name}  ${show(maps[i].get(x))}`); });
    tip.textContent = lines.join("\n");
    tip.hidden = false;
    cursor.setAttribute("visibility", "visible");
    cursor.setAttribute("x1", px(x));
    cursor.setAttribute("x2", px(x));
    const left = px(x) / W * svg.clientWidth, right = left > svg.clientWidth / 2;
    tip.style.left = right ? "" : `${left + 8}px`;
    tip.style.right = right ? `${svg.clientWidth - left + 8}px` : "";
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), wanted = (event.clientX - box.left) / box.width * W;
    let low = 0, high = xs.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (px(xs[middle]) < wanted) low = middle + 1; else high = middle;
    }
    point(low > 0 && wanted - px(xs[low - 1]) < px(xs[low]) - wanted ? low - 1 : low);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { point(at + move); event.preventDefault(); }
  });
}

for (const chart of JSON.parse(document.getElementById("data").textContent).charts)
  draw(document.getElementById("charts"), chart);
)js";

}  // namespace hedgehog
