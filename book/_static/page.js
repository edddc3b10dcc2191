// A box that scrolls sideways can be reached by keyboard, as long as it scrolls. The
// theme does this for tables and code, and this file for formulas.
(() => {
  const update = () => {
    const boxes = ".bd-article :is(div.math, mjx-container)";
    for (const box of document.querySelectorAll(boxes)) {
      const wide = box.clientWidth && box.scrollWidth > box.clientWidth;
      const high = box.clientHeight && box.scrollHeight > box.clientHeight;
      if (wide || high) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    }
  };
  let waiting;
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 200);
  };
  addEventListener("resize", soon);
  addEventListener("DOMContentLoaded", () => {
    const page = document.getElementById("main-content");
    if (page) new MutationObserver(soon).observe(page, {subtree: true, childList: true});
    soon();
  });
})();
