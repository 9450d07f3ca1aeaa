// Elements, files and the frame of a chart. Every name reaches the page as text, never as markup.
const MISSING = "\u2013";
const MINUS = "\u2212";
const REACH = 28;
const NARROW = 640;
const EDGE = 16;
const TITLE = 56;
const SLOTS = 8;
const DASHES = ["", "7 4", "2 4", "9 3 2 3"];

const fill = (node, attributes, children) => {
  for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const svg = (name, attributes, ...children) =>
  fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const short = (words, most) => (words.length > most ? `${words.slice(0, most - 1)}\u2026` : words);
const colour = (place) => (place < SLOTS ? `var(--s${place})` : "var(--even)");
const dash = (place) => DASHES[(place + Math.floor(place / SLOTS)) % DASHES.length];
// Numbers of HUGE and more have three digits and an exponent of two, like those of plures.report.columns.Number.
const HUGE = 1e7;
const exponent = (value) => value.toExponential(2).replace(/e\+(\d)$/, "e+0$1");
const plain = (value, digits) => (present(value) ? (Math.abs(value) < HUGE ? value.toFixed(digits) : exponent(value)).replace("-", MINUS) : MISSING);
const three = (value) => (present(value) ? String(Number(value.toPrecision(3))).replace("-", MINUS) : MISSING);

// A count with a prefix.
function scaled(most, unit) {
  const sizes = unit === "s" ? [[3600, "hours"], [60, "minutes"]] : [[1e12, `T${unit}`], [1e9, `G${unit}`], [1e6, `M${unit}`], [1e3, `k${unit}`]];
  const [factor, name] = sizes.find(([size]) => most >= (unit === "s" ? 2 * size : size)) ?? [1, unit === "s" ? "seconds" : unit === "B" ? "bytes" : ""];
  return { factor, name };
}

const extent = (values, pad = 0.04) => {
  const known = values.filter(present);
  if (!known.length) return [0, 1];
  const [low, high] = d3.extent(known);
  const room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
};

// The ends of a scale; where it shows shares, none below 0 % or above 100 % unless there is such a value.
function bounds(values, view, pad) {
  const [low, high] = extent(values, pad);
  const known = values.filter(present);
  if (!view.unit || !known.length) return [low, high];
  const room = 0.03 * (high - low);
  return [d3.min(known) >= 0 ? Math.max(low, -room) : low, d3.max(known) <= 100 ? Math.min(high, 100 + room) : high];
}

const inside = ([low, high], value) => present(value) && value >= low && value <= high;
const clamped = ([low, high], value) => Math.min(high, Math.max(low, value));
// Which way to look for a value that is not on the scale.
const away = ([low, high], value, [less, more]) => (value < low ? less : value > high ? more : "");

// Offsets that keep dots with these positions from covering each other, as far as there is room.
function swarm(positions, size, most) {
  const lanes = [0];
  for (let k = size; k <= most; k += size) lanes.push(-k, k);
  const ends = lanes.map(() => -Infinity);
  const order = positions.map((_, i) => i).sort((a, b) => positions[a] - positions[b]);
  const offsets = new Array(positions.length);
  order.forEach((i, place) => {
    const free = ends.findIndex((end) => positions[i] - end >= size);
    const lane = free < 0 ? place % lanes.length : free;
    ends[lane] = positions[i];
    offsets[i] = lanes[lane];
  });
  return offsets;
}

function save(name, kind, content) {
  const address = URL.createObjectURL(new Blob([content], { type: kind }));
  html("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

// Text that a spreadsheet would run gets an apostrophe before it, by the rule of plures.texts.cell; numbers stay.
const FORMULA = /(^|[;\t])(?=[\s"']*[=+\-@\uff1d\uff0b\uff0d\uff20])/g;
const NUMBER = /^[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|nan)$/i;
const inert = (words) => (NUMBER.test(words) ? words : words.replace(FORMULA, "$1'"));

const csv = (rows) =>
  rows.map((row) => row.map((cell) => {
    const words = present(cell) ? inert(String(cell)) : "";
    return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
  }).join(",")).join("\n") + "\n";

// A standalone drawing: styles included, on the page's background colour, with its title.
function standalone(drawing, title) {
  const copy = drawing.cloneNode(true);
  const styles = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "opacity", "paint-order", "stroke-linejoin", "font-size", "font-weight", "text-anchor"];
  const originals = drawing.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((node, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of styles) node.setAttribute(name, style.getPropertyValue(name));
    node.removeAttribute("class");
    node.removeAttribute("style");
  });
  copy.querySelectorAll("style").forEach((node) => node.remove());
  copy.removeAttribute("class");
  copy.removeAttribute("style");
  const [, , width, height] = drawing.getAttribute("viewBox").split(/[ ,]+/).map(Number);
  const page = getComputedStyle(document.body);
  copy.prepend(
    svg("rect", { x: -EDGE, y: -TITLE, width: width + 2 * EDGE, height: height + TITLE + EDGE, fill: page.backgroundColor }),
    svg("text", { x: 0, y: 18 - TITLE + EDGE, "font-size": 17, "font-weight": 600, fill: page.color }, title),
  );
  const [outer, high] = [width + 2 * EDGE, height + TITLE + EDGE];
  fill(copy, { viewBox: `${-EDGE} ${-TITLE} ${outer} ${high}`, width: outer, height: high, color: page.color, "font-family": "system-ui, sans-serif", "font-size": 13 }, []);
  return new XMLSerializer().serializeToString(copy);
}

// A chart is redrawn when its width or the choice of clients changes. `draw(width)` gives the drawing, and series of
// points that pointer and arrow keys walk through; `table()` gives the rows of its CSV file; `open` is called
// with a client that is clicked, or chosen with Enter.
function chart(section, name, draw, table, open) {
  const id = section.id;
  const plot = section.querySelector(".plot");
  const tip = html("div", { class: "tip", role: "status" });
  let width = 0;
  let drawn = null;
  let at = null;

  function render() {
    width = plot.clientWidth;
    drawn = draw(Math.max(width, 280));
    drawn.marks = svg("g", { "aria-hidden": "true" });
    drawn.svg.append(drawn.marks);
    fill(drawn.svg, { role: "img", "aria-label": drawn.aria }, []);
    plot.replaceChildren(drawn.svg, tip);
    point(null);
  }

  function point(place) {
    at = place;
    const found = place && drawn.series[place[0]]?.[place[1]];
    drawn.marks.replaceChildren();
    tip.replaceChildren();
    if (!found) return;
    const { rows } = found;
    drawn.marks.append(...(drawn.highlight ?? circles(drawn.series))(found));
    tip.append(html("b", {}, rows[0]), ...rows.slice(1).map((row) => html("span", {}, row)));
    const factor = plot.clientWidth / Math.max(width, 280) || 1;
    const left = Math.min(Math.max(0, found.x * factor - tip.offsetWidth / 2), plot.clientWidth - tip.offsetWidth);
    const above = found.y * factor - tip.offsetHeight - 14;
    tip.style.left = `${left}px`;
    tip.style.top = `${above < -40 ? found.y * factor + 16 : above}px`;
  }

  function near(event) {
    const box = drawn.svg.getBoundingClientRect();
    const factor = Math.max(width, 280) / box.width;
    const [x, y] = [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    let best = null;
    let least = REACH;
    drawn.series.forEach((points, i) => points.forEach((p, j) => {
      const distance = Math.hypot(p.x - x, p.y - y);
      if (distance < least) [least, best] = [distance, [i, j]];
    }));
    return best;
  }

  function key(event) {
    const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    if (event.key === "Escape") return point(null);
    const current = at && drawn.series[at[0]]?.[at[1]];
    if (event.key === "Enter" && open && current && present(current.client)) return open(current.client, plot);
    const step = steps[event.key];
    const filled = drawn.series.map((points, i) => (points.length ? i : -1)).filter((i) => i >= 0);
    if (!step || !filled.length) return undefined;
    event.preventDefault();
    if (!at) return point([filled[0], 0]);
    const [row, place] = at;
    if (step[0] === 0) return point([row, Math.min(drawn.series[row].length - 1, Math.max(0, place + step[1]))]);
    const next = filled[Math.min(filled.length - 1, Math.max(0, filled.indexOf(row) + step[0]))];
    const here = drawn.series[row][place];
    const same = drawn.series[next].findIndex((p) => present(p.client) && p.client === here.client);
    const closest = drawn.series[next].reduce((b, p, j, all) => (Math.abs(p.x - here.x) < Math.abs(all[b].x - here.x) ? j : b), 0);
    return point([next, same < 0 ? closest : same]);
  }

  plot.addEventListener("pointermove", (event) => point(near(event)));
  plot.addEventListener("pointerdown", (event) => point(near(event)));
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
  plot.addEventListener("click", (event) => {
    const place = near(event);
    const found = place && drawn.series[place[0]][place[1]];
    if (open && event.detail > 1 && found && present(found.client)) open(found.client, plot);
  });
  plot.addEventListener("keydown", key);
  plot.addEventListener("blur", () => point(null));
  section.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => {
    point(null);
    const title = `${section.querySelector("h2, h3").textContent}: ${name}`;
    if (button.dataset.save === "svg") save(`${id}.svg`, "image/svg+xml", standalone(drawn.svg, title));
    else save(`${id}.csv`, "text/csv", csv(table()));
  }));
  new ResizeObserver(() => plot.clientWidth && plot.clientWidth !== width && render()).observe(plot);
  render();
  return render;
}

const circles = (series) => (point) =>
  series.flat().filter((p) => p === point || (present(p.client) && p.client === point.client)).map((p) =>
    svg("circle", { cx: p.x, cy: p.y, r: p === point ? 7 : 4.5, class: "cursor" }));

// What the lines of a chart stand for.
const keyOf = (where, entries) => where?.replaceChildren(...entries.map((entry) => html("span", {},
  svg("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" }, svg("path", { d: "M0 5H24", stroke: entry.shade ?? colour(entry.place), "stroke-width": 3, "stroke-dasharray": entry.dash || "none" })), entry.label)));

// A chart of the library, in the page's own type and colours.
const plotted = (options) => Plot.plot({
  className: "figure",
  style: { background: "none", overflow: "visible" },
  ...options,
  color: { type: "identity", ...options.color },
});

