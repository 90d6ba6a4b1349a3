// The page as people meet it: in a browser, with mouse and keyboard, large and small, light and dark, and when things go wrong.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { existsSync, mkdirSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";
import { Service, growing, quick, slow } from "./service.js";

const executablePath = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const shots = process.env.EVANESCE_SCREENSHOTS;
let browser;

before(async () => {
  if (shots) mkdirSync(shots, { recursive: true });
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"] });
});
after(() => browser.close());

// Opens the page of a service, after `init` has run in it; whatever the browser complains of fails the test.
async function open(service, { init, ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 900 }, ...options });
  const page = await context.newPage();
  if (init) await page.addInitScript(init);
  page.complaints = [];
  page.on("pageerror", (error) => page.complaints.push(error.message));
  page.on("console", (message) => {
    // A refused request is told by the browser, too.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.complaints.push(message.text());
  });
  await page.goto(service.url);
  return page;
}

async function finish(page, service) {
  assert.deepEqual(page.complaints, []);
  await page.context().close();
  await service?.stop();
}

const live = (page) => page.getByText("live", { exact: true }).waitFor();
const shoot = (page, name) => shots ? page.screenshot({ path: join(shots, `${name}.png`), fullPage: true }) : null;

const inQueue = (page, count) => page.waitForFunction((wanted) => document.querySelectorAll("#queue li").length === wanted, count);

