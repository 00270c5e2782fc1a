"use strict";

// Sorting: each heading becomes a button. Rows without a value stay last in both directions.
function sortKey(row, index) {
  return row.cells[index].dataset.sort ?? "";
}

function sortBy(table, index, numeric, heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const sign = descending ? -1 : 1;
  const rows = [...table.tBodies[0].rows];
  rows.sort((a, b) => {
    const left = sortKey(a, index), right = sortKey(b, index);
    if (left === "" || right === "") return (left === "") - (right === "");
    return sign * (numeric ? left - right : left.localeCompare(right));
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((heading, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sortBy(table, index, heading.classList.contains("n"), heading));
    heading.append(button);
  });
}

// Filters: the cells (users × images) of one shape, or all. One shape to begin with: ranks are read in it.
for (const bar of document.querySelectorAll(".filters")) {
  const rows = bar.nextElementSibling.querySelectorAll("tbody tr");
  const buttons = [...bar.querySelectorAll("button")];
  const show = (pressed) => {
    const shape = pressed.dataset.shape;
    for (const button of buttons) button.setAttribute("aria-pressed", button === pressed);
    for (const row of rows) row.hidden = shape !== "" && row.dataset.shape !== "" && row.dataset.shape !== shape;
  };
  for (const button of buttons) button.addEventListener("click", () => show(button));
  bar.hidden = false;
  show(buttons[0]);
}

// A link to what is folded away unfolds it.
function reveal() {
  const target = document.getElementById(location.hash.slice(1));
  for (let fold = target; fold; fold = fold.parentElement) if (fold.tagName === "DETAILS") fold.open = true;
  target?.scrollIntoView();
}
addEventListener("hashchange", reveal);
if (location.hash) reveal();

// Light and dark: the system's choice until the reader makes another.
const theme = document.getElementById("theme");
theme.hidden = false;
theme.addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});

// What is folded or filtered away is printed all the same.
addEventListener("beforeprint", () => {
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  for (const row of document.querySelectorAll("tr[hidden]")) row.hidden = false;
});
