// Tables: sorting, the fade at their edge, the choice of lines, and numbers that follow the choice of clients.

function sortable(table) {
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
        const found = row.cells[column];
        if (named) return [row, found.textContent];
        return [row, found.dataset.value === undefined ? null : Number(found.dataset.value)];
      }));
      const compare = (a, b) => {
        const [p, q] = [keys.get(a), keys.get(b)];
        if (named) return turn * p.localeCompare(q, undefined, { numeric: true });
        if (p === null || q === null) return (p === null) - (q === null);
        return turn * (p - q);
      };
      const lines = [...body.rows];
      const last = lines.filter((row) => row.classList.contains("total"));
      body.append(...lines.filter((row) => !last.includes(row)).sort(compare), ...last);
    });
  });
}

function fading(region) {
  const check = () => region.classList.toggle("more", region.scrollLeft + region.clientWidth < region.scrollWidth - 4);
  region.addEventListener("scroll", check, { passive: true });
  new ResizeObserver(check).observe(region);
}

// How a column writes its value, as plures.report.columns does.
function writers(view) {
  const { metric } = view.data;
  const number = (value) => plain(present(value) ? value * view.factor : null, metric.decimals).replace(MINUS, "-");
  const percent = (value, digits = 0) => (present(value) ? (100 * value).toFixed(digits) : MISSING);
  return {
    mean: (row) => {
      if (!present(row.mean) || !present(row.mean_ci)) return number(row.mean);
      const least = 10 ** -metric.decimals / view.factor;
      const width = row.mean_ci > 0 && row.mean_ci < least / 2 ? `<${number(least)}` : number(row.mean_ci);
      return `${number(row.mean)} \u00b1 ${width}`;
    },
    harmed_local: (row) => (row.name === "local" || !present(row.harmed_local) ? MISSING : `${percent(row.harmed_local)} %`),
    harmed_fedavg: (row) => (row.name === "fedavg" || !present(row.harmed_fedavg) ? MISSING : `${percent(row.harmed_fedavg)} %`),
    jain: (row) => plain(row.jain, 3),
    p: (row) => (!present(row.p) ? MISSING : row.p < 0.001 ? "< 0.001" : row.p.toFixed(row.p >= 0.1 ? 2 : 3)),
    other: (row, key) => number(row[key]),
    ...Object.fromEntries(Object.entries(view.data.others).map(([name, { percent: shared, decimals }]) => {
      const key = `metric:${name}`;
      return [key, (row) => (shared ? percent(row[key], 1) : present(row[key]) ? row[key].toFixed(decimals) : MISSING)];
    })),
  };
}

// Numbers over the kept clients, in the tables that have a line per method; without a choice, as they were written.
function numbers(view) {
  const tables = [...document.querySelectorAll("main table.methods")];
  const before = new Map(tables.flatMap((table) => [...table.querySelectorAll("td[data-key]")]).map((td) => [td, { value: td.dataset.value, text: td.querySelector(".v").textContent, span: td.querySelector(".interval")?.getAttribute("style"), off: td.querySelector(".interval.off") !== null }]));
  const write = writers(view);
  return () => {
    const rows = new Map(view.rows.map((row) => [row.name, row]));
    const widths = view.rows.filter((row) => present(row.mean));
    const [low, high] = scaleWithout(widths, (row) => [row.mean - (row.mean_ci ?? 0), row.mean + (row.mean_ci ?? 0)]);
    const best = view.best;
    for (const [td, old] of before) {
      const line = td.closest("tr");
      const { key } = td.dataset;
      const row = rows.get(line.dataset.method);
      const words = td.querySelector(".v");
      const span = td.querySelector(".interval");
      line.classList.toggle("best", line.dataset.method === best);
      if (view.whole) {
        words.textContent = old.text;
        if (old.value === undefined) delete td.dataset.value;
        else td.dataset.value = old.value;
        if (span) {
          span.setAttribute("style", old.span);
          span.classList.toggle("off", old.off);
        }
        continue;
      }
      words.textContent = (write[key] ?? write.other)(row, key);
      if (present(row[key])) td.dataset.value = row[key];
      else delete td.dataset.value;
      if (span && present(row.mean) && high > low) {
        const place = (value) => `${((100 * (value - low)) / (high - low)).toFixed(1)}%`;
        const width = row.mean_ci ?? 0;
        const [under, over] = [row.mean + width < low, row.mean - width > high];
        span.classList.toggle("off", under || over);
        if (under || over) span.setAttribute("style", `--l:0%;--w:0%;--m:${under ? 0 : 100}%`);
        else span.setAttribute("style", `--l:${place(row.mean - width)};--w:${((200 * width) / (high - low)).toFixed(1)}%;--m:${place(row.mean)}`);
      }
    }
    document.querySelectorAll("main table.methods [data-note]").forEach((note) => {
      const name = note.closest("tr").dataset.method;
      note.textContent = [name === best ? "best mean" : "", note.dataset.note].filter(Boolean).join(", ");
    });
  };
}

// The table of clients: names open the dialog, the search and the choice of clients hide lines.
function people(view, open) {
  const section = document.getElementById("clients");
  const lines = [...section.querySelectorAll("tbody tr")];
  const place = new Map(view.data.clients.map((client, i) => [client.name, i]));
  for (const line of lines) {
    const name = line.querySelector("[data-client]");
    const i = place.get(name.dataset.client);
    if (i === undefined || line.querySelector(".tag")) continue;
    line.dataset.place = i;
    const button = html("button", { type: "button", class: "link" }, name.textContent);
    button.addEventListener("click", () => open(i, button));
    name.replaceChildren(button);
  }
  const filter = section.querySelector(".filter");
  const field = filter.querySelector("input");
  filter.hidden = false;
  const show = () => {
    const wanted = field.value.trim().toLowerCase();
    const kept = new Set(view.keep);
    let count = 0;
    for (const row of lines) {
      const out = row.dataset.place !== undefined && !kept.has(Number(row.dataset.place));
      row.hidden = out || !row.cells[0].textContent.toLowerCase().includes(wanted);
      count += row.hidden ? 0 : 1;
    }
    filter.querySelector("output").textContent = wanted || !view.whole ? `${count} of ${lines.length} clients` : "";
  };
  field.addEventListener("input", show);
  return show;
}
