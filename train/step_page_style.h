#pragma once

namespace hedgehog {

/// What the stepper's page adds to the style of report.html: the reader's choice of light or dark, and the layout.
inline constexpr const char* kStepPageStyle = R"css(
:root, :root[data-theme="light"] { --page: #ffffff; --ink: #1d2430; --soft: #55606f; --line: #d9dee6; --panel: #f6f8fa; --one: #1a5cc8;
  --two: #b53a08; --three: #12703a; --bad: #b3123c; --edge: #818b99; --low: #2166ac; --middle: #f4f5f7; --high: #e66101; --odd: #c51b8a; }
@media (prefers-color-scheme: dark) { :root { --page: #12161c; --ink: #e4e9f0; --soft: #9aa6b5; --line: #303844; --panel: #1a2028;
  --one: #6cb0ff; --two: #ff9d5c; --three: #5fd38a; --bad: #ff8095; --edge: #6b7787; --low: #5aa9ff; --middle: #232b35; --high: #ff9443;
  --odd: #ff7ac8; } }
:root[data-theme="dark"] { --page: #12161c; --ink: #e4e9f0; --soft: #9aa6b5; --line: #303844; --panel: #1a2028; --one: #6cb0ff;
  --two: #ff9d5c; --three: #5fd38a; --bad: #ff8095; --edge: #6b7787; --low: #5aa9ff; --middle: #232b35; --high: #ff9443; --odd: #ff7ac8; }
:root[data-theme="light"] { color-scheme: light; }
:root[data-theme="dark"] { color-scheme: dark; }
html { overflow-y: scroll; }
body { max-width: 80rem; padding: 1rem 1rem 4rem; font-size: 15px; }
header { display: flex; align-items: baseline; justify-content: space-between; gap: 1rem; flex-wrap: wrap; }
h1 { margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2 { margin: 0 0 .6rem; font-size: 1.05rem; }
h3 { margin: .4rem 0 .3rem; font-size: .95rem; overflow-wrap: anywhere; }
a { color: var(--one); }
button, select, input[type=search] { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--edge); border-radius: .35rem;
  padding: .2rem .6rem; min-height: 2rem; max-width: 100%; }
button { cursor: pointer; }
button:hover { border-color: var(--one); }
button[aria-disabled=true] { color: var(--edge); cursor: default; border-color: var(--line); }
:focus-visible { outline: 2px solid var(--one); outline-offset: 1px; }
kbd { border: 1px solid var(--edge); border-radius: .25rem; padding: 0 .3rem; font-size: .8em; }
[hidden] { display: none !important; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: .3rem; background: var(--page); padding: .3rem .6rem; z-index: 9; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
.message { border-left: .25rem solid var(--two); background: var(--panel); padding: .4rem .8rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.message.notice { border-color: var(--one); }
.timeline { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--line); padding: .5rem 0; margin-bottom: 1rem; }
.timeline .row { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem; }
.timeline button { min-width: 2.3rem; }
#where { margin-left: auto; color: var(--soft); font-variant-numeric: tabular-nums; }
.timeline canvas { display: block; width: calc(100% - 16px); height: 8px; margin: .5rem 8px 0; border-radius: 4px; }
.timeline input { display: block; width: 100%; margin: .1rem 0 0; accent-color: var(--one); }
.layout { display: grid; grid-template-columns: 16rem minmax(0, 1fr); gap: 1.2rem; align-items: start; }
.layout > * { min-width: 0; }
#side { position: sticky; top: 7.2rem; max-height: calc(100vh - 8rem); display: flex; flex-direction: column; }
#side input { width: 100%; }
#found { list-style: none; margin: .3rem 0; padding: 0; overflow-y: auto; max-height: 18rem; flex: none; border: 1px solid var(--line); border-radius: .35rem; }
#found button { display: block; width: 100%; text-align: left; border: 0; border-radius: 0; background: none; overflow-wrap: anywhere; }
#found button:hover, #found button:focus-visible { background: var(--panel); outline-offset: -2px; }
#found p { margin: .3rem .6rem; }
#program { overflow: auto; margin-top: .6rem; }
[role=tree], #program [role=group] { list-style: none; margin: 0; padding: 0; }
#program [role=group] { padding-left: .8rem; border-left: 1px solid var(--line); margin-left: .45rem; }
[role=treeitem] > span { display: block; padding: .1rem .4rem; border-radius: .3rem; cursor: pointer; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
[role=treeitem] > span:hover { background: var(--panel); }
[role=treeitem]:focus { outline: none; }
[role=treeitem]:focus-visible > span { outline: 2px solid var(--one); outline-offset: -2px; }
[role=treeitem][aria-expanded] > span::before { content: "▸"; display: inline-block; width: 1rem; color: var(--soft); }
[role=treeitem][aria-expanded=true] > span::before { content: "▾"; }
[role=treeitem][aria-current] > span { background: var(--one); color: var(--page); }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .9rem 1rem; margin: 0 0 1rem; min-width: 0; }
.card > :last-child { margin-bottom: 0; }
#step h2 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere; }
.facts { color: var(--soft); margin: .1rem 0 .5rem; overflow-wrap: anywhere; }
.facts span:not(:first-child)::before { content: " · "; }
.tag { display: inline-block; border-radius: .3rem; padding: 0 .45rem; font-size: .8rem; border: 1px solid currentColor; vertical-align: .1rem; margin-right: .4rem; }
.forward { color: var(--one); } .backward { color: var(--two); } .good { color: var(--three); } .bad { color: var(--bad); } .kink { color: var(--two); }
code, .formula { font-family: ui-monospace, monospace; font-size: .88rem; overflow-wrap: anywhere; }
.formula { background: var(--panel); border-radius: .35rem; padding: .4rem .7rem; margin: .3rem 0; white-space: pre-wrap; }
.graph svg { display: block; width: 100%; }
.graph a { cursor: pointer; } .graph a:focus-visible { outline: none; }
.graph rect { fill: var(--panel); stroke: var(--edge); }
.graph a:hover rect, .graph a:focus-visible rect { stroke: var(--one); stroke-width: 2; }
.graph .chosen rect { stroke: var(--one); stroke-width: 2; }
.graph text { fill: var(--ink); font-size: 13px; } .graph .small { fill: var(--soft); font-size: 12px; }
.graph path { fill: none; stroke: var(--edge); stroke-width: 1.3; } .graph marker path { fill: var(--edge); stroke: none; }
.graph .op.forward rect { stroke: var(--one); stroke-width: 2; } .graph .op.backward rect { stroke: var(--two); stroke-width: 2; }
.choose { display: flex; flex-wrap: wrap; align-items: center; gap: .4rem 1rem; margin: 0 0 .7rem; }
.choose label { display: inline-flex; align-items: center; gap: .4rem; max-width: 100%; }
.choose select { min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem; }
.pair > * { min-width: 0; }
.map { position: relative; margin: 0; }
.map canvas { display: block; image-rendering: pixelated; border: 1px solid var(--line); max-width: 100%; cursor: crosshair; }
.map .scale { display: flex; align-items: center; gap: .4rem; margin: .35rem 0; color: var(--soft); font-size: .82rem; flex-wrap: wrap; }
.map .scale i { width: 7rem; height: .7rem; border: 1px solid var(--line); background: linear-gradient(to right, var(--low), var(--middle), var(--high)); }
.map .scale.half i { background: linear-gradient(to right, var(--middle), var(--high)); }
.map output:empty { display: none; }
.map output { display: block; font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere; }
.map .tip { top: 0; left: 0; z-index: 3; font-family: ui-monospace, monospace; }
.statistics { color: var(--soft); font-size: .85rem; margin: .2rem 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-height: 26rem; overflow-y: auto; }
details button { margin: .3rem .3rem 0 0; }
.numbers th, .numbers td { padding: .1rem .6rem .1rem 0; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; font-size: .82rem; }
.numbers th { color: var(--soft); font-weight: 400; } .numbers th:first-child, .numbers td:first-child { text-align: left; }
.numbers tfoot td, .numbers tfoot th { font-weight: 600; color: var(--ink); border-bottom: 0; }
details { margin: .3rem 0; } summary { cursor: pointer; color: var(--one); }
.checks { margin-top: .8rem; } .checks .tag { margin: .1rem 0; }
.few { margin: 0 0 .4rem; font-family: ui-monospace, monospace; overflow-wrap: anywhere; }
.flow { display: grid; grid-template-columns: fit-content(11rem) minmax(0, 1fr) 5rem; gap: .2rem .7rem; align-items: center; }
.flow > span, .flow > a { overflow-wrap: anywhere; } .flow b { font-weight: 400; font-variant-numeric: tabular-nums; }
.flow i { display: block; height: .8rem; background: var(--one); border-radius: .15rem; min-width: 1px; }
dialog { color: var(--ink); background: var(--page); border: 1px solid var(--edge); border-radius: .5rem; max-width: min(34rem, 92vw); }
dialog td, dialog th { padding: .2rem .8rem .2rem 0; border: 0; } dialog h2 { margin: 0 0 .5rem; }
@media (max-width: 52rem) {
  .layout { grid-template-columns: minmax(0, 1fr); }
  #side { position: static; max-height: none; }
  #program { max-height: 14rem; border: 1px solid var(--line); border-radius: .35rem; padding: .3rem; }
  #where { margin-left: 0; width: 100%; }
  .card { padding: .7rem .7rem; }
}
)css";

}  // namespace hedgehog
