// Once a second: ask the lab, and show what it says. A page that nobody sees asks nothing.

import { VfDialog } from "./dialog.js";
import { find, write } from "./dom.js";
import { arrange, FunctionTables, showTotals } from "./functions.js";
import { History } from "./history.js";
import { GoneError, Lab, RefusedError, TokenError } from "./lab.js";
import { Drops, EventLog, eventWords, Iommu, Mailbox } from "./panels.js";

const EVERY_MS = 1000;
const POLICIES_EVERY = 5; // looks: they change when somebody changes them
const SPOKEN_EVERY_MS = 5000;

const lab = new Lab();
const history = new History();
const drops = new Drops();
const iommu = new Iommu();
const mailbox = new Mailbox();
const events = new EventLog();
const dialog = new VfDialog(find("vf"), lab, () => {
  stale = true;
  tick();
});
const tables = new FunctionTables((key) => dialog.open(key));

let timer = 0;
let asking = false;
let eventsNext = 0;
let messagesNext = 0;
let lastSeconds = 0;
let gone = false;
let looks = 0;
let stale = true; // policies are asked for at once
let policies = {};
let unspoken = [];
let spokenAt = 0;

/** Ask for everything that is shown, at once. Policies that the lab cannot tell are null. */
async function askAll() {
  looks += 1;
  const wanted = stale || looks % POLICIES_EVERY === 0;
  stale = false;
  const since = { events: eventsNext, messages: messagesNext };
  const { snapshot, events: told, messages, links, vfs } = await lab.ask("session.look", { ...since, policies: wanted });
  if (gone || snapshot.elapsed_s < lastSeconds) {
    beginAnew();
    return askAll(); // what it was asked was meant for another
  }
  lastSeconds = snapshot.elapsed_s;
  if (wanted) policies = { links, states: vfs };
  eventsNext = told.next;
  messagesNext = messages.next;
  return { snapshot, ...policies, told, messages };
}

/** The lab is another one than before, or was away. */
function beginAnew() {
  history.clear();
  events.clear();
  iommu.clear();
  mailbox.clear();
  gone = false;
  lastSeconds = 0;
  stale = true;
  eventsNext = 0;
  messagesNext = 0;
}

function show(answers) {
  const { snapshot, told, messages } = answers;
  const { groups, total } = arrange(answers, history);
  document.title = `${snapshot.lab} – virtfn`;
  write(find("lab"), snapshot.lab);
  write(find("state"), snapshot.state);
  showTotals(total);
  tables.show(groups);
  drops.show(snapshot, history);
  iommu.show(snapshot, history);
  dialog.show(groups.flatMap((group) => group.rows));
  const names = new Map(groups.flatMap((group) => group.rows.map((row) => [row.address, row.key])));
  mailbox.show(messages.messages, names);
  if (told.lost) events.noteLost(told.lost);
  for (const event of told.events) {
    events.note(event);
    if (event.event === "FAULTS_RECORDED") iommu.note(event);
    unspoken.push(event);
  }
  speak();
}

/** Tell a screen reader what happened, now and then: not each of a flood. */
function speak() {
  if (!unspoken.length || performance.now() - spokenAt < SPOKEN_EVERY_MS) return;
  const last = unspoken.at(-1);
  const words = `${last.event.toLowerCase().replaceAll("_", " ")}: ${eventWords(last)}`;
  write(find("spoken"), unspoken.length > 1 ? `${unspoken.length} events, the latest: ${words}` : words);
  unspoken = [];
  spokenAt = performance.now();
}

function connected(words, kind) {
  write(find("connection"), words);
  find("connection").className = kind;
  document.body.classList.toggle("gone", kind === "away");
}

async function tick() {
  if (asking || document.hidden) return;
  asking = true;
  clearTimeout(timer);
  try {
    const answers = await askAll();
    gone = false;
    find("token-form").hidden = true;
    find("main").hidden = false;
    show(answers);
    connected("Live", "live");
  } catch (error) {
    if (!failed(error)) throw error;
  } finally {
    asking = false;
    timer = setTimeout(tick, EVERY_MS);
  }
}

/** Say why there is nothing new. False for what should not be. */
function failed(error) {
  if (error instanceof TokenError) {
    find("main").hidden = true;
    find("token-form").hidden = false;
    connected("The lab asks for its token", "away");
  } else if (error instanceof GoneError) {
    gone = true;
    connected("The lab is gone. What you see is the last it told; this page goes on when it is back.", "away");
  } else if (error instanceof RefusedError) {
    connected(`The lab says: ${error.message}`, "away");
  } else {
    connected(`This page is wrong: ${error.message}`, "away");
    return false;
  }
  return true;
}

find("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  lab.useToken(find("token").value);
  find("token").value = "";
  write(find("token-wrong"), "");
  tick().then(() => {
    if (!find("token-form").hidden) write(find("token-wrong"), "This is not the lab’s token.");
  });
});
document.addEventListener("visibilitychange", () => tick());

fetch("/page/reasons.json")
  .then((response) => response.json())
  .then((reasons) => drops.explain(reasons))
  .catch(() => {}); // the names say enough
tick();
