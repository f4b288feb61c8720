// Reads the stream of pictures and shows each. All text goes through textContent.
"use strict";

const WORST_FIRST = ["down", "leak", "exhausted", "shedding", "slow", "failing", "closed", "suspended", "fine"];
const KEPT = 300; // seconds of history, and as many pictures
const SHORTEST = 60; // seconds that a trend shows at least
const MOST_EVENTS = 50;
const SHOWN_EVENTS = 8;
const TOGETHER = 60; // seconds in which equal events are one line
const MOST_CELLS = 60; // a larger pool is drawn in proportion
const SILENT = 3000; // milliseconds without a picture: what is shown is old
const DEAD = 15000; // milliseconds without a picture: begin anew
const SVG = "http://www.w3.org/2000/svg";

const find = (id) => document.getElementById(id);
const pools = new Map(); // what is known of each pool, by name
let newsAt = Date.now();
let authorization = "";
let mayControl = false;
let questions = 0; // that were asked

// --- words and numbers ---------------------------------------------------------------------------

const count = (number) => (number === null || number === undefined ? "–" : number.toLocaleString("en"));

function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  const [unit, size] = seconds < 1 ? ["ms", 0.001] : seconds < 120 ? ["s", 1] : seconds < 7200 ? ["min", 60] : ["h", 3600];
  const number = seconds / size;
  return `${number >= 10 || number === 0 ? number.toFixed(0) : Number(number.toPrecision(2))} ${unit}`;
}

function rate(number) {
  if (number === null || number === undefined) return "–";
  return number < 10 && number > 0 ? number.toFixed(1) : count(Math.round(number));
}

const clock = (at) => new Date(1000 * at).toLocaleTimeString("en-GB");
const sum = (counts) => Object.values(counts ?? {}).reduce((all, one) => all + one, 0);
const plural = (number, one, many) => `${count(number)} ${number === 1 ? one : many}`;

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function write(place, text) {
  if (place.textContent !== text) place.textContent = text; // else a screen reader would say it again
}

// --- the top -------------------------------------------------------------------------------------

function verdictOf(picture) {
  const trouble = picture.pools.filter((pool) => pool.kind !== "fine").sort(byKind);
  const rest = picture.pools.length - trouble.length;
  const said = trouble.slice(0, 3).map((pool) => `${pool.name}: ${pool.title.toLowerCase()}.`);
  if (trouble.length > 3) said.push(`${plural(trouble.length - 3, "more pool is", "more pools are")} in trouble.`);
  for (const worker of picture.hanging) said.unshift(`Worker ${worker} does not answer.`);
  if (!trouble.length && rest === 1) said.push(`${picture.pools[0].name} is fine.`);
  else if (!trouble.length) said.push(rest === 2 ? "Both pools are fine." : `All ${rest} pools are fine.`);
  else if (rest) said.push(rest === 1 ? "The other pool is fine." : `The other ${rest} pools are fine.`);
  return said.join(" ");
}

const byKind = (one, other) => WORST_FIRST.indexOf(one.kind) - WORST_FIRST.indexOf(other.kind);

function say(kind, text) {
  document.body.dataset.kind = kind;
  write(find("verdict"), text);
}

function showTop(picture) {
  const worst = [...picture.pools].sort(byKind)[0];
  say(picture.hanging.length ? "down" : worst ? worst.kind : "none", verdictOf(picture));
  const mark = !worst || worst.kind === "fine" ? "" : `${worst.name}: ${worst.title.toLowerCase()} – `;
  document.title = `${mark}Pools`;
  const hanging = find("hanging");
  hanging.hidden = !picture.hanging.length;
  write(hanging, picture.hanging.length ? "A worker that does not answer blocks its event loop: its requests hang, and its numbers are missing here." : "");
  find("overview").hidden = picture.pools.length < 2;
  const chips = [...picture.pools].sort(byKind).map((pool) => [pool.name, pool.kind, pool.title]);
  redraw(find("overview").firstElementChild, chips, ([name, kind, title]) => {
    const link = element("a", undefined, { href: `#pool-${encodeURIComponent(name)}`, "data-kind": kind });
    link.append(element("span", undefined, { class: "mark", "aria-hidden": "true" }), element("span", name), element("span", title, { class: "state" }));
    const item = element("li");
    item.append(link);
    return item;
  });
}

