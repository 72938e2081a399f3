"use strict";
// Draws figures from their specifications with Observable Plot. Every kind of figure is one
// function (figure, width) -> {legend, svg}. Colours are CSS variables, so that a change of theme
// needs no drawing.

const Charts = (() => {
  const colour = (number) => `var(--c${number})`;
  const SYMBOLS = ["circle", "square2", "triangle2", "diamond2", "plus", "times", "hexagon", "star"];
  const CHARACTER = 6.4; // mean width of one, in pixels, at the size of the labels
  const measure = (text) => Math.ceil([...text].reduce((sum, one) => sum + (one > "\u2e7f" ? 2 : 1), 0) * CHARACTER);
  const longest = (texts) => Math.max(0, ...texts.map(measure));
  const shown = (value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    const digits = size >= 1000 ? 0 : size >= 100 ? 1 : size >= 10 ? 2 : size >= 1 ? 3 : 4;
    return value.toLocaleString("en", { maximumFractionDigits: digits }).replace("-", "−");
  };

  function svgElement(name, attributes, text) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  const axis = (options) => ({
    label: options.label,
    zero: options.from_zero,
    tickFormat: options.form || undefined,
    nice: true,
  });

  // Whole numbers only, at most so many of them; what d3 chooses for everything else.
  const ticksOf = (options, values, most) => {
    if (options.form !== "d") return most;
    const low = Math.ceil(Math.min(...values)), high = Math.floor(Math.max(...values));
    const step = Math.max(1, Math.ceil((high - low) / most));
    return Array.from({ length: Math.floor((high - low) / step) + 1 }, (_, i) => low + i * step);
  };

  const draw = (options, marks) =>
    Plot.plot({ className: "plot", style: { background: "transparent", fontSize: "12px" }, marginTop: 26, ...options, marks });

  const frame = [() => Plot.gridY({ strokeOpacity: 0.12 }), () => Plot.gridX({ strokeOpacity: 0.12 })];

  function swatch({ name, colour: number, look, symbol }) {
    const svg = svgElement("svg", { width: 16, height: 10, "aria-hidden": "true" });
    if (symbol !== undefined) {
      const chart = Plot.plot({ width: 16, height: 10, margin: 0, axis: null, x: { domain: [0, 1] }, y: { domain: [0, 1] }, marks: [Plot.dot([[0.5, 0.5]], { symbol: SYMBOLS[symbol], r: 3.6, fill: symbol < 4 && look !== "points" ? colour(number) : "none", stroke: colour(number), strokeWidth: 1.5 })] });
      svg.append(...[...chart.childNodes].filter((node) => node.nodeName !== "style"));
    } else {
      const dash = look === "dashed" ? { "stroke-dasharray": "3 2" } : {};
      svg.append(svgElement("line", { x1: 0, x2: 16, y1: 5, y2: 5, stroke: colour(number), "stroke-width": 2, ...dash }));
    }
    const item = document.createElement("span");
    item.append(svg, name);
    return item;
  }

  function legendOf(items) {
    const legend = document.createElement("div");
    legend.className = "legend";
    legend.append(...items.map(swatch));
    return legend;
  }

  // Labels at the ends of lines, pushed apart so that none covers another.
  function endLabels(ends) {
    return (_index, { x, y }, _values, { height, marginTop, marginBottom, width, marginRight }) => {
      const group = svgElement("g", { "font-size": 12 });
      const places = ends
        .map((one) => ({ ...one, at: y(one.y) }))
        .sort((a, b) => a.at - b.at);
      const step = 13;
      for (let i = 1; i < places.length; i++) places[i].at = Math.max(places[i].at, places[i - 1].at + step);
      let bottom = height - marginBottom + 4;
      for (let i = places.length - 1; i >= 0; i--) {
        places[i].at = Math.min(places[i].at, bottom);
        bottom = places[i].at - step;
      }
      for (const one of places) {
        const left = Math.min(x(one.x), width - marginRight) + 7;
        group.append(svgElement("text", { x: left, y: Math.max(one.at, marginTop - 8), dy: "0.32em", "text-anchor": "start", fill: colour(one.colour) }, one.label));
      }
      return group;
    };
  }

  function lines({ data, options }, width) {
    const points = data.series.flatMap((one) =>
      one.x.map((x, i) => ({ x, y: one.y[i], error: one.error?.[i] ?? null, name: one.name, colour: one.colour })).filter((point) => point.y !== null));
    const labelled = data.series.filter((one) => one.label && one.x.length);
    const room = longest(labelled.map((one) => one.label));
    const isDirect = room < Math.min(190, width * 0.3);
    const ends = labelled.map((one) => {
      const last = one.y.findLastIndex((y) => y !== null);
      return { x: one.x[last], y: one.y[last], label: one.label, colour: one.colour };
    });
    const marks = [frame[0]()];
    for (const one of data.series) {
      const own = points.filter((point) => point.name === one.name);
      const stroke = colour(one.colour);
      if (one.look === "points") {
        if (own.length > 1) marks.push(Plot.lineY(own, { x: "x", y: "y", stroke, strokeWidth: 1, strokeDasharray: "2 3" }));
        const sure = own.filter((point) => point.error !== null);
        if (sure.length) marks.push(Plot.link(sure, { x1: "x", x2: "x", y1: (point) => point.y - point.error, y2: (point) => point.y + point.error, stroke, strokeWidth: 1.5 }));
        marks.push(Plot.dot(own, { x: "x", y: "y", stroke, fill: "var(--paper)", r: 3.5, strokeWidth: 1.8 }));
      } else if (one.look === "solid") {
        marks.push(Plot.lineY(own, { x: "x", y: "y", stroke, strokeWidth: 1.2, strokeDasharray: "5 3" }));
        marks.push(Plot.dot(own, { x: "x", y: "y", fill: stroke, symbol: "square2", r: 4 }));
      } else {
        const faint = one.look === "faint";
        marks.push(Plot.lineY(own, { x: "x", y: "y", stroke, strokeWidth: faint ? 1 : 2, strokeOpacity: faint ? 0.3 : 1, strokeDasharray: one.look === "dashed" ? "5 3" : undefined }));
      }
    }
    if (isDirect) marks.push(endLabels(ends));
    marks.push(Plot.tip(points, Plot.pointer({ x: "x", y: "y", title: (point) => `${point.name}\n${options.x.label.split(",")[0]} ${shown(point.x)}: ${shown(point.y)}${point.error === null ? "" : ` ± ${shown(point.error)}`}` })));
    const svg = draw({
      width,
      height: Math.min(340, Math.max(240, width * 0.55)),
      marginLeft: 52,
      marginRight: isDirect ? room + 14 : 16,
      marginBottom: 40,
      x: { ...axis(options.x), labelAnchor: "center", labelArrow: "none", nice: false, ticks: ticksOf(options.x, points.map((point) => point.x), Math.max(3, Math.floor(width / 110))) },
      y: { ...axis(options.y), ticks: 6 },
    }, marks);
    const SHAPES = { points: 0, solid: 1 };
    const items = data.series.filter((one) => one.look !== "faint").map((one) => ({ ...one, symbol: SHAPES[one.look] }));
    return { svg, legend: isDirect && labelled.length >= items.length ? null : legendOf(items) };
  }

  const table = (columns) => {
    const names = Object.keys(columns);
    return columns[names[0]].map((_, i) => Object.fromEntries(names.map((name) => [name, columns[name][i]])));
  };

  function intervals({ data, options }, width) {
    const marks = table(data.columns);
    const rows = [...new Set(marks.map((mark) => mark.row))];
    const groups = [...new Set(marks.map((mark) => mark.group))];
    const colours = new Map(marks.map((mark) => [mark.group, mark.colour]));
    const gap = options.joined ? 0 : 9;
    const offset = (group) => (groups.indexOf(group) - (groups.length - 1) / 2) * gap;
    const band = Math.max(26, gap * groups.length + 10);
    const left = Math.min(longest(rows) + 14, width * 0.4);
    const drawn = [frame[1]()];
    if (options.reference !== null) drawn.push(Plot.ruleX([options.reference], { stroke: "currentColor", strokeWidth: 1 }));
    if (options.joined) {
      const ends = rows.map((row) => marks.filter((mark) => mark.row === row));
      drawn.push(Plot.link(ends, { x1: (of) => of[0].value, x2: (of) => of.at(-1).value, y1: (of) => of[0].row, y2: (of) => of[0].row, stroke: "var(--soft)", strokeWidth: 1.5, strokeOpacity: 0.6 }));
    }
    groups.forEach((group, place) => {
      const own = marks.filter((mark) => mark.group === group && mark.value !== null);
      const stroke = colour(colours.get(group));
      const dy = offset(group);
      drawn.push(Plot.link(own.filter((mark) => mark.low !== null), { x1: "low", x2: "high", y1: "row", y2: "row", dy, stroke, strokeWidth: 2, strokeLinecap: "butt" }));
      drawn.push(Plot.dot(own, { x: "value", y: "row", dy, symbol: SYMBOLS[place % SYMBOLS.length], r: 4, fill: place < 4 ? stroke : "var(--paper)", stroke, strokeWidth: 1.5 }));
    });
    const text = (mark) => `${mark.row}${mark.group ? `, ${mark.group}` : ""}\n${shown(mark.value)}${mark.low === null ? "" : `  (${shown(mark.low)} to ${shown(mark.high)})`}`;
    drawn.push(Plot.tip(marks, Plot.pointer({ x: "value", y: "row", title: text })));
    const svg = draw({
      width,
      height: rows.length * band + 46,
      marginTop: 4,
      marginLeft: left,
      marginRight: 20,
      marginBottom: 38,
      x: { ...axis(options.x), labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor((width - left) / 90)) },
      y: { type: "band", domain: rows, label: null, tickSize: 0, padding: 0 },
    }, [Plot.axisY({ label: null, tickSize: 0, lineWidth: (left - 12) / 7.2, textOverflow: "ellipsis-end" }), ...drawn]);
    const legend = groups.length > 1 ? legendOf(groups.map((group, place) => ({ name: group, colour: colours.get(group), symbol: place % SYMBOLS.length }))) : null;
    return { svg, legend };
  }

  function bars({ data, options }, width) {
    const marks = table(data.columns);
    const rows = [...new Set(marks.map((mark) => mark.row))];
    const groups = [...new Set(marks.map((mark) => mark.group))];
    const left = Math.min(longest(rows) + 14, width * 0.4);
    const right = Math.min(longest(marks.map((mark) => mark.text)) + 10, width * 0.35);
    const fill = (mark) => colour(mark.colour);
    const svg = draw({
      width,
      height: rows.length * (groups.length * 18 + 12) + 46,
      marginTop: 4,
      marginLeft: left,
      marginRight: right,
      marginBottom: 38,
      x: { ...axis(options.x), labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor((width - left - right) / 90)) },
      y: { axis: null, domain: groups, padding: 0.12 },
      fy: { domain: rows, label: null, padding: 0.15, axis: null },
    }, [
      Plot.text(rows.map((row) => ({ row })), { text: "row", fy: "row", frameAnchor: "left", textAnchor: "end", dx: -8, lineWidth: (left - 12) / 7.2, textOverflow: "ellipsis-end" }),
      frame[1](),
      Plot.barX(marks, { x: "value", y: "group", fy: "row", fill }),
      Plot.text(marks, { x: "value", y: "group", fy: "row", text: "text", textAnchor: "start", dx: 5 }),
      Plot.ruleX([0], { strokeWidth: 1 }),
    ]);
    return { svg, legend: groups.length > 1 ? legendOf(groups.map((name, place) => ({ name, colour: place, symbol: 1 }))) : null };
  }

  // Names beside their points: one label for points that fall together, at the first side where
  // it covers nothing.
  function pointLabels(means) {
    return (_index, { x, y }, _values, { width, height, marginTop, marginBottom, marginLeft }) => {
      const clusters = [];
      for (const mean of means) {
        const at = { x: x(mean.x), y: y(mean.y), names: [mean.name], colour: mean.colour };
        const near = clusters.find((one) => Math.hypot(one.x - at.x, one.y - at.y) < 9);
        if (near) near.names.push(mean.name);
        else clusters.push(at);
      }
      const taken = clusters.map(({ x, y }) => ({ left: x - 6, right: x + 6, top: y - 6, bottom: y + 6 }));
      const group = svgElement("g", { "font-size": 12 });
      for (const one of clusters) {
        const wide = longest(one.names), tall = one.names.length * 14;
        const sides = [[10, -tall / 2, 1, 0], [-10 - wide, -tall / 2, -1, 0], [-wide / 2, -tall - 8, 0, -1], [-wide / 2, 9, 0, 1], [10, 8, 1, 1], [10, -tall - 6, 1, -1], [-10 - wide, 8, -1, 1], [-10 - wide, -tall - 6, -1, -1]];
        const boxes = [0, 20, 40, 60, 80, 100].flatMap((away) => sides.map(([dx, dy, h, v]) => {
          const left = one.x + dx + h * away, top = one.y + dy + v * away;
          return { left, right: left + wide, top, bottom: top + tall, away };
        }));
        const fits = (box) => box.left > marginLeft && box.right < width && box.top > marginTop - 16 && box.bottom < height - marginBottom && taken.every((other) => box.right < other.left || box.left > other.right || box.bottom < other.top || box.top > other.bottom);
        const box = boxes.find(fits) ?? boxes[0];
        taken.push(box);
        if (box.away) {
          const near = (low, high, at) => Math.max(low, Math.min(high, at));
          group.append(svgElement("line", { x1: one.x, y1: one.y, x2: near(box.left, box.right, one.x), y2: near(box.top, box.bottom, one.y), stroke: "var(--soft)", "stroke-width": 0.8 }));
        }
        one.names.forEach((name, line) => group.append(svgElement("text", { x: box.left, y: box.top + line * 14 + 11, "text-anchor": "start", fill: one.names.length > 1 ? "currentColor" : colour(one.colour) }, name)));
      }
      return group;
    };
  }

  function tradeoff({ data, options }, width) {
    const rows = table(data.columns);
    const names = [...new Set(rows.map((row) => row.name))];
    const all = rows.map((row) => ({ ...row, colour: names.indexOf(row.name) % 8 }));
    const means = all.filter((row) => row.is_mean), each = all.filter((row) => !row.is_mean);
    const stroke = (row) => colour(row.colour);
    const svg = draw({
      width,
      height: Math.min(420, Math.max(280, width * 0.62)),
      marginLeft: 52,
      marginRight: 24,
      marginBottom: 42,
      x: { ...axis(options.x), labelAnchor: "center", labelArrow: "none", ticks: Math.max(3, Math.floor(width / 110)), inset: 12 },
      y: axis(options.y),
    }, [
      frame[0](),
      frame[1](),
      Plot.link(means.filter((row) => row.x_low !== null), { x1: "x_low", x2: "x_high", y1: "y", y2: "y", stroke, strokeWidth: 1.5 }),
      Plot.link(means.filter((row) => row.y_low !== null), { x1: "x", x2: "x", y1: "y_low", y2: "y_high", stroke, strokeWidth: 1.5 }),
      Plot.dot(each, { x: "x", y: "y", r: 2.5, stroke, strokeOpacity: 0.7 }),
      Plot.dot(means, { x: "x", y: "y", r: 5, fill: stroke, stroke: "var(--paper)" }),
      pointLabels(means),
      Plot.tip(means, Plot.pointer({ x: "x", y: "y", title: (row) => `${row.name}\n${shown(row.x)} learned, ${shown(row.y)} forgotten` })),
    ]);
    return { svg, legend: null };
  }

  const LEVELS = 32;
  const mixed = (share) => {
    const to = share < 0 ? "var(--heat-neg)" : "var(--heat-1)";
    return `color-mix(in ${share < 0 ? "oklab" : "oklch"}, var(--heat-0), ${to} ${Math.round(Math.abs(share) * 100)}%)`;
  };

  // Cells of one level of colour are one path: a matrix of any size is at most 65 of them.
  function cells(matrix, top, { marked, written }) {
    return (_index, { x, y }) => {
      const group = svgElement("g", {});
      const wide = x.bandwidth(), tall = y.bandwidth();
      const seam = wide > 5 ? 0.5 : 0;
      const place = (row, column) => [x(matrix.columns[column]), y(matrix.rows[row])];
      const paths = new Map();
      matrix.values.forEach((values, row) => values.forEach((value, column) => {
        if (value === null) return;
        const level = Math.round(Math.max(-1, Math.min(1, value / top)) * LEVELS);
        const [left, up] = place(row, column);
        const path = `M${(left + seam).toFixed(2)} ${(up + seam).toFixed(2)}h${(wide - 2 * seam).toFixed(2)}v${(tall - 2 * seam).toFixed(2)}h${(2 * seam - wide).toFixed(2)}z`;
        paths.set(level, (paths.get(level) ?? "") + path);
      }));
      for (const [level, path] of paths) group.append(svgElement("path", { d: path, fill: mixed(level / LEVELS) }));
      const outline = marked.map(([row, column]) => {
        const [left, up] = place(row, column);
        return `M${(left + 0.8).toFixed(2)} ${(up + 0.8).toFixed(2)}h${(wide - 1.6).toFixed(2)}v${(tall - 1.6).toFixed(2)}h${(1.6 - wide).toFixed(2)}z`;
      });
      if (outline.length) group.append(svgElement("path", { d: outline.join(""), fill: "none", stroke: "var(--c1)", "stroke-width": wide > 6 ? 1.6 : 1 }));
      if (written !== null) {
        matrix.values.forEach((values, row) => values.forEach((value, column) => {
          if (value === null) return;
          const [left, up] = place(row, column);
          const fill = Math.abs(value / top) > 0.55 ? "var(--heat-on-1)" : "var(--heat-on-0)";
          group.append(svgElement("text", { x: left + wide / 2, y: up + tall / 2, dy: "0.35em", "text-anchor": "middle", "font-size": 11, fill }, value.toFixed(written).replace("-", "−")));
        }));
      }
      return group;
    };
  }

  function heat({ data, options }, width) {
    const { matrix } = data;
    const values = matrix.values.flat().filter((value) => value !== null);
    const low = Math.min(0, ...values), top = Math.max(...values.map(Math.abs)) || 1;
    const [rowLabel, columnLabel, valueLabel] = options.labels;
    const left = Math.min(longest(matrix.rows) + 14, width * 0.4);
    const isSquare = options.written !== null;
    const wide = isSquare ? Math.min(width, left + matrix.columns.length * Math.max(56, longest(matrix.columns) + 8) + 10) : Math.max(width, left + matrix.columns.length * 2);
    const cell = (wide - left) / matrix.columns.length;
    const tall = isSquare ? 30 : Math.max(5, Math.min(22, 420 / matrix.rows.length));
    const every = (names, room, need) => names.filter((_, i) => i % Math.max(1, Math.ceil(need / room)) === 0);
    const index = matrix.values.flatMap((row, r) => row.map((value, c) => ({ value, row: matrix.rows[r], column: matrix.columns[c] })));
    const svg = draw({
      width: wide,
      height: matrix.rows.length * tall + 62,
      marginLeft: left,
      marginRight: 4,
      marginTop: 22,
      marginBottom: 40,
      x: { type: "band", domain: matrix.columns, label: columnLabel, labelAnchor: "center", labelArrow: "none", tickSize: 0, padding: 0, ticks: every(matrix.columns, cell, longest(matrix.columns) + 8) },
      y: { type: "band", domain: matrix.rows, label: rowLabel, labelAnchor: "top", labelArrow: "none", labelOffset: left - 3, tickSize: 0, padding: 0, ticks: every(matrix.rows, tall, 12) },
    }, [
      cells(matrix, top, options),
      Plot.tip(index, Plot.pointer({ x: "column", y: "row", maxRadius: 30, title: (one) => `${rowLabel} ${one.row}, ${columnLabel} ${one.column}\n${shown(one.value)} ${valueLabel}` })),
    ]);
    const legend = document.createElement("div");
    legend.className = "legend";
    const ramp = document.createElement("span");
    ramp.className = low < 0 ? "ramp both" : "ramp";
    const item = document.createElement("span");
    item.append(shown(low < 0 ? -top : 0), ramp, `${shown(top)} ${valueLabel}`);
    legend.append(item);
    return { svg, legend };
  }

  const KINDS = { lines, intervals, bars, tradeoff, heat };

  // Puts a figure into an element, as wide as that is.
  function show(figure, element, width) {
    const { svg, legend } = KINDS[figure.kind](figure, Math.max(280, width));
    svg.querySelectorAll("style").forEach((style) => style.remove()); // said in page.css
    element.replaceChildren(...(legend ? [legend] : []), svg);
  }

  // The data of a figure as a table of comma-separated values.
  function csv({ data }) {
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      if (typeof value !== "string") return String(value);
      const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : value; // no spreadsheet takes it for a formula
      return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
    };
    let rows;
    if (data.series) rows = [["series", "x", "y", "error"], ...data.series.flatMap((one) => one.x.map((x, i) => [one.name, x, one.y[i], one.error?.[i]]))];
    else if (data.matrix) rows = [["", ...data.matrix.columns], ...data.matrix.values.map((row, i) => [data.matrix.rows[i], ...row])];
    else rows = [Object.keys(data.columns), ...table(data.columns).map(Object.values)];
    return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  return { show, csv };
})();
