// Values under the pointer, and curves that a click on their name takes away. Without it the page says the same.
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), line = figure.querySelector(".at"), head = figure.querySelector("small");
  const buttons = [...figure.querySelectorAll("button")], paths = [...figure.querySelectorAll("g.curve")];
  const data = JSON.parse(figure.dataset.hover), unit = head.textContent;
  let at = -1;
  const show = (next) => {
    at = next;
    line.classList.toggle("off", at < 0);
    head.textContent = at < 0 ? unit : "epoch " + data.labels[at];
    if (at >= 0) { line.setAttribute("x1", data.xs[at]); line.setAttribute("x2", data.xs[at]); }
    buttons.forEach((button, k) => {
      button.lastElementChild.textContent = data.curves[k].name + (at < 0 ? "" : ": " + data.curves[k].texts[at]);
    });
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    let best = 0;
    data.xs.forEach((place, k) => { if (Math.abs(place - x) < Math.abs(data.xs[best] - x)) best = k; });
    show(best);
  });
  svg.addEventListener("pointerleave", () => show(-1));
  svg.addEventListener("blur", () => show(-1));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { show(Math.min(data.xs.length - 1, Math.max(0, at + step))); event.preventDefault(); }
  });
  buttons.forEach((button, k) => button.addEventListener("click", () => {
    const on = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", on);
    paths[k].classList.toggle("off", !on);
  }));
}
