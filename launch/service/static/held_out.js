// What a detector makes of held-out images in; a table, a reliability diagram, the worst cases out.

import { at, make } from "./api.js";
import { short, svg } from "./curves.js";
import { lay, show } from "./pictures.js";

const COLUMNS = {
  images: "images",
  pixel_ap: "pixel AP",
  iou_1px: "IoU ±1 px",
  f1: "F1",
  image_auroc: "image AUROC",
  false_positive_images: "false alarms",
  calibration_error: "calibration error",
};
const SHARES = ["pixel_ap", "iou_1px", "f1", "image_auroc"]; // of 1, where more is better
const KINDS = ["category", "source", "generator", "overall"];
const [SIDE, LEFT, FOOT] = [300, 34, 24];

export function heldOut(job, told) {
  at("held").hidden = !told.worst.length;
  if (!told.worst.length) return;
  at("categories").replaceChildren(...lines(told.groups));
  at("reliability").replaceChildren(diagram(told.reliability));
  at("from").value = told.threshold;
  const layers = told.worst.map((one) => card(job, one));
  at("cases").replaceChildren(...layers.map((one) => one.figure));
  const look = () => {
    at("from-shown").textContent = Number(at("from").value).toFixed(2);
    for (const { canvas, one } of layers) {
      lay(canvas, job, one[at("layer").value], Number(at("from").value));
    }
  };
  at("layer").onchange = at("from").oninput = look;
  look();
}

function lines(groups) {
  const names = Object.keys(COLUMNS);
  const heads = names.map((name) => make("th", {}, COLUMNS[name]));
  const made = [make("tr", {}, make("th"), ...heads)];
  for (const kind of KINDS) {
    const found = Object.entries(groups[kind] ?? {});
    if (kind !== "overall" && found.length < 2) continue; // the same as all
    if (kind !== "overall") {
      const title = make("th", { scope: "row", colSpan: names.length + 1 }, `by ${kind}`);
      made.push(make("tr", {}, title));
    }
    for (const [name, figures] of found) {
      const cells = names.map((one) => cell(one, figures[one]));
      const head = make("th", { scope: "row" }, kind === "overall" ? "all" : name);
      made.push(make("tr", { className: kind }, head, ...cells));
    }
  }
  return made;
}

function cell(name, value) {
  if (value === null || value === undefined) return make("td", {}, "-");
  const made = make("td", {}, name === "images" ? String(value) : value.toFixed(3));
  if (!SHARES.includes(name)) return made;
  const bar = make("i", { className: "bar" });
  bar.style.width = `${100 * value}%`;
  made.append(bar);
  return made;
}

function card(job, one) {
  const image = make("img", { alt: one.prompt || one.key }), canvas = make("canvas");
  show(image, job, one.image);
  const share = (value) => `${(100 * value).toFixed(1)} %`;
  const wrong = `missed ${share(one.missed)}, false alarm ${share(one.false_alarm)}`;
  const figure = make(
    "figure",
    {},
    make("div", { className: "layer" }, image, canvas),
    make("figcaption", {}, one.category || one.source),
    make("p", { className: "quiet" }, one.prompt || one.key),
    make("p", { className: "quiet" }, `${wrong}; error ${short(one.error)}`),
  );
  return { figure, canvas, one };
}

function diagram(bins) {
  const x = (value) => LEFT + value * (SIDE - LEFT - 8);
  const y = (value) => 8 + (1 - value) * (SIDE - 8 - FOOT);
  const drawing = svg("svg", { viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img", class: "square" });
  drawing.append(svg("title", {}, "predicted against labelled share of artifact"));
  for (const value of [0, 0.5, 1]) {
    drawing.append(
      svg("line", { class: "axis", x1: x(0), x2: x(1), y1: y(value), y2: y(value) }),
      svg("text", { x: LEFT - 5, y: y(value) + 4, "text-anchor": "end" }, String(value)),
      svg("text", { x: x(value), y: SIDE - 8, "text-anchor": "middle" }, String(value)),
    );
  }
  const most = Math.max(...bins.map((one) => Math.log10(1 + one.pixels)));
  for (const one of bins) {
    const top = y((0.25 * Math.log10(1 + one.pixels)) / most);
    const place = { x: x(one.low) + 1, width: x(one.high) - x(one.low) - 2 };
    const bar = svg("rect", { class: "pixels", ...place, y: top, height: y(0) - top });
    bar.append(svg("title", {}, `${one.pixels} pixels`));
    drawing.append(bar);
  }
  const places = bins.map((one) => [x(one.predicted).toFixed(1), y(one.labelled).toFixed(1)]);
  drawing.append(
    svg("line", { class: "even", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
    svg("polyline", { class: "c0", points: places.map((place) => place.join()).join(" ") }),
    ...places.map(([cx, cy]) => svg("circle", { class: "c0 dot", cx, cy, r: 3.5 })),
  );
  return drawing;
}
