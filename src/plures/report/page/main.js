// Starts the page: what is chosen in it, and everything that is drawn again when a choice changes.
const page = JSON.parse(document.getElementById("data").textContent);

function start(data) {
  const { metric, methods, clients } = data;
  const slots = new Map();
  const first = [methods.find((m) => m.best && !m.baseline) ?? methods.find((m) => !m.baseline), ...["fedavg_ft", "fedavg", "local"].map((name) => methods.find((m) => m.name === name))];
  [...new Set(first.filter(Boolean))].forEach((m, slot) => slots.set(m.name, slot));
  const named = (part) => (methods.find((m) => m.best && m[part]) ?? methods.find((m) => !m.baseline && m[part]) ?? methods.find((m) => m[part]))?.name;
  const view = {
    data,
    slots,
    keep: d3.range(clients.length),
    whole: true,
    reference: "local",
    axis: "round",
    cost: "bytes",
    calibrated: named("calibration"),
    clustered: named("clusters"),
    mapped: named("personal"),
    split: data.described,
    tinted: data.described,
    sign: metric.higher ? 1 : -1,
    factor: metric.percent ? 100 : 1,
    unit: metric.percent ? " %" : "",
    dot: clients.length > 400 ? 1.5 : clients.length > 120 ? 2.5 : 3.5,
    pick: (values) => view.keep.map((i) => values[i]),
    number: (value) => plain(present(value) ? value * view.factor : null, metric.decimals) + (present(value) ? view.unit : ""),
    about: (i) => [
      ...(clients[i].about.length ? [clients[i].about.join(" \u00b7 ")] : []),
      ...(present(clients[i].train) ? [`${clients[i].train} training examples`] : []),
    ],
    legend: keyOf,
  };
  for (const m of methods.filter((m) => m.personal)) {
    m.personal.rank = (layer, i) => 1 + layer.distance.filter((other) => present(other) && other > layer.distance[i]).length;
  }
  const count = () => {
    view.rows = rowsOf(data, view.keep);
    const known = view.rows.filter((row, k) => present(row.mean) && methods[k].federated);
    view.best = view.whole ? methods.find((m) => m.best)?.name : known.reduce((a, b) => (a && view.sign * a.mean >= view.sign * b.mean ? a : b), null)?.name;
  };
  count();

  const open = clientDialog(view);
  const draws = {
    gain: [drawGain, gainTable],
    curves: [drawCurves, curvesTable],
    tradeoff: [drawTradeoff, tradeoffTable],
    spread: [drawSpread, spreadTable],
    fairness: [drawFairness, fairnessTable],
    calibration: [drawCalibration, calibrationTable],
    clusters: [drawClusters, clustersTable],
    map: [drawMap, mapTable],
    cold: [drawCold, coldTable],
  };
  const redraw = {};
  for (const [id, [draw, table]] of Object.entries(draws)) {
    const section = document.querySelector(`main > #${id}`);
    if (section) redraw[id] = chart(section, data.federation, (width) => draw(view, width), () => table(view), open);
  }

  // Choices of one chart
  const listen = (name, set) => document.querySelectorAll(`main [name="${name}"]`).forEach((input) => input.addEventListener("change", () => set(input.value)));
  listen("reference", (value) => { view.reference = value; redraw.gain(); });
  listen("axis", (value) => { view.axis = value; redraw.curves(); });
  listen("cost", (value) => { view.cost = value; redraw.tradeoff(); });
  listen("calibrated", (value) => { view.calibrated = value; redraw.calibration(); });
  listen("split", (value) => { view.split = value; redraw.calibration(); });
  listen("clustered", (value) => { view.clustered = value; redraw.clusters(); });
  listen("mapped", (value) => { view.mapped = value; redraw.map(); });
  listen("tinted", (value) => { view.tinted = value; redraw.map(); });
  for (const name of ["calibrated", "split", "clustered", "mapped", "tinted"]) {
    document.querySelectorAll(`main select[name="${name}"]`).forEach((select) => { select.value = view[name]; });
  }

  // Which methods stand out in colour
  const legends = [...document.querySelectorAll("main .legend")];
  const paints = legends.flatMap((legend) => methods.map((m) => {
    const button = html("button", { type: "button" });
    button.addEventListener("click", () => {
      if (slots.has(m.name)) slots.delete(m.name);
      else {
        const taken = new Set(slots.values());
        let slot = 0;
        while (taken.has(slot)) slot++;
        slots.set(m.name, slot);
      }
      paints.forEach((paint) => paint());
      redraw.curves?.();
      redraw.cold?.();
    });
    legend.append(button);
    return () => {
      const slot = slots.get(m.name);
      button.setAttribute("aria-pressed", slot !== undefined);
      const stroke = slot === undefined ? "var(--even)" : colour(slot % SLOTS);
      button.replaceChildren(
        svg("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" }, svg("path", { d: "M0 5H24", stroke, "stroke-width": slot === undefined ? 1.5 : 3, "stroke-dasharray": (slot !== undefined && dash(slot)) || "none" })),
        m.title,
      );
    };
  }));
  paints.forEach((paint) => paint());

  // Tables, and the choice of clients
  document.querySelectorAll("main .scroll, .overview .scroll").forEach(fading);
  document.querySelectorAll("main table.sortable").forEach(sortable);
  const renumber = numbers(view);
  const lines = people(view, open);
  const bar = document.querySelector("#comparison .choice");
  if (bar) {
    bar.hidden = false;
    const selects = [...bar.querySelectorAll("select")];
    const output = bar.querySelector("output");
    const apply = () => {
      const chosen = selects.filter((select) => select.value !== "");
      const sets = chosen.map((select) => new Set(data.groups[select.name][Number(select.value)][1]));
      view.keep = d3.range(clients.length).filter((i) => sets.every((set) => set.has(i)));
      view.whole = !chosen.length;
      bar.classList.toggle("on", !view.whole);
      if (!view.keep.length) {
        output.textContent = "No client matches this choice: choose fewer values.";
        document.body.classList.add("nobody");
        return;
      }
      document.body.classList.remove("nobody");
      count();
      const leader = view.rows.find((row) => row.name === view.best);
      const title = methods.find((m) => m.name === view.best)?.title;
      output.textContent = view.whole ? "" : `${view.keep.length} of ${clients.length} clients. Best mean among them: ${title ?? MISSING}, ${view.number(leader?.mean)}.`;
      renumber();
      lines();
      Object.values(redraw).forEach((render) => render());
    };
    bar.querySelector("button").addEventListener("click", () => {
      selects.forEach((select) => { select.value = ""; });
      selects[0].focus();
      apply();
    });
    selects.forEach((select) => select.addEventListener("change", apply));
  }
  document.querySelectorAll("button[data-save-table]").forEach((button) => button.addEventListener("click", () => {
    const table = document.querySelector(`main #${button.dataset.saveTable} table`);
    const cells = (row) => [...row.cells].map((td) => (td.tagName === "TD" && td.dataset.value !== undefined ? td.dataset.value : (td.querySelector(".v, [data-title], [data-client]") ?? td).textContent.trim()));
    save(`${button.dataset.saveTable}.csv`, "text/csv", csv([[...table.tHead.rows[0].cells].map((th) => th.dataset.name ?? th.textContent.trim()), ...[...table.tBodies[0].rows].filter((row) => !row.hidden).map(cells)]));
  }));

  const wanted = /^#client=(.+)$/.exec(location.hash);
  const asked = wanted && clients.findIndex((client) => client.name === decodeURIComponent(wanted[1]));
  if (present(asked) && asked >= 0) open(asked, document.querySelector("h1"));
}

// A study: its comparisons are in templates, and the chosen one is in the page.
const holder = document.getElementById("comparison");
const bodies = [holder.innerHTML, ...[...document.querySelectorAll("template[data-comparison]")].map((t) => t.innerHTML)];
const opener = document.querySelectorAll("[data-open]");
opener.forEach((button) => button.addEventListener("click", () => {
  const place = Number(button.dataset.open);
  opener.forEach((other) => other.toggleAttribute("data-now", Number(other.dataset.open) === place));
  opener.forEach((other) => other.setAttribute("aria-pressed", Number(other.dataset.open) === place));
  holder.innerHTML = bodies[place];
  start(page.comparisons[place]);
  holder.querySelector("h1, h2").focus();
  holder.scrollIntoView();
}));
document.querySelectorAll(".overview table.sortable").forEach(sortable);
start(page.comparisons[0]);
for (const course of page.courses) {
  const section = document.getElementById(`course-${course.name}`);
  chart(section, course.name, (width) => drawCourse(course, width), () => courseTable(course));
}

// On paper everything is open
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  closed.forEach((details) => { details.open = true; });
});
addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
