// The settings of a method as a form, made from its schema; only what was changed is sent.

import { at, fault, get, JOBS, make, post, remove, size, upload } from "./api.js";

let methods = [], fields = [];

const method = () => methods.find((one) => one.id === at("method").value);

// What a schema says of one setting, without "or nothing".
function kind(schema) {
  const parts = (schema.anyOf ?? [schema]).filter((one) => one.type !== "null");
  const types = new Set(parts.map((one) => one.type));
  if (parts.length === 1) return { ...parts[0], default: schema.default };
  const numbers = [...types].every((one) => ["integer", "number"].includes(one));
  return { type: numbers ? "number" : "mixed", default: schema.default };
}

// A field with `value()`: undefined where it says what is usual anyway.
function field(name, schema, reference, needed, about) {
  const one = kind(schema), usual = one.default ?? null;
  const list = one.type === "array";
  const said = list && Array.isArray(usual) ? usual.join(", ") : usual;
  let input, value;
  if (one.type === "boolean") {
    input = make("input", { type: "checkbox", checked: Boolean(usual) });
    value = () => input.checked;
  } else if (one.enum) {
    const options = one.enum.map((word) => make("option", { value: String(word) }, String(word)));
    input = make("select", {}, ...options);
    input.value = String(usual ?? one.enum[0]);
    value = () => one.enum.find((word) => String(word) === input.value);
  } else if (["integer", "number"].includes(one.type)) {
    input = make("input", { type: "number", step: one.type === "integer" ? 1 : "any" });
    if (one.minimum !== undefined) input.min = one.minimum;
    if (one.maximum !== undefined) input.max = one.maximum;
    input.placeholder = usual ?? "";
    value = () => (input.value === "" ? undefined : Number(input.value));
  } else {
    const loose = !list && one.type !== "string";
    input = make("input", { type: "text", autocomplete: "off", spellcheck: false });
    input.placeholder = loose && usual !== null ? JSON.stringify(usual) : (said ?? "");
    if (reference) input.setAttribute("list", "names");
    value = () => (input.value.trim() ? read(input.value.trim(), list, loose) : undefined);
  }
  input.id = `set-${name}`;
  input.required = needed;
  const label = make("label", { htmlFor: input.id }, needed ? `${name} *` : name, input);
  const told = about || schema.description;
  if (told) label.append(make("span", { className: "quiet" }, told));
  if (reference) droppable(label, ([first]) => (input.value = first.id));
  const same = JSON.stringify(usual);
  const changed = () => (JSON.stringify(value()) === same ? undefined : value());
  return { name, input, label, value: changed };
}

function read(text, list, loose) {
  if (loose) {
    try {
      return JSON.parse(text);
    } catch {
      return text;
    }
  }
  return list ? text.split(",").map((part) => part.trim()).filter(Boolean) : text;
}

async function open() {
  const one = method();
  at("does").textContent = one.description;
  at("waiting").textContent = "reading the settings of this method…";
  at("waiting").hidden = false;
  at("create").disabled = at("check").disabled = true;
  const schema = await get(`/v1/methods/${encodeURIComponent(one.id)}/schema`);
  if (one !== method()) return;
  const needed = new Set([...(schema.required ?? []), one.training_file].filter(Boolean));
  if (!one.needs_training_file) needed.delete(one.training_file);
  fields = Object.entries(schema.properties).map(([name, said]) => {
    return field(name, said, name in one.inputs, needed.has(name), one.inputs[name] ?? "");
  });
  const usual = [one.model, one.training_file, "detector", "steps"];
  const first = (name) => needed.has(name) || usual.includes(name);
  const main = fields.filter((each) => first(each.name));
  at("main").replaceChildren(...main.map((each) => each.label));
  at("rest").replaceChildren(...fields.filter((e) => !first(e.name)).map((e) => e.label));
  at("waiting").hidden = true;
  at("create").disabled = at("check").disabled = false;
}

function request() {
  const told = {};
  for (const one of fields) {
    const value = one.value();
    if (value !== undefined) told[one.name] = value;
  }
  const { id, model, training_file: training } = method();
  const body = { method: { type: id, [id]: told }, suffix: at("suffix").value.trim() || null };
  for (const [place, setting] of [["model", model], ["training_file", training]]) {
    const value = told[setting];
    if (typeof value === "string") delete told[setting];
    else if (Array.isArray(value) && value.length === 1) delete told[setting];
    else continue;
    body[place] = String(value);
  }
  return body;
}

async function send(event) {
  event.preventDefault();
  await busy("checking the settings and making the job…", async () => {
    const job = await post(JOBS, request());
    location.assign(`/jobs/${encodeURIComponent(job.id)}`);
  });
}

async function check() {
  if (!at("form").reportValidity()) return;
  await busy("checking the settings…", async () => {
    const plan = await post(JOBS, { ...request(), dry_run: true });
    at("memory").textContent = plan.estimate?.peak
      ? `About ${size(plan.estimate.peak)} of memory at the most.`
      : "The memory of this method is not counted.";
    at("resolved").textContent = JSON.stringify(plan.hyperparameters, null, 2);
    at("plan").hidden = false;
  });
}

async function busy(text, what) {
  at("waiting").textContent = text;
  at("waiting").hidden = false;
  at("create").disabled = at("check").disabled = true;
  try {
    fault(null);
    await what();
  } catch (error) {
    fault(error);
    at("fault").scrollIntoView();
  }
  at("waiting").hidden = true;
  at("create").disabled = at("check").disabled = false;
}

function droppable(place, use) {
  const over = (on) => (event) => {
    event.preventDefault();
    place.classList.toggle("over", on);
  };
  place.addEventListener("dragover", over(true));
  place.addEventListener("dragleave", over(false));
  place.addEventListener("drop", async (event) => {
    over(false)(event);
    event.stopPropagation();
    await take(event.dataTransfer.files, use);
  });
}

async function take(files, use) {
  const made = [];
  for (const file of files) {
    const line = make("li", {}, `${file.name} (${size(file.size)}): uploading…`);
    at("uploads").append(line);
    try {
      const row = await upload(file);
      made.push(row);
      const button = make("button", { type: "button" }, "Delete");
      button.onclick = () => forget(row.id, line).catch(fault);
      line.replaceChildren(`${row.filename} (${size(row.bytes)}): ${row.id} `, button);
      name(row.id, row.filename);
    } catch (error) {
      line.textContent = `${file.name}: ${error.message}`;
    }
  }
  if (made.length) use(made);
}

async function forget(id, line) {
  fault(null);
  await remove(id);
  line.remove();
  for (const option of at("names").children) if (option.value === id) option.remove();
  for (const one of fields) if (one.input.value === id) one.input.value = "";
}

// The first upload is the training data, unless that is named.
function training(made) {
  const place = fields.find((one) => one.name === method().training_file);
  if (place && !place.input.value) place.input.value = made[0].id;
}

function name(value, text) {
  at("names").append(make("option", { value }, text));
}

async function begin() {
  const [known, models, files] = await Promise.all([
    get("/v1/methods"), get("/v1/models"), get("/v1/files?limit=100"),
  ]);
  methods = known.data;
  at("method").append(...methods.map((one) => make("option", { value: one.id }, one.id)));
  for (const one of models.data) name(one.id, one.owned_by);
  for (const one of files.data) name(one.id, one.filename);
  at("method").onchange = () => open().catch(fault);
  at("form").onsubmit = send;
  at("check").onclick = check;
  at("upload").onchange = ({ target }) => take(target.files, training);
  droppable(at("drop"), training);
  await open();
}

begin().catch(fault);
