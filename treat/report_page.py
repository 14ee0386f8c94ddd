"""What stands around a report: its head, style and script; `treat.report` fills it.

The script reads `PAIRS`, which the page gives it, and moves the slider of each pair.
"""

HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>{style}</style></head><body><main>
"""  # noqa: E501
FOOT = "</main></body></html>\n"

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f23; --dim: #626a73; --paper: #fff; --line: #d9dde2;
  --accent: #0b62c4; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7eaee; --dim: #9aa3ad; --paper: #15181c;
  --line: #343a42; --accent: #6cb0ff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 76rem; margin: auto; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
small, .small { color: var(--dim); font-size: .85em; font-weight: normal; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child { text-align: left; }
tbody th { font-weight: normal; }
.clear { color: var(--accent); font-weight: 600; }
.curves { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
svg { width: 100%; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .axis { fill: var(--dim); font-size: 10px; } svg .end { text-anchor: end; }
svg polyline { fill: none; stroke: var(--accent); stroke-width: 2; stroke-linejoin: round; }
svg .base { stroke: var(--line); } svg .kept { stroke: var(--dim); stroke-dasharray: 3 3; }
.controls { display: flex; flex-wrap: wrap; gap: 1rem; }
#gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr));
  gap: 1.2rem; }
figure { margin: 0; }
.slider { position: relative; overflow: hidden; border-radius: 4px; background: var(--line); }
.slider img { position: absolute; inset: 0; width: 100%; height: 100%;
  image-rendering: pixelated; }
.slider .line { position: absolute; top: 0; bottom: 0; width: 2px; background: #fff;
  box-shadow: 0 0 3px #000; pointer-events: none; }
.slider input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0;
  cursor: ew-resize; }
.slider:focus-within { outline: 2px solid var(--accent); outline-offset: 2px; }
figcaption { color: var(--dim); font-size: .85rem; }
"""

SCRIPT = """
const $ = id => document.getElementById(id), gallery = $('gallery'), cards = [];
const names = Object.keys(PAIRS[0].plain);
$('left').value = names[0]; $('right').value = names[names.length - 1];
for (const pair of PAIRS) {
  const card = document.createElement('figure'), box = document.createElement('div');
  const right = new Image(), left = new Image(), line = document.createElement('div');
  const input = document.createElement('input'), text = document.createElement('figcaption');
  box.className = 'slider'; line.className = 'line'; box.style.aspectRatio = pair.ratio;
  input.type = 'range'; input.value = 50; input.setAttribute('aria-label', 'before and after');
  text.textContent = pair.prompt + ' (seed ' + pair.seed + ')';
  const cut = () => {
    left.style.clipPath = 'inset(0 ' + (100 - input.value) + '% 0 0)';
    line.style.left = 'calc(' + input.value + '% - 1px)';
  };
  input.addEventListener('input', cut); cut();
  box.append(right, left, line, input); card.append(box, text); gallery.append(card);
  cards.push([pair, left, right]);
}
const show = () => {
  const kind = $('heat').checked ? 'heat' : 'plain';
  for (const [pair, left, right] of cards) {
    left.src = pair[kind][$('left').value]; right.src = pair[kind][$('right').value];
    left.alt = $('left').value; right.alt = $('right').value;
  }
};
for (const id of ['left', 'right', 'heat']) $(id).addEventListener('change', show);
show();
"""
