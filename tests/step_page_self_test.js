// Put into a page of the stepper by test_step_page_browser.sh, before the page's own script. Once the page has started it uses it as a
// reader would and leaves a verdict in the element #verdict, or sends it to the page that shows this one in a frame.
"use strict";
const problems = [];
addEventListener("error", event => problems.push(`error: ${event.message}`));
addEventListener("unhandledrejection", event => problems.push(`rejection: ${event.reason}`));
const complain = console.error;
console.error = (...all) => { problems.push(`console: ${all.join(" ")}`); complain(...all); };

addEventListener("load", async () => {
  const $$ = id => document.getElementById(id), text = id => $$(id).textContent;
  const steps_of_page = JSON.parse(text("data")).steps;
  const last = steps_of_page.length;
  const check = (what, good) => { if (!good) problems.push(what); };
  const key = (name, target = document.body) => target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  const pause = time => new Promise(done => setTimeout(done, time));
  const at = () => Number($$("scrubber").value);
  const width = what => check(`${what}: the page is wider than the window, ${document.documentElement.scrollWidth} > ${innerWidth}`,
    document.documentElement.scrollWidth <= innerWidth);

  // WCAG 2.1: luminance of sRGB, (lighter + 0.05) / (darker + 0.05) at least 4.5
  const channels = color => (color.match(/[\d.]+/g) ?? []).map(Number);
  const luminance = color => channels(color).slice(0, 3).map(v => v / 255)
    .map(v => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    const box = node.ownerSVGElement && node.parentNode.querySelector("rect");
    if (box) return getComputedStyle(box).fill;
    for (let at = node; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (color !== "transparent" && channels(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const contrast = what => {
    let seen = 0;
    for (const node of document.body.querySelectorAll("*")) {
      if (![...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()) || !node.getClientRects().length) continue;
      if (node.closest("[aria-disabled=true], script, style")) continue;  // what is out of use need not be legible
      const style = getComputedStyle(node), ink = luminance(node.ownerSVGElement ? style.fill : style.color), paper = luminance(behind(node));
      const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
      check(`${what}: contrast of "${node.textContent.trim().slice(0, 30)}" is ${ratio.toFixed(2)}`, ratio >= 4.5);
      ++seen;
    }
    check(`${what}: no text was looked at`, seen > 20);
  };

  check("it opens at step 1", at() === Math.min(1, last));
  width("start");
  const stride = Math.max(1, Math.floor(last / 60)), before = performance.now();
  let drawn = 0;
  for (let s = 0; s <= last; s += stride, ++drawn) {
    $$("scrubber").value = s;
    $$("scrubber").dispatchEvent(new Event("input"));
    check(`step ${s} is not told`, text("live").startsWith(`Step ${s} of ${last}`));
    if (s > 0) check(`step ${s} has no heading`, $$("step").querySelector("h2").textContent.includes(steps_of_page[s - 1].op));
    if (s > 0) check(`step ${s} is not current in the tree`, document.querySelectorAll("[aria-current=step]").length === 1);
    if (s % (3 * stride) === 0) width(`step ${s}`);
  }
  const pace = (performance.now() - before) / drawn;

  const attended = steps_of_page.findIndex(step => step.attention?.heads) + 1;
  if (attended) {
    location.hash = `#step=${attended}`;
    await pause(50);
    check("attention is shown", !$$("attention").hidden);
    const head = $$("attention").querySelector("select");
    head.value = head.options.length - 1;
    head.dispatchEvent(new Event("change"));
    const token = $$("attention").querySelector("input[type=range]");
    const state_after = () => $$("attention").textContent.match(/S after token (\d+)/)?.[1];
    if (token) {
      token.value = 1;
      token.dispatchEvent(new Event("input"));
      check("the state after a token is shown", state_after() === "1");
    }
    for (const picture of $$("attention").querySelectorAll("canvas")) picture.dispatchEvent(new MouseEvent("click", { clientX: 5, clientY: 5 }));
    width("attention");
  } else check("attention is not shown", $$("attention").hidden);

  key("Home");
  check("Home goes to the start", at() === 0);
  key("ArrowRight");
  check("the right arrow goes on", at() === Math.min(1, last));
  key("ArrowLeft");
  check("the left arrow goes back", at() === 0);
  key("End");
  check("End goes to the end", at() === last);
  key("?");
  check("? opens the help", $$("help").open);
  $$("help").close();
  key("/");
  check("/ goes to the search", document.activeElement === $$("search"));
  $$("search").value = steps_of_page[0].op;
  $$("search").dispatchEvent(new Event("input"));
  check("the search finds an op", $$("found").querySelectorAll("button").length > 0);
  $$("search").value = "step that is not there";
  $$("search").dispatchEvent(new Event("input"));
  check("a search without results says so", text("found").includes("nothing found"));
  $$("search").value = "1";
  $$("search").dispatchEvent(new Event("input"));
  key("Enter", $$("search"));
  $$("search").value = "";
  $$("search").dispatchEvent(new Event("input"));
  check("an empty search hides its list", $$("found").hidden);

  location.hash = "#step=2";
  await pause(50);
  check("an address opens its step", at() === Math.min(2, last));
  location.hash = "#step=nonsense";
  await pause(50);
  location.hash = "#step=999999999";
  await pause(50);
  check("a step too far is the last", at() === last);
  $$("play").click();
  check("play begins anew at the end", at() === 0 && text("play").includes("Pause"));
  await pause(1500);
  check("play goes on", at() >= 1);
  key(" ");
  check("space stops it", text("play").includes("Play"));

  const item = document.querySelector("#program [role=treeitem]");
  item.focus();
  key("ArrowLeft", item);
  check("the left arrow folds", item.getAttribute("aria-expanded") === "false");
  key("ArrowRight", item);
  check("the right arrow unfolds", item.getAttribute("aria-expanded") === "true");
  key("ArrowDown", item);
  check("the down arrow moves", document.activeElement !== item && document.activeElement.getAttribute("role") === "treeitem");

  key("End");
  const node = document.querySelector("#graph a");
  node.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  check("a node of the graph can be chosen", document.querySelectorAll("#graph .chosen").length >= 1);
  const pin = $$("stay-with-this-tensor"), same = $$("same-colours-for-value-and-gradient");
  if (same) {
    same.focus();
    same.click();
    check("the focus stays where it was", document.activeElement.id === same.id && $$(same.id).checked);
  }
  const title_of_tensor = () => $$("tensor").querySelector("h2").textContent, pinned = title_of_tensor();
  pin.isConnected ? pin.click() : $$(pin.id).click();
  key("Home");
  check("a tensor that is kept stays", title_of_tensor() === pinned);
  $$(pin.id).click();
  key("End");
  for (const details of document.querySelectorAll("main details")) details.open = true;
  await pause(100);
  contrast("tables open");
  check("the table has numbers", document.querySelectorAll("#tensor .numbers td").length > 0);
  width("tables open");
  const map = document.querySelector("#tensor canvas");
  map.focus();
  const cell = map.parentNode.querySelector("output").textContent;
  check("a cell is read out", / = \S/.test(cell));
  key("ArrowRight", map);
  check("arrows on a picture do not change the step", at() === last);
  const place = map.getBoundingClientRect();
  map.dispatchEvent(new PointerEvent("pointermove", { clientX: place.left + 2, clientY: place.top + 2 }));
  check("the number under the pointer is shown", / = \S/.test(map.parentNode.querySelector(".tip").textContent));
  const theme = getComputedStyle(document.body).backgroundColor;
  $$("theme").click();
  check("the theme changes", getComputedStyle(document.body).backgroundColor !== theme);
  for (const control of document.querySelectorAll("button, input, select, canvas[tabindex], [role=treeitem], nav, section"))
    if (!control.textContent.trim() && !control.getAttribute("aria-label") && !control.closest("label"))
      problems.push(`no label: ${control.outerHTML.slice(0, 80)}`);

  const words = problems.length ? `FAILED: ${problems.slice(0, 10).join(" | ")}` : `passed: ${last} steps, ${pace.toFixed(1)} ms a step`;
  if (parent !== window) return parent.postMessage(words, "*");
  const verdict = document.createElement("p");
  verdict.id = "verdict";
  verdict.textContent = words;
  document.body.append(verdict);
});
