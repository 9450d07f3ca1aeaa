"use strict";

// Draws the three charts and makes the tables sortable. All data stands in the JSON element of the page, and every name
// reaches the page as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { metric, methods, clients } = data;
  const sign = metric.higher ? 1 : -1;
  const unit = metric.percent ? " %" : "";
  const MISSING = "\u2013";
  const MINUS = "\u2212";
  const REACH = 28;
  const SLOTS = 8;
  const DASHES = ["", "7 4", "2 4", "9 3 2 3"];
  const NARROW = 640;
  const EDGE = 16;
  const TITLE = 56;

  // Small helpers

  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes ?? {})) node.setAttribute(name, value);
    node.append(...children);
    return node;
  };
  const svg = (name, attributes, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
  const html = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
  const text = (x, y, words, kind = "", anchor = "start") =>
    svg("text", { x, y, class: kind, "text-anchor": anchor }, words);
  const line = (x1, y1, x2, y2, kind) => svg("line", { x1, y1, x2, y2, class: kind });
  const shown = (value) => (metric.percent ? 100 * value : value).toFixed(metric.decimals).replace("-", MINUS);
  const number = (value) => (value === null ? MISSING : shown(value) + unit);
  const signed = (value) => (value > 0 ? "+" : "") + shown(value);
  const short = (words, most) => (words.length > most ? `${words.slice(0, most - 1)}\u2026` : words);
  const present = (value) => value !== null && value !== undefined;
  const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);

  // Round numbers from low to high, about as many as asked for.
  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(1, count) || 1;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((factor) => factor * power >= raw * 0.999);
    const found = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
    return { found, digits: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
  }

  const extent = (values, pad = 0.04) => {
    const known = values.filter(present);
    if (!known.length) return [0, 1];
    const low = known.reduce((a, b) => Math.min(a, b));
    const high = known.reduce((a, b) => Math.max(a, b));
    const room = (high - low || Math.abs(high) || 1) * pad;
    return [low - room, high + room];
  };

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

  const SIZE = clients.length > 400 ? 3 : clients.length > 120 ? 5 : 7;
  const dots = (points, kind) => svg("path", { class: `dots ${kind}`, style: `stroke-width: ${SIZE}`, d: points.map((p) => `M${p.x.toFixed(1)} ${p.y.toFixed(1)}h0`).join("") });

  function save(name, kind, content) {
    const address = URL.createObjectURL(new Blob([content], { type: kind }));
    html("a", { href: address, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  }

  const csv = (rows) =>
    rows.map((row) => row.map((cell) => {
      const words = present(cell) ? String(cell) : "";
      return /[",\r\n]/.test(words) ? `"${words.replaceAll('"', '""')}"` : words;
    }).join(",")).join("\n") + "\n";

  // A drawing that stands alone: styles written into it, on paper of the page's colour, with its title.
  function standalone(drawing, title) {
    const copy = drawing.cloneNode(true);
    const styles = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "font-size", "font-weight", "text-anchor"];
    const originals = drawing.querySelectorAll("*");
    copy.querySelectorAll("*").forEach((node, i) => {
      const style = getComputedStyle(originals[i]);
      for (const name of styles) node.setAttribute(name, style.getPropertyValue(name));
      node.removeAttribute("class");
      node.removeAttribute("style");
    });
    const [, , width, height] = drawing.getAttribute("viewBox").split(" ").map(Number);
    const page = getComputedStyle(document.body);
    copy.prepend(
      svg("rect", { x: -EDGE, y: -TITLE, width: width + 2 * EDGE, height: height + TITLE + EDGE, fill: page.backgroundColor }),
      svg("text", { x: 0, y: 18 - TITLE + EDGE, "font-size": 17, "font-weight": 600, fill: page.color }, title),
    );
    const [outer, total] = [width + 2 * EDGE, height + TITLE + EDGE];
    fill(copy, { viewBox: `${-EDGE} ${-TITLE} ${outer} ${total}`, width: outer, height: total, "font-family": "system-ui, sans-serif", "font-size": 13 }, []);
    return new XMLSerializer().serializeToString(copy);
  }

  // A chart is redrawn when its width changes. `draw(width)` gives the drawing, and series of points that pointer and
  // arrow keys walk through; `table()` gives the rows of its CSV file.
  function chart(id, draw, table) {
    const section = document.getElementById(id);
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
      drawn.marks.append(...drawn.highlight(found));
      tip.append(html("b", {}, rows[0]), ...rows.slice(1).map((row) => html("span", {}, row)));
      const scaled = plot.clientWidth / Math.max(width, 280) || 1;
      const left = Math.min(Math.max(0, found.x * scaled - tip.offsetWidth / 2), plot.clientWidth - tip.offsetWidth);
      const above = found.y * scaled - tip.offsetHeight - 14;
      tip.style.left = `${left}px`;
      tip.style.top = `${above < -40 ? found.y * scaled + 16 : above}px`;
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
      const step = steps[event.key];
      const filled = drawn.series.map((points, i) => (points.length ? i : -1)).filter((i) => i >= 0);
      if (!step || !filled.length) return undefined;
      event.preventDefault();
      if (!at) return point([filled[0], 0]);
      const [row, place] = at;
      if (step[0] === 0) {
        return point([row, Math.min(drawn.series[row].length - 1, Math.max(0, place + step[1]))]);
      }
      const next = filled[Math.min(filled.length - 1, Math.max(0, filled.indexOf(row) + step[0]))];
      const here = drawn.series[row][place];
      const same = drawn.series[next].findIndex((p) => present(p.client) && p.client === here.client);
      const closest = drawn.series[next].reduce((b, p, j, all) => (Math.abs(p.x - here.x) < Math.abs(all[b].x - here.x) ? j : b), 0);
      return point([next, same < 0 ? closest : same]);
    }

    plot.addEventListener("pointermove", (event) => point(near(event)));
    plot.addEventListener("pointerdown", (event) => point(near(event)));
    plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && point(null));
    plot.addEventListener("keydown", key);
    plot.addEventListener("blur", () => point(null));
    section.querySelectorAll("[data-save]").forEach((button) => button.addEventListener("click", () => {
      point(null);
      const title = `${section.querySelector("h2").textContent}: ${data.federation}`;
      if (button.dataset.save === "svg") save(`${id}.svg`, "image/svg+xml", standalone(drawn.svg, title));
      else save(`${id}.csv`, "text/csv", csv(table()));
    }));
    new ResizeObserver(() => plot.clientWidth && plot.clientWidth !== width && render()).observe(plot);
    render();
    return render;
  }

  const about = (i) => [
    ...(clients[i].about.length ? [clients[i].about.join(" \u00b7 ")] : []),
    ...(present(clients[i].train) ? [`${clients[i].train} training examples`] : []),
  ];

  // Rows of dots, one row per method, on one horizontal axis: the frame that two of the charts share.
  function rowsOfDots(width, top, rows, domain, label, aria) {
    const narrow = width < NARROW;
    const longest = Math.max(...rows.map((row) => row.title.length));
    const left = narrow ? 6 : Math.min(220, 16 + 7.2 * Math.min(longest, 28));
    const right = width - (narrow ? 6 : 16 + 6.8 * Math.max(...rows.map((row) => row.told.length)));
    const height = narrow ? 62 : 46;
    const foot = top + rows.length * height;
    const x = scale(domain[0], domain[1], left, right);
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${foot + 46}`, role: "img", "aria-label": aria });
    const factor = metric.percent ? 100 : 1;
    const { found, digits } = ticks(domain[0] * factor, domain[1] * factor, (right - left) / (narrow ? 55 : 90));
    for (const tick of found) {
      const place = x(tick / factor);
      drawing.append(line(place, top, place, foot, "grid"));
      const words = (tick > 0 && domain[0] < 0 && label.signed ? "+" : "") + tick.toFixed(digits).replace("-", MINUS);
      drawing.append(text(place, foot + 17, words.replace(/^[+\u2212](0(\.0*)?)$/, "$1"), "soft", "middle"));
    }
    drawing.append(text((left + right) / 2, foot + 38, label.words, "soft", "middle"));
    const middles = rows.map((row, i) => {
      const upper = top + i * height;
      drawing.append(line(0, upper, width, upper, "grid"));
      const base = narrow ? upper + 16 : upper + height / 2 + 4.5;
      drawing.append(text(0, base, short(row.title, narrow ? 24 : 28), row.best ? "strong" : ""));
      drawing.append(text(width, base, row.told, "soft", "end"));
      return narrow ? upper + 40 : upper + height / 2;
    });
    drawing.append(line(0, foot, width, foot, "grid"));
    return { drawing, x, middles, foot, room: narrow ? 14 : 15 };
  }

  const circles = (series) => (point) =>
    series.flat().filter((p) => p.client === point.client).map((p) =>
      svg("circle", { cx: p.x, cy: p.y, r: p === point ? 7 : 4.5, class: "cursor" }));

  // Gain or harm

  let reference = methods.find((method) => method.name === "local");

  const gains = (method) => method.values.map((value, i) =>
    present(value) && present(reference.values[i]) ? sign * (value - reference.values[i]) : null);

  function drawGain(width) {
    const rows = methods.filter((method) => method !== reference).map((method) => {
      const values = gains(method);
      const known = values.filter(present);
      return { ...method, gains: values, known, told: `harmed ${known.filter((v) => v < 0).length} of ${known.length}` };
    });
    const [low, high] = extent([0, ...rows.flatMap((row) => row.known)]);
    const what = metric.percent ? "percentage points" : "units of the metric";
    const words = width < NARROW
      ? `gain in ${metric.title}, ${metric.percent ? "points" : "units"}`
      : `${metric.higher ? "gain in" : "reduction of"} ${metric.title} on test data against ${reference.title}, ${what}`;
    const aria = `Gain or harm of every client against ${reference.title}. ${rows.map((row) => `${row.title}: ${row.told} clients`).join("; ")}.`;
    const frame = rowsOfDots(width, 26, rows, [low, high], { words, signed: true }, aria);
    const { drawing, x, middles, foot, room } = frame;
    const worse = text(x(0) - 10, 14, "\u2190 harmed", "harm", "end");
    const better = text(x(0) + 10, 14, "gains \u2192", "gain");
    drawing.append(line(x(0), 4, x(0), foot, "zero"), ...(x(0) > 80 ? [worse] : []), better);
    const series = rows.map((row, r) => {
      const order = row.gains.map((_, i) => i).filter((i) => present(row.gains[i])).sort((a, b) => row.gains[a] - row.gains[b]);
      const places = order.map((i) => x(row.gains[i]));
      const offsets = swarm(places, SIZE - 0.5, room);
      const points = order.map((i, k) => ({
        x: places[k],
        y: middles[r] + offsets[k],
        client: i,
        gain: row.gains[i],
        rows: [
          `${clients[i].name}: ${signed(row.gains[i])}${metric.percent ? " points" : ""}`,
          `${row.title} ${number(row.values[i])}`,
          `${reference.title} ${number(reference.values[i])}`,
          ...about(i),
        ],
      }));
      drawing.append(dots(points.filter((p) => p.gain > 0), "gain"), dots(points.filter((p) => p.gain < 0), "harm"), dots(points.filter((p) => p.gain === 0), "even"));
      if (row.known.length) {
        const mean = x(row.known.reduce((a, b) => a + b, 0) / row.known.length);
        drawing.append(line(mean, middles[r] - room, mean, middles[r] + room, "mean"));
      }
      return points;
    });
    return { svg: drawing, series, highlight: circles(series) };
  }

  const redrawGain = chart("gain", drawGain, () => [
    ["method", "client", metric.title, "reference", "reference_value", "gain"],
    ...methods.flatMap((method) => {
      const values = gains(method);
      return method === reference ? [] : clients.map((client, i) =>
        [method.title, client.name, method.values[i], reference.title, reference.values[i], values[i]]);
    }),
  ]);
  document.querySelectorAll('input[name="reference"]').forEach((input) => input.addEventListener("change", () => {
    reference = methods.find((method) => method.name === input.value);
    redrawGain();
  }));

  // Distribution over clients

  function drawSpread(width) {
    const rows = methods.map((method) => ({ ...method, told: `worst ${number(method.worst)}` }));
    const better = metric.higher ? "right is better" : "left is better";
    const words = width < NARROW
      ? `${metric.title}${unit && ","}${unit} (${better})`
      : `${metric.title} on test data${unit && ","}${unit} (${better})`;
    const aria = `Distribution over clients. ${rows.map((row) => `${row.title}: median ${number(row.box[1] ?? null)}, worst ${number(row.worst)}`).join("; ")}.`;
    const { drawing, x, middles, room } = rowsOfDots(width, width < NARROW ? 56 : 34, rows, extent(rows.flatMap((row) => row.values)), { words, signed: false }, aria);
    const key = [
      [svg("rect", { x: 0, y: 8, width: 16, height: 12, rx: 2, class: "box" }), "middle half"],
      [line(8, 7, 8, 21, "median"), "median"],
      [svg("path", { d: diamond(8, 14), class: "mark" }), "worst tenth"],
      [svg("circle", { cx: 8, cy: 14, r: 5.5, class: "mark" }), "worst"],
    ];
    let [at, down] = [0, 0];
    for (const [mark, words] of key) {
      const room = 46 + 6.8 * words.length;
      if (at + room > width) [at, down] = [0, 22];
      drawing.append(svg("g", { transform: `translate(${at} ${down})` }, mark, text(21, 18.5, words, "soft")));
      at += room;
    }
    const series = rows.map((row, r) => {
      const y = middles[r];
      const order = row.values.map((_, i) => i).filter((i) => present(row.values[i])).sort((a, b) => row.values[a] - row.values[b]);
      const places = order.map((i) => x(row.values[i]));
      const offsets = swarm(places, SIZE - 0.5, room);
      const points = order.map((i, k) => ({
        x: places[k],
        y: y + offsets[k],
        client: i,
        rows: [`${clients[i].name}: ${number(row.values[i])}`, row.title, ...about(i)],
      }));
      if (row.box.length) {
        const [low, middle, high] = row.box.map(x);
        const box = (kind) => svg("rect", { x: low, y: y - room, width: Math.max(1, high - low), height: 2 * room, rx: 3, class: kind });
        drawing.append(box("box"), dots(points, "even"), box("box edge"), line(middle, y - room, middle, y + room, "median"));
        const worst = points[metric.higher ? 0 : points.length - 1];
        drawing.append(svg("circle", { cx: worst.x, cy: worst.y, r: 5.5, class: "mark" }));
        drawing.append(svg("path", { d: diamond(x(row.bottom), y), class: "mark" }));
      }
      return points;
    });
    return { svg: drawing, series, highlight: circles(series) };
  }

  const diamond = (x, y) => `M${x} ${y - 6}l5 6l-5 6l-5 -6z`;

  // Learning curves

  const AXES = {
    round: () => ({ label: "rounds finished", factor: 1 }),
    bytes: (most) => {
      const [factor, name] = [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]].find(([size]) => most >= size) ?? [1, "bytes"];
      return { label: `sent and received per client so far, ${name}`, factor };
    },
    seconds: (most) => {
      const [factor, name] = [[3600, "hours"], [60, "minutes"]].find(([size]) => most >= 2 * size) ?? [1, "seconds"];
      return { label: `training time so far, ${name}`, factor };
    },
  };
  let axis = "round";
  const slots = new Map();

  function toggle(method) {
    if (slots.has(method)) return slots.delete(method);
    const taken = new Set(slots.values());
    let slot = 0;
    while (taken.has(slot)) slot++;
    return slots.set(method, slot);
  }
  [methods.find((method) => !method.baseline), ...["fedavg_ft", "fedavg", "local"].map((name) => methods.find((m) => m.name === name))]
    .forEach((method) => method && !slots.has(method) && toggle(method));
  const look = (slot) => ({ colour: `--c: var(--s${slot % SLOTS})`, dash: DASHES[(slot + Math.floor(slot / SLOTS)) % DASHES.length] });

  // The height of a curve at a round, between its neighbours.
  function level(method, round) {
    const after = method.curve.findIndex((p) => p.round >= round && present(p.mean));
    if (after < 0) return null;
    const [a, b] = [method.curve[Math.max(0, after - 1)], method.curve[after]];
    const part = b.round === a.round ? 1 : (round - a.round) / (b.round - a.round);
    const mixed = { round };
    for (const name of ["mean", "bytes", "seconds"]) mixed[name] = a[name] + part * (b[name] - a[name]);
    return mixed;
  }

  function drawCurves(width) {
    const narrow = width < NARROW;
    const [left, top, bottom] = [54, 12, narrow ? 300 : 380];
    const right = width - (narrow ? 16 : 160);
    const reach = Math.max(...methods.flatMap((m) => m.curve.map((p) => p[axis])), 0);
    const { label, factor } = AXES[axis](reach);
    const x = scale(0, reach || 1, left, right);
    const on = methods.filter((method) => slots.has(method));
    const seen = methods.flatMap((m) => m.curve.flatMap((p) => [p.mean, ...(slots.has(m) ? [p.least, p.most] : [])]));
    const [low, high] = extent(seen);
    const y = scale(low, high, bottom, top);
    const best = on.map((m) => `${m.title} chosen at round ${[...new Set(m.chosen)].join(", ")}`).join("; ");
    const aria = `Learning curves: mean ${metric.title} over clients on validation data against ${label}. ${best}.`;
    const drawing = svg("svg", { viewBox: `0 0 ${width} ${bottom + 50}`, role: "img", "aria-label": aria });
    const times = metric.percent ? 100 : 1;
    const upright = ticks(low * times, high * times, 6);
    for (const tick of upright.found) {
      const place = y(tick / times);
      drawing.append(line(left, place, right, place, "grid"), text(left - 8, place + 4.5, tick.toFixed(upright.digits), "soft", "end"));
    }
    const across = ticks(0, (reach || 1) / factor, (right - left) / (narrow ? 55 : 90));
    for (const tick of across.found) drawing.append(text(x(tick * factor), bottom + 18, tick.toFixed(across.digits), "soft", "middle"));
    drawing.append(line(left, bottom, right, bottom, "zero"), text((left + right) / 2, bottom + 40, label, "soft", "middle"));
    const name = `validation ${metric.title}${unit && ","}${unit}`;
    drawing.append(svg("text", { transform: `translate(12 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "soft" }, name));

    const labels = [];
    const series = methods.map(() => []);
    for (const method of [...methods.filter((m) => !slots.has(m)), ...on]) {
      const curve = method.curve.filter((p) => present(p.mean));
      if (!curve.length) continue;
      const slot = slots.get(method);
      const { colour, dash } = slot === undefined ? { colour: "", dash: "" } : look(slot);
      const still = reach > 0 && curve[curve.length - 1][axis] === 0;
      const chosen = method.chosen.map((round) => level(method, round)).filter(present);
      const height = chosen.length ? chosen.reduce((sum, p) => sum + p.mean, 0) / chosen.length : curve[curve.length - 1].mean;
      const path = still
        ? `M${left} ${y(height)}H${right}`
        : curve.map((p, i) => `${i ? "L" : "M"}${x(p[axis]).toFixed(1)} ${y(p.mean).toFixed(1)}`).join("");
      if (slot !== undefined && data.seeds > 1 && !still) {
        const upper = curve.map((p) => `${x(p[axis]).toFixed(1)} ${y(p.most).toFixed(1)}`);
        const lower = curve.map((p) => `${x(p[axis]).toFixed(1)} ${y(p.least).toFixed(1)}`).reverse();
        drawing.append(svg("path", { d: `M${upper.join("L")}L${lower.join("L")}z`, class: "band on", style: colour }));
      }
      drawing.append(svg("path", { d: path, class: slot === undefined ? "curve" : "curve on", style: colour, "stroke-dasharray": dash || "none" }));
      if (slot !== undefined) {
        for (const p of still ? [] : chosen) drawing.append(svg("circle", { cx: x(p[axis]), cy: y(p.mean), r: 4, class: "ring", style: colour }));
        labels.push({ title: method.title, y: y(still ? height : curve[curve.length - 1].mean), x: still ? right : x(curve[curve.length - 1][axis]), colour });
      }
      const shownCurve = still ? [{ ...curve[curve.length - 1], mean: height, still: true }] : curve;
      series[methods.indexOf(method)] = shownCurve.map((p) => ({
        x: p.still ? right : x(p[axis]),
        y: y(p.mean),
        path,
        rows: p.still
          ? [method.title, `${number(p.mean)} at the chosen rounds`, "sends nothing"]
          : [
            method.title,
            number(p.mean) + (data.seeds > 1 ? ` (${number(p.least)} to ${number(p.most)})` : ""),
            `round ${p.round}`,
            `${(p.bytes / 1e6).toFixed(1)} MB per client`,
            `${p.seconds.toFixed(p.seconds < 10 ? 1 : 0)} s`,
          ],
      }));
    }
    if (!narrow) {
      labels.sort((a, b) => a.y - b.y);
      labels.forEach((l, i) => { l.at = i ? Math.max(l.y, labels[i - 1].at + 16) : l.y; });
      const over = labels.length ? Math.max(0, labels[labels.length - 1].at - bottom + 2) : 0;
      for (const l of labels) {
        drawing.append(svg("text", { x: right + 10, y: l.at - over + 4.5, style: `${l.colour}; fill: var(--c)` }, short(l.title, 21)));
      }
    }
    const highlight = (p) => [
      svg("path", { d: p.path, class: "hot" }),
      svg("circle", { cx: p.x, cy: p.y, r: 5, class: "cursor" }),
    ];
    return { svg: drawing, series, highlight };
  }

  const redrawCurves = chart("curves", drawCurves, () => [
    ["method", "round", "mean", "lowest_seed", "highest_seed", "bytes_per_client", "seconds"],
    ...methods.flatMap((m) => m.curve.map((p) => [m.title, p.round, p.mean, p.least, p.most, p.bytes, p.seconds])),
  ]);
  document.querySelectorAll('input[name="axis"]').forEach((input) => input.addEventListener("change", () => {
    axis = input.value;
    redrawCurves();
  }));
  const legend = document.querySelector(".legend");
  const chips = methods.map((method) => {
    const button = html("button", { type: "button" });
    button.addEventListener("click", () => {
      toggle(method);
      chips.forEach((paint) => paint());
      redrawCurves();
    });
    legend.append(button);
    return () => {
      const slot = slots.get(method);
      const { colour, dash } = slot === undefined ? { colour: "--c: var(--even)", dash: "" } : look(slot);
      const stroke = svg("line", { x1: 0, y1: 5, x2: 24, y2: 5, style: `${colour}; stroke: var(--c)`, "stroke-width": slot === undefined ? 1 : 3, "stroke-dasharray": dash || "none" });
      button.setAttribute("aria-pressed", String(slot !== undefined));
      button.replaceChildren(svg("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" }, stroke), method.title);
    };
  });
  chips.forEach((paint) => paint());

  chart("spread", drawSpread, () => [
    ["method", "client", metric.title],
    ...methods.flatMap((method) => clients.map((client, i) => [method.title, client.name, method.values[i]])),
  ]);

  // Tables

  // The edge of a table fades where there is more to the right.
  document.querySelectorAll(".scroll").forEach((region) => {
    const check = () => region.classList.toggle("more", region.scrollLeft + region.clientWidth < region.scrollWidth - 4);
    region.addEventListener("scroll", check, { passive: true });
    new ResizeObserver(check).observe(region);
  });

  document.querySelectorAll("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    const headings = [...table.tHead.rows[0].cells];
    headings.forEach((heading, column) => {
      if (!heading.dataset.first) return;
      const button = html("button", { type: "button" }, ...heading.childNodes);
      heading.append(button);
      button.addEventListener("click", () => {
        const now = heading.getAttribute("aria-sort");
        const way = now ? (now === "ascending" ? "descending" : "ascending") : heading.dataset.first;
        headings.forEach((other) => other.removeAttribute("aria-sort"));
        heading.setAttribute("aria-sort", way);
        const turn = way === "ascending" ? 1 : -1;
        const named = !heading.classList.contains("number");
        const keys = new Map([...body.rows].map((row) => {
          const cell = row.cells[column];
          if (named) return [row, cell.textContent];
          return [row, cell.dataset.value === undefined ? null : Number(cell.dataset.value)];
        }));
        const compare = (a, b) => {
          const [p, q] = [keys.get(a), keys.get(b)];
          if (named) return turn * p.localeCompare(q, undefined, { numeric: true });
          if (p === null || q === null) return (p === null) - (q === null);
          return turn * (p - q);
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  });

  const filter = document.querySelector(".filter");
  const field = filter.querySelector("input");
  const lines = [...document.querySelectorAll("table.clients tbody tr")];
  filter.hidden = false;
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    let count = 0;
    for (const row of lines) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    }
    filter.querySelector("output").textContent = wanted ? `${count} of ${lines.length} clients` : "";
  });

  // On paper everything is open
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = [...document.querySelectorAll("details:not([open])")];
    closed.forEach((part) => { part.open = true; });
  });
  addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
})();
