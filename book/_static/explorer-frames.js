/* Explorers that step through frames: the table of a page becomes one or two sliders,
   a chart and a read-out. Everything shown is taken from the table. */
"use strict";

(function () {
  const SVG = "http://www.w3.org/2000/svg";
  const [WIDTH, HEIGHT, EDGE] = [560, 150, 8];

  function make(name, attributes = {}, parent = null, text = "") {
    const svg = ["svg", "g", "circle", "polyline", "rect", "text", "title"].includes(name);
    const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
    if (text) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  /* The table as sliders (name and positions) and one frame a line. */
  function read(root) {
    const heads = [...root.querySelectorAll("thead th")];
    const names = heads.map((head) => head.textContent);
    const count = heads.filter((head) => "slider" in head.dataset).length;
    const lines = [...root.querySelectorAll("tbody tr")].map((line) => [...line.cells]);
    const sliders = names.slice(0, count).map((name, k) => (
      { name, positions: [...new Set(lines.map((cells) => cells[k].textContent))] }));
    return { sliders, fields: names.slice(count), frames: lines.map((cells) => cells.slice(count)) };
  }

  /* A number along one slider; a dot marks where the slider is. */
  function curve(svg, values, choose) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const [left, under] = [44, 22];
    const x = (i) => left + (i / Math.max(1, values.length - 1)) * (WIDTH - left - EDGE);
    const y = (v) => EDGE + ((high - v) / (high - low || 1)) * (HEIGHT - under - EDGE);
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    make("text", { x: left - 6, y: y(high) + 10, "text-anchor": "end" }, svg, high.toFixed(2));
    make("text", { x: left - 6, y: y(low), "text-anchor": "end" }, svg, low.toFixed(2));
    make("polyline", { points: values.map((v, i) => `${x(i)},${y(v)}`).join(" "),
      class: "safeedit-curve" }, svg);
    const dot = make("circle", { r: 6, class: "safeedit-dot" }, svg);
    svg.addEventListener("click", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * WIDTH;
      const share = (at - left) / (WIDTH - left - EDGE);
      choose([Math.min(values.length - 1, Math.max(0, Math.round(share * (values.length - 1))))]);
    });
    return ([i]) => {
      dot.setAttribute("cx", x(i));
      dot.setAttribute("cy", y(values[i]));
    };
  }

  /* A word for each pair of positions: a map of coloured cells with its first letter. */
  function map(svg, words, sliders, choose) {
    const [rows, columns] = sliders.map((s) => s.positions.length);
    const [left, under, high] = [64, 40, 26];
    const wide = (WIDTH - left - EDGE) / columns;
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${EDGE + rows * high + under}`);
    sliders[0].positions.forEach((name, i) => make("text",
      { x: left - 6, y: EDGE + (i + 0.7) * high, "text-anchor": "end" }, svg, name));
    sliders[1].positions.forEach((name, j) => make("text",
      { x: left + (j + 0.5) * wide, y: EDGE + rows * high + 15, "text-anchor": "middle" }, svg, name));
    make("text", { x: left + (columns * wide) / 2, y: EDGE + rows * high + 33,
      "text-anchor": "middle" }, svg, sliders[1].name);
    words.forEach((word, place) => {
      const [i, j] = [Math.floor(place / columns), place % columns];
      const cell = make("g", { class: `safeedit-cell safeedit-${word}` }, svg);
      make("rect", { x: left + j * wide + 1, y: EDGE + i * high + 1, width: wide - 2,
        height: high - 2 }, cell);
      make("text", { x: left + (j + 0.5) * wide, y: EDGE + (i + 0.7) * high,
        "text-anchor": "middle" }, cell, word[0].toUpperCase());
      cell.addEventListener("click", () => choose([i, j]));
    });
    const ring = make("rect", { class: "safeedit-ring", width: wide, height: high }, svg);
    return ([i, j]) => {
      ring.setAttribute("x", left + j * wide);
      ring.setAttribute("y", EDGE + i * high);
    };
  }

  function start(root, number) {
    const { sliders, fields, frames } = read(root);
    const places = root.dataset.start.split(",").map(Number);
    const plot = fields.indexOf(root.dataset.plot);
    const bar = make("div", { class: "safeedit-controls" });
    const chart = make("div", { class: "safeedit-chart" });
    const svg = make("svg", { "aria-hidden": "true" }, chart);
    const says = make("div", { "aria-live": "polite" });
    const out = make("dl", { class: "safeedit-readout" }, says);
    root.prepend(bar, chart, says);

    const knobs = sliders.map(({ name, positions }, k) => {
      const id = `safeedit-frames-${number}-${k}`;
      const box = make("div", { class: "safeedit-control" }, bar);
      const label = make("label", { for: id }, box, name);
      const knob = make("input", { id, type: "range", min: 0, max: positions.length - 1,
        step: 1 }, box);
      const value = make("span", { class: "safeedit-value", "aria-hidden": "true" }, box);
      knob.addEventListener("input", () => {
        places[k] = Number(knob.value);
        show();
      });
      return { knob, label, value };
    });
    const choose = (to) => {
      to.forEach((place, k) => { places[k] = place; });
      show();
    };
    const column = frames.map((cells) => cells[plot]);
    const words = [...new Set(column.map((cell) => cell.textContent))];
    make("p", { class: "safeedit-legend" }, chart, sliders.length === 1
      ? `The curve: ${fields[plot]}, at each ${sliders[0].name}.`
      : `The map: ${fields[plot]} (${words.map((w) => `${w[0].toUpperCase()} ${w}`).join(", ")})`
        + ` at each of ${sliders[0].name} (rows) and ${sliders[1].name} (columns).`);
    const mark = sliders.length === 1
      ? curve(svg, column.map((cell) => Number(cell.dataset.value)), choose)
      : map(svg, column.map((cell) => cell.textContent), sliders, choose);
    const content = fields.map((name) => {
      make("dt", {}, out, name);
      return make("dd", {}, out);
    });

    function show() {
      knobs.forEach(({ knob, value }, k) => {
        const text = sliders[k].positions[places[k]];
        knob.value = places[k];
        knob.setAttribute("aria-valuetext", text);
        value.textContent = text;
      });
      const index = places.reduce((sum, place, k) => sum * sliders[k].positions.length + place, 0);
      frames[index].forEach((cell, k) => {
        if (content[k].innerHTML !== cell.innerHTML) content[k].innerHTML = cell.innerHTML;
      });
      mark(places);
    }

    show();
    root.classList.add("safeedit-live");
  }

  document.querySelectorAll('[data-explorer="frames"]').forEach(start);
})();
