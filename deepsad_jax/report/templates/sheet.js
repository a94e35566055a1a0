"use strict";
(() => {
  const cards = [...document.querySelectorAll("article")];
  const one = (selector) => document.querySelector(selector);
  for (const button of document.querySelectorAll("[data-do=more]"))
    button.onclick = () => {
      const rows = button.closest("article").querySelector(".more");
      rows.hidden = !rows.hidden;
      button.setAttribute("aria-expanded", String(!rows.hidden));
    };
  if (!sheet.asks) return;

  const place = "deepsad " + sheet.name;
  // Each answer is [card, what]; a later one of the same card takes its place.
  let log = [], saved = "", current = 0;
  try {
    const kept = JSON.parse(localStorage.getItem(place));
    if (kept) ({ log, saved } = kept);
  } catch { /* a browser that keeps nothing, or something else under this name */ }

  const answers = () => new Map(log);
  const isSaved = () => !log.length || JSON.stringify(log) === saved;

  function keep() {
    try {
      localStorage.setItem(place, JSON.stringify({ log, saved }));
    } catch { /* leaving without saving is warned of */ }
  }

  function show(said) {
    const given = answers();
    cards.forEach((card, i) => {
      card.hidden = i !== current;
      for (const button of card.querySelectorAll("[data-answer]"))
        button.setAttribute("aria-pressed", String(given.get(i) === button.dataset.answer));
    });
    one("#progress").value = given.size;
    one("#said").textContent =
      `${given.size} of ${cards.length} answered` + (said ? `, ${said}` : "");
    one("#place").textContent = `${current + 1} of ${cards.length}`;
    one("[data-do=undo]").disabled = !log.length;
    one("[data-do=save]").disabled = !log.length;
    one("[data-do=back]").disabled = current === 0;
    one("[data-do=next]").disabled = current === cards.length - 1;
  }

  function answer(what) {
    log.push([current, what]);
    keep();
    const given = answers();
    const after = cards.map((_, i) => (current + 1 + i) % cards.length);
    const next = after.find((i) => !given.has(i));
    if (next === undefined) return show("all done; save them now");
    current = next;
    show();
  }

  function go(step) {
    current = Math.min(Math.max(current + step, 0), cards.length - 1);
    show();
  }

  function undo() {
    if (!log.length) return;
    current = log.pop()[0];
    keep();
    show("the last one is undone");
  }

  function save() {
    if (!log.length) return;
    const lines = [...answers()].map(([i, what]) => [...sheet.keys[i], what].join(","));
    const text = ["row,fingerprint,label", ...lines, ""].join("\n");
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = "labels.csv";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    saved = JSON.stringify(log);
    keep();
    show("saved");
  }

  const actions = { undo, save, back: () => go(-1), next: () => go(1) };
  const keys = { u: undo, s: save, ArrowLeft: actions.back, ArrowRight: actions.next };
  for (const [key, what] of [["a", "anomaly"], ["n", "normal"], ["d", "unknown"]])
    keys[key] = () => answer(what);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button?.dataset.answer) answer(button.dataset.answer);
    else actions[button?.dataset.do]?.();
  });
  document.addEventListener("keydown", (event) => {
    const inTable = event.target.closest?.(".wide") && event.key.startsWith("Arrow");
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || inTable) return;
    keys[event.key]?.();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!isSaved()) event.preventDefault();
  });
  const first = cards.findIndex((_, i) => !answers().has(i));
  current = Math.max(first, 0);
  show(log.length ? "those of before" : "");
})();
