// What the pages do by themselves: fill the rows of the list as they come into view, keep them up to date, sort them,
// follow a verification, copy a command. Whatever comes from the server is shown as text, never as markup.
"use strict";

const AT_ONCE = 40; // runs that one request asks about; the server takes 50
const REQUESTS = 2; // under way at a time
const FOLLOW_MS = 1000; // between two looks at a verification
const RUNNING_MS = 10000; // between two looks at the runs in view that are running
const LIST_MS = 30000; // between two looks at the names, and at all runs in view

const start = () => {
  for (const button of document.querySelectorAll("button[data-copy]")) prepareCopy(button);
  const table = document.getElementById("runs");
  const list = table ? fillAndSort(table) : null;
  if (document.getElementById("list")) keepUpToDate(list);
  const progress = document.getElementById("progress");
  if (progress) follow(progress);
};

const ask = async (address) => {
  let answer;
  try {
    answer = await fetch(address);
  } catch {
    throw new Error("artifactsync ui does not answer; was it ended?");
  }
  if (!answer.ok) throw new Error(`the page's server answered ${answer.status}`);
  const told = await answer.json();
  if (told.error) throw new Error(told.error);
  return told;
};

// Again and again while the page is looked at; at once when it is looked at again after a while.
const repeat = (everyMs, work) => {
  let last = Date.now();
  let isAtIt = false;
  const look = async () => {
    if (isAtIt || document.hidden || Date.now() - last < everyMs - 50) return;
    isAtIt = true;
    await work();
    isAtIt = false;
    last = Date.now();
  };
  setInterval(look, everyMs / 2);
  document.addEventListener("visibilitychange", look);
};

const prepareCopy = (button) => {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    } catch { // not allowed: leave it selected, for the keyboard
      getSelection().selectAllChildren(source);
    }
  });
};

const follow = (progress) => {
  repeat(FOLLOW_MS, async () => {
    try {
      const told = await ask(progress.dataset.of);
      if (!told.is_running) { // the page has the verdict
        location.reload();
        return;
      }
      if (told.total_bytes) {
        progress.max = told.total_bytes;
        progress.value = told.done_bytes;
      }
      document.getElementById("progress-words").textContent = told.words;
      document.getElementById("progress-trouble").textContent = "";
    } catch (error) {
      document.getElementById("progress-trouble").textContent = error.message;
    }
  });
};

const keepUpToDate = (list) => {
  const source = document.getElementById("list").dataset.names;
  if (list) repeat(RUNNING_MS, () => list.lookAgain((state) => state === "running"));
  repeat(LIST_MS, async () => {
    try {
      const told = await ask(source);
      if (!list || !told.names.length) { // the first ones, or no more: the page says it better
        if (list || told.names.length) location.reload();
        return;
      }
      list.have(told.names);
      document.getElementById("count").textContent = `${told.matching.toLocaleString("en")} ${told.matching === 1 ? "run" : "runs"}`;
      document.getElementById("as-of").textContent = told.as_of;
      await list.lookAgain(() => true);
    } catch (error) {
      document.getElementById("listing-trouble").textContent = ` ${error.message}`;
    }
  });
};

const fillAndSort = (table) => {
  const body = table.tBodies[0];
  let rows = [...body.rows];
  const pattern = rows[0].cloneNode(true);
  const numbers = new Map(); // row to what it is sorted by; null: nothing is known of it
  const waiting = new Set(); // rows in view, or wanted for sorting, that are to be asked about
  const inView = new Set();
  let underWay = 0;
  const whenFilled = []; // whoever waits until all that is wanted is known
  let order = { field: "name", isDown: true };

  const fill = (row, found) => {
    numbers.set(row, found ? found.numbers : null);
    row.querySelector(".state").className = `state ${found ? found.state : "unknown"}`;
    for (const cell of row.querySelectorAll("[data-field]")) {
      cell.textContent = found ? found.texts[cell.dataset.field] : cell.dataset.field === "state" ? "gone" : "";
    }
  };

  const askOnce = async () => {
    if (underWay >= REQUESTS) return;
    const asked = [...waiting].slice(0, AT_ONCE);
    if (!asked.length) {
      if (!underWay) for (const filled of whenFilled.splice(0)) filled();
      return;
    }
    for (const row of asked) waiting.delete(row);
    underWay += 1;
    try {
      const wanted = new URLSearchParams(asked.map((row) => ["run", row.dataset.run]));
      const told = await ask(`/summaries?${wanted}`);
      for (const row of asked) fill(row, told.runs[row.dataset.run]);
      document.getElementById("listing-trouble").textContent = "";
    } catch (error) {
      document.getElementById("listing-trouble").textContent = ` ${error.message}`;
      for (const row of asked) if (!numbers.has(row)) row.querySelector(".state").textContent = "?";
    }
    underWay -= 1;
    askOnce();
  };

  const want = (wanted) => {
    for (const row of wanted) waiting.add(row);
    for (let i = 0; i < REQUESTS; i += 1) askOnce();
  };
  const unknown = (some) => some.filter((row) => !numbers.has(row));
  const allKnown = (some) => new Promise((filled) => { whenFilled.push(filled); want(some); });

  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.isIntersecting ? inView.add(entry.target) : inView.delete(entry.target);
    want(unknown(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target)));
  }, { rootMargin: "300px" });
  for (const row of rows) seen.observe(row);

  const place = () => {
    const value = (row) => (order.field === "name" ? row.dataset.run : numbers.get(row)?.[order.field] ?? -Infinity);
    const compare = (one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0);
    const before = rows;
    rows = [...rows].sort((one, other) => (order.isDown ? compare(other, one) : compare(one, other)));
    if (rows.some((row, i) => row !== before[i] || row !== body.rows[i])) body.append(...rows);
  };

  const sort = async (heading, field) => {
    order = { field, isDown: heading.getAttribute("aria-sort") !== "descending" };
    if (field !== "name") await allKnown(unknown(rows));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", order.isDown ? "descending" : "ascending");
    place();
  };
  for (const button of table.tHead.querySelectorAll("button[data-sort]")) {
    button.addEventListener("click", () => sort(button.closest("th"), button.dataset.sort));
  }
  // Few enough to be asked about at once: the newest commit first, as `artifactsync ls` has them.
  if (rows.length <= AT_ONCE) table.tHead.querySelector("[data-sort=age]").click();

  // These runs are there now; rows that stay keep what they show.
  const have = (names) => {
    const there = new Map(rows.map((row) => [row.dataset.run, row]));
    rows = names.map((name) => {
      const row = there.get(name) ?? pattern.cloneNode(true);
      if (there.delete(name)) return row;
      row.dataset.run = name;
      row.querySelector("a").href = `/runs/${encodeURIComponent(name)}`;
      row.querySelector("bdi").textContent = name;
      for (const cell of row.querySelectorAll("[data-field]")) cell.textContent = "";
      row.querySelector(".state").className = "state";
      row.querySelector(".state").textContent = "…";
      seen.observe(row);
      return row;
    });
    for (const row of there.values()) {
      for (const some of [inView, waiting]) some.delete(row);
      seen.unobserve(row);
      row.remove();
    }
    place();
  };

  const lookAgain = async (isWanted) => {
    const some = [...inView].filter((row) => isWanted(row.querySelector(".state").textContent));
    if (!some.length && !unknown(rows).length) return;
    await allKnown(order.field === "name" ? some : [...new Set([...some, ...unknown(rows)])]);
    place();
  };

  return { have, lookAgain };
};

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
