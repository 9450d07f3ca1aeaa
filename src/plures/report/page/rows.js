// One row of dots per method: gain or harm, and distribution over clients.

// A long title has its parameters on a second line.
function folded(title, most) {
  const at = title.length > most ? title.slice(0, Math.max(0, title.indexOf("="))).lastIndexOf(" ") : -1;
  return (at < 0 ? [title] : [title.slice(0, at), title.slice(at + 1)]).map((line) => short(line, most)).join("\n");
}

// The frame that both share. Values come already times 100 where they are percent.
function rowsOfDots(view, width, top, rows, domain, label, marks) {
  const narrow = width < NARROW;
  const longest = d3.max(rows, (row) => row.title.length);
  const left = narrow ? 14 : Math.min(220, 16 + 7.2 * Math.min(longest, 28));
  const right = narrow ? 14 : 16 + 6.8 * d3.max(rows, (row) => row.told.length);
  const size = narrow ? 62 : 46;
  const foot = top + rows.length * size;
  const middle = (i) => (narrow ? i + 40 / 62 : i + 0.5);
  const room = narrow ? 14 : 15;
  const x = d3.scaleLinear(domain, [left, width - right]);
  const titles = rows.map((row, i) => ({ i, ...row }));
  const base = (d) => d.i + (narrow ? 12 / 62 : 0.5);
  const words = (strong) => Plot.text(titles.filter((d) => Boolean(d.best) === strong), {
    y: base, frameAnchor: "left", dx: -left, textAnchor: "start", fontSize: 13, fontWeight: strong ? 650 : 400,
    text: (d) => (narrow ? short(d.title, Math.floor((width - 6.8 * d.told.length - 12) / 8.4)) : folded(d.title, 28)), lineHeight: 1.15,
  });
  const drawing = plotted({
    width,
    height: foot + 46,
    marginTop: top,
    marginLeft: left,
    marginRight: right,
    marginBottom: 46,
    x: { domain, range: [left, width - right] },
    y: { domain: [0, rows.length], range: [top, foot], axis: null },
    marks: [
      Plot.gridX({ stroke: "var(--line)", strokeOpacity: 1, ticks: Math.max(3, Math.round((width - left - right) / (narrow ? 70 : 90))) }),
      Plot.axisX({
        ticks: Math.max(3, Math.round((width - left - right) / (narrow ? 70 : 90))),
        tickFormat: (v) => ((label.signed && v > 0 ? "+" : "") + String(Number(v.toPrecision(6)))).replace("-", MINUS),
        label: label.words, labelAnchor: "center", labelArrow: "none", labelOffset: 40, tickSize: 0, fontSize: 13, color: "var(--soft)",
      }),
      Plot.ruleY(d3.range(rows.length + 1), { stroke: "var(--line)", insetLeft: -left, insetRight: -right }),
      words(false),
      words(true),
      Plot.text(titles, { y: base, frameAnchor: "right", dx: right, textAnchor: "end", fontSize: 13, fill: "var(--soft)", text: "told" }),
      ...marks({ x, middle, room, size, top, foot }),
    ],
  });
  return drawing;
}

function placed(values, x, room, size, dot) {
  const order = d3.range(values.length).filter((i) => present(values[i])).sort((a, b) => values[a] - values[b]);
  const offsets = swarm(order.map((i) => x(values[i])), 2 * dot - 0.5, room);
  return order.map((i, k) => ({ i, value: values[i], x: x(values[i]), offset: offsets[k] / size }));
}

// What a row says of dots that are not on the scale.
function beyondScale(rows, domain, valuesOf, said) {
  return rows.flatMap((row, r) => {
    const known = valuesOf(row).filter(present);
    const lost = known.filter((value) => !inside(domain, value));
    if (!lost.length) return [];
    const left = lost[0] < domain[0];
    const words = `${lost.length} of ${known.length} beyond the scale, ${said(row)}`;
    return [{ r, left, alone: lost.length === known.length, value: domain[left ? 0 : 1], words: left ? `\u25c2 ${words}` : `${words} \u25b8` }];
  });
}

const beyondMarks = (beyond, { middle, room, size }, shade) => [true, false].map((left) => Plot.text(beyond.filter((d) => d.left === left), {
  x: "value", y: (d) => middle(d.r) + (d.alone ? 0 : (room + 1) / size), text: "words", textAnchor: left ? "start" : "end", dx: left ? 2 : -2, fontSize: 12,
  fill: shade(left), stroke: "var(--paper)", strokeWidth: 4,
}));

