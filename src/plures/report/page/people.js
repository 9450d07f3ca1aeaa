// How clients are served: fairness, calibration of groups, clusters and moves, the map of personal parts.

function drawFairness(view, width) {
  const { metric } = view.data;
  const points = view.data.methods.map((m, k) => ({ m, ...view.rows[k] })).filter((p) => present(p.mean) && present(p.bottom));
  const height = width < NARROW ? 340 : 400;
  const [means, worst] = ["mean", "bottom"].map((part, axis) =>
    bounds(scaleWithout(points.map((p) => ({ ...p, name: p.m.name })), (p) => [p[part]]).map((v) => (present(v) ? v * view.factor : v)), view, axis ? 0.14 : 0.2));
  const drawing = plotted({
    width, height, marginLeft: 72, marginRight: 24, marginTop: 20, marginBottom: 48,
    x: { domain: means },
    y: { domain: worst },
    marks: [
      ...upright(`worst tenth${view.unit && ","}${view.unit}`),
      across(`mean ${metric.title}${view.unit && ","}${view.unit}`, width - 100),
      Plot.dot(points, { x: (p) => clamped(means, p.mean * view.factor), y: (p) => clamped(worst, p.bottom * view.factor), r: 5.5, fill: (p) => (p.m.baseline ? "var(--paper)" : "var(--accent)"), stroke: (p) => (p.m.baseline ? "var(--soft)" : "var(--accent)"), strokeWidth: 1.75 }),
    ],
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  const placed = points.map((p) => ({
    ...p,
    x: x(clamped(means, p.mean * view.factor)),
    y: y(clamped(worst, p.bottom * view.factor)),
    title: told(view, p.m.title, [[means, p.mean, ["\u25c2", "\u25b8"]], [worst, p.bottom, ["\u25be", "\u25b4"]]]),
    strong: p.m.best,
  }));
  drawing.append(...labelled(placed, width, height - 46));
  const series = [[...placed].sort((a, b) => a.x - b.x).map((p) => ({
    x: p.x, y: p.y, rows: [p.m.title, `mean ${view.number(p.mean)}`, `worst tenth ${view.number(p.bottom)}`, `Jain's index ${plain(p.jain, 3)}`],
  }))];
  const aria = `Mean against the worst tenth of the clients. ${placed.map((p) => `${p.m.title}: mean ${view.number(p.mean)}, worst tenth ${view.number(p.bottom)}`).join("; ")}.`;
  return { svg: drawing, series, aria };
}

const fairnessTable = (view) => [
  ["method", "mean", "std", "worst", "bottom_tenth", "quantile_10", "best", "jain"],
  ...view.data.methods.map((m, k) => {
    const r = view.rows[k];
    return [m.title, r.mean, r.std, r.worst, r.bottom, r.p10, r.best, r.jain];
  }),
];

// Stated confidence against the share that is right, by group of clients.
function calibrationOf(view) {
  const method = view.data.methods.find((m) => m.name === view.calibrated);
  const kept = new Set(view.keep);
  const groups = view.split ? view.data.groups[view.split] : [["all clients", view.keep]];
  return groups.map(([label, clients], place) => {
    const own = clients.filter((i) => kept.has(i));
    const bins = d3.range(10).map((bin) => {
      const sum = (part) => total(own.map((i) => method.calibration[part][i][bin]));
      const examples = sum("examples");
      return { bin, examples, confidence: sum("confidence") / examples, correct: sum("correct") / examples };
    }).filter((b) => b.examples > 0);
    const all = total(bins.map((b) => b.examples));
    const gap = all ? total(bins.map((b) => b.examples * Math.abs(b.confidence - b.correct))) / all : null;
    return { label, place, bins, all, gap, clients: own.length };
  }).filter((g) => g.bins.length);
}

function drawCalibration(view, width) {
  const groups = calibrationOf(view);
  const wide = Math.min(width, 620);
  const height = Math.min(wide, 480);
  const most = d3.max(groups, (g) => d3.max(g.bins, (b) => b.examples)) || 1;
  const radius = (b) => 3 + 5 * Math.sqrt(b.examples / most);
  const drawing = plotted({
    width: wide, height, marginLeft: 72, marginRight: 16, marginTop: 12, marginBottom: 48,
    x: { domain: [0, 100] },
    y: { domain: [0, 100] },
    marks: [
      ...upright("share that is right, %"),
      across("stated confidence, %", wide - 80),
      Plot.line([[0, 0], [100, 100]], { stroke: "var(--soft)", strokeDasharray: "4 4" }),
      ...groups.map((g) => Plot.line(g.bins, { x: (b) => 100 * b.confidence, y: (b) => 100 * b.correct, stroke: colour(g.place), strokeWidth: 2, strokeDasharray: dash(g.place) || "none" })),
      ...groups.map((g) => Plot.dot(g.bins, { x: (b) => 100 * b.confidence, y: (b) => 100 * b.correct, r: { value: radius }, fill: colour(g.place), fillOpacity: 0.75 })),
    ],
    r: { type: "identity" },
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  const series = groups.map((g) => g.bins.map((b) => ({
    x: x(100 * b.confidence), y: y(100 * b.correct),
    rows: [g.label, `says ${plain(100 * b.confidence, 1)} %, is right in ${plain(100 * b.correct, 1)} %`, `${Math.round(b.examples)} test examples`],
  })));
  view.legend(document.querySelector("#calibration .key"), groups.map((g) => ({ label: `${g.label}: ${g.clients} client${g.clients === 1 ? "" : "s"}, error ${plain(100 * g.gap, 1)} %`, place: g.place, dash: dash(g.place) })));
  const aria = `Calibration. ${groups.map((g) => `${g.label}: calibration error ${plain(100 * g.gap, 1)} %`).join("; ")}.`;
  return { svg: drawing, series, aria };
}

const calibrationTable = (view) => [
  ["method", "group", "bin", "examples", "confidence", "right"],
  ...calibrationOf(view).flatMap((g) => g.bins.map((b) => [view.calibrated, g.label, b.bin, b.examples, b.confidence, b.correct])),
];

// Which cluster a client is in, round by round.
function clustersOf(view) {
  const method = view.data.methods.find((m) => m.name === view.clustered);
  const rounds = method.clusters.rounds;
  return view.keep.map((i) => {
    const moves = method.clusters.moves.filter((move) => move[1] === i).sort((a, b) => a[0] - b[0]);
    const now = method.clusters.now[i];
    const parts = [];
    if (!moves.length) parts.push({ from: 0, to: rounds, cluster: now });
    else {
      if (moves[0][0] > 0) parts.push({ from: 0, to: moves[0][0], cluster: null });
      moves.forEach((move, k) => parts.push({ from: move[0], to: moves[k + 1]?.[0] ?? rounds, cluster: move[2] }));
    }
    return { i, now, moves: moves.length, parts: parts.filter((p) => p.to > p.from).map((p) => ({ ...p, i })) };
  }).sort((a, b) => a.now - b.now || a.i - b.i);
}

function drawClusters(view, width) {
  const lines = clustersOf(view);
  const narrow = width < NARROW;
  const dense = lines.length > 60;
  const size = dense ? 6 : 20;
  const left = dense ? 12 : Math.min(narrow ? 130 : 200, 20 + 7 * d3.max(lines, (l) => view.data.clients[l.i].name.length));
  const right = narrow ? 8 : 20;
  const rounds = view.data.methods.find((m) => m.name === view.clustered).clusters.rounds;
  const parts = lines.flatMap((l, row) => l.parts.map((p) => ({ ...p, row })));
  const height = 10 + lines.length * size + 48;
  const shade = (p) => (p.cluster === null ? "var(--line)" : colour(p.cluster));
  const drawing = plotted({
    width, height, marginLeft: left, marginRight: right, marginTop: 10, marginBottom: 48,
    x: { domain: [0, rounds] },
    y: { domain: [0, lines.length], range: [10, height - 48], axis: null },
    marks: [
      Plot.rect(parts, { x1: "from", x2: "to", y1: "row", y2: (p) => p.row + 1, inset: 1, fill: shade, rx: 2 }),
      across("rounds finished", width - left - right, (v) => (Number.isInteger(v) ? String(v) : "")),
      ...(dense ? [] : [
        Plot.text(lines, { y: (_, k) => k + 0.5, frameAnchor: "left", dx: -left, textAnchor: "start", fontSize: 12, text: (l) => short(view.data.clients[l.i].name, narrow ? 17 : 26) }),
        Plot.text(parts.filter((p) => p.cluster !== null && ((p.to - p.from) / rounds) * (width - left) > 16), { x: (p) => (p.from + p.to) / 2, y: (p) => p.row + 0.5, text: (p) => String(p.cluster), fill: "var(--paper)", fontSize: 11, fontWeight: 650 }),
      ]),
    ],
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  const series = lines.map((l, row) => l.parts.map((p) => ({
    x: x((p.from + p.to) / 2), y: y(row + 0.5), client: l.i,
    rows: [view.data.clients[l.i].name, p.cluster === null ? "in the cluster it began in" : `in cluster ${p.cluster}`, `rounds ${p.from} to ${p.to}`, `${l.moves} move${l.moves === 1 ? "" : "s"}`, ...view.about(l.i)],
  })));
  const found = [...new Set(lines.map((l) => l.now))].sort((a, b) => a - b);
  view.legend(document.querySelector("#clusters .key"), found.map((c) => ({ label: `cluster ${c}: ${lines.filter((l) => l.now === c).length} clients at the end`, place: c, dash: "" })).concat(parts.some((p) => p.cluster === null) ? [{ label: "in the cluster it began in", shade: "var(--line)" }] : []));
  const aria = `Clusters. ${found.map((c) => `Cluster ${c}: ${lines.filter((l) => l.now === c).map((l) => view.data.clients[l.i].name).join(", ")}`).join("; ")}.`;
  return { svg: drawing, series, aria, highlight: (p) => [svg("circle", { cx: p.x, cy: p.y, r: 7, class: "cursor" })] };
}

const clustersTable = (view) => [
  ["method", "client", "from_round", "to_round", "cluster"],
  ...clustersOf(view).flatMap((l) => l.parts.map((p) => [view.clustered, view.data.clients[l.i].name, p.from, p.to, p.cluster])),
];

// Two principal components of what is personal. What is smaller than this share of the first one is rounding.
const NOTHING = 1e-6;
function mapOf(view) {
  const method = view.data.methods.find((m) => m.name === view.mapped);
  const groups = view.tinted ? view.data.groups[view.tinted] : [["clients", d3.range(view.data.clients.length)]];
  const group = new Map(groups.flatMap(([label, clients], place) => clients.map((i) => [i, { label, place }])));
  const reach = d3.max(method.personal.places, (at) => Math.abs(at[0])) || 1;
  const rounded = (value) => (present(value) && Math.abs(value) < NOTHING * reach ? 0 : value);
  return {
    method,
    groups,
    points: view.keep.map((i) => ({ i, at: method.personal.places[i].map(rounded), group: group.get(i) })).filter((p) => p.at.every(present) && p.group),
  };
}

function drawMap(view, width) {
  const { method, points, groups } = mapOf(view);
  const wide = Math.min(width, 720);
  const narrow = width < NARROW;
  const percent = method.personal.explained.map((v) => `${plain(100 * v, 0)} %${narrow ? "" : " of the variance"}`);
  const drawing = plotted({
    width: wide, height: Math.min(wide, 520), marginLeft: 72, marginRight: 20, marginTop: 12, marginBottom: 48,
    x: { domain: extent(points.map((p) => p.at[0]), 0.1) },
    y: { domain: extent(points.map((p) => p.at[1]), 0.1) },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: 6 }),
      ...upright(`${narrow ? "second" : "second component"}, ${percent[1]}`),
      across(`${narrow ? "first" : "first component"}, ${percent[0]}`, wide - 80),
      Plot.dot(points, { x: (p) => p.at[0], y: (p) => p.at[1], r: view.dot + 2, fill: (p) => colour(p.group.place), fillOpacity: 0.8, stroke: "var(--paper)", strokeWidth: 0.75 }),
    ],
  });
  const [x, y] = [drawing.scale("x").apply, drawing.scale("y").apply];
  const placed = points.map((p) => ({ ...p, x: x(p.at[0]), y: y(p.at[1]), title: view.data.clients[p.i].name, strong: false }));
  if (points.length <= 40) {
    const names = labelled(placed, wide, Infinity, 76, 4);
    names.forEach((name) => { name.setAttribute("font-size", 11); name.setAttribute("fill", "var(--soft)"); });
    drawing.append(...names);
  }
  const series = [[...placed].sort((a, b) => a.x - b.x).map((p) => ({
    x: p.x, y: p.y, client: p.i,
    rows: [p.title, ...view.about(p.i), ...(method.personal.peers[p.i].length ? [`nearest: ${method.personal.peers[p.i].slice(0, 3).map((j) => view.data.clients[j].name).join(", ")}`] : [])],
  }))];
  view.legend(document.querySelector("#map .key"), view.tinted ? groups.map(([label], place) => ({ label, place, dash: "" })) : []);
  const aria = `Map of what is personal in ${method.title}: two principal components, ${percent.join(" and ")}.`;
  return { svg: drawing, series, aria };
}

const mapTable = (view) => {
  const { method, points } = mapOf(view);
  return [["method", "client", "first", "second", "group"], ...points.map((p) => [method.title, view.data.clients[p.i].name, p.at[0], p.at[1], p.group.label])];
};
