// The caller's jobs, the newest first, looked at again while the page is seen.

import { at, get, JOBS, left, make, seldom, status, steps, when } from "./api.js";

const PAGE = 20;
let shown = PAGE;

function line(job) {
  const name = job.user_provided_suffix || job.id;
  const bar = make("progress", { max: job.steps || 1, value: job.step ?? 0, title: steps(job) });
  const cell = (title, ...inner) => make("td", { data: title ? { name: title } : {} }, ...inner);
  return make(
    "tr",
    {},
    cell("", make("a", { href: `/jobs/${encodeURIComponent(job.id)}` }, name)),
    cell("Method", job.method.type),
    cell("Model", job.model || "none"),
    cell("", make("span", { className: `status ${job.status}` }, status(job))),
    cell("", bar, " ", steps(job)),
    left(job) ? cell("Time left", left(job)) : make("td"),
    cell("Created", when(job.created_at)),
  );
}

async function jobs() {
  const found = [];
  let more = true, after = "";
  while (more && found.length < shown) {
    const page = await get(`${JOBS}?limit=${PAGE}${after}`);
    found.push(...page.data);
    more = page.has_more;
    after = `&after=${encodeURIComponent(page.last_id)}`;
  }
  at("jobs").replaceChildren(...found.map(line));
  at("none").hidden = found.length > 0;
  at("more").hidden = !more;
}

const look = seldom(1000, jobs);
at("more").onclick = () => look((shown += PAGE));
document.addEventListener("visibilitychange", look);
setInterval(() => document.hidden || look(), 3000);
look();
