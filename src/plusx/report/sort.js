"use strict";
for (const table of document.querySelectorAll("table.data")) {
  const heads = [...table.tHead.rows[0].cells];
  if (!heads[0].querySelector("button")) continue;
  const body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    const value = cell.dataset.value ?? cell.textContent;
    return value === "" ? null : isNaN(value) && value !== "inf" ? value : Number(value === "inf" ? Infinity : value);
  };
  const sort = (column, down) => {
    heads.forEach(head => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", down ? "descending" : "ascending");
    const compare = (one, other) => {
      const [a, b] = [key(one, column), key(other, column)];
      if (a === null || b === null) return (a === null) - (b === null);
      const order = typeof a === "number" && typeof b === "number"
        ? (a > b) - (a < b) : String(a).localeCompare(String(b), "en", { numeric: true });
      return down ? -order : order;
    };
    body.append(...[...body.rows].sort(compare));
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () =>
    sort(column, head.getAttribute("aria-sort") === "ascending")));
  if (!table.classList.contains("cards")) continue;
  // On a telephone the heads of these tables are not there.
  const label = document.createElement("label");
  const select = document.createElement("select");
  label.className = "sort cards";
  select.append(new Option("as it stands", ""));
  heads.forEach((head, column) => {
    const title = head.innerText.replace(/\s+/g, " ").trim() || head.textContent;
    select.append(new Option(title + ", lowest first", column + " up"), new Option(title + ", highest first", column + " down"));
  });
  const before = [...body.rows];
  select.addEventListener("change", () => {
    const [column, way] = select.value.split(" ");
    if (way) sort(Number(column), way === "down");
    else body.append(...before);
  });
  label.append("Sorted by ", select);
  table.parentElement.before(label);
}
