/* Leave a union of balls in the plane, in both ways of safeedit.edits.project_out:
   greedy, most violated first, and exact. tests/test_explorer_browser.py holds the
   results to project_out. Units inside: the radius is 1. */
"use strict";

(function (root) {
  const TOLERANCE = 1e-6; // greedy stops when every margin is >= -TOLERANCE
  const ON_CENTRE = 1e-12; // nearer to a centre, no direction leads away
  const CYCLE = 5e-3; // a round of a cycle closes to this
  const SLACK = 1e-9; // a point on a sphere counts as outside

  const minus = (a, b) => [a[0] - b[0], a[1] - b[1]];
  const along = (a, v, t) => [a[0] + t * v[0], a[1] + t * v[1]];
  const size = (v) => Math.sqrt(v[0] * v[0] + v[1] * v[1]);
  const apart = (a, b) => size(minus(a, b));
  const unit = (v) => along([0, 0], v, 1 / size(v));
  const mean = (points) =>
    [0, 1].map((k) => points.reduce((sum, p) => sum + p[k], 0) / points.length);

  /* Distinct centres in the order of project_out, which decides between equals. */
  function distinct(centres) {
    const sorted = [...centres].sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    return sorted.filter((c, i) => i === 0 || apart(c, sorted[i - 1]) > 0);
  }

  function nearest(point, balls) {
    const lengths = balls.map((c) => apart(point, c));
    const length = Math.min(...lengths);
    return { length, centre: balls[lengths.indexOf(length)] };
  }

  /* Steps out of the nearest ball until none is left or too many were made. */
  function greedyPath(point, balls, spare) {
    const path = [point];
    let onCentre = false;
    for (let step = 0; step < 10 * balls.length; step += 1) {
      const place = path[path.length - 1];
      const { length, centre } = nearest(place, balls);
      if (length >= 1 - TOLERANCE) break;
      let away = minus(place, centre);
      if (length <= ON_CENTRE) {
        onCentre = true;
        away = minus(place, mean(balls));
        if (size(away) <= ON_CENTRE) away = spare;
      }
      path.push(along(centre, unit(away), 1));
    }
    return { path, onCentre };
  }

  /* Number of steps of the cycle that a path settles into, 0 if it does not. */
  function period(path) {
    const end = path.length - 1;
    for (let steps = 2; steps <= Math.floor(end / 2); steps += 1) {
      const last = apart(path[end], path[end - steps]);
      const before = apart(path[end - steps], path[end - 2 * steps]);
      const lengths = path.slice(-steps).map((p, i) => apart(p, path[end - steps + i]));
      const closes = last <= Math.min(CYCLE, Math.min(...lengths) / 10);
      if (closes && last <= before + ON_CENTRE) return steps;
    }
    return 0;
  }

  /* A free direction for the ray: along the normal where the centres lie on a line. */
  function sideways(balls, spare) {
    const middle = mean(balls);
    const far = balls.reduce((a, b) => (apart(b, middle) > apart(a, middle) ? b : a));
    const reach = apart(far, middle);
    if (reach <= ON_CENTRE) return spare;
    const axis = unit(minus(far, middle));
    const normal = [-axis[1], axis[0]];
    const off = (c) => Math.abs((c[0] - middle[0]) * normal[0] + (c[1] - middle[1]) * normal[1]);
    if (balls.some((c) => off(c) > 1e-10 * reach)) return spare;
    const sign = spare[0] * normal[0] + spare[1] * normal[1] < 0 ? -1 : 1;
    return along([0, 0], normal, sign);
  }

  /* The nearest free point along a few rays: where greedy does not stop, this ends it. */
  function ray(point, balls, spare) {
    const free = sideways(balls, spare);
    const wanted = [minus(point, mean(balls)), ...balls.map((c) => minus(point, c)), free];
    let best = null;
    wanted.forEach((v) => {
      const way = size(v) > 1e-9 ? unit(v) : free;
      const covered = balls
        .map((c) => {
          const r = minus(point, c);
          const b = way[0] * r[0] + way[1] * r[1];
          return { b, inside: b * b - size(r) * size(r) + 1 };
        })
        .filter(({ inside }) => inside > 0)
        .map(({ b, inside }) => [-b - Math.sqrt(inside), -b + Math.sqrt(inside)])
        .sort((a, b) => a[0] - b[0]);
      let t = 0;
      for (const [low, high] of covered) {
        if (low >= t) break;
        t = Math.max(t, high);
      }
      if (best === null || t < best.t) best = { t, place: along(point, way, t) };
    });
    return best.place;
  }

  /* The nearest free point: on one circle right outward, or where two circles meet. */
  function exactPoints(point, balls, spare) {
    const found = balls.map((c) => {
      const away = minus(point, c);
      return along(c, size(away) > ON_CENTRE ? unit(away) : spare, 1);
    });
    balls.forEach((a, i) => balls.slice(i + 1).forEach((b) => {
      const gap = apart(a, b);
      if (gap > 2) return;
      const axis = unit(minus(b, a));
      const height = Math.sqrt(Math.max(0, 1 - (gap * gap) / 4));
      const middle = along(a, axis, gap / 2);
      found.push(along(middle, [-axis[1], axis[0]], height));
      found.push(along(middle, [-axis[1], axis[0]], -height));
    }));
    const free = found.filter((p) => nearest(p, balls).length >= 1 - SLACK);
    const least = Math.min(...free.map((p) => apart(p, point)));
    const best = free.filter((p) => apart(p, point) <= least + SLACK);
    return best.filter((p, i) => best.findIndex((q) => apart(p, q) < 1e-6) === i);
  }

  /* Both ways out of a scene {point, centres, radius}, in its units.
     spare: the unit vector to take where every direction is as good. */
  function solve(scene, spare) {
    const origin = mean(scene.centres);
    const shrink = (p) => along([0, 0], minus(p, origin), 1 / scene.radius);
    const grow = (p) => along(origin, p, scene.radius);
    const balls = distinct(scene.centres.map(shrink));
    const start = shrink(scene.point);
    if (nearest(start, balls).length >= 1 - ON_CENTRE) {
      const stay = { point: scene.point, distance: 0 };
      return { path: [scene.point], steps: 0, stopped: true, cycle: 0, onCentre: false,
        greedy: stay, exact: stay, ties: [] };
    }
    const { path, onCentre } = greedyPath(start, balls, spare);
    const last = path[path.length - 1];
    const stopped = nearest(last, balls).length >= 1 - TOLERANCE;
    const end = stopped ? last : ray(start, balls, spare);
    const [best, ...ties] = exactPoints(start, balls, spare);
    const moved = (p) => ({ point: grow(p), distance: apart(p, start) * scene.radius });
    return { path: path.map(grow), steps: path.length - 1, stopped,
      cycle: stopped ? 0 : period(path), onCentre, greedy: moved(end), exact: moved(best),
      ties: ties.map(grow) };
  }

  /* What happens, in the words of safeedit.explorers.describe. */
  function describe(solved) {
    const greedy = solved.greedy.distance;
    const exact = solved.exact.distance;
    if (exact === 0) return "The point is outside every ball: nothing moves.";
    const ended = `A ray ends it, with a move of ${greedy.toFixed(2)}.`;
    let text = `Greedy has not stopped after ${solved.steps} steps. ${ended}`;
    if (solved.stopped) {
      const steps = `${solved.steps} step${solved.steps === 1 ? "" : "s"}`;
      text = `Greedy stops after ${steps} and moves ${greedy.toFixed(2)}.`;
    } else if (solved.cycle) {
      text = `Greedy never stops: it settles into a cycle of ${solved.cycle} steps. ${ended}`;
    }
    if (solved.onCentre) {
      text += " One step begins on a centre, where every direction is as good.";
    }
    text += ` The exact solution moves ${exact.toFixed(2)}`;
    const ratio = greedy / exact;
    return ratio >= 1.005
      ? `${text}: greedy goes ${ratio.toFixed(2)} times as far.`
      : `${text}, as far as greedy.`;
  }

  root.safeedit = Object.assign(root.safeedit || {}, { solve, describe });
})(typeof window === "undefined" ? globalThis : window);
