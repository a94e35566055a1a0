"use strict";
(() => {
  const get = (id) => document.getElementById(id);
  const data = JSON.parse(get("page-data").textContent);
  const slider = get("slider");
  const percent = (share) => `${(100 * share).toFixed(1)} %`;
  const number = (value) => String(Number(value.toPrecision(4)));

  // Wilson's interval of 95 %.
  function interval(part, whole) {
    const share = part / whole;
    const weight = 1.959964 ** 2 / whole;
    const center = (share + weight / 2) / (1 + weight);
    const half = (1.959964 / (1 + weight)) * Math.sqrt((share * (1 - share)) / whole + weight / 4 / whole);
    return `${percent(Math.max(0, center - half))} to ${percent(Math.min(1, center + half))}`;
  }

  function tell(name, part, whole) {
    get(`${name}-count`).textContent = whole ? `${part} of ${whole}` : "none are known";
    get(`${name}-share`).textContent = whole ? percent(part / whole) : "";
    get(`${name}-interval`).textContent = whole ? interval(part, whole) : "";
  }

  function mark(id, x, y) {
    const shape = document.querySelector(`#${id} .mark`);
    if (!shape) return;
    if (shape.tagName === "line") {
      shape.setAttribute("x1", x);
      shape.setAttribute("x2", x);
    } else {
      shape.setAttribute("cx", x);
      shape.setAttribute("cy", y);
    }
  }

  function show() {
    const at = Number(slider.value);
    const falseAlarms = data.falseAlarms[at];
    const hits = data.hits[at];
    const value = number(data.thresholds[at]);
    get("value").textContent = value;
    tell("false", falseAlarms, data.normal);
    tell("hit", hits, data.anomalous);
    const isKnown = data.normal > 0 && data.anomalous > 0;
    const ofNormal = data.normal ? falseAlarms / data.normal : NaN;
    const ofAnomalous = data.anomalous ? hits / data.anomalous : NaN;
    const asked = get("share"); // at first rounded for the eye
    const isOwn = asked.value === asked.defaultValue;
    const share = isOwn ? data.anomalous / (data.normal + data.anomalous) : Number(asked.value) / 100;
    const right = share ? share * ofAnomalous : 0;
    const wrong = share < 1 ? (1 - share) * ofNormal : 0;
    const alarms = right + wrong;
    const isAsked = get("rows").validity.valid && get("share").validity.valid && get("rows").value !== "" && get("share").value !== "";
    get("precision").textContent = !isAsked || Number.isNaN(alarms) ? "not known" : alarms ? percent(right / alarms) : "no alarms";
    get("alarms").textContent = !isAsked || Number.isNaN(alarms) ? "not known" : number(alarms * Number(get("rows").value));
    slider.setAttribute("aria-valuetext", `${value}: ${falseAlarms} of ${data.normal} false alarms, ${hits} of ${data.anomalous} hits`);
    const { left, right: end, top, bottom } = data.frame;
    mark("histogram", data.x[at]);
    if (!isKnown) return;
    const up = (part) => bottom - part * (bottom - top);
    const along = (part) => left + part * (end - left);
    mark("roc", along(ofNormal), up(ofAnomalous));
    const found = falseAlarms + hits;
    mark("recall", along(ofAnomalous), up(found ? hits / found : 1));
  }

  function nearest(x) {
    let best = 0;
    data.x.forEach((place, i) => {
      if (Math.abs(place - x) < Math.abs(data.x[best] - x)) best = i;
    });
    return best;
  }

  const picture = document.querySelector("#histogram svg");
  function drag(event) {
    if (!event.buttons) return;
    const box = picture.getBoundingClientRect();
    slider.value = nearest(((event.clientX - box.left) / box.width) * picture.viewBox.baseVal.width);
    show();
  }
  picture.addEventListener("pointerdown", (event) => {
    picture.setPointerCapture(event.pointerId);
    drag(event);
  });
  picture.addEventListener("pointermove", drag);
  for (const id of ["slider", "rows", "share"]) get(id).addEventListener("input", show);
  get("reset").addEventListener("click", () => {
    slider.value = data.start;
    show();
  });
  slider.value = data.start; // browsers keep what was there before a reload
  show();
})();
