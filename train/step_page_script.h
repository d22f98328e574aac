#pragma once

namespace hedgehog {

/// The page without its script: {title} stands for the escaped title.
inline constexpr const char* kStepPageBody = R"html(<a class="skip" href="#main">Skip to the step</a>
<header><h1>{title}</h1>
<div><button id="theme" type="button">Dark</button> <button id="ask" type="button">Keys <kbd>?</kbd></button></div></header>
<p class="facts" id="about"></p>
<noscript><p class="message">This page needs JavaScript.</p></noscript>
<div id="messages"></div>
<section class="timeline" aria-label="Timeline">
<div class="row">
<button id="first" type="button" aria-label="To the start" title="Home">|◀&#xFE0E;</button>
<button id="back" type="button" aria-label="One step back" title="Left">◀&#xFE0E;</button>
<button id="play" type="button" aria-label="Play" title="Space">▶&#xFE0E; Play</button>
<button id="forth" type="button" aria-label="One step on" title="Right">▶&#xFE0E;</button>
<button id="last" type="button" aria-label="To the end" title="End">▶&#xFE0E;|</button>
<select id="speed" aria-label="Speed">
<option value="1200">slow</option><option value="600" selected>usual</option><option value="120">fast</option></select>
<span id="where"></span></div>
<canvas id="strip" aria-hidden="true"></canvas>
<input id="scrubber" type="range" min="0" step="1" aria-label="Step">
</section>
<div class="layout">
<nav id="side" aria-label="Program">
<input id="search" type="search" placeholder="Search  /" aria-label="Search ops, tensors and scopes" autocomplete="off">
<ul id="found" aria-label="Found" hidden></ul>
<div id="program"></div>
</nav>
<main id="main" tabindex="-1">
<section class="card" id="step" aria-label="Current step"></section>
<section class="card graph" id="graph" aria-label="What this step reads and writes"></section>
<section class="card" id="tensor" aria-label="Tensor"></section>
<section class="card" id="attention" aria-label="Attention" hidden></section>
<section class="card" id="layers" aria-label="Gradient flow" hidden></section>
</main></div>
<div id="live" class="unseen" aria-live="polite"></div>
<dialog id="help" aria-label="Keys"><h2>Keys</h2><table>
<tr><td><kbd>←</kbd> <kbd>→</kbd></td><td>one step back, one step on</td></tr>
<tr><td><kbd>Home</kbd> <kbd>End</kbd></td><td>to the start, to the end</td></tr>
<tr><td><kbd>Space</kbd></td><td>play, pause</td></tr>
<tr><td><kbd>/</kbd></td><td>search ops, tensors, scopes; <kbd>Enter</kbd> goes to the first</td></tr>
<tr><td><kbd>?</kbd></td><td>this list; <kbd>Esc</kbd> closes it</td></tr>
</table><p>In the tree arrows move and fold; on a picture they move over its cells. A step's address ends in #step=12.
Numbers have up to nine digits.
The strip above the slider is blue for forward, orange for backward, and pink where a check failed or numbers are not finite.</p>
<form method="dialog"><button>Close</button></form></dialog>
)html";

/// Timeline, keys, tree, search and links. The JSON of #data is as step_page_data() says; `state` is what the reader looks at.
inline constexpr const char* kStepPageScript = R"js(
const data = JSON.parse(document.getElementById("data").textContent);
const steps = data.steps, tensors = data.tensors, count = steps.length;
const $ = id => document.getElementById(id);
/// A table that scrolls by itself where the page is too narrow.
const wide_table = (parent, label, className = "wide") => {
  const place = html(parent, "div", className), table = html(place, "table", "numbers");
  place.tabIndex = 0;
  place.setAttribute("role", "region");
  place.setAttribute("aria-label", label);
  html(table, "caption", "unseen", label);
  return table;
};
/// Draws a card anew; what had the focus in it has it again, if it has an id.
const redraw = (card, draw) => {
  const focused = card.contains(document.activeElement) ? document.activeElement.id : "";
  card.textContent = "";
  draw();
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
};
const button = (parent, text, action) => {
  const node = html(parent, "button", "", text);
  node.type = "button";
  node.addEventListener("click", action);
  return node;
};
// numbers that are not finite come as texts
const numeric = v => typeof v === "number" ? v : v === "inf" ? Infinity : v === "-inf" ? -Infinity : NaN;
const exact = v => v === null || v === undefined ? "–" : v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential() : String(v);
const short = v => typeof v !== "number" ? exact(v) : exact(Number(v.toPrecision(5)));
const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const title_of = i => i === 0 ? "start" : `${steps[i - 1].direction} of ${steps[i - 1].op}`;
const link = (parent, to, text) => {
  const node = html(parent, "a", "", text);
  node.href = `#step=${to}`;
  return node;
};
/// Reads and writes of a step in one list.
const touched = step => [step.upstream, step.reads, step.writes, step.gradients].flatMap(list => list || []);
const primal = t => tensors[t].primal ?? t;
/// The version of a tensor that holds at a step, or nothing.
const version_at = (tensor, position) => tensor.versions.findLast(v => v.at <= position);
const read_by = tensors.map(() => []), made_by = tensors.map(() => []);
steps.forEach((step, i) => {
  for (const [, t] of (step.reads || []).concat(step.upstream || [])) if (read_by[t].at(-1) !== i + 1) read_by[t].push(i + 1);
  for (const [, t] of (step.writes || []).concat(step.gradients || [])) if (made_by[t].at(-1) !== i + 1) made_by[t].push(i + 1);
});
const verdict = check => check.passed ? "good" : check.kink ? "kink" : check.unresolved ? "hidden" : "bad";
const checks_of = tensor => (tensor.explained || []).map(e => e.check).concat(tensor.direction).filter(c => c);

