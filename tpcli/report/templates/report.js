"use strict";
const tip = document.querySelector(".tip");
for (const mark of document.querySelectorAll(".mark")) {
  const words = mark.querySelector("title").textContent;
  mark.querySelector("title").remove(); // the browser would show it as well
  mark.setAttribute("aria-label", words);
  const show = () => {
    const box = mark.querySelector(".shape").getBoundingClientRect();
    const frame = tip.parentElement.getBoundingClientRect();
    tip.textContent = words;
    tip.hidden = false;
    const left = Math.min(box.right - frame.left + 8, frame.width - tip.offsetWidth);
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${Math.max(0, box.top - frame.top - tip.offsetHeight - 6)}px`;
  };
  const hide = () => { tip.hidden = true; };
  for (const event of ["pointerenter", "focus"]) mark.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) mark.addEventListener(event, hide);
}
for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const off = document.getElementById(button.dataset.curve).classList.toggle("off");
    button.setAttribute("aria-pressed", String(!off));
  });
}
const number = (text) => (/^[+-]?\d/.test(text) ? parseFloat(text) : NaN);
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, "en", { numeric: true }) : x - y;
};
for (const button of document.querySelectorAll("th button")) {
  const head = button.parentElement;
  button.addEventListener("click", () => {
    const falls = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falls ? "descending" : "ascending");
    const body = head.closest("table").tBodies[0];
    const text = (row) => row.cells[head.cellIndex].textContent;
    const rows = [...body.rows].sort((a, b) => {
      if (text(a) === "" || text(b) === "") return (text(a) === "") - (text(b) === ""); // last
      return (falls ? -1 : 1) * compare(text(a), text(b));
    });
    body.append(...rows);
  });
}
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch { // a page from a file may not be allowed to
      getSelection().selectAllChildren(code);
      document.execCommand("copy");
    }
    button.textContent = "copied";
    setTimeout(() => { button.textContent = "copy"; }, 1500);
  });
}
