// One job: what it is, followed by the stream of its events. All of it is asked of the service
// anew when the page is opened, so that a reload loses nothing.

import {
  at, call, download, fault, FINAL, get, JOBS, lasting, left, make, post, seldom, size, status,
  steps, stream, when,
} from "./api.js";
import { draw, short } from "./curves.js";
import { add, held } from "./figures.js";
import { heldOut } from "./held_out.js";
import { pictures } from "./pictures.js";

const [EVENTS, LINES] = [200, 400];
const id = decodeURIComponent(location.pathname.split("/").pop());
const path = `${JOBS}/${encodeURIComponent(id)}`;
const WISHED = {
  sample: "The pictures come after the step that it is in.",
  save: "The checkpoint comes after the step that it is in.",
};
let job = null, curves = held(), last = "", place = 0, text = "", listed = "", wishes = [];

async function look() {
  job = await get(path);
  const name = job.user_provided_suffix || job.method.type;
  document.title = `${status(job)}: ${name} - diffdoctor`;
  at("title").textContent = name;
  at("id").textContent =
    `${job.id} · ${job.method.type} · ${job.model || "no model"} · ${when(job.created_at)}` +
    (job.attempt > 1 ? ` · attempt ${job.attempt}` : "");
  at("status").textContent = status(job);
  at("status").className = `status ${job.status}`;
  at("progress").max = job.steps || 1;
  at("progress").value = job.status === "succeeded" ? job.steps || 1 : (job.step ?? 0);
  at("steps").textContent = steps(job) || "-";
  const took = FINAL.includes(job.status) && job.finished_at - job.created_at;
  at("when").textContent = took ? "From first to last" : "Time left";
  at("left").textContent = took ? lasting(took) : left(job) || "-";
  at("error").hidden = !job.error;
  at("error").textContent = job.error?.message ?? "";
  at("settings").textContent = JSON.stringify(job.hyperparameters, null, 2);
  buttons();
  await results();
}

function buttons() {
  const fits = {
    pause: ["queued", "running"].includes(job.status) && !job.pausing,
    resume: job.status === "paused",
    cancel: !FINAL.includes(job.status),
    sample: job.status === "running" && !job.pausing,
    save: job.status === "running" && !job.pausing,
  };
  for (const button of at("acts").children) {
    const act = button.dataset.act;
    button.disabled = !fits[act];
    button.hidden = FINAL.includes(job.status) || (act in WISHED && !wishes.includes(act));
  }
}

async function results() {
  const ids = job.result_files;
  if (ids.join() === listed) return;
  const files = await Promise.all(ids.map((one) => get(`/v1/files/${encodeURIComponent(one)}`)));
  listed = ids.join();
  heldOut(id, await get(`${path}/held_out`));
  const lines = files.map((file) => {
    const button = make("button", { type: "button" }, "Download");
    button.onclick = () => download(file.id, file.filename).catch(fault);
    const bytes = make("span", { className: "quiet" }, size(file.bytes));
    return make("li", {}, button, make("span", {}, file.filename, " ", bytes));
  });
  at("files").replaceChildren(...lines);
  at("results").hidden = !lines.length;
  const summary = files.find((file) => file.filename === "summary.json" && file.bytes < 1e6);
  if (summary) tell(await get(`/v1/files/${encodeURIComponent(summary.id)}/content`));
}

// Figures of a summary; a list of things that have the same figures (categories) is one table.
function tell(summary) {
  at("summary").hidden = false;
  at("told").replaceChildren(...sections("", summary));
}

function sections(title, values) {
  const many = (one) => one !== null && typeof one === "object";
  const plain = Object.entries(values).filter(([, one]) => !many(one));
  const inner = Object.entries(values).filter(([, one]) => many(one));
  const cell = (one) => make("td", {}, typeof one === "number" ? short(one) : String(one ?? "-"));
  const made = [];
  if (plain.length) {
    const lines = plain.map(([name, one]) => make("tr", {}, make("th", {}, name), cell(one)));
    made.push(make("h3", {}, title), make("table", {}, ...lines));
  }
  const flat = inner.length > 1 && inner.every(([, one]) => !Object.values(one).some(many));
  const names = [...new Set(inner.flatMap(([, one]) => Object.keys(one)))];
  const few = inner.some(([, one]) => 2 * Object.keys(one).length < names.length);
  if (!flat || few || names.length > 12) {
    return [...made, ...inner.flatMap(([name, one]) => sections(name, one))];
  }
  const head = make("tr", {}, make("th"), ...names.map((name) => make("th", {}, name)));
  const lines = inner.map(([name, one]) => {
    return make("tr", {}, make("th", {}, name), ...names.map((column) => cell(one[column])));
  });
  return [...made, make("h3", {}, title), make("table", {}, head, ...lines)];
}

