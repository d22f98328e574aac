#pragma once

namespace hedgehog {

/// The panel of linear attention, the gradient flow, and the start of the page.
inline constexpr const char* kStepPageAttention = R"js(
/// S and z after token i: sums of phi_k(k_j) v_j^T and of phi_k(k_j) over the tokens of i's document up to it.
function states_of(attention, head) {
  const { shown, features: F, columns: V, document_start: start } = attention, z = new Array(shown * F).fill(0);
  for (let t = 0; t < shown; ++t)
    for (let f = 0; f < F; ++f) z[t * F + f] = head.phi[t * F + f] + (t > (start[t] ?? 0) ? z[(t - 1) * F + f] : 0);
  const S = token => {
    const sums = new Array(F * V).fill(0);
    for (let t = start[token] ?? 0; t <= token; ++t)
      for (let f = 0; f < F; ++f) for (let c = 0; c < V; ++c) sums[f * V + c] += head.phi[t * F + f] * head.v[t * V + c];
    return sums;
  };
  return { z: z.map(v => Number(v.toPrecision(9))), S: token => S(token).map(v => Number(v.toPrecision(9))) };
}

/// The forward step whose attention belongs to the current one.
function attention_step() {
  const step = steps[state.at - 1], with_attention = s => s?.attention ? s : s?.attention_at ? steps[s.attention_at - 1] : null;
  return with_attention(step) ?? (step?.partner ? with_attention(steps[step.partner - 1]) : null);
}

function draw_attention() { redraw($("attention"), draw_attention_anew); }
function draw_attention_anew() {
  const card = $("attention"), step = attention_step();
  card.hidden = !step;
  if (!step) return;
  const attention = step.attention;
  html(card, "h2", "", "Linear attention beside softmax");
  if (attention.note) { html(card, "p", "caption", `Not drawn: ${attention.note}.`); return; }
  const { shown, tokens, features: F, columns: V } = attention;
  state.head = Math.min(state.head, attention.heads.length - 1);
  state.token = Math.min(state.token ?? shown - 1, shown - 1);
  const head = attention.heads[state.head];
  const notes = [];
  if (attention.batch > 1) notes.push(`the first of ${attention.batch} sequences`);
  if (shown < tokens) notes.push(`the first ${shown} of ${tokens} tokens; what a token sees lies before it, so their weights are whole`);
  if (attention.unmapped) notes.push("queries and keys as this op reads them, which are features already where another step maps them");
  if (attention.queries !== undefined) notes.push("the maps of two steps alone, taken as those of queries and of keys, in one document");
  if (notes.length) html(card, "p", "caption", `Drawn: ${notes.join("; ")}.`);
  const choices = html(card, "div", "choose"), select = html(html(choices, "label", "", "head "), "select");
  attention.heads.forEach((_, i) => { const o = html(select, "option", "", String(i + 1)); o.value = i; o.selected = i === state.head; });
  select.id = "head";
  select.addEventListener("change", () => { state.head = Number(select.value); draw_attention(); });
  const weights = html(card, "div", "pair"), limit = Math.max(limit_of(head.softmax), limit_of(head.weights));
  const square = (label, numbers) => {
    const place = html(weights, "div");
    html(place, "h3", "", label);
    heat_map(place, { label, rows: shown, columns: shown, numbers, limit, half: true,
      name: i => `token ${Math.floor(i / shown)} sees ${i % shown} with` });
    number_table(place, label.split(" ")[0], label, [shown, shown], numbers);
  };
  square(`Weights of ${attention.map}`, head.weights);
  square("Softmax of the same queries and keys", head.softmax);
  const table = wide_table(card, "What the weights are like"), top = html(html(table, "thead"), "tr"), body = html(table, "tbody");
  for (const text of ["mean over all tokens", attention.map, "softmax"]) html(top, "th", "", text).scope = "col";
  for (const name in head.measures.map) {
    const row = html(body, "tr");
    html(row, "th", "", name).scope = "row";
    for (const v of [head.measures.map[name], head.measures.softmax[name]]) html(row, "td", "", exact(v));
  }
  html(card, "p", "caption", "Entropy in nats: low is spiky. Rank is Spearman's correlation of weights with q · k: 1 is monotone, as " +
    "softmax is within a row.");
  const states = states_of(attention, head), pair = html(card, "div", "pair");
  const left = html(pair, "div");
  html(left, "h3", "", "z after each token: the sum of mapped keys");
  heat_map(left, { label: "z", rows: shown, columns: F, numbers: states.z, limit: limit_of(states.z), half: true,
    name: i => `z after token ${Math.floor(i / F)}, feature ${i % F}`,
    pick: i => { state.token = Math.floor(i / F); if (V) draw_attention(); } });
  number_table(left, "z", "z", [shown, F], states.z);
  if (!V) return;
  const right = html(pair, "div");
  const place = html(right, "div"), label = html(html(right, "div", "choose"), "label", "", "token "), slider = html(label, "input");
  slider.type = "range";
  slider.min = 0;
  slider.max = shown - 1;
  slider.value = state.token;
  const draw_state = () => {
    state.token = Number(slider.value);
    place.textContent = "";
    const numbers = states.S(state.token);
    html(place, "h3", "", `S after token ${state.token}: mapped keys times values`);
    heat_map(place, { label: `S after token ${state.token}`, rows: F, columns: V, numbers, limit: limit_of(numbers),
      name: i => `S[${Math.floor(i / V)}, ${i % V}]` });
    number_table(place, "S", "S", [F, V], numbers);
  };
  slider.addEventListener("input", draw_state);
  draw_state();
}

function draw_layers() {
  const card = $("layers");
  card.hidden = !data.layers.length;
  if (card.hidden) return;
  html(card, "h2", "", "Gradient flow: norms of the parameters' gradients at the end");
  const most = Math.max(...data.layers.map(l => numeric(l.norm)).filter(Number.isFinite), 0) || 1;
  const bar = (place, name, norm, target) => {
    if (target === undefined) html(place, "span", "", name);
    else {
      const node = html(place, "a", "", name);
      node.href = `#step=${tensors[target].complete ?? count}&tensor=${encodeURIComponent(name)}`;
    }
    const room = html(place, "span");
    html(room, "i").style.width = `${Math.min(100, 100 * (Number.isFinite(numeric(norm)) ? numeric(norm) / most : 1))}%`;
    html(place, "b", Number.isFinite(numeric(norm)) ? "" : "bad", short(norm));
  };
  const layers = html(card, "div", "flow");
  for (const layer of data.layers) bar(layers, layer.name, layer.norm);
  const details = html(card, "details");
  html(details, "summary", "", "Parameter by parameter");
  details.addEventListener("toggle", () => {
    if (!details.open || details.children.length > 1) return;
    const all = html(details, "div", "flow");
    for (const layer of data.layers) for (const p of layer.parameters) bar(all, p.name, p.norm, p.tensor);
  });
}

function draw_messages() {
  const place = $("messages"), back = steps.filter(s => s.direction === "backward").length;
  $("about").textContent = `${plural(count, "step")}, ${count - back} forward and ${back} backward: walk with the slider or ← and →`;
  for (const text of data.warnings) html(place, "p", "message", `⚠ ${text}`).setAttribute("role", "note");
  const told = (text, targets) => {
    if (!targets.length) return;
    const p = html(place, "p", "message", `✗ ${text}: `);
    p.setAttribute("role", "note");
    targets.slice(0, 8).forEach(([step, words, name], i) => {
      if (i) p.append(", ");
      const node = link(p, step, words);
      if (name !== undefined) node.href += `&tensor=${encodeURIComponent(name)}`;
    });
    if (targets.length > 8) p.append(` and ${targets.length - 8} more`);
  };
  const failing = tensors.filter(t => checks_of(t).some(c => verdict(c) === "bad"));
  told("gradients that fail their check", failing.map(t => [t.complete, t.name, t.name]));
  told("steps that wrote numbers that are not finite", steps.flatMap((s, i) => s.finite === false ? [[i + 1, `${i + 1} ${s.op}`]] : []));
  for (const text of data.notices) html(place, "p", "message notice", text).setAttribute("role", "note");
}

function draw() {
  $("scrubber").value = state.at;
  $("scrubber").setAttribute("aria-valuetext", `step ${state.at}: ${title_of(state.at)}`);
  $("where").textContent = `step ${state.at} of ${count}: ${title_of(state.at)}`;
  for (const id of ["first", "back"]) $(id).setAttribute("aria-disabled", String(state.at === 0));
  for (const id of ["last", "forth"]) $(id).setAttribute("aria-disabled", String(state.at === count));
  const scope = state.at && steps[state.at - 1].scope;
  // while it plays, reading every step aloud would never end
  if (!state.playing) $("live").textContent = `Step ${state.at} of ${count}: ${title_of(state.at)}${scope ? ` in ${scope}` : ""}`;
  draw_step();
  draw_graph();
  draw_tensor();
  draw_attention();
  reveal(state.at);
}

function keys(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || $("help").open) return;
  const target = event.target, writing = target.matches("input[type=search], select");
  const pressed = target.matches("button, summary, a, input[type=checkbox]");
  if (event.key === "Escape" && target === $("search")) { $("search").value = ""; search(); $("main").focus(); return; }
  // a table that scrolls has the arrows for itself
  if (writing || (target.matches(".wide") && event.key.length > 1)) return;
  const ranged = target.matches("input[type=range]") && target !== $("scrubber");
  const actions = { ArrowLeft: () => go(state.at - 1), ArrowRight: () => go(state.at + 1), Home: () => go(0), End: () => go(count),
    " ": () => play(!state.playing), "/": () => $("search").focus(), "?": () => $("help").showModal() };
  if (!(event.key in actions) || (ranged && event.key.length > 1) || (pressed && event.key === " ")) return;
  event.preventDefault();
  actions[event.key]();
}

