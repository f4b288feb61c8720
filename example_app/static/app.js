// The page of the link shortener. What users typed only ever goes through textContent.

const $ = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat();
const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const days = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric", timeZone: "UTC" });
const PAGE = 10; // links
const SEARCH_PAUSE = 200; // ms without a key before a search begins
const REPORT_PAUSE = 1000;
const FIRST_RECONNECT = 500;
const LAST_RECONNECT = 15000;

const addressOf = (code) => new URL(encodeURIComponent(code), document.baseURI).href;
const clicksInWords = (count) => `${numbers.format(count)} ${count === 1 ? "click" : "clicks"}`;

function debounce(pause, act) {
  let timer;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, pause);
  };
}

// --- the API ---

/** What the API says is wrong: `fields` by name, `message` for all the rest, `retryAfter` seconds if that may help. */
class ApiError extends Error {
  constructor(message, { fields = {}, retryAfter = null } = {}) {
    super(message);
    this.fields = fields;
    this.retryAfter = retryAfter;
  }
}

async function api(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it running?");
  }
  if (response.ok) return response.status === 204 ? null : response.json();
  throw await explain(response);
}

async function explain(response) {
  if (response.status === 503) {
    const retryAfter = Number(response.headers.get("Retry-After") || 1);
    return new ApiError("The server is too busy, or its database is away. Try again in a moment.", { retryAfter });
  }
  const { detail } = await response.json().catch(() => ({}));
  if (response.status === 409) return new ApiError("", { fields: { code: detail } });
  if (response.status === 422 && Array.isArray(detail)) {
    return new ApiError("", { fields: Object.fromEntries(detail.map((one) => [one.loc.at(-1), inWords(one)])) });
  }
  return new ApiError(typeof detail === "string" ? detail : `Something went wrong (${response.status}).`);
}

function inWords({ loc, type, msg }) {
  const field = loc.at(-1);
  if (field === "url" && type === "url_scheme") return "Only links that begin with http:// or https:// can be shortened.";
  if (field === "url" && type.startsWith("url_")) return "This is not a complete link. It should look like https://example.com/page.";
  if (field === "code" && type.startsWith("string_")) return "3 to 32 letters (A to Z), digits, - and _ make a code.";
  const words = msg.replace(/^Value error, /, "");
  return words.charAt(0).toUpperCase() + words.slice(1) + (words.endsWith(".") ? "" : ".");
}

// --- errors ---

function showError(id, message) {
  $(id).textContent = message;
  $(id).hidden = !message;
  const field = $(id.replace(/-error$/, ""));
  if (field instanceof HTMLInputElement) field.setAttribute("aria-invalid", String(Boolean(message)));
}

function say(message) {
  $("said").textContent = message; // for screen readers
}

// --- copy ---

async function copy(text, button) {
  let said = "Copied";
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    said = copyTheOldWay(text) ? "Copied" : "Not copied";
  }
  button.textContent = said;
  say(said);
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

// Browsers keep the clipboard from pages that come over plain http from another machine.
function copyTheOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "hidden";
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

// --- the list ---

const list = { rows: new Map(), total: 0, next: null, search: null, retry: null };

function makeRow(link) {
  const row = $("link").content.firstElementChild.cloneNode(true);
  const address = addressOf(link.code);
  const short = row.querySelector(".short");
  short.textContent = link.code;
  short.href = address;
  const target = row.querySelector(".target");
  target.textContent = link.url;
  target.title = link.url;
  showClicks(row.querySelector(".clicks"), link.clicks);
  const time = row.querySelector("time");
  time.dateTime = link.created;
  time.textContent = dates.format(new Date(link.created));
  const copyButton = row.querySelector(".copy");
  copyButton.setAttribute("aria-label", `Copy ${link.code}`);
  copyButton.addEventListener("click", () => copy(address, copyButton));
  const deleteButton = row.querySelector(".delete");
  deleteButton.setAttribute("aria-label", `Delete ${link.code}`);
  deleteButton.addEventListener("click", () => askToDelete(link));
  return row;
}

function showClicks(counter, clicks) {
  counter.textContent = clicksInWords(clicks);
  counter.classList.toggle("some", clicks > 0);
}

function showList() {
  $("total").textContent = list.total ? numbers.format(list.total) : "";
  $("more").hidden = list.next === null;
  $("empty").hidden = list.rows.size > 0;
  $("empty").textContent = $("search").value.trim()
    ? "No link contains this text."
    : "There are no links yet. Shorten the first one above.";
}

/** Load the first page, or the one after those that are shown. */
async function load(before = null) {
  clearTimeout(list.retry);
  list.search?.abort();
  list.search = new AbortController();
  const query = new URLSearchParams({ q: $("search").value, limit: PAGE });
  if (before !== null) query.set("before", before);
  try {
    const page = await api(`api/links?${query}`, { signal: list.search.signal });
    if (before === null) {
      list.rows.clear();
      $("links").replaceChildren();
    }
    for (const link of page.links) {
      if (list.rows.has(link.code)) continue;
      const row = makeRow(link);
      list.rows.set(link.code, row);
      $("links").append(row);
    }
    list.total = page.total;
    list.next = page.next;
    if (!$("list-error").hidden) refreshReport(); // it had failed as well
    showError("list-error", "");
    showList();
  } catch (error) {
    if (error.name === "AbortError") return;
    showError("list-error", error.message || "This cannot be searched for.");
    if (error.retryAfter) list.retry = setTimeout(() => load(before), 1000 * error.retryAfter);
  }
}

