"""Slides as one HTML file: keys, a progress line, notes, printing, and nothing outside.

Pictures, style, script and MathJax are inside the file, so it can be mailed, opened
from a stick, and shown in a room without a network. Every slide is a stage of 1280 x
720 pixels that is scaled to the window; printed, it is a page of the same form.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from ..provenance import ROOT
from ..records import write_atomic
from .chapters import CourseError, notebooks, read_parts
from .slides import Slide, read_slides

STYLE = """
:root { --ink: #1b1f23; --accent: #0b5394; --paper: #ffffff; --quiet: #57606a; }
* { box-sizing: border-box; }
body { margin: 0; background: #30363d; color: var(--ink);
  font: 30px/1.35 "DejaVu Sans", Verdana, "Segoe UI", Arial, sans-serif; }
section { width: 1280px; height: 720px; padding: 44px 64px 56px; overflow: hidden;
  background: var(--paper); position: relative; margin: 0 auto 24px;
  display: flex; flex-direction: column; }
.js section { position: absolute; left: 0; top: 0; transform-origin: 0 0; margin: 0;
  visibility: hidden; }
.js section.now { visibility: visible; }
h1 { font-size: 56px; line-height: 1.15; margin: auto 0 18px; color: var(--accent); }
section.title .body { flex: none; margin-bottom: auto; }
h2 { font-size: 38px; line-height: 1.2; margin: 0 0 18px; color: var(--accent); }
.body { flex: 1 1 auto; min-height: 0; overflow: hidden; }
.body p { margin: 0 0 12px; } .body ul { margin: 0 0 12px; padding-left: 1.1em; }
.body li { margin-bottom: 8px; }
.formula { margin: 6px 0 12px; overflow: hidden; }
figure { margin: 0; flex: 1 1 auto; min-height: 0; display: flex;
  flex-direction: column; }
figure img { flex: 1 1 auto; min-height: 0; width: 100%; object-fit: contain; }
.caption { font-size: 18px; color: var(--quiet); margin: 8px 0 0; flex: none; }
.reading { font-size: 25px; margin: 8px 0 0; flex: none; }
table { border-collapse: collapse; font-size: 22px; width: 100%; }
th, td { padding: 4px 10px; border-bottom: 1px solid #d0d7de; text-align: left; }
code { font-family: "DejaVu Sans Mono", Consolas, monospace; font-size: .88em; }
footer { position: absolute; right: 28px; bottom: 16px; font-size: 17px;
  color: var(--quiet); }
.notes { display: none; }
.talk section.now .notes { display: block; position: absolute; inset: auto 0 0 0;
  max-height: 300px; overflow: auto; font-size: 20px; padding: 14px 64px;
  background: #fff8c5; border-top: 2px solid #d4a72c; }
@page { size: 1280px 720px; margin: 0; }
@media print {
  body { background: none; }
  .js section, section { position: relative; visibility: visible; margin: 0;
    transform: none !important; break-after: page; }
  .notes { display: none !important; }
}
"""

SCRIPT = """
document.documentElement.classList.add("js");
const slides = [...document.querySelectorAll("section")];
let now = 0;
function show(n, quiet) {
  now = Math.max(0, Math.min(slides.length - 1, n));
  slides.forEach((s, i) => {
    s.classList.toggle("now", i === now);
    s.toggleAttribute("inert", i !== now);
  });
  if (!quiet) history.replaceState(null, "", "#" + (now + 1));
  document.title = slides[now].getAttribute("aria-label");
}
function fit() {
  const scale = Math.min(innerWidth / 1280, innerHeight / 720);
  const left = (innerWidth - 1280 * scale) / 2;
  slides.forEach(s => {
    s.style.transform = `translate(${left}px, 0) scale(${scale})`;
  });
}
function shrink() {  // letters become smaller until the slide holds its text
  for (const f of document.querySelectorAll(".formula")) {
    for (let size = 100; size > 40 && f.scrollWidth > f.clientWidth + 1; size -= 5)
      f.style.fontSize = size + "%";
  }
  for (const s of slides) {
    const box = s.querySelector(".body");
    for (let size = 100; size > 45 && box &&
         (box.scrollHeight > box.clientHeight + 1 ||
          box.scrollWidth > box.clientWidth + 1); size -= 5) {
      box.style.fontSize = size + "%";
      box.querySelectorAll("table").forEach(t => {
        t.style.fontSize = 0.22 * size + "px";
      });
    }
  }
}
const keys = {
  ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, Enter: 1,
  ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Backspace: -1,
};
addEventListener("keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key in keys) show(now + keys[e.key]);
  else if (e.key === "Home") show(0);
  else if (e.key === "End") show(slides.length - 1);
  else if (e.key === "n") document.body.classList.toggle("talk");
  else if (e.key === "f") document.documentElement.requestFullscreen();
  else return;
  e.preventDefault();
});
addEventListener("click", e => {
  if (!e.target.closest("a, .notes")) show(now + (e.clientX < innerWidth / 3 ? -1 : 1));
});
addEventListener("hashchange", () => show((+location.hash.slice(1) || 1) - 1, true));
addEventListener("resize", fit);
show((+location.hash.slice(1) || 1) - 1, true);
fit();
addEventListener("load", async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  shrink();
  document.body.dataset.ready = "yes";
});
"""

# Assistive MathML is a part of its own that MathJax would fetch; a formula's TeX is its
# label instead. The menu would fetch parts too.
MATHJAX = """
window.MathJax = {
  tex: {inlineMath: [["\\\\(", "\\\\)"]], tags: "none"},
  svg: {fontCache: "local"},
  options: {enableMenu: false,
    renderActions: {assistiveMml: [], label: [180, doc => {
      for (const item of doc.math) {
        item.typesetRoot.setAttribute("role", "img");
        item.typesetRoot.setAttribute("aria-label", item.math);
      }
    }, ""]}},
};
"""


def page(slides: Sequence[Slide]) -> str:
    """One HTML file of slides."""
    first = slides[0]
    shown = [_section(s, i, len(slides)) for i, s in enumerate(slides, 1)]
    body = "\n".join(shown)
    math = ""
    if "\\(" in body or "\\[" in body:
        math = f"<script>{MATHJAX}</script>\n<script>{_mathjax()}</script>\n"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f'<link rel="icon" href="data:,">\n<title>{_plain(first.title)}</title>\n'
        f"<style>{STYLE}</style>\n{math}</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(slide: Slide, number: int, total: int) -> str:
    level = "h1" if slide.kind == "title" else "h2"
    parts = [f"<{level}>{slide.title}</{level}>"]
    caption = f'<p class="reading">{slide.reading}</p>' if slide.reading else ""
    if slide.caption:
        caption += f'<p class="caption">{slide.caption}</p>'
    inner = "\n".join(slide.body)
    if slide.kind == "figure":
        parts.append(f"<figure>{inner}</figure>{caption}")
    else:
        parts.append(f'<div class="body">{inner}</div>{caption}')
    if slide.notes:
        notes = "\n".join(slide.notes)
        parts.append(f'<aside class="notes" aria-label="notes">{notes}</aside>')
    label = html.escape(_plain(slide.title), quote=True)
    return (
        f'<section class="{slide.kind}" aria-label="{number} of {total}: {label}">\n'
        + "\n".join(parts)
        + f"\n<footer>{number} / {total}</footer>\n</section>"
    )


def _plain(title: str) -> str:
    import re

    return html.unescape(re.sub(r"<[^>]+>", "", title))


def _mathjax() -> str:
    """MathJax's own script, safe inside a page.

    Raises:
        CourseError: the extra "book" is not installed.
    """
    try:
        files = distribution("sphinx-mathjax-offline").files or []
    except PackageNotFoundError as error:
        raise CourseError(
            'formulas need MathJax. Next step: pip install "safeedit[book]"'
        ) from error
    source = next(file for file in files if file.name == "tex-svg.js")
    script = Path(str(source.locate())).read_text(encoding="utf-8")
    return script.replace("</script", "<\\/script")


def write_decks(
    names: Sequence[str], out: Path, root: Path = ROOT
) -> list[tuple[Path, int]]:
    """Decks of some notebooks, or of all, and a page that lists them.

    Args:
        names: codes or names of notebooks ("02", "T1_attack_success"); none: all.
        out: a folder; files of the same name in it are replaced.
        root: the repository.

    Returns:
        Each deck's file with its number of slides.

    Raises:
        CourseError: an unknown notebook, or one that has not been executed.
    """
    from .chapters import find

    known = notebooks(read_parts(root))
    chosen = [find(known, name) for name in names] or known
    made = []
    for chapter in chosen:
        slides = read_slides(root / "notebooks" / f"{chapter.name}.ipynb", root)
        made.append((out / f"{chapter.name}.html", len(slides)))
        write_atomic(made[-1][0], page(slides))
    lines = [
        f'<li><a href="{path.name}">{html.escape(chapter.code)} '
        f"{html.escape(chapter.title)}</a>, {n} slides</li>"
        for (path, n), chapter in zip(made, chosen, strict=True)
    ]
    index = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<link rel="icon" href="data:,"><title>Slides</title></head><body><main>'
        f"<h1>Slides</h1><ul>{''.join(lines)}</ul><p>Arrows or space: on and back. "
        "n: notes. f: full screen. Print to PDF from the browser's menu.</p>"
        "</main></body></html>\n"
    )
    write_atomic(out / "index.html", index)
    return made
