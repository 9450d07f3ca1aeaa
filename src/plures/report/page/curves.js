// Lines over rounds, bytes, time and labels, and what accuracy costs.

// The learning curve of a method over the kept clients: mean, least and most over seeds at every measured round.
function curveOf(view, method) {
  if (view.whole || !method.traces) return method.curve;
  return method.curve.map((point, place) => {
    const means = method.traces
      .map((seed) => seed[place])
      .filter((values) => values && values.length)
      .map((values) => average(view.pick(values).filter(present)))
      .filter(present);
    return { ...point, mean: average(means), least: d3.min(means) ?? null, most: d3.max(means) ?? null };
  });
}

// A curve's value at a round, between its neighbours.
function level(curve, round) {
  const after = curve.findIndex((p) => p.round >= round && present(p.mean));
  if (after < 0) return null;
  const [a, b] = [curve[Math.max(0, after - 1)], curve[after]];
  const part = b.round === a.round ? 1 : (round - a.round) / (b.round - a.round);
  const mixed = { round };
  for (const name of ["mean", "bytes", "seconds", "hours", "joules"]) if (name in a && name in b) mixed[name] = a[name] + part * (b[name] - a[name]);
  return mixed;
}

const AXES = {
  round: () => ({ label: "rounds finished", factor: 1 }),
  bytes: (most) => {
    const { factor, name } = scaled(most, "B");
    return { label: `sent and received per client so far, ${name}`, factor };
  },
  seconds: (most) => {
    const { factor, name } = scaled(most, "s");
    return { label: `training time so far, ${name}`, factor };
  },
  hours: (most) => {
    const { factor, name } = scaled(most * 3600, "s");
    return { label: `simulated time so far, ${name}`, factor: factor / 3600 };
  },
  joules: (most) => {
    const { factor, name } = scaled(most, "J");
    return { label: `energy of all devices so far, ${name || "joules"}`, factor };
  },
};

const across = (label, width, format) => Plot.axisX({
  label, labelAnchor: "center", labelArrow: "none", labelOffset: 40, fontSize: 13, color: "var(--soft)", tickSize: 0,
  ...(format ? { tickFormat: format } : {}), ticks: Math.max(3, Math.round(width / 90)),
});
const upright = (label) => [
  Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 6 }),
  Plot.axisY({ label, labelAnchor: "center", labelArrow: "none", labelOffset: 62, fontSize: 13, color: "var(--soft)", tickSize: 0, ticks: 6 }),
];

// Names at the ends of lines, moved apart.
function ends(labels, bottom) {
  labels.sort((a, b) => a.y - b.y);
  labels.forEach((l, i) => { l.at = i ? Math.max(l.y, labels[i - 1].at + 16) : l.y; });
  const over = labels.length ? Math.max(0, labels[labels.length - 1].at - bottom + 2) : 0;
  return labels.map((l) => svg("text", { x: l.x + 10, y: l.at - over + 4.5, fill: l.colour, "font-size": 13, "text-anchor": "start" }, short(l.title, 21)));
}

// Where a line of the constant predictor leaves the scale, with its number.
function leaving(lines, domain, view, x, y) {
  return lines.flatMap((f) => {
    const first = f.points.find((p) => !inside(domain, p.mean * view.factor));
    if (!first || f.m.name !== "constant") return [];
    const value = first.mean * view.factor;
    const words = `${away(domain, value, ["\u25be", "\u25b4"])} ${f.m.title} ${view.number(first.mean)}`;
    const top = value > domain[1];
    return [svg("text", { class: "halo", x: x(first) + 4, y: y(clamped(domain, value)) + (top ? 14 : -6), "font-size": 12, "text-anchor": "start", fill: "var(--soft)" }, words)];
  });
}

// The scale of lines, without the constant predictor if it would squeeze all others and is not chosen itself.
const scaleOf = (lines, view, valuesOf) => bounds(
  scaleWithout(lines.map((f) => ({ ...f, name: f.slot === undefined ? f.m.name : "" })), valuesOf).map((v) => (present(v) ? v * view.factor : v)), view);

