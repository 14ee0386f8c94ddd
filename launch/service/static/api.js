// The API with the caller's token in; answers, streams and downloads out. Text from the service
// only ever becomes text: nothing here or beside it makes markup of a string.

const KEY = "diffdoctor-token";
const token = () => sessionStorage.getItem(KEY);
let asking = null;

export const at = (id) => document.getElementById(id);
export const JOBS = "/v1/fine_tuning/jobs";
export const FINAL = ["succeeded", "failed", "cancelled"];

// An answer that is sound; an Error with the service's own sentence for any other.
export async function call(path, options = {}) {
  for (;;) {
    const used = token();
    const headers = { ...options.headers, ...(used && { Authorization: `Bearer ${used}` }) };
    const answer = await fetch(path, { ...options, headers });
    if (answer.ok) return answer;
    if (answer.status !== 401) throw new Error(await sentence(answer));
    if (token() === used) await ask(used);
  }
}

export async function get(path) {
  return (await call(path)).json();
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json" };
  return (await call(path, { method: "POST", headers, body: JSON.stringify(body ?? {}) })).json();
}

export async function upload(file) {
  const body = new FormData();
  body.append("purpose", "fine-tune");
  body.append("file", file);
  return (await call("/v1/files", { method: "POST", body })).json();
}

export async function remove(id) {
  await call(`/v1/files/${encodeURIComponent(id)}`, { method: "DELETE" });
}

// Server-sent events by fetch, as EventSource cannot send a token.
export async function* stream(path, signal) {
  const answer = await call(path, { headers: { Accept: "text/event-stream" }, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (text + value).split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").find((line) => line.startsWith("data: "))?.slice(6);
      if (data === "[DONE]") yield null;
      else if (data) yield JSON.parse(data);
    }
  }
}

// With a token the bytes pass through the page: a plain link could not carry it.
export async function download(id, name) {
  const path = `/v1/files/${encodeURIComponent(id)}/content`;
  if (!token()) return follow(path, name);
  const address = URL.createObjectURL(await (await call(path)).blob());
  follow(address, name);
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

function follow(address, name) {
  const link = make("a", { href: address, download: name.split("/").pop() });
  document.body.append(link);
  link.click();
  link.remove();
}

async function sentence(answer) {
  try {
    return (await answer.json()).error.message;
  } catch {
    return `the service answered ${answer.status}`;
  }
}

function ask(wrong) {
  if (wrong) sessionStorage.removeItem(KEY);
  asking ??= new Promise((done) => {
    const box = at("ask"), field = at("token");
    box.oncancel = (event) => event.preventDefault();
    box.onclose = () => {
      if (field.value.trim()) sessionStorage.setItem(KEY, field.value.trim());
      field.value = "";
      asking = null;
      at("leave").hidden = !token();
      done();
    };
    box.showModal();
  });
  return asking;
}

at("leave").hidden = !token();
at("leave").onclick = () => {
  sessionStorage.removeItem(KEY);
  location.reload();
};

// An element with properties, `data` and children, where strings are text.
export function make(tag, props = {}, ...children) {
  const { data, ...rest } = props;
  const made = Object.assign(document.createElement(tag), rest);
  Object.assign(made.dataset, data);
  made.append(...children);
  return made;
}

// What went wrong; a lost connection is told until it is back, all else until the next attempt.
export function fault(error, connection = false) {
  if (!error && connection && !at("fault").dataset.connection) return;
  at("fault").dataset.connection = connection ? "lost" : "";
  at("fault").hidden = !error;
  at("fault").textContent = error ? (error.message ?? String(error)) : "";
}

// One turn at a time, and what was asked meanwhile once more at its end; at most one in `pause` ms.
export function seldom(pause, what) {
  let busy = false, again = false;
  return async function turn() {
    if (busy) return void (again = true);
    busy = true;
    try {
      await what();
      fault(null, true);
    } catch (error) {
      fault(error, true);
    }
    setTimeout(() => {
      busy = false;
      if (again) turn((again = false));
    }, pause);
  };
}

export function when(seconds) {
  return new Date(seconds * 1000).toLocaleString();
}

export function left(job) {
  if (!job.estimated_finish || job.status !== "running") return "";
  return lasting(Math.max(0, Math.round(job.estimated_finish - Date.now() / 1000)));
}

export function lasting(seconds) {
  if (seconds < 90) return `${seconds} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

export function steps(job) {
  if (job.step === null) return "";
  return job.steps ? `${job.step} of ${job.steps}` : `step ${job.step}`;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < 3; unit++) bytes /= 1000;
  return `${bytes.toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

export function status(job) {
  return job.pausing ? "pausing" : job.status.replace("_", " ");
}