function dark() {
  const own = document.documentElement.dataset.theme;
  return own ? own === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
function show_theme() { $("theme").textContent = dark() ? "Light" : "Dark"; }

function start() {
  draw_messages();
  const top = html($("program"), "ul");
  top.setAttribute("role", "tree");
  top.setAttribute("aria-label", "Steps by scope");
  for (const node of tree) { tree_item(top, node); unfold(node, true); }
  if (top.firstChild) top.firstChild.tabIndex = 0;
  $("program").addEventListener("keydown", tree_keys);
  $("scrubber").max = count;
  $("scrubber").addEventListener("input", () => go(Number($("scrubber").value)));
  $("first").addEventListener("click", () => go(0));
  $("back").addEventListener("click", () => go(state.at - 1));
  $("forth").addEventListener("click", () => go(state.at + 1));
  $("last").addEventListener("click", () => go(count));
  $("play").addEventListener("click", () => play(!state.playing));
  $("speed").addEventListener("change", () => { if (state.playing) play(true); });
  $("ask").addEventListener("click", () => $("help").showModal());
  $("search").addEventListener("input", search);
  $("search").addEventListener("keydown", event => {
    if (event.key === "Enter" || event.key === "ArrowDown") {
      const first = $("found").querySelector("button");
      if (first) { if (event.key === "Enter") first.click(); else first.focus(); }
      event.preventDefault();
    }
  });
  $("found").addEventListener("keydown", event => {
    if (event.key !== "ArrowDown" && event.key !== "ArrowUp") return;
    const item = event.target.closest("li"), up = event.key === "ArrowUp", to = up ? item?.previousSibling : item?.nextSibling;
    (to?.querySelector("button") ?? (up ? $("search") : null))?.focus();
    event.preventDefault();
  });
  const repaint = () => { show_theme(); draw(); draw_strip(); };
  $("theme").addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; repaint(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  document.addEventListener("keydown", keys);
  addEventListener("hashchange", from_address);
  let wait = 0, before = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === before) return;
    before = innerWidth;
    clearTimeout(wait);
    wait = setTimeout(() => { draw(); draw_strip(); }, 100);
  });
  show_theme();
  draw_layers();
  if (location.hash.length > 1) from_address();
  else go(Math.min(1, count));
  draw_strip();
}
start();
)js";

}  // namespace hedgehog