// Draw a list again if what it shows has changed.
function redraw(place, rows, draw) {
  const drawn = JSON.stringify(rows);
  if (place.dataset.drawn === drawn) return;
  place.dataset.drawn = drawn;
  const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  place.replaceChildren(...rows.map(draw));
  if (focused !== null) [...place.querySelectorAll("a")].find((link) => link.getAttribute("href") === focused)?.focus();
}

// --- a pool --------------------------------------------------------------------------------------

function cardOf(name) {
  if (!pools.has(name)) {
    const card = find("pool").content.firstElementChild.cloneNode(true);
    card.id = `pool-${encodeURIComponent(name)}`;
    card.setAttribute("aria-label", `Pool ${name}`);
    for (const button of card.querySelectorAll("[data-action]")) button.onclick = () => ask(button, name);
    for (const tile of card.querySelectorAll("[data-tile]")) tile.insertBefore(trend(), tile.querySelector(".sub").nextSibling);
    find("pools").append(card);
    pools.set(name, { card, past: [], events: [], before: null, workers: 1 });
  }
  return pools.get(name);
}

function showPool(pool, picture) {
  const known = cardOf(pool.name);
  const { card } = known;
  const { stats, minute } = pool;
  const put = (is, text) => write(card.querySelector(`[data-is="${is}"]`), text);
  card.dataset.kind = pool.kind;
  card.classList.toggle("alone", picture.workers < 2);
  for (const is of ["name", "title", "reason", "remedy"]) put(is, pool[is]);

  const used = stats.limit === null ? count(stats.taken) : `${count(stats.taken)} of ${count(stats.limit)}`;
  put("used", used);
  put("used-sub", stats.min_free ? `${count(stats.min_free)} kept free` : stats.free === null ? "" : `${count(stats.free)} free`);
  put("waiting", count(stats.waiting));
  put("waiting-sub", stats.waiting && stats.oldest_wait !== undefined ? `longest ${duration(stats.oldest_wait)}` : "");
  put("served", rate(pool.per_second));
  put("served-sub", minute ? `${count(minute.acquires)} in ${duration(pool.minute_seconds)}` : "");
  const lost = minute ? minute.timeouts + sum(minute.refusals) : null;
  put("lost", count(lost));
  put("lost-sub", minute ? (lost ? whyLost(minute) : `in ${duration(pool.minute_seconds)}`) : "");
  card.querySelector(".alarm").classList.toggle("on", Boolean(lost) && pool.kind !== "fine");

  remember(known, pool, picture);
  showSlots(card, stats);
  showTrends(known, stats, picture.at);
  showDurations(card, pool);
  showFacts(card, stats);
  showLeases(card, pool.leases);
  showEvents(known);
  showTotals(card, stats);
  known.workers = picture.workers - picture.hanging.length;
  showControl(card, stats);
}

const REASONS = {
  closed: "closed", deadlock: "would deadlock", full: "queue full", overloaded: "overloaded", unavailable: "back-end down",
};

function whyLost(minute) {
  const why = Object.entries(minute.refusals).filter(([, number]) => number).map(([reason, number]) => `${count(number)} ${REASONS[reason] ?? reason}`);
  if (minute.timeouts) why.unshift(`${count(minute.timeouts)} timed out`);
  return why.join(", ");
}

