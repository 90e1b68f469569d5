"use strict";

// Charts: Vega reads colours from the page, and its interpreter needs no eval.
const pictures = [...document.querySelectorAll(".chart")].map((place) => {
  const spec = JSON.parse(place.querySelector("script").textContent);
  const target = place.appendChild(document.createElement("div"));
  return vegaEmbed(target, spec, { renderer: "svg", ast: true, actions: false });
});
Promise.all(pictures).then(() => { document.documentElement.dataset.ready = "yes"; });

// Tables: a click on a header sorts, numbers by size, texts by letters, empty cells last.
function amount(text) {
  return Number.parseFloat(text.replace(/^[<>]/, ""));
}
function compare(a, b) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [amount(a), amount(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || a.localeCompare(b);
  return x - y;
}
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = head.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const text = (row) => row.cells[column].textContent.trim();
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const order = compare(text(a), text(b));
        return up || text(a) === "" || text(b) === "" ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  });
}

// Scalings: one small table a layer, for the run and the epoch that are chosen.
const scalings = document.getElementById("scalings-data");
if (scalings) {
  const runs = JSON.parse(scalings.textContent);
  const [choice, slider, shown, layers] = ["run", "epoch", "shown", "layers"].map(
    (name) => document.getElementById(`scalings-${name}`)
  );
  const logs = runs.flatMap((run) => run.layers).flatMap((layer) => layer.planes.flat(2)).map((v) => Math.abs(Math.log2(v)));
  const most = Math.max(0.25, ...logs.filter(Number.isFinite));
  const figure = (layer, number) => {
    const box = document.createElement("figure");
    const caption = box.appendChild(document.createElement("figcaption"));
    caption.textContent = layer.name;
    const table = box.appendChild(document.createElement("table"));
    for (const row of layer.planes[number]) {
      const line = table.insertRow();
      for (const value of row) {
        const cell = line.insertCell();
        cell.textContent = value.toFixed(2);
        if (row.length > 5) cell.className = "large";
        cell.style.setProperty("--tone", value >= 1 ? "var(--warm)" : "var(--cold)");
        cell.style.setProperty("--amount", Math.min(85, (85 * Math.abs(Math.log2(value))) / most));
      }
    }
    return box;
  };
  const draw = () => {
    const run = runs[choice.value];
    shown.textContent = `${run.epochs[slider.value]} of ${run.epochs.join(", ")}`;
    layers.replaceChildren(...run.layers.map((layer) => figure(layer, slider.value)));
  };
  const restart = () => {
    slider.max = runs[choice.value].epochs.length - 1;
    slider.value = slider.max;
    slider.disabled = slider.max === "0";
    draw();
  };
  choice.addEventListener("change", restart);
  slider.addEventListener("input", draw);
  restart();
}

// Paper shows what the screen folds away.
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("main details")) {
    part.dataset.was = part.open;
    part.open = true;
  }
});
addEventListener("afterprint", () => {
  for (const part of document.querySelectorAll("main details")) part.open = part.dataset.was === "true";
});