function drawGain(view, width) {
  const { data } = view;
  const { metric } = data;
  const reference = data.methods.find((m) => m.name === view.reference);
  const rows = data.methods.filter((m) => m !== reference).map((m) => {
    const gains = differences(view.pick(m.values), view.pick(reference.values), view.sign);
    const known = gains.filter(present);
    const [lost, away] = [m, reference].map((one) => view.pick(one.lost));
    const harm = harmedClients(view.pick(m.values), lost, view.pick(reference.values), away, view.sign);
    return { ...m, gains: gains.map((g) => (present(g) ? g * view.factor : null)), known, told: harm.known ? `harmed ${harm.worse} of ${harm.known}` : "undefined" };
  });
  const top = 26;
  const domain = extent([0, ...scaleWithout(rows, (row) => [0, ...row.gains])]);
  const beyond = beyondScale(rows, domain, (row) => row.gains, (row) => {
    const mean = average(row.known) * view.factor;
    return `mean ${mean > 0 ? "+" : ""}${plain(mean, metric.decimals)}`;
  });
  const what = metric.percent ? "percentage points" : "units of the metric";
  const words = width < NARROW
    ? `gain in ${metric.title}, ${metric.percent ? "points" : "units"}`
    : `${metric.higher ? "gain in" : "reduction of"} ${metric.title} on test data against ${reference.title}, ${what}`;
  let series = [];
  const drawing = rowsOfDots(view, width, top, rows, domain, { words, signed: true }, ({ x, middle, room, size }) => {
    const dots = rows.map((row, r) => placed(row.gains.map((g) => (inside(domain, g) ? g : null)), x, room, size, view.dot).map((p) => ({ ...p, row: r, y: middle(r) + p.offset })));
    series = dots.map((points, r) => points.map((p) => {
      const client = view.keep[p.i];
      return {
        x: p.x,
        y: top + p.y * size,
        client,
        rows: [
          `${data.clients[client].name}: ${p.value > 0 ? "+" : ""}${plain(p.value, metric.decimals)}${metric.percent ? " points" : ""}`,
          `${rows[r].title} ${view.number(rows[r].values[client])}`,
          `${reference.title} ${view.number(reference.values[client])}`,
          ...view.about(client),
        ],
      };
    }));
    const means = rows.map((row, r) => ({ r, mean: average(row.known) })).filter((d) => present(d.mean) && inside(domain, d.mean * view.factor));
    const zero = x(0);
    return [
      Plot.ruleX([0], { stroke: "var(--soft)", strokeWidth: 1.5 }),
      Plot.text([0], { x: 0, frameAnchor: "top", dy: -16, dx: 10, textAnchor: "start", text: ["gains \u2192"], fill: "var(--gain)", fontSize: 13 }),
      ...(zero > 80 ? [Plot.text([0], { x: 0, frameAnchor: "top", dy: -16, dx: -10, textAnchor: "end", text: ["\u2190 harmed"], fill: "var(--harm)", fontSize: 13 })] : []),
      Plot.dot(dots.flat(), {
        x: "value", y: "y", r: view.dot, fillOpacity: 0.72,
        fill: (d) => (d.value > 0 ? "var(--gain)" : d.value < 0 ? "var(--harm)" : "var(--even)"),
      }),
      ...beyondMarks(beyond, { middle, room, size }, (left) => (left ? "var(--harm)" : "var(--gain)")),
      Plot.ruleX(means, { x: (d) => d.mean * view.factor, y1: (d) => middle(d.r) - room / size, y2: (d) => middle(d.r) + room / size, stroke: "currentColor", strokeWidth: 2.5 }),
    ];
  });
  const aria = `Gain or harm of every client against ${reference.title}. ${rows.map((row) => `${row.title}: ${row.told} clients`).join("; ")}.`;
  return { svg: drawing, series, aria };
}

const gainTable = (view) => {
  const { data } = view;
  const reference = data.methods.find((m) => m.name === view.reference);
  return [
    ["method", "client", data.metric.title, "reference", "reference_value", "gain"],
    ...data.methods.filter((m) => m !== reference).flatMap((m) => {
      const gains = differences(m.values, reference.values, view.sign);
      return view.keep.map((i) => [m.title, data.clients[i].name, m.values[i], reference.title, reference.values[i], gains[i]]);
    }),
  ];
};

