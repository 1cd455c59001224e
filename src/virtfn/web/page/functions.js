// The tree of PFs, VFs and guests: a table for each PF, a row for each VF with its guest.

import { find, make, rate, Rows, short, Spark, whole, write } from "./dom.js";
import { all, sum } from "./history.js";

const COLUMNS = [
  ["function", "Function", ""],
  ["guest", "Guest", ""],
  ["line", "Last minute", ""],
  ["sent", "Sent", "frames/s"],
  ["received", "Received", "frames/s"],
  ["bits", "Both ways", "bits/s"],
  ["drops", "Drops", "/s"],
  ["interrupts", "Interrupts", "/s"],
  ["exits", "Exits", "/s"],
  ["policy", "Policy", ""],
];

/** What is shown of a guest, or of a VF without one. */
function countersOf(vf, guest) {
  const from = guest ?? vf;
  return {
    tx_frames: from.tx_frames,
    rx_frames: from.rx_frames,
    bytes: guest ? guest.tx_bytes + guest.rx_bytes : 0,
    drops: all(from.dropped),
    interrupts: guest?.interrupts ?? 0,
    exits: guest?.exits ?? 0,
  };
}

/** Make what the tables show of what the lab has told: groups of rows, each with its rates. */
export function arrange(told, history) {
  const { snapshot, links, states } = told;
  const seconds = snapshot.elapsed_s;
  const left = new Map(snapshot.guests.map((guest) => [guest.name, guest]));
  const note = (row) => {
    const rates = history.note(row.key, seconds, row.counters);
    return { ...row, rates, line: history.line(row.key) };
  };
  const groups = snapshot.pfs.map((pf) => {
    const link = links?.find((each) => each.ifname === pf.name);
    const rows = pf.vfs.map((vf) => {
      const guest = vf.guest === null ? null : (left.get(vf.guest) ?? null);
      left.delete(vf.guest);
      return note({
        key: `${pf.name} vf${vf.vf}`,
        pf: pf.name,
        vf,
        guest,
        address: vf.address,
        counters: countersOf(vf, guest),
        policy: link?.vfinfo_list?.find((each) => each.vf === vf.vf) ?? null,
        state: states?.find((each) => each.pf === pf.name && each.vf === vf.vf) ?? null,
      });
    });
    return { key: `pf ${pf.name}`, name: pf.name, address: pf.address, link, switch: pf.switch, rows };
  });
  const others = [...left.values()].map((guest) =>
    note({ key: `guest ${guest.name}`, vf: null, guest, address: guest.address, counters: countersOf(null, guest) }),
  );
  if (others.length) groups.push({ key: "others", name: "Guests without a VF", address: "", rows: others });
  const total = history.note("all", seconds, sum(groups.flatMap((group) => group.rows.map((row) => row.counters))));
  return { groups, total };
}

/** Say in words what is special about a VF: what it may not, or may. */
export function policyWords({ policy, state }) {
  const words = [];
  if (state?.state === "quarantined") words.push(["quarantined", "bad"]);
  if (state?.throttled_mbps) words.push([`throttled to ${state.throttled_mbps} Mb/s`, "bad"]);
  if (!policy) return words;
  const { vlan, qos } = policy.vlan_list?.[0] ?? {};
  if (vlan) words.push([qos ? `VLAN ${vlan}, priority ${qos}` : `VLAN ${vlan}`, ""]);
  if (policy.rate?.max_tx) words.push([`up to ${policy.rate.max_tx} Mb/s`, ""]);
  if (!policy.spoofchk) words.push(["no spoof check", "warn"]);
  if (policy.trust) words.push(["trusted", "warn"]);
  if (policy.link_state !== "auto") words.push([policy.link_state === "enable" ? "link on" : "link off", ""]);
  return words;
}

/** Show the totals of all guests. */
export function showTotals(total) {
  const facts = [
    ["Frames sent", short(total.tx_frames ?? 0), "a second"],
    ["Frames received", short(total.rx_frames ?? 0), "a second"],
    ["Both ways", short(8 * (total.bytes ?? 0), "b/s"), ""],
    ["Drops", rate(total.drops ?? 0), "a second"],
    ["Interrupts", rate(total.interrupts ?? 0), "a second"],
    ["Exits", rate(total.exits ?? 0), "a second"],
  ];
  const list = find("totals");
  if (!list.children.length) {
    for (const [name] of facts) list.append(make("div", {}, make("dt", { text: name }), make("dd")));
  }
  facts.forEach(([, number, unit], k) => write(list.children[k].lastChild, unit ? `${number} ${unit}` : number));
}