async function figures() {
  const found = await get(`${path}/figures`);
  curves = held(found.curves);
  last = found.last;
  drawn();
}

function drawn() {
  const newest = (name) => curves[name]?.at(-1)[1];
  const tile = (place, value, text) => {
    at(place).parentElement.hidden = !value;
    at(place).textContent = value ? text(value) : "";
  };
  tile("pace", newest("seconds"), (value) => `${short(value)} s`);
  tile("host", newest("host_memory"), size);
  tile("device", newest("device_memory"), size);
  at("curves").hidden = !Object.keys(curves).length;
  draw(curves, at("groups"), at("others"));
}

function told(event) {
  const moment = make("time", {}, when(event.created_at));
  return make("li", { className: event.level, data: { id: event.id } }, moment, event.message);
}

async function events() {
  const found = await get(`${path}/events?limit=100`);
  at("events").replaceChildren(...found.data.map(told));
}

async function log() {
  const found = await get(`${path}/log?after=${place}`);
  place = found.next;
  if (!found.text) return;
  text = (text + found.text).split("\n").slice(-LINES).join("\n");
  const box = at("log"), down = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  box.textContent = text;
  if (down) box.scrollTop = box.scrollHeight;
}

const news = seldom(1000, async () => {
  await look();
  await log();
});
const redraw = seldom(500, drawn);
const repicture = seldom(3000, async () => pictures(id, await get(`${path}/pictures`)));

// Closed while nobody looks: a browser has six connections to a place, and each tab takes one.
async function follow() {
  for (let pause = 1000; ; pause = Math.min(2 * pause, 30000)) {
    await seen();
    const until = new AbortController();
    const away = () => document.hidden && until.abort();
    document.addEventListener("visibilitychange", away);
    try {
      const address = `${path}/events?stream=true&after=${encodeURIComponent(last)}`;
      for await (const event of stream(address, until.signal)) {
        pause = 1000;
        fault(null, true);
        news();
        if (event === null) return void repicture();
        heard(event);
      }
    } catch (error) {
      if (!document.hidden) fault(`no connection; trying again (${error.message})`, true);
    }
    document.removeEventListener("visibilitychange", away);
    await new Promise((done) => setTimeout(done, pause));
  }
}

function heard(event) {
  last = event.id;
  if (event.type === "metrics") {
    add(curves, event.data);
    redraw();
  } else if (event.message.endsWith("as asked")) at("wish").hidden = true;
  repicture();
  at("events").prepend(told(event));
  while (at("events").children.length > EVENTS) at("events").lastChild.remove();
}

function seen() {
  if (!document.hidden) return null;
  return new Promise((done) => {
    const back = () => document.hidden || done();
    document.addEventListener("visibilitychange", back, { once: true });
  });
}

at("acts").onclick = async ({ target }) => {
  const act = target.dataset.act;
  if (!act || (act === "cancel" && !confirm("Cancel this job for good?"))) return;
  target.disabled = true;
  try {
    await post(`${path}/${act}`);
    fault(null);
    at("wish").hidden = !(act in WISHED);
    at("wish").textContent = WISHED[act] ?? "";
  } catch (error) {
    fault(error);
  }
  news();
};

async function begin() {
  const [known] = await Promise.all([get("/v1/methods"), look()]);
  wishes = known.data.find((one) => one.id === job.method.type)?.wishes ?? [];
  buttons();
  await Promise.all([figures(), events(), log()]);
  repicture();
  setInterval(() => document.hidden || FINAL.includes(job.status) || news(), 5000);
  await follow();
}

begin().catch(fault);
