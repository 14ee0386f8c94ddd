// A run folder's pictures in; base against treated, prompts by steps, and the newest maps out.

import { at, call, JOBS, make } from "./api.js";

const [COLUMNS, ROWS] = [8, 8];
const fetched = new Map();
let told = "";
let every = false;

// Pictures are fetched, as an <img> cannot send a token; each once.
function address(job, name) {
  if (!fetched.has(name)) {
    const path = `${JOBS}/${encodeURIComponent(job)}/pictures/${encodeURIComponent(name)}`;
    const coming = call(path).then((a) => a.blob()).then((b) => URL.createObjectURL(b));
    coming.catch(() => fetched.delete(name));
    fetched.set(name, coming);
  }
  return fetched.get(name);
}

async function show(image, job, name) {
  image.dataset.wanted = name;
  const found = await address(job, name).catch(() => null);
  if (found && image.dataset.wanted === name) image.src = found;
}

export function pictures(job, listed) {
  const text = JSON.stringify(listed);
  if (text === told) return;
  told = text;
  compare(job, listed);
  maps(job, listed.sheets);
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
  const chosen = () => whole.find((look) => look.step === Number(at("step").value));
  const slide = () => {
    const row = Number(at("prompt").value);
    show(at("before"), job, base.names[row]);
    show(at("after"), job, chosen().names[row]);
  };
  at("prompt").onchange = at("step").onchange = slide;
  const part = () => (at("after").style.clipPath = `inset(0 0 0 ${at("edge").value}%)`);
  at("edge").oninput = part;
  part();
  slide();
  const pick = (row, step) => {
    at("prompt").value = row;
    if (step !== base.step) at("step").value = step;
    slide();
  };
  const grid = () => table(job, whole, named.slice(0, every ? rows : ROWS), pick);
  at("all").hidden = every || rows <= ROWS;
  at("all").onclick = () => grid((at("all").hidden = every = true));
  grid();
}

function table(job, looks, named, pick) {
  const last = looks.length - 1, columns = Math.min(COLUMNS, looks.length);
  const some = Array.from({ length: columns }, (_, i) => {
    return looks[Math.round((i * last) / (columns - 1))];
  });
  const cell = (look, row) => {
    const image = make("img", { alt: `${named[row]}, step ${look.step}`, loading: "lazy" });
    image.onclick = () => pick(row, look.step);
    show(image, job, look.names[row]);
    return make("td", {}, image);
  };
  const heads = some.map((look) => make("th", {}, look.step ? `step ${look.step}` : "base"));
  const lines = named.map((name, row) => {
    const head = make("th", { scope: "row" }, name);
    return make("tr", {}, head, ...some.map((look) => cell(look, row)));
  });
  at("grid").replaceChildren(make("tr", {}, make("th"), ...heads), ...lines);
}

function maps(job, sheets) {
  at("maps").hidden = !sheets.length;
  if (!sheets.length) return;
  choices(at("sheet"), sheets.map((sheet) => [sheet.name, sheet.step]), sheets.at(-1).name);
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