async function askToDelete(link) {
  $("confirm-code").textContent = link.code;
  $("confirm").returnValue = "keep";
  $("confirm").showModal();
  await new Promise((resolve) => $("confirm").addEventListener("close", resolve, { once: true }));
  if ($("confirm").returnValue !== "delete") return;
  try {
    await api(`api/links/${encodeURIComponent(link.code)}`, { method: "DELETE" });
  } catch (error) {
    showError("list-error", error.message);
    return;
  }
  const row = list.rows.get(link.code);
  const neighbour = row?.nextElementSibling ?? row?.previousElementSibling;
  row?.remove();
  list.rows.delete(link.code);
  list.total -= 1;
  say(`Deleted ${link.code}`);
  if ($("made-link").textContent === addressOf(link.code)) $("made").hidden = true;
  showList();
  refreshReport();
  (neighbour?.querySelector(".delete") ?? $("search")).focus();
}

$("search").addEventListener("input", debounce(SEARCH_PAUSE, () => load()));
$("more").addEventListener("click", () => load(list.next));

// --- the form ---

$("shorten").addEventListener("submit", async (event) => {
  event.preventDefault();
  for (const id of ["url-error", "code-error", "form-error"]) showError(id, "");
  $("made").hidden = true;
  const url = $("url").value.trim();
  const code = $("code").value.trim();
  if (!url) {
    showError("url-error", "Which link shall be shortened?");
    $("url").focus();
    return;
  }
  const button = event.submitter ?? $("shorten").querySelector("button");
  button.disabled = true;
  try {
    const link = await api("api/links", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ url, code: code || null }),
    });
    $("shorten").reset();
    const address = addressOf(link.code);
    $("made-link").textContent = address;
    $("made-link").href = address;
    $("made").hidden = false;
    $("search").value = "";
    await load();
    refreshReport();
  } catch (error) {
    showError("form-error", error.message);
    for (const field of ["code", "url"]) {
      if (!error.fields?.[field]) continue;
      showError(`${field}-error`, error.fields[field]);
      $(field).focus();
    }
  } finally {
    button.disabled = false;
  }
});

$("made-copy").addEventListener("click", () => copy($("made-link").href, $("made-copy")));

// --- statistics ---

async function loadReport() {
  let report;
  try {
    report = await api("api/report");
  } catch {
    return; // the list says what is wrong
  }
  $("report-links").textContent = numbers.format(report.links);
  $("report-clicks").textContent = numbers.format(report.clicks);
  $("first-day").textContent = days.format(new Date(report.days[0].label));
  const most = Math.max(1, ...report.days.map((day) => day.clicks));
  $("days").replaceChildren(...report.days.map((day) => {
    const bar = document.createElement("li");
    const text = document.createElement("span");
    text.className = "hidden";
    text.textContent = `${day.label}: ${clicksInWords(day.clicks)}`;
    bar.title = text.textContent;
    bar.append(text);
    bar.classList.toggle("some", day.clicks > 0);
    bar.style.height = `${(100 * day.clicks) / most}%`;
    return bar;
  }));
  const rows = report.referrers.map((referrer) => {
    const row = document.createElement("li");
    for (const text of [referrer.label, numbers.format(referrer.clicks)]) {
      row.append(Object.assign(document.createElement("span"), { textContent: text }));
    }
    return row;
  });
  const none = Object.assign(document.createElement("li"), { className: "quiet", textContent: "No clicks yet." });
  $("referrers").replaceChildren(...(rows.length ? rows : [none]));
}

const refreshReport = debounce(REPORT_PAUSE, loadReport);

// --- live clicks ---

let pause = FIRST_RECONNECT;

function listen() {
  const address = new URL("live", document.baseURI);
  address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
  const socket = new WebSocket(address);
  socket.addEventListener("open", () => {
    $("live").textContent = "Live";
    $("live").classList.add("on");
    if (pause !== FIRST_RECONNECT) {
      // It was away: the numbers may be old.
      load();
      loadReport();
    }
    pause = FIRST_RECONNECT;
  });
  socket.addEventListener("message", (event) => {
    const { code, clicks } = JSON.parse(event.data);
    const counter = list.rows.get(code)?.querySelector(".clicks");
    if (counter) {
      showClicks(counter, clicks);
      counter.classList.remove("new");
      void counter.offsetWidth; // starts the animation anew
      counter.classList.add("new");
    }
    refreshReport();
  });
  socket.addEventListener("close", () => {
    $("live").textContent = "Not live, connecting …";
    $("live").classList.remove("on");
    setTimeout(listen, pause);
    pause = Math.min(2 * pause, LAST_RECONNECT);
  });
}

load();
loadReport();
listen();
