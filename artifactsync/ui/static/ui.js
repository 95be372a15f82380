// What the pages do by themselves: fill the rows of the list as they come into view, sort them, copy a command.
// Whatever comes from the server is shown as text, never as markup.
"use strict";

const AT_ONCE = 40; // runs that one request asks about; the server takes 50
const REQUESTS = 2; // under way at a time

const start = () => {
  for (const button of document.querySelectorAll("button[data-copy]")) prepareCopy(button);
  const table = document.getElementById("runs");
  if (table) fillAndSort(table);
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

const fillAndSort = (table) => {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numbers = new Map(); // row to what it is sorted by; null: nothing is known of it
  const waiting = new Set(); // rows in view, or wanted for sorting, that were not asked about yet
  let underWay = 0;
  let whenFilled = null;

  const fill = (row, found) => {
    numbers.set(row, found ? found.numbers : null);
    row.querySelector(".state").className = `state ${found ? found.state : "unknown"}`;
    for (const cell of row.querySelectorAll("[data-field]")) {
      cell.textContent = found ? found.texts[cell.dataset.field] : cell.dataset.field === "state" ? "gone" : "";
    }
  };

  const ask = async () => {
    if (underWay >= REQUESTS) return;
    const asked = [...waiting].slice(0, AT_ONCE);
    if (!asked.length) {
      if (!underWay && whenFilled) whenFilled();
      return;
    }
    for (const row of asked) waiting.delete(row);
    underWay += 1;
    try {
      const wanted = new URLSearchParams(asked.map((row) => ["run", row.dataset.run]));
      const answer = await fetch(`/summaries?${wanted}`);
      if (!answer.ok) throw new Error(`the page's server answered ${answer.status}`);
      const told = await answer.json();
      if (told.error) throw new Error(told.error);
      for (const row of asked) fill(row, told.runs[row.dataset.run]);
      document.getElementById("listing-trouble").textContent = "";
    } catch (error) {
      const said = error instanceof TypeError ? "artifactsync ui does not answer; was it ended?" : error.message;
      document.getElementById("listing-trouble").textContent = ` ${said}`;
      for (const row of asked) row.querySelector(".state").textContent = "?";
    }
    underWay -= 1;
    ask();
  };

  const want = (wanted) => {
    for (const row of wanted) if (!numbers.has(row)) waiting.add(row);
    for (let i = 0; i < REQUESTS; i += 1) ask();
  };

  const seen = new IntersectionObserver(
    (entries) => want(entries.filter((entry) => entry.isIntersecting).map((entry) => entry.target)),
    { rootMargin: "300px" },
  );
  for (const row of rows) seen.observe(row);

  const sort = async (heading, field) => {
    const isDown = heading.getAttribute("aria-sort") !== "descending";
    if (field !== "name") {
      await new Promise((filled) => { whenFilled = filled; want(rows); });
      whenFilled = null;
    }
    const value = (row) => (field === "name" ? row.dataset.run : numbers.get(row)?.[field] ?? -Infinity);
    const order = (one, other) => (value(one) < value(other) ? -1 : value(one) > value(other) ? 1 : 0);
    rows.sort((one, other) => (isDown ? order(other, one) : order(one, other)));
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    body.append(...rows);
  };
  for (const button of table.tHead.querySelectorAll("button[data-sort]")) {
    button.addEventListener("click", () => sort(button.closest("th"), button.dataset.sort));
  }
  // Few enough to be asked about at once: the newest commit first, as `artifactsync ls` has them.
  if (rows.length <= AT_ONCE) table.tHead.querySelector("[data-sort=age]").click();
};

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