function drawCurves(view, width) {
  const { data, axis, slots } = view;
  const { metric } = data;
  const narrow = width < NARROW;
  const [left, top, height] = [72, 12, narrow ? 350 : 430];
  const right = narrow ? 16 : 160;
  const found = data.methods.map((m) => ({ m, curve: curveOf(view, m).filter((p) => present(p.mean)), slot: slots.get(m.name) })).filter((f) => f.curve.length);
  const reach = d3.max(found, (f) => d3.max(f.curve, (p) => p[axis])) || 0;
  const { label, factor } = AXES[axis](reach);
  const lines = found.map((f) => {
    const still = reach > 0 && f.curve[f.curve.length - 1][axis] === 0;
    const chosen = f.m.chosen.map((round) => level(f.curve, round)).filter(present);
    const height = chosen.length ? average(chosen.map((p) => p.mean)) : f.curve[f.curve.length - 1].mean;
    const points = still
      ? [{ ...f.curve[0], mean: height, at: 0 }, { ...f.curve[f.curve.length - 1], mean: height, at: reach }]
      : f.curve.map((p) => ({ ...p, at: p[axis] }));
    return { ...f, still, chosen: still ? [] : chosen.map((p) => ({ ...p, at: p[axis] })), points };
  });
  const on = lines.filter((f) => f.slot !== undefined);
  const domain = scaleOf(lines, view, (f) => f.points.flatMap((p) => [p.mean, ...(f.slot !== undefined && !f.still ? [p.least, p.most] : [])]));
  const scale = view.factor;
  const drawing = plotted({
    width, height, marginLeft: left, marginRight: right, marginTop: top, marginBottom: 48,
    x: { domain: [0, (reach || 1) / factor] },
    y: { domain },
    marks: [
      ...upright(`validation ${metric.title}${view.unit && ","}${view.unit}`),
      across(label, width - left - right),
      Plot.ruleY([domain[0]], { stroke: "var(--soft)" }),
      ...lines.filter((f) => f.slot === undefined).map((f) =>
        Plot.lineY(f.points, { x: (p) => p.at / factor, y: (p) => p.mean * scale, stroke: "var(--even)", strokeWidth: 1.25, strokeOpacity: 0.7, clip: true })),
      ...on.filter((f) => data.seeds > 1 && !f.still).map((f) =>
        Plot.areaY(f.points, { x: (p) => p.at / factor, y1: (p) => p.least * scale, y2: (p) => p.most * scale, fill: colour(f.slot % SLOTS), fillOpacity: 0.14 })),
      ...on.map((f) => Plot.lineY(f.points, { x: (p) => p.at / factor, y: (p) => p.mean * scale, stroke: colour(f.slot % SLOTS), strokeWidth: 2.25, strokeDasharray: dash(f.slot) || "none" })),
      ...on.map((f) => Plot.dot(f.chosen, { x: (p) => p.at / factor, y: (p) => p.mean * scale, r: 4, fill: "var(--paper)", stroke: colour(f.slot % SLOTS), strokeWidth: 1.75 })),
    ],
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  if (!narrow) {
    drawing.append(...ends(on.map((f) => {
      const last = f.points[f.points.length - 1];
      return { title: f.m.title, x: x(last.at / factor), y: y(last.mean * scale), colour: colour(f.slot % SLOTS) };
    }), height - 48));
  }
  const shown = (f) => f.points.filter((p) => inside(domain, p.mean * scale));
  drawing.append(...leaving(lines, domain, view, (p) => x(p.at / factor), y));
  const paths = new Map(lines.map((f) => [f.m.name, d3.line((p) => x(p.at / factor), (p) => y(p.mean * scale))(shown(f))]));
  const series = lines.map((f) => (f.still ? shown(f).slice(1) : shown(f)).map((p) => ({
    x: x(p.at / factor),
    y: y(p.mean * scale),
    path: paths.get(f.m.name),
    rows: f.still
      ? [f.m.title, `${view.number(p.mean)} at the chosen rounds`, "sends nothing"]
      : [
        f.m.title,
        view.number(p.mean) + (data.seeds > 1 ? ` (${view.number(p.least)} to ${view.number(p.most)})` : ""),
        `round ${p.round}`,
        `${(p.bytes / 1e6).toFixed(1)} MB per client`,
        `${p.seconds.toFixed(p.seconds < 10 ? 1 : 0)} s`,
        ...(present(p.hours) ? [`${three(p.hours)} simulated hours, ${three(p.joules)} J`] : []),
      ],
  })));
  const highlight = (p) => [svg("path", { d: p.path, class: "hot" }), svg("circle", { cx: p.x, cy: p.y, r: 5, class: "cursor" })];
  const best = on.map((f) => `${f.m.title} chosen at round ${[...new Set(f.m.chosen)].join(", ")}`).join("; ");
  const aria = `Learning curves: mean ${metric.title} over clients on validation data against ${label}. ${best}.`;
  return { svg: drawing, series, highlight, aria };
}

const curvesTable = (view) => [
  ["method", "round", "mean", "lowest_seed", "highest_seed", "bytes_per_client", "seconds"],
  ...view.data.methods.flatMap((m) => curveOf(view, m).map((p) => [m.title, p.round, p.mean, p.least, p.most, p.bytes, p.seconds])),
];

// Accuracy against cost: the line joins the methods on the Pareto front.
const COSTS = {
  bytes: { label: "sent and received per client until the chosen round", unit: "B", of: (m) => m.cost.bytes },
  seconds: { label: "training time until the chosen round", unit: "s", of: (m) => m.cost.seconds },
  flops: { label: "operations of one visit", unit: "", of: (m) => m.cost.flops },
};

function paretoOf(points, sign) {
  const sorted = [...points].sort((a, b) => a.cost - b.cost || sign * (b.mean - a.mean));
  let best = -Infinity;
  return sorted.filter((p) => {
    const better = sign * p.mean > best;
    if (better) best = sign * p.mean;
    return better;
  });
}

const costPoints = (view) => view.data.methods
  .map((m, k) => ({ m, cost: COSTS[view.cost].of(m), mean: view.rows[k].mean }))
  .filter((p) => present(p.cost) && present(p.mean));

// Width of words, in pixels.
const ruler = document.createElement("canvas").getContext("2d");
function measure(words, size, weight) {
  ruler.font = `${weight} ${size}px ${getComputedStyle(document.body).fontFamily}`;
  return ruler.measureText(words).width;
}

// Places for names beside dots, so that none covers another; a name that is far from its dot has a line to it.
function labelled(points, width, bottom, left = 76, most = 8) {
  const taken = [];
  const free = (box) => !taken.some((t) => box.x0 < t.x1 && t.x0 < box.x1 && box.y0 < t.y1 && t.y0 < box.y1);
  for (const p of points) taken.push({ x0: p.x - 5, x1: p.x + 5, y0: p.y - 5, y1: p.y + 5 });
  return points.map((p) => {
    const words = short(p.title, 34);
    const weight = p.strong ? 650 : 400;
    const size = measure(words, 13, weight) + 4;
    const near = [[9, 4.5, "start"], [-9, 4.5, "end"], [0, -10, "middle"], [0, 19, "middle"], [9, -8, "start"], [-9, -8, "end"], [9, 18, "start"], [-9, 18, "end"]];
    const far = [28, 44, 60, 76].flatMap((up) => [[0, -up, "middle"], [0, up + 9, "middle"], [26, 4.5 - up, "start"], [-26, 4.5 - up, "end"], [26, 4.5 + up, "start"], [-26, 4.5 + up, "end"]]);
    const order = most < near.length ? near.slice(0, most) : p.above ? [...near.slice(4), ...near.slice(0, 4), ...far] : [...near, ...far];
    for (const [dx, dy, anchor] of order) {
      const x0 = p.x + dx - (anchor === "end" ? size : anchor === "middle" ? size / 2 : 0);
      const box = { x0, x1: x0 + size, y0: p.y + dy - 12, y1: p.y + dy + 3 };
      if (x0 < left || box.x1 > width || box.y0 < 0 || box.y1 > bottom || !free(box)) continue;
      taken.push(box);
      const name = svg("text", { class: "halo", x: p.x + dx, y: p.y + dy, "text-anchor": anchor, "font-size": 13, "font-weight": weight, fill: "currentColor" }, words);
      if (!far.some((one) => one[0] === dx && one[1] === dy)) return name;
      const from = anchor === "middle" ? p.x : p.x + dx + (anchor === "start" ? -2 : 2);
      const to = anchor !== "middle" ? p.y + dy - 4.5 : dy < 0 ? p.y + dy + 3 : p.y + dy - 12;
      return svg("g", {}, svg("path", { d: `M${p.x} ${p.y}L${from} ${to}`, stroke: "var(--soft)", "stroke-width": 0.75 }), name);
    }
    return svg("g", {});
  });
}

// A name; with an arrow and the number for each scale that does not reach its value.
function told(view, title, scales) {
  const off = scales.filter(([domain, value]) => !inside(domain, value * view.factor));
  if (!off.length) return title;
  return `${off.map(([domain, value, arrows]) => away(domain, value * view.factor, arrows)).join("")} ${title} ${off.map(([, value]) => view.number(value)).join(", ")}`;
}

function drawTradeoff(view, width) {
  const { metric } = view.data;
  const { label, unit } = COSTS[view.cost];
  const points = costPoints(view);
  const front = paretoOf(points.filter((p) => p.m.federated), view.sign);
  const { factor, name } = scaled(d3.max(points, (p) => p.cost) || 0, unit);
  const height = width < NARROW ? 340 : 400;
  const costly = d3.max(points, (p) => p.cost) / factor || 1;
  const domain = bounds(scaleWithout(points.map((p) => ({ ...p, name: p.m.name })), (p) => [p.mean]).map((v) => (present(v) ? v * view.factor : v)), view, 0.12);
  const on = front.filter((p) => inside(domain, p.mean * view.factor));
  const drawing = plotted({
    width, height, marginLeft: 72, marginRight: 24, marginTop: 20, marginBottom: 48,
    x: { domain: [0 - 0.04 * costly, costly * 1.08] },
    y: { domain },
    marks: [
      ...upright(`test ${metric.title}${view.unit && ","}${view.unit}`),
      across(width < NARROW ? `${view.cost === "flops" ? "operations of a visit" : view.cost === "bytes" ? "traffic per client" : "training time"}, ${name}` : `${label}, ${name}`, width - 100),
      Plot.lineY(on, { x: (p) => p.cost / factor, y: (p) => p.mean * view.factor, curve: "step-after", stroke: "var(--accent)", strokeWidth: 1.75, strokeDasharray: "5 4" }),
      Plot.dot(points, { x: (p) => p.cost / factor, y: (p) => clamped(domain, p.mean * view.factor), r: 5.5, fill: (p) => (front.includes(p) ? "var(--accent)" : "var(--paper)"), stroke: (p) => (front.includes(p) ? "var(--accent)" : "var(--soft)"), strokeWidth: 1.75 }),
    ],
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  const placed = points.map((p) => ({ ...p, x: x(p.cost / factor), y: y(clamped(domain, p.mean * view.factor)), title: told(view, p.m.title, [[domain, p.mean, ["\u25be", "\u25b4"]]]), strong: front.includes(p), above: front.includes(p) }))
    .sort((a, b) => b.strong - a.strong);
  drawing.append(...labelled(placed, width, height - 46));
  const series = [[...placed].sort((a, b) => a.x - b.x).map((p) => ({
    x: p.x, y: p.y, rows: [p.m.title, view.number(p.mean), `${three(p.cost / factor)} ${name}`, p.strong ? "nothing cheaper is as good" : "another is as cheap and better"],
  }))];
  const aria = `Mean ${metric.title} against ${label}. Nothing cheaper is as good as: ${front.map((p) => p.m.title).join(", ")}.`;
  return { svg: drawing, series, aria };
}

const tradeoffTable = (view) => {
  const front = paretoOf(costPoints(view), view.sign).map((p) => p.m.name);
  return [
    ["method", view.data.metric.title, "bytes_per_client", "seconds", "operations_per_visit", `on_the_front_of_${view.cost}`],
    ...view.data.methods.map((m, k) => [m.title, view.rows[k].mean, m.cost.bytes, m.cost.seconds, m.cost.flops, front.includes(m.name)]),
  ];
};

// Unseen clients by the number of labelled examples.
const coldLines = (view) => view.data.methods.filter((m) => m.cold).map((m) => ({
  m,
  slot: view.slots.get(m.name),
  points: m.cold.budgets.map((budget, b) => {
    const means = m.cold.seeds.map((seed) => average(seed[b].filter(present))).filter(present);
    return { budget, mean: average(means), least: d3.min(means), most: d3.max(means) };
  }).filter((p) => present(p.mean)),
}));

function drawCold(view, width) {
  const { metric } = view.data;
  const lines = coldLines(view);
  const budgets = view.data.methods.find((m) => m.cold).cold.budgets;
  const narrow = width < NARROW;
  const right = narrow ? 16 : 160;
  const height = narrow ? 330 : 380;
  const domain = scaleOf(lines, view, (f) => f.points.flatMap((p) => [p.least, p.most]));
  const on = lines.filter((f) => f.slot !== undefined);
  const at = (p) => budgets.indexOf(p.budget);
  const drawing = plotted({
    width, height, marginLeft: 72, marginRight: right, marginTop: 12, marginBottom: 48,
    x: { domain: [0, budgets.length - 1 || 1] },
    y: { domain },
    marks: [
      ...upright(`test ${metric.title} of unseen clients${view.unit && ","}${view.unit}`),
      Plot.axisX(d3.range(budgets.length), { tickFormat: (i) => budgets[i], label: narrow ? "labelled examples" : "labelled examples that an unseen client has", labelAnchor: "center", labelArrow: "none", labelOffset: 40, fontSize: 13, color: "var(--soft)", tickSize: 0 }),
      ...lines.filter((f) => f.slot === undefined).map((f) => Plot.lineY(f.points, { x: at, y: (p) => p.mean * view.factor, stroke: "var(--even)", strokeWidth: 1.25, strokeOpacity: 0.7, clip: true })),
      ...on.filter(() => view.data.seeds > 1).map((f) => Plot.areaY(f.points, { x: at, y1: (p) => p.least * view.factor, y2: (p) => p.most * view.factor, fill: colour(f.slot % SLOTS), fillOpacity: 0.14 })),
      ...on.map((f) => Plot.lineY(f.points, { x: at, y: (p) => p.mean * view.factor, stroke: colour(f.slot % SLOTS), strokeWidth: 2.25, strokeDasharray: dash(f.slot) || "none" })),
      ...on.map((f) => Plot.dot(f.points, { x: at, y: (p) => p.mean * view.factor, r: 3.5, fill: colour(f.slot % SLOTS) })),
    ],
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  if (!narrow) drawing.append(...ends(on.filter((f) => f.points.length).map((f) => ({ title: f.m.title, x: x(at(f.points[f.points.length - 1])), y: y(f.points[f.points.length - 1].mean * view.factor), colour: colour(f.slot % SLOTS) })), height - 48));
  drawing.append(...leaving(lines, domain, view, (p) => x(at(p)), y));
  const series = lines.map((f) => f.points.filter((p) => inside(domain, p.mean * view.factor)).map((p) => ({
    x: x(at(p)), y: y(p.mean * view.factor),
    rows: [f.m.title, view.number(p.mean) + (view.data.seeds > 1 ? ` (${view.number(p.least)} to ${view.number(p.most)})` : ""), `${p.budget} labelled examples`],
  })));
  const aria = `Unseen clients by the number of labelled examples. ${on.map((f) => `${f.m.title}: ${f.points.map((p) => `${p.budget} labels ${view.number(p.mean)}`).join(", ")}`).join("; ")}.`;
  return { svg: drawing, series, aria };
}

const coldTable = (view) => [
  ["method", "labelled_examples", "mean", "lowest_seed", "highest_seed"],
  ...coldLines(view).flatMap((f) => f.points.map((p) => [f.m.title, p.budget, p.mean, p.least, p.most])),
];
