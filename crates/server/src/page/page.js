// The page: asks, watches by server-sent events (read with fetch, which can send a key), and plays.

import { canPlayGrowing, playGrowing } from "./growing.js";

const PAGE_SIZE = 12;
const QUEUE_SIZE = 100;
// Browsers open six connections to a service: the events have one, and others must get through.
const STREAMS_MAX = 2;
const SAMPLES = 120;
const KINDS = ["weights", "text_embedding", "cross_kv", "self_kv", "latent", "vae_feature", "step_residual", "reserved"];
const $ = (id) => document.getElementById(id);

let key = sessionStorage.getItem("evanesce-key") ?? "";
const queue = new Map();
const ended = new Set();
// When each video of the queue was last heard of by an event; the time is a count of them.
const heard = new Map();
let eventsHeard = 0;
const pictures = new Map();
let pages = [null];
let listed = [];
let history = [];

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) {
    if (attribute === "onclick") made.addEventListener("click", value);
    else if (value !== undefined) made.setAttribute(attribute, value);
  }
  made.append(...children);
  return made;
}

async function call(path, options = {}) {
  const headers = { ...(options.headers ?? {}) };
  if (key) headers.Authorization = `Bearer ${key}`;
  const response = await fetch(path, { ...options, headers }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error("the service cannot be reached; what was asked was not done");
  });
  if (response.ok) return response;
  let message = `the service answered ${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* the status says it */ }
  if (response.status === 401) $("key-section").hidden = false;
  throw Object.assign(new Error(message), { status: response.status });
}

// What the service writes. A seed may have more digits than a number of JavaScript: that one is kept as text. Only a name matches, for
// inside a string of JSON a quote has a backslash before it.
const read = (text) => JSON.parse(text.replace(/"seed":(\d{16,})/g, '"seed":"$1"'));
const answered = async (response) => read(await response.text());

function show(id, message) {
  $(id).textContent = message;
  $(id).hidden = !message;
}

function connected(text, lost) {
  $("connection").textContent = text;
  $("connection").classList.toggle("lost", lost);
}

// Making

const SEED_MAX = 2n ** 64n - 1n;
const isSeed = (text) => /^\d+$/.test(text) && BigInt(text) <= SEED_MAX;

$("make").addEventListener("submit", async (event) => {
  event.preventDefault();
  // As text: the service reads numbers as they were written, and says which it cannot read. The browser names the type and its boundary.
  const asked = new FormData(event.target);
  for (const [name, value] of [...asked]) if (value.trim() === "") asked.delete(name);
  if (asked.has("seed") && !isSeed(asked.get("seed").trim())) return show("make-error", `seed is a whole number from 0 to ${SEED_MAX}`);
  try {
    const answer = await call("/v1/videos", { method: "POST", body: asked });
    show("make-error", "");
    noted(await answered(answer));
  } catch (error) { show("make-error", error.message); }
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("make").requestSubmit();
});
$("key").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key-text").value.trim();
  sessionStorage.setItem("evanesce-key", key);
  begin();
});

// The answer is drawn at once: the events of a job under way come only when its step has ended.
async function act(path, method) {
  try {
    const answer = await answered(await call(path, { method }));
    show("make-error", "");
    handlers[answer.object](answer);
  } catch (error) { show("make-error", error.message); }
}

// Queue

const isOver = (video) => video.status === "completed" || video.status === "failed";

function noted(video) {
  if (!isOver(video)) {
    queue.set(video.id, video);
    heard.set(video.id, ++eventsHeard);
  } else {
    ended.add(video.id);
    leaves(video.id);
    if (!listed.some((one) => one.id === video.id && isOver(one))) refresh();
  }
  drawQueue();
}

function leaves(id) {
  queue.delete(id);
  heard.delete(id);
}

// What a list says of the queue that was asked for when so many events had been heard. What was heard of since then is newer, and
// what has ended stays ended.
function noteListed(videos, asked) {
  for (const video of videos) {
    if (isOver(video)) { ended.add(video.id); leaves(video.id); } else if (!ended.has(video.id) && (heard.get(video.id) ?? 0) <= asked) queue.set(video.id, video);
  }
}

// The queue from its beginning: jobs older than the gallery's page, too. What was in it and is not listed any more is gone.
async function fillQueue() {
  const [before, asked] = [[...queue.keys()], eventsHeard];
  try {
    const { data } = await answered(await call(`/v1/videos?limit=${QUEUE_SIZE}`));
    for (const id of before) if (!data.some((video) => video.id === id)) leaves(id);
    noteListed(data, asked);
    drawQueue();
  } catch (error) { if (error.status !== 401) show("make-error", error.message); }
}

function words(video) {
  const parts = [video.priority, video.quality];
  if (video.status === "queued") parts.push(`place ${video.queue_position ?? "?"}`);
  else if (video.phase === "queued") parts.push("starting");
  else parts.push(video.phase === "denoise" ? `step ${video.step} of ${video.total_steps}` : video.phase);
  if (video.eta_s !== null) parts.push(video.eta_s < 90 ? `about ${Math.ceil(video.eta_s)} s` : `about ${Math.round(video.eta_s / 60)} min`);
  const device = video.memory?.device?.owned_bytes;
  if (device) parts.push(human(device));
  return parts.join(" · ");
}

// What gave way for lack of memory, each thing once.
function gaveWay(video) {
  const said = (video.degradations ?? []).map((one) => typeof one === "string" ? one : one.message ?? one.action ?? JSON.stringify(one));
  return said.length ? `gave way: ${[...new Set(said)].join(", ")}` : "";
}

function row(video) {
  const watch = element("video", { muted: "", playsinline: "", hidden: "", "aria-label": `So far: ${video.prompt}` });
  watch.muted = true;
  return element("li", { "data-id": video.id }, watch, element("span", { class: "prompt", title: video.prompt }, video.prompt),
    element("span", { class: "detail" }), element("span", { class: "gave-way", hidden: "" }), element("progress", { max: 100, "aria-label": `Progress: ${video.prompt}` }),
    element("button", { type: "button", "aria-label": `Cancel: ${video.prompt}`, onclick: () => act(`/v1/videos/${video.id}/cancel`, "POST") }, "Cancel"));
}

function drawQueue() {
  const order = [...queue.values()].sort((a, b) => (a.queue_position ?? 0) - (b.queue_position ?? 0) || a.created_at - b.created_at);
  const kept = new Map([...$("queue").children].map((made) => [made.dataset.id, made]));
  order.forEach((video, at) => {
    const made = kept.get(video.id) ?? row(video);
    kept.delete(video.id);
    made.querySelector(".detail").textContent = words(video);
    made.querySelector("progress").value = video.progress;
    const gave = made.querySelector(".gave-way");
    gave.textContent = gaveWay(video);
    gave.hidden = !gave.textContent;
    // A row that is in its place is not touched: moving it would stop its video and take the focus from its button.
    if ($("queue").children[at] !== made) $("queue").insertBefore(made, $("queue").children[at] ?? null);
    watchGrowing(video, made.querySelector("video"));
  });
  for (const made of kept.values()) {
    made.remove();
    unwatch(made.dataset.id);
  }
  $("queue-empty").hidden = order.length > 0;
}

// A video is shown in its row from its first pictures on; until there are any, the service says 409, and it is asked again later.
// For each row what ends its stream, or when it may have the next one.
const watched = new Map();

function watchGrowing(video, shown) {
  const hasPictures = video.status === "in_progress" && (video.phase === "decode" || video.phase === "encode" || video.progress >= 10);
  const before = watched.get(video.id);
  if (!canPlayGrowing() || !hasPictures || before instanceof AbortController || before > performance.now()) return;
  if ([...watched.values()].filter((state) => state instanceof AbortController).length >= STREAMS_MAX) return;
  const stream = new AbortController();
  watched.set(video.id, stream);
  const next = (at) => { if (watched.get(video.id) === stream) watched.set(video.id, at); };
  const open = (signal) => call(`/v1/videos/${video.id}/content`, { signal });
  shown.addEventListener("loadeddata", () => { shown.hidden = false; shown.play().catch(() => {}); }, { once: true });
  // One that has come to its end is whole; one that has broken off is tried again.
  playGrowing(shown, open, stream.signal).then(() => next(Infinity), () => next(performance.now() + 1000));
}

function unwatch(id) {
  const state = watched.get(id);
  if (state instanceof AbortController) state.abort();
  watched.delete(id);
}

// Gallery

// One at a time, and once more if something happened meanwhile: answers never overtake each other.
let refreshing = false;
let isStale = false;

async function refresh() {
  isStale = true;
  if (refreshing) return;
  refreshing = true;
  while (isStale) {
    isStale = false;
    await list();
  }
  refreshing = false;
}

async function list() {
  const [after, asked] = [pages[pages.length - 1], eventsHeard];
  try {
    const answer = await answered(await call(`/v1/videos?limit=${PAGE_SIZE}${after ? `&after=${after}` : ""}`));
    listed = answer.data;
    noteListed(listed, asked);
    $("older").disabled = !answer.has_more;
    $("older").dataset.after = answer.last_id ?? "";
    $("newer").disabled = pages.length === 1;
    $("pages").hidden = !answer.has_more && pages.length === 1;
    drawGallery();
    drawQueue();
  } catch (error) {
    if (error.status === 404 && pages.length > 1) { pages = [null]; isStale = true; }
    else if (error.status !== 401) show("make-error", error.message);
  }
}
$("older").addEventListener("click", () => { pages.push($("older").dataset.after); refresh(); });
$("newer").addEventListener("click", () => { pages.pop(); refresh(); });

async function bytes(video, variant) {
  const name = `${video.id} ${variant}`;
  if (!pictures.has(name)) {
    const blob = await (await call(`/v1/videos/${video.id}/content?variant=${variant}`)).blob();
    pictures.set(name, URL.createObjectURL(blob));
  }
  return pictures.get(name);
}

function drawGallery() {
  const focused = document.activeElement?.closest?.("#gallery li")?.dataset.id;
  const over = listed.filter(isOver);
  $("gallery").replaceChildren(...over.map((video) => {
    let picture;
    if (video.status === "completed") {
      const image = element("img", { alt: video.prompt, loading: "lazy" });
      bytes(video, "thumbnail").then((url) => { image.src = url; }, () => {});
      picture = element("button", { type: "button", class: "picture", "aria-label": `Play: ${video.prompt}`, onclick: () => play(video) }, image);
    } else picture = element("div", { class: "failed" }, video.error.message);
    const foot = element("div", { class: "foot" }, [`${video.size} · ${video.num_frames} ${video.num_frames === 1 ? "frame" : "frames"}`, gaveWay(video)].filter(Boolean).join(" · "),
      element("button", { type: "button", "aria-label": `Delete: ${video.prompt}`, onclick: () => act(`/v1/videos/${video.id}`, "DELETE") }, "Delete"));
    return element("li", { "data-id": video.id }, picture, element("span", { class: "prompt", title: video.prompt }, video.prompt), foot);
  }));
  $("gallery-empty").hidden = over.length > 0;
  $("gallery-empty").textContent = $("pages").hidden ? "No videos yet." : "No finished videos on this page.";
  if (focused) [...$("gallery").children].find((made) => made.dataset.id === focused)?.querySelector("button")?.focus();
}

async function play(video) {
  try {
    $("player-video").src = await bytes(video, "video");
    $("player-text").textContent = `${video.prompt} (seed ${video.seed}, ${video.num_inference_steps} steps)`;
    $("player").showModal();
    await $("player-video").play();
  } catch (error) { if (error.name !== "AbortError" && error.name !== "NotAllowedError") show("make-error", error.message); }
}
$("player").addEventListener("close", () => $("player-video").pause());

// Memory: a stacked area for each tier, kinds over time

function human(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let at = 0;
  while (count >= 1024 && at < 4) { count /= 1024; at += 1; }
  return `${count >= 100 || at === 0 ? Math.round(count) : count.toFixed(1)} ${units[at]}`;
}

function drawMemory() {
  const now = history[history.length - 1];
  $("memory-empty").hidden = true;
  // How short memory is, while it is; a word that the service sends.
  const isShort = now.pressure && now.pressure !== "calm";
  show("pressure", isShort ? `memory is short: ${now.pressure}` : "");
  const tiers = ["device", "host", "disk"].filter((tier) => now.tiers[tier]?.budget_bytes > 0);
  $("memory").replaceChildren(...tiers.map((tier) => {
    const held = now.tiers[tier];
    const value = (sample, kind) => kind === "reserved" ? sample.tiers[tier].reserved_bytes : sample.kinds[tier]?.[kind] ?? 0;
    const top = Math.max(1, ...history.map((sample) => sample.tiers[tier].used_bytes)) * 1.1;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 100 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${tier}: ${human(held.used_bytes)} of ${human(held.budget_bytes)}`);
    const base = history.map(() => 0);
    const legend = element("div", { class: "legend" });
    for (const kind of KINDS) {
      if (!history.some((sample) => value(sample, kind))) continue;
      const x = (at) => 100 * (SAMPLES - history.length + at) / (SAMPLES - 1);
      const low = base.map((bytes, at) => `${x(at)},${100 - 100 * bytes / top}`).reverse();
      history.forEach((sample, at) => { base[at] += value(sample, kind); });
      const high = base.map((bytes, at) => `${x(at)},${100 - 100 * bytes / top}`);
      const area = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
      area.setAttribute("points", [...high, ...low].join(" "));
      area.setAttribute("class", kind);
      svg.append(area);
      legend.append(element("span", {}, element("i", { class: kind }), `${kind} ${human(value(now, kind))}`));
    }
    const line = [`${tier}: ${human(held.used_bytes)} of ${human(held.budget_bytes)}`, `${human(held.peak_bytes)} at most`];
    // Freed buffers: no job's, and the machine's again once nothing has been done for a while.
    if (held.idle_bytes) line.push(`${human(held.idle_bytes)} held for reuse`);
    return element("div", { class: "tier" }, element("p", { class: "quiet" }, line.join(", ")), svg, legend);
  }));
}