const state = { at: 0, tensor: null, pinned: false, playing: null, element: 0, head: 0, token: null, same: false, open: {} };

function default_tensor(position) {
  if (position === 0) return count ? touched(steps[0])[0]?.[1] ?? null : null;
  const step = steps[position - 1], list = step.gradients?.length ? step.gradients : step.writes.length ? step.writes : touched(step);
  return list.length ? primal(list[0][1]) : null;
}

function go(position, tensor) {
  position = Math.max(0, Math.min(count, Math.round(position)));
  const moved = position !== state.at;
  state.at = position;
  if (tensor !== undefined) choose(tensor, false);
  else if (!state.pinned && (moved || state.tensor === null)) choose(default_tensor(position), false);
  draw();
  remember();
}

function choose(tensor, redraw = true) {
  tensor = tensor === null || tensor === undefined ? null : primal(tensor);
  if (tensor !== state.tensor) state.element = 0;
  state.tensor = tensor;
  if (redraw) { draw_graph(); draw_tensor(); remember(); }
}

let remembering = 0;
function remember() {
  clearTimeout(remembering);
  remembering = setTimeout(() => {
    const name = state.pinned && state.tensor !== null ? `&tensor=${encodeURIComponent(tensors[state.tensor].name)}` : "";
    const wanted = `#step=${state.at}${name}`;
    if (location.hash !== wanted) history.replaceState(null, "", wanted);
  }, 200);
}

function from_address() {
  const parts = new URLSearchParams(location.hash.slice(1)), step = parts.get("step"), name = parts.get("tensor");
  if (step === null && location.hash.length > 1) return;
  clearTimeout(remembering);
  const tensor = name === null ? -1 : tensors.findIndex(t => t.name === name);
  if (name !== null) state.pinned = tensor >= 0;
  const position = Number(step ?? Math.min(1, count));
  go(Number.isFinite(position) ? position : 0, tensor >= 0 ? tensor : undefined);
}

function play(on) {
  clearInterval(state.playing);
  if (on && state.at === count) go(0);
  const forth = () => { if (state.at < count) go(state.at + 1); if (state.at === count) play(false); };
  state.playing = on ? setInterval(forth, Number($("speed").value)) : null;
  $("play").textContent = on ? "⏸\uFE0E Pause" : "▶\uFE0E Play";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
}

function draw_strip() {
  const canvas = $("strip"), width = Math.max(1, Math.min(2000, canvas.clientWidth)), style = getComputedStyle(document.documentElement);
  canvas.width = width;
  canvas.height = 1;
  const paint = canvas.getContext("2d"), color = name => style.getPropertyValue(name).trim();
  const bad = new Set();
  tensors.forEach(t => { if (checks_of(t).some(c => verdict(c) === "bad")) bad.add(t.complete); });
  const wrong = [];
  steps.forEach((step, i) => {
    paint.fillStyle = color(step.direction === "forward" ? "--one" : "--two");
    paint.fillRect(i / count * width, 0, width / count + 1, 1);
    if (step.finite === false || bad.has(i + 1)) wrong.push(i);
  });
  paint.fillStyle = color("--odd");
  for (const i of wrong) paint.fillRect(i / count * width, 0, Math.max(2, width / count), 1);
}