function showSlots(card, stats) {
  const { taken, free, limit } = stats;
  card.querySelector(".slots").hidden = taken === null;
  if (taken === null) return;
  const checking = stats.checking ?? 0;
  const changing = stats.changing ?? 0;
  const creating = stats.creating ?? 0;
  const states = [
    ["leased", taken - checking - changing, "leased"], ["checking", checking, "being checked"], ["changing", changing, "being reset"],
    ["creating", creating, "being created"], ["free", free ?? 0, "free"],
    ["room", Math.max(0, (limit ?? 0) - taken - (free ?? 0) - creating), "not created"],
  ];
  const isMany = states.reduce((all, [, number]) => all + number, 0) > MOST_CELLS;
  const bar = card.querySelector(".bar");
  bar.classList.toggle("many", isMany);
  bar.setAttribute("aria-label", states.filter(([, number]) => number).map(([, number, name]) => `${number} ${name}`).join(", "));
  const cells = states.filter(([, number]) => number).flatMap(([state, number]) => (isMany ? [[state, number]] : Array(number).fill([state, 1])));
  redraw(bar, cells, ([state, number]) => {
    const cell = element("span", undefined, { class: state });
    cell.style.flexGrow = number;
    return cell;
  });
  const always = ["leased", "free"];
  redraw(card.querySelector(".states"), states.filter(([state, number]) => number || always.includes(state)), ([state, number, name]) => {
    const item = element("li", undefined, { "data-state": state });
    item.append(element("i", undefined, { class: state, "aria-hidden": "true" }), element("b", count(number)), document.createTextNode(name));
    return item;
  });
}

function showDurations(card, pool) {
  card.querySelector(".durations").hidden = !Object.keys(pool.durations).length;
  write(card.querySelector('[data-is="window"]'), pool.minute ? `last ${duration(pool.minute_seconds)}` : "");
  const names = { wait: "Wait", use: "Use", create: "Create" };
  redraw(card.querySelector(".durations tbody"), Object.entries(pool.durations), ([name, found]) => {
    const row = element("tr", undefined, { "data-row": name });
    row.append(element("th", names[name], { scope: "row" }));
    for (const key of ["p50", "p95", "p99", "usual"]) row.append(element("td", duration(found[key]), { "data-q": key }));
    return row;
  });
}

function showFacts(card, stats) {
  const { budget } = stats;
  const facts = [];
  if ("patience" in stats) {
    facts.push(["Callers leave after", stats.patience === null ? "unknown" : `about ${duration(stats.patience)}`]);
    if (stats.expected_wait !== null) facts.push(["A new caller waits", stats.expected_wait ? `about ${duration(stats.expected_wait)}` : "not at all"]);
    if (stats.retry_after !== null) facts.push(["Next try to create", `in ${duration(stats.retry_after)}`]);
  }
  if (budget) facts.push([`Budget ${budget.name}`, `${count(budget.used)} of ${count(budget.total)} used, ${count(budget.held)} here`]);
  redraw(card.querySelector(".facts"), facts.flat(), (text) => element(facts.some(([name]) => name === text) ? "dt" : "dd", text));
}

function showLeases(card, leases) {
  const { length } = leases;
  card.querySelector(".leases").hidden = !length;
  card.querySelector('[data-is="no-leases"]').hidden = length > 0;
  redraw(card.querySelector(".leases tbody"), leases.slice(0, 6).map((lease) => [lease.holder, lease.worker, duration(lease.age)]), ([holder, worker, age]) => {
    const row = element("tr");
    row.append(element("td", holder), element("td", String(worker), { class: "worker" }), element("td", age));
    return row;
  });
}

function showTotals(card, stats) {
  const rows = [];
  for (const [name, value] of Object.entries(stats)) {
    if (typeof value === "number" && !["limit", "free", "taken", "creating", "waiting", "checking", "changing", "min_free"].includes(name)) rows.push([name, value]);
    else if (name !== "budget" && value !== null && typeof value === "object") for (const [reason, number] of Object.entries(value)) rows.push([`${name}: ${reason}`, number]);
  }
  redraw(card.querySelector(".totals"), rows.filter(([name]) => !/_wait$|longest_lease|patience|retry_after/.test(name)), ([name, number]) => {
    const row = element("div", undefined, { "data-total": name });
    row.append(element("dt", name.replaceAll("_", " ")), element("dd", count(number)));
    return row;
  });
}

