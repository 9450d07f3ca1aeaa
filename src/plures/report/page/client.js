// Everything about one client, in a dialog.

const cell = (words, kind = "") => html("td", kind ? { class: kind } : {}, words);

function small(caption, headings, lines) {
  const head = html("tr", {}, ...headings.map((words, k) => html("th", { scope: "col", class: k ? "number" : "name" }, words)));
  const body = lines.map(([first, ...rest]) => html("tr", {}, html("th", { scope: "row" }, first), ...rest.map((words) => cell(words))));
  return html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    html("table", {}, html("caption", { class: "hidden" }, caption), html("thead", {}, head), html("tbody", {}, ...body)));
}

const part = (title, ...children) => html("section", {}, html("h3", {}, title), ...children.filter(Boolean));
const picture = (drawing, aria) => html("div", { class: "plot" }, fill(drawing, { role: "img", "aria-label": aria }, []));

function clientData(view, i, width) {
  const { data } = view;
  const client = data.clients[i];
  const facts = [...client.about, `${client.train ?? MISSING} training examples`, `${client.test ?? MISSING} test examples`];
  const line = html("p", { class: "facts" }, ...facts.map((fact) => html("span", {}, fact)));
  if (!client.labels.length || !total(client.labels)) return part("Its data", line);
  const everyone = data.classes.map((_, c) => total(data.clients.map((other) => other.labels[c] ?? 0)));
  const sum = total(everyone);
  const bars = data.classes.map((name, c) => ({ name, own: (100 * client.labels[c]) / total(client.labels), all: (100 * everyone[c]) / sum }));
  const most = width < 480 ? 14 : 20;
  const left = 16 + 8.2 * Math.min(most, d3.max(bars, (b) => b.name.length));
  const drawing = plotted({
    width, height: 46 + 24 * bars.length, marginLeft: left, marginRight: 46, marginTop: 6, marginBottom: 40,
    x: { domain: [0, Math.max(10, d3.max(bars, (b) => Math.max(b.own, b.all)))] },
    y: { domain: bars.map((b) => b.name), label: null, axis: null, padding: 0.25 },
    marks: [
      Plot.text(bars, { y: "name", frameAnchor: "left", dx: -left, textAnchor: "start", text: (b) => short(b.name, most), fontSize: 13 }),
      across(width < 480 ? "% of labels (tick: all clients)" : "share of its training labels, % (tick: all clients)", width - left),
      Plot.barX(bars, { x: "own", y: "name", fill: "var(--accent)", rx: 2 }),
      Plot.tickX(bars, { x: "all", y: "name", stroke: "currentColor", strokeWidth: 2 }),
      Plot.text(bars, { x: (b) => Math.max(b.own, b.all), y: "name", text: (b) => `${plain(b.own, 0)} %`, textAnchor: "start", dx: 8, fontSize: 12, fill: "var(--soft)" }),
    ],
  });
  return part("Its data", line, picture(drawing, `Labels: ${bars.map((b) => `${b.name} ${plain(b.own, 0)} %`).join(", ")}`));
}

function clientScores(view, i) {
  const { data } = view;
  const others = Object.entries(data.others).map(([name, card]) => ({ name, ...card }));
  const lines = data.methods.map((m) => {
    const gain = (name) => {
      const reference = data.methods.find((other) => other.name === name);
      if (m === reference || !present(m.values[i]) || !present(reference.values[i])) return MISSING;
      const value = view.sign * (m.values[i] - reference.values[i]) * view.factor;
      return (value > 0 ? "+" : "") + plain(value, data.metric.decimals);
    };
    const known = m.values.filter(present).sort((a, b) => view.sign * (b - a));
    const [low, high] = m.inside.map((side) => side[i]);
    const within = present(low) && present(high) ? `${plain(low * view.factor, data.metric.decimals)} to ${plain(high * view.factor, data.metric.decimals)}` : MISSING;
    const score = m.lost[i] ? "diverged" : view.number(m.values[i]);
    const beside = others.map((other) => plain(present(m.others[other.name][i]) ? m.others[other.name][i] * (other.percent ? 100 : 1) : null, other.decimals));
    return [m.title, score, within, gain("local"), gain("fedavg"), present(m.values[i]) ? `${known.indexOf(m.values[i]) + 1} of ${known.length}` : MISSING, ...beside];
  });
  const { title, undefined: when } = data.metric;
  const none = data.methods.every((m) => !present(m.values[i]) && !m.lost[i]);
  const lost = none ? [html("p", { class: "note" }, `The ${title} is not defined for this client${when && ` (${when})`}. Means leave the client out, and it counts as neither harmed nor gaining.`)] : [];
  const note = "95 % CI: over this client's test examples, drawn with replacement. It says how far chance in the choice of these examples may move the value.";
  const headings = ["method", title, "95 % CI", "vs local", "vs FedAvg", "rank of client", ...others.map((other) => other.title + (other.percent ? ", %" : ""))];
  return part("With each method", ...lost, html("p", { class: "lead" }, note), small("Scores of this client", headings, lines));
}

