// One VF: its counters, its policy, and the way to stop it. Only what was changed is asked for, in one request.

import { make, rate, short, whole, write } from "./dom.js";

const STATES = [
  ["auto", "as the port’s"],
  ["enable", "always up"],
  ["disable", "always down"],
];

/** The dialog of a VF. changed: is called when the lab was changed. */
export class VfDialog {
  #dialog;
  #lab;
  #changed;
  #key = null;
  #rows = new Map();
  #parts = null;

  constructor(dialog, lab, changed) {
    this.#dialog = dialog;
    this.#lab = lab;
    this.#changed = changed;
    dialog.addEventListener("close", () => {
      this.#key = null;
      dialog.replaceChildren();
    });
  }

  /** Open it for a VF. */
  open(key) {
    this.#key = key;
    this.#build(this.#rows.get(key));
    this.#dialog.showModal();
  }

  /** Show what is new. */
  show(rows) {
    this.#rows = new Map(rows.filter((row) => row.vf).map((row) => [row.key, row]));
    if (this.#key === null) return;
    const row = this.#rows.get(this.#key);
    if (!row) {
      this.#dialog.close(); // the VF is gone
      return;
    }
    if (row.policy && !this.#parts.policy) this.#build(row);
    this.#update(row);
  }

  #build(row) {
    const counts = make("dl", { class: "facts" });
    const policy = row.policy ? new PolicyForm(row, (clauses) => this.#set(clauses)) : null;
    const stop = new StopForm((why) => this.#stop(why), () => this.#release());
    const said = make("p", { role: "status", class: "said" });
    const close = make("button", { type: "button", class: "close", text: "Close", on: { click: () => this.#dialog.close() } });
    const title = make("h2", { id: "vf-title", text: `${row.pf} vf${row.vf.vf}` });
    const about = make("p", { class: "muted" });
    const none = make("p", { class: "hint", text: "This lab does not tell the policy of this VF." });
    this.#parts = { counts, policy, stop, said, about };
    this.#dialog.replaceChildren(
      make("div", { class: "head" }, title, close),
      about,
      said,
      counts,
      policy ? policy.element : none,
      stop.element,
    );
    this.#update(row);
  }

  #update(row) {
    const { counts, stop, about } = this.#parts;
    const { rates, counters, guest, vf } = row;
    const whose = guest ? `guest ${guest.name} (${guest.vmm}, ${guest.io})` : "no guest has it";
    write(about, `${row.address}, ${whose}`);
    const dropped = Object.entries(guest?.dropped ?? vf.dropped).map(([reason, count]) => `${reason} ${whole(count)}`);
    const facts = [
      ["Sent", `${whole(counters.tx_frames)} frames, ${short(rates.tx_frames)} a second`],
      ["Received", `${whole(counters.rx_frames)} frames, ${short(rates.rx_frames)} a second`],
      ["Dropped", dropped.length ? dropped.join(", ") : "nothing"],
    ];
    if (guest) {
      facts.push(["Interrupts", `${whole(guest.interrupts)}, ${rate(rates.interrupts)} a second`]);
      facts.push(["Exits", `${whole(guest.exits)}, ${rate(rates.exits)} a second`]);
    }
    for (const [kind, limit] of Object.entries(row.state?.watch ?? {})) {
      if (limit.per_second) facts.push([`Watch: ${kind}`, `${whole(limit.per_second)} a second of ${whole(limit.allowed)}`]);
    }
    if (counts.children.length === 2 * facts.length) {
      facts.forEach(([name, text], k) => {
        write(counts.children[2 * k], name);
        write(counts.children[2 * k + 1], text);
      });
    } else {
      counts.replaceChildren(...facts.flatMap(([name, text]) => [make("dt", { text: name }), make("dd", { text })]));
    }
    stop.change(row);
  }

  /** Ask for a change, and say what came of it. */
  async #ask(method, params, done) {
    const { said } = this.#parts;
    try {
      const answer = await this.#lab.ask(method, params);
      said.className = "said";
      write(said, done);
      this.#changed();
      return answer;
    } catch (error) {
      said.className = "said bad";
      write(said, error.errno ? `Refused: ${error.message} (${error.errno})` : error.message);
      return null;
    }
  }

  async #set(clauses) {
    const row = this.#rows.get(this.#key);
    if (!Object.keys(clauses).length) {
      write(this.#parts.said, "Nothing is changed.");
      return;
    }
    const settings = [{ vf: row.vf.vf, ...clauses }];
    const links = await this.#ask("link.set", { pf: row.pf, settings }, "Done: it is in force.");
    const now = links?.[0]?.vfinfo_list?.find((each) => each.vf === row.vf.vf);
    if (now && this.#parts.policy) this.#parts.policy.fill(now);
  }

  async #stop(why) {
    const { pf, vf } = this.#rows.get(this.#key);
    const params = why ? { pf, vf: vf.vf, why } : { pf, vf: vf.vf };
    await this.#ask("vf.quarantine", params, "Stopped: nothing goes in or out until it is released.");
  }

  async #release() {
    const { pf, vf } = this.#rows.get(this.#key);
    await this.#ask("vf.release", { pf, vf: vf.vf }, "Released: it runs again.");
  }
}

/** What a policy says, by the fields of the form. */
function fieldsOf(policy) {
  const { vlan = 0, qos = 0 } = policy.vlan_list?.[0] ?? {};
  return {
    mac: policy.address,
    vlan: String(vlan),
    qos: String(qos),
    max_tx_rate: String(policy.rate.max_tx),
    spoofchk: policy.spoofchk,
    trust: policy.trust,
    state: policy.link_state,
  };
}

class PolicyForm {
  #was = {};
  #fields;

  constructor(row, set) {
    const number = { type: "number", inputmode: "numeric", required: true, min: "0" };
    this.#fields = {
      mac: make("input", { spellcheck: "false", autocomplete: "off", required: true, maxlength: "17" }),
      vlan: make("input", { ...number, max: "4094" }),
      qos: make("input", { ...number, max: "7" }),
      max_tx_rate: make("input", { ...number, max: "10000" }),
      spoofchk: make("input", { type: "checkbox" }),
      trust: make("input", { type: "checkbox" }),
      state: make("select", {}, ...STATES.map(([value, text]) => make("option", { value, text }))),
    };
    const labels = [
      ["mac", "MAC address", ""],
      ["vlan", "Port VLAN", "0: none"],
      ["qos", "Priority in it", "0 to 7"],
      ["max_tx_rate", "May send, Mb/s", "0: no limit"],
      ["state", "Link", "as the guest sees it"],
      ["spoofchk", "Spoof check", "no addresses and VLANs but its own"],
      ["trust", "Trusted", "may change its address, and hear everything"],
    ];
    const lines = labels.map(([name, text, hint]) => {
      const field = this.#fields[name];
      field.id = `vf-${name}`;
      const small = make("small", { id: `vf-${name}-hint`, text: hint });
      if (hint) field.setAttribute("aria-describedby", small.id);
      const kind = field.type === "checkbox" ? "field check" : "field";
      return make("div", { class: kind }, make("label", { for: field.id, text }), field, small);
    });
    const submit = make("button", { type: "submit", class: "main", text: "Apply" });
    this.element = make("form", { class: "policy" }, make("h3", { text: "Policy" }), ...lines, submit);
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      set(this.#clauses());
    });
    this.fill(row.policy);
  }