// the tree: {label, step} for an op, {label, children} for a scope; children get elements when they are first unfolded
function build_tree() {
  const top = ["forward", "backward"].map(direction => ({ label: direction, children: [], scopes: new Map() }));
  steps.forEach((step, i) => {
    let node = top[step.direction === "forward" ? 0 : 1];
    for (const part of step.scope ? step.scope.split("/") : []) {
      let inner = node.scopes.get(part);
      if (!inner) {
        inner = { label: part, children: [], scopes: new Map(), parent: node };
        node.scopes.set(part, inner);
        node.children.push(inner);
      }
      node = inner;
    }
    node.children.push({ label: `${i + 1}  ${step.op}`, step: i + 1, parent: node });
  });
  const fold = node => {
    if (!node.children) return;
    node.children.forEach(fold);
    if (node.children.length <= 150) return;
    const parts = [];
    for (let k = 0; k < node.children.length; k += 100) {
      const children = node.children.slice(k, k + 100), part = { children, parent: node };
      const ends = [children[0], children.at(-1)].map(c => c.step ? `step ${c.step}` : c.label);
      part.label = `${ends[0]} to ${ends[1]}`;
      children.forEach(c => { c.parent = part; });
      parts.push(part);
    }
    node.children = parts;
  };
  top.forEach(fold);
  return top.filter(node => node.children.length);
}
const tree = build_tree(), leaf_of = [];
(function index(nodes) { for (const n of nodes) if (n.step) leaf_of[n.step] = n; else index(n.children); })(tree);

function tree_item(parent, node) {
  const item = html(parent, "li");
  item.setAttribute("role", "treeitem");
  item.tabIndex = -1;
  item.node = node;
  node.item = item;
  const label = html(item, "span", node.step ? steps[node.step - 1].direction : "", node.label);
  label.title = node.label;
  if (node.children) item.setAttribute("aria-expanded", "false");
  label.addEventListener("click", () => { focus_item(item); if (node.step) go(node.step); else unfold(node); });
}
function unfold(node, open = node.item.getAttribute("aria-expanded") !== "true") {
  if (!node.group) {
    node.group = html(node.item, "ul");
    node.group.setAttribute("role", "group");
    for (const child of node.children) tree_item(node.group, child);
  }
  node.group.hidden = !open;
  node.item.setAttribute("aria-expanded", String(open));
}
function focus_item(item, really = true) {
  const before = $("program").querySelector('[tabindex="0"]');
  if (before) before.tabIndex = -1;
  item.tabIndex = 0;
  if (really) item.focus();
}
function reveal(step) {
  $("program").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const leaf = leaf_of[step];
  if (!leaf) return;
  const path = [];
  for (let n = leaf.parent; n; n = n.parent) path.unshift(n);
  for (const n of path) unfold(n, true);
  leaf.item.setAttribute("aria-current", "step");
  focus_item(leaf.item, false);
  // scrollIntoView would move the page too
  const box = $("program"), label = leaf.item.firstChild.getBoundingClientRect(), frame = box.getBoundingClientRect();
  const low = Math.max(frame.top + 60, Math.min(frame.bottom, innerHeight));
  if (label.top < frame.top || label.bottom > low) box.scrollTop += label.top - frame.top - (low - frame.top) / 3;
}
function tree_keys(event) {
  const item = event.target.closest("[role=treeitem]");
  if (!item || event.ctrlKey || event.altKey || event.metaKey) return;
  const node = item.node, open = item.getAttribute("aria-expanded") === "true";
  const all = [...$("program").querySelectorAll("[role=treeitem]")].filter(i => !i.parentNode.closest("[hidden]")), place = all.indexOf(item);
  const to = { ArrowDown: all[place + 1], ArrowUp: all[place - 1], Home: all[0], End: all.at(-1) };
  if (event.key in to) { if (to[event.key]) focus_item(to[event.key]); }
  else if (event.key === "ArrowRight") { if (node.children && !open) unfold(node, true); else if (open) focus_item(all[place + 1]); }
  else if (event.key === "ArrowLeft") { if (open) unfold(node, false); else if (node.parent) focus_item(node.parent.item); }
  else if (event.key === "Enter" || event.key === " ") { if (node.step) go(node.step); else unfold(node); }
  else return;
  event.preventDefault();
  event.stopPropagation();
}

function show_tensor(t) {
  const first = tensors[t].versions[0]?.at ?? 0;
  go(first > 0 ? first : read_by[t][0] ?? state.at, t);
}
function search() {
  const words = $("search").value.trim().toLowerCase(), list = $("found"), results = [];
  list.textContent = "";
  list.hidden = !words;
  if (!words) return;
  const scopes = new Map();
  steps.forEach((step, i) => { if (step.scope && !scopes.has(step.scope)) scopes.set(step.scope, i + 1); });
  const match = text => text.toLowerCase().includes(words);
  tensors.forEach((t, i) => { if (match(t.name)) results.push([`tensor ${t.name}  (${t.shape.join(", ")})`, () => show_tensor(i)]); });
  for (const [scope, first] of scopes) if (match(scope)) results.push([`scope ${scope}`, () => go(first)]);
  for (let s = 1; s <= count; ++s)
    if (match(steps[s - 1].op) || words === String(s)) results.push([`step ${s}  ${title_of(s)}`, () => go(s)]);
  for (const [text, action] of results.slice(0, 60)) button(html(list, "li"), text, action);
  if (results.length !== 0 && results.length <= 60) return;
  html(html(list, "li"), "p", "caption", results.length ? `${results.length - 60} more: type more of the name` : "nothing found");
}
)js";

}  // namespace hedgehog
