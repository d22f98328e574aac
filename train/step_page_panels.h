#pragma once

namespace hedgehog {

/// The panels of the current step: its op, the graph around it, and the chosen tensor with pictures, numbers, terms and checks.
inline constexpr const char* kStepPagePanels = R"js(
function color_of(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map(k => parseInt(text.slice(k, k + 2), 16));
}
const mix = (from, to, share) => from.map((v, k) => Math.round(v + (to[k] - v) * share));
const index_text = (shape, i) => {
  const at = [];
  for (let a = shape.length - 1; a >= 0; --a) { at.unshift(i % shape[a]); i = Math.floor(i / shape[a]); }
  return `[${at.join(", ")}]`;
};
const rows_of = shape => { const columns = shape.at(-1) ?? 1; return [shape.slice(0, -1).reduce((p, n) => p * n, 1), columns]; };
const limit_of = numbers => numbers.reduce((most, v) => { const a = Math.abs(numeric(v)); return a < Infinity && a > most ? a : most; }, 0);

/// A picture of numbers with its scale; the number under the pointer, or under the cell that arrows choose, is read out.
/// picture: {label, rows, columns, numbers, limit, half (no negative numbers), name(i) of a cell, pick(i)}
function heat_map(parent, picture) {
  const figure = html(parent, "figure", "map"), canvas = html(figure, "canvas"), { numbers, limit } = picture;
  // browsers draw no wider canvas
  const rows = Math.min(picture.rows, 8192), columns = Math.min(picture.columns, 8192), index = (r, c) => r * picture.columns + c;
  const room = Math.max(120, parent.clientWidth || 300) - 2;
  const side = Math.min(28, room / columns, 340 / rows);
  const width = Math.min(room, Math.max(side, Math.min(10, room / columns)) * columns), height = Math.max(side, Math.min(10, 340 / rows)) * rows;
  canvas.width = columns;
  canvas.height = rows;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${height}px`;
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${picture.label}: ${rows} by ${columns} numbers; arrows move over the cells, the table below has them all`);
  const paint = canvas.getContext("2d"), image = paint.createImageData(columns, rows);
  const low = color_of("--low"), middle = color_of("--middle"), high = color_of("--high"), odd = color_of("--odd");
  for (let r = 0; r < rows; ++r) for (let c = 0; c < columns && index(r, c) < numbers.length; ++c) {
    const v = numeric(numbers[index(r, c)]), share = limit > 0 ? Math.min(1, Math.abs(v) / limit) : 0;
    const rgb = Number.isFinite(v) ? mix(middle, v < 0 ? low : high, share) : odd;
    image.data.set([...rgb, 255], 4 * (r * columns + c));
  }
  paint.putImageData(image, 0, 0);
  const scale = html(figure, "div", picture.half ? "scale half" : "scale");
  html(scale, "span", "", picture.half ? "0" : short(-limit));
  html(scale, "i");
  html(scale, "span", "", picture.half ? short(limit) : `${short(limit)}, 0 in the middle`);
  if (rows < picture.rows || columns < picture.columns) html(scale, "span", "", `drawn: ${rows} rows and ${columns} columns of them`);
  const output = html(figure, "output"), tip = html(figure, "div", "tip");
  tip.hidden = true;
  let cell = 0;
  const tell = i => { cell = i; return `${picture.name(i)} = ${i < numbers.length ? exact(numbers[i]) : "cut from this page"}`; };
  const at = event => {
    const box = canvas.getBoundingClientRect(), x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    return index(Math.min(rows - 1, Math.max(0, Math.floor(y * rows))), Math.min(columns - 1, Math.max(0, Math.floor(x * columns))));
  };
  canvas.addEventListener("pointermove", event => {
    const box = figure.getBoundingClientRect();
    tip.textContent = tell(at(event));
    tip.hidden = false;
    tip.style.left = `${Math.max(0, Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth))}px`;
    tip.style.top = `${event.clientY - box.top + 16}px`;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  canvas.addEventListener("click", event => { const i = at(event); output.textContent = tell(i); if (picture.pick) picture.pick(i); });
  canvas.addEventListener("focus", () => { output.textContent = tell(cell); });
  canvas.addEventListener("keydown", event => {
    const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -picture.columns, ArrowDown: picture.columns }[event.key];
    if (move === undefined) return;
    if (cell + move >= 0 && cell + move < index(rows, 0)) output.textContent = tell(cell + move);
    event.preventDefault();
    event.stopPropagation();
  });
}

/// All numbers as a table that is made when it is opened, some rows and columns at a time.
function number_table(parent, key, label, shape, numbers) {
  const [rows, columns] = rows_of(shape), known = Math.ceil(numbers.length / columns);
  const details = html(parent, "details"), place = (html(details, "summary", "", "Table of numbers"), html(details, "div"));
  let tall = 32, broad = 16;
  const fill = () => {
    state.open[key] = details.open;
    place.textContent = "";
    if (!details.open) return;
    const table = wide_table(place, label), head = html(html(table, "thead"), "tr"), body = html(table, "tbody");
    html(head, "th", "", rows > 1 ? "row" : "");
    const last = Math.min(columns, broad);
    for (let c = 0; c < last; ++c) html(head, "th", "", String(c)).scope = "col";
    for (let r = 0; r < Math.min(known, tall); ++r) {
      const row = html(body, "tr");
      html(row, "th", "", shape.length > 1 ? index_text(shape.slice(0, -1), r) : "").scope = "row";
      for (let c = 0; c < last && r * columns + c < numbers.length; ++c) html(row, "td", "", exact(numbers[r * columns + c]));
    }
    if (known > tall) button(place, `more rows (${known - tall} left)`, () => { tall += 128; fill(); });
    if (columns > broad) button(place, `more columns (${columns - broad} left)`, () => { broad += 64; fill(); });
  };
  details.open = !!state.open[key];
  details.addEventListener("toggle", fill);
}

function draw_step() {
  const card = $("step"), step = steps[state.at - 1];
  card.textContent = "";
  const heading = html(card, "h2");
  if (!step) {
    heading.textContent = "Start";
    const leaves = "Only leaves have values: parameters, inputs and states.";
    html(card, "p", "facts", count ? `${plural(count, "step")} follow. ${leaves}` : "This program has no steps.");
    return;
  }
  html(heading, "span", `tag ${step.direction}`, step.direction);
  heading.append(step.op);
  const facts = html(card, "p", "facts");
  html(facts, "span", "", `step ${state.at} of ${count}`);
  html(facts, "span", "", step.scope || "no scope");
  html(facts, "span", "", step.source);
  if (step.repeated) html(facts, "span", "", "computed again for backward");
  if (step.attributes) html(facts, "span", "", step.attributes);
  if (step.partner) link(html(facts, "span"), step.partner, `its ${step.direction === "forward" ? "backward" : "forward"} is step ${step.partner}`);
  if (step.finite === false) html(card, "p", "bad", "✗ this step wrote numbers that are not finite");
  const formulas = data.ops[step.op], own = formulas[step.direction];
  if (own) html(card, "div", "formula", own);
  else html(card, "p", "caption", "no formula: it moves numbers as they are");
}

function draw_graph() { redraw($("graph"), draw_graph_anew); }
function draw_graph_anew() {
  const card = $("graph"), step = steps[state.at - 1];
  card.hidden = !step;
  if (!step) return;
  const width = Math.max(260, card.clientWidth - 34), stacked = width < 620;
  const left = (step.upstream || []).concat(step.reads || []), right = (step.gradients || []).concat(step.writes || []);
  const wide = stacked ? width - 30 : Math.min(320, (width - 260) / 2), tall = 44, gap = 10;
  const stack = list => list.length * (tall + gap) - gap;
  const high = stacked ? stack(left) + stack(right) + tall + 64 : Math.max(stack(left), stack(right), tall) + 4;
  const picture = make(card, "svg", { viewBox: `0 0 ${width} ${high}`, height: high, role: "group",
    "aria-label": `${step.op} with what it reads and writes` });
  const marker = make(make(picture, "defs"), "marker",
    { id: "tip", viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, orient: "auto" });
  make(marker, "path", { d: "M0 0 L8 4 L0 8 z" });
  const measure = document.createElement("canvas").getContext("2d");
  measure.font = `13px ${getComputedStyle(document.body).fontFamily}`;
  const fit = (text, room) => {
    if (measure.measureText(text).width <= room) return text;
    while (text.length > 1 && measure.measureText(`${text}…`).width > room) text = text.slice(0, -1);
    return `${text}…`;
  };
  const arrow = d => make(picture, "path", { d, "marker-end": "url(#tip)" });
  const box = (x, y, [argument, t]) => {
    const tensor = tensors[t], chosen = primal(t) === state.tensor ? "chosen" : "";
    const node = make(picture, "a", { id: `node-${argument}-${t}`, href: `#step=${state.at}`, class: chosen });
    node.setAttribute("aria-label", `${argument}: ${tensor.name}, shape ${tensor.shape.join(" by ") || "one number"}`);
    make(node, "rect", { x, y, width: wide, height: tall, rx: 6 });
    make(node, "title", {}, `${argument}: ${tensor.name} (${tensor.shape.join(", ")})`);
    const one = version_at(tensor, state.at)?.numbers, checks = tensor.primal === undefined ? [] : checks_of(tensors[primal(t)]);
    const found = kind => checks.some(c => verdict(c) === kind), mark = !checks.length ? "" : found("bad") ? " ✗" : found("kink") ? " ◇" : found("good") ? " ✓" : " ?";
    const value = `${one?.length === 1 ? ` = ${short(one[0])}` : ""}${mark}`;
    make(node, "text", { x: x + 10, y: y + 18 }, fit(tensor.name, wide - 20 - measure.measureText(value).width) + value);
    const from = made_by[t].filter(s => s < state.at).at(-1), shape = tensor.shape.length ? ` (${tensor.shape.join(", ")})` : "";
    make(node, "text", { x: x + 10, y: y + 35, class: "small" }, fit(`${argument}${shape}${from ? `, from step ${from}` : ""}`, wide - 16));
    node.addEventListener("click", event => { event.preventDefault(); choose(t); });
  };
  const op_wide = stacked ? width - 30 : Math.min(180, width - 2 * wide - 80), op_x = stacked ? 30 : (width - op_wide) / 2;
  const op_y = stacked ? stack(left) + 32 : high / 2 - tall / 2;
  const offset = list => stacked ? 0 : (high - stack(list)) / 2;
  left.forEach((item, i) => {
    const y = 2 + (stacked ? 0 : offset(left) - 2) + i * (tall + gap), x = stacked ? 30 : 1, middle = y + tall / 2, aim = op_y + tall / 2;
    if (stacked) arrow(`M${x} ${middle} H12 V${aim} H${op_x - 2}`);
    else arrow(`M${x + wide} ${middle} C${x + wide + 40} ${middle} ${op_x - 42} ${aim} ${op_x - 2} ${aim}`);
    box(x, y, item);
  });
  right.forEach((item, i) => {
    const y = stacked ? op_y + tall + 30 + i * (tall + gap) : offset(right) + i * (tall + gap), x = stacked ? 30 : width - wide - 1;
    const middle = y + tall / 2, aim = op_y + tall / 2;
    if (stacked) arrow(`M${op_x} ${aim} H12 V${middle} H${x - 2}`);
    else arrow(`M${op_x + op_wide} ${aim} C${op_x + op_wide + 40} ${aim} ${x - 42} ${middle} ${x - 2} ${middle}`);
    box(x, y, item);
  });
  const op = make(picture, "g", { class: `op ${step.direction}` });
  make(op, "rect", { x: op_x, y: op_y, width: op_wide, height: tall, rx: 20 });
  make(op, "text", { x: op_x + op_wide / 2, y: op_y + 18, "text-anchor": "middle" }, fit(step.op, op_wide - 20));
  make(op, "text", { x: op_x + op_wide / 2, y: op_y + 35, "text-anchor": "middle", class: "small" }, step.direction);
}

function step_links(parent, label, list) {
  if (!list.length) return;
  const span = html(parent, "span", "", `${label} `);
  list.slice(0, 6).forEach((s, i) => { if (i) span.append(", "); link(span, s, String(s)); });
  if (list.length > 6) span.append(` and ${list.length - 6} more`);
}

/// Of a tensor with one number everywhere as many as a picture needs.
function numbers_of(tensor, version) {
  if (!("fill" in version)) return version.numbers;
  const [rows, columns] = rows_of(tensor.shape);
  return new Array(Math.min(columns, 20000) * Math.min(rows, Math.max(1, Math.floor(20000 / columns)))).fill(version.fill);
}

/// Value or gradient at the current step.
function draw_values(parent, heading, t, limit, pick) {
  const place = html(parent, "div"), tensor = tensors[t], version = version_at(tensor, state.at);
  html(place, "h3", "", heading);
  if (!version) {
    const p = html(place, "p", "caption", "no value yet at this step");
    if (tensor.versions.length) { p.append("; it is written by step "); link(p, tensor.versions[0].at, String(tensor.versions[0].at)); }
    return;
  }
  const numbers = numbers_of(tensor, version), [rows, columns] = rows_of(tensor.shape), s = version.statistics;
  const shown = Math.ceil(numbers.length / columns);
  const own = limit ?? limit_of(numbers);
  if (s.count <= 12 && numbers.length === s.count) html(place, "p", "few", numbers.map(exact).join("  "));
  heat_map(place, { label: heading, rows: shown, columns: numbers.length < columns ? numbers.length : columns, numbers, limit: own, pick,
    name: i => `${tensor.name}${tensor.shape.length ? index_text(tensor.shape, i) : ""}` });
  if ("fill" in version) html(place, "p", "caption", `all ${s.count} numbers are ${exact(version.fill)}`);
  else if (numbers.length < s.count)
    html(place, "p", "caption", `cut: the first ${shown < rows ? `${shown} of ${rows} rows` : `${numbers.length} of ${s.count} numbers`}`);
  html(place, "p", "statistics", `min ${short(s.minimum)}, max ${short(s.maximum)}, mean ${short(s.mean)}, ` +
    `deviation ${short(s.deviation)}, norm ${short(s.norm)}, zeros ${s.zeros} of ${s.count}${s.non_finite ? `, not finite ${s.non_finite}` : ""}`);
  number_table(place, heading.split(" ")[0], `${tensor.name} at step ${state.at}`, tensor.shape, numbers);
}

/// A gradient beside differences of the loss, each line with its verdict.
function draw_checks(parent, tensor) {
  const table = wide_table(parent, `Checks of the gradient of ${tensor.name}`, "wide checks");
  const head = html(html(table, "thead"), "tr"), body = html(table, "tbody");
  for (const text of ["check of", "verdict", "gradient", "difference of the loss", "relative error"]) html(head, "th", "", text).scope = "col";
  const line = (what, check) => {
    const kind = verdict(check), row = html(body, "tr");
    html(row, "th", "", what).scope = "row";
    html(html(row, "td"), "span", `tag ${kind}`, { good: "✓ agrees", kink: "◇ not differentiable here", hidden: "? hidden by rounding", bad: "✗ differs" }[kind]);
    html(row, "td", "", exact(check.analytic));
    html(row, "td", "", kind === "kink" ? `${short(check.left)} left, ${short(check.right)} right` : exact(check.numeric));
    html(row, "td", "", kind === "kink" ? "–" : check.passed && check.error > 1e-6 ? "rounding of the loss" : short(check.error));
  };
  for (const e of tensor.explained) line(tensor.shape.length ? index_text(tensor.shape, e.element) : tensor.name, e.check);
  if (tensor.direction) line("a random direction", tensor.direction);
}

/// Where one element's gradient comes from: upstream times local derivative, term by term.
function draw_terms(parent, tensor, one) {
  const name = `d loss / d ${tensor.name}${tensor.shape.length ? index_text(tensor.shape, one.element) : ""}`;
  const factor = v => numeric(v) < 0 ? `(${short(v)})` : short(v), parts = [];
  if (numeric(one.before) !== 0) parts.push(`${short(one.before)} from before`);
  if (numeric(one.seed) !== 0) parts.push(`${short(one.seed)} where backward begins`);
  for (const term of one.terms.slice(0, 6)) parts.push(`${factor(term.upstream)} × ${factor(term.local)}`);
  if (one.terms.length > 6) parts.push(`${one.terms.length - 6} more terms`);
  if (numeric(one.rest) !== 0) parts.push(`${factor(one.rest)} of ${one.others} others`);
  html(parent, "div", "formula", `${name} = ${parts.join(" + ") || "0"} = ${short(one.sum)}`);
  if (one.terms.length + one.others === 0) return;
  const table = wide_table(parent, `Contributions to ${name}`);
  const head = html(html(table, "thead"), "tr"), body = html(table, "tbody"), foot = html(table, "tfoot");
  for (const text of ["through", "step", "upstream", "× local", "= product"]) html(head, "th", "", text).scope = "col";
  for (const term of one.terms) {
    const row = html(body, "tr"), y = tensors[term.tensor];
    html(row, "td", "", `${y.name}${y.shape.length ? index_text(y.shape, term.element) : ""}`);
    link(html(row, "td"), term.step, `${term.step} ${steps[term.step - 1].op}`);
    for (const v of [term.upstream, term.local, term.product]) html(row, "td", "", exact(v));
  }
  const line = (label, v, place = body) => {
    const row = html(place, "tr"), cell = html(row, "th", "", label);
    cell.colSpan = 4;
    cell.scope = "row";
    html(row, "td", "", exact(v));
  };
  if (one.others > 0) line(`${one.others} others, not listed`, one.rest);
  if (numeric(one.before) !== 0) line("there before backward", one.before);
  if (numeric(one.seed) !== 0) line("where backward begins", one.seed);
  line("sum", one.sum, foot);
  line("gradient as backward left it", one.gradient, foot);
  if (one.zeros > 0) html(parent, "p", "caption", `${plural(one.zeros, "term")} left out whose upstream gradient or local derivative is 0`);
}

function draw_explanation(parent, tensor) {
  const all = tensor.explained, index = Math.min(state.element, all.length - 1), one = all[index], place = html(parent, "div");
  html(place, "h3", "", "Where the gradient comes from");
  const choices = html(place, "div", "choose"), label = html(choices, "label", "", "element "), select = html(label, "select");
  all.forEach((e, i) => {
    const option = html(select, "option", "", tensor.shape.length ? index_text(tensor.shape, e.element) : "the number");
    option.value = i;
    option.selected = i === index;
  });
  select.addEventListener("change", () => { state.element = Number(select.value); draw_tensor(); });
  select.id = "element";
  draw_terms(place, tensor, one);
  if (checks_of(tensor).length) draw_checks(place, tensor);
}

function draw_tensor() { redraw($("tensor"), draw_tensor_anew); }
function draw_tensor_anew() {
  const card = $("tensor"), t = state.tensor;
  card.hidden = t === null;
  if (t === null) return;
  const tensor = tensors[t];
  const heading = html(card, "h2", "", `${tensor.name} `);
  const all = checks_of(tensor), bad = all.filter(c => verdict(c) === "bad").length;
  if (bad) html(heading, "span", "tag bad", `✗ ${bad} of ${plural(all.length, "check")} failed`);
  else if (all.some(c => verdict(c) === "kink")) html(heading, "span", "tag kink", "◇ not differentiable everywhere");
  else if (all.some(c => verdict(c) === "good")) html(heading, "span", "tag good", "✓ gradient checked");
  else if (all.length) html(heading, "span", "tag", "? hidden by rounding");
  const facts = html(card, "p", "facts");
  html(facts, "span", "", `${tensor.role} of shape (${tensor.shape.join(", ")}), ${tensor.dtype}`);
  step_links(facts, "written by step", made_by[t]);
  step_links(facts, "read by", read_by[t]);
  if (tensor.complete) step_links(facts, "gradient complete at", [tensor.complete]);
  const choices = html(card, "div", "choose");
  const box = (text, on, change) => {
    const label = html(choices, "label"), input = html(label, "input");
    input.type = "checkbox";
    input.id = text.replaceAll(" ", "-");
    input.checked = on;
    label.append(text);
    input.addEventListener("change", () => change(input.checked));
    return input;
  };
  box("stay with this tensor", state.pinned, on => { state.pinned = on; remember(); });
  if (tensor.gradient !== undefined) box("same colours for value and gradient", state.same, on => { state.same = on; draw_tensor(); });
  const pair = html(card, "div", "pair");
  let limit;
  if (state.same && tensor.gradient !== undefined) {
    const both = [t, tensor.gradient].map(x => version_at(tensors[x], state.at));
    limit = Math.max(...both.map(v => v ? limit_of(v.numbers || [v.fill]) : 0));
  }
  const pick = i => { const k = (tensor.explained || []).findIndex(e => e.element === i); if (k >= 0) { state.element = k; draw_tensor(); } };
  draw_values(pair, "Value", t, limit, pick);
  if (tensor.gradient !== undefined) draw_values(pair, "Gradient", tensor.gradient, limit, pick);
  else html(html(pair, "div"), "p", "caption", "no gradient reaches this tensor");
  if (tensor.explained) draw_explanation(card, tensor);
  else if (tensor.gradient !== undefined) html(card, "p", "caption", "This gradient is not among those that the page explains.");
}
)js";

}  // namespace hedgehog