/** The tables. open: is called with the key of the VF whose name was pressed. */
export class FunctionTables {
  #groups;

  constructor(open) {
    this.#groups = new Rows(find("function-tables"), () => new Group(open));
  }

  show(groups) {
    this.#groups.show(groups, (group) => group.key);
  }
}

class Group {
  #name = make("span", { class: "name" });
  #about = make("span", { class: "muted" });
  #body = make("tbody", { role: "rowgroup" });
  #empty = make("p", { class: "hint", hidden: true });
  #rows;

  constructor(open) {
    const heads = COLUMNS.map(([id, title, unit]) => {
      const small = unit ? [make("small", { text: unit })] : [];
      return make("th", { scope: "col", role: "columnheader", class: id }, make("span", { text: title }), ...small);
    });
    const head = make("thead", { role: "rowgroup" }, make("tr", { role: "row" }, ...heads));
    const caption = make("caption", {}, this.#name, " ", this.#about);
    const table = make("table", { role: "table", class: "functions" }, caption, head, this.#body);
    this.element = make("div", { class: "group" }, table, this.#empty);
    this.#rows = new Rows(this.#body, (row) => new Row(row, open));
  }

  change(group) {
    write(this.#name, group.name);
    write(this.#about, groupWords(group));
    this.#rows.show(group.rows, (row) => row.key);
    this.#empty.hidden = group.rows.length > 0;
    write(this.#empty, "No VFs are enabled here.");
  }
}

function groupWords({ address, link, switch: counts }) {
  const words = address ? [address] : [];
  if (link) words.push(`link ${link.operstate.toLowerCase()}`);
  if (counts) words.push(`${short(counts.forwarded)} frames forwarded`, `${short(counts.flooded)} flooded`);
  return words.join(", ");
}

class Row {
  #cells = {};
  #spark = new Spark();
  #name;
  #guest = make("span", { class: "name" });
  #kind = make("small");
  #drops = make("span");
  #dropped = make("small");
  #policy = "";

  constructor(row, open) {
    for (const [id, title, unit] of COLUMNS) {
      const tag = id === "function" ? "th" : "td";
      const role = id === "function" ? "rowheader" : "cell";
      const scope = id === "function" && "row";
      this.#cells[id] = make(tag, { class: id, role, scope, "data-title": unit ? `${title}, ${unit}` : title });
    }
    this.#name = row.vf
      ? make("button", { type: "button", text: `vf${row.vf.vf}`, on: { click: () => open(row.key) } })
      : make("span", { text: row.guest.io });
    this.#name.setAttribute("aria-haspopup", row.vf ? "dialog" : "false");
    this.#cells.function.append(this.#name, make("small", { text: row.address }));
    this.#cells.guest.append(this.#guest, this.#kind);
    this.#cells.line.append(this.#spark.element);
    this.#cells.drops.append(this.#drops, this.#dropped);
    this.element = make("tr", { role: "row" }, ...Object.values(this.#cells));
  }

  change(row) {
    const { rates, guest, counters } = row;
    if (row.vf) this.#name.setAttribute("aria-label", `vf${row.vf.vf} of ${row.pf}: counters and policy`);
    write(this.#guest, guest ? guest.name : (row.vf?.guest ?? "none"));
    this.#guest.classList.toggle("muted", !guest);
    write(this.#kind, guest ? `${guest.vmm}, ${guest.io}` : "");
    write(this.#cells.sent, short(rates.tx_frames));
    write(this.#cells.received, short(rates.rx_frames));
    write(this.#cells.bits, short(8 * rates.bytes));
    write(this.#drops, rate(rates.drops));
    write(this.#dropped, counters.drops ? `${whole(counters.drops)} in all` : "");
    this.#cells.drops.classList.toggle("bad", rates.drops > 0);
    write(this.#cells.interrupts, rate(rates.interrupts));
    write(this.#cells.exits, rate(rates.exits));
    this.#spark.change(row.line);
    this.#showPolicy(row);
  }

  #showPolicy(row) {
    const words = policyWords(row);
    const text = JSON.stringify(words);
    if (text === this.#policy) return;
    this.#policy = text;
    this.#cells.policy.replaceChildren(...words.map(([word, kind]) => make("span", { class: `chip ${kind}`, text: word })));
    this.element.classList.toggle("stopped", row.state?.state === "quarantined");
  }
}
