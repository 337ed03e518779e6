"use strict";
document.documentElement.classList.add("js");

// Tables: the button in each heading sorts by its column, numbers by their full value.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => {
        const cell = row.cells[column], data = cell.querySelector("data");
        return data ? Number(data.value) : cell.textContent.trim();
      };
      const compare = (a, b) =>
        typeof a === "number" && typeof b === "number" ? a - b :
        typeof a === "number" ? -1 : typeof b === "number" ? 1 : a.localeCompare(b, "en", {numeric: true});
      const rows = [...body.rows].map(row => [key(row), row]);
      rows.sort(([a], [b]) => (down ? -1 : 1) * compare(a, b));
      body.append(...rows.map(([, row]) => row));
    });
  });
}

// Printing opens what is folded up; afterwards it is folded up again.
const opened = [];
window.addEventListener("beforeprint", () => {
  opened.push(...document.querySelectorAll("details:not([open])"));
  for (const details of opened) details.open = true;
});
window.addEventListener("afterprint", () => {
  for (const details of opened.splice(0)) details.open = false;
});

// Sentences: searching, ordering, paging, keys.
const browse = document.getElementById("browse");
const list = document.getElementById("list");
const all = [...list.children];
const size = Number(browse.dataset.page);
const search = document.getElementById("search");
const order = document.getElementById("order");
const orders = {
  difference: null,
  number: article => Number(article.dataset.number),
  length: article => -Number(article.dataset.length),
};
let matches = all, begin = 0;

function show() {
  const shown = new Set(matches.slice(begin, begin + size));
  for (const article of all) article.hidden = !shown.has(article);
  document.getElementById("previous").disabled = begin === 0;
  document.getElementById("next").disabled = begin + size >= matches.length;
  document.getElementById("where").value =
    matches.length ? `${begin + 1} to ${Math.min(begin + size, matches.length)} of ${matches.length}` : "no matches";
}

function choose() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const by = order.value in orders ? orders[order.value] : article => JSON.parse(article.dataset.chrf)[order.value];
  const sorted = by ? all.map(a => [by(a), a]).sort(([a], [b]) => a - b).map(([, a]) => a) : all;
  list.append(...sorted);
  matches = sorted.filter(article => {
    const text = article.textContent.toLowerCase();
    return words.every(word => text.includes(word));
  });
  begin = 0;
  show();
}

function turn(by) {
  const next = begin + by * size;
  if (next < 0 || next >= matches.length) return false;
  begin = next;
  show();
  return true;
}

function focus(article) {
  article.focus();
  article.scrollIntoView({block: "nearest"});
}

function step(by) {
  const now = matches.indexOf(document.activeElement.closest(".sentence"));
  const next = now < begin || now >= begin + size ? (by > 0 ? begin : -1) : now + by;
  if (next < 0 || next >= matches.length) return;
  begin = Math.floor(next / size) * size;
  show();
  focus(matches[next]);
}

function follow() {
  const target = all.find(article => "#" + article.id === location.hash);
  if (!target) return;
  if (!matches.includes(target)) { search.value = ""; choose(); }
  begin = Math.floor(matches.indexOf(target) / size) * size;
  show();
  focus(target);
}

const keys = {
  j: () => step(1),
  k: () => step(-1),
  n: () => { if (turn(1)) focus(matches[begin]); },
  p: () => { if (turn(-1)) focus(matches[begin]); },
  "/": () => search.focus(),
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || !(event.key in keys)) return;
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  event.preventDefault();
  keys[event.key]();
});
browse.addEventListener("submit", event => event.preventDefault());
search.addEventListener("input", choose);
order.addEventListener("change", choose);
document.getElementById("previous").addEventListener("click", () => turn(-1));
document.getElementById("next").addEventListener("click", () => turn(1));
window.addEventListener("hashchange", follow);
browse.hidden = false;
choose();
follow();
