// Counters become rates: of one second, and of the last minute for the small lines.

const KEPT = 60;

/** Rates of named things. Each is told its counters, which only grow, and the lab's time in seconds. */
export class History {
  #things = new Map();

  /** Take note of a thing's counters; return its rates a second. The first time there are none: zeros. */
  note(name, seconds, counters) {
    const thing = this.#things.get(name) ?? { line: [] };
    const passed = thing.seconds === undefined ? 0 : seconds - thing.seconds;
    const rates = {};
    for (const [key, count] of Object.entries(counters)) {
      const grown = count - (thing.counters?.[key] ?? count);
      rates[key] = passed > 0 ? Math.max(grown, 0) / passed : 0;
    }
    if (passed > 0) {
      thing.line.push((rates.tx_frames ?? 0) + (rates.rx_frames ?? 0));
      if (thing.line.length > KEPT) thing.line.shift();
    }
    if (passed > 0 || thing.seconds === undefined) {
      Object.assign(thing, { seconds, counters, rates });
      this.#things.set(name, thing);
    }
    return thing.rates;
  }

  /** The frames a second of the last minute, the oldest first. */
  line(name) {
    return this.#things.get(name)?.line ?? [];
  }

  /** Forget everything: the lab is another one. */
  clear() {
    this.#things.clear();
  }
}

/** Add counters up, by name. */
export function sum(counters) {
  const total = {};
  for (const each of counters) {
    for (const [key, count] of Object.entries(each)) total[key] = (total[key] ?? 0) + count;
  }
  return total;
}

/** All of a table of counts. */
export function all(counts) {
  return Object.values(counts).reduce((total, count) => total + count, 0);
}
