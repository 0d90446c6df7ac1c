// The dashboard: shows the events of v1/board, and sends what the operator asks for to the routes under v1.
// All addresses are relative, so the page works under any root path. Text from outside is set as text, never as HTML.

const HISTORY_S = 300;
const RATE_OVER_S = 5;
const LETTERS = 50;
const SILENT_MS = 5000;
const GIVE_UP_MS = 15000;
const FAILURE_SHOWN_S = 600;
const WAITS_MS = [500, 1000, 2000, 5000];

const byId = (id) => document.getElementById(id);
const samples = []; // {at, done, failed, backlog} of the last HISTORY_S
let token = sessionStorage.getItem("token") ?? "";
let role = null;
let lastEventAt = 0;
let following = null; // {connection, heardAt} of the board; null while the tab is hidden

// Elements

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

function row(cells, numbers = []) {
  return element("tr", {}, ...cells.map((cell, at) =>
    element("td", { class: numbers.includes(at) ? "n" : "text" }, cell instanceof Node ? cell : String(cell ?? "–"))));
}

function emptyRow(columns, text) {
  return element("tr", {}, element("td", { colspan: columns, class: "empty" }, text));
}

// What is the same stays, so that a selection or an open list of suggestions does, too.
function refill(parent, elements) {
  elements.forEach((made, at) => {
    const old = parent.children[at];
    if (!old) parent.append(made);
    else if (made.tagName === "TR") refill(old, [...made.children]);
    else if (!old.isEqualNode(made)) old.replaceWith(made);
  });
  while (parent.children.length > elements.length) parent.lastElementChild.remove();
}

// Figures as text

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const count = (value) => (value === null || value === undefined ? "–" : whole.format(value));
const rate = (value) => (value === null ? "–" : value < 10 ? value.toFixed(1) : whole.format(value));
const mib = (bytes) => (bytes ? `${whole.format(bytes / 1048576)} MiB` : "–");