// --- control -------------------------------------------------------------------------------------

const QUESTIONS = {
  suspend: {
    verb: "Suspend", done: "suspended by you",
    text: "New callers wait until you resume it, each up to its own timeout. Leases go on and end as usual. Nothing is created meanwhile.",
  },
  resume: {
    verb: "Resume", done: "resumed by you",
    text: "The callers that wait are served in order, and new ones as usual.",
  },
  expire: {
    verb: "Expire", done: "expired by you",
    text: "All resources are replaced: the free ones at once, each other one when it comes back. Callers get new ones.",
  },
  resize: {
    verb: "Resize", done: "resized by you",
    text: "With a higher limit, callers that wait are served at once; with a lower one, surplus resources are cleaned when they are free.",
  },
};

// The buttons are those that a pool of this status has.
function showControl(card, stats) {
  const group = card.querySelector(".control");
  const has = { suspend: /open/.test(stats.status), resume: /suspended/.test(stats.status) };
  group.hidden = !mayControl || !("acquires" in stats) || !(has.suspend || has.resume);
  const focused = document.activeElement;
  for (const button of group.children) button.hidden = !(has[button.dataset.action] ?? true);
  if (focused.hidden && group.contains(focused)) focusOn(focused);
}

function focusOn(button) {
  (button.hidden ? button.parentElement.querySelector("button:not([hidden])") : button).focus();
}

function ask(button, name) {
  const { action } = button.dataset;
  const known = pools.get(name);
  const { workers } = known;
  const own = ++questions;
  const dialog = find("question");
  const [cancel, go] = dialog.querySelectorAll(".answers button");
  const { verb, done, text } = QUESTIONS[action];
  const where = workers > 1 ? ` This is done in ${workers === 2 ? "both" : `all ${workers}`} workers.` : "";
  write(find("question-title"), `${verb} ${name}?`);
  write(find("question-text"), text + where);
  const { limit } = dialog.querySelector("form");
  find("resize").hidden = limit.disabled = action !== "resize";
  write(find("resize").querySelector("label"), workers > 1 ? "Limit of each worker" : "Limit");
  limit.value = Math.round(known.before.stats.limit / workers);
  limit.oninput = () => write(find("together"), workers > 1 && limit.value ? `${count(limit.value * workers)} in all workers` : "");
  limit.oninput();
  const tell = (outcome, isBad) => {
    find("outcome").className = isBad ? "bad" : "";
    write(find("outcome"), outcome);
  };
  tell("", false);
  write(cancel, "Cancel");
  write(go, verb);
  go.hidden = go.disabled = false;
  cancel.onclick = () => dialog.close();
  dialog.onclose = () => focusOn(button);
  dialog.querySelector("form").onsubmit = async (event) => {
    event.preventDefault();
    go.disabled = true;
    tell("Asking …", false);
    const order = { pool: name, action, ...(action === "resize" && { limit: limit.valueAsNumber }) };
    const { said, isDone } = await control(order);
    if (isDone) known.events.unshift({ at: newsAt / 1000, since: newsAt / 1000, text: order.limit ? `${done} to ${count(order.limit)}` : done, number: 1, tone: "", isTurn: true });
    if (own !== questions || !dialog.open) return; // the reader is past this question
    tell(said, !isDone);
    write(cancel, "Close");
    write(go, "Try again");
    go.hidden = isDone;
    go.disabled = false;
    cancel.focus();
  };
  dialog.showModal();
}