function clientCurves(view, i, width) {
  const lines = view.data.methods.filter((m) => m.traces && view.slots.has(m.name)).map((m) => ({
    m,
    slot: view.slots.get(m.name),
    points: m.curve.map((p, place) => {
      const values = m.traces.map((seed) => seed[place]?.[i]).filter(present);
      return { round: p.round, mean: average(values) };
    }).filter((p) => present(p.mean)),
  })).filter((f) => f.points.length);
  if (!lines.length) return null;
  const drawing = plotted({
    width, height: 300, marginLeft: 72, marginRight: 16, marginTop: 10, marginBottom: 46,
    y: { domain: bounds(lines.flatMap((f) => f.points.map((p) => p.mean * view.factor)), view) },
    marks: [
      ...upright(`validation ${view.data.metric.title}${view.unit && ","}${view.unit}`),
      across("rounds finished", width - 80, (v) => (Number.isInteger(v) ? String(v) : "")),
      ...lines.map((f) => Plot.lineY(f.points, { x: "round", y: (p) => p.mean * view.factor, stroke: colour(f.slot % SLOTS), strokeWidth: 2, strokeDasharray: dash(f.slot) || "none" })),
    ],
  });
  const key = html("div", { class: "key" });
  view.legend(key, lines.map((f) => ({ label: f.m.title, place: f.slot % SLOTS, dash: dash(f.slot) })));
  return part("Its learning curve", key, picture(drawing, "This client's validation score over rounds"));
}

function clientPersonal(view, i, method) {
  const { personal } = method;
  if (!personal) return part("What is personal", html("p", {}, `With ${method.title}, all clients predict with the same numbers.`));
  const lines = personal.layers.map((layer) => [
    layer.name, layer.size.toLocaleString("en"), three(layer.norm[i]), three(layer.distance[i]),
    present(layer.cosine[i]) ? plain(layer.cosine[i], 3) : MISSING,
    `${personal.rank(layer, i)} of ${view.data.clients.length}`,
  ]);
  const note = `Distance from the mean of all clients' models, by layer, first seed. ${personal.same ? `${personal.same.toLocaleString("en")} further numbers are the same for everyone.` : "Every layer differs between clients."}`;
  return part("What is personal, and how far from the mean", html("p", { class: "lead" }, note),
    small("Personal layers", ["layer", "numbers", "length", "distance", "cosine", "how far, rank"], lines));
}

function clientErrors(view, i, method, width) {
  const parts = [];
  const { classes } = view.data;
  const counts = method.confusion?.[i];
  if (counts && total(counts.flat())) {
    const cells = counts.flatMap((row, truth) => row.map((count, decided) => ({ truth: classes[truth], decided: classes[decided], count, share: count / (total(row) || 1), right: truth === decided })));
    const most = width < 480 ? 12 : 19;
    const left = 16 + 8 * Math.min(most, d3.max(classes, (name) => name.length));
    const wide = Math.min(width, left + 90 * classes.length + 20);
    const turn = d3.max(classes, (name) => name.length) * 7 > (wide - left) / classes.length;
    const foot = turn ? 28 + 5 * Math.min(14, d3.max(classes, (name) => name.length)) : 44;
    const drawing = plotted({
      width: wide, height: 12 + 34 * classes.length + foot, marginLeft: left, marginRight: 8, marginTop: 8, marginBottom: foot,
      x: { domain: classes, axis: null }, y: { domain: classes, axis: null },
      marks: [
        Plot.cell(cells, { x: "decided", y: "truth", inset: 1, rx: 3, fill: (d) => (d.right ? "var(--gain)" : "var(--harm)"), fillOpacity: { value: (d) => 0.08 + 0.6 * d.share, scale: null } }),
        Plot.text(cells, { x: "decided", y: "truth", text: (d) => String(Math.round(10 * d.count) / 10), fontSize: 12 }),
        Plot.text(classes, { y: (c) => c, frameAnchor: "left", dx: -left, textAnchor: "start", text: (c) => short(c, most), fontSize: 12 }),
        Plot.text(classes, { x: (c) => c, frameAnchor: "bottom", dy: 16, text: (c) => short(c, 14), fontSize: 12, ...(turn ? { rotate: -40, textAnchor: "end" } : {}) }),
      ],
    });
    parts.push(html("p", { class: "lead" }, "Test examples of all seeds; lines are the true class, columns the decided one."), picture(drawing, `Confusion matrix: ${cells.filter((d) => !d.right && d.count).map((d) => `${d.truth} taken for ${d.decided} ${d.count} times`).join(", ") || "no error"}`));
  }
  const worst = method.mistakes?.[i] ?? [];
  if (worst.length) {
    parts.push(html("p", { class: "lead" }, "Test examples with the highest loss, first seed. Their columns stay with the client: plures client shows them where the data are."),
      small("Worst examples", ["row", "true", "predicted", "confidence", "loss"], worst.map((m) => [String(m.row), m.truth, m.predicted, present(m.confidence) ? `${plain(100 * m.confidence, 0)} %` : MISSING, three(m.loss)])));
  }
  return parts.length ? part("Its errors", ...parts) : null;
}

