// Methods along a stream of experiences: a panel for the test data of each one. Panels begin at different values, but a
// step up or down is as high in all of them.
const meansOf = (method, learned, scored) => {
  const values = method.runs.map((run) => run[learned][scored]).filter(present);
  return { mean: average(values), least: d3.min(values), most: d3.max(values) };
};

function drawCourse(course, width) {
  const { metric, experiences, methods } = course;
  const factor = metric.percent ? 100 : 1;
  const unit = metric.percent ? " %" : "";
  const number = (value) => plain(present(value) ? value * factor : null, metric.decimals) + unit;
  const columns = Math.max(1, Math.min(experiences.length, Math.floor(width / 230)));
  const rows = Math.ceil(experiences.length / columns);
  const [size, height, left] = [Math.floor(width / columns), 250, 46];
  const panels = experiences.map((_, scored) => methods.map((m) =>
    experiences.map((__, learned) => ({ learned, ...meansOf(m, learned, scored) })).filter((p) => present(p.mean))));
  const reaches = panels.map((lines) => extent(lines.flat().flatMap((p) => [p.least * factor, p.most * factor]), 0.08));
  const span = d3.max(reaches, ([low, high]) => high - low);
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${rows * height}`, width, height: rows * height, class: "figure" });
  const series = [];
  panels.forEach((lines, scored) => {
    const [dx, dy] = [(scored % columns) * size, Math.floor(scored / columns) * height];
    const middle = d3.mean(reaches[scored]);
    const panel = plotted({
      width: size, height, marginLeft: left, marginRight: 14, marginTop: 34, marginBottom: 48,
      x: { domain: [-0.2, experiences.length - 0.8] },
      y: { domain: [middle - span / 2, middle + span / 2] },
      marks: [
        Plot.gridY({ stroke: "var(--line)", strokeOpacity: 1, ticks: 6 }),
        Plot.axisY({ label: null, tickSize: 0, ticks: 6, fontSize: 13, color: "var(--soft)" }),
        Plot.axisX(d3.range(experiences.length), {
          tickFormat: (k) => short(experiences[k], Math.max(3, Math.floor((size - left) / experiences.length / 7))),
          label: "after learning", labelAnchor: "center", labelArrow: "none", labelOffset: 40, fontSize: 12, color: "var(--soft)", tickSize: 0,
        }),
        Plot.text([`tested on ${experiences[scored]}`], { frameAnchor: "top-left", dy: -24, fontSize: 13, fontWeight: 650 }),
        ...lines.map((line, place) => Plot.areaY(line, { x: "learned", y1: (p) => p.least * factor, y2: (p) => p.most * factor, fill: colour(place % SLOTS), fillOpacity: 0.14 })),
        ...lines.map((line, place) => Plot.lineY(line, { x: "learned", y: (p) => p.mean * factor, stroke: colour(place % SLOTS), strokeWidth: 2.25, strokeDasharray: dash(place) || "none" })),
        ...lines.map((line, place) => Plot.dot(line.filter((p) => p.learned === scored), { x: "learned", y: (p) => p.mean * factor, r: 4.5, fill: "var(--paper)", stroke: colour(place % SLOTS), strokeWidth: 2 })),
      ],
    });
    fill(panel, { x: dx, y: dy, width: size, height }, []);
    drawing.append(panel);
    const [x, y] = [panel.scale("x").apply, panel.scale("y").apply];
    lines.forEach((line, place) => series.push(line.map((p) => ({
      x: dx + x(p.learned), y: dy + y(p.mean * factor),
      rows: [methods[place].title, `${number(p.mean)} on ${experiences[scored]}, after ${experiences[p.learned]}`, ...(methods[place].runs.length > 1 ? [`${number(p.least)} to ${number(p.most)} over seeds`] : [])],
    }))));
  });
  keyOf(document.querySelector(`#course-${CSS.escape(course.name)} .key`), methods.map((m, place) => ({ label: m.title, place, dash: dash(place) })));
  const last = experiences.length - 1;
  const aria = `${metric.title} along the course. ${methods.map((m) => `${m.title}, after ${experiences[last]}: ${experiences.map((name, scored) => `${name} ${number(meansOf(m, last, scored).mean)}`).join(", ")}`).join("; ")}.`;
  return { svg: drawing, series, aria };
}

const courseTable = (course) => [
  ["method", "learned", "tested_on", "mean", "lowest_seed", "highest_seed"],
  ...course.methods.flatMap((m) => course.experiences.flatMap((name, learned) => course.experiences.map((of, scored) => {
    const p = meansOf(m, learned, scored);
    return [m.title, name, of, p.mean, p.least, p.most];
  }))),
];
