// Sort by click on a column's head: numbers as numbers, what is none last. Without this script tables stay as written.
document.querySelectorAll("table.sortable").forEach(table => table.querySelectorAll("thead th").forEach((head, place) => {
  const button = document.createElement("button");
  button.type = "button"; button.append(...head.childNodes); head.append(button);
  button.onclick = () => {
    const up = head.getAttribute("aria-sort") === "descending" ? 1 : -1, body = table.tBodies[0];
    const value = row => { const text = row.cells[place].textContent.trim(), number = parseFloat(text); return isNaN(number) ? text : number; };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      return up * (typeof x === "number" ? x - y : x.localeCompare(y));
    });
    table.querySelectorAll("[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
    body.append(...rows);
  };
}));
// A link into a folded part opens it; on a page of records "#a|b" leaves the rows that have the cells a and b.
function follow() {
  const wanted = decodeURIComponent(location.hash.slice(1));
  for (let part = wanted && document.getElementById(wanted); part; part = part.parentElement) if (part.tagName === "DETAILS") part.open = true;
  document.querySelectorAll("table.records").forEach(table => {
    const rows = [...table.tBodies[0].rows], cells = wanted.split("|").filter(Boolean);
    const fits = row => { const texts = [...row.cells].map(cell => cell.textContent.trim()); return cells.every(cell => texts.includes(cell)); };
    const some = rows.some(fits);
    rows.forEach(row => row.hidden = some && !fits(row));
    document.getElementById("filter").hidden = !(some && cells.length);
    document.getElementById("filter-text").textContent = cells.join(", ");
  });
}
addEventListener("hashchange", follow); follow();