  /** Show a policy as it is in force. */
  fill(policy) {
    this.#was = fieldsOf(policy);
    for (const [name, value] of Object.entries(this.#was)) {
      const field = this.#fields[name];
      if (field.type === "checkbox") field.checked = value;
      else field.value = value;
    }
  }

  /** What was changed, by the words of `ip link set ... vf`; a VLAN and its priority go together. */
  #clauses() {
    const clauses = {};
    for (const [name, field] of Object.entries(this.#fields)) {
      const value = field.type === "checkbox" ? field.checked : field.value.trim();
      if (value === this.#was[name]) continue;
      clauses[name] = field.type === "number" ? Number(value) : value;
    }
    if ("qos" in clauses || "vlan" in clauses) {
      clauses.vlan = Number(this.#fields.vlan.value);
      clauses.qos = Number(this.#fields.qos.value);
    }
    return clauses;
  }
}

class StopForm {
  #why = make("input", { id: "vf-why", maxlength: "200", autocomplete: "off" });
  #stopped = make("p", { class: "bad" });
  #stopping;
  #releasing;
  #unknown = make("p", { class: "hint", text: "This lab has no quarantine." });

  constructor(stop, release) {
    const button = make("button", { type: "submit", class: "stop", text: "Quarantine" });
    const field = make("div", { class: "field" }, make("label", { for: "vf-why", text: "Why (may be empty)" }), this.#why);
    this.#stopping = make("form", {}, field, button);
    this.#stopping.addEventListener("submit", (event) => {
      event.preventDefault();
      stop(this.#why.value.trim());
      this.#why.value = "";
    });
    const go = make("button", { type: "button", class: "main", text: "Release", on: { click: release } });
    this.#releasing = make("div", {}, this.#stopped, go);
    const title = make("h3", { text: "Quarantine" });
    this.element = make("section", {}, title, this.#unknown, this.#stopping, this.#releasing);
  }

  change({ state }) {
    const held = state?.state === "quarantined" || Boolean(state?.throttled_mbps);
    this.#unknown.hidden = Boolean(state);
    this.#stopping.hidden = !state || state.state !== "assigned";
    this.#releasing.hidden = !held;
    if (state?.state === "free") {
      this.#unknown.hidden = false;
      write(this.#unknown, "Nobody has this VF: there is nobody to stop.");
    }
    if (!held) return;
    const what = state.state === "quarantined" ? "Stopped" : `Held back to ${state.throttled_mbps} Mb/s`;
    write(this.#stopped, state.why ? `${what}: ${state.why}` : what);
  }
}
