// A run folder's pictures in; base against treated, prompts by steps, and the newest sheet out.

import { at, call, JOBS, make } from "./api.js";
import { levels, paint } from "./heat.js";

const [COLUMNS, ROWS, SMALL] = [8, 8, 200];
const CELL = 128; // pixels of a map in the grid, where it is shown smaller
const WHOLE = 1024;
const fetched = new Map();
let told = "", every = false, cells = [], chosen = null;

function once(key, what) {
  if (!fetched.has(key)) {
    const coming = what();
    coming.catch(() => fetched.delete(key));
    fetched.set(key, coming);
  }
  return fetched.get(key);
}

// Pictures are fetched, as an <img> cannot send a token.
function blob(job, name) {
  const path = `${JOBS}/${encodeURIComponent(job)}/pictures/${encodeURIComponent(name)}`;
  return once(name, async () => (await call(path)).blob());
}

export async function show(image, job, name) {
  image.dataset.wanted = name;
  const address = async () => URL.createObjectURL(await blob(job, name));
  const found = await once(`address ${name}`, address).catch(() => null);
  if (!found || image.dataset.wanted !== name) return;
  image.onload = () => image.classList.toggle("small", image.naturalWidth < SMALL);
  image.src = found;
}

// What lies at or above the threshold; nothing without a name.
export async function lay(canvas, job, name, threshold, side = WHOLE) {
  canvas.dataset.wanted = name ?? "";
  if (!name) return paint(canvas, null);
  const read = async () => levels(await blob(job, name), side);
  const map = await once(`${side} ${name}`, read).catch(() => null);
  if (canvas.dataset.wanted === name) paint(canvas, map, threshold);
}

export function pictures(job, listed) {
  const text = JSON.stringify(listed);
  if (text === told) return;
  told = text;
  compare(job, listed);
  sheets(job, listed.sheets);
}

const threshold = () => Number(at("threshold").value);
const mapped = (look, row) => (at("heated").checked ? look.maps[row] : null);

function heat(job) {
  at("shown").textContent = threshold().toFixed(2);
  for (const { canvas, look, row } of cells) {
    lay(canvas, job, mapped(look, row), threshold(), CELL);
  }
  const [before, after, row] = chosen();
  lay(at("before-map"), job, mapped(before, row), threshold());
  lay(at("after-map"), job, mapped(after, row), threshold());
}

function compare(job, { looks, prompts }) {
  const whole = looks.filter((look) => look.names.length);
  at("compare").hidden = whole.length < 2;
  if (whole.length < 2) return;
  const base = whole[0], rows = Math.min(...whole.map((look) => look.names.length));
  const named = Array.from({ length: rows }, (_, i) => prompts[i] ?? `prompt ${i + 1}`);
  const later = whole.slice(1).map((look) => look.step);
  choices(at("prompt"), named.map((name, i) => [i, name]), 0);
  choices(at("step"), later.map((step) => [step, step]), later.at(-1));
  at("heat").hidden = !whole.some((look) => look.maps.length);
  chosen = () => {
    const step = Number(at("step").value);
    return [base, whole.find((look) => look.step === step), Number(at("prompt").value)];
  };
  const slide = () => {
    const [, after, row] = chosen();
    show(at("before"), job, base.names[row]);
    show(at("after"), job, after.names[row]);
    at("reached").textContent = `step ${after.step}`;
    for (const cell of cells) {
      const here = cell.row === row && [base, after].includes(cell.look);
      cell.button.setAttribute("aria-pressed", here);
    }
    heat(job);
  };
  at("prompt").onchange = at("step").onchange = slide;
  at("heated").onchange = at("threshold").oninput = () => heat(job);
  const part = () => {
    at("over").style.clipPath = `inset(0 0 0 ${at("edge").value}%)`;
    at("line").style.left = `${at("edge").value}%`;
  };
  at("edge").oninput = part;
  part();
  const pick = (row, step) => {
    at("prompt").value = row;
    if (step !== base.step) at("step").value = step;
    slide();
  };
  const grid = () => {
    table(job, whole, named.slice(0, every ? rows : ROWS), pick);
    slide();
  };
  at("all").hidden = every || rows <= ROWS;
  at("all").onclick = () => grid((at("all").hidden = every = true));
  grid();
}

function table(job, looks, named, pick) {
  const last = looks.length - 1, columns = Math.min(COLUMNS, looks.length);
  const some = Array.from({ length: columns }, (_, i) => {
    return looks[Math.round((i * last) / (columns - 1))];
  });
  cells = [];
  const cell = (look, row) => {
    const image = make("img", { alt: `${named[row]}, step ${look.step}` });
    const canvas = make("canvas");
    const button = make("button", { type: "button", className: "cell" }, image, canvas);
    button.onclick = () => pick(row, look.step);
    cells.push({ canvas, button, look, row });
    show(image, job, look.names[row]);
    return make("td", {}, button);
  };
  const heads = some.map((look) => make("th", {}, look.step ? `step ${look.step}` : "base"));
  const lines = named.map((name, row) => {
    const head = make("th", { scope: "row" }, name);
    return make("tr", {}, head, ...some.map((look) => cell(look, row)));
  });
  at("grid").replaceChildren(make("tr", {}, make("th"), ...heads), ...lines);
}

function sheets(job, listed) {
  at("maps").hidden = !listed.length;
  if (!listed.length) return;
  choices(at("sheet"), listed.map((sheet) => [sheet.name, sheet.step]), listed.at(-1).name);
  const look = () => show(at("map"), job, at("sheet").value);
  at("sheet").onchange = look;
  look();
}

// What was chosen by hand stays chosen when the list grows.
function choices(select, pairs, usual) {
  const followed = !select.value || select.value === select.dataset.usual;
  const before = select.value;
  const options = pairs.map(([value, text]) => make("option", { value }, String(text)));
  select.replaceChildren(...options);
  select.value = followed ? String(usual) : before;
  select.dataset.usual = String(usual);
}