// For `open`: the page hears no events but those that the test tells.
function eventsOfTest() {
  const fetched = window.fetch;
  const start = (events) => {
    window.tell = (name, data) => events.enqueue(new TextEncoder().encode(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`));
  };
  window.fetch = async (path, options) => path === "/v1/events" ? new Response(new ReadableStream({ start })) : fetched(path, options);
}

const tell = (page, name, data) => page.evaluate((event) => window.tell(...event), [name, data]);

async function ask(page, { prompt, size, num_frames, num_inference_steps, seed }) {
  await page.getByLabel("What should it show?").fill(prompt);
  if (!await page.getByLabel("Size").isVisible()) await page.getByText("More settings").click();
  await page.getByLabel("Size").fill(size);
  await page.getByLabel("Seconds").fill(String((num_frames - 1) / 16));
  await page.getByLabel("Steps").fill(String(num_inference_steps));
  await page.getByLabel("Seed").fill(String(seed));
  await page.getByRole("button", { name: "Make video" }).click();
}

test("a video is asked for, watched through the queue, and played from the gallery", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  await shoot(page, "empty");
  await ask(page, slow);
  const row = page.locator("#queue li");
  await row.getByText(/step \d+ of 100/).waitFor();
  // 200 where no step is shown at this moment: less than what the end of the job counts as
  const first = await page.evaluate(() => Number(/step (\d+)/.exec(document.querySelector("#queue .detail")?.textContent)?.[1] ?? 200));
  await page.waitForFunction((before) => Number(/step (\d+)/.exec(document.querySelector("#queue .detail")?.textContent)?.[1] ?? 201) > before, first);
  await page.locator("#memory svg polygon").first().waitFor();
  await page.getByRole("row", { name: /^weights \d/ }).waitFor();
  await shoot(page, "under-way");
  await page.getByRole("button", { name: /^Play:/ }).waitFor({ timeout: 60000 });
  await page.waitForFunction(() => document.querySelector("#gallery img")?.naturalWidth > 0);
  await page.getByRole("button", { name: /^Play:/ }).click();
  await page.waitForFunction(() => document.getElementById("player-video").currentTime > 0.2);
  assert.ok(await page.evaluate(() => document.getElementById("player-video").videoWidth) === 64);
  await shoot(page, "player");
  await page.keyboard.press("Escape");
  assert.equal(await page.locator("dialog").isVisible(), false);
  await page.getByRole("button", { name: /^Delete:/ }).click();
  await page.getByText("No videos yet.").waitFor();
  await finish(page, service);
});

test("a video is played while it is made", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  const { id } = await service.create(growing);
  const shown = page.locator("#queue li video");
  await shown.waitFor({ state: "visible", timeout: 60000 });
  await page.waitForFunction(() => document.querySelector("#queue video")?.currentTime > 0.3);
  const { status } = await service.call(`/v1/videos/${id}`);
  assert.equal(status, "in_progress");
  await shoot(page, "growing");
  await page.getByRole("button", { name: /^Play:/ }).waitFor({ timeout: 60000 });
  await finish(page, service);
});

test("what is refused is said where it was asked, and a failed video says why", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  await ask(page, { ...quick, size: "33x32" });
  await page.getByRole("alert").getByText("multiples of 16").waitFor();
  await shoot(page, "refused");
  await page.getByLabel("Size").fill("64x64");
  await page.getByLabel("Steps").fill("200");
  await page.getByLabel("Seconds").fill("5");
  await page.getByRole("button", { name: "Make video" }).click();
  await page.getByRole("button", { name: /^Cancel:/ }).click();
  await page.getByText("the job was cancelled").waitFor();
  assert.equal(await page.locator("#make-error").isVisible(), false);
  await shoot(page, "cancelled");
  await finish(page, service);
});

test("numbers are sent as they are written", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  // A letter for a zero, and one more than a number of JavaScript can say.
  await ask(page, { ...quick, num_inference_steps: "4O", seed: "9007199254740993" });
  await page.getByRole("alert").getByText("num_inference_steps is a whole number").waitFor();
  assert.deepEqual((await service.call("/v1/videos")).data, []);
  await page.getByLabel("Steps").fill("2");
  await page.getByRole("button", { name: "Make video" }).click();
  await page.getByRole("button", { name: /^Play:/ }).waitFor({ timeout: 60000 });
  const listed = await (await fetch(`${service.url}/v1/videos`)).text();
  assert.match(listed, /"seed":9007199254740993\b/);
  assert.match(listed, /"num_inference_steps":2\b/);
  await finish(page, service);
});

test("seeds are taken, refused and shown to the last digit", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  for (const refused of ["18446744073709551616", "1.5", "-1", "1e3"]) {
    await ask(page, { ...quick, seed: refused });
    await page.getByRole("alert").getByText("seed is a whole number from 0 to 18446744073709551615").waitFor();
    await page.evaluate(() => { document.getElementById("make-error").textContent = ""; });
  }
  assert.deepEqual((await service.call("/v1/videos")).data, []);
  // A prompt that has in it what a seed is known by.
  const prompt = 'a ball, "seed":12345678901234567890';
  await ask(page, { ...quick, prompt, seed: "18446744073709551615" });
  await page.getByRole("button", { name: /^Play:/ }).click({ timeout: 60000 });
  await page.getByText(`${prompt} (seed 18446744073709551615,`).waitFor();
  await finish(page, service);
});

test("what events did not tell is found out when some were missed", async () => {
  const service = await Service.start();
  const page = await open(service, { init: eventsOfTest });
  await live(page);
  const cancelled = await service.create({ ...slow, prompt: "cancelled unseen" });
  const deleted = await service.create({ ...slow, prompt: "deleted unseen" });
  await tell(page, "missed", 2);
  await inQueue(page, 2);
  await service.call(`/v1/videos/${cancelled.id}/cancel`, { method: "POST" });
  await service.call(`/v1/videos/${deleted.id}`, { method: "DELETE" });
  await tell(page, "missed", 2);
  await inQueue(page, 0);
  await page.getByText("the job was cancelled").waitFor();
  await page.getByText("Nothing waits.").waitFor();
  await finish(page, service);
});

test("a list that comes late does not undo what events have told since it was asked for", async () => {
  const service = await Service.start();
  const first = await service.create(slow);
  const second = await service.create({ seed: 2 });
  const page = await open(service, { init: eventsOfTest });
  await live(page);
  await inQueue(page, 2);
  let [release, bothAsked, asking] = [null, null, 0];
  const released = new Promise((resolve) => { release = resolve; });
  const asked = new Promise((resolve) => { bothAsked = resolve; });
  await page.route("**/v1/videos?limit=*", async (route) => {
    const response = await route.fetch();
    asking += 1;
    if (asking === 2) bothAsked();
    await released;
    await route.fulfill({ response });
  });
  // It asks for both of its lists, and neither answers yet.
  await tell(page, "missed", 1);
  await asked;
  await tell(page, "video", { ...second, queue_position: 7 });
  await page.getByText("place 7").waitFor();
  release();
  // The gallery is drawn from the list, and so the list is there.
  await page.waitForFunction(() => performance.getEntriesByType("resource").filter((one) => one.name.includes("limit=")).length >= 4);
  await page.evaluate(() => new Promise((resolve) => { requestAnimationFrame(() => setTimeout(resolve)); }));
  assert.equal(await page.getByText("place 7").count(), 1);
  await service.call(`/v1/videos/${first.id}/cancel`, { method: "POST" });
  await finish(page, service);
});

test("hit rates are of the time that is shown, counts since the start, and memory held for reuse is named", async () => {
  const service = await Service.start();
  const page = await open(service, { init: eventsOfTest });
  await live(page);
  const tier = { budget_bytes: 4096, used_bytes: 1024, peak_bytes: 2048, reserved_bytes: 0, idle_bytes: 512 };
  const memory = (hits, misses, pruned) => ({ tiers: { device: tier }, kinds: { device: { self_kv: 1024 } }, life: { self_kv: { hits, misses, pruned, evicted: 0 } }, pressure: "calm" });
  const row = (says) => page.getByRole("row", { name: `self_kv ${says}`, exact: true }).waitFor();
  await tell(page, "memory", memory(90, 10, 4));
  await row("90 % 10 4 0");
  await tell(page, "memory", memory(140, 10, 1500));
  await row("100 % 10 1.5K 0");
  // A service that was started anew.
  await tell(page, "memory", memory(3, 1, 0));
  await row("75 % 1 0 0");
  await page.getByText("device: 1.0 KiB of 4.0 KiB, 2.0 KiB at most, 512 B held for reuse").waitFor();
  await finish(page, service);
});

test("the queue has all that wait, more than the gallery's page too, after a reload as well", async () => {
  const service = await Service.start();
  for (let seed = 0; seed < 14; seed += 1) await service.create({ ...slow, seed });
  const page = await open(service, { init: eventsOfTest });
  await inQueue(page, 14);
  await page.reload();
  await inQueue(page, 14);
  await finish(page, service);
});

test("everything can be done by keyboard", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  const focused = () => page.evaluate(() => document.activeElement?.getAttribute("aria-label") ?? document.activeElement?.id ?? "");
  const tabTo = async (wanted) => {
    for (let presses = 0; presses < 30; presses += 1) {
      if (wanted.test(await focused())) return;
      await page.keyboard.press("Tab");
    }
    assert.fail(`the keyboard never came to ${wanted}`);
  };
  await service.create(slow);
  await page.getByRole("button", { name: /^Cancel:/ }).waitFor();
  await tabTo(/^prompt$/);
  await page.keyboard.type("a green square");
  await page.keyboard.press("Control+Enter");
  await page.getByText("a green square").first().waitFor();
  await tabTo(/^Cancel: a red ball/);
  // A row that changes while it has the focus keeps it.
  await page.waitForFunction(() => /step [2-9]/.test(document.querySelector("#queue .detail")?.textContent ?? ""));
  assert.match(await focused(), /^Cancel: a red ball/);
  await page.keyboard.press("Enter");
  await page.getByText("the job was cancelled").waitFor();
  await page.getByRole("button", { name: "Play: a green square" }).waitFor({ timeout: 60000 });
  await tabTo(/^Play: a green square/);
  await page.keyboard.press("Enter");
  await page.locator("dialog[open]").waitFor();
  await page.keyboard.press("Escape");
  await finish(page, service);
});

test("the gallery has pages", async () => {
  const service = await Service.start();
  for (let seed = 0; seed < 14; seed += 1) await service.create({ ...quick, seed, num_frames: 1, num_inference_steps: 1 });
  const page = await open(service);
  await page.waitForFunction(() => document.querySelectorAll("#queue li").length === 0 && document.querySelectorAll("#gallery li").length === 12, null, { timeout: 60000 });
  await page.getByRole("button", { name: "Older" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#gallery li").length === 2);
  assert.equal(await page.getByRole("button", { name: "Older" }).isDisabled(), true);
  await page.getByRole("button", { name: "Newer" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#gallery li").length === 12);
  await shoot(page, "gallery");
  await finish(page, service);
});

// Text against what is behind it, as WCAG 2 counts contrast; every text on the page.
function weakTexts() {
  const luminance = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255).map((value) => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor;
      if (!/, 0\)$/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const weak = [];
  for (const element of document.querySelectorAll("body *")) {
    const says = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!says || !element.checkVisibility() || element.disabled) continue;
    const [a, b] = [luminance(getComputedStyle(element).color), luminance(ground(element))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) weak.push(`${element.textContent.trim()}: ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return weak;
}

for (const colorScheme of ["light", "dark"]) {
  test(`at a phone's width nothing is cut off, and texts are strong enough, in ${colorScheme}`, async () => {
    const service = await Service.start();
    const page = await open(service, { viewport: { width: 360, height: 740 }, colorScheme, hasTouch: true });
    await live(page);
    await service.create({ ...quick, prompt: "a-prompt-without-any-place-to-break-it-".repeat(10) });
    await page.getByRole("button", { name: /^Play:/ }).waitFor({ timeout: 60000 });
    await service.create({ ...slow, prompt: "another-prompt-without-any-place-to-break-".repeat(10) });
    await page.locator("#queue li").getByText(/step \d+ of 100/).waitFor();
    await ask(page, { ...quick, size: "33x32" });
    await page.getByRole("alert").getByText("multiples of 16").waitFor();
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 360);
    const small = await page.evaluate(() => [...document.querySelectorAll("button")].filter((button) => button.checkVisibility() && button.getBoundingClientRect().height < 32).map((button) => button.textContent));
    assert.deepEqual(small, []);
    assert.deepEqual(await page.evaluate(weakTexts), []);
    await shoot(page, `phone-${colorScheme}`);
    await page.setViewportSize({ width: 1200, height: 900 });
    await shoot(page, `desktop-${colorScheme}`);
    await finish(page, service);
  });
}

test("a service with keys asks for one, and says when it is wrong", async () => {
  // BLAKE3 of "alice".
  const config = `[[keys]]\ntenant = "alice"\nblake3 = "71b278f3dc434447fc620500e47b6a80b0cb0df76a1051119fe19ed4953242df"\n`;
  const service = await Service.start({ config });
  const page = await open(service);
  await page.getByText("needs a key", { exact: true }).waitFor();
  await shoot(page, "key");
  await page.getByLabel("This service needs a key").fill("mallory");
  await page.getByRole("button", { name: "Use key" }).click();
  await page.getByText("this key is not known here").waitFor();
  await page.getByLabel("This service needs a key").fill("alice");
  await page.getByRole("button", { name: "Use key" }).click();
  await live(page);
  await ask(page, growing);
  await page.locator("#queue li video").waitFor({ state: "visible", timeout: 60000 });
  await page.getByRole("button", { name: /^Play:/ }).waitFor({ timeout: 60000 });
  await page.getByRole("button", { name: /^Play:/ }).click();
  await page.waitForFunction(() => document.getElementById("player-video").currentTime > 0.2);
  await finish(page, service);
});

test("a service that is gone is said, and found again when it is back", async () => {
  const service = await Service.start();
  const page = await open(service);
  await live(page);
  await ask(page, slow);
  await page.locator("#queue li").getByText(/step \d+ of 100/).waitFor();
  await service.kill();
  await page.getByText("connection lost, trying again").waitFor();
  await page.getByRole("button", { name: "Make video" }).click();
  await page.getByRole("alert").getByText(/cannot be reached/).waitFor();
  await shoot(page, "lost");
  const again = await Service.start({ data: service.data, listen: service.url.slice("http://".length) });
  await live(page);
  await page.locator("#queue li").getByText(/step \d+ of 100/).waitFor();
  await finish(page, again);
});