// Send an order; say what became of it.
async function control(order) {
  const headers = { "content-type": "application/json", ...(authorization && { authorization }) };
  try {
    const response = await fetch("control", { method: "POST", headers, body: JSON.stringify(order), signal: AbortSignal.timeout(DEAD) });
    const { workers, detail } = await response.json().catch(() => ({}));
    if (!workers) return { said: `Not done: ${response.status === 403 ? "not allowed" : (detail ?? `status ${response.status}`)}.`, isDone: false };
    const outcomes = Object.entries(workers);
    const missed = outcomes.filter(([, outcome]) => outcome !== "done");
    const number = outcomes.length;
    if (!missed.length) return { said: number === 1 ? "Done." : `Done in ${number === 2 ? "both" : `all ${number}`} workers.`, isDone: true };
    if (number === 1) return { said: `Not done: ${missed[0][1]}.`, isDone: false };
    const why = missed.map(([worker, outcome]) => `Worker ${worker}: ${outcome}.`);
    return { said: [`Done in ${number - missed.length} of ${number} workers.`, ...why].join(" "), isDone: false };
  } catch (error) {
    console.warn(error);
    return { said: "The service does not answer. Look at the pool before you try again.", isDone: false };
  }
}

// --- history, which is in this page only ---------------------------------------------------------

function remember(known, pool, picture) {
  const { stats } = pool;
  const lost = "timeouts" in stats ? stats.timeouts + sum(stats.refusals) : null;
  const before = known.past.at(-1);
  known.past.push({
    at: picture.at, used: stats.taken, waiting: stats.waiting, served: pool.per_second, total: lost,
    lost: before && lost !== null ? Math.max(0, lost - before.total) : null,
  });
  while (known.past[0].at < picture.at - KEPT) known.past.shift();
  if (known.before) noteEvents(known, known.before, pool, picture.at);
  known.before = pool;
}

function noteEvents(known, before, pool, at) {
  const [old, now] = [before.stats, pool.stats];
  const grown = (name) => (now[name] ?? 0) - (old[name] ?? 0);
  const note = (text, number, tone = "") => {
    if (number <= 0) return;
    const same = known.events.find((event) => event.text === text);
    const isSplit = same && known.events.slice(0, known.events.indexOf(same)).some((event) => event.isTurn);
    if (same && !isSplit && at - same.since < TOGETHER) Object.assign(same, { at, number: same.number + number });
    else known.events.unshift({ at, since: at, text, number, tone, isTurn: false });
  };
  note("created", grown("creates"));
  note(`create failed${now.cause ? ` with ${now.cause}` : ""}`, grown("create_failures"), "bad");
  for (const [reason, number] of Object.entries(now.discards ?? {})) note(`discarded: ${reason}`, number - old.discards[reason]);
  note("timed out", grown("timeouts"), "bad");
  note("left while waiting", grown("withdrawals"));
  for (const [reason, number] of Object.entries(now.refusals ?? {})) note(`refused: ${REASONS[reason] ?? reason}`, number - old.refusals[reason], "bad");
  note("detached", grown("detached"));
  if (before.kind !== pool.kind) {
    const text = before.kind === "down" ? `back-end up: ${pool.title.toLowerCase()}` : pool.title.toLowerCase();
    known.events.unshift({ at, since: at, text, number: 1, tone: pool.kind === "fine" ? "good" : "bad", isTurn: true });
  }
  known.events.length = Math.min(known.events.length, MOST_EVENTS);
}

function showEvents(known) {
  const rows = known.events.slice(0, SHOWN_EVENTS);
  known.card.querySelector('[data-is="no-events"]').hidden = rows.length > 0;
  redraw(known.card.querySelector(".events ol"), rows, (event) => {
    const item = element("li", undefined, { class: event.isTurn ? "turn" : "" });
    item.append(element("time", clock(event.since)), element("span", event.text, { class: event.tone }), element("span", event.number > 1 ? `× ${count(event.number)}` : "", { class: "count" }));
    return item;
  });
}

function trend() {
  const svg = document.createElementNS(SVG, "svg");
  for (const [name, value] of Object.entries({ class: "trend", viewBox: `0 0 ${KEPT} 30`, preserveAspectRatio: "none", "aria-hidden": "true" })) svg.setAttribute(name, value);
  const ground = document.createElementNS(SVG, "line");
  for (const [name, value] of Object.entries({ x1: 0, y1: 30, x2: KEPT, y2: 30 })) ground.setAttribute(name, value);
  const area = document.createElementNS(SVG, "path");
  area.setAttribute("class", "area");
  svg.append(ground, area, document.createElementNS(SVG, "path"));
  return svg;
}