// Reads and ends of entries, a row for each kind

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

// Of the reads since the oldest sample shown, or of all where there was none since; a service that was started anew counts from 0.
function hitRate(now, before) {
  const since = [now.hits - (before?.hits ?? 0), now.misses - (before?.misses ?? 0)];
  const [hits, misses] = since.every((count) => count >= 0) && since[0] + since[1] > 0 ? since : [now.hits, now.misses];
  if (hits + misses === 0) return ["", "nothing of it was read"];
  // Rounded down: 100 % is all of them.
  return [`${Math.floor(1000 * hits / (hits + misses)) / 10} %`, `${hits} of ${hits + misses} reads found what they read`];
}

function drawLife() {
  const [first, now] = [history[0], history[history.length - 1]];
  const kinds = Object.entries(now.life ?? {});
  $("life").hidden = kinds.length === 0;
  $("life").tBodies[0].replaceChildren(...kinds.map(([kind, life]) => {
    const [rate, title] = hitRate(life, first.life?.[kind]);
    const counts = [life.misses, life.pruned, life.evicted].map((count) => element("td", { title: count }, compact.format(count)));
    return element("tr", {}, element("th", { scope: "row" }, kind), element("td", { title }, rate), ...counts);
  }));
}

// Events

const handlers = {
  video: (data) => noted(data),
  "video.deleted": (data) => { ended.add(data.id); leaves(data.id); drawQueue(); refresh(); },
  memory: (data) => { history = [...history, data].slice(-SAMPLES); drawMemory(); drawLife(); },
  missed: () => { fillQueue(); refresh(); },
};

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const lines = text.slice(0, end).split("\n");
      text = text.slice(end + 2);
      const field = (name) => lines.filter((line) => line.startsWith(`${name}:`)).map((line) => line.slice(name.length + 1).trimStart());
      if (field("data").length) yield [field("event")[0], read(field("data").join("\n"))];
    }
  }
}

let watching = 0;

async function begin() {
  const mine = ++watching;
  for (let wait = 500; mine === watching; wait = Math.min(wait * 2, 10000)) {
    try {
      const stream = await call("/v1/events");
      $("key-section").hidden = true;
      show("key-error", "");
      connected("live", false);
      wait = 500;
      queue.clear();
      heard.clear();
      const models = await (await call("/v1/models")).json();
      $("model").textContent = models.data.map((model) => model.id).join(", ");
      fillQueue();
      refresh();
      for await (const [name, data] of events(stream)) if (mine === watching) handlers[name]?.(data);
    } catch (error) {
      if (error.status === 401) {
        connected("needs a key", true);
        show("key-error", key ? error.message : "");
        return;
      }
    }
    connected("connection lost, trying again", true);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
}
begin();
