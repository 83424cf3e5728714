"use strict";
// small helpers shared by the drawings, and the curves

const SVG = "http://www.w3.org/2000/svg";

/** Return a new SVG element with `attributes`, appended to `parent`; `text` becomes its content. */
function draw(parent, tag, attributes = {}, text = null) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

/** Return a new HTML element with class `name` and text `text`, appended to `parent`. */
function add(parent, tag, name = "", text = null) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

/** Return `value` with about three significant digits and a true minus sign. */
function show(value) {
  const size = Math.abs(value);
  const text =
    size >= 10000 ? Math.round(value).toLocaleString("en") :
    size >= 100 || Number.isInteger(value) ? String(Math.round(value)) :
    size && size < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3));
  return text.replace("-", "−");
}

/** Return about `count` round values that cover [low, high]. */
function ticks(low, high, count) {
  const raw = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= raw);
  const values = [];
  for (let index = Math.ceil(low / step - 1e-9); index * step <= high + step * 1e-9; index += 1) {
    values.push(index * step);
  }
  return values;
}

/** Draw the curves of `chart` = {name, series: [{arm, points: [[x, y], ...]}]} as one figure. */
function drawChart(parent, chart, colours) {
  const figure = add(parent, "figure");
  add(figure, "figcaption", "", chart.name);
  const [width, height, left, right, top, bottom] = [360, 170, 52, 12, 8, 24];
  const svg = draw(figure, "svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": chart.name });
  const points = chart.series.flatMap((series) => series.points);
  const [xs, ys] = [points.map((point) => point[0]), points.map((point) => point[1])];
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) / 10, y1 + (Math.abs(y1) || 1) / 10];
  const x = (value) => left + ((value - x0) / (x1 - x0 || 1)) * (width - left - right);
  const y = (value) => top + ((y1 - value) / (y1 - y0)) * (height - top - bottom);
  for (const value of ticks(y0, y1, 5)) {
    draw(svg, "line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" });
    draw(svg, "text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, show(value));
  }
  for (const value of ticks(x0, x1, 6).filter(Number.isInteger)) {
    draw(svg, "text", { x: x(value), y: height - 6, "text-anchor": "middle" }, show(value));
  }
  for (const series of chart.series) {
    const line = series.points.map(([px, py]) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`).join(" ");
    draw(svg, "polyline", { points: line, class: "series", stroke: colours[series.arm] });
    for (const [px, py] of series.points) {
      const dot = draw(svg, "circle", { cx: x(px), cy: y(py), r: 2.5, fill: colours[series.arm] });
      draw(dot, "title", {}, `${series.arm}, step ${show(px)}: ${show(py)}`);
    }
  }
}

/** Draw all `charts`, with one key for them. */
function drawCharts(parent, charts) {
  if (!charts.length) add(parent, "p", "note", "No step of training is recorded yet.");
  const arms = [...new Set(charts.flatMap((chart) => chart.series.map((series) => series.arm)))];
  const colours = Object.fromEntries(arms.map((arm, index) => [arm, `var(--series-${(index % 4) + 1})`]));
  if (charts.length) {
    const key = add(parent, "div", "key");
    for (const arm of arms) {
      const entry = add(key, "span");
      add(entry, "i").style.background = colours[arm];
      entry.append(arm);
    }
    add(key, "span", "", "x: training step");
  }
  for (const chart of charts) drawChart(parent, chart, colours);
}
