// Figures by name in; a few small drawings out, each of what belongs on one scale.

import { make } from "./api.js";
import { extent } from "./figures.js";

const GROUPS = [
  ["Pixel loss", /^pixel$/],
  ["Offline loss", /^(watch_)?offline$/],
  ["Artifact frequency", /^(reward|second|valid.artifact)_frequency$/],
  ["Guards (in the spreads or scales of their meters)", /^change_/],
  ["Loss", /(^|_)loss$/],
  ["Precision of held-out maps", /^valid.(pixel_ap|f1|iou_1px)$/],
  ["Memory (GB)", /^(host|device)_memory$/, 1e-9],
];
const [WIDTH, HEIGHT, LEFT, TOP, FOOT] = [420, 190, 52, 12, 22];
const SAID = /^(valid.|change_)|_(frequency|memory)$/g; // what a title says already

export function draw(curves, groups, others) {
  const names = Object.keys(curves).sort();
  const taken = new Set();
  const shown = GROUPS.map(([title, pattern, unit = 1]) => {
    const inside = names.filter((name) => pattern.test(name));
    inside.forEach((name) => taken.add(name));
    return inside.length ? figure(title, inside, scaled(curves, inside, unit)) : null;
  });
  groups.replaceChildren(...shown.filter(Boolean));
  const rest = names.filter((name) => !taken.has(name));
  others.replaceChildren(...rest.map((name) => figure(name, [name], curves)));
  others.parentElement.hidden = !rest.length;
}

function scaled(curves, names, unit) {
  const line = (name) => curves[name].map(([step, value]) => [step, unit * value]);
  return Object.fromEntries(names.map((name) => [name, line(name)]));
}

function figure(title, names, curves) {
  const all = names.flatMap((name) => curves[name]);
  const range = (i) => {
    const [low, high] = extent(all.map((point) => point[i]));
    return low === high ? [low - 0.5, high + 0.5] : [low, high];
  };
  const [x0, x1] = range(0), [y0, y1] = range(1);
  const x = (step) => LEFT + ((step - x0) / (x1 - x0)) * (WIDTH - LEFT - 8);
  const y = (value) => TOP + ((y1 - value) / (y1 - y0)) * (HEIGHT - TOP - FOOT);
  const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  drawing.append(svg("title", {}, title));
  for (const value of [y0, (y0 + y1) / 2, y1]) {
    drawing.append(
      svg("line", { class: "axis", x1: LEFT, x2: WIDTH - 8, y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, short(value)),
    );
  }
  const [first, last] = [Math.ceil(x0), Math.floor(x1)]; // the one step there is has a margin
  const ends = first === last ? [[first, "middle"]] : [[first, "start"], [last, "end"]];
  for (const [step, anchor] of ends) {
    const place = { x: x(step), y: HEIGHT - 5, "text-anchor": anchor };
    drawing.append(svg("text", place, short(step)));
  }
  names.forEach((name, i) => drawing.append(line(curves[name], x, y, `c${i % 6}`)));
  const legend = names.map((name, i) => {
    const last = short(curves[name].at(-1)[1]);
    const said = names.length > 1 ? name.replace(SAID, "").replaceAll("_", " ") : "";
    return make("span", {}, make("b", { className: `c${i % 6}` }, "— "), `${said} ${last}`);
  });
  const below = make("div", { className: "legend" }, ...legend);
  return make("figure", {}, make("figcaption", {}, title), drawing, below);
}

function line(points, x, y, colour) {
  if (points.length === 1) {
    return svg("circle", { class: colour, cx: x(points[0][0]), cy: y(points[0][1]), r: 3 });
  }
  const places = points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`);
  return svg("polyline", { class: colour, points: places.join(" ") });
}

export function svg(tag, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export function short(value) {
  return Number.isInteger(value) ? String(value) : Number(value.toPrecision(3)).toString();
}