function age(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${Math.round(seconds / 86400)} days`;
}

// Requests

class Refused extends Error {}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  const sent = token;
  if (sent) headers.authorization = `Bearer ${String.fromCharCode(...new TextEncoder().encode(sent))}`; // headers are bytes
  const answer = await fetch(path, { ...options, headers });
  if (answer.status === 401) {
    if (sent === token) await askForToken(sent !== "");
    return request(path, options);
  }
  if (answer.ok) return answer;
  const problem = await answer.json().catch(() => ({}));
  const errors = (problem.errors ?? []).map((one) => one.detail).join("; ");
  throw new Refused(`${problem.title ?? `Status ${answer.status}`}: ${errors || problem.detail || "no reason was given"}`);
}

async function post(path, body) {
  const options = { method: "POST" };
  if (body !== undefined) Object.assign(options, { headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  return (await request(path, options)).json();
}

const getJson = async (path) => (await request(path)).json();
const groupPath = (stream, group) => `v1/streams/${encodeURIComponent(stream)}/groups/${encodeURIComponent(group)}`;

let asking = null;
function askForToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    byId("token-wrong").hidden = !wasWrong;
    byId("token").onclose = () => {
      token = byId("token-text").value.trim();
      byId("token-text").value = "";
      sessionStorage.setItem("token", token);
      asking = null;
      resolve();
    };
    byId("token").showModal();
  });
  return asking;
}

function confirmed(text, verb) {
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = verb;
  byId("confirm").returnValue = "";
  byId("confirm").showModal();
  return new Promise((resolve) => {
    byId("confirm").onclose = () => resolve(byId("confirm").returnValue === "yes");
  });
}

// The board

async function follow() {
  const mine = { connection: null, heardAt: 0 };
  following = mine;
  let failures = 0;
  while (following === mine) {
    mine.connection = new AbortController();
    mine.heardAt = Date.now();
    try {
      const answer = await request("v1/board", { signal: mine.connection.signal });
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        mine.heardAt = Date.now();
        text += value;
        const events = text.split("\n\n");
        text = events.pop();
        for (const event of events) {
          const line = event.split("\n").find((one) => one.startsWith("data: "));
          if (line) {
            failures = 0;
            show(JSON.parse(line.slice(6)));
          }
        }
      }
    } catch (error) {
      if (following !== mine) return;
      note(error instanceof Refused ? error.message : "The service does not answer.");
    }
    await new Promise((resolve) => setTimeout(resolve, WAITS_MS[Math.min(failures++, WAITS_MS.length - 1)]));
  }
}

function note(text) {
  if (text && lastEventAt) showWord("no answer", "bad");
  const seconds = lastEventAt ? ` The figures are ${age((Date.now() - lastEventAt) / 1000)} old.` : "";
  if (byId("connection-text").textContent !== text) byId("connection-text").textContent = text;
  byId("connection-age").textContent = `${seconds} Trying again.`;
  byId("connection").hidden = !text;
  document.body.classList.toggle("stale", Boolean(text));
}

function show(event) {
  const status = event.status;
  lastEventAt = Date.now();
  note("");
  if (role !== event.role) {
    role = event.role;
    document.querySelectorAll(".changes").forEach(allow);
  }
  const groups = status.groups ?? [];
  // In an outage of Redis there are no groups in the status: that is not the same as no backlog and no dead letters.
  const known = groups.length > 0 || Boolean(status.redis?.version && !status.redis.error);
  showState(status);
  showFigures(status, known, Date.parse(event.at) / 1000);
  showGroups(groups);
  showWorkers(status.workers ?? []);
  if (known) showDeadGroups(groups);
  byId("dead-none").hidden = deadGroups.size > 0;
  byId("dead-none").textContent = known ? "There are none." : "Nothing is known of them while Redis does not answer.";
}

function allow(control) {
  control.disabled = role === "reader";
  control.title = control.disabled ? "The token of this tab may only read." : "";
}

const KIND = { healthy: "good", starting: "warn", paused: "warn", degraded: "warn", draining: "warn", down: "bad" };

function showWord(word, kind) {
  byId("state").textContent = word;
  byId("state").className = `state ${kind}`;
  document.title = `${word} – Supervisor`;
}

function showState(status) {
  showWord(status.state, KIND[status.state] ?? "warn");
  const redis = status.redis ?? {};
  const syncs = { none: "keeps nothing on disk", rdb: "snapshots only", everysec: "AOF, synced each second", always: "AOF, synced always" };
  byId("redis").textContent = redis.version ? `${redis.version}, ${syncs[redis.durability] ?? "durability unknown"}` : "Redis: nothing known yet";
  const now = status.operation;
  const last = status.last_operation;
  const reasons = [
    status.reason, redis.error && `Redis: ${redis.error}`, ...(status.degraded_reasons ?? []),
    now && `${now.kind}: ${now.error ?? (now.phase === "rolling" ? `${now.done} of ${now.total} workers are replaced` : "the new code is checked")}`,
    !now && last && !last.ok && last.age_s < FAILURE_SHOWN_S && `The last ${last.kind} failed: ${last.error}`,
  ].filter(Boolean);
  refill(byId("reasons"), [...new Set(reasons)].map((text) => element("li", {}, text)));
  byId("reasons").hidden = !reasons.length;
}

const sum = (list, name) => list.reduce((total, one) => total + (one[name] ?? 0), 0);

function showFigures(status, known, at) {
  const workers = status.workers ?? [];
  const groups = status.groups ?? [];
  const backlog = known ? sum(groups, "lag") + sum(groups, "pending") : null;
  if (samples.length && samples.at(-1).at > at) samples.length = 0; // the clock was set back
  samples.push({ at, done: sum(workers, "done"), failed: sum(workers, "failed") + sum(workers, "dead"), backlog });
  while (samples[0].at < at - HISTORY_S) samples.shift();
  const oldest = groups.map((group) => group.oldest_s).filter((seconds) => typeof seconds === "number");
  const figures = [
    ["workers ready", `${workers.filter((one) => one.state === "READY").length} of ${workers.length}`],
    ["done / s", rate(ratePerSecond(samples.length - 1, "done"))],
    ["failed / s", rate(ratePerSecond(samples.length - 1, "failed"))],
    ["in hand", count(sum(workers, "in_flight"))],
    ["backlog", count(backlog)],
    ["oldest", oldest.length ? age(Math.max(...oldest)) : "–"],
    ["for later", count(known ? sum(status.later ?? [], "waiting") : null)],
    ["dead letters", count(known ? sum(groups, "dead") : null)],
  ];
  refill(byId("figures"), figures.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  chart("chart-done", "Done a second", samples.map((_, at) => ratePerSecond(at, "done")));
  chart("chart-backlog", "Backlog", samples.map((sample) => sample.backlog));
}

// The counters belong to slots: they fall when the pool is scaled down or started anew.
function ratePerSecond(at, name) {
  const now = samples[at];
  let first = at;
  while (first > 0 && now.at - samples[first - 1].at <= RATE_OVER_S) first -= 1;
  if (first === at) return null;
  return Math.max(0, (now[name] - samples[first][name]) / (now.at - samples[first].at));
}

function chart(id, name, values) {
  const highest = Math.max(...values);
  const begins = 300 - (samples.at(-1).at - samples[0].at);
  const points = values.map((value, at) => (value === null ? "" : `${begins + samples[at].at - samples[0].at},${58 - (56 * value) / (highest || 1)}`));
  const line = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  line.setAttribute("points", points.filter(Boolean).join(" "));
  byId(id).replaceChildren(line);
  byId(id).setAttribute("aria-label", `${name}: now ${count(values.at(-1))}, highest ${count(highest)}`);
}

function showGroups(groups) {
  const oldestFirst = [...groups].sort((a, b) => (b.oldest_s ?? -1) - (a.oldest_s ?? -1));
  refill(byId("groups"), groups.length ? oldestFirst.map((group) => row([
    group.stream, group.exists === false ? `${group.group} (not created yet)` : group.group,
    `${group.lag_at_least ? "≥ " : ""}${count(group.lag)}`, count(group.pending), count(group.retrying),
    count((group.waiting_turn ?? 0) + (group.waiting_rate ?? 0)), age(group.oldest_s), count(group.dead),
  ], [2, 3, 4, 5, 6, 7])) : [emptyRow(8, "No group is known: the pool has no handlers, or Redis does not answer.")]);
  refill(byId("streams"), [...new Set(groups.map((group) => group.stream))].map((name) => element("option", { value: name })));
}

const WORKER_KIND = { READY: "good", STARTING: "warn", DRAINING: "warn", BACKOFF: "bad", FAILED: "bad" };

function showWorkers(workers) {
  refill(byId("workers"), workers.length ? workers.map((worker) => row([
    worker.slot, element("span", { class: WORKER_KIND[worker.state] ?? "" }, worker.state), worker.pid,
    worker.activity ? `${worker.activity} ${age(worker.activity_s)}` : "–", count(worker.in_flight), count(worker.done),
    count(worker.failed), count(worker.dead), mib(worker.rss_bytes), count(worker.restarts), lastExit(worker.last_exit),
  ], [2, 4, 5, 6, 7, 8, 9])) : [emptyRow(11, "No pool runs on this host.")]);
  if (document.activeElement !== byId("workers-wanted") && !byId("workers-wanted").dataset.edited) byId("workers-wanted").value = workers.length;
}

function lastExit(exit) {
  if (!exit) return "–";
  const how = exit.signal ?? (exit.code === null ? "" : `code ${exit.code}`);
  return `${exit.reason}${how ? `, ${how}` : ""}, after ${age(exit.uptime_s)}`;
}

// Commands for the pool

async function command(name, body) {
  const answer = byId("pool-answer");
  try {
    const result = await post(`v1/pool:${name}`, body);
    answer.textContent = { pause: "Paused.", resume: "Resumed.", restart: "The restart has begun." }[name] ?? `${result.before} → ${result.workers} workers.`;
  } catch (error) {
    answer.textContent = error.message;
  }
}

for (const button of document.querySelectorAll("#pool [data-command]")) {
  button.addEventListener("click", async () => {
    const name = button.dataset.command;
    if (name === "restart" && !(await confirmed("Replace all workers, one after the other?", "Restart"))) return;
    await command(name);
  });
}
byId("workers-wanted").addEventListener("input", () => { byId("workers-wanted").dataset.edited = "yes"; });
byId("pool").addEventListener("submit", async (event) => {
  event.preventDefault();
  const wanted = byId("workers-wanted").valueAsNumber;
  if (wanted === 0 && !(await confirmed("With no worker nothing is handled. Scale to 0?", "Scale to 0"))) return;
  await command("scale", { workers: wanted });
  delete byId("workers-wanted").dataset.edited;
});

// Dead letters

const deadGroups = new Map(); // "stream\ngroup" -> {box, summary}

function showDeadGroups(groups) {
  const withLetters = groups.filter((group) => group.dead);
  const keys = new Set(withLetters.map((group) => `${group.stream}\n${group.group}`));
  for (const [key, shown] of deadGroups) {
    if (!keys.has(key) && !shown.box.open) {
      shown.box.remove();
      deadGroups.delete(key);
    }
  }
  for (const { stream, group, dead } of withLetters) {
    const key = `${stream}\n${group}`;
    if (!deadGroups.has(key)) deadGroups.set(key, deadGroup(stream, group));
    deadGroups.get(key).summary.textContent = `${stream}, ${group}: ${count(dead)}`;
  }
  for (const [key, shown] of deadGroups) {
    if (!keys.has(key)) shown.summary.textContent = `${key.replace("\n", ", ")}: none any more`;
  }
}

function deadGroup(stream, group) {
  const path = groupPath(stream, group);
  const filter = element("input", { type: "search", placeholder: "in a field, an id or an error", "aria-label": "Filter" });
  const answer = element("output");
  const body = element("tbody");
  let listed = ""; // the filter of the letters that are shown; the field may have another text by now
  const list = async () => {
    const text = filter.value;
    const query = text ? `&text=${encodeURIComponent(text)}` : "";
    try {
      const page = await getJson(`${path}/dead?count=${LETTERS}${query}`);
      listed = text;
      body.replaceChildren(...page.letters.map((letter) => letterRow(path, letter, list, answer)));
      if (!page.letters.length) body.append(emptyRow(5, "None matches."));
      const least = page.complete ? "" : "at least ";
      answer.textContent = `${least}${count(page.matching)} of ${count(page.total)}${page.letters.length < page.matching ? `; the oldest ${page.letters.length} are shown` : ""}`;
    } catch (error) {
      answer.textContent = error.message;
    }
  };
  const all = (verb, past) => async () => {
    const which = listed ? `those with “${listed}”` : "all of them";
    const wanted = await confirmed(`${verb === "replay" ? "Replay" : "Remove for good"}: dead letters of ${stream}, ${group}, ${which} (${answer.textContent})?`, verb === "replay" ? "Replay" : "Remove");
    if (!wanted) return;
    let selection = listed ? { text: listed } : { all: true };
    const counts = {};
    try {
      while (selection) {
        const page = await post(`${path}/dead:${verb}`, selection);
        for (const [outcome, number] of Object.entries(page.counts)) counts[outcome] = (counts[outcome] ?? 0) + number;
        answer.textContent = Object.entries(counts).map(([outcome, number]) => `${count(number)} ${outcome}`).join(", ") || `none was ${past}`;
        selection = page.next;
      }
      const said = answer.textContent;
      await list();
      answer.textContent = said;
    } catch (error) {
      answer.textContent = error.message;
    }
  };
  const replay = element("button", { type: "button", class: "changes", onclick: all("replay", "replayed") }, "Replay these");
  const drop = element("button", { type: "button", class: "changes", onclick: all("drop", "removed") }, "Remove these");
  allow(replay);
  allow(drop);
  const controls = element("form", { onsubmit: (event) => { event.preventDefault(); list(); } },
    filter, element("button", {}, "Filter"), replay, drop, answer);
  const head = element("thead", {}, element("tr", {}, ...["message", "given up", "attempts", "reason", ""].map((name) => element("th", {}, name))));
  const summary = element("summary");
  const box = element("details", { ontoggle: () => { if (box.open) list(); } }, summary, controls,
    element("div", { class: "scroll" }, element("table", { class: "letters" }, head, body)));
  byId("dead").append(box);
  return { box, summary };
}

function letterRow(path, letter, list, answer) {
  const fields = JSON.stringify(letter.fields, null, 2);
  const more = [letter.handler && `handler ${letter.handler}`, letter.worker && `worker ${letter.worker}`].filter(Boolean).join(", ");
  const shown = element("details", {}, element("summary", {}, letter.reason || letter.error || "no reason"),
    element("p", {}, more), element("pre", {}, fields), letter.traceback || letter.stack ? element("pre", {}, letter.traceback || letter.stack) : "");
  const one = (verb) => async () => {
    if (verb === "drop" && !(await confirmed(`Remove the dead letter of ${letter.id} for good?`, "Remove"))) return;
    try {
      const result = await post(`${path}/dead:${verb}`, { ids: [letter.letter_id] });
      const outcome = result.outcomes[0];
      await list();
      answer.textContent = `${letter.id}: ${outcome.error ?? outcome.outcome}`;
    } catch (error) {
      answer.textContent = error.message;
    }
  };
  const replay = element("button", { type: "button", class: "changes", onclick: one("replay") }, "Replay");
  const drop = element("button", { type: "button", class: "changes", onclick: one("drop") }, "Remove");
  allow(replay);
  allow(drop);
  const since = age((Date.now() - letter.dead_at_ms) / 1000);
  return row([letter.id, `${since} ago`, count(letter.deliveries), shown, element("span", {}, replay, " ", drop)]);
}

// Explain

byId("explain").addEventListener("submit", async (event) => {
  event.preventDefault();
  const answer = byId("explain-answer");
  const stream = byId("explain-stream").value;
  const id = byId("explain-id").value.trim();
  answer.textContent = "…";
  try {
    const found = await getJson(`v1/streams/${encodeURIComponent(stream)}/messages/${encodeURIComponent(id)}/explain`);
    answer.replaceChildren(
      element("p", {}, `In the stream: ${found.presence}.`),
      ...found.groups.map((group) => element("details", {},
        element("summary", {}, `${group.group}: ${group.fate}`), element("pre", {}, JSON.stringify(group, null, 2)))));
  } catch (error) {
    answer.textContent = error.message;
  }
});

// Begin, and rest while nobody looks

setInterval(() => {
  if (!following || asking) return;
  const silentMs = Date.now() - following.heardAt;
  if (silentMs > SILENT_MS) note("No news from the service.");
  else if (!byId("connection").hidden) note(byId("connection-text").textContent); // its age has grown
  if (silentMs > GIVE_UP_MS) following.connection.abort(); // a connection may be lost without a sign
}, 1000);
document.addEventListener("visibilitychange", () => {
  const before = following;
  following = null;
  before?.connection.abort();
  if (!document.hidden) follow();
});
if (!document.hidden) follow();