function clientPeers(view, i, method, go) {
  const link = (j) => {
    const button = html("button", { type: "button", class: "link" }, view.data.clients[j].name);
    button.addEventListener("click", () => go(j));
    return button;
  };
  const rows = [];
  if (method.personal?.peers[i].length) rows.push(["by what is personal", method.personal.peers[i]]);
  const own = view.data.clients[i].labels;
  if (own.length && total(own)) {
    const shares = (labels) => labels.map((n) => n / (total(labels) || 1));
    const far = view.data.clients.map((other, j) => [j, other.labels.length ? total(shares(other.labels).map((s, c) => Math.abs(s - shares(own)[c]))) / 2 : Infinity]);
    rows.push(["by mix of labels", far.filter(([j]) => j !== i).sort((a, b) => a[1] - b[1]).slice(0, 5).map(([j]) => j)]);
  }
  return rows.length ? part("Its peers", html("dl", {}, ...rows.map(([name, peers]) => html("div", {}, html("dt", {}, name), html("dd", {}, ...peers.map((j, k) => html("span", { class: "peer" }, link(j), k < peers.length - 1 ? "," : ""))))))) : null;
}

function clientDialog(view) {
  const dialog = document.getElementById("client");
  let back = null;
  let chosen = view.data.methods.find((m) => m.best) ?? view.data.methods[0];

  function show(i) {
    const title = html("h2", { id: "client-title", tabindex: "-1" }, view.data.clients[i].name);
    const close = html("button", { type: "button", class: "close", "aria-label": "Close" }, "\u00d7");
    close.addEventListener("click", () => dialog.close());
    const select = html("select", { "aria-label": "Method" }, ...view.data.methods.map((m) => html("option", { value: m.name, ...(m === chosen ? { selected: "" } : {}) }, m.title)));
    const body = html("div", {});
    const width = Math.max(260, Math.min(760, dialog.clientWidth - (innerWidth < NARROW ? 32 : 48)));
    const paint = () => {
      chosen = view.data.methods.find((m) => m.name === select.value);
      body.replaceChildren(...[clientPersonal(view, i, chosen), clientErrors(view, i, chosen, width), clientPeers(view, i, chosen, show)].filter(Boolean));
      body.querySelectorAll(".scroll").forEach(fading);
    };
    select.addEventListener("change", paint);
    dialog.replaceChildren(
      html("header", {}, title, close),
      ...[clientData(view, i, width), clientScores(view, i), clientCurves(view, i, width)].filter(Boolean),
      html("p", { class: "controls" }, html("label", {}, "Its model under ", select)),
      body,
    );
    paint();
    dialog.querySelectorAll(":scope > section .scroll").forEach(fading);
    dialog.scrollTop = 0;
    title.focus();
    history.replaceState(null, "", `#client=${encodeURIComponent(view.data.clients[i].name)}`);
  }

  dialog.onclose = () => {
    history.replaceState(null, "", location.pathname + location.search);
    if (back?.isConnected) back.focus();
  };
  dialog.onclick = (event) => event.target === dialog && dialog.close();
  return (i, from) => {
    back = from ?? document.activeElement;
    if (!dialog.open) dialog.showModal();
    show(i);
  };
}
