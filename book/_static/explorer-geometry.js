/* The geometry explorer of a page: drag a point, the centres and the radius, or move
   them by the arrow keys. It begins as the picture and the table that Python made. */
"use strict";

(function () {
  const SVG = "http://www.w3.org/2000/svg";
  const STEP = 0.05; // of an arrow key; with Shift a fifth of it
  const RADII = [0.2, 2];
  const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
  const ANGLE = Math.PI / 4; // where on the first circle the radius is held
  const OWN = "your own";

  function make(name, attributes = {}, parent = null, text = "") {
    const svg = ["svg", "g", "circle", "path", "polyline", "text"].includes(name);
    const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => node.setAttribute(key, value));
    if (text) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
  const two = (value) => (Math.abs(value) < 0.005 ? 0 : value).toFixed(2);
  const copy = (scene) => JSON.parse(JSON.stringify(scene));

  function start(root, number) {
    const spare = JSON.parse(root.dataset.spare);
    const most = Number(root.dataset.most);
    const first = JSON.parse(root.dataset.scene);
    const cases = [...root.querySelectorAll("tr[data-scene]")].map((line) =>
      [line.querySelector("th").textContent, JSON.parse(line.dataset.scene)]);
    const picture = root.querySelector(".safeedit-picture");
    const says = root.querySelector(".safeedit-says");
    let scene = copy(first);
    let view = null;
    let dragged = null;
    let handles = [];

    // Controls
    const id = (name) => `safeedit-geometry-${number}-${name}`;
    const bar = make("div", { class: "safeedit-controls" });
    root.insertBefore(bar, picture);
    const labelled = (name, text, attributes) => {
      const box = make("div", { class: "safeedit-control" }, bar);
      make("label", { for: id(attributes.id) }, box, text);
      return make(name, { ...attributes, id: id(attributes.id) }, box);
    };
    const chooser = labelled("select", "Case", { id: "case" });
    cases.forEach(([name], i) => make("option", { value: i }, chooser, name));
    make("option", { value: OWN }, chooser, OWN);
    const radius = labelled("input", "Radius", {
      id: "radius", type: "range", min: RADII[0], max: RADII[1], step: STEP,
    });
    const size = make("span", { class: "safeedit-value", "aria-hidden": "true" },
      radius.parentElement);
    const buttons = make("div", { class: "safeedit-control" }, bar);
    const add = make("button", { type: "button" }, buttons, "Add a centre");
    const remove = make("button", { type: "button" }, buttons, "Remove the last");
    const svg = make("svg", { role: "group", "aria-label": "Point, centres and radius" });
    picture.replaceChildren(svg);
    const ground = make("g", { "aria-hidden": "true" }, svg);
    const grips = make("g", {}, svg);
    const key = make("p", { class: "safeedit-legend" });
    key.innerHTML = '<span class="safeedit-greedy"></span> greedy, and the ray that ends it '
      + '(dotted) <span class="safeedit-exact"></span> exact';
    picture.after(key);
    says.setAttribute("role", "status");
    says.setAttribute("aria-live", "polite");
    const help = make("p", { class: "safeedit-help" }, null, "Drag the point o, a centre "
      + "or the square on the first circle (the radius). By keyboard: Tab to one of them, "
      + "then the arrow keys; with Shift in small steps.");
    says.after(help);

    // The map from the plane to the picture
    function fit() {
      const width = Math.max(240, picture.clientWidth);
      const height = clamp(0.68 * width, 240, 400);
      const range = (k) => {
        const low = Math.min(...scene.centres.map((c) => c[k] - scene.radius), scene.point[k]);
        const high = Math.max(...scene.centres.map((c) => c[k] + scene.radius), scene.point[k]);
        return [low, high];
      };
      const [[left, right], [bottom, top]] = [range(0), range(1)];
      const pad = 0.12 * Math.max(right - left, top - bottom);
      const scale = Math.min(width / (right - left + 2 * pad), height / (top - bottom + 2 * pad));
      view = { width, height, scale, middle: [(left + right) / 2, (bottom + top) / 2] };
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      svg.setAttribute("width", width);
      svg.setAttribute("height", height);
    }
    const seen = ([x, y]) => [
      view.width / 2 + (x - view.middle[0]) * view.scale,
      view.height / 2 - (y - view.middle[1]) * view.scale,
    ];
    const plane = (event) => {
      const box = svg.getBoundingClientRect();
      const zoom = view.width / box.width;
      return [
        view.middle[0] + ((event.clientX - box.left) * zoom - view.width / 2) / view.scale,
        view.middle[1] - ((event.clientY - box.top) * zoom - view.height / 2) / view.scale,
      ];
    };
    const held = ([x, y]) => [0, 1].map((k) => {
      const half = [view.width, view.height][k] / 2 / view.scale;
      return clamp([x, y][k], view.middle[k] - half, view.middle[k] + half);
    });

    // Handles: what each moves, and what it says of itself
    function spot(get, set) {
      return { at: get, limits: [-10, 10],
        drag: (to) => set(held(to)),
        nudge: ([dx, dy], by) => set([get()[0] + dx * by, get()[1] + dy * by]),
        now: () => get()[0],
        says: () => `x ${two(get()[0])}, y ${two(get()[1])}` };
    }
    function rim() {
      const set = (value) => { scene.radius = clamp(value, ...RADII); };
      const spoke = [Math.cos(ANGLE), Math.sin(ANGLE)];
      return { limits: RADII,
        at: () => scene.centres[0].map((x, k) => x + scene.radius * spoke[k]),
        drag: (to) => set(Math.hypot(to[0] - scene.centres[0][0], to[1] - scene.centres[0][1])),
        nudge: ([dx, dy], by) => set(scene.radius + (dx + dy) * by),
        now: () => scene.radius,
        says: () => `radius ${two(scene.radius)}` };
    }
    const kinds = () => [
      { ...spot(() => scene.point, (to) => { scene.point = to; }),
        name: "point o", label: "o", kind: "point" },
      ...scene.centres.map((_, i) => (
        { ...spot(() => scene.centres[i], (to) => { scene.centres[i] = to; }),
          name: `centre ${i + 1}`, label: `c${i + 1}`, kind: "centre" })),
      { ...rim(), name: "radius", label: "", kind: "radius" },
    ];

    function changed() {
      chooser.value = OWN;
      if (!dragged) fit();
      draw();
    }

    function listen(handle) {
      const { node } = handle;
      node.addEventListener("keydown", (event) => {
        const way = KEYS[event.key];
        if (!way) return;
        event.preventDefault();
        handle.nudge(way, event.shiftKey ? STEP / 5 : STEP);
        changed();
      });
      node.addEventListener("pointerdown", (event) => {
        event.preventDefault();
        node.focus();
        node.setPointerCapture(event.pointerId);
        dragged = handle;
      });
      node.addEventListener("pointermove", (event) => {
        if (dragged !== handle) return;
        handle.drag(plane(event));
        changed();
      });
      const drop = () => {
        if (dragged !== handle) return;
        dragged = null;
        changed();
      };
      node.addEventListener("pointerup", drop);
      node.addEventListener("pointercancel", drop);
    }

    function grip(handle) {
      const node = make("g", { class: `safeedit-handle safeedit-${handle.kind}`, tabindex: 0,
        role: "slider", "aria-label": handle.name, "aria-valuemin": handle.limits[0],
        "aria-valuemax": handle.limits[1] }, grips);
      make("circle", { class: "safeedit-reach", r: 20 }, node);
      const shape = { point: "M-7 0a7 7 0 1 0 14 0a7 7 0 1 0 -14 0", centre: "M-8 0h16M0 -8v16",
        radius: "M-6 -6h12v12h-12z" }[handle.kind];
      make("path", { d: shape, class: "safeedit-shape" }, node);
      if (handle.label) make("text", { x: 9, y: -9 }, node, handle.label);
      return { ...handle, node };
    }

    function draw() {
      const solved = window.safeedit.solve(scene, spare);
      ground.replaceChildren();
      scene.centres.forEach((c) => {
        const [cx, cy] = seen(c);
        make("circle", { cx, cy, r: scene.radius * view.scale, class: "safeedit-ball" }, ground);
      });
      const line = (points, kind) => make("polyline",
        { points: points.map((p) => seen(p).join(",")).join(" "), class: kind }, ground);
      const dot = (p, r, kind) => {
        const [cx, cy] = seen(p);
        make("circle", { cx, cy, r, class: kind }, ground);
      };
      if (!solved.stopped) line([scene.point, solved.greedy.point], "safeedit-ray");
      line(solved.path, "safeedit-way");
      solved.path.slice(1).forEach((p) => dot(p, 3, "safeedit-stop"));
      line([scene.point, solved.exact.point], "safeedit-best");
      dot(solved.exact.point, 5, "safeedit-end");
      solved.ties.forEach((p) => dot(p, 5, "safeedit-tie"));
      if (handles.length !== scene.centres.length + 2) {
        grips.replaceChildren();
        handles = kinds().map(grip);
        handles.forEach(listen);
      }
      handles.forEach((handle) => {
        const [x, y] = seen(handle.at());
        handle.node.setAttribute("transform", `translate(${x} ${y})`);
        handle.node.setAttribute("aria-valuenow", handle.now().toFixed(2));
        handle.node.setAttribute("aria-valuetext", handle.says());
      });
      radius.value = scene.radius;
      radius.setAttribute("aria-valuetext", two(scene.radius));
      size.textContent = two(scene.radius);
      add.disabled = scene.centres.length >= most;
      remove.disabled = scene.centres.length <= 1;
      const text = window.safeedit.describe(solved);
      if (says.textContent !== text) says.textContent = text;
    }

    chooser.addEventListener("change", () => {
      if (chooser.value === OWN) return;
      scene = copy(cases[Number(chooser.value)][1]);
      fit();
      draw();
    });
    radius.addEventListener("input", () => {
      scene.radius = Number(radius.value);
      changed();
    });
    add.addEventListener("click", () => {
      const [x, y] = scene.centres[scene.centres.length - 1];
      scene.centres.push([x + 0.5 * scene.radius, y]);
      changed();
    });
    remove.addEventListener("click", () => {
      scene.centres.pop();
      changed();
    });
    new ResizeObserver(() => {
      if (Math.max(240, picture.clientWidth) === view.width) return;
      fit();
      draw();
    }).observe(picture);

    const same = JSON.stringify(first);
    const chosen = cases.findIndex(([, other]) => JSON.stringify(other) === same);
    chooser.value = chosen < 0 ? OWN : chosen;
    fit();
    draw();
    root.classList.add("safeedit-live");
  }

  document.querySelectorAll('[data-explorer="geometry"]').forEach(start);
})();
