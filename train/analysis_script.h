#pragma once

namespace hedgehog {

/// What analysis.html adds to the style of report.html.
inline constexpr const char* kAnalysisStyle = R"css(
.measures th { text-align: right; color: var(--soft); font-weight: 400; padding: .15rem 0 .15rem 1.2rem; border-bottom: 1px solid var(--line); }
.measures td { text-align: right; padding: .15rem 0 .15rem 1.2rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.measures th:first-child, .measures td:first-child { text-align: left; padding-left: 0; }
.wide { overflow-x: auto; }
details { margin: .4rem 0; }
summary { color: var(--soft); cursor: pointer; }
.choose { display: flex; flex-wrap: wrap; gap: .6rem 1.2rem; margin: 0 0 .6rem; }
.choose select { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line); border-radius: .3rem; padding: .1rem .4rem; }
.squares { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1rem; }
.squares figure { margin: 0; }
.squares canvas { width: 100%; aspect-ratio: 1; image-rendering: pixelated; border: 1px solid var(--line); border-radius: .3rem; display: block; }
)css";

/// Draws the heads of the JSON in #heads into #pictures: {"tokens", "heads": [{"layer", "head", "side", "score": [...], "maps": [{"name",
/// "cells", "weight": [...]}]}]}; the first map is softmax. Cells are two hexadecimal digits each: the lower triangle, in logarithms.
inline constexpr const char* kAnalysisScript = R"js(
"use strict";
// the page's own script, whose functions are used here, comes later
addEventListener("DOMContentLoaded", () => {
  const data = JSON.parse(document.getElementById("heads").textContent), place = document.getElementById("pictures");
  if (!data.heads.length) return;
  const paint = name => {
    const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
    probe.fillRect(0, 0, 1, 1);
    return [...probe.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const decode = (head, map) => {
    const all = new Float64Array(head.side * head.side);
    for (let i = 0, at = 0; i < head.side; ++i) for (let j = 0; j <= i; ++j, at += 2) {
      const level = parseInt(map.cells.slice(at, at + 2), 16);
      all[i * head.side + j] = level ? 10 ** (4 * ((level - 1) / 254 - 1)) : 0;
    }
    return all;
  };
  // weights of 1e-4 to 1 and differences of 1e-3 to 1 by their logarithms: a linear scale would show the largest alone
  const tone = (v, low) => v <= low ? 0 : Math.min(1, 1 - Math.log10(v) / Math.log10(low));
  const square = (canvas, side, color) => {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d"), picture = context.createImageData(side, side);
    for (let c = 0; c < side * side; ++c) {
      const rgb = color(c);
      for (let k = 0; k < 3; ++k) picture.data[4 * c + k] = rgb[k];
      picture.data[4 * c + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  };
  const mix = (from, to, share) => from.map((v, k) => Math.round(v + (to[k] - v) * share));

  html(place, "h2", "", `Heads on one text of ${data.tokens} tokens`);
  const choose = html(place, "div", "choose");
  const select = (label, names) => {
    const outer = html(choose, "label", "", `${label} `), inner = html(outer, "select");
    names.forEach((name, i) => { html(inner, "option", "", name).value = i; });
    return inner;
  };
  const which = select("head", data.heads.map(h => `layer ${h.layer + 1} head ${h.head + 1}`));
  const map = select("beside softmax", data.heads[0].maps.slice(1).map(m => m.name));
  const squares = html(place, "div", "squares");
  const figure = () => {
    const outer = html(squares, "figure"), canvas = html(outer, "canvas"), caption = html(outer, "figcaption", "caption");
    return { canvas, caption };
  };
  const left = figure(), middle = figure(), right = figure();
  const scatter = html(place, "figure", "chart"), note = html(place, "div", "caption");

  function points(head, other) {
    scatter.textContent = "";
    const svg = make(scatter, "svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "weights against scores" });
    const two = [[head.maps[0], "var(--one)"], [other, "var(--two)"]], floor = -14;
    const ys = two.flatMap(([m]) => m.weight).map(v => v === null ? floor : Math.max(v, floor));
    const x0 = Math.min(...head.score), x1 = Math.max(...head.score, x0 + 1e-9), y0 = Math.min(...ys), y1 = 0;
    const px = x => L + (x - x0) / (x1 - x0) * (W - L - R), py = y => H - B - (y - y0) / (y1 - y0 || 1) * (H - T - B);
    for (const v of ticks(y0, y1, 5)) {
      make(svg, "line", { class: "grid", x1: L, x2: W - R, y1: py(v), y2: py(v) });
      make(svg, "text", { class: "label", x: L - 8, y: py(v) + 4, "text-anchor": "end" }, show(v));
    }
    for (const v of ticks(x0, x1, 7)) make(svg, "text", { class: "label", x: px(v), y: H - B + 18, "text-anchor": "middle" }, show(v));
    make(svg, "text", { class: "label", x: (L + W - R) / 2, y: H - 6, "text-anchor": "middle" }, "score q·k / √D");
    for (const [m, color] of two) m.weight.forEach((v, i) => {
      make(svg, "circle", { cx: px(head.score[i]).toFixed(1), cy: py(v === null ? floor : Math.max(v, floor)).toFixed(1), r: 2.2, opacity: 0.6 }).style.fill = color;
    });
    note.textContent = `ln of the weight against the score, ${head.score.length} pairs drawn: softmax blue, ${other.name} orange. The height that softmax ` +
      "spreads over is each row's normaliser: within a row its points lie on a line.";
  }

  function redraw() {
    const head = data.heads[which.value], other = head.maps[+map.value + 1], side = head.side;
    const page = paint("--page"), one = paint("--one"), two = paint("--two");
    const a = decode(head, head.maps[0]), b = decode(head, other);
    square(left.canvas, side, c => mix(page, one, tone(a[c], 1e-4)));
    square(middle.canvas, side, c => mix(page, one, tone(b[c], 1e-4)));
    square(right.canvas, side, c => mix(page, b[c] > a[c] ? two : one, tone(Math.abs(b[c] - a[c]), 1e-3)));
    left.caption.textContent = "softmax; queries downwards, keys to the right, 1e-4 to 1 by the logarithm";
    middle.caption.textContent = `${other.name}, the same scale`;
    right.caption.textContent = `${other.name} less softmax: orange more, blue less, 1e-3 to 1`;
    points(head, other);
  }
  which.addEventListener("change", redraw);
  map.addEventListener("change", redraw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  redraw();
});
)js";

}  // namespace hedgehog
