// Drives the page in Chromium: node driver.mjs '{"scenario": ..., ...}' prints JSON.

import { readFile } from "node:fs/promises";
import { chromium } from "playwright-core";

const QUIET = [
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];
const task = JSON.parse(process.argv[2]);

// A browser, whose microphone plays `sound` once where there is one. `deny` refuses it.
async function launch({ sound, deny }) {
  const fake = [
    "--use-fake-device-for-media-stream",
    `--use-fake-ui-for-media-stream${deny ? "=deny" : ""}`,
    `--use-file-for-fake-audio-capture=${sound}%noloop`,
  ];
  return chromium.launch({
    executablePath: task.chromium,
    args: [...QUIET, "--no-sandbox", "--js-flags=--expose-gc", ...(sound ? fake : [])],
  });
}

async function open(browser, options = {}) {
  const page = await browser.newPage({ acceptDownloads: true, ...options });
  page.on("pageerror", (error) => console.error(String(error)));
  page.on("console", (message) => console.error(message.text()));
  page.setDefaultTimeout(task.timeoutMs);
  return page;
}

async function ready(page) {
  await page.goto(task.url);
  await page.locator("#choose:enabled").waitFor();
}

async function readouts(page) {
  return page.evaluate(() =>
    Object.fromEntries(
      ["status", "problem", "heard", "delay", "speed", "memory", "rest"].map((id) => [
        id,
        document.getElementById(id).textContent,
      ]),
    ),
  );
}

async function done(page) {
  await page.locator("#status:text-matches('^Done'), #problem:visible").first().waitFor();
  await calm(page);
}

async function calm(page) {
  const { problem } = await readouts(page);
  if (problem) {
    throw new Error(`the page complains: ${problem}`);
  }
}

async function saved(page, id) {
  const [download] = await Promise.all([
    page.waitForEvent("download"),
    page.locator(id).click(),
  ]);
  return readFile(await download.path(), "utf-8");
}

async function outcome(page) {
  const words = await page.evaluate(() =>
    [...document.querySelectorAll(".word")].map((word) => [
      word.firstChild.textContent,
      word.querySelector("small").textContent,
    ]),
  );
  return {
    words,
    text: await saved(page, "#save-txt"),
    srt: await saved(page, "#save-srt"),
    ...(await readouts(page)),
  };
}

async function problem(page) {
  await page.locator("#problem:visible").waitFor();
  return (await readouts(page)).problem;
}

const scenarios = {
  async files(browser) {
    const page = await open(browser);
    await ready(page);
    const results = [];
    for (const file of task.files) {
      await page.locator("#file").setInputFiles(file);
      await page.locator("#status", { hasText: /^(Reading|Done)/ }).waitFor();
      await done(page);
      results.push(await outcome(page));
    }
    return results;
  },

  async microphone(browser) {
    const page = await open(browser);
    await ready(page);
    await page.locator("#microphone").focus();
    await page.keyboard.press("Enter");
    const delays = [];
    let level = -60;
    let heard = 0;
    for (let now; heard < task.seconds; ) {
      await page.waitForTimeout(50);
      level = Math.max(level, await page.evaluate(() => document.querySelector("meter").value));
      await calm(page);
      now = await readouts(page);
      const [minutes, seconds] = now.heard.split(":").map(Number);
      heard = 60 * minutes + seconds;
      if (delays.at(-1) !== now.delay) {
        delays.push(now.delay);
      }
    }
    const focus = await page.evaluate(() => document.activeElement.id);
    await page.keyboard.press("Enter");
    await done(page);
    const after = await page.evaluate(() => document.activeElement.id);
    return { delays, level, focus: [focus, after], ...(await outcome(page)) };
  },

  async refused(browser) {
    const page = await open(browser);
    await ready(page);
    await page.locator("#microphone").click();
    const found = await problem(page);
    await page.locator("#choose:enabled").waitFor();
    return found;
  },

  async problemOfFile(browser) {
    const page = await open(browser);
    await ready(page);
    const found = [];
    for (const file of task.files) {
      await page.locator("#file").setInputFiles(file);
      found.push(await problem(page));
      await page.locator("#choose:enabled").waitFor();
      await page.evaluate(() => (document.getElementById("problem").hidden = true));
    }
    return found;
  },

  async problemAtStart(browser) {
    const page = await open(browser);
    if (task.withoutSimd) {
      await page.addInitScript(() => (WebAssembly.validate = () => false));
    }
    await page.goto(task.url);
    return problem(page);
  },

  // What becomes of requests to another server, in the page and in the worker.
  async leaks(browser) {
    const page = await open(browser);
    await ready(page);
    const send = (url) =>
      fetch(url, { method: "POST", body: "words", mode: "no-cors" }).then(
        () => "sent",
        (error) => error.name,
      );
    const found = [await page.evaluate(send, task.elsewhere)];
    for (const worker of page.workers()) {
      found.push(await worker.evaluate(send, task.elsewhere));
    }
    return found;
  },

  async screenshots(browser) {
    for (const { width, height, colorScheme, path } of task.screens) {
      const page = await open(browser, { viewport: { width, height }, colorScheme });
      await ready(page);
      await page.locator("#file").setInputFiles(task.file);
      await done(page);
      await page.screenshot({ path });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      if (wide > width) {
        throw new Error(`the page is ${wide} pixels wide on a screen of ${width}`);
      }
      await page.close();
    }
    return null;
  },

  // Resident megabytes of the page's process while a long file is read.
  async memory(browser) {
    const page = await open(browser);
    await ready(page);
    const session = await browser.newBrowserCDPSession();
    await page.locator("#file").setInputFiles(task.file);
    const samples = [];
    while (!/^Done/.test((await readouts(page)).status)) {
      await page.waitForTimeout(task.everyMs);
      await calm(page);
      // What waits to be collected is no leak.
      await page.evaluate(() => gc());
      await Promise.all(page.workers().map((worker) => worker.evaluate(() => gc())));
      const { processInfo } = await session.send("SystemInfo.getProcessInfo");
      const { heard, memory } = await readouts(page);
      let resident = 0;
      for (const { id, type } of processInfo.filter(({ type }) => type === "renderer")) {
        const status = await readFile(`/proc/${id}/status`, "utf-8");
        resident += Number(/VmRSS:\s+(\d+)/.exec(status)[1]) / 1024;
      }
      const [minutes, seconds] = heard.split(":").map(Number);
      samples.push([60 * minutes + seconds, Math.round(resident), memory]);
    }
    return { samples, lines: await page.locator(".line").count(), ...(await readouts(page)) };
  },
};

const browser = await launch(task);
try {
  const version = browser.version();
  const result = await scenarios[task.scenario](browser);
  console.log(JSON.stringify({ version, result }));
} finally {
  await browser.close();
}
