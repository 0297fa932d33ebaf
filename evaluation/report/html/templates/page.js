"use strict";
// The page is complete without this script: it adds sorting, enlarging, a switch of colors, and following a live run.

function sortable(table) {
  const body = table.tBodies[0];
  const headers = [...table.tHead.rows[0].cells];
  if (body.rows.length < 2) return;
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const ascending = header.getAttribute("aria-sort") !== "ascending";
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", ascending ? "ascending" : "descending");
      const rows = [...body.rows].map((row) => ({ row, key: keyOf(row.cells[column].textContent) }));
      rows.sort((one, other) => compare(one.key, other.key, ascending));
      body.append(...rows.map((item) => item.row));
    });
  });
}

// A cell's number, or its text; a cell without a value is null.
function keyOf(text) {
  const shown = text.trim();
  if (shown === "" || shown === "\u2013") return null;
  const number = /^[<+\u2212-]?\s*[\d,]*\.?\d+/.exec(shown);
  return number ? Number(number[0].replace(/[<+,\s]/g, "").replace("\u2212", "-")) : shown.toLowerCase();
}

// Numbers come before texts, and cells without a value last, whatever the direction.
function compare(one, other, ascending) {
  if (one === null || other === null) return (one === null) - (other === null);
  const sign = ascending ? 1 : -1;
  if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
  return sign * (typeof one === "number" ? one - other : one.localeCompare(other));
}

function enlargeable(image) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "enlarge";
  button.setAttribute("aria-label", `Enlarge: ${image.alt}`);
  image.replaceWith(button);
  button.append(image);
  button.addEventListener("click", () => enlarge(button.parentElement, image));
}

const zoom = document.getElementById("zoom");
const area = document.getElementById("zoom-area");
let percent = 100;

function enlarge(parent, image) {
  const shown = parent.classList.contains("blend") ? parent.cloneNode(true) : image.cloneNode(true);
  shown.querySelectorAll?.("button").forEach((button) => button.replaceWith(...button.childNodes));
  area.replaceChildren(shown);
  document.getElementById("zoom-text").textContent = image.alt;
  resize(100);
  zoom.showModal();
}

function resize(wanted) {
  percent = Math.min(800, Math.max(25, wanted));
  area.firstElementChild.style.width = `${percent}%`;
}

document.getElementById("zoom-in").addEventListener("click", () => resize(percent * 1.5));
document.getElementById("zoom-out").addEventListener("click", () => resize(percent / 1.5));
document.getElementById("zoom-close").addEventListener("click", () => zoom.close());
zoom.addEventListener("keydown", (event) => {
  if (event.key === "+" || event.key === "=") resize(percent * 1.5);
  if (event.key === "-") resize(percent / 1.5);
});

// The switch is kept for this visit only: a page in a file may have no storage.
function themeSwitch(button) {
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const label = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.hidden = false;
  label();
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remember("theme", root.dataset.theme);
    label();
  });
}

function remember(name, value) {
  try { sessionStorage.setItem(name, value); } catch { /* storage is off */ }
}

function recalled(name) {
  try { return sessionStorage.getItem(name); } catch { return null; }
}

// A served page asks every few seconds whether the run's files have changed, and then loads itself again.
function follow(state) {
  const live = document.getElementById("live");
  setInterval(async () => {
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (answer.ok && (await answer.text()) !== state) {
        remember("open", JSON.stringify([...document.querySelectorAll("details")].map((item) => item.open)));
        location.reload();
      }
      live.textContent = "Live: the page follows the run.";
    } catch {
      live.textContent = "The server has ended; this is its last page.";
    }
  }, 5000);
}

const theme = recalled("theme");
if (theme) document.documentElement.dataset.theme = theme;
themeSwitch(document.getElementById("theme"));
document.querySelectorAll("main table").forEach(sortable);
document.querySelectorAll("img.zoomable").forEach(enlargeable);
document.querySelectorAll(".strength input").forEach((slider) => {
  const map = slider.closest("li").querySelector(".map");
  slider.addEventListener("input", () => { map.style.opacity = slider.value / 100; });
});
if (document.body.dataset.state) {
  const open = JSON.parse(recalled("open") ?? "[]");
  document.querySelectorAll("details").forEach((item, index) => { item.open = open[index] ?? item.open; });
  follow(document.body.dataset.state);
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((item) => { item.open = true; }));
