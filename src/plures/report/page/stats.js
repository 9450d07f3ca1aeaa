// Numbers over clients, by the same rules as plures.evaluate.summary: missing values are null and are left out.
const present = (value) => value !== null && value !== undefined && !Number.isNaN(value);
const total = (values) => values.reduce((a, b) => a + b, 0);
const average = (values) => (values.length ? total(values) / values.length : null);

function quantile(sorted, part) {
  const place = (sorted.length - 1) * part;
  const low = Math.floor(place);
  const high = Math.ceil(place);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

function summarize(values, sizes, higher) {
  const known = values.map((_, i) => i).filter((i) => present(values[i]));
  if (!known.length) return { mean: null, weighted: null, std: null, worst: null, bottom: null, p10: null, jain: null, best: null };
  const x = known.map((i) => values[i]);
  const n = known.map((i) => sizes[i]);
  const mean = average(x);
  const sorted = [...x].sort((a, b) => a - b);
  const ordered = higher ? sorted : [...sorted].reverse();
  const squares = total(x.map((v) => v * v));
  return {
    mean,
    weighted: total(x.map((v, i) => v * n[i])) / total(n),
    std: Math.sqrt(average(x.map((v) => (v - mean) ** 2))),
    worst: ordered[0],
    best: ordered[ordered.length - 1],
    bottom: average(ordered.slice(0, Math.max(1, Math.floor(x.length / 10)))),
    p10: quantile(sorted, higher ? 0.1 : 0.9),
    jain: squares ? total(x) ** 2 / (x.length * squares) : 1,
  };
}

// Mean over seeds and the half width of its 95 % interval; `student` are quantiles for 1, 2, ... degrees of freedom.
function interval(values, student) {
  const mean = average(values);
  if (values.length < 2 || !present(mean)) return [mean, null];
  const std = Math.sqrt(total(values.map((v) => (v - mean) ** 2)) / (values.length - 1));
  return [mean, ((student[values.length - 2] ?? 1.96) * std) / Math.sqrt(values.length)];
}

const differences = (values, reference, sign) =>
  values.map((value, i) => (present(value) && present(reference[i]) ? sign * (value - reference[i]) : null));

// Clients whose model diverged (`lost`) are worse off than any finite value, and not worse off than others that diverged.
function harmedClients(values, lost, reference, away, sign) {
  const known = values.map((_, i) => i).filter((i) => (lost[i] || present(values[i])) && (away[i] || present(reference[i])));
  const worse = known.filter((i) => !away[i] && (lost[i] || sign * (values[i] - reference[i]) < 0));
  return { known: known.length, worse: worse.length };
}

function harmedShare(...given) {
  const { known, worse } = harmedClients(...given);
  return known ? worse / known : null;
}

// Sign-flip test: exact for up to 13 clients, otherwise over random signs, always with the observed ones.
function pairedTest(values, reference) {
  const found = differences(values, reference, 1).filter(present);
  const n = found.length;
  if (!n || !found.some((gain) => gain !== 0)) return 1;
  const limit = Math.abs(total(found)) - 1e-12 * total(found.map(Math.abs));
  const exact = n <= 13;
  const draws = exact ? 2 ** n : n > 500 ? 2000 : 10000;
  let state = 12345;
  const bit = () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return (t ^ (t >>> 14)) & 1;
  };
  let beyond = exact ? 0 : 1;
  for (let draw = 0; draw < draws; draw++) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += (exact ? (draw >> i) & 1 : bit()) ? -found[i] : found[i];
    if (Math.abs(sum) >= limit) beyond++;
  }
  return beyond / (exact ? draws : draws + 1);
}

// Per client, the mean over seeds; missing where one seed is missing.
const overSeeds = (runs) => runs[0].map((_, i) => (runs.every((run) => present(run[i])) ? average(runs.map((run) => run[i])) : null));

// The lines of the table of methods, over the kept clients.
function rowsOf(data, keep) {
  const sign = data.metric.higher ? 1 : -1;
  const pick = (values) => keep.map((i) => values[i]);
  const sizes = pick(data.clients.map((client) => client.test));
  const own = new Map(data.methods.map((m) => [m.name, pick(m.values)]));
  const lost = new Map(data.methods.map((m) => [m.name, pick(m.lost)]));
  const harmed = (name, reference) => harmedShare(own.get(name), lost.get(name), own.get(reference), lost.get(reference), sign);
  return data.methods.map((m) => {
    const over = summarize(own.get(m.name), sizes, data.metric.higher);
    const runs = m.runs.map((run) => summarize(pick(run), sizes, data.metric.higher));
    const means = runs.map((run) => run.mean);
    const whole = means.every(present) && !lost.get(m.name).some(Boolean);
    const [mean, width] = whole ? interval(means, data.student) : [null, null];
    const others = Object.entries(m.others).map(([name, values]) => [`metric:${name}`, average(pick(values).filter(present))]);
    return {
      ...over,
      name: m.name,
      mean,
      mean_ci: width,
      weighted: whole && runs.every((run) => present(run.weighted)) ? average(runs.map((run) => run.weighted)) : null,
      harmed_local: harmed(m.name, "local"),
      harmed_fedavg: harmed(m.name, "fedavg"),
      p: m.name === "fedavg_ft" ? null : pairedTest(own.get(m.name), own.get("fedavg_ft")),
      ...Object.fromEntries(others),
    };
  });
}

// The constant predictor is often far below all others. If it would stretch a scale by half, it is left out of it.
const STRETCH = 1.5;
function scaleWithout(rows, valuesOf) {
  const known = (some) => some.flatMap(valuesOf).filter(present);
  const rest = d3.extent(known(rows.filter((row) => row.name !== "constant")));
  const all = d3.extent(known(rows));
  return present(rest[0]) && rest[1] > rest[0] && all[1] - all[0] > STRETCH * (rest[1] - rest[0]) ? rest : all;
}