function drawSpread(view, width) {
  const { data } = view;
  const { metric } = data;
  const rows = data.methods.map((m, k) => {
    const values = view.pick(m.values);
    const known = values.filter(present).sort((a, b) => a - b);
    return { ...m, shown: values.map((v) => (present(v) ? v * view.factor : null)), box: known.length ? [0.25, 0.5, 0.75].map((q) => quantile(known, q)) : [], over: view.rows[k], told: `worst ${view.number(view.rows[k].worst)}` };
  });
  const better = metric.higher ? "right is better" : "left is better";
  const unit = view.unit && ",";
  const words = width < NARROW
    ? `${metric.title}${unit}${view.unit} (${better})`
    : `${metric.title} on test data${unit}${view.unit} (${better})`;
  const top = width < NARROW ? 56 : 34;
  const domain = extent(scaleWithout(rows, (row) => row.shown));
  const beyond = beyondScale(rows, domain, (row) => row.shown, (row) => `median ${view.number(row.box[1])}`);
  let series = [];
  const drawing = rowsOfDots(view, width, top, rows, domain, { words, signed: false }, ({ x, middle, room, size }) => {
    const dots = rows.map((row, r) => placed(row.shown.map((v) => (inside(domain, v) ? v : null)), x, room, size, view.dot).map((p) => ({ ...p, row: r, y: middle(r) + p.offset })));
    series = dots.map((points, r) => points.map((p) => {
      const client = view.keep[p.i];
      return { x: p.x, y: top + p.y * size, client, rows: [`${data.clients[client].name}: ${view.number(rows[r].values[client])}`, rows[r].title, ...view.about(client)] };
    }));
    const boxed = rows.map((row, r) => ({ ...row, r })).filter((row) => row.box.length && !beyond.some((d) => d.r === row.r));
    const worst = dots.filter((points, r) => points.length && !beyond.some((d) => d.r === r)).map((points) => (metric.higher ? points[0] : points[points.length - 1]));
    const box = (fill, stroke) => Plot.rect(boxed, {
      x1: (d) => d.box[0] * view.factor, x2: (d) => d.box[2] * view.factor, y1: (d) => middle(d.r) - room / size, y2: (d) => middle(d.r) + room / size, rx: 3, fill, stroke, strokeWidth: 1.25,
    });
    return [
      box("var(--card)", "var(--soft)"),
      Plot.dot(dots.flat(), { x: "value", y: "y", r: view.dot, fill: "var(--even)", fillOpacity: 0.72 }),
      box("none", "var(--soft)"),
      Plot.ruleX(boxed, { x: (d) => d.box[1] * view.factor, y1: (d) => middle(d.r) - room / size, y2: (d) => middle(d.r) + room / size, stroke: "currentColor", strokeWidth: 2.5 }),
      Plot.dot(worst, { x: "value", y: "y", r: 5.5, fill: "var(--paper)", stroke: "var(--harm)", strokeWidth: 2 }),
      Plot.dot(boxed, { x: (d) => d.over.bottom * view.factor, y: (d) => middle(d.r), symbol: "diamond", r: 5, fill: "var(--paper)", stroke: "var(--harm)", strokeWidth: 2 }),
      ...beyondMarks(beyond, { middle, room, size }, () => "var(--soft)"),
    ];
  });
  const key = [
    [svg("rect", { x: 0, y: 8, width: 16, height: 12, rx: 2, fill: "var(--card)", stroke: "var(--soft)" }), "middle half"],
    [svg("path", { d: "M8 7V21", stroke: "currentColor", "stroke-width": 2.5 }), "median"],
    [svg("path", { d: "M8 8l5 6l-5 6l-5 -6z", fill: "var(--paper)", stroke: "var(--harm)", "stroke-width": 2 }), "worst tenth"],
    [svg("circle", { cx: 8, cy: 14, r: 5.5, fill: "var(--paper)", stroke: "var(--harm)", "stroke-width": 2 }), "worst"],
  ];
  let [at, down] = [0, 0];
  for (const [mark, words] of key) {
    const room = 46 + 6.8 * words.length;
    if (at + room > width) [at, down] = [0, 22];
    drawing.append(svg("g", { transform: `translate(${at} ${down})` }, mark, svg("text", { x: 21, y: 18.5, class: "soft", "font-size": 13, "text-anchor": "start" }, words)));
    at += room;
  }
  const aria = `Distribution over clients. ${rows.map((row) => `${row.title}: median ${view.number(row.box[1] ?? null)}, worst ${view.number(row.over.worst)}`).join("; ")}.`;
  return { svg: drawing, series, aria };
}

const spreadTable = (view) => [
  ["client", ...view.data.methods.map((m) => m.title)],
  ...view.keep.map((i) => [view.data.clients[i].name, ...view.data.methods.map((m) => m.values[i])]),
];
