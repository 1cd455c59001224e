// Drops by reason, the remapping unit and its faults, the mailbox's last minute, events.

import { clock, draw, find, make, rate, Rows, short, whole, write } from "./dom.js";

const EVENTS_KEPT = 200;
const FAULTS_KEPT = 8;
const MESSAGES_SHOWN = 12;
const MINUTE_S = 60;

/** Drops, by reason: how many, how many a second, and whose. */
export class Drops {
  #reasons = {};
  #empty = make("p", { class: "hint", text: "Nothing was dropped so far." });
  #table;
  #rows;

  constructor() {
    const heads = ["Reason", "A second", "In all", "Counted for"].map((text) =>
      make("th", { scope: "col", text, class: /A second|In all/.test(text) ? "number" : false }),
    );
    const body = make("tbody");
    this.#table = make("table", { class: "plain", hidden: true }, make("thead", {}, make("tr", {}, ...heads)), body);
    this.#rows = new Rows(body, () => new DropRow());
    find("drops").append(this.#empty, this.#table);
  }

  /** Say what reasons mean. */
  explain(reasons) {
    this.#reasons = reasons;
  }

  show(snapshot, history) {
    const reasons = new Map();
    const add = (reason, count, whose) => {
      if (!count) return;
      const found = reasons.get(reason) ?? { total: 0, whose: [] };
      if (whose) found.whose.push([count, whose]);
      else found.total += count;
      reasons.set(reason, found);
    };
    for (const pf of snapshot.pfs) {
      for (const [reason, count] of Object.entries(pf.switch.dropped)) add(reason, count);
      for (const vf of pf.vfs) {
        for (const [reason, count] of Object.entries(vf.dropped)) add(reason, count, `${pf.name} vf${vf.vf}`);
      }
    }
    const cards = new Set(reasons.keys()); // the others are of drivers, or of the host's bridge
    for (const guest of snapshot.guests) {
      for (const [reason, count] of Object.entries(guest.dropped)) {
        if (!cards.has(reason)) add(reason, count, guest.name);
      }
    }
    const rows = [...reasons].map(([reason, { total, whose }]) => {
      const count = total || whose.reduce((most, [each]) => most + each, 0);
      const rates = history.note(`reason ${reason}`, snapshot.elapsed_s, { drops: count });
      return { reason, count, a_second: rates.drops, whose, what: this.#reasons[reason.replace(/^host-/, "")] ?? "" };
    });
    rows.sort((one, other) => other.count - one.count);
    this.#rows.show(rows, (row) => row.reason);
    this.#empty.hidden = rows.length > 0;
    this.#table.hidden = rows.length === 0;
  }
}

class DropRow {
  #name = make("span", { class: "name" });
  #what = make("small");
  #rate = make("td", { class: "number" });
  #count = make("td", { class: "number" });
  #whose = make("td");

  constructor() {
    const head = make("th", { scope: "row" }, this.#name, this.#what);
    this.element = make("tr", {}, head, this.#rate, this.#count, this.#whose);
  }

  change(row) {
    write(this.#name, row.reason);
    write(this.#what, row.what);
    write(this.#rate, rate(row.a_second));
    write(this.#count, whole(row.count));
    const most = row.whose.sort((one, other) => other[0] - one[0]).slice(0, 3);
    const rest = row.whose.length - most.length;
    const names = most.map(([, name]) => name).join(", ");
    write(this.#whose, names ? (rest ? `${names} and ${rest} more` : names) : "the wire or the PF");
    this.#rate.classList.toggle("bad", row.a_second > 0);
  }
}

/** The remapping unit: what it does, and the faults that events told of. */
export class Iommu {
  #list = find("iommu");

  show(snapshot, history) {
    const counters = snapshot.iommu;
    const rates = history.note("iommu", snapshot.elapsed_s, counters);
    const asked = counters.iotlb_hits + counters.iotlb_misses;
    const facts = [
      ["Translations", `${short(rates.iotlb_hits + rates.iotlb_misses)} a second, ${short(asked)} in all`],
      ["By the IOTLB", asked ? `${((100 * counters.iotlb_hits) / asked).toFixed(2)} %` : "none yet"],
      ["Page walks", `${rate(rates.page_walks)} a second, ${whole(counters.page_walks)} in all`],
      ["Interrupts", `${rate(rates.interrupts)} a second, ${whole(counters.blocked)} blocked`],
      ["DMA faults", counters.faults ? `${rate(rates.faults)} a second, ${whole(counters.faults)} in all` : "none"],
    ];
    if (!this.#list.children.length) {
      for (const [name] of facts) this.#list.append(make("dt", { text: name }), make("dd"));
    }
    facts.forEach(([, text], k) => write(this.#list.children[2 * k + 1], text));
    this.#list.lastChild.classList.toggle("bad", counters.faults > 0);
  }

  /** Take note of faults that an event tells of. */
  note(event) {
    const { count, rid, iova, reason, write: writes } = event.data;
    const where = `${writes ? "write to" : "read of"} 0x${iova.toString(16)}`;
    const text = `${clock(event.timestamp)} ${rid}: ${where}: ${reason}${count > 1 ? ` (${whole(count)} times)` : ""}`;
    const faults = find("faults");
    faults.prepend(make("li", { text }));
    while (faults.children.length > FAULTS_KEPT) faults.lastChild.remove();
  }

  clear() {
    find("faults").replaceChildren();
  }
}

/** The mailbox: a lane for each VF that spoke within a minute, marks above it to the PF, below it from the PF. */
export class Mailbox {
  #messages = [];
  #missing = make("p", { class: "hint", text: "No VF and no PF has written a message." });
  #drawing = draw("svg", { class: "lanes", role: "img" });
  #table = make("tbody");
  #details;

  constructor() {
    const heads = ["Time", "Function", "Message"].map((text) => make("th", { scope: "col", text }));
    const table = make("table", { class: "plain" }, make("thead", {}, make("tr", {}, ...heads)), this.#table);
    this.#details = make("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Latest messages" }, table);
    find("mailbox").append(this.#missing, this.#drawing, this.#details);
  }

  clear() {
    this.#messages = [];
  }

  /** Show messages, with those that have come. names: of those who say them, by address. */
  show(come, names) {
    this.#messages.push(...come);
    const last = this.#messages.at(-1);
    const now = Math.max(Date.now() / 1000, last ? at(last) : 0);
    this.#messages = this.#messages.filter((message) => at(message) > now - MINUTE_S).slice(-500);
    const some = this.#messages.length > 0;
    this.#missing.hidden = some;
    this.#drawing.toggleAttribute("hidden", !some);
    this.#details.hidden = !some;
    if (!some) return;
    this.#draw(now, names);
    const rows = this.#messages.slice(-MESSAGES_SHOWN).reverse();
    this.#table.replaceChildren(
      ...rows.map((message) => {
        const way = message.to_pf ? "to the PF" : "from the PF";
        const name = make("td", { text: names.get(message.rid) ?? message.rid });
        return make("tr", {}, make("td", { text: clock(message.timestamp) }), name, make("td", { text: `${way}: ${message.text}` }));
      }),
    );
  }

  #draw(now, names) {
    const lanes = [...new Set(this.#messages.map((message) => message.rid))].sort();
    const height = 22 * lanes.length + 16;
    this.#drawing.setAttribute("viewBox", `0 0 480 ${height}`);
    const to = this.#messages.filter((message) => message.to_pf).length;
    const words = `${to} messages to the PF and ${this.#messages.length - to} from it, of ${lanes.length} VFs`;
    this.#drawing.setAttribute("aria-label", words);
    const parts = lanes.flatMap((rid, k) => [
      draw("text", { x: 0, y: 22 * k + 15, text: names.get(rid) ?? rid }),
      draw("line", { x1: 90, x2: 478, y1: 22 * k + 11, y2: 22 * k + 11 }),
    ]);
    for (const message of this.#messages) {
      const x = 90 + 388 * (1 - (now - at(message)) / MINUTE_S);
      const y = 22 * lanes.indexOf(message.rid) + 11;
      const [begin, end] = message.to_pf ? [y - 8, y - 1] : [y + 1, y + 8];
      parts.push(draw("line", { x1: x, x2: x, y1: begin, y2: end, class: message.to_pf ? "to" : "from" }));
    }
    const foot = height - 3;
    parts.push(draw("text", { x: 90, y: foot, text: "a minute ago" }));
    parts.push(draw("text", { x: 478, y: foot, "text-anchor": "end", text: "now" }));
    this.#drawing.replaceChildren(...parts);
  }
}

function at({ timestamp }) {
  return timestamp.seconds + timestamp.microseconds / 1e6;
}

/** Events, the latest first. */
export class EventLog {
  #list = find("events");

  note(event) {
    const time = make("time", { text: clock(event.timestamp) });
    const bad = /FAULT|REFUSED|QUARANTINED|SPOOFED|THROTTLED|WARNED|LOST/.test(event.event);
    const name = make("span", { class: bad ? "name bad" : "name", text: event.event });
    this.#list.prepend(make("li", {}, time, " ", name, " ", make("span", { text: eventWords(event) })));
    while (this.#list.children.length > EVENTS_KEPT) this.#list.lastChild.remove();
  }

  /** Say that events are gone that nobody has read. */
  noteLost(count) {
    this.#list.prepend(make("li", { class: "muted", text: `${whole(count)} events before these are gone` }));
  }

  clear() {
    this.#list.replaceChildren();
  }
}

/** Say what an event is about. */
export function eventWords({ event, data }) {
  const vf = data.pf !== undefined && data.vf !== undefined ? `${data.pf} vf${data.vf}` : "";
  const whose = data.guest ? `${vf} (${data.guest})` : vf;
  switch (event) {
    case "STATE_CHANGED":
      return `${data.before} → ${data.state}`;
    case "GUEST_BOOTED":
      return data.boot_s ? `${data.guest}, ${data.vmm}, in ${data.boot_s} s` : `${data.guest}, ${data.vmm}`;
    case "WORK_DONE":
      return data.finished ? "all of it" : "not all of it";
    case "FAULTS_RECORDED":
      return `${data.rid}: ${data.write ? "write to" : "read of"} 0x${data.iova.toString(16)}: ${data.reason}`;
    case "ADDRESS_REFUSED":
      return `${data.rid} asked for ${data.address}, which ${data.holder} has`;
    case "VF_SPOOFED":
      return `${whose}: ${whole(data.count)} frames`;
    case "VF_WARNED":
    case "VF_THROTTLED":
    case "VF_QUARANTINED":
      return `${whose}: ${data.why}`;
    case "VF_RELEASED":
      return whose;
    default:
      return Object.entries(data)
        .map(([key, value]) => `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`)
        .join(", ");
  }
}
