// Shows a point's numbers beside it and marks its line in the table. Without this script its title and link do as much.
(() => {
  const figure = document.querySelector("figure.chart");
  if (!figure) return;
  const card = document.createElement("div");
  card.className = "card";
  card.hidden = true;
  card.setAttribute("aria-hidden", "true"); // the link's label says the same
  figure.append(card);
  let lit = null;

  const hide = () => {
    card.hidden = true;
    lit?.classList.remove("lit");
    lit = null;
  };

  const show = (point, text) => {
    hide();
    card.textContent = text;
    card.hidden = false;
    const frame = figure.getBoundingClientRect();
    const spot = point.querySelector(".target").getBoundingClientRect();
    const room = { x: figure.clientWidth - card.offsetWidth, y: figure.clientHeight - card.offsetHeight };
    const right = spot.right - frame.left + 8;
    const left = right <= room.x ? right : spot.left - frame.left - card.offsetWidth - 8;
    card.style.left = `${Math.max(0, Math.min(left, room.x))}px`;
    card.style.top = `${Math.max(0, Math.min(spot.top - frame.top, room.y))}px`;
    lit = document.getElementById(point.getAttribute("href").slice(1));
    lit?.classList.add("lit");
  };

  for (const point of figure.querySelectorAll("a.point")) {
    const title = point.querySelector("title");
    const text = title.textContent;
    title.remove(); // else the browser's own box would cover ours
    for (const event of ["mouseenter", "focus"]) point.addEventListener(event, () => show(point, text));
    for (const event of ["mouseleave", "blur"]) point.addEventListener(event, hide);
  }
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
  });
})();
