// Elements, and how numbers are written. Text is set as text, always: names of labs and guests are nobody's markup.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. attributes: `text`, `on` (listeners by event), or those of the element. */
export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Make an element of a drawing. */
export function draw(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, { text, on = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value === true ? "" : value);
  }
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

/** Write a text, if it is another: what stands still disturbs nobody. */
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Find an element of the page. */
export function find(id) {
  return document.getElementById(id);
}

const UNITS = ["", "k", "M", "G", "T"];

/** Write a number with three digits and a unit: 950, 1.49 M. */
export function short(number, unit = "") {
  let k = 0;
  while (number >= 999.5 && k < UNITS.length - 1) {
    number /= 1000;
    k += 1;
  }
  const digits = k === 0 ? 0 : number < 9.995 ? 2 : number < 99.95 ? 1 : 0;
  const name = `${UNITS[k]}${unit}`;
  return name ? `${number.toFixed(digits)} ${name}` : number.toFixed(digits);
}

/** Write a count with all of its digits. */
export function whole(number) {
  return number.toLocaleString("en-US");
}

/** Write a rate that may be below one: 0.4, 12. */
export function rate(number) {
  return number > 0 && number < 9.95 ? number.toFixed(1) : short(number);
}

/** Write a time of the day. */
export function clock({ seconds, microseconds }) {
  return new Date(seconds * 1000 + microseconds / 1000).toLocaleTimeString("en-GB");
}

/** Draw a line of rates, the newest at the right; `change` draws it anew. */
export class Spark {
  #line = draw("polyline", { fill: "none" });

  constructor() {
    this.element = draw(
      "svg",
      { viewBox: "0 0 59 18", preserveAspectRatio: "none", class: "spark", "aria-hidden": "true" },
      this.#line,
    );
  }

  change(rates) {
    const most = Math.max(...rates, 1e-9);
    const first = 60 - rates.length;
    this.#line.setAttribute("points", rates.map((r, k) => `${first + k},${(17 - (16 * r) / most).toFixed(1)}`).join(" "));
  }
}

/** Rows by a key: makes those that are new, removes those that are gone, keeps the others. */
export class Rows {
  #parent;
  #create;
  #rows = new Map();

  constructor(parent, create) {
    this.#parent = parent;
    this.#create = create;
  }

  show(items, key) {
    const left = new Set(this.#rows.keys());
    let before = null;
    for (const item of items) {
      const name = key(item);
      left.delete(name);
      let row = this.#rows.get(name);
      if (!row) {
        row = this.#create(item);
        this.#rows.set(name, row);
      }
      const place = before ? before.nextSibling : this.#parent.firstChild;
      if (place !== row.element) this.#parent.insertBefore(row.element, place);
      before = row.element;
      row.change(item);
    }
    for (const name of left) {
      this.#rows.get(name).element.remove();
      this.#rows.delete(name);
    }
  }
}