function showTrends(known, stats, now) {
  const span = Math.max(SHORTEST, now - known.past[0].at);
  for (const tile of known.card.querySelectorAll("[data-tile]")) {
    const name = tile.dataset.tile;
    const points = known.past.filter((point) => point[name] !== null && point[name] !== undefined);
    const least = name === "used" || name === "waiting" ? (stats.limit ?? 1) : 3; // what is small looks small
    const top = Math.max(least, ...points.map((point) => point[name]));
    const places = points.map((point) => `${(KEPT * (1 - (now - point.at) / span)).toFixed(1)},${(30 - (29 * point[name]) / top).toFixed(1)}`);
    const [area, line] = tile.querySelectorAll("path");
    line.setAttribute("d", places.length ? `M${places.join("L")}` : "");
    area.setAttribute("d", places.length ? `M${places[0].split(",")[0]},30L${places.join("L")}L${KEPT},30Z` : "");
  }
}

// --- the stream ----------------------------------------------------------------------------------

function show(picture) {
  newsAt = Date.now();
  document.body.classList.remove("stale");
  find("token").hidden = true;
  showTop(picture);
  for (const pool of picture.pools) showPool(pool, picture);
  for (const [name, { card }] of pools) {
    if (picture.pools.some((pool) => pool.name === name)) continue;
    card.remove();
    pools.delete(name);
  }
  // The worst first, but nothing moves away from a reader within a pool.
  const main = find("pools");
  const cards = [...picture.pools].sort(byKind).map((pool) => pools.get(pool.name).card);
  if (!main.contains(document.activeElement) || document.activeElement === main) {
    if (cards.some((card, place) => main.children[place] !== card)) main.append(...cards);
  }
  write(find("news"), `${picture.workers > 1 ? `${picture.workers} workers · ` : ""}live at ${clock(picture.at)}`);
}

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

// Ask for the value of the header; no token is ever in an address.
function askForHeader() {
  const form = find("token");
  say("none", authorization ? "This header was not accepted." : "Not authorized.");
  document.body.classList.add("stale");
  form.hidden = false;
  form.authorization.focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      authorization = form.authorization.value.trim();
      if (/^[\x20-\x7e]+$/.test(authorization)) resolve();
      else say("none", "A header has only visible ASCII characters.");
    };
  });
}

async function readStream() {
  const abort = new AbortController();
  let alarm = setTimeout(() => abort.abort(), DEAD);
  try {
    const response = await fetch("stream", { headers: authorization ? { authorization } : {}, cache: "no-store", signal: abort.signal });
    if (response.status === 403) {
      clearTimeout(alarm);
      return await askForHeader();
    }
    if (!response.ok) {
      const answer = response.status === 503 ? (await response.json().catch(() => ({}))).detail : undefined;
      say("none", answer ? `${answer[0].toUpperCase()}${answer.slice(1)}.` : `The service answers with status ${response.status}.`);
      return await pause(5000);
    }
    mayControl = response.headers.get("Connectionpools-Control") === "allowed";
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let received = "";
    let pictures = 0;
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      clearTimeout(alarm);
      alarm = setTimeout(() => abort.abort(), DEAD);
      const parts = (received + value).split("\n\n");
      received = parts.pop();
      pictures += parts.length;
      if (parts.length) show(JSON.parse(parts.at(-1).slice("data: ".length)));
    }
    if (!pictures) await pause(1000);
  } finally {
    clearTimeout(alarm);
  }
}

async function watch() {
  for (;;) {
    try {
      await readStream();
    } catch (error) {
      console.warn(error);
      say("down", "The service does not answer.");
      await pause(2000);
    }
  }
}

setInterval(() => {
  const silent = Date.now() - newsAt;
  if (silent < SILENT) return;
  document.body.classList.add("stale");
  write(find("news"), `no news for ${duration(silent / 1000)}`);
}, 1000);

watch();
